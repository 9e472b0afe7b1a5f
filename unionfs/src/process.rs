//! Going on as two processes.

use std::io;

use nix::unistd::Pid;
use rustix::io::Errno;

use crate::sys;

/// Which of the two this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process that was there before, and the number of the other.
    Parent(Pid),
    /// The copy.
    Child,
}

/// Makes a copy of this process, which has a thread like the one that asks and no other
/// (fork(2)).
///
/// # Errors
/// EBUSY where more threads run: what one of them holds locked would stay so in the copy. What
/// fork(2) and reading `/proc` answer.
pub fn fork() -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(Errno::BUSY.into());
    }
    Ok(sys::fork_single()?.map_or(Side::Child, Side::Parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_threads_run_there_is_no_copy() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv().is_err());
        let forked = fork();
        drop(end);
        assert!(other.join().unwrap());
        assert_eq!(forked.unwrap_err().raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    }
}
