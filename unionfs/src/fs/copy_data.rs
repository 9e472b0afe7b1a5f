//! Copying a file's content: reflink, else ranges of data, which the kernel copies by itself or
//! moves through a pipe, else by reading and writing. Holes stay holes.
//!
//! Which way two branches have is found out by the first file that goes from one to the other.
//! What is written goes to the disk while the rest is copied: the fsync at the end of a large copy
//! has little left to do, and nobody else waits for a journal that waits for it.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use parking_lot::RwLock;
use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;

use crate::interrupt;
use crate::sys;
use crate::union::BranchIndex;

/// How much of a file survives the change that makes it be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// All of it.
    All,
    /// The first bytes.
    First(u64),
}

impl Keep {
    /// How many of a file's bytes that is.
    pub(super) fn of(self, size: u64) -> u64 {
        match self {
            Keep::All => size,
            Keep::First(bytes) => bytes.min(size),
        }
    }
}

/// Where the content of a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// In blocks that are on disk already, for the original has them, too; or there is none. To share
    /// them is a change of the file system's own records, as its size, owner and name are.
    OnDisk,
    /// In memory, on its way to the disk.
    Written,
}

/// How content gets from one file to another, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Way {
    /// The copy shares the blocks (ioctl_ficlonerange(2)).
    #[default]
    Share,
    /// copy_file_range(2), within one file system and between some.
    Range,
    /// sendfile(2): through a pipe in the kernel.
    Pipe,
    /// pread(2) and pwrite(2).
    Buffer,
}

impl Way {
    fn next(self) -> Way {
        match self {
            Way::Share => Way::Range,
            Way::Range => Way::Pipe,
            Way::Pipe | Way::Buffer => Way::Buffer,
        }
    }

    /// Whether two file systems do not have this way at all; else it is about the two files.
    fn is_closed(errno: Errno) -> bool {
        // EPERM is from a filter that does not know the call: the files are open already
        matches!(errno, Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::PERM)
    }
}

/// The ways between branches, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Ways(RwLock<HashMap<(BranchIndex, BranchIndex), Way>>);

impl Ways {
    /// The best way from one branch to another that may be open.
    pub(super) fn best(&self, between: (BranchIndex, BranchIndex)) -> Way {
        self.0.read().get(&between).copied().unwrap_or_default()
    }

    /// Notes that better ways are closed.
    pub(super) fn learn(&self, between: (BranchIndex, BranchIndex), best: Way) {
        self.0.write().insert(between, best);
    }
}

/// So much is copied before the disk is told to write it.
const PIECE: u64 = 8 << 20;
/// Size of the buffer that is read to and written from.
const BUFFER: usize = 1 << 20;
/// Shared blocks begin and end at multiples of this: the largest that file systems have.
const BLOCK: u64 = 64 << 10;
/// Below this, no hole is looked for in a file that has all its blocks.
const SMALL: u64 = 64 << 10;

/// A file that is copied into an empty one.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    pub(super) from: BorrowedFd<'a>,
    pub(super) to: BorrowedFd<'a>,
    /// Length of the original, in bytes.
    pub(super) size: u64,
    /// What the original takes, in units of 512 bytes.
    pub(super) blocks: u64,
    pub(super) keep: Keep,
    /// Whether the copy is to reach the disk.
    pub(super) durable: bool,
    /// The best way that may be open; worse than it was afterwards where that was closed.
    pub(super) way: Way,
}

impl Copying<'_> {
    /// Copies what is kept; the copy has the length of that afterwards.
    pub(super) fn run(&mut self) -> Result<Content, Errno> {
        let length = self.keep.of(self.size);
        if length == 0 {
            return Ok(Content::OnDisk);
        }
        if self.way == Way::Share && self.share(length) {
            if length == self.size {
                return Ok(Content::OnDisk);
            }
            // zeros are written behind the new end
            rustix::fs::ftruncate(self.to, length)?;
        } else {
            self.write(length)?;
        }
        Ok(Content::Written)
    }

    /// Copies so many bytes.
    fn write(&mut self, length: u64) -> Result<(), Errno> {
        if length > PIECE {
            match rustix::fs::fadvise(self.from, 0, None, Advice::Sequential) {
                Ok(()) | Err(Errno::NOSYS | Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        // between two files that cannot share blocks, though their file systems can
        let mut way = self.way.max(Way::Range);
        let (mut end, mut has_length) = (0, false);
        let mut ranges = Ranges { file: self.from, at: 0, length };
        let whole = length <= SMALL && self.blocks.saturating_mul(512) >= length;
        while let Some((start, stop)) = if whole { ranges.rest() } else { ranges.next()? } {
            if (start, stop) != (0, length) && !has_length {
                // at once, so that no room is kept for more at the end of what is written
                rustix::fs::ftruncate(self.to, length)?;
                has_length = true;
            }
            end = self.copy(&mut way, start, stop)?;
        }
        if has_length || end == length { Ok(()) } else { rustix::fs::ftruncate(self.to, length) }
    }

    /// Whether the copy could be made to share the blocks. Its length may be too much afterwards.
    fn share(&mut self, length: u64) -> bool {
        let whole = length.next_multiple_of(BLOCK);
        match sys::clone_beginning(self.from, self.to, if whole < self.size { whole } else { 0 }) {
            Ok(()) => true,
            Err(errno) => {
                if Way::is_closed(errno) {
                    self.way = self.way.next();
                }
                false
            }
        }
    }

    /// Copies a range; where it ended, which is before the end of the range if the original became
    /// shorter in this moment.
    fn copy(&mut self, way: &mut Way, start: u64, end: u64) -> Result<u64, Errno> {
        let mut at = start;
        while at < end {
            interrupt::check()?;
            let length = usize::try_from((end - at).min(PIECE)).unwrap_or(BUFFER);
            let copied = match way.copy(self.from, self.to, at, length) {
                Ok(0) => return Ok(at),
                Ok(copied) => copied as u64,
                Err(Errno::INTR) => continue,
                Err(errno) if *way != Way::Buffer && (Way::is_closed(errno) || errno == Errno::INVAL) => {
                    if *way == self.way.max(Way::Range) && Way::is_closed(errno) {
                        self.way = way.next();
                    }
                    *way = way.next();
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            if self.durable && end - start > PIECE {
                self.begin_writeback(at, copied)?;
            }
            at += copied;
        }
        Ok(at)
    }

    fn begin_writeback(&mut self, at: u64, length: u64) -> Result<(), Errno> {
        match sys::begin_writeback(self.to, at, length) {
            // the fsync at the end does it all
            Err(Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                self.durable = false;
                Ok(())
            }
            begun => begun,
        }
    }
}

impl Way {
    /// Copies some of a range, and says how much.
    fn copy(self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, length: usize) -> Result<usize, Errno> {
        let (mut read_at, mut write_at) = (at, at);
        match self {
            Way::Share | Way::Range => {
                rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length)
            }
            Way::Pipe => {
                rustix::fs::seek(to, SeekFrom::Start(at))?;
                rustix::fs::sendfile(to, from, Some(&mut read_at), length)
            }
            Way::Buffer => read_write(from, to, at, length),
        }
    }
}

fn read_write(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, length: usize) -> Result<usize, Errno> {
    let mut buffer = vec![0; length.min(BUFFER)];
    let mut at = 0;
    while at < length {
        let room = buffer.len().min(length - at);
        let read = rustix::io::pread(from, &mut buffer[..room], start + at as u64)?;
        if read == 0 {
            break;
        }
        let mut done = 0;
        while done < read {
            match rustix::io::pwrite(to, &buffer[done..read], start + (at + done) as u64)? {
                0 => return Err(Errno::NOSPC),
                written => done += written,
            }
        }
        at += read;
    }
    Ok(at)
}

/// The ranges of a file that are not holes.
struct Ranges<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    length: u64,
}

impl Ranges<'_> {
    /// All that is left.
    fn rest(&mut self) -> Option<(u64, u64)> {
        let start = std::mem::replace(&mut self.at, self.length);
        (start < self.length).then_some((start, self.length))
    }

    /// The next range. A file without holes is asked once.
    fn next(&mut self) -> Result<Option<(u64, u64)>, Errno> {
        if self.at == 0 {
            self.at = self.end_of_data(0)?;
            if self.at > 0 {
                return Ok(Some((0, self.at)));
            }
        }
        if self.at >= self.length {
            return Ok(None);
        }
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) if start < self.length => start,
            Ok(_) | Err(Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        self.at = self.end_of_data(start)?;
        Ok(Some((start, self.at)))
    }

    /// Where the next hole begins.
    fn end_of_data(&self, start: u64) -> Result<u64, Errno> {
        match rustix::fs::seek(self.file, SeekFrom::Hole(start)) {
            Ok(end) => Ok(end.min(self.length)),
            // it became shorter in this moment
            Err(Errno::NXIO) => Ok(start),
            // a file system that knows no holes
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.length),
            Err(errno) => Err(errno),
        }
    }
}
