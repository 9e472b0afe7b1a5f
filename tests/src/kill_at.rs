//! Killing a process at a chosen system call, just before the call is done.
//!
//! strace(1) can do it as well, but counts per thread and per kind of call; here it is the n-th call of the whole
//! process, whichever thread makes it.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use libc::{c_long, pid_t};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::mount::poll;

/// What a process did from the beginning of a change to its own death.
#[derive(Debug)]
pub struct Life<T> {
    /// What came of the change.
    pub result: T,
    /// The calls that may have changed something, in their order; the last one was not done where `cut_short`.
    pub calls: Vec<String>,
    /// Whether the process died at the chosen call, and not after the change.
    pub cut_short: bool,
}

/// Runs `change`, which has `pid` do something, and kills `pid`: at its call number `at`, counted from 1, of those that
/// may change something, or after the change where there are not so many.
///
/// # Panics
/// When the process cannot be traced.
pub fn kill_at<T>(pid: Pid, at: usize, change: impl FnOnce() -> T) -> Life<T> {
    wait_until_idle(pid);
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let (ready, attached) = mpsc::channel();
        // all requests to a tracee must come from one thread, ptrace(2)
        let tracer = scope.spawn(|| trace(pid, at, &begun, ready));
        attached.recv().expect("attach to the daemon");
        begun.store(true, Ordering::Release);
        let result = change();
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("kill the daemon: {errno}"),
        }
        let calls = tracer.join().expect("trace the daemon");
        Life { result, cut_short: calls.len() == at, calls }
    })
}

/// Follows the process to its end.
fn trace(pid: Pid, at: usize, begun: &AtomicBool, ready: Sender<()>) -> Vec<String> {
    let mut attaching = attach(pid);
    let mut calls = Vec::new();
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Err(Errno::ECHILD) => return calls,
            Err(Errno::EINTR) => continue,
            status => status.expect("wait for the daemon"),
        };
        match status {
            WaitStatus::PtraceSyscall(thread) => {
                if begun.load(Ordering::Acquire) && calls.len() < at {
                    calls.extend(call_of(pid, thread));
                }
                if calls.len() == at {
                    kill(pid, Signal::SIGKILL).expect("kill the daemon");
                } else {
                    go_on(thread, None);
                }
            }
            WaitStatus::PtraceEvent(thread, ..) => {
                go_on(thread, None);
                if attaching.remove(&thread) && attaching.is_empty() {
                    ready.send(()).expect("the change waits for this");
                }
            }
            WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal)),
            _ => {}
        }
    }
}

/// Waits until a process that has just begun to serve is done with that.
fn wait_until_idle(pid: Pid) {
    let mut earlier = None;
    let idle = poll(Duration::from_secs(10), || {
        let sleeping = sleeping_threads(pid);
        let same = sleeping.is_some() && sleeping == earlier;
        earlier = sleeping;
        same.then_some(())
    });
    assert!(idle.is_some(), "the daemon is never idle");
}

/// The threads, if all of them sleep.
fn sleeping_threads(pid: Pid) -> Option<BTreeSet<PathBuf>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads of the daemon");
    threads
        .map(|thread| {
            let path = thread.ok()?.path();
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            stat.rsplit(')').next()?.trim_start().starts_with('S').then_some(path)
        })
        .collect()
}

/// Attaches to every thread, and has it stop.
fn attach(pid: Pid) -> HashSet<Pid> {
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACECLONE;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads of the daemon");
    let numbers = threads.map(|entry| entry.expect("a thread").file_name().to_string_lossy().parse::<pid_t>());
    let threads: HashSet<Pid> = numbers.map(|number| Pid::from_raw(number.expect("a number"))).collect();
    for thread in &threads {
        ptrace::seize(*thread, options).expect("attach to the daemon");
        ptrace::interrupt(*thread).expect("stop a thread of the daemon");
    }
    threads
}

fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        // ESRCH: killed in the meantime
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("let a thread of the daemon go on: {errno}"),
    }
}

/// The call that a stopped thread is about to make, if it may change something.
fn call_of(pid: Pid, thread: Pid) -> Option<String> {
    // a thread that was killed tells nothing more
    let entering = ptrace::syscall_info(thread).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY);
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")).ok().filter(|_| entering)?;
    let (number, arguments) = text.trim().split_once(' ')?;
    // -1: in no call, for it is being killed
    let number: c_long = number.parse().ok().filter(|number| *number >= 0)?;
    if HARMLESS.contains(&number) || number == libc::SYS_openat && !creates(arguments) {
        return None;
    }
    let name = CHANGES.iter().find(|(call, _)| *call == number).map(|(_, name)| (*name).to_owned());
    Some(name.unwrap_or_else(|| format!("call {number}")))
}

/// Whether the arguments of an openat(2) make a file.
fn creates(arguments: &str) -> bool {
    let flags =
        arguments.split(' ').nth(2).and_then(|word| i32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    flags.is_none_or(|flags| flags & libc::O_CREAT != 0)
}

/// Calls after which whoever looks at the files sees the same as before. `openat2` makes nothing in the daemon, and
/// `writev` sends its answers.
const HARMLESS: &[c_long] = &[
    libc::SYS_openat2,
    libc::SYS_writev,
    libc::SYS_accept4,
    libc::SYS_getrandom,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_faccessat,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_prctl,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_clone3,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
];

/// The names of calls that a file system makes to change something.
const CHANGES: &[(c_long, &str)] = &[
    (libc::SYS_openat, "openat"),
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_fchmodat2, "fchmodat2"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_utimensat, "utimensat"),
    (libc::SYS_setxattr, "setxattr"),
    (libc::SYS_lsetxattr, "lsetxattr"),
    (libc::SYS_fsetxattr, "fsetxattr"),
    (libc::SYS_fremovexattr, "fremovexattr"),
];
