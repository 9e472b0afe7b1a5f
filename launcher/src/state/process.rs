//! A process that is known beyond its number.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

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

    /// A descriptor for it; `None` where it has ended, be it that nobody has waited for it yet.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            result => result?,
        };
        // Once it is open, the number stays with it: if the start is right now, the descriptor is right.
        let is_same = Process::of(Pid::from_raw(self.pid)).is_ok_and(|now| now == *self);
        if !is_same {
            return Ok(None);
        }
        let mut source = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        let has_ended = poll(&mut source, PollTimeout::ZERO)? > 0;
        Ok((!has_ended).then_some(descriptor))
    }
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
    fn a_process_that_has_ended_is_not_another_with_its_number() {
        let own = Process::of(nix::unistd::getpid()).unwrap();
        assert!(own.open().unwrap().is_some());
        assert!(Process { start: own.start + 1, ..own }.open().unwrap().is_none());
    }
}
