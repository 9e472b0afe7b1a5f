//! Open files of callers. Directories are read without a handle.
//!
//! What is really open belongs to the **inode**, not to the handle (rule 31): every handle of one
//! inode, opened before or after a copy-up, reads and writes the same real file.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;
use rustix::io::Errno;

use crate::branch::at::At;
use crate::branch::form::Form;
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
}

impl OpenFile {
    /// An open file of an inode.
    pub fn new(inode: Arc<Inode>, real: Real) -> Arc<OpenFile> {
        Arc::new(OpenFile { inode, real: RwLock::new(Arc::new(real)), unread: false.into() })
    }

    /// An open file of an inode whose content we may not read: of it only an empty copy can be made.
    pub fn unread(inode: Arc<Inode>, real: Real) -> Arc<OpenFile> {
        Arc::new(OpenFile { inode, real: RwLock::new(Arc::new(real)), unread: true.into() })
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
}

/// All handles, by number.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    files: DashMap<u64, Arc<FileHandle>>,
}

impl Handles {
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

    /// Ends a file handle.
    pub fn remove_file(&self, number: u64) {
        drop(self.files.remove(&number));
    }
}
