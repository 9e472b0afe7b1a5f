//! Hard-link records (rule 32): how several names of one object on a read-only branch stay one
//! object when it is copied up, or when one of the names goes. A writable branch below the one
//! that the copy goes to is no different.
//!
//! The record of an object lies in the work area of a writable branch under the object's number:
//! `links/NUMBER` is a hard link to the copied-up file, so that names which still stand below
//! lead to it; `links/NUMBER.o` says what the object was below and which of the names that it
//! had there are gone, by which the link count is right. What a record says is durable before the
//! names change that rely on it: a journal may keep the names and lose the data. [`crate::fs::Union::flush_links`] makes
//! records real hard links.

use std::os::fd::{AsFd, OwnedFd};

use parking_lot::RwLock;
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use crate::branch::dir::Dir;
use crate::branch::stat::{RealId, Stat};
use crate::branch::unplaced::Unplaced;
use crate::branch::work::Work;
use crate::union::Name;

/// What an object was on the branch where it lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    nlink: u64,
    ino: u64,
    birth: u64,
    /// Modification time in nanoseconds: tells the object where the file system has no time of
    /// birth.
    mtime: u64,
}

impl Origin {
    /// The origin of an entry.
    pub fn of(stat: &Stat) -> Origin {
        let mtime = (stat.mtime.sec as u64).wrapping_mul(1_000_000_000).wrapping_add(stat.mtime.nsec.into());
        Origin { nlink: stat.nlink.into(), ino: stat.id.ino, birth: stat.id.birth, mtime }
    }

    /// Whether it is the same object. Where the branch is written in place, names of it may have
    /// gone since, and its content may have changed; its time of birth stays.
    pub fn is_same(self, other: Origin) -> bool {
        let born = self.birth != 0 || self.mtime == other.mtime;
        (self.ino, self.birth) == (other.ino, other.birth) && born
    }

    /// Its inode number on its branch.
    pub fn ino(self) -> u64 {
        self.ino
    }

    fn words(self) -> [u64; 4] {
        [self.nlink, self.ino, self.birth, self.mtime]
    }
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the object was.
    pub origin: Origin,
    /// The names it had below that are gone.
    pub gone: Vec<Gone>,
}

/// A name that an object had below, and that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// What tells the name from every other of the object: its directory on the branch where it
    /// lies, and the name there. A path of the union would not do, for when a directory is renamed,
    /// it leads to another name.
    pub place: Vec<u8>,
    /// Its path in the union at the time it went, by which a later mount sees whether it did.
    pub path: Vec<u8>,
}

impl Gone {
    /// The name in a directory of a branch, of that identity there, and of that path in the union.
    pub fn new(dir: RealId, name: Name<'_>, path: Vec<u8>) -> Gone {
        Gone { place: place(dir, name.as_bytes()), path }
    }

    /// Whether it is the entry of its name in a directory of that identity.
    pub fn is_in(&self, dir: RealId) -> bool {
        let name = self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.place == place(dir, name)
    }
}

fn place(dir: RealId, name: &[u8]) -> Vec<u8> {
    [format!("{:x}.{:x}/", dir.ino, dir.birth).as_bytes(), name].concat()
}

/// Length of what a record says before the names that are gone.
pub(crate) const HEAD: usize = 32;

/// The name of the link to the copied-up file.
pub fn link_name(number: u64) -> Vec<u8> {
    format!("{number:016x}").into_bytes()
}

fn record_name(number: u64) -> Vec<u8> {
    format!("{number:016x}.o").into_bytes()
}

impl Record {
    fn parse(bytes: &[u8]) -> Option<Record> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let word = |at: usize| Some(u64::from_le_bytes(head.get(at * 8..at * 8 + 8)?.try_into().ok()?));
        let origin = Origin { nlink: word(0)?, ino: word(1)?, birth: word(2)?, mtime: word(3)? };
        // what has not both its zero bytes was being written when the daemon died
        let mut words = rest.split_inclusive(|byte| *byte == 0).map_while(|word| word.strip_suffix(b"\0"));
        let gone = std::iter::from_fn(|| Some(Gone { place: words.next()?.to_vec(), path: words.next()?.to_vec() }));
        Some(Record { origin, gone: gone.collect() })
    }

    fn print(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.origin.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(self.gone.iter().flat_map(line));
        bytes
    }

    /// The record with the names that are gone by another one of the same object, each once.
    #[must_use]
    pub fn with_gone_of(mut self, other: Record) -> Record {
        for gone in other.gone {
            if !self.gone.iter().any(|known| known.place == gone.place) {
                self.gone.push(gone);
            }
        }
        self
    }

    /// How many names are left below.
    pub fn left(&self) -> u64 {
        self.origin.nlink.saturating_sub(self.gone.len() as u64)
    }

    /// The link count of a copied-up object: the names below that are left, and those of the
    /// copy, one of which is the record's own.
    pub fn nlink_of_copy(&self, copy: &Stat) -> u32 {
        let below = self.left();
        let above = u64::from(copy.nlink.saturating_sub(1));
        u32::try_from(below + above).unwrap_or(u32::MAX)
    }

    /// The link count of an object that was not copied up, some names of which are hidden.
    pub fn nlink_below(&self, stat: &Stat) -> u32 {
        let gone = u32::try_from(self.gone.len()).unwrap_or(u32::MAX);
        stat.nlink.saturating_sub(gone)
    }
}

fn line(gone: &Gone) -> Vec<u8> {
    [&gone.place[..], b"\0", &gone.path, b"\0"].concat()
}

/// The numbers of all objects that have a record or a copy in a work area, each once.
pub fn numbers(work: &Work) -> Result<Vec<u64>, Errno> {
    let number = |name: &[u8]| {
        let digits = name.strip_suffix(b".o").unwrap_or(name);
        std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok())
    };
    let mut numbers = Vec::new();
    let fd = work.links().open_for_reading()?;
    while work.links().read_some(fd.as_fd(), |entry| numbers.extend(number(entry.name)))? {}
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Reads which objects have records in a work area that nobody else uses, so that of all others no
/// system call is needed to know that they have none.
///
/// Copies get back their numbers, by which the names below lead to them: a power cut may keep that
/// the number of a removed one was forgotten, and lose that it was removed.
///
/// # Errors
/// Those of reading a directory.
pub fn load(work: &Work) -> Result<(), Errno> {
    let known = numbers(work)?;
    for number in &known {
        if let Some(copy) = work.links().find(&link_name(*number))?
            && work.number(copy.id) != Some(*number)
        {
            // if it cannot be written, it is known in this mount
            work.set_number(copy.id, *number).ok();
        }
    }
    work.recorded.get_or_init(|| RwLock::new(known.into_iter().collect()));
    Ok(())
}

fn may_have(work: &Work, number: u64) -> bool {
    work.recorded.get().is_none_or(|known| known.read().contains(&number))
}

/// An object is about to get a record or a copy.
fn note(work: &Work, number: u64) {
    if let Some(known) = work.recorded.get() {
        known.write().insert(number);
    }
}

/// Reads a record; nothing if there is none.
pub fn read(work: &Work, number: u64) -> Result<Option<Record>, Errno> {
    if !may_have(work, number) {
        return Ok(None);
    }
    let file = match work.links().open_file(&record_name(number), OFlags::RDONLY) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(Record::parse(&read_all(&file)?))
}

/// The copied-up file of a record, if there is one.
pub fn copied_up(work: &Work, number: u64) -> Result<Option<Stat>, Errno> {
    if may_have(work, number) { work.links().find(&link_name(number)) } else { Ok(None) }
}

/// Notes that a name of the object below is gone, making the record if there is none. Called
/// **before** the name goes: one that turns out to be still there is taken back at the next mount.
pub fn note_gone(work: &Work, number: u64, origin: Origin, gone: &Gone) -> Result<(), Errno> {
    let found = read(work, number)?;
    let same = found.as_ref().is_some_and(|record| record.origin == origin);
    let mut record = match found {
        Some(record) if record.origin.is_same(origin) && copied_up(work, number)?.is_some() => record,
        // names may have come and gone on a writable branch until now
        Some(record) if record.origin.is_same(origin) => Record { origin, ..record },
        // none, or that of another stack of branches
        _ => Record { origin, gone: Vec::new() },
    };
    if record.gone.iter().any(|known| known.place == gone.place) {
        return Ok(());
    }
    let known = record.print().len() as u64;
    record.gone.push(gone.clone());
    match work.links().open_file(&record_name(number), OFlags::WRONLY | OFlags::APPEND) {
        // the rest of the record stays as it is, unless its end was torn
        Ok(file) if same && Stat::of_file(&file)?.size == known => {
            append(&file, gone)?;
            work.sync(&file)
        }
        _ => write(work, number, &record),
    }
}

fn append(file: &OwnedFd, gone: &Gone) -> Result<(), Errno> {
    let line = line(gone);
    match rustix::io::write(file, &line)? {
        written if written == line.len() => Ok(()),
        _ => Err(Errno::NOSPC),
    }
}

/// Takes back that names are gone.
pub fn keep_gone(work: &Work, number: u64, still_gone: impl Fn(&Gone) -> bool) -> Result<(), Errno> {
    let Some(mut record) = read(work, number)? else { return Ok(()) };
    let before = record.gone.len();
    record.gone.retain(still_gone);
    if record.gone.len() == before { Ok(()) } else { write(work, number, &record) }
}

/// Removes a record whose object has no name left.
pub fn remove(work: &Work, number: u64) -> Result<(), Errno> {
    if !may_have(work, number) {
        return Ok(());
    }
    drop_copy(work, number)?;
    match work.links().unlink(&record_name(number)) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Keeps a prepared copy under the object's number.
pub fn keep_copy(copy: &Unplaced<'_>, number: u64) -> Result<(), Errno> {
    note(copy.work(), number);
    let (name, links) = (link_name(number), copy.work().links());
    match copy.link(links, &name) {
        // left over from a copy-up that did not come to its end
        Err(Errno::EXIST) => {
            links.unlink(&name)?;
            copy.link(links, &name)
        }
        result => result,
    }
}

/// Takes [`keep_copy`] back.
pub fn drop_copy(work: &Work, number: u64) -> Result<(), Errno> {
    match work.links().unlink(&link_name(number)) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn write(work: &Work, number: u64, record: &Record) -> Result<(), Errno> {
    note(work, number);
    let temporary = work.temporary_name();
    let dir: &Dir = work.temporary();
    let file = dir.create_file(&temporary, 0o600)?;
    let written = work
        .give(&file)
        .and_then(|()| write_all(&file, &record.print()))
        .and_then(|()| work.sync(&file))
        .and_then(|()| dir.rename(&temporary, work.links(), &record_name(number), RenameFlags::empty()));
    if written.is_err() {
        work.discard(&temporary);
    }
    written
}

fn read_all(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        if length == bytes.len() {
            bytes.resize(length * 2, 0);
        }
        match rustix::io::pread(file, &mut bytes[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Writes all bytes from the start of a file.
pub fn write_all(file: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(file, &bytes[done..], done as u64)? {
            0 => return Err(Errno::NOSPC),
            written => done += written,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let origin = Origin { nlink: 4, ino: 5, birth: 6, mtime: 7 };
        let dir = RealId { dev: 1, ino: 0xab, birth: 0 };
        let gone = |path: &[u8], name: &'static [u8]| Gone::new(dir, Name::new(name).unwrap(), path.to_vec());
        let record = Record { origin, gone: vec![gone(b"a/b\xff", b"b\xff"), gone(b"c", b"c")] };
        assert_eq!(Record::parse(&record.print()), Some(record.clone()));
        assert!(record.gone[0].is_in(dir) && !record.gone[0].is_in(RealId { ino: 0xac, ..dir }));
        // half a name at the end does not count
        let bytes = record.print();
        for torn in 1..bytes.len() - HEAD {
            let whole = Record::parse(&bytes[..bytes.len() - torn]).map(|r| r.gone.len());
            assert_eq!(whole, Some(usize::from(torn <= b"ab.0/c\0c\0".len())), "{torn}");
        }
        assert_eq!(Record::parse(&bytes[..20]), None);
    }
}
