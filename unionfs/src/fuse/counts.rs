//! How often the kernel asked for what, and how long it took.
//!
//! Each thread counts for itself, in cells that no other writes: a request costs two readings of the clock, which need
//! no system call where the machine's clock is good for it (vdso(7)), and a few additions. Whoever asks adds all up.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

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

/// Times are told apart by powers of two: the first holds up to 1024 ns, each further one up to twice as much as that
/// before it, and the last one all that took longer than 17 s.
pub const BUCKETS: usize = 26;
const SHORTEST_BITS: u32 = 10;

/// The longest time that a bucket holds, in nanoseconds; nothing for the last.
pub fn longest_of(bucket: usize) -> Option<u64> {
    (bucket + 1 < BUCKETS).then(|| 1 << (SHORTEST_BITS + u32::try_from(bucket).unwrap_or(0)))
}

fn bucket_of(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(SHORTEST_BITS) as usize).min(BUCKETS - 1)
}

/// A number that one thread adds to.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Slot {
    requests: Cell,
    errors: Cell,
    nanoseconds: Cell,
    buckets: [Cell; BUCKETS],
}

/// What one thread has counted.
#[derive(Debug)]
struct Block {
    slots: [Slot; SLOTS],
    read: Cell,
    written: Cell,
}

impl Block {
    fn slot(&self, opcode: u32) -> &Slot {
        &self.slots[(opcode as usize).min(SLOTS - 1)]
    }
}

impl Default for Block {
    fn default() -> Block {
        Block { slots: std::array::from_fn(|_| Slot::default()), read: Cell::default(), written: Cell::default() }
    }
}

/// Requests since the mount began, and what became of them.
#[derive(Debug, Default)]
pub struct Counts {
    blocks: Mutex<Blocks>,
    ran_full: AtomicBool,
}

#[derive(Debug, Default)]
struct Blocks {
    all: Vec<Arc<Block>>,
    /// Those of threads that have ended, which others go on with.
    free: Vec<Arc<Block>>,
}

/// The block that a thread has for itself.
struct Lease {
    of: Arc<Counts>,
    block: Arc<Block>,
}

impl Lease {
    fn take(of: &Arc<Counts>) -> Lease {
        let mut blocks = of.blocks.lock();
        let block = blocks.free.pop().unwrap_or_else(|| {
            let block = Arc::<Block>::default();
            blocks.all.push(Arc::clone(&block));
            block
        });
        Lease { of: Arc::clone(of), block }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.blocks.lock().free.push(Arc::clone(&self.block));
    }
}

thread_local! {
    static MINE: RefCell<Option<Lease>> = const { RefCell::new(None) };
}

/// What there is to tell of one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its name in `linux/fuse.h`.
    pub name: String,
    /// How often it was asked for.
    pub requests: u64,
    /// How often the answer was an error. A name that is not there is none: the kernel remembers that.
    pub errors: u64,
    /// How long all of them took that were answered, from when they were taken until they were answered.
    pub nanoseconds: u64,
    /// How many took how long, see [`longest_of`].
    pub buckets: Vec<u64>,
}

impl Operation {
    fn new(name: &str) -> Operation {
        Operation { name: name.to_owned(), requests: 0, errors: 0, nanoseconds: 0, buckets: vec![0; BUCKETS] }
    }

    fn add(&mut self, slot: &Slot) {
        self.requests += slot.requests.get();
        self.errors += slot.errors.get();
        self.nanoseconds += slot.nanoseconds.get();
        for (sum, cell) in self.buckets.iter_mut().zip(&slot.buckets) {
            *sum += cell.get();
        }
    }

    /// How many were answered. Some requests have no answer.
    pub fn answered(&self) -> u64 {
        // what another user's daemon says may be any number
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The time in nanoseconds that so many of a hundred did not exceed, as far as the buckets tell: it is at most twice
    /// what it was. Nothing where none was answered, or where it is more than they tell.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let rank = self.answered().saturating_mul(percent).div_ceil(100).max(1);
        let mut sum = 0u64;
        let bucket = self.buckets.iter().position(|count| {
            sum = sum.saturating_add(*count);
            sum >= rank
        })?;
        longest_of(bucket)
    }
}

impl Counts {
    fn mine(self: &Arc<Counts>, count: impl FnOnce(&Block)) {
        let counted = MINE.try_with(|mine| {
            let mut mine = mine.borrow_mut();
            let lease = match &mut *mine {
                Some(lease) if Arc::ptr_eq(&lease.of, self) => lease,
                other => other.insert(Lease::take(self)),
            };
            count(&lease.block);
        });
        // a thread that is ending counts no more
        counted.unwrap_or_default();
    }

    /// A request came.
    pub(super) fn came(self: &Arc<Counts>, opcode: u32) {
        self.mine(|block| block.slot(opcode).requests.add(1));
    }

    /// It was answered, after this time.
    pub(super) fn answered(self: &Arc<Counts>, opcode: u32, took: Duration, failed: bool) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.mine(|block| {
            let slot = block.slot(opcode);
            slot.nanoseconds.add(nanoseconds);
            slot.buckets[bucket_of(nanoseconds)].add(1);
            if failed {
                slot.errors.add(1);
            }
        });
    }

    /// So many bytes were read through us.
    pub(super) fn read(self: &Arc<Counts>, bytes: usize) {
        self.mine(|block| block.read.add(bytes as u64));
    }

    /// So many bytes were written through us.
    pub(super) fn wrote(self: &Arc<Counts>, bytes: usize) {
        self.mine(|block| block.written.add(bytes as u64));
    }

    pub(super) fn note_full(&self) {
        self.ran_full.store(true, Ordering::Relaxed);
    }

    /// Whether there was no space left for something, even if there is now: who is told removes what he has half written.
    /// What the kernel writes to files by itself (passthrough) is not among it.
    pub fn ran_full(&self) -> bool {
        self.ran_full.load(Ordering::Relaxed)
    }

    /// How many bytes were read and written through us; what the kernel reads and writes by itself is not among them.
    pub fn carried(&self) -> (u64, u64) {
        let blocks = self.blocks.lock();
        let sum = |cell: fn(&Block) -> &Cell| blocks.all.iter().map(|block| cell(block).get()).sum();
        (sum(|block| &block.read), sum(|block| &block.written))
    }

    /// All operations that were asked for at all.
    pub fn operations(&self) -> Vec<Operation> {
        let blocks = self.blocks.lock();
        let mut told: Vec<Operation> = Vec::new();
        for opcode in (0..).take(SLOTS) {
            let name = NAMES.iter().find(|(known, _)| *known == opcode).map_or("OTHER", |(_, name)| name);
            let slots = blocks.all.iter().map(|block| block.slot(opcode));
            if slots.clone().all(|slot| slot.requests.get() == 0) {
                continue;
            }
            let known = told.iter().position(|known| known.name == name).unwrap_or_else(|| {
                told.push(Operation::new(name));
                told.len() - 1
            });
            slots.for_each(|slot| told[known].add(slot));
        }
        told
    }

    /// How often each request came that came at all, by its name in `linux/fuse.h`.
    pub fn told(&self) -> Vec<(String, u64)> {
        self.operations().into_iter().map(|operation| (operation.name, operation.requests)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_is_counted_as_one() {
        let counts = Arc::new(Counts::default());
        for opcode in [op::LOOKUP, op::LOOKUP, 40, 51, 4096] {
            counts.came(opcode);
        }
        assert_eq!(counts.told(), [("LOOKUP".to_owned(), 2), ("OTHER".to_owned(), 3)]);
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_long_enough() {
        for (nanoseconds, bucket) in [(0, 0), (1, 0), (1024, 0), (1025, 1), (2048, 1), (2049, 2), (1 << 34, 24)] {
            assert_eq!(bucket_of(nanoseconds), bucket, "{nanoseconds}");
            assert!(longest_of(bucket).is_some_and(|longest| nanoseconds <= longest));
        }
        assert_eq!((bucket_of((1 << 34) + 1), bucket_of(u64::MAX)), (25, 25));
        assert_eq!(longest_of(25), None);
    }

    #[test]
    fn percentiles_are_told_by_the_buckets() {
        let counts = Arc::new(Counts::default());
        assert_eq!(Operation::new("READ").percentile(50), None);
        for (times, took) in [(98, 900), (1, 5000), (1, 100_000)] {
            for _ in 0..times {
                counts.came(op::READ);
                counts.answered(op::READ, Duration::from_nanos(took), took > 50_000);
            }
        }
        let told = counts.operations();
        assert_eq!((told[0].answered(), told[0].errors, told[0].nanoseconds), (100, 1, 98 * 900 + 105_000));
        let percentile = |percent| told[0].percentile(percent);
        assert_eq!((percentile(50), percentile(98), percentile(99)), (Some(1024), Some(1024), Some(8192)));
        assert_eq!(percentile(100), Some(1 << 17));
    }

    #[test]
    fn threads_that_end_leave_what_they_counted_and_their_block() {
        let counts = Arc::new(Counts::default());
        let count = || counts.came(op::READ);
        for _ in 0..3 {
            std::thread::scope(|scope| drop(scope.spawn(count).join()));
        }
        assert_eq!(counts.told(), [("READ".to_owned(), 3)]);
        assert_eq!(counts.blocks.lock().all.len(), 1);
    }
}
