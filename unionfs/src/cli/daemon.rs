//! Becoming a daemon: the command goes on as two processes, and the first waits until the second serves.
//!
//! No thread runs yet, so that the copy can do whatever the original could. Its standard output is a
//! pipe to the parent: one byte says that the mount serves, end of file alone that it does not. Its
//! standard error is the caller's until then, so that what it has to say reaches the caller.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit};
use unionfs::process::{Side, fork};

use super::Failure;
use super::log::Opened;

/// Who is told that the mount serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Nobody: the daemon stays in the foreground.
    Nobody,
    /// The parent process, at the other end of standard output.
    Parent,
}

/// Does this as a daemon, which keeps this descriptor of its caller's, and returns to the caller when that serves, with its process, or with its exit status. In the
/// daemon it returns when that has ended, with nothing.
pub(super) fn start(
    kept: Option<BorrowedFd<'_>>,
    serve: impl FnOnce() -> Result<(), Failure>,
) -> Result<Option<Pid>, Failure> {
    let null = open_null()?;
    let (from_daemon, to_parent) = pipe_with(PipeFlags::CLOEXEC)?;
    match fork().map_err(|error| format!("cannot start the daemon: {error}"))? {
        Side::Parent(daemon) => {
            drop(to_parent);
            wait(daemon, from_daemon)?;
            Ok(Some(daemon))
        }
        Side::Child => {
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&to_parent)?;
            drop((null, from_daemon, to_parent));
            close_inherited(kept)?;
            SigSet::empty().thread_set_mask()?;
            serve()?;
            Ok(None)
        }
    }
}

/// Until the daemon serves, or is not there any more.
fn wait(daemon: Pid, from_daemon: OwnedFd) -> Result<(), Failure> {
    let mut said = Vec::new();
    File::from(from_daemon).read_to_end(&mut said)?;
    if said.is_empty() { Err(failure_of(daemon)?) } else { Ok(()) }
}

/// How a daemon failed that never served. It has said why, unless it was killed.
fn failure_of(daemon: Pid) -> Result<Failure, Errno> {
    loop {
        return Ok(match waitpid(daemon, None) {
            Ok(WaitStatus::Exited(_, 0)) => "the daemon ended before it served".into(),
            Ok(WaitStatus::Exited(_, code)) => Failure::Said(u8::try_from(code).unwrap_or(1)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                format!("the daemon was killed by {signal} before it served").into()
            }
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        });
    }
}

fn open_null() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Errno::from_raw(error.raw_os_error()))
}

/// Closes what the daemon inherited but standard input, output and error: a lock or pipe of the
/// caller would else be held as long as the mount lives. Nothing else of our own is open yet.
fn close_inherited(kept: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        inherited.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()).filter(|fd| *fd > 2));
    }
    let kept = kept.map(|kept| kept.as_raw_fd());
    let inherited = inherited.into_iter().filter(|descriptor| Some(*descriptor) != kept);
    for descriptor in inherited.filter(|descriptor| !gives_random_bytes(*descriptor)) {
        match nix::unistd::close(descriptor) {
            // the directory that was just read
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(format!("cannot close descriptor {descriptor}: {error}").into()),
        }
    }
    Ok(())
}

/// Whether it is /dev/urandom, which the standard library keeps open for its hash tables where there is no getrandom(2),
/// before Linux 3.17. It would read from whatever gets the number next.
fn gives_random_bytes(descriptor: i32) -> bool {
    let device = std::fs::metadata(format!("/proc/self/fd/{descriptor}")).map(|about| about.rdev());
    device.is_ok_and(|device| device == rustix::fs::makedev(1, 9))
}

/// What a process that serves a file system needs: modes as they are given, and as many
/// descriptors as it can get.
pub(super) fn prepare() -> Result<(), Failure> {
    rustix::process::umask(Mode::empty());
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|error| format!("cannot raise the limit of open files: {error}"))?;
    Ok(())
}

impl Readiness {
    /// Leaves the caller's session, so that its terminal and its signals are no longer ours.
    pub(super) fn leave_session(self) -> Result<(), Failure> {
        if self == Readiness::Parent {
            // in ps(1), whatever mount(8) called it by
            rustix::thread::set_name(c"runionfs")?;
            rustix::process::setsid().map_err(|error| format!("cannot leave the session: {error}"))?;
        }
        Ok(())
    }

    /// Lets go of the caller's directory, input and output, and says that the mount serves.
    /// Fails when nobody waits for it any more.
    pub(super) fn tell(self, log: Opened) -> Result<(), Failure> {
        unionfs::proc::stay()?;
        log.turn();
        if self == Readiness::Nobody {
            return Ok(());
        }
        let null = open_null()?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        // callers of the command wait for the end of its output, so that this comes last
        let mut out = std::io::stdout();
        out.write_all(b"+")
            .and_then(|()| out.flush())
            .map_err(|error| format!("nobody waits for the mount: {error}"))?;
        Ok(rustix::stdio::dup2_stdout(&null)?)
    }
}
