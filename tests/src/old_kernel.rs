//! Programs as on an older kernel: a filter answers for the system calls that it does not have, and FUSE is spoken as
//! it spoke it.
//!
//! [`pretend`] is for all commands that this thread starts by the harness from then on; the test itself goes on with
//! all that the kernel has, as whoever uses a mount. `RUNIONFS_TEST_KERNEL=4.4` has all tests run like that.
#![allow(unsafe_code, reason = "a filter is installed between fork and exec; see the comment of each block")]

use std::cell::Cell;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use libc::{c_int, c_long, sock_filter};

const VARIABLE: &str = "RUNIONFS_TEST_KERNEL";
/// What the daemons are told.
const MINOR: &str = "RUNIONFS_FUSE_MINOR";

/// A kernel that was, or a filter around a program that does not know newer system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Major and minor number.
    version: (u32, u32),
    /// The minor version of FUSE that it spoke.
    fuse: u32,
    /// What is answered to calls that came later.
    answer: c_int,
}

/// The kernels that tests pretend to have: those of distributions and devices in use.
pub const KERNELS: [Kernel; 6] = [
    Kernel { version: (3, 10), fuse: 22, answer: libc::ENOSYS },
    Kernel { version: (4, 4), fuse: 23, answer: libc::ENOSYS },
    Kernel { version: (4, 14), fuse: 26, answer: libc::ENOSYS },
    Kernel { version: (4, 19), fuse: 27, answer: libc::ENOSYS },
    Kernel { version: (5, 4), fuse: 31, answer: libc::ENOSYS },
    Kernel { version: (5, 10), fuse: 32, answer: libc::ENOSYS },
];

/// A new kernel, and around us a filter of a container engine that knows calls up to Linux 4.8 and answers EPERM to
/// others, as docker's did before 20.10.10.
pub const OLD_FILTER: Kernel = Kernel { version: (4, 8), fuse: 99, answer: libc::EPERM };

/// System calls, each with the version in which it came. Numbers of newer ones are the same on all architectures.
const CALLS: [(u32, u32, c_long); 38] = [
    (3, 14, libc::SYS_sched_setattr),
    (3, 14, libc::SYS_sched_getattr),
    (3, 15, libc::SYS_renameat2),
    (3, 17, libc::SYS_seccomp),
    (3, 17, libc::SYS_getrandom),
    (3, 17, libc::SYS_memfd_create),
    (3, 18, libc::SYS_bpf),
    (3, 19, libc::SYS_execveat),
    (4, 3, libc::SYS_membarrier),
    (4, 4, libc::SYS_mlock2),
    (4, 5, libc::SYS_copy_file_range),
    (4, 6, libc::SYS_preadv2),
    (4, 6, libc::SYS_pwritev2),
    (4, 11, libc::SYS_statx),
    (4, 18, libc::SYS_rseq),
    (5, 1, 424), // pidfd_send_signal
    (5, 2, 428), // open_tree
    (5, 2, 429), // move_mount
    (5, 2, 430), // fsopen
    (5, 2, 431), // fsconfig
    (5, 2, 432), // fsmount
    (5, 2, 433), // fspick
    (5, 3, 434), // pidfd_open
    (5, 3, CLONE3),
    (5, 6, 437), // openat2
    (5, 6, 438), // pidfd_getfd
    (5, 8, FACCESSAT2),
    (5, 9, 436),  // close_range
    (5, 10, 440), // process_madvise
    (5, 11, 441), // epoll_pwait2
    (5, 12, 442), // mount_setattr
    (6, 6, 452),  // fchmodat2
    (6, 8, 457),  // statmount
    (6, 8, 458),  // listmount
    (6, 13, 463), // setxattrat
    (6, 13, 464), // getxattrat
    (6, 13, 465), // listxattrat
    (6, 13, 466), // removexattrat
];

/// The C library starts threads by this call, and by another one only after ENOSYS, which is why all filters answer
/// that by now.
const CLONE3: c_long = 435;
/// The same for realpath(3).
const FACCESSAT2: c_long = 439;

/// Flags of calls, each with the version in which it came: the call, the argument, the flag, and what is answered.
const FLAGS: [(u32, u32, c_long, u32, u32, c_int); 5] = [
    (3, 11, libc::SYS_openat, 2, 0o20_000_000, libc::EISDIR), // O_TMPFILE
    (4, 6, libc::SYS_clone, 0, libc::CLONE_NEWCGROUP as u32, libc::EINVAL),
    (4, 6, libc::SYS_unshare, 0, libc::CLONE_NEWCGROUP as u32, libc::EINVAL),
    (5, 6, libc::SYS_unshare, 0, 0x80, libc::EINVAL), // CLONE_NEWTIME
    (5, 8, libc::SYS_utimensat, 3, libc::AT_EMPTY_PATH as u32, libc::EINVAL),
];

/// FICLONE and FICLONERANGE, as numbers that ioctl(2) takes.
const CLONING: [u32; 2] = [0x4004_9409, 0x4020_940d];

impl Kernel {
    /// One that tests pretend to have, by its version.
    #[must_use]
    pub fn named(version: &str) -> Option<Kernel> {
        KERNELS.into_iter().find(|kernel| kernel.to_string() == version)
    }

    /// One that has all system calls.
    #[must_use]
    pub const fn modern() -> Kernel {
        Kernel { version: (99, 0), fuse: 99, answer: libc::ENOSYS }
    }

    /// Whether it has renameat2(2).
    #[must_use]
    pub fn renames_with_flags(self) -> bool {
        !self.lacks(3, 15)
    }

    /// Whether it has namespaces for cgroups.
    #[must_use]
    pub fn separates_cgroups(self) -> bool {
        self.answer != libc::ENOSYS || !self.lacks(4, 6)
    }

    /// Whether unions have ACLs on it.
    #[must_use]
    pub fn heeds_acls(self) -> bool {
        self.fuse >= 26
    }

    /// Whether unions tell on it where holes are in files.
    #[must_use]
    pub fn finds_holes(self) -> bool {
        self.fuse >= 24
    }

    /// The same, which speaks FUSE of another version.
    #[must_use]
    pub fn with_fuse(self, minor: u32) -> Kernel {
        Kernel { fuse: minor, ..self }
    }

    /// The minor version of FUSE.
    #[must_use]
    pub fn fuse(self) -> u32 {
        self.fuse
    }

    fn lacks(self, major: u32, minor: u32) -> bool {
        self.version < (major, minor)
    }

    fn filter(self) -> Vec<sock_filter> {
        let mut filter = Filter::default();
        for (major, minor, call) in CALLS {
            if self.lacks(major, minor) {
                let by_the_library = [CLONE3, FACCESSAT2].contains(&call);
                filter.answer(call, if by_the_library { libc::ENOSYS } else { self.answer });
            }
        }
        // a filter of calls minds no flags
        if self.answer == libc::ENOSYS {
            for (major, minor, call, argument, flag, answer) in FLAGS {
                if self.lacks(major, minor) {
                    filter.answer_flag(call, argument, flag, answer);
                }
            }
            if self.lacks(4, 5) {
                CLONING.into_iter().for_each(|request| filter.answer_value(libc::SYS_ioctl, 1, request, libc::ENOTTY));
            }
        }
        filter.end()
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.version.0, self.version.1)
    }
}

/// A filter of system calls, instruction by instruction; see seccomp(2). The number of the call is what is compared.
#[derive(Default)]
struct Filter(Vec<sock_filter>);

impl Filter {
    const NUMBER: u32 = 0;

    fn add(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        // Codes of instructions fit: they have 16 bits.
        self.0.push(sock_filter { code: code as u16, jt, jf, k });
    }

    fn load(&mut self, at: u32) {
        self.add(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    }

    fn give(&mut self, errno: c_int) {
        self.add(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(), 0, 0);
    }

    fn answer(&mut self, call: c_long, errno: c_int) {
        self.load(Filter::NUMBER);
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 0, 1);
        self.give(errno);
    }

    fn answer_flag(&mut self, call: c_long, argument: u32, flag: u32, errno: c_int) {
        self.answer_where(call, argument, libc::BPF_JSET, flag, errno);
    }

    fn answer_value(&mut self, call: c_long, argument: u32, value: u32, errno: c_int) {
        self.answer_where(call, argument, libc::BPF_JEQ, value, errno);
    }

    fn answer_where(&mut self, call: c_long, argument: u32, jump: u32, operand: u32, errno: c_int) {
        self.load(Filter::NUMBER);
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 0, 3);
        // the lower half: number, architecture and instruction pointer come before the arguments
        self.load(16 + 8 * argument);
        self.add(libc::BPF_JMP | jump | libc::BPF_K, operand, 0, 1);
        self.give(errno);
    }

    fn end(mut self) -> Vec<sock_filter> {
        self.add(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0);
        self.0
    }
}

thread_local! {
    static PRETENDED: Cell<Option<Kernel>> = const { Cell::new(None) };
}

/// From now on commands of this thread run as on that kernel.
pub fn pretend(kernel: Kernel) {
    PRETENDED.set(Some(kernel));
}

/// From now on commands of this thread run as on the kernel that is there.
pub fn pretend_no_more() {
    PRETENDED.set(None);
}

/// The kernel that this thread pretends to have, or all tests do: one that has everything without that.
///
/// # Panics
/// When `RUNIONFS_TEST_KERNEL` names none that is known.
#[must_use]
pub fn pretended() -> Kernel {
    named().unwrap_or(Kernel::modern())
}

fn named() -> Option<Kernel> {
    PRETENDED.get().or_else(|| {
        let version = std::env::var(VARIABLE).ok()?;
        Some(Kernel::named(&version).unwrap_or_else(|| panic!("{VARIABLE} is none of {KERNELS:?}")))
    })
}

/// Has a command run as on the kernel that this thread pretends to have.
///
/// # Panics
/// When `RUNIONFS_TEST_KERNEL` names none that is known.
pub fn restrict(command: &mut Command) -> &mut Command {
    let Some(kernel) = named() else { return command };
    let mut filter = kernel.filter();
    let install = move || {
        let length = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
        // SAFETY: the program points to as many instructions as it says, which live until the kernel has copied them.
        let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    command.env(MINOR, kernel.fuse.to_string());
    // SAFETY: between fork and exec only one system call is made, on memory that was there before.
    unsafe { command.pre_exec(install) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_lack_more() {
        let lengths: Vec<usize> = KERNELS.iter().map(|kernel| kernel.filter().len()).collect();
        assert!(lengths.is_sorted_by(|older, newer| older > newer), "{lengths:?}");
        assert_eq!(Kernel::named("4.14"), Some(KERNELS[2]));
    }
}
