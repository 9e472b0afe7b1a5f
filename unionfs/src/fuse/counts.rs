//! How often the kernel asked for what.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::abi::op;

/// The requests that are told apart; all others are counted as one.
const NAMES: [(u32, &str); 35] = [
    (op::LOOKUP, "LOOKUP"),
    (op::FORGET, "FORGET"),
    (op::GETATTR, "GETATTR"),
    (op::SETATTR, "SETATTR"),
    (op::READLINK, "READLINK"),
    (op::SYMLINK, "SYMLINK"),
    (op::MKNOD, "MKNOD"),
    (op::MKDIR, "MKDIR"),
    (op::UNLINK, "UNLINK"),
    (op::RMDIR, "RMDIR"),
    (op::RENAME, "RENAME"),
    (op::LINK, "LINK"),
    (op::OPEN, "OPEN"),
    (op::READ, "READ"),
    (op::WRITE, "WRITE"),
    (op::STATFS, "STATFS"),
    (op::RELEASE, "RELEASE"),
    (op::FSYNC, "FSYNC"),
    (op::SETXATTR, "SETXATTR"),
    (op::GETXATTR, "GETXATTR"),
    (op::LISTXATTR, "LISTXATTR"),
    (op::REMOVEXATTR, "REMOVEXATTR"),
    (op::OPENDIR, "OPENDIR"),
    (op::READDIR, "READDIR"),
    (op::RELEASEDIR, "RELEASEDIR"),
    (op::FSYNCDIR, "FSYNCDIR"),
    (op::CREATE, "CREATE"),
    (op::INTERRUPT, "INTERRUPT"),
    (op::IOCTL, "IOCTL"),
    (op::BATCH_FORGET, "BATCH_FORGET"),
    (op::FALLOCATE, "FALLOCATE"),
    (op::READDIRPLUS, "READDIRPLUS"),
    (op::RENAME2, "RENAME2"),
    (op::LSEEK, "LSEEK"),
    (op::COPY_FILE_RANGE, "COPY_FILE_RANGE"),
];
const SLOTS: usize = 64;

/// Requests since the mount began, and what became of them.
#[derive(Debug)]
pub struct Counts {
    requests: [AtomicU64; SLOTS],
    ran_full: AtomicBool,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts { requests: [const { AtomicU64::new(0) }; SLOTS], ran_full: AtomicBool::new(false) }
    }
}

impl Counts {
    pub(super) fn add(&self, opcode: u32) {
        let slot = (opcode as usize).min(SLOTS - 1);
        self.requests[slot].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_full(&self) {
        self.ran_full.store(true, Ordering::Relaxed);
    }

    /// Whether there was no space left for something, even if there is now: who is told removes what he has half written.
    /// What the kernel writes to files by itself (passthrough) is not among it.
    pub fn ran_full(&self) -> bool {
        self.ran_full.load(Ordering::Relaxed)
    }

    /// How often each request came that came at all, by its name in `linux/fuse.h`.
    pub fn told(&self) -> Vec<(String, u64)> {
        let counts = self.requests.iter().map(|count| count.load(Ordering::Relaxed)).zip(0..);
        let name = |opcode| NAMES.iter().find(|(known, _)| *known == opcode).map_or("OTHER", |(_, name)| name);
        let mut told: Vec<(String, u64)> = Vec::new();
        for (count, opcode) in counts.filter(|(count, _)| *count > 0) {
            let name = name(opcode);
            match told.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += count,
                None => told.push((name.to_owned(), count)),
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_is_counted_as_one() {
        let counts = Counts::default();
        for opcode in [op::LOOKUP, op::LOOKUP, 40, 51, 4096] {
            counts.add(opcode);
        }
        assert_eq!(counts.told(), [("LOOKUP".to_owned(), 2), ("OTHER".to_owned(), 3)]);
    }
}
