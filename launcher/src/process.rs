//! Processes: making them, talking to them, and waiting for them. The only place with `unsafe` code.
//!
//! The parent is single-threaded whenever it makes a process, so its children may do anything that it could do.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

pub(crate) mod bpf;
pub(crate) mod channel;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod kernel_calls;
pub(crate) mod number;
pub(crate) mod signals;
pub(crate) mod supervisor;

use self::number::{REALTIME, SignalNumber};

/// linux/sched.h; Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Whether it is in the cgroup that was asked for; one that is not has to be moved there.
    pub(crate) is_in_cgroup: bool,
}

/// Starts a process in new namespaces and, where the kernel can do that, in a cgroup of v2; it runs `child` and exits with
/// what that returns.
///
/// To move a process that is there, the kernel stops all others from starting and ending any, for which it waits several
/// milliseconds; one that is started in its place costs nothing.
pub(crate) fn clone_into(
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> u8,
) -> Result<Started, Errno> {
    assert_single_threaded();
    let inside = cgroup.map(|cgroup| clone_in_cgroup(namespaces, cgroup));
    let (pid, is_in_cgroup) = match inside {
        Some(Ok(pid)) => (pid, true),
        // Linux before 5.7, a filter around us that does not know the call, or a cgroup that takes nobody. What else is
        // wrong is wrong without it as well.
        Some(Err(_)) | None => (clone(namespaces)?, false),
    };
    match pid {
        Some(pid) => Ok(Started { pid, is_in_cgroup }),
        None => run(child),
    }
}

/// As fork(2): the child has its own copy of all memory, and none where this returns in it.
fn clone(namespaces: CloneFlags) -> Result<Option<Pid>, Errno> {
    let flags = libc::c_long::from(namespaces.bits() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and a stack, this is fork(2); see `fork` for what that asks for.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    Errno::result(pid).map(process)
}

fn clone_in_cgroup(namespaces: CloneFlags, cgroup: BorrowedFd<'_>) -> Result<Option<Pid>, Errno> {
    // SAFETY: the arguments consist of integers, for which zeros are values.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(namespaces.bits().cast_unsigned()) | CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    // SAFETY: the arguments are as long as is said and outlive the call. Without CLONE_VM and a stack, this is fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    Errno::result(pid).map(process)
}

fn process(pid: libc::c_long) -> Option<Pid> {
    // The kernel's numbers fit; zero is what the child gets.
    libc::pid_t::try_from(pid).ok().filter(|pid| *pid != 0).map(Pid::from_raw)
}

fn run(child: impl FnOnce() -> u8) -> ! {
    let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
    exit_now(status.unwrap_or(crate::failure::OWN_FAILURE))
}

/// Starts a copy of this process, which runs `child` and exits with what that returns.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    assert_single_threaded();
    // SAFETY: this process has one thread, so the child inherits no lock that nobody would ever release.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => run(child),
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

/// Lets a program that is going to be started be killed when this process ends, also when this is killed, and have so many
/// descriptors, of two limits.
pub(crate) fn end_with_this_process(command: &mut std::process::Command, descriptors: (u64, u64)) {
    use std::os::unix::process::CommandExt as _;
    let parent = nix::unistd::getpid();
    let tie = move || {
        nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, descriptors.0, descriptors.1)?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended already; then nobody sends the signal.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec it makes three system calls, and none allocates or takes a lock.
    unsafe { command.pre_exec(tie) };
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
    // Numbers are given out from the lowest, and this process has closed at its start what others had left.
    const MOST: libc::c_uint = 65_535;
    let numbers: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect(),
        // The /proc of a container whose processes do not include this one, which has only entered it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            (first..=last.min(MOST)).map(libc::c_uint::cast_signed).collect()
        }
        Err(error) => return Err(crate::failure::errno_of(&error)),
    };
    for number in numbers.into_iter().filter(|number| (first..=last).contains(&number.cast_unsigned())) {
        if gives_random_bytes(number) {
            continue;
        }
        // SAFETY: as above; EBADF for the descriptor that listed the others, which is closed by now.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Whether it is /dev/urandom, which the standard library keeps open for its hash tables where there is no getrandom(2),
/// before Linux 3.17. It would read from whatever gets the number next.
fn gives_random_bytes(number: RawFd) -> bool {
    // SAFETY: a stat consists of integers, for which zeros are values.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to `about` only, and says EBADF where nothing is open.
    let result = unsafe { libc::fstat(number, &raw mut about) };
    result == 0 && about.st_mode & libc::S_IFMT == libc::S_IFCHR && about.st_rdev == libc::makedev(1, 9)
}

/// These signals, and all real-time ones.
pub(crate) fn with_realtime(signals: &SigSet) -> SigSet {
    let mut all = *signals.as_ref();
    for number in REALTIME {
        // SAFETY: the set was made by the C library; numbers that it keeps for itself are refused, and left out.
        unsafe { libc::sigaddset(&raw mut all, number) };
    }
    // SAFETY: it is a set still.
    unsafe { SigSet::from_sigset_t_unchecked(all) }
}

/// Waits for one of some signals, which are blocked; its number.
pub(crate) fn wait_for_signal(signals: &SigSet) -> Result<i32, Errno> {
    let mut number = 0;
    // SAFETY: both outlive the call.
    match unsafe { libc::sigwait(signals.as_ref(), &raw mut number) } {
        0 => Ok(number),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Sends a signal to a process, or to a group of them.
pub(crate) fn send(to: Pid, signal: SignalNumber) -> Result<(), Errno> {
    // SAFETY: kill(2) takes any numbers.
    Errno::result(unsafe { libc::kill(to.as_raw(), signal.number()) }).map(drop)
}

/// The same to the process of a descriptor; Linux 5.1.
pub(crate) fn send_by(descriptor: impl AsFd, signal: SignalNumber) -> Result<(), rustix::io::Errno> {
    // SAFETY: it is sent to another process; nothing here handles or blocks one that the C library keeps for itself, and
    // the number of a signal is never zero.
    let signal = unsafe { rustix::process::Signal::from_raw_unchecked(signal.number()) };
    rustix::process::pidfd_send_signal(descriptor, signal)
}

/// Lets a signal do what it does by default.
pub(crate) fn reset_signal(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map(drop)
}
