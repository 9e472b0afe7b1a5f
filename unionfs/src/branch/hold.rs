//! Who uses a writable branch: one mount at a time, which holds a lock on its work area and one on its root.
//!
//! Whoever finds it held waits a while, for the daemon of a quick remount that is still ending, and asks the holder to
//! give way: one whose mount was taken away while somebody stays in it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::dir::Dir;
use super::work::WorkError;

pub(crate) const LOCK: &[u8] = b"lock";
/// How long a mount waits for the one before it to let go.
const PATIENCE: Duration = Duration::from_secs(5);
/// A daemon that is ending needs less, and need not be asked.
const FIRST_ASKED: Duration = Duration::from_millis(100);
/// And then so often, for what keeps a holder may end.
const ASKED_EACH: Duration = Duration::from_secs(1);

/// What tells the root of a branch from every other directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchId {
    /// Its device, as stat(2) tells it.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

impl BranchId {
    /// That of an open root.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn of(root: &Dir) -> Result<BranchId, Errno> {
        let about = rustix::fs::fstat(root)?;
        Ok(BranchId { device: about.st_dev, inode: about.st_ino })
    }
}

/// Asks who holds a branch to give way. Why it does not, or nothing where it does, or nobody answers.
pub type Ask<'a> = &'a dyn Fn(BranchId) -> Option<String>;

/// Asks nobody.
pub fn ask_nobody(_: BranchId) -> Option<String> {
    None
}

/// The locks of a branch that is held; dropping them lets it go.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) branch: BranchId,
    lock: OwnedFd,
    claim: Option<OwnedFd>,
}

impl Hold {
    /// Takes the lock of the work area beside the one that was taken on the root.
    pub(super) fn take(claim: Option<OwnedFd>, area: &Dir, root: &Dir, ask: Ask<'_>) -> Result<Hold, WorkError> {
        let branch = BranchId::of(root)?;
        let ask = || ask(branch);
        let lock = |access| -> Result<OwnedFd, WorkError> {
            let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | access;
            let file = rustix::fs::openat(area, LOCK, flags, Mode::from_raw_mode(0o600))?;
            wait_for_lock(&file, &ask)?;
            Ok(file)
        };
        // for reading, so that a branch that nobody changes can be made read-only
        let lock = match lock(OFlags::RDONLY) {
            // NFS wants it to be open for writing
            Err(WorkError::Errno(Errno::BADF)) => lock(OFlags::RDWR)?,
            taken => taken?,
        };
        Ok(Hold { branch, lock, claim })
    }

    /// Lets the branch go; the descriptors stay.
    pub(super) fn release(&self) -> Result<(), Errno> {
        let both = [Some(&self.lock), self.claim.as_ref()];
        both.into_iter().flatten().try_for_each(|lock| rustix::fs::flock(lock, FlockOperation::Unlock))
    }
}

/// Whether a mount uses a work area at present.
pub(crate) fn is_in_use(area: &Dir) -> Result<bool, Errno> {
    let lock = match area.open_file(LOCK, OFlags::RDONLY) {
        Err(Errno::NOENT | Errno::STALE) => return Ok(false),
        lock => lock?,
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Locks the root of a branch itself, for its work area may lie in another place for every mount.
/// Nothing where the file system has no such locks.
///
/// # Errors
/// [`WorkError::Busy`].
pub fn claim(branch: &Dir, ask: Ask<'_>) -> Result<Option<OwnedFd>, WorkError> {
    let ask = || ask(BranchId::of(branch).ok()?);
    let claimed = branch.open_for_reading().map_err(WorkError::Errno).and_then(|root| {
        wait_for_lock(&root, &ask)?;
        Ok(root)
    });
    match claimed {
        Err(WorkError::Errno(errno)) => {
            tracing::debug!(%errno, "locking the root of a branch");
            Ok(None)
        }
        claimed => claimed.map(Some),
    }
}

fn wait_for_lock(file: &OwnedFd, ask: &dyn Fn() -> Option<String>) -> Result<(), WorkError> {
    let start = Instant::now();
    let (mut next_asked, mut said) = (FIRST_ASKED, None);
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if start.elapsed() > next_asked && next_asked < PATIENCE => {
                said = ask();
                next_asked = start.elapsed() + ASKED_EACH;
            }
            Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK) => return Err(WorkError::Busy(said)),
            Err(errno) => return Err(errno.into()),
        }
    }
}
