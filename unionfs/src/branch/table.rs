//! The table of inode numbers in a work area: a row for each inode number of the branch's file
//! system, with holes where nothing is recorded.
//!
//! Read and written with pread and pwrite: a mapping of a file on a full file system is SIGBUS. So
//! that a lookup needs no system call, it is remembered which rows say anything.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::dir::Dir;
use super::stat::RealId;

/// Its name in the work area.
pub(crate) const NUMBERS: &[u8] = b"numbers";
/// Its first word.
const MAGIC: u64 = u64::from_le_bytes(*b"runionf1");
/// Length of a row: two little-endian words.
const ROW: u64 = 16;
const ROW_LENGTH: usize = ROW as usize;
/// So many rows are looked at in one go.
const ROWS: u64 = 256;
/// So many of those are remembered, in about a mebibyte.
const MOST_PAGES: usize = 16_384;

/// Of so many rows, which say anything.
type Page = [u64; (ROWS / 64) as usize];

/// An open table.
#[derive(Debug)]
pub(crate) struct Table {
    file: OwnedFd,
    /// Its length in bytes; nothing is read beyond it.
    end: AtomicU64,
    /// Which rows say anything, where somebody looked.
    pages: RwLock<HashMap<u64, Page>>,
    /// Counts rows that came, so that nobody remembers what was before one.
    written: AtomicU64,
    /// Numbers that could not be written, e.g. to a full file system: known in this mount only.
    unwritten: Mutex<HashMap<RealId, u64>>,
    any_unwritten: AtomicBool,
}

impl Table {
    /// Opens or makes the table of a work area, and counts the mounts of it.
    ///
    /// # Errors
    /// Those of opening and writing, but for those of a full file system.
    pub(super) fn open(area: &Dir) -> Result<(Table, u64), Errno> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(area, NUMBERS, flags, Mode::from_raw_mode(0o600))?;
        let epoch = match read_row(&file, 0) {
            Some((MAGIC, epoch)) => epoch.wrapping_add(1),
            _ => {
                rustix::fs::ftruncate(&file, 0)?;
                1
            }
        };
        match write_row(&file, 0, (MAGIC, epoch)) {
            // a full file system can still be read and cleaned up through a mount
            Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => {}
            Err(errno) => return Err(errno),
        }
        let end = AtomicU64::new(rustix::fs::fstat(&file)?.st_size as u64);
        let table = Table {
            file,
            end,
            pages: RwLock::default(),
            written: AtomicU64::new(0),
            unwritten: Mutex::default(),
            any_unwritten: AtomicBool::new(false),
        };
        Ok((table, epoch))
    }

    /// The file.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Opens the file anew for reading, or for writing as well. What cannot be written is known in this mount only.
    ///
    /// # Errors
    /// Those of opening.
    pub(super) fn open_again(&self, area: &Dir, access: OFlags) -> Result<(), Errno> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | access;
        crate::sys::replace(self.file.as_fd(), rustix::fs::openat(area, NUMBERS, flags, Mode::empty())?)
    }

    /// What is recorded of an entry.
    pub(super) fn get(&self, id: RealId) -> Option<u64> {
        self.row(id).or_else(|| {
            let any = self.any_unwritten.load(Ordering::Acquire);
            any.then(|| self.unwritten.lock().get(&id).copied()).flatten()
        })
    }

    fn row(&self, id: RealId) -> Option<u64> {
        if !self.says_anything(id.ino) {
            return None;
        }
        let (number, birth) = read_row(&self.file, id.ino.checked_mul(ROW)?)?;
        (number > 1 && birth == id.birth).then_some(number)
    }

    /// Records a number of an entry; in this mount only, where it cannot be written.
    ///
    /// # Errors
    /// ENOSPC, EFBIG and the like.
    pub(super) fn set(&self, id: RealId, number: u64) -> Result<(), Errno> {
        let offset = id.ino.checked_mul(ROW).filter(|_| id.ino > 0).ok_or(Errno::FBIG);
        let written = offset.and_then(|offset| {
            write_row(&self.file, offset, (number, id.birth))?;
            self.note(id.ino);
            self.end.fetch_max(offset + ROW, Ordering::Release);
            Ok(())
        });
        if let Err(errno) = written {
            tracing::debug!(%errno, "recording an inode number");
            self.unwritten.lock().insert(id, number);
            self.any_unwritten.store(true, Ordering::Release);
        }
        written
    }

    /// Forgets the number of an entry that is gone.
    pub(super) fn forget(&self, id: RealId) {
        if self.any_unwritten.load(Ordering::Acquire) {
            self.unwritten.lock().remove(&id);
        }
        if self.row(id).is_some()
            && let Err(errno) = write_row(&self.file, id.ino.wrapping_mul(ROW), (0, 0))
        {
            // another file that gets the inode has another time of birth
            tracing::debug!(%errno, "forgetting an inode number");
        }
    }

    /// Whether an entry of this inode number may have a number.
    pub(super) fn may_have(&self, ino: u64) -> bool {
        self.any_unwritten.load(Ordering::Acquire) || self.says_anything(ino)
    }

    /// Whether the row of an inode number says, or said, anything.
    fn says_anything(&self, ino: u64) -> bool {
        let Some(offset) = ino.checked_mul(ROW) else { return false };
        if offset >= self.end.load(Ordering::Acquire) {
            return false;
        }
        let (page, row) = (ino / ROWS, ino % ROWS);
        let known = self.pages.read().get(&page).copied();
        let Some(rows) = known.or_else(|| self.read_page(page)) else { return true };
        rows[(row / 64) as usize] >> (row % 64) & 1 == 1
    }

    /// Reads which rows say anything; nothing if that cannot be read.
    fn read_page(&self, page: u64) -> Option<Page> {
        let before = self.written.load(Ordering::Acquire);
        let mut bytes = [0; (ROWS * ROW) as usize];
        let length = rustix::io::pread(&self.file, &mut bytes, page * ROWS * ROW).ok()?;
        let mut rows = Page::default();
        for (row, words) in bytes[..length].chunks_exact(ROW_LENGTH).enumerate() {
            if words[..8] != [0; 8] {
                rows[row / 64] |= 1 << (row % 64);
            }
        }
        let mut pages = self.pages.write();
        if self.written.load(Ordering::Acquire) == before {
            if pages.len() >= MOST_PAGES {
                pages.clear();
            }
            pages.insert(page, rows);
        }
        Some(rows)
    }

    /// A row has come.
    fn note(&self, ino: u64) {
        let mut pages = self.pages.write();
        self.written.fetch_add(1, Ordering::AcqRel);
        if let Some(rows) = pages.get_mut(&(ino / ROWS)) {
            rows[(ino % ROWS / 64) as usize] |= 1 << (ino % 64);
        }
    }
}

/// Whether these are the first bytes of a table.
pub(crate) fn is_table_head(bytes: [u8; 8]) -> bool {
    u64::from_le_bytes(bytes) == MAGIC
}

fn read_row(numbers: &OwnedFd, offset: u64) -> Option<(u64, u64)> {
    let mut row = [0; ROW_LENGTH];
    match rustix::io::pread(numbers, &mut row, offset) {
        Ok(length) if length == row.len() => {
            let (first, second) = row.split_at(8);
            Some((u64::from_le_bytes(first.try_into().ok()?), u64::from_le_bytes(second.try_into().ok()?)))
        }
        _ => None,
    }
}

fn write_row(numbers: &OwnedFd, offset: u64, row: (u64, u64)) -> Result<(), Errno> {
    let mut bytes = [0; ROW_LENGTH];
    let (first, second) = bytes.split_at_mut(8);
    first.copy_from_slice(&row.0.to_le_bytes());
    second.copy_from_slice(&row.1.to_le_bytes());
    match rustix::io::pwrite(numbers, &bytes, offset)? {
        ROW_LENGTH => Ok(()),
        _ => Err(Errno::NOSPC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::form::Form;

    fn id(ino: u64) -> RealId {
        RealId { dev: 1, ino, birth: 7 }
    }

    #[test]
    fn what_is_remembered_of_the_rows_is_what_they_say() {
        let place = tempfile::tempdir().unwrap();
        let area = || Dir::new(rustix::fs::open(place.path(), OFlags::PATH, Mode::empty()).unwrap(), Form::default());
        let (table, epoch) = Table::open(&area()).unwrap();
        assert_eq!((epoch, table.get(id(5))), (1, None));
        for ino in [5, 63, 64, 255, 256, 70_000] {
            // looked at before and after, in whatever page it is
            assert!(!table.may_have(ino), "{ino}");
            table.set(id(ino), ino + 1000).unwrap();
            assert_eq!(table.get(id(ino)), Some(ino + 1000));
            assert!(table.may_have(ino) && !table.may_have(ino + 1), "{ino}");
            assert_eq!(table.get(RealId { birth: 8, ..id(ino) }), None);
        }
        table.forget(id(64));
        assert_eq!(table.get(id(64)), None);
        let (again, epoch) = Table::open(&area()).unwrap();
        let found = [5, 63, 64, 65, 255, 256, 70_000, 70_001, u64::MAX].map(|ino| again.get(id(ino)));
        let told = |ino: u64| Some(ino + 1000);
        assert_eq!(
            (epoch, found),
            (2, [told(5), told(63), None, None, told(255), told(256), told(70_000), None, None])
        );
    }
}
