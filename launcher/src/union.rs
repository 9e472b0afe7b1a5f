//! The union under a container: its daemon, as the launcher sees it, and its mount, as the child makes it.
//!
//! The child mounts the union in the container's own mount namespace, so the host's mount table never shows it. The
//! daemon serves from outside of every namespace of the container: it sees the host's files, and it holds nothing that
//! would keep the container's namespaces alive. When they go, the kernel ends the connection and the daemon ends with
//! it, whoever was killed.
//!
//! The order of a start, told over two channels:
//!
//! | Launcher | Daemon | Child |
//! |---|---|---|
//! | opens /dev/fuse, starts both | opens the branches | mounts the device |
//! | | says `Opened` | says `Mounted` |
//! | says `Mounted` to the daemon | answers the kernel's INIT, says `Serving` | |
//! | says `Go` to the child | | looks at the union for the first time |

pub(crate) mod daemon;

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unionfs::mount::{MountError, MountOptions};

use crate::failure::{Doing as _, Failure};
use crate::message::warn;
use crate::process::channel::{Channel, Message};

/// How long the daemon may take for one answer, and for its end: longer than it waits for a branch that is in use.
const PATIENCE_MS: u16 = 15_000;

const MAKING: &str = "make a union over the host's files";

/// The daemon of one union. It is killed when it is dropped before its end was waited for.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    channel: Channel,
    ended: bool,
}

impl Daemon {
    /// Starts it for a device that is going to be mounted, over the host's `/`, with changes going to `top`.
    pub(crate) fn start(device: &OwnedFd, top: &Path) -> Result<Daemon, Failure> {
        let doing = "start the union's daemon";
        let (ours, theirs) = Channel::pair().doing(doing)?;
        let device = device.try_clone().doing(doing)?;
        let process = Command::new("/proc/self/exe")
            .arg0(daemon::NAME)
            .arg(top)
            .stdin(Stdio::from(device))
            .stdout(Stdio::from(theirs.into_descriptor()))
            .spawn()
            .doing(doing)?;
        Ok(Daemon { process, channel: ours, ended: false })
    }

    /// Lets it serve, now that the device is mounted.
    pub(crate) fn serve(&mut self) -> Result<(), Failure> {
        self.expect(|answer| matches!(answer, Message::Opened))?;
        self.channel.send(&Message::Mounted).doing("speak to the union's daemon")?;
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
        let status = self.process.try_wait().ok().flatten()?;
        self.ended = true;
        // Its connection was ended by the kernel, because the last process of the container has let go of the union:
        // that is a little earlier than its parent is told.
        if status.success() {
            return None;
        }
        // It may have said why, and a daemon that has ended says nothing more: this does not wait.
        if let Ok(Some(Message::Refused(why))) = self.channel.receive() {
            return Some(Failure::because(MAKING, why));
        }
        Some(Failure::new(format!("the union's daemon has ended ({status}), so the container has no files any more")))
    }

    /// Whether it has ended, and was waited for.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Waits for its end, once the container is gone.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let doing = "wait for the end of the union's daemon";
        // It holds its end of the channel for as long as it lives.
        if !self.ended && self.wait_for_word().doing(doing)? {
            self.process.wait().doing(doing)?;
            self.ended = true;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            warn(format_args!("cannot end the union's daemon: {error}"));
        }
    }
}

/// Mounts the device, in the child. Nothing may look at the mount point before the daemon serves.
pub(crate) fn attach(device: &OwnedFd, mount_point: &Path) -> Result<(), Errno> {
    // A root file system needs set-id programs and devices, and users other than root.
    let options = MountOptions { source: OsStr::new("rlaunch").into(), flags: MsFlags::empty(), allow_other: true };
    unionfs::mount::attach(device.as_fd(), mount_point, &options).map_err(|error| match error {
        MountError::Target { error, .. } | MountError::Device(error) | MountError::Mount { error, .. } => error,
        _ => Errno::EIO,
    })
}
