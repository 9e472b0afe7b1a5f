//! The child's side of a start: it does the steps, one by one, and then is pid 1 of the container.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::prctl::{set_child_subreaper, set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, sethostname, setsid};

use crate::failure::OWN_FAILURE;
use crate::host::StandardStreams;
use crate::process::channel::{Channel, Message};
use crate::process::kernel_calls::bring_up_loopback;
use crate::process::signals::Signals;
use crate::process::{close_all_descriptors, exit_now, fork, init};
use crate::rootfs::Rootfs;
use crate::steps::{Action, Step};
use crate::terminal::{self, Terminal};
use crate::{namespace, union};

/// Where commands are looked for when the environment has no PATH; see execvp(3).
const FALLBACK_PATH: &[u8] = b"/bin:/usr/bin";

/// What the child has to work with.
pub(crate) struct Child<'a> {
    pub(crate) steps: &'a [Step],
    pub(crate) signals: &'a Signals,
    /// Its own end of the channel to the parent.
    pub(crate) channel: Channel,
    /// Whether it is not pid 1, so that it has to look itself after what the command leaves.
    pub(crate) adopts: bool,
    /// The devices of the unions, in the order in which they are mounted.
    pub(crate) devices: std::vec::IntoIter<OwnedFd>,
    /// Where the union that becomes the root is mounted meanwhile, in the child's own mount tree.
    pub(crate) mount_point: Option<PathBuf>,
}

/// How far the container is made.
#[derive(Default)]
struct Progress {
    root: Option<Rootfs>,
    terminal: Option<(OwnedFd, StandardStreams)>,
    umask: Option<Mode>,
}

impl Child<'_> {
    /// Does everything; returns, with the exit status for this process, only if that fails.
    pub(crate) fn run(mut self) -> u8 {
        // The order matters: a parent that ends before the first line closes the channel, one that ends later kills us.
        if set_pdeathsig(Signal::SIGKILL).is_err() || !matches!(self.channel.receive(), Ok(Some(Message::Go))) {
            return OWN_FAILURE;
        }
        let mut progress = Progress { umask: Some(umask(Mode::empty())), ..Progress::default() };
        for (number, step) in (0..).zip(self.steps) {
            let (message, is_fatal) = match self.act(&step.action, number, &mut progress) {
                Ok(()) => continue,
                Err(errno) if step.otherwise.is_some() => (Message::Warning(number, errno), false),
                Err(errno) => (Message::Failed(number, errno), true),
            };
            // A parent that cannot be told has ended, and this process with it.
            if self.channel.send(&message).is_err() || is_fatal {
                break;
            }
        }
        OWN_FAILURE
    }

    /// Does one action. The last one does not return, if all goes well.
    fn act(&mut self, action: &Action, number: u32, progress: &mut Progress) -> Result<(), Errno> {
        let root = progress.root.as_ref().ok_or(Errno::ENOTDIR);
        match action {
            Action::Join(target) => target.enter()?,
            Action::Isolate => namespace::isolate_mounts()?,
            Action::IsolateCgroups => namespace::isolate_cgroups()?,
            Action::ShowCgroups(view) => view.show(root?)?,
            Action::BindRoot(tree) => progress.root = Some(namespace::bind_root(tree)?),
            Action::MountUnion(at, flags) => self.mount_union(at, *flags, progress)?,
            Action::Mount(file_system) => root?.mount(file_system)?,
            Action::Bind(path) => root?.bind_read_only(path)?,
            Action::Volume(volume) => root?.bind_volume(volume)?,
            Action::Memory(tmpfs) => root?.mount_memory(tmpfs)?,
            Action::OwnFiles(files) => root?.cover(files)?,
            Action::ReadOnly(path) => root?.make_read_only(path)?,
            Action::Clocks(offsets) => namespace::separate_clocks(offsets)?,
            Action::Loopback => bring_up_loopback()?,
            Action::Directory(path, mode) => root?.make_directory(path, *mode)?,
            Action::Device(device) => root?.make_device(device)?,
            Action::Link(at, to) => root?.make_link(at.as_ref(), to)?,
            Action::File(path, content) => root?.make_file(path, content)?,
            Action::Hostname(name) => sethostname(name)?,
            Action::EnterRoot => {
                namespace::enter(root?)?;
                progress.root = None;
            }
            Action::ChangeDirectory(path) => chdir(path)?,
            Action::OpenTerminal(streams) => {
                let Terminal { master, slave } = Terminal::open()?;
                self.channel.send(&Message::Terminal(master))?;
                progress.terminal = Some((slave, *streams));
            }
            Action::Execute(command, environment) => match self.execute(command, environment, number, progress)? {},
        }
        Ok(())
    }

    /// Mounts a union in the root or, where there is none yet, as the root.
    fn mount_union(&mut self, at: &Path, flags: MsFlags, progress: &mut Progress) -> Result<(), Errno> {
        let device = self.devices.next().ok_or(Errno::ENODEV)?;
        match &progress.root {
            Some(root) => root.mount_on(at, |target| union::attach(&device, target, flags))?,
            None => union::attach(&device, self.mount_point.as_ref().ok_or(Errno::ENODEV)?, flags)?,
        }
        // From here on the daemon is the only one who holds the device, so that its end is the union's end.
        drop(device);
        self.channel.send(&Message::Mounted)?;
        if !matches!(self.channel.receive()?, Some(Message::Go)) {
            return Err(Errno::ECANCELED);
        }
        // Nothing may be looked at before this: the daemon could not answer.
        if let Some(mount_point) = self.mount_point.take() {
            union::read_further_ahead(&mount_point)?;
            progress.root = Some(Rootfs::open(&mount_point)?);
        }
        Ok(())
    }

    fn execute(
        &mut self,
        command: &[CString],
        environment: &[CString],
        number: u32,
        progress: &mut Progress,
    ) -> Result<Infallible, Errno> {
        if self.adopts {
            set_child_subreaper(true)?;
        }
        let command = fork(|| {
            if self.adopts && set_pdeathsig(Signal::SIGKILL).is_err() {
                return OWN_FAILURE;
            }
            let errno = become_command(command, environment, self.signals, progress);
            // The parent takes its exit status from this message. Where there is no parent any more, nobody asks.
            self.channel.send(&Message::Failed(number, errno)).map_or(OWN_FAILURE, |()| OWN_FAILURE)
        })?;
        settle()?;
        exit_now(if self.adopts {
            init::run_and_adopt(command, self.signals).unwrap_or(OWN_FAILURE)
        } else {
            init::run(command, self.signals)
        })
    }
}

/// Leaves pid 1 with nothing that the command could reach through it: no descriptors, and nothing to trace.
fn settle() -> Result<(), Errno> {
    set_dumpable(false)?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    // The channel is among them: the parent sees its end once the command runs.
    close_all_descriptors()
}

/// Turns this process into the command; returns only with the reason why it could not.
fn become_command(command: &[CString], environment: &[CString], signals: &Signals, progress: &mut Progress) -> Errno {
    let mut prepare = || {
        // A session of its own: signals from the caller's terminal come through us only, and once.
        setsid()?;
        if let Some((slave, streams)) = progress.terminal.take() {
            terminal::take_over(&slave, streams)?;
        }
        progress.umask.take().map(umask);
        signals.give_back()
    };
    match prepare() {
        Ok(()) => exec(command, environment),
        Err(errno) => errno,
    }
}

/// As execvpe(3), but with the PATH of the new environment, and without running a shell for what is no program.
fn exec(command: &[CString], environment: &[CString]) -> Errno {
    let Some(name) = command.first() else { return Errno::ENOENT };
    if name.to_bytes().contains(&b'/') {
        return exec_file(name, command, environment);
    }
    if name.is_empty() {
        return Errno::ENOENT;
    }
    let path = environment.iter().find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="));
    let mut result = Errno::ENOENT;
    for directory in path.unwrap_or(FALLBACK_PATH).split(|byte| *byte == b':') {
        let file = PathBuf::from(OsStr::from_bytes(directory)).join(OsStr::from_bytes(name.to_bytes()));
        let Ok(file) = CString::new(file.into_os_string().as_bytes()) else { continue };
        match exec_file(&file, command, environment) {
            // Not here; but a file that may not be executed is remembered, for it says more than "not found".
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => result = Errno::EACCES,
            errno => return errno,
        }
    }
    result
}

fn exec_file(file: &CStr, command: &[CString], environment: &[CString]) -> Errno {
    match execve(file, command, environment) {
        Err(errno) => errno,
        Ok(never) => match never {},
    }
}
