//! Open files of callers. Directories are read without a handle.
//!
//! What is really open belongs to the **inode**, not to the handle (rule 31): every handle of one
//! inode, opened before or after a copy-up, reads and writes the same real file.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use crate::backing::Backing;
use crate::branch::at::At;
use crate::branch::form::Form;
use crate::cpus::parts_of_a_table;
use crate::inode::Inode;
use crate::union::BranchIndex;

/// The real file behind an inode.
#[derive(Debug)]
pub struct Real {
    /// The file.
    pub file: OwnedFd,
    /// Whether the descriptor may be written to.
    pub writable: bool,
    /// Whether it is append-only, and every write goes to its end.
    pub append_only: bool,
    /// The branch it lies on; nothing if it is an anonymous file in the work area.
    pub branch: Option<BranchIndex>,
    /// How that branch is read.
    pub form: Form,
}

impl Real {
    /// Its attributes.
    pub fn at(&self) -> At<'_> {
        At::open(self.file.as_fd(), self.form)
    }
}

/// What the handles of one inode share.
#[derive(Debug)]
pub struct OpenFile {
    /// The inode, kept while a handle is open.
    pub inode: Arc<Inode>,
    real: RwLock<Arc<Real>>,
    /// The real file is only held: we may not read it, but it may be written anew.
    unread: AtomicBool,
    /// How the kernel gets at the content; decided with the first handle. While one is open, the
    /// kernel refuses others that are not of its kind.
    way: Mutex<Option<Way>>,
    /// Held by who sets times, or puts them back after a write.
    times: Mutex<()>,
    /// Handles by which the kernel writes without our knowledge, or gathers writes.
    writers: AtomicUsize,
    /// How many there are.
    count: Arc<AtomicUsize>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How the kernel gets at the content of an open file.
#[derive(Debug, Clone)]
pub enum Way {
    /// By asking us, and by what it remembers.
    Cached,
    /// By itself.
    Passthrough(Arc<Backing>),
}

/// A handle by which the kernel writes without our knowledge, or gathers writes, until it is dropped.
#[derive(Debug)]
pub struct Writer(Arc<OpenFile>);

impl Writer {
    /// One more.
    pub fn new(open: &Arc<OpenFile>) -> Writer {
        open.writers.fetch_add(1, Ordering::SeqCst);
        Writer(Arc::clone(open))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl OpenFile {
    /// The way to the content, chosen if no handle has one yet.
    ///
    /// # Errors
    /// Those of `choose`, which is told what was chosen before.
    pub fn way(&self, choose: impl FnOnce(Option<&Way>) -> Result<Way, Errno>) -> Result<Way, Errno> {
        let mut way = self.way.lock();
        let chosen = choose(way.as_ref())?;
        Ok(way.get_or_insert(chosen).clone())
    }

    /// Does something that sets the times of the real file, one after the other.
    pub fn by_turns<T>(&self, act: impl FnOnce() -> T) -> T {
        let _turn = self.times.lock();
        act()
    }

    /// Whether the kernel may be writing without our knowledge, or gathering writes.
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::SeqCst) > 0
    }

    /// Whether its content can be had.
    ///
    /// # Errors
    /// EACCES if the real file is only held.
    pub fn check_readable(&self) -> Result<(), Errno> {
        if self.unread.load(Ordering::Acquire) { Err(Errno::ACCESS) } else { Ok(()) }
    }

    /// The real file of this moment.
    pub fn real(&self) -> Arc<Real> {
        Arc::clone(&self.real.read())
    }

    /// From now on all handles use another real file. Calls that run go on with the old one,
    /// whose content is the same.
    pub fn switch(&self, real: Real) {
        let old = std::mem::replace(&mut *self.real.write(), Arc::new(real));
        self.unread.store(false, Ordering::Release);
        drop(old);
    }
}

/// A handle on a file.
#[derive(Debug)]
pub struct FileHandle {
    /// The file.
    pub open: Arc<OpenFile>,
    /// Whether the caller may write.
    pub writes: bool,
    /// Where it does so without our knowledge, or later.
    pub writer: Option<Writer>,
}

/// All handles, by number.
#[derive(Debug)]
pub struct Handles {
    next: AtomicU64,
    files: DashMap<u64, Arc<FileHandle>>,
    /// How many files are open, and how many may be.
    open: Arc<AtomicUsize>,
    room: usize,
}

impl Handles {
    /// None, with room for those of so many files.
    pub fn new(room: usize) -> Handles {
        let files = DashMap::with_shard_amount(parts_of_a_table());
        Handles { next: AtomicU64::new(0), files, open: Arc::default(), room }
    }

    /// Whether a caller may open one more file. Each takes a descriptor, and who opens as many as there
    /// are must not take those from others who have none open, or want none.
    ///
    /// # Errors
    /// ENFILE if not.
    pub fn check_room(&self) -> Result<(), Errno> {
        if self.open.load(Ordering::Relaxed) < self.room { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// An open file of an inode.
    pub fn open(&self, inode: Arc<Inode>, real: Real) -> Arc<OpenFile> {
        self.make_open(inode, real, false)
    }

    /// An open file of an inode whose content we may not read: of it only an empty copy can be made.
    pub fn open_unread(&self, inode: Arc<Inode>, real: Real) -> Arc<OpenFile> {
        self.make_open(inode, real, true)
    }

    fn make_open(&self, inode: Arc<Inode>, real: Real, unread: bool) -> Arc<OpenFile> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Arc::new(OpenFile {
            inode,
            real: RwLock::new(Arc::new(real)),
            unread: unread.into(),
            way: Mutex::new(None),
            times: Mutex::new(()),
            writers: AtomicUsize::new(0),
            count: Arc::clone(&self.open),
        })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps a file handle.
    pub fn add_file(&self, handle: FileHandle) -> u64 {
        let number = self.number();
        self.files.insert(number, Arc::new(handle));
        number
    }

    /// A file handle.
    ///
    /// # Errors
    /// EBADF if there is none of that number.
    pub fn file(&self, number: u64) -> Result<Arc<FileHandle>, Errno> {
        self.files.get(&number).map(|h| Arc::clone(&h)).ok_or(Errno::BADF)
    }

    /// The inodes of which the kernel may have gathered writes, if only those to a mapping.
    pub fn written(&self) -> BTreeSet<u64> {
        self.files.iter().filter(|handle| handle.writes).map(|handle| handle.open.inode.ino).collect()
    }

    /// Ends a file handle.
    pub fn remove_file(&self, number: u64) {
        drop(self.files.remove(&number));
    }
}
