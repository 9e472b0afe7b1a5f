//! Between our values and those of the FUSE library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Generation, INodeNo, TimeOrNow};
use rustix::fs::FileType as RawFileType;
use rustix::io::Errno;

use crate::branch::at::SetTime;
use crate::branch::stat::{Kind, Time};
use crate::fs::Attr;
use crate::inode::Ref;

pub(super) fn reply_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

/// The type in the mode of mknod(2), where none means a regular file.
pub(super) fn kind_of_mode(mode: u32) -> Result<Kind, Errno> {
    if mode & libc::S_IFMT == 0 {
        return Ok(Kind::File);
    }
    Kind::of(RawFileType::from_raw_mode(mode)).map_err(|_| Errno::INVAL)
}

/// With the number, what tells an object from all others that had the number before it.
pub(super) fn generation(lookup: &Ref) -> Generation {
    Generation(lookup.inode().incarnation.into())
}

pub(super) fn attributes(attr: &Attr) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: protocol_device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// Goes with an entry that says "there is nothing, and you may remember it": number 0.
pub(super) fn no_attributes() -> FileAttr {
    only_type(0, Kind::File)
}

/// Number and type; the rest is nothing that the kernel may believe.
pub(super) fn only_type(ino: u64, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A device number as `dev_t` of the C library, from the protocol's 32 bits (the kernel's
/// `new_encode_dev`).
pub(super) fn device_number(protocol: u32) -> u64 {
    let major = (protocol >> 8) & 0xfff;
    let minor = (protocol & 0xff) | ((protocol >> 12) & 0xfff00);
    rustix::fs::makedev(major, minor)
}

fn protocol_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nsec.into());
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// What becomes of a time.
///
/// The library reads (-2 s, 0.5) as 2.5 s before 1970, where the kernel means 1.5 s before it; so
/// seconds and nanoseconds are taken apart as they came.
pub(super) fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(time)) => SetTime::To(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let sec = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
                Time { sec, nsec: before.subsec_nanos() }
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_read_as_the_kernel_means_them() {
        let library = UNIX_EPOCH - Duration::new(2, 500_000_000);
        let time = set_time(Some(TimeOrNow::SpecificTime(library)));
        assert_eq!(time, SetTime::To(Time { sec: -2, nsec: 500_000_000 }));
        let shown = system_time(Time { sec: -2, nsec: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(shown).ok(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn device_numbers_survive_the_protocol() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 70_000), (0xfff, 0xfffff)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(device_number(protocol_device(device)), device);
        }
    }
}
