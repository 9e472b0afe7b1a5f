//! The child's side of a start: it does the steps, one by one, and then is pid 1 of the container.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{DirBuilder, write};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::prctl::{set_child_subreaper, set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, getcwd, pipe2, read, sethostname, setsid,
};

use crate::confine::{Confinement, Identity, with_home};
use crate::failure::{OWN_FAILURE, errno_of};
use crate::host::StandardStreams;
use crate::proc_view::ProcView;
use crate::process::channel::{Channel, Message};
use crate::process::kernel_calls::bring_up_loopback;
use crate::process::signals::Signals;
use crate::process::{close_all_descriptors, close_descriptors_but, exit_now, fork, init};
use crate::rootfs::{Rootfs, open_shared};
use crate::steps::{Action, Step};
use crate::terminal::{self, Terminal};
use crate::volume::Propagation;
use crate::{cgroup, idmap, namespace, union};

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
    /// The device of the file system that tells what the container may use.
    pub(crate) view: Option<OwnedFd>,
    /// Where the union that becomes the root is mounted meanwhile, in the child's own mount tree.
    pub(crate) mount_point: Option<PathBuf>,
}

/// How far the container is made.
#[derive(Default)]
struct Progress<'a> {
    root: Option<Rootfs>,
    /// What of the host is shared, in the order in which it is shown.
    shared: VecDeque<OwnedFd>,
    /// Who the command runs as; the container's root, where nobody was named.
    identity: Option<Identity>,
    /// What the command may do, and the number of the step that says so.
    confinement: Option<(u32, &'a Confinement)>,
    /// Whether there is a file system that tells what the container may use.
    has_view: bool,
    terminal: Option<(OwnedFd, StandardStreams)>,
}

impl<'a> Child<'a> {
    /// Does everything; returns, with the exit status for this process, only if that fails.
    pub(crate) fn run(mut self) -> u8 {
        // The order matters: a parent that ends before the first line closes the channel, one that ends later kills us.
        if set_pdeathsig(Signal::SIGKILL).is_err() || !matches!(self.channel.receive(), Ok(Some(Message::Go))) {
            return OWN_FAILURE;
        }
        // What is made for the container has the mode that it is given.
        umask(Mode::empty());
        let mut progress = Progress::default();
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
    fn act(&mut self, action: &'a Action, number: u32, progress: &mut Progress<'a>) -> Result<(), Errno> {
        let root = progress.root.as_ref().ok_or(Errno::ENOTDIR);
        match action {
            Action::JoinCgroup(tasks) => cgroup::join(tasks)?,
            Action::Join(target) => target.enter()?,
            Action::BecomeRoot => self.become_root()?,
            Action::Isolate => namespace::isolate_mounts()?,
            Action::IsolateCgroups => namespace::isolate_cgroups()?,
            Action::ShowCgroups(view) => view.show(root?)?,
            Action::MountProcView(is_needed) => match self.mount_view(root?) {
                Err(errno) if *is_needed => return Err(errno),
                result => progress.has_view = result.is_ok(),
            },
            Action::ShowProcView(view) => show_view(root?, view, progress.has_view)?,
            Action::BindRoot(tree) => progress.root = Some(namespace::bind_root(tree)?),
            Action::MountUnion(at, flags) => self.mount_union(at, *flags, progress)?,
            Action::Mount(file_system) => root?.mount(file_system)?,
            Action::Bind(path) => root?.bind_read_only(path)?,
            Action::OpenShared(volume) => progress.shared.push_back(open_shared(&volume.source)?),
            Action::Volume(volume) if volume.propagation == Propagation::Shared => {
                root?.place_shared(volume, &progress.shared.pop_front().ok_or(Errno::EBADF)?)?;
            }
            Action::Volume(volume) => root?.bind_volume(volume)?,
            Action::Memory(tmpfs) => root?.mount_memory(tmpfs)?,
            Action::OwnFiles(files) => root?.cover(files)?,
            Action::HiddenFiles(files) => root?.cover_hidden(files)?,
            Action::ReadOnly(path) => root?.make_read_only(path)?,
            Action::Clocks(offsets) => namespace::separate_clocks(offsets)?,
            Action::Loopback => bring_up_loopback()?,
            Action::Directory(path, mode) => root?.make_directory(path, *mode)?,
            Action::Devices(directory, devices) => root?.make_devices(directory.as_ref(), devices)?,
            Action::Links(directory, links) => root?.make_links(directory.as_ref(), links)?,
            Action::File(path, content) => root?.make_file(path, content)?,
            Action::Hostname(name) => sethostname(name)?,
            Action::EnterRoot => {
                namespace::enter(root?)?;
                progress.root = None;
            }
            Action::DisableDevices => root?.disable_devices()?,
            Action::HostDevice(device) => root?.show_device(device)?,
            Action::Mask(path) => root?.mask(path)?,
            Action::Protect(path) => root?.protect(path)?,
            Action::FindUser(user, groups) => progress.identity = Some(Identity::find(user.as_ref(), groups)?),
            Action::ChangeDirectory(path) => change_directory(path)?,
            Action::MakeAndChangeDirectory(path) => {
                match DirBuilder::new().recursive(true).mode(0o755).create(path) {
                    // Something that is no directory, which the next line says better.
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    result => result.map_err(|error| errno_of(&error))?,
                }
                change_directory(path)?;
            }
            Action::OomScore(score) => {
                write("/proc/self/oom_score_adj", score.to_string()).map_err(|error| errno_of(&error))?;
            }
            Action::Restrict(confinement) => {
                confinement.restrict()?;
                progress.confinement = Some((number, confinement));
            }
            Action::OpenTerminal(streams) => {
                let Terminal { master, slave } = Terminal::open()?;
                self.channel.send(&Message::Terminal(master))?;
                progress.terminal = Some((slave, *streams));
            }
            Action::Execute(command, environment) => match self.execute(command, environment, number, progress)? {},
        }
        Ok(())
    }

    /// Becomes another user of the machine, with which the kernel forgets who ends this process, and whose it is in /proc.
    fn become_root(&self) -> Result<(), Errno> {
        idmap::become_root()?;
        set_dumpable(true)?;
        set_pdeathsig(Signal::SIGKILL)?;
        // A parent that has ended in between.
        if self.channel.is_closed()? { Err(Errno::ECANCELED) } else { Ok(()) }
    }

    /// Mounts a union in the root or, where there is none yet, as the root.
    fn mount_union(&mut self, at: &Path, flags: MsFlags, progress: &mut Progress<'_>) -> Result<(), Errno> {
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

    /// Mounts the file system that tells what the container may use. The parent has it served from then on, by a process that
    /// is the only one to hold the device.
    fn mount_view(&mut self, root: &Rootfs) -> Result<(), Errno> {
        root.mount_view(&self.view.take().ok_or(Errno::ENODEV)?)?;
        self.channel.send(&Message::View)
    }

    fn execute(
        &mut self,
        command: &[CString],
        environment: &[CString],
        number: u32,
        progress: &mut Progress<'_>,
    ) -> Result<Infallible, Errno> {
        let (restriction, confinement) = progress.confinement.ok_or(Errno::EPERM)?;
        let mut become_it = || {
            let Err(errno) = become_command(confinement, &self.channel, self.signals, self.adopts, progress) else {
                let identity = progress.identity.as_ref();
                let environment = match identity.filter(|_| confinement.sets_home()) {
                    Some(identity) => &with_home(environment, identity),
                    None => environment,
                };
                return (number, exec(command, environment));
            };
            (restriction, errno)
        };
        if !confinement.init {
            let (number, errno) = become_it();
            self.channel.send(&Message::Failed(number, errno))?;
            exit_now(OWN_FAILURE);
        }
        if self.adopts {
            set_child_subreaper(true)?;
        }
        let (go, settled) = pipe2(OFlag::O_CLOEXEC)?;
        let mut settled = Some(settled);
        let command = fork(|| {
            // Until pid 1 has given up what it does not need, there is nobody in the container who could reach for it.
            drop(settled.take());
            if self.adopts && set_pdeathsig(Signal::SIGKILL).is_err() {
                return OWN_FAILURE;
            }
            let (number, errno) = match wait_for_end(&go) {
                Ok(()) => become_it(),
                Err(errno) => (restriction, errno),
            };
            // The parent takes its exit status from this message. Where there is no parent any more, nobody asks.
            self.channel.send(&Message::Failed(number, errno)).map_or(OWN_FAILURE, |()| OWN_FAILURE)
        })?;
        // What is typed at the caller's terminal is for the launcher, which passes it on: twice is once too often.
        setsid()?;
        confinement.restrict_init()?;
        settle()?;
        exit_now(if self.adopts {
            init::run_and_adopt(command, self.signals).unwrap_or(OWN_FAILURE)
        } else {
            init::run(command, self.signals)
        })
    }
}

/// Shows a container what it may use: by the file system that is mounted for it, else as of now.
fn show_view(root: &Rootfs, view: &ProcView, is_mounted: bool) -> Result<(), Errno> {
    match if is_mounted { root.show_view(view) } else { Err(Errno::ENODEV) } {
        Err(_) if view.is_served() != Some(true) => root.show_texts(&view.texts()),
        result => result,
    }
}

/// Enters a directory, and makes sure that it lies in the container: a path through somebody's descriptor could lead out
/// (CVE-2024-21626).
fn change_directory(path: &Path) -> Result<(), Errno> {
    let entered = chdir(path).and_then(|()| getcwd()).and_then(|now| match now.is_absolute() {
        true => Ok(()),
        false => Err(Errno::ENOENT),
    });
    if entered.is_err() {
        chdir("/")?;
    }
    entered
}

/// Waits until nobody has the other end of a pipe any more.
fn wait_for_end(pipe: &OwnedFd) -> Result<(), Errno> {
    loop {
        match read(pipe, &mut [0]) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Leaves pid 1 with nothing that the command could reach through it: no descriptors. The command goes on when it sees that.
fn settle() -> Result<(), Errno> {
    // Not /dev/null, which is what the container makes of it, if it is there at all. Nothing can be read, nor written.
    let (nothing, _) = pipe2(OFlag::O_CLOEXEC)?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    drop(nothing);
    // The channel is among them: the parent sees its end once the command runs.
    close_all_descriptors()
}

/// Makes this process what the command is to be.
fn become_command(
    confinement: &Confinement,
    channel: &Channel,
    signals: &Signals,
    adopts: bool,
    progress: &mut Progress<'_>,
) -> Result<(), Errno> {
    // A session of its own: signals from the caller's terminal come through us only, and once.
    setsid()?;
    let identity = progress.identity.get_or_insert_with(Identity::root);
    if let Some((slave, streams)) = progress.terminal.take() {
        if identity.user != 0 {
            fchown(&slave, Some(Uid::from_raw(identity.user)), None)?;
        }
        terminal::take_over(&slave, streams)?;
    }
    signals.give_back()?;
    close_descriptors_but(&[channel.as_fd()])?;
    confinement.become_command(identity)?;
    // The kernel forgets it when ids change. It matters where the command is pid 1 itself, or in the host's pid namespace.
    if !confinement.init || adopts {
        set_pdeathsig(Signal::SIGKILL)?;
    }
    Ok(())
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
