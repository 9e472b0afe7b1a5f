//! What the union counts of its own work, for `runionfs stats`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Union;

/// How often what was looked for was at hand.
#[derive(Debug, Default)]
pub(super) struct Uses {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Uses {
    pub(super) fn count(&self, hit: bool) {
        let count = if hit { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Files that were copied up.
#[derive(Debug, Default)]
pub(super) struct CopyUps {
    files: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    failures: AtomicU64,
}

impl CopyUps {
    /// Counts a copy-up, which answers how many bytes of content were kept.
    pub(super) fn measure(&self, copy: impl FnOnce() -> Result<u64, Errno>) -> Result<(), Errno> {
        let begun = Instant::now();
        let copied = copy();
        match copied {
            Ok(bytes) => {
                let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.files.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.nanoseconds.fetch_add(took, Ordering::Relaxed);
            }
            // it goes on under another name
            Err(Errno::STALE) => {}
            Err(_) => drop(self.failures.fetch_add(1, Ordering::Relaxed)),
        }
        copied.map(drop)
    }
}

/// What was counted, and what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many files were copied up, links and devices among them; directories are not.
    pub copy_ups: u64,
    /// How many bytes of them, shared blocks and holes among them.
    pub copy_up_bytes: u64,
    /// How long all of it took, in nanoseconds.
    pub copy_up_nanoseconds: u64,
    /// How many could not be.
    pub copy_up_failures: u64,
    /// What is remembered, by name.
    pub caches: Vec<Cache>,
    /// How many files the daemon has open for callers.
    pub open_files: u64,
    /// How many inodes the kernel knows.
    pub inodes: u64,
}

/// What is kept to be at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// What it is: open directories, listings of directories, indexes of names.
    pub name: String,
    /// How often it was at hand.
    pub hits: u64,
    /// How often it was not.
    pub misses: u64,
    /// How many are kept now.
    pub entries: u64,
}

impl Cache {
    pub(super) fn new<'a>(name: &str, uses: impl IntoIterator<Item = &'a Uses>, entries: usize) -> Cache {
        let mut cache = Cache { name: name.to_owned(), hits: 0, misses: 0, entries: entries as u64 };
        for used in uses {
            cache.hits += used.hits.load(Ordering::Relaxed);
            cache.misses += used.misses.load(Ordering::Relaxed);
        }
        cache
    }
}

/// What is left on the file system of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that nobody uses.
    pub free: u64,
    /// Bytes that are left for those without privilege.
    pub available: u64,
    /// How many inodes there can be; 0 where the file system does not say.
    pub inodes: u64,
    /// How many of these are not used.
    pub inodes_free: u64,
}

impl Union {
    /// What was counted since it was opened, and what there is now.
    pub fn tally(&self) -> Tally {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            copy_ups: count(&self.copy_ups.files),
            copy_up_bytes: count(&self.copy_ups.bytes),
            copy_up_nanoseconds: count(&self.copy_ups.nanoseconds),
            copy_up_failures: count(&self.copy_ups.failures),
            caches: vec![self.dirs.tally(), self.listings.tally(), self.indexes.tally()],
            open_files: self.handles.open_files() as u64,
            inodes: self.inodes.len() as u64,
        }
    }

    /// What is left on the file system of each branch, top first.
    pub fn spaces(&self) -> Vec<Result<Space, Errno>> {
        let space = |branch: &crate::branch::Branch| {
            let told = rustix::fs::fstatvfs(&*branch.root)?;
            let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
            Ok(Space {
                size: bytes(told.f_blocks),
                free: bytes(told.f_bfree),
                available: bytes(told.f_bavail),
                inodes: told.f_files,
                inodes_free: told.f_ffree,
            })
        };
        self.branches.iter().map(space).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_up_is_counted_once_it_is_done() {
        let copy_ups = CopyUps::default();
        assert_eq!(copy_ups.measure(|| Ok(7)), Ok(()));
        for errno in [Errno::STALE, Errno::NOSPC] {
            assert_eq!(copy_ups.measure(|| Err(errno)), Err(errno));
        }
        let counts = [&copy_ups.files, &copy_ups.bytes, &copy_ups.failures];
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [1, 7, 1]);
    }
}
