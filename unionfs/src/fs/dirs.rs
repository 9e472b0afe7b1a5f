//! Directories of branches, opened when they are needed and kept as long as there is room.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::Union;
use super::index::Indexes;
use super::readdir::Listings;
use super::tally::{Cache, Uses};
use crate::branch::dir::Dir;
use crate::branch::stat::Kind;
use crate::handle::OpenFile;
use crate::inode::{Inode, LeaveHook, ROOT};
use crate::union::BranchIndex;

const SHARDS: usize = 16;
/// At most this share of the descriptors that the process may have.
const SHARE: u64 = 4;
const MOST: u64 = 16_384;
const LEAST: u64 = SHARDS as u64;
/// At most this share of the descriptors that the process may have, and so many, are held.
const HELD_SHARE: u64 = 16;
const MOST_HELD: u64 = 1024;
/// This share, and between so many, are left for the work on requests.
const WORK_SHARE: u64 = 8;
const LEAST_WORK: u64 = 32;
const MOST_WORK: u64 = 1024;

/// How many descriptors the process may have.
fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn room_for_dirs() -> u64 {
    (descriptors() / SHARE).clamp(LEAST, MOST)
}

/// For [`Held`], and again for [`Unasked`].
fn room_for_held() -> u64 {
    (descriptors() / HELD_SHARE).clamp(LEAST, MOST_HELD)
}

/// How many files callers may have open: what is left when all else has what it needs.
pub(super) fn room_for_files() -> usize {
    let work = (descriptors() / WORK_SHARE).clamp(LEAST_WORK, MOST_WORK);
    let rest = descriptors().saturating_sub(room_for_dirs() + 2 * room_for_held() + work);
    usize::try_from(rest.max(LEAST)).unwrap_or(usize::MAX)
}

fn non_zero(number: u64) -> NonZeroUsize {
    usize::try_from(number).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

type Shard = LruCache<(u64, BranchIndex), Arc<Dir>>;

/// Open directories by (inode number, branch), the least recently used ones closed first.
#[derive(Debug)]
pub(super) struct DirCache {
    shards: [Mutex<Shard>; SHARDS],
    each: NonZeroUsize,
    branches: u16,
    uses: [Uses; SHARDS],
}

impl DirCache {
    pub(super) fn new(branches: u16) -> Arc<DirCache> {
        let each = non_zero(room_for_dirs() / SHARDS as u64);
        let shards = std::array::from_fn(|_| Mutex::new(LruCache::sparse(each)));
        Arc::new(DirCache { shards, each, branches, uses: Default::default() })
    }

    fn place(ino: u64, branch: BranchIndex) -> usize {
        // a directory of many branches has room in all of them
        let key = ino.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 ^ u64::from(branch.0);
        (key % SHARDS as u64) as usize
    }

    fn shard(&self, ino: u64, branch: BranchIndex) -> &Mutex<Shard> {
        &self.shards[DirCache::place(ino, branch)]
    }

    /// Counts whether a directory that is needed is there.
    fn count(&self, ino: u64, branch: BranchIndex, hit: bool) {
        self.uses[DirCache::place(ino, branch)].count(hit);
    }

    pub(super) fn tally(&self) -> Cache {
        let entries = self.shards.iter().map(|shard| shard.lock().len()).sum();
        Cache::new("directories", &self.uses, entries)
    }

    pub(super) fn get(&self, ino: u64, branch: BranchIndex) -> Option<Arc<Dir>> {
        self.shard(ino, branch).lock().get(&(ino, branch)).cloned()
    }

    pub(super) fn put(&self, ino: u64, branch: BranchIndex, dir: Arc<Dir>) {
        // what falls out is closed after the lock is gone
        let evicted = self.shard(ino, branch).lock().push((ino, branch), dir);
        drop(evicted);
    }

    /// Closes all of them: somebody needs descriptors more.
    fn clear(&self) {
        for shard in &self.shards {
            let cleared = std::mem::replace(&mut *shard.lock(), LruCache::sparse(self.each));
            drop(cleared);
        }
    }

    pub(super) fn remove(&self, ino: u64) {
        for branch in (0..self.branches).map(BranchIndex) {
            let removed = self.shard(ino, branch).lock().pop(&(ino, branch));
            drop(removed);
        }
    }
}

/// What lost its last name a moment ago and may still be asked for: a file that a rename replaced
/// (somebody who found it by its name may be just about to open it, and must not fail: the name
/// was there all the time), and a fifo, socket or device, whose opening the kernel does not tell.
#[derive(Debug)]
pub(super) struct Held(Mutex<LruCache<u64, (Arc<OwnedFd>, BranchIndex)>>);

impl Held {
    pub(super) fn new() -> Arc<Held> {
        Arc::new(Held(Mutex::new(LruCache::sparse(non_zero(room_for_held())))))
    }

    /// Keeps an object, held without access to its content, and the branch it lay on.
    pub(super) fn keep(&self, ino: u64, held: OwnedFd, branch: BranchIndex) {
        let evicted = self.0.lock().push(ino, (Arc::new(held), branch));
        drop(evicted);
    }

    pub(super) fn get(&self, ino: u64) -> Option<(Arc<OwnedFd>, BranchIndex)> {
        self.0.lock().get(&ino).cloned()
    }

    fn remove(&self, ino: u64) {
        let removed = self.0.lock().pop(&ino);
        drop(removed);
    }
}

/// Files that callers have open without having asked us, the least recently read ones closed first.
#[derive(Debug)]
pub(super) struct Unasked(Mutex<LruCache<u64, Arc<OpenFile>>>);

impl Unasked {
    pub(super) fn new() -> Unasked {
        Unasked(Mutex::new(LruCache::sparse(non_zero(room_for_held()))))
    }

    pub(super) fn get(&self, ino: u64) -> Option<Arc<OpenFile>> {
        self.0.lock().get(&ino).cloned()
    }

    pub(super) fn keep(&self, ino: u64, open: &Arc<OpenFile>) {
        let evicted = self.0.lock().push(ino, Arc::clone(open));
        drop(evicted);
    }
}

/// Lets go of what is open for an inode that is not known any more.
#[derive(Debug)]
pub(super) struct Purge {
    pub(super) dirs: Arc<DirCache>,
    pub(super) held: Arc<Held>,
    pub(super) listings: Arc<Listings>,
    pub(super) indexes: Arc<Indexes>,
}

impl LeaveHook for Purge {
    fn left(&self, ino: u64, kind: Kind, held: bool) {
        if kind == Kind::Dir {
            self.dirs.remove(ino);
            self.listings.remove(ino);
            self.indexes.remove(ino);
        }
        // one lock for all, which few of those that leave need
        if held {
            self.held.remove(ino);
        }
    }
}

impl Union {
    /// A directory as it is on one of its branches.
    ///
    /// Opened component by component from the nearest directory that is open, by names that the
    /// inodes know; the tree stands still meanwhile.
    ///
    /// # Errors
    /// ENOENT if it was removed, and those of openat2(2).
    pub(super) fn dir(&self, inode: &Arc<Inode>, branch: BranchIndex) -> Result<Arc<Dir>, Errno> {
        let cached = self.cached_dir(inode, branch);
        if inode.ino != ROOT {
            self.dirs.count(inode.ino, branch, cached.is_some());
        }
        if let Some(dir) = cached {
            return Ok(dir);
        }
        let _still = self.tree.read();
        let mut missing = Vec::new();
        let mut at = Arc::clone(inode);
        let mut dir = loop {
            if let Some(dir) = self.cached_dir(&at, branch) {
                break dir;
            }
            if let Some(path) = at.stack()?.elsewhere(branch) {
                let dir = self.open_path(branch, path)?;
                self.dirs.put(at.ino, branch, Arc::clone(&dir));
                break dir;
            }
            let dentry = at.dentry().ok_or(Errno::NOENT)?;
            missing.push((at, dentry.name));
            at = dentry.parent;
        };
        while let Some((inode, name)) = missing.pop() {
            dir = self.open_below(&dir, branch, name.as_bytes())?;
            self.dirs.put(inode.ino, branch, Arc::clone(&dir));
        }
        Ok(dir)
    }

    fn open_path(&self, branch: BranchIndex, path: &[u8]) -> Result<Arc<Dir>, Errno> {
        let root = Arc::clone(&self.branch(branch).root);
        path.split(|byte| *byte == b'/').try_fold(root, |dir, name| self.open_below(&dir, branch, name))
    }

    /// Opens a directory of a branch; one that is another branch shows as an empty one.
    pub(super) fn open_below(&self, dir: &Dir, branch: BranchIndex, name: &[u8]) -> Result<Arc<Dir>, Errno> {
        let opened = match dir.open_dir(name) {
            // a mount point, where the branch could not be cut off from the mount table
            Err(Errno::XDEV) => return self.empty.clone().ok_or(Errno::XDEV),
            Err(Errno::MFILE) => {
                self.dirs.clear();
                dir.open_dir(name)?
            }
            opened => opened?,
        };
        let covered = &self.branch(branch).covered;
        if !covered.is_empty() {
            let id = opened.stat()?.id;
            if covered.contains(&(id.dev, id.ino)) {
                return self.empty.clone().ok_or(Errno::XDEV);
            }
        }
        Ok(Arc::new(opened))
    }

    /// Whether a directory stands for another branch, or a mount point.
    pub(super) fn is_stand_in(&self, dir: &Arc<Dir>) -> bool {
        self.empty.as_ref().is_some_and(|empty| Arc::ptr_eq(dir, empty))
    }

    fn cached_dir(&self, inode: &Arc<Inode>, branch: BranchIndex) -> Option<Arc<Dir>> {
        if inode.ino == ROOT {
            return Some(Arc::clone(&self.branch(branch).root));
        }
        self.dirs.get(inode.ino, branch)
    }
}
