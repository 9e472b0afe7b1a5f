//! docker's default list.

use std::borrow::Cow;

use nix::libc;

use super::{Answer, Comparison, Condition, DONE, ENOSYS, EPERM, Profile, Rule};
use crate::confine::capabilities::Capabilities;

/// Allowed to everybody. Not here, though docker's newest lists have them: keyrings (add_key, keyctl, request_key), which
/// containers of the same user id share.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
    fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
    geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
    getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
    gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set
    ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat
    listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap
    mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
    pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6
    pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
    semtimedop semtimedop_time64 sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev _llseek _newselect
    process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt";

/// Allowed to those who have a capability, which the kernel asks for as well.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
        sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Every flag of clone(2) that makes a namespace. CLONE_NEWTIME is none of them: there it is part of the exit signal.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// PER_LINUX, PER_LINUX32, both with UNAME26, and the question what it is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const WORD: u64 = 0xffff_ffff;

pub(super) fn profile(capabilities: Capabilities) -> Profile {
    let mut rules = vec![allow(ALLOWED)];
    let has = |name: &str| capabilities.contains(Capabilities::named(name));
    rules.extend(BY_CAPABILITY.into_iter().filter(|(name, _)| has(name)).map(|(_, calls)| allow(calls)));
    if !has("SYS_ADMIN") {
        rules.push(when("clone", 0, NAMESPACES, Comparison::Equal, 0, Answer::Allow));
        // Its flags lie in memory, where a filter cannot look. Programs fall back on clone.
        rules.push(Rule { names: vec!["clone3".into()], conditions: Vec::new(), answer: ENOSYS });
    }
    rules.push(when("socket", 0, WORD, Comparison::NotEqual, libc::AF_VSOCK as u64, Answer::Allow));
    let personality = |value| when("personality", 0, WORD, Comparison::Equal, value, Answer::Allow);
    rules.extend(PERSONALITIES.map(personality));
    Profile { rules, otherwise: EPERM, newer: ENOSYS }
}

/// For a command that has the caller's terminal: it may not type into that (CVE-2017-5226).
pub(super) fn keep_out_of_the_terminal() -> Vec<Rule> {
    let refuse = |request| when("ioctl", 1, WORD, Comparison::Equal, request, EPERM);
    vec![refuse(libc::TIOCSTI), refuse(libc::TIOCLINUX)]
}

/// For a command that is root without anybody else: giving a file to others is done without doing anything. What is
/// given to root, or to nobody new, is the kernel's to answer.
pub(super) fn keep_owners() -> Vec<Rule> {
    // Which argument the owner is; the group is the next.
    const CALLS: [(&str, u8); 2] = [("chown fchown lchown chown32 fchown32 lchown32", 1), ("fchownat", 2)];
    let rule = |names: &'static str, argument| {
        let is_not = |value| Condition { argument, mask: WORD, comparison: Comparison::NotEqual, value };
        Rule { conditions: vec![is_not(0), is_not(WORD)], answer: DONE, ..allow(names) }
    };
    CALLS.iter().flat_map(|(names, owner)| [rule(names, *owner), rule(names, owner + 1)]).collect()
}

fn allow(names: &'static str) -> Rule {
    Rule { names: names.split_whitespace().map(Cow::Borrowed).collect(), conditions: Vec::new(), answer: Answer::Allow }
}

fn when(name: &'static str, argument: u8, mask: u64, comparison: Comparison, value: u64, answer: Answer) -> Rule {
    let condition = Condition { argument, mask, comparison, value };
    Rule { names: vec![name.into()], conditions: vec![condition], answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_lists_is_one_of_a_call() {
        let by_capability = BY_CAPABILITY.iter().flat_map(|(_, calls)| calls.split_whitespace());
        // Renamed or removed long ago, and in no table.
        let unknown: Vec<_> = ALLOWED
            .split_whitespace()
            .chain(by_capability)
            .filter(|name| !super::super::table::is_known(name))
            .collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }
}
