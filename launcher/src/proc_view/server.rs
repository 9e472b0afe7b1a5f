//! The process that tells a container what it may use.
//!
//! It is a child of the launcher, outside of all that the container is in: it is not stopped with it, and its memory is not
//! the container's. It holds the device alone, so where it ends, those who read get an error and nobody waits; and where
//! the container's mounts are gone the kernel ends it. It goes with the launcher, too.

use std::fs::File as Opened;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getppid, setsid};
use unionfs::fuse::texts::{Source, serve};

use super::past::Past;
use super::{File, ProcView, Sources};
use crate::confine::restrict_reader;
use crate::failure::{OWN_FAILURE, errno_of};
use crate::message::warn;
use crate::process;
use crate::process::close_descriptors_but;

/// What `ps` shows of it; the kernel keeps 15 bytes.
const NAME: &std::ffi::CStr = c"rlaunch: proc";

/// The process; it is ended with this value.
#[derive(Debug)]
pub(crate) struct Teller {
    pid: Pid,
    ended: bool,
}

impl Teller {
    /// Starts it on a mounted device; where no process can be made there is none.
    pub(crate) fn start(view: &ProcView, device: OwnedFd) -> Option<Teller> {
        let launcher = getpid();
        let mut device = Some(device);
        let started = process::fork(|| {
            let Some(device) = device.take() else { return OWN_FAILURE };
            match tell(view, device, launcher) {
                Ok(()) => 0,
                Err(_) => OWN_FAILURE,
            }
        });
        match started {
            Ok(pid) => Some(Teller { pid, ended: false }),
            Err(errno) => {
                warn(format_args!("cannot start a process for the container's /proc: {}", errno.desc()));
                None
            }
        }
    }

    /// Says so if it has ended before the container.
    pub(crate) fn look(&mut self) {
        if self.ended {
            return;
        }
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => {}
            // The container's mounts are gone.
            Ok(WaitStatus::Exited(_, 0)) => self.ended = true,
            Ok(_) => {
                self.ended = true;
                warn(
                    "the process that tells the container its limits has ended: /proc/meminfo and the like give an error",
                );
            }
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It is our child and was not waited for, so its number is its own.
        match kill(self.pid, Signal::SIGKILL).and_then(|()| process::wait_for(self.pid)) {
            Ok(()) | Err(Errno::ESRCH | Errno::ECHILD) => {}
            Err(errno) => warn(format_args!("cannot end the process for the container's /proc: {}", errno.desc())),
        }
    }
}

fn tell(view: &ProcView, device: OwnedFd, launcher: Pid) -> Result<(), Errno> {
    set_pdeathsig(Signal::SIGKILL)?;
    // One that has ended before that.
    if getppid() != launcher {
        return Err(Errno::ECANCELED);
    }
    close_descriptors_but(&[device.as_fd()])?;
    let null = Opened::options().read(true).write(true).open("/dev/null").map_err(|error| errno_of(&error))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    setsid()?;
    set_name(NAME)?;
    chdir("/")?;
    SigSet::empty().thread_set_mask()?;
    restrict_reader()?;
    let mut told = Told { files: &view.files, sources: &view.sources, past: view.sources.past() };
    serve(device, &mut told).map_err(|error| errno_of(&error))
}

/// The files as they are now.
struct Told<'a> {
    files: &'a [File],
    sources: &'a Sources,
    past: Past,
}

impl Source for Told<'_> {
    fn names(&self) -> Vec<&'static str> {
        self.files.iter().map(|file| file.name()).collect()
    }

    fn text(&mut self, index: usize) -> Vec<u8> {
        let file = self.files.get(index);
        file.and_then(|file| self.sources.text(*file, &mut self.past)).unwrap_or_default()
    }
}
