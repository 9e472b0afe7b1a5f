//! The unions under a container: their daemon, as the launcher sees it, and their mounts, as the child makes them.
//!
//! The child mounts a union in the container's own mount namespace, so the host's mount table never shows it. The
//! daemon serves from outside of every namespace of the container: it sees the host's files, and it holds nothing that
//! would keep the container's namespaces alive. When they go, the kernel ends the connection and the daemon ends with
//! it, whoever was killed.
//!
//! A copy of the host has a union for every mount that it shows, all of them served by one process. The order of a
//! start, told over two channels:
//!
//! | Launcher | Daemon | Child |
//! |---|---|---|
//! | opens /dev/fuse, once for each union; starts both | opens the branches | mounts a device |
//! | | says `Opened` | says `Mounted` |
//! | says `Mounted` to the daemon | answers the kernel's INIT, says `Serving` | |
//! | says `Go` to the child | | looks at the union for the first time |
//!
//! The last two lines come once for each union, in order.

pub(crate) mod daemon;
pub(crate) mod requests;

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use unionfs::mount::{MountError, MountOptions};
use unionfs::options::{Access, BranchSpec, Options, Udba};

use crate::cgroup::Cgroups;
use crate::failure::{Doing as _, Failure, errno_of};
use crate::init_branch::{self, Contents};
use crate::message::warn;
use crate::mount_table::UNION;
use crate::process;
use crate::process::channel::{Channel, Message};
use crate::spec::Spec;

/// What a container's unions consist of.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// In the order in which they are mounted.
    pub(crate) stacks: Vec<Stack>,
    /// Where each is in the container.
    pub(crate) places: &'a [&'a Path],
    /// The directory of the container's own, which is kept from being removed.
    pub(crate) scratch: &'a Path,
    /// A file system in memory for the tops.
    pub(crate) memory: Option<Memory<'a>>,
    /// The top, where it is one of somebody's branches.
    pub(crate) named_top: Option<&'a Path>,
    /// Where the daemon is asked for what was written.
    pub(crate) socket: PathBuf,
}

/// A file system in memory, which only the daemon sees.
#[derive(Debug)]
pub(crate) struct Memory<'a> {
    /// As tmpfs takes it.
    pub(crate) size: &'a str,
    /// What of the host needs a top in it.
    pub(crate) parts: Vec<&'a Path>,
}

/// One union that is going to be mounted.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) branches: Vec<BranchSpec>,
    pub(crate) options: Options,
    /// What is put into the init branch, if there is one of ours.
    pub(crate) init: Option<Contents>,
}

impl Stack {
    /// A union of somebody's branches; `directory` becomes its init branch, unless it has one.
    pub(crate) fn of_branches(branches: &[BranchSpec], directory: PathBuf, spec: &Spec) -> Stack {
        let options = Options::default();
        let stack = Stack { branches: branches.to_vec(), options, init: None };
        if init_branch::is_added(branches) { stack.with_init_branch(directory, Contents::of(spec)) } else { stack }
    }

    /// The same with an init branch below what is written.
    pub(crate) fn with_init_branch(self, directory: PathBuf, contents: Contents) -> Stack {
        Stack { branches: init_branch::add(&self.branches, directory), init: Some(contents), ..self }
    }

    /// An image, with changes going to `top`, and `directory` as init branch. Nobody changes the layers.
    pub(crate) fn over_layers(top: &Path, layers: &[PathBuf], is_kept: bool, directory: PathBuf, spec: &Spec) -> Stack {
        let layers = layers.iter().map(|layer| branch(layer, Access::ReadOnly, true));
        let branches: Vec<_> = [branch(top, Access::ReadWrite, false)].into_iter().chain(layers).collect();
        let options = Options { volatile: !is_kept, ..Options::default() };
        Stack { options, ..Stack::of_branches(&branches, directory, spec) }
    }

    /// A copy of a part of the host, with changes going to `top`.
    pub(crate) fn over_the_host(top: &Path, part: &Path, is_kept: bool) -> Stack {
        // The host goes on below; and where nothing on top is kept, nothing has to wait for the disk.
        let options = Options { udba: Udba::Reval, volatile: !is_kept, ..Options::default() };
        let branches = vec![branch(top, Access::ReadWrite, false), branch(part, Access::ReadOnly, true)];
        Stack { branches, options, init: None }
    }
}

fn branch(path: &Path, access: Access, whiteouts: bool) -> BranchSpec {
    BranchSpec { path: path.to_owned(), access, whiteouts, overlay: false, init: false, nolwh: false }
}

/// How long the daemon may take for one answer, and for its end: longer than it waits for a branch that is in use.
const PATIENCE_MS: u16 = 15_000;

const MAKING: &str = "make the container's union";

/// The daemon of a container's unions. It is killed when it is dropped before its end was waited for.
#[derive(Debug)]
pub(crate) struct Daemon {
    pid: Pid,
    channel: Channel,
    named_top: Option<PathBuf>,
    opened: bool,
    ended: bool,
}

impl Daemon {
    /// Starts it for unions and the devices that are going to be mounted, in cgroups of its own.
    pub(crate) fn start(plan: &Plan<'_>, devices: &[OwnedFd], cgroups: &Cgroups) -> Result<Daemon, Failure> {
        let doing = "start the union's daemon";
        let (ours, theirs) = Channel::pair().doing(doing)?;
        let (birthplace, joins) = (cgroups.birthplace_of_daemon(), cgroups.to_join_as_daemon());
        let serve = || daemon::run(plan, devices, &joins, &theirs);
        let started = process::clone_into(CloneFlags::empty(), birthplace, serve).doing(doing)?;
        let named_top = plan.named_top.map(Path::to_owned);
        let daemon = Daemon { pid: started.pid, channel: ours, named_top, opened: false, ended: false };
        if !started.is_in_cgroup {
            cgroups.admit_daemon(daemon.pid)?;
        }
        Ok(daemon)
    }

    /// Lets it serve the next union, now that its device is mounted.
    pub(crate) fn serve(&mut self) -> Result<(), Failure> {
        if !self.opened {
            self.expect(|answer| matches!(answer, Message::Opened))?;
            self.opened = true;
        }
        // One that has ended has left its reason to be read.
        match self.channel.send(&Message::Mounted) {
            Err(Errno::EPIPE) | Ok(()) => {}
            Err(errno) => return Err(errno).doing("speak to the union's daemon"),
        }
        self.expect(|answer| matches!(answer, Message::Serving))
    }

    fn expect(&self, is_expected: impl Fn(&Message) -> bool) -> Result<(), Failure> {
        if !self.wait_for_word().doing(MAKING)? {
            return Err(Failure::because(MAKING, "its daemon does not answer"));
        }
        match self.channel.receive().doing(MAKING)? {
            Some(answer) if is_expected(&answer) => Ok(()),
            Some(Message::Refused(why)) => Err(Failure::because(MAKING, why)),
            Some(_) => Err(Failure::because(MAKING, "its daemon says what it cannot know")),
            None => Err(Failure::because(MAKING, "its daemon has ended")),
        }
    }

    /// Whether there is something to hear, be it the end.
    fn wait_for_word(&self) -> Result<bool, Errno> {
        let mut source = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        // Signals are blocked, so there is nothing that interrupts this.
        Ok(poll(&mut source, PollTimeout::from(PATIENCE_MS))? > 0)
    }

    /// Why the container cannot go on, if the daemon has failed while it was needed.
    pub(crate) fn failure(&mut self) -> Option<Failure> {
        if self.ended {
            return None;
        }
        let status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).ok()?;
        if status == WaitStatus::StillAlive {
            return None;
        }
        self.ended = true;
        self.explain(status)
    }

    /// Why it has ended, unless it was by itself. It says nothing more, so this does not wait.
    fn explain(&self, status: WaitStatus) -> Option<Failure> {
        // Its connection was ended by the kernel, because the last process of the container has let go of the union:
        // that is a little earlier than its parent is told.
        if matches!(status, WaitStatus::Exited(_, 0)) {
            self.hear_of_full_tops();
            return None;
        }
        // It may have said why.
        if let Ok(Some(Message::Refused(why))) = self.channel.receive() {
            return Some(Failure::because(MAKING, why));
        }
        let how = match status {
            WaitStatus::Signaled(_, signal, _) => format!(", killed by {signal}"),
            _ => String::new(),
        };
        Some(Failure::new(format!("the union's daemon has ended{how}, so the container has no files any more")))
    }

    /// Its last word, where a top has run full. It has ended, so this does not wait.
    fn hear_of_full_tops(&self) {
        let Ok(Some(Message::Full)) = self.channel.receive() else { return };
        let what = "there was no space left for what the container has written";
        match &self.named_top {
            Some(top) => warn(format_args!("{what}: the disk of {} is full", top.display())),
            None => warn(format_args!(
                "{what}; put it elsewhere with --keep DIR or TMPDIR, or give it more memory with --tmpfs-top=SIZE"
            )),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has ended, and was waited for.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Waits for its end, once the container is gone. One that has failed may be why: a command dies of the files that it
    /// has lost before its parent can see that the daemon has ended.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let doing = "wait for the end of the union's daemon";
        // One that has nothing to serve, because the start has failed before that, waits for a word.
        self.channel.finish().doing(doing)?;
        // It holds its end of the channel for as long as it lives.
        if !self.ended && self.wait_for_word().doing(doing)? {
            let status = waitpid(self.pid, None).doing(doing)?;
            self.ended = true;
            return self.explain(status).map_or(Ok(()), Err);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It is our child and was not waited for, so its number is its own.
        if let Err(errno) = kill(self.pid, Signal::SIGKILL).and_then(|()| waitpid(self.pid, None)) {
            warn(format_args!("cannot end the union's daemon: {}", errno.desc()));
        }
    }
}

/// Mounts the device, in the child. Nothing may look at the mount point before the daemon serves.
pub(crate) fn attach(device: &OwnedFd, mount_point: &Path, flags: MsFlags) -> Result<(), Errno> {
    // A root file system has users other than root.
    let options = MountOptions::new(OsStr::new(UNION).into(), flags, true);
    unionfs::mount::attach(device.as_fd(), mount_point, &options).map_err(|error| match error {
        MountError::Target { error, .. } | MountError::Device(error) | MountError::Mount { error, .. } => error,
        _ => Errno::EIO,
    })
}

/// Lets the kernel read ahead in a union that is served as far as in one that `runionfs mount` has made.
pub(crate) fn read_further_ahead(mount_point: &Path) -> Result<(), Errno> {
    let device = unionfs::mount::table::device_at(mount_point).map_err(|error| errno_of(&error))?;
    unionfs::mount::read_further_ahead(device);
    Ok(())
}
