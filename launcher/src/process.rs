//! Processes: making them, talking to them, and waiting for them. The only place with `unsafe` code.
//!
//! The parent is single-threaded whenever it makes a process, so its children may do anything that it could do.

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};

pub(crate) mod channel;
pub(crate) mod init;
pub(crate) mod kernel_calls;
pub(crate) mod signals;
pub(crate) mod supervisor;

/// Virtual memory that is only touched as far as it is used.
const STACK: usize = 8 << 20;

/// Starts a process in new namespaces, which runs `child` and exits with what that returns.
pub(crate) fn clone_into(namespaces: CloneFlags, mut child: impl FnMut() -> u8) -> Result<Pid, Errno> {
    assert_single_threaded();
    let mut stack = vec![0; STACK];
    let run = Box::new(|| isize::from(child()));
    // SAFETY: without CLONE_VM the child has its own copy of all memory, the stack included, and no other thread of
    // ours existed that could have held a lock in it. A panic in `run` cannot unwind past it: it is called through an
    // `extern "C"` function, where a panic aborts.
    unsafe { nix::sched::clone(run, &mut stack, namespaces, Some(libc::SIGCHLD)) }
}

/// Starts a copy of this process, which runs `child` and exits with what that returns.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    assert_single_threaded();
    // SAFETY: this process has one thread, so the child inherits no lock that nobody would ever release.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            exit_now(status.unwrap_or(crate::failure::OWN_FAILURE))
        }
    }
}

/// Kills all children of this process but one, and all that are handed over to it on the way, and waits for them.
///
/// Only who adopts orphans (PR_SET_CHILD_SUBREAPER) gets hold of all descendants like this.
pub(crate) fn end_children(but: Option<Pid>) -> Result<(), Errno> {
    loop {
        let pid = nix::unistd::getpid();
        let list = std::fs::read_to_string(format!("/proc/self/task/{pid}/children"));
        let list = list.map_err(|error| crate::failure::errno_of(&error))?;
        let children = list.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw);
        let children: Vec<Pid> = children.filter(|child| Some(*child) != but).collect();
        if children.is_empty() {
            return Ok(());
        }
        for child in children {
            nix::sys::signal::kill(child, Signal::SIGKILL)?;
            nix::sys::wait::waitpid(child, None)?;
        }
    }
}

/// Waits until a child of ours has ended.
pub(crate) fn wait_for(child: Pid) -> Result<(), Errno> {
    loop {
        match nix::sys::wait::waitpid(child, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Ends this process without dropping anything: neither what its parent has registered for its own end, nor descriptors
/// that are closed already.
pub(crate) fn exit_now(status: u8) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(status.into()) }
}

fn assert_single_threaded() {
    debug_assert_eq!(std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count), 1, "no thread before a fork");
}

/// Closes every descriptor but the standard streams.
///
/// For the start of a process, before it has opened anything, and for one that uses none of them any more and ends with
/// [`exit_now`].
pub(crate) fn close_all_descriptors() -> Result<(), Errno> {
    close_descriptors_but(&[])
}

/// Closes every descriptor but the standard streams and those that are named.
///
/// For a process that uses none of the others any more, and ends with [`exit_now`].
pub(crate) fn close_descriptors_but(kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<libc::c_uint> = kept.iter().map(|descriptor| descriptor.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept.into_iter().filter(|number| *number >= 3) {
        close_range(first, number - 1)?;
        first = number + 1;
    }
    close_range(first, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: callers own no descriptor in this range that they go on using.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match Errno::result(result) {
        Err(Errno::ENOSYS | Errno::EPERM) => close_listed_descriptors(first, last),
        result => result.map(drop),
    }
}

/// The same before Linux 5.9, and under filters that do not know the call.
fn close_listed_descriptors(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|error| crate::failure::errno_of(&error))?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let numbers: Vec<RawFd> = numbers.filter(|number| (first..=last).contains(&number.cast_unsigned())).collect();
    for number in numbers {
        // SAFETY: as above; EBADF for the descriptor that listed the others, which is closed by now.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Lets a signal do what it does by default.
pub(crate) fn reset_signal(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map(drop)
}
