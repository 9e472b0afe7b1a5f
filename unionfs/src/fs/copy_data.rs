//! Copying a file's content: reflink, else ranges of data by copy_file_range(2), else by reading
//! and writing. Holes stay holes.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

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

const CHUNK: usize = 1 << 20;

/// Copies `keep` of the `size` bytes of a file into an empty one, which has the length of what
/// was kept afterwards.
pub(super) fn copy_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64, keep: Keep) -> Result<(), Errno> {
    let length = keep.of(size);
    if length == 0 {
        return Ok(());
    }
    if length == size && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut method = Method::Range;
    let mut at = 0;
    while at < length {
        let Some((start, end)) = next_data(from, at, length)? else { break };
        method.copy(from, to, start, end)?;
        at = end;
    }
    rustix::fs::ftruncate(to, length)
}

/// The next range that is not a hole.
fn next_data(from: BorrowedFd<'_>, at: u64, length: u64) -> Result<Option<(u64, u64)>, Errno> {
    let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
        Ok(start) if start < length => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // a file system that knows no holes
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(errno) => return Err(errno),
    };
    let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(length))))
}

enum Method {
    Range,
    ReadWrite,
}

impl Method {
    fn copy(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
        let mut at = start;
        while at < end && matches!(self, Method::Range) {
            let (mut read_at, mut write_at) = (at, at);
            let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(64 * CHUNK);
            match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
                // the file became shorter in this moment
                Ok(0) => return Ok(()),
                Ok(copied) => at += copied as u64,
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::BADF) => {
                    *self = Method::ReadWrite;
                }
                Err(errno) => return Err(errno),
            }
        }
        if at < end { read_write(from, to, at, end) } else { Ok(()) }
    }
}

fn read_write(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let read = rustix::io::pread(from, &mut buffer[..length], at)?;
        if read == 0 {
            return Ok(());
        }
        let mut done = 0;
        while done < read {
            match rustix::io::pwrite(to, &buffer[done..read], at + done as u64)? {
                0 => return Err(Errno::NOSPC),
                written => done += written,
            }
        }
        at += read as u64;
    }
    Ok(())
}
