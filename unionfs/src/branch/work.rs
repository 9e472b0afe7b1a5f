//! The work area of a writable branch: temporary entries, hard-link records and the table of
//! inode numbers. One mount at a time holds it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::fs::{Gid, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::dir::Dir;
use super::hold::{self, Ask, BranchId, Hold, is_in_use};
use super::stat::{Kind, RealId};
use super::table::Table;
use super::unplaced;
use crate::acl;
use crate::union::name::WORK_AREA;

pub(crate) const TEMPORARY: &[u8] = b"tmp";
pub(crate) const LINKS: &[u8] = b"links";
pub(crate) const VOLATILE: &[u8] = b"volatile";

/// An open, locked work area.
#[derive(Debug)]
pub struct Work {
    area: Dir,
    temporary: Dir,
    links: Arc<Dir>,
    /// The numbers of objects that have, or had, a hard-link record, once they were read.
    pub(crate) recorded: OnceLock<RwLock<HashSet<u64>>>,
    numbers: Table,
    /// Whose work area it is, if not ours.
    owner: Option<(Uid, Gid)>,
    /// Counts the mounts of this branch, so that substitute numbers never repeat.
    epoch: u64,
    sequence: AtomicU64,
    /// Whether changes of different directories may reach the disk in another order than they were
    /// made in.
    unordered: bool,
    /// Whether it is on a disk at all.
    on_disk: bool,
    /// Whether nothing waits for the disk.
    volatile: AtomicBool,
    /// Whether files can be prepared without a name.
    nameless: bool,
    hold: Hold,
    /// Whether the branch was [given](Work::release) to another mount.
    released: AtomicBool,
}

/// Why a work area cannot be used.
#[derive(Debug)]
pub enum WorkError {
    /// Another mount holds it, and says why it does not give way.
    Busy(Option<String>),
    /// The last mount was volatile and did not end well.
    Volatile,
    /// A system call failed.
    Errno(Errno),
}

impl From<Errno> for WorkError {
    fn from(errno: Errno) -> Self {
        WorkError::Errno(errno)
    }
}

impl Work {
    /// Makes, locks and cleans the work area of a branch in a directory.
    pub fn open(branch: &Dir, parent: &Dir, ask: Ask<'_>) -> Result<Work, WorkError> {
        let claim = hold::claim(branch, ask)?;
        // making it must not move the times of the branch's root, which the union shows
        let area = parent.keeping_times(|| make_and_open(parent, WORK_AREA))?;
        let hold = Hold::take(claim, &area, branch, ask)?;
        if area.find(VOLATILE)?.is_some() {
            return Err(WorkError::Volatile);
        }
        let temporary = make_and_open(&area, TEMPORARY)?;
        clear(&temporary)?;
        let links = Arc::new(make_and_open(&area, LINKS)?);
        let (numbers, epoch) = Table::open(&area)?;
        let owner = other_owner(&area)?;
        let magic = rustix::fs::fstatfs(parent)?.f_type as u32;
        let nameless = unplaced::can_be_nameless(&temporary, b"try");
        Ok(Work {
            nameless,
            owner,
            area,
            temporary,
            links,
            recorded: OnceLock::new(),
            numbers,
            epoch,
            sequence: AtomicU64::new(0),
            unordered: !ORDERED.contains(&magic),
            on_disk: magic != TMPFS,
            volatile: AtomicBool::new(false),
            hold,
            released: AtomicBool::new(false),
        })
    }

    /// Whether a change must be durable before another one that relies on it.
    pub fn needs_order(&self) -> bool {
        self.unordered
    }

    /// Whether what is made durable may have to wait for a disk.
    pub fn is_on_disk(&self) -> bool {
        self.on_disk
    }

    /// Whether files are prepared without a name.
    pub(super) fn takes_nameless(&self) -> bool {
        self.nameless && (!self.unordered || self.volatile.load(Ordering::Relaxed))
    }

    /// The work area itself.
    pub fn area(&self) -> &Dir {
        &self.area
    }

    /// The directory where entries are prepared.
    pub fn temporary(&self) -> &Dir {
        &self.temporary
    }

    /// The directory of hard-link records.
    pub fn links(&self) -> &Arc<Dir> {
        &self.links
    }

    /// Gives a file of the work area to whom that belongs: root may use the branch of a user, who goes
    /// on with it afterwards.
    ///
    /// # Errors
    /// Those of fchown(2), but for those that say that we may not.
    pub fn give(&self, file: &OwnedFd) -> Result<(), Errno> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        match rustix::fs::fchown(file, Some(uid), Some(gid)) {
            Err(Errno::PERM | Errno::INVAL) => Ok(()),
            given => given,
        }
    }

    /// A name for a temporary entry, used only once.
    pub fn temporary_name(&self) -> Vec<u8> {
        self.next().to_string().into_bytes()
    }

    fn next(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// A number that no object of this branch ever had: for an entry whose own number is taken.
    pub fn substitute_number(&self) -> u64 {
        0xFE << 56 | (self.epoch & 0xFF_FFFF) << 32 | (self.next() & 0xFFFF_FFFF)
    }

    /// The number that was given to an entry of this branch, if it is not its natural one.
    ///
    /// A table that cannot be read costs stable numbers, never more.
    pub fn number(&self, id: RealId) -> Option<u64> {
        self.numbers.get(id)
    }

    /// Remembers the number of an entry over remounts.
    ///
    /// # Errors
    /// ENOSPC, EFBIG and the like; the number is remembered in this mount only then.
    pub fn set_number(&self, id: RealId, number: u64) -> Result<(), Errno> {
        self.numbers.set(id, number)
    }

    /// As [`Work::set_number`], for an entry that is found by its number: durable.
    ///
    /// # Errors
    /// ENOSPC, EFBIG and the like.
    pub fn keep_number(&self, id: RealId, number: u64) -> Result<(), Errno> {
        self.set_number(id, number)?;
        self.sync(self.numbers.file())
    }

    /// Forgets the number of an entry that is gone.
    pub fn forget_number(&self, id: RealId) {
        self.numbers.forget(id);
    }

    /// Whether an entry may have another number than its natural one.
    pub fn may_have_number(&self, ino: u64) -> bool {
        self.numbers.may_have(ino)
    }

    /// Removes a directory; one with whiteouts in it is moved out of sight first.
    pub fn retire(&self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        match dir.remove_dir(name) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => return result,
        }
        let temporary = self.temporary_name();
        dir.rename(name, &self.temporary, &temporary, RenameFlags::empty())?;
        if let Err(errno) = remove(&self.temporary, &temporary, Kind::Dir) {
            // it is out of the union; the next mount cleans the rest
            tracing::warn!(%errno, "cleaning up a removed directory");
        }
        Ok(())
    }

    /// Renames a temporary entry to its name, which nothing has, or a whiteout of overlayfs if
    /// `over_whiteout`.
    pub fn put(
        &self,
        temporary: &[u8],
        kind: Kind,
        (dir, name): (&Dir, &[u8]),
        over_whiteout: bool,
    ) -> Result<(), Errno> {
        let flags = match (over_whiteout, kind) {
            (false, _) => RenameFlags::NOREPLACE,
            // a directory does not replace a device, but it can change places with it
            (true, Kind::Dir) => RenameFlags::EXCHANGE,
            (true, _) => RenameFlags::empty(),
        };
        self.temporary.rename(temporary, dir, name, flags)?;
        if flags == RenameFlags::EXCHANGE {
            self.discard(temporary);
        }
        Ok(())
    }

    /// Tries out whether the branch can be written in the form of overlayfs.
    ///
    /// # Errors
    /// What its file system answers that cannot.
    pub fn try_overlay(&self) -> Result<(), Errno> {
        let names = [(); 3].map(|()| self.temporary_name());
        let [dir, whiteout, file] = &names;
        let tried = || -> Result<(), Errno> {
            self.temporary.make_dir(dir, 0o700)?;
            self.temporary.open_dir(dir)?.set_overlay_opaque()?;
            self.temporary.make_overlay_whiteout(whiteout)?;
            self.temporary.rename(dir, &self.temporary, whiteout, RenameFlags::EXCHANGE)?;
            self.temporary.rename(dir, &self.temporary, file, RenameFlags::WHITEOUT)
        };
        let result = tried();
        names.iter().for_each(|name| self.discard(name));
        result
    }

    /// Removes a temporary entry after a failure.
    pub fn discard(&self, name: &[u8]) {
        match self.temporary.find(name) {
            Ok(Some(stat)) => {
                if let Err(errno) = remove(&self.temporary, name, stat.kind) {
                    tracing::warn!(%errno, "removing a temporary entry");
                }
            }
            Ok(None) => {}
            Err(errno) => tracing::warn!(%errno, "looking for a temporary entry"),
        }
    }

    /// Says that a volatile mount begins.
    pub fn begin_volatile(&self) -> Result<(), Errno> {
        self.volatile.store(true, Ordering::Relaxed);
        self.area.create_file(VOLATILE, 0o600).map(drop)
    }

    /// Makes the content of a file of the work area durable, before names rely on it.
    pub fn sync(&self, file: &OwnedFd) -> Result<(), Errno> {
        if self.volatile.load(Ordering::Relaxed) { Ok(()) } else { rustix::fs::fdatasync(file) }
    }

    /// Says that a volatile mount ended well.
    pub fn end_volatile(&self) -> Result<(), Errno> {
        match self.area.unlink(VOLATILE) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    /// Makes the files of its own that stay open be open for reading only, so that nothing keeps the branch from
    /// becoming read-only, or for writing again.
    ///
    /// # Errors
    /// Those of opening and fsync(2).
    pub fn open_own_files(&self, access: OFlags) -> Result<(), Errno> {
        self.numbers.open_again(&self.area, access)
    }

    /// Lets the branch go, which cannot be changed from here any more: the next mount holds it.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn release(&self) -> Result<(), Errno> {
        self.released.store(true, Ordering::Release);
        self.hold.release()
    }

    /// Whether this branch is held.
    pub fn holds(&self, branch: BranchId) -> bool {
        self.hold.branch == branch && !self.is_released()
    }

    /// Whether the branch was let go.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }
}

/// By `f_type`, statfs(2).
const TMPFS: u32 = 0x0102_1994;
/// File systems whose one journal keeps changes of names in order: ext2 to ext4, xfs, tmpfs.
const ORDERED: [u32; 3] = [0xEF53, 0x5846_5342, TMPFS];

/// Whether there are hard-link records in the work area of a directory.
///
/// # Errors
/// Those of the branch.
pub fn has_links(parent: &Path) -> Result<bool, Errno> {
    let parent = super::open_root(parent, true, super::form::Form::default())?;
    let links = parent.open_dir(WORK_AREA).and_then(|area| area.open_dir(LINKS));
    match links {
        Ok(links) => Ok(!links.entries()?.is_empty()),
        Err(Errno::NOENT | Errno::PERM | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the work area in a directory was left by a volatile mount that did not end well.
pub fn is_left_volatile(parent: &Path) -> Result<bool, Errno> {
    let parent = super::open_root(parent, true, super::form::Form::default())?;
    match parent.open_dir(WORK_AREA) {
        Ok(area) => Ok(area.find(VOLATILE)?.is_some() && !is_in_use(&area)?),
        Err(Errno::NOENT | Errno::PERM | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the branch's root gives to new entries is not for what is prepared here: an entry that is
/// copied up has what it had, and one that is made takes from the directory that it is for.
fn make_and_open(parent: &Dir, name: &[u8]) -> Result<Dir, Errno> {
    match parent.make_dir(name, 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let dir = parent.open_dir(name)?;
    match dir.at(b"").real_remove_xattr(acl::DEFAULT) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(dir),
        Err(errno) => Err(errno),
    }
}

fn other_owner(area: &Dir) -> Result<Option<(Uid, Gid)>, Errno> {
    let stat = rustix::fs::fstat(area)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(Some(owner).filter(|(uid, _)| *uid != geteuid()))
}

/// Removes everything in a directory of temporary entries.
pub(crate) fn clear(temporary: &Dir) -> Result<(), Errno> {
    for entry in temporary.entries()? {
        remove(temporary, &entry.name, entry.kind)?;
    }
    Ok(())
}

/// Removes an entry of a directory of temporary entries, with all that is in it.
///
/// A directory in it is moved up beside it first, so neither stack nor descriptors are needed for
/// the depth that somebody gave the tree.
pub(crate) fn remove(temporary: &Dir, name: &[u8], kind: Kind) -> Result<(), Errno> {
    if kind != Kind::Dir {
        return temporary.unlink(name);
    }
    let mut pending = vec![name.to_vec()];
    while let Some(name) = pending.pop() {
        let dir = temporary.open_dir(&name)?;
        for entry in dir.entries()? {
            if entry.kind == Kind::Dir {
                pending.push(move_up(temporary, &dir, &entry.name)?);
            } else {
                dir.unlink(&entry.name)?;
            }
        }
        temporary.remove_dir(&name)?;
    }
    Ok(())
}

fn move_up(temporary: &Dir, dir: &Dir, name: &[u8]) -> Result<Vec<u8>, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let fresh = format!("r{}", NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes();
        match dir.rename(name, temporary, &fresh, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(fresh),
            // left over from another mount
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}
