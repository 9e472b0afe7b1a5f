//! A process that is known beyond its number.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::process::number::SignalNumber;
use crate::process::{send, send_by};

/// How often it is looked whether a process has ended, where the kernel does not tell.
const LOOKING: Duration = Duration::from_millis(10);

/// A process that cannot be taken for another one: numbers are used again, but not with the same start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number on the host.
    pub pid: i32,
    /// When it was started; see proc_pid_stat(5), field 22.
    pub start: u64,
}

impl Process {
    /// One that runs, and cannot end and be waited for meanwhile.
    pub(crate) fn of(pid: Pid) -> io::Result<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_of(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Process { pid: pid.as_raw(), start })
    }

    /// A handle of it; `None` where it has ended, be it that nobody has waited for it yet.
    pub(crate) fn open(&self) -> io::Result<Option<Handle>> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            // The other two, by the version: the number is that of a thread by now, or only of a group or session.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            // Linux before 5.3, or a filter around us that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => match File::open(format!("/proc/{pid}")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                directory => Handle { descriptor: directory?.into(), process: Some(*self) },
            },
            result => Handle { descriptor: result?, process: None },
        };
        // Once it is open, the number stays with it: if the start is right now, the descriptor is right.
        let is_same = Process::of(Pid::from_raw(self.pid)).is_ok_and(|now| now == *self);
        if !is_same || handle.ends(Some(Duration::ZERO))? {
            return Ok(None);
        }
        Ok(Some(handle))
    }
}

/// A process for as long as it is held: a pidfd or, on older kernels, its directory in /proc, which no later process with
/// its number has.
#[derive(Debug)]
pub(crate) struct Handle {
    descriptor: OwnedFd,
    /// Who it is, where the descriptor is that of its directory.
    process: Option<Process>,
}

impl Handle {
    /// Waits for its end, at most for so long; false where it takes longer.
    pub(crate) fn ends(&self, patience: Option<Duration>) -> io::Result<bool> {
        let Some(process) = self.process else { return self.becomes_ready(patience) };
        let start = Instant::now();
        while self.runs(process.start)? {
            if patience.is_some_and(|patience| start.elapsed() >= patience) {
                return Ok(false);
            }
            std::thread::sleep(LOOKING);
        }
        Ok(true)
    }

    fn becomes_ready(&self, patience: Option<Duration>) -> io::Result<bool> {
        let limit =
            patience.map_or(PollTimeout::NONE, |patience| PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
        Ok(poll(&mut [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)], limit)? > 0)
    }

    /// Whether it runs, by its directory.
    fn runs(&self, start: u64) -> io::Result<bool> {
        let mut stat = String::new();
        let file = openat(&self.descriptor, c"stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        match file.map(|file| File::from(file).read_to_string(&mut stat)) {
            Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
            Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(false),
            read => read??,
        };
        Ok(start_of(&stat) == Some(start) && !has_ended(&stat))
    }

    /// Sends it a signal; nothing where it has ended just now.
    pub(crate) fn signal(&self, signal: SignalNumber) -> io::Result<()> {
        match self.process {
            None => match send_by(&self.descriptor, signal) {
                Err(Errno::SRCH) => Ok(()),
                result => Ok(result?),
            },
            // Between the question and the signal, somebody would have to wait for its end and all numbers be used once.
            Some(process) if self.runs(process.start)? => match send(Pid::from_raw(process.pid), signal) {
                Err(nix::errno::Errno::ESRCH) => Ok(()),
                result => Ok(result?),
            },
            Some(_) => Ok(()),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Whether it has ended and only nobody has waited for it.
fn has_ended(stat: &str) -> bool {
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().bytes().next(), None | Some(b'Z' | b'X')))
}

/// The name of the program, in parentheses, may hold anything, so it is counted from behind it.
fn start_of(stat: &str) -> Option<u64> {
    const AFTER_THE_NAME: usize = 19;
    stat.rsplit_once(')')?.1.split_whitespace().nth(AFTER_THE_NAME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(start_of(&format!("7 (sh) {fields}")), Some(4242));
        assert_eq!(start_of(&format!("7 (a) b (c) {fields}")), Some(4242));
        assert_eq!(start_of("7 (sh"), None);
    }

    #[test]
    fn by_its_directory_a_process_is_seen_to_end_and_gets_signals() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(Pid::from_raw(child.id().cast_signed())).unwrap();
        let directory = File::open(format!("/proc/{}", process.pid)).unwrap();
        let handle = Handle { descriptor: directory.into(), process: Some(process) };
        assert!(!handle.ends(Some(Duration::ZERO)).unwrap());
        handle.signal(nix::sys::signal::Signal::SIGKILL.into()).unwrap();
        assert!(handle.ends(None).unwrap(), "nobody has waited for it yet");
        child.wait().unwrap();
        assert!(handle.ends(None).unwrap());
        handle.signal(nix::sys::signal::Signal::SIGKILL.into()).unwrap();
    }

    #[test]
    fn a_process_that_has_ended_is_not_another_with_its_number() {
        let own = Process::of(nix::unistd::getpid()).unwrap();
        assert!(own.open().unwrap().is_some());
        assert!(Process { start: own.start + 1, ..own }.open().unwrap().is_none());
    }

    #[test]
    fn a_process_that_has_ended_is_not_a_thread_with_its_number() {
        let open = || {
            let thread = Process { pid: nix::unistd::gettid().as_raw(), start: 1 };
            assert_ne!(thread.pid, nix::unistd::getpid().as_raw());
            thread.open().unwrap().is_none()
        };
        assert!(std::thread::spawn(open).join().unwrap());
    }
}
