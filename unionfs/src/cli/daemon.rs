//! Becoming a daemon: the command starts itself again as a child and waits until it serves.
//!
//! A fork of a process with threads is good for little but an exec, so the child is a fresh
//! one. Its standard output is a pipe to the parent: one byte says that the mount serves, end of
//! file alone that it does not. Its standard error is the caller's until then, so that what it
//! has to say reaches the caller.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

use super::{Failure, log};

/// Who is told that the mount serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Nobody: the daemon stays in the foreground.
    Nobody,
    /// The parent process, at the other end of standard output.
    Parent,
}

/// Starts the same command as a daemon, and returns when it serves, or with its exit status.
pub(super) fn start() -> Result<(), Failure> {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| "runionfs".into());
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .arg("--background")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the daemon from /proc/self/exe: {error}"))?;
    let mut said = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut said)?;
    }
    if said.is_empty() { Err(failure_of(&mut child)?) } else { Ok(()) }
}

/// How a child failed that never served. It has said why, unless it was killed.
fn failure_of(child: &mut Child) -> std::io::Result<Failure> {
    let status = child.wait()?;
    Ok(match (status.code(), status.signal()) {
        (Some(0), _) => "the daemon ended before it served".into(),
        (Some(code), _) => Failure::Said(u8::try_from(code).unwrap_or(1)),
        (None, signal) => format!("the daemon was killed by signal {} before it served", signal.unwrap_or(0)).into(),
    })
}

/// Closes what the child inherited but standard input, output and error: a lock or pipe of the
/// caller would else be held as long as the mount lives. Nothing of our own is open yet.
pub(super) fn close_inherited() -> Result<(), Failure> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        inherited.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()).filter(|fd| *fd > 2));
    }
    for descriptor in inherited {
        match nix::unistd::close(descriptor) {
            // the directory that was just read
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(format!("cannot close descriptor {descriptor}: {error}").into()),
        }
    }
    Ok(())
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
            // it was started from /proc/self/exe and would be called `exe` in ps(1)
            rustix::thread::set_name(c"runionfs")?;
            rustix::process::setsid().map_err(|error| format!("cannot leave the session: {error}"))?;
        }
        Ok(())
    }

    /// Lets go of the caller's directory, input and output, and says that the mount serves.
    /// Fails when nobody waits for it any more.
    pub(super) fn tell(self) -> Result<(), Failure> {
        rustix::process::chdir("/")?;
        if self == Readiness::Nobody {
            return Ok(());
        }
        log::to_syslog();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
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
