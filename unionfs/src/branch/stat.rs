//! What a branch says of one entry: `statx` as a plain value.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags, Timespec, makedev};
use rustix::io::Errno;

use super::guard::Guard;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
}

impl Kind {
    /// Reads the type out of the mode bits.
    ///
    /// # Errors
    /// EIO for a type that Linux does not have.
    pub fn of(file_type: FileType) -> Result<Kind, Errno> {
        Ok(match file_type {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Unknown => return Err(Errno::IO),
        })
    }

    /// The same for rustix.
    pub fn file_type(self) -> FileType {
        match self {
            Kind::File => FileType::RegularFile,
            Kind::Dir => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
        }
    }
}

/// Seconds since 1970 (may be negative) and nanoseconds (0 to 999,999,999, counted forwards).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[allow(missing_docs)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

impl From<Time> for Timespec {
    fn from(time: Time) -> Timespec {
        Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() }
    }
}

/// The real identity of an entry: which file of which file system, and born when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RealId {
    /// Device number, as `st_dev`.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// A value that differs for a later file with the same inode number; 0 where the file
    /// system tells no birth time.
    pub birth: u64,
}

/// A number for bytes (FNV-1a), never 0; the same in every run, for it is kept on disk.
fn hashed(bytes: &[u8]) -> u64 {
    let mixed = |all: u64, byte: &u8| (all ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mixed) | 1 << 63
}

/// Attributes of one entry of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stat {
    pub id: RealId,
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// In bytes.
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub blksize: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// What its file flags forbid.
    pub guard: Guard,
}

impl Stat {
    /// Asks for an entry below `dir`, or for `dir` itself with an empty name; symbolic links are
    /// not followed.
    pub(super) fn at(dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let x = match rustix::fs::statx(dir.as_fd(), name, flags, wanted) {
            Err(Errno::NOSYS) => return Stat::at_old(dir, name, flags),
            x => x?,
        };
        let time = |t: rustix::fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
        let birth = if x.stx_mask & StatxFlags::BTIME.bits() == 0 {
            0
        } else {
            // never 0, which stands for "unknown"
            (x.stx_btime.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(x.stx_btime.tv_nsec.into()) | 1 << 63
        };
        Ok(Stat {
            id: RealId { dev: makedev(x.stx_dev_major, x.stx_dev_minor), ino: x.stx_ino, birth },
            kind: Kind::of(FileType::from_raw_mode(x.stx_mode.into()))?,
            mode: u32::from(x.stx_mode) & 0o7777,
            nlink: x.stx_nlink,
            uid: x.stx_uid,
            gid: x.stx_gid,
            rdev: makedev(x.stx_rdev_major, x.stx_rdev_minor),
            size: x.stx_size,
            blocks: x.stx_blocks,
            blksize: x.stx_blksize,
            atime: time(x.stx_atime),
            mtime: time(x.stx_mtime),
            ctime: time(x.stx_ctime),
            guard: Guard {
                immutable: x.stx_attributes.contains(StatxAttributes::IMMUTABLE),
                append_only: x.stx_attributes.contains(StatxAttributes::APPEND),
            },
        })
    }

    /// The same before Linux 4.11, or behind a filter that does not know statx(2). Nobody tells when it was born, in whose
    /// place its handle stands, which a later file with its inode number does not have; nor what its file flags forbid.
    fn at_old(dir: impl AsFd, name: &[u8], flags: AtFlags) -> Result<Stat, Errno> {
        let s = rustix::fs::statat(dir.as_fd(), name, flags)?;
        let handle = crate::sys::file_handle(dir.as_fd(), name);
        // nanoseconds are below a second
        let time = |sec, nsec: u64| Time { sec, nsec: nsec as u32 };
        Ok(Stat {
            id: RealId { dev: s.st_dev, ino: s.st_ino, birth: handle.map_or(0, |handle| hashed(&handle)) },
            kind: Kind::of(FileType::from_raw_mode(s.st_mode))?,
            mode: s.st_mode & 0o7777,
            nlink: u32::try_from(s.st_nlink).unwrap_or(u32::MAX),
            uid: s.st_uid,
            gid: s.st_gid,
            rdev: s.st_rdev,
            size: s.st_size as u64,
            blocks: s.st_blocks as u64,
            blksize: u32::try_from(s.st_blksize).unwrap_or(4096),
            atime: time(s.st_atime, s.st_atime_nsec as u64),
            mtime: time(s.st_mtime, s.st_mtime_nsec as u64),
            ctime: time(s.st_ctime, s.st_ctime_nsec as u64),
            guard: Guard { immutable: false, append_only: false },
        })
    }

    /// The attributes of an open file.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of_file(file: impl AsFd) -> Result<Stat, Errno> {
        Stat::at(file, b"")
    }
}
