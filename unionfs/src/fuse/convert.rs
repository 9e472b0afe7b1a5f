//! Between our values and those of the protocol.

use std::time::Duration;

use rustix::fs::FileType as RawFileType;
use rustix::io::Errno;

use super::abi::{self, SetattrIn, fattr, fopen};
use crate::branch::at::SetTime;
use crate::branch::stat::{Kind, Time};
use crate::fs::{Attr, Change, Opened};
use crate::inode::Ref;

/// The type in the mode of mknod(2), where none means a regular file.
pub(super) fn kind_of_mode(mode: u32) -> Result<Kind, Errno> {
    if mode & libc::S_IFMT == 0 {
        return Ok(Kind::File);
    }
    Kind::of(RawFileType::from_raw_mode(mode)).map_err(|_| Errno::INVAL)
}

/// The type as a mode has it.
pub(super) fn type_bits(kind: Kind) -> u32 {
    kind.file_type().as_raw_mode() & libc::S_IFMT
}

/// The type as a directory entry has it (`DT_*`).
pub(super) fn entry_type(kind: Kind) -> u32 {
    type_bits(kind) >> 12
}

pub(super) fn attributes(attr: &Attr) -> abi::Attr {
    let stat = &attr.stat;
    abi::Attr {
        ino: attr.ino,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.sec,
        mtime: stat.mtime.sec,
        ctime: stat.ctime.sec,
        atimensec: stat.atime.nsec,
        mtimensec: stat.mtime.nsec,
        ctimensec: stat.ctime.nsec,
        mode: type_bits(stat.kind) | stat.mode & 0o7777,
        nlink: stat.nlink,
        uid: attr.owner.0,
        gid: attr.owner.1,
        rdev: protocol_device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// An entry as the kernel is told it; `valid` is how long it may be believed.
pub(super) fn entry(lookup: &Ref, attr: &Attr, valid: Duration) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: lookup.inode().ino,
        generation: lookup.inode().incarnation.into(),
        attr: attributes(attr),
        ..believed(valid, if attr.lasting { valid } else { Duration::ZERO })
    }
}

/// "There is nothing, and you may remember it": number 0, and how long.
pub(super) fn no_entry(valid: Duration) -> abi::EntryOut {
    believed(valid, valid)
}

/// Number and type; the rest is nothing that the kernel may believe.
pub(super) fn only_type(lookup: &Ref, kind: Kind) -> abi::EntryOut {
    let ino = lookup.inode().ino;
    abi::EntryOut {
        nodeid: ino,
        generation: lookup.inode().incarnation.into(),
        attr: abi::Attr { ino, mode: type_bits(kind), ..abi::Attr::default() },
        ..abi::EntryOut::default()
    }
}

/// An entry of a listing with attributes that comes without them: no node tells the kernel so.
pub(super) fn only_name(ino: u64, kind: Kind) -> abi::EntryOut {
    let attr = abi::Attr { ino, mode: type_bits(kind), ..abi::Attr::default() };
    abi::EntryOut { attr, ..abi::EntryOut::default() }
}

fn believed(entry: Duration, attr: Duration) -> abi::EntryOut {
    abi::EntryOut {
        entry_valid: entry.as_secs(),
        entry_valid_nsec: entry.subsec_nanos(),
        attr_valid: attr.as_secs(),
        attr_valid_nsec: attr.subsec_nanos(),
        ..abi::EntryOut::default()
    }
}

/// Attributes, and how long they may be believed.
pub(super) fn attr_out(attr: &Attr, valid: Duration) -> abi::AttrOut {
    let valid = if attr.lasting { valid } else { Duration::ZERO };
    abi::AttrOut {
        attr_valid: valid.as_secs(),
        attr_valid_nsec: valid.subsec_nanos(),
        dummy: 0,
        attr: attributes(attr),
    }
}

/// A handle as the kernel is told it.
pub(super) fn open_out(opened: &Opened) -> abi::OpenOut {
    let flag = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    let passthrough = flag(opened.backing.is_some(), fopen::PASSTHROUGH);
    abi::OpenOut {
        fh: opened.handle,
        open_flags: flag(opened.keep_cache, fopen::KEEP_CACHE) | flag(opened.direct, fopen::DIRECT_IO) | passthrough,
        backing_id: opened.backing.unwrap_or_default(),
    }
}

/// What a SETATTR changes.
pub(super) fn change(asked: &SetattrIn) -> Change {
    let has = |flag| asked.valid & flag != 0;
    let time = |set, now, sec, nsec| match (has(set), has(now)) {
        (false, _) => SetTime::Keep,
        (true, true) => SetTime::Now,
        (true, false) => SetTime::To(Time { sec, nsec }),
    };
    Change {
        mode: has(fattr::MODE).then_some(asked.mode),
        uid: has(fattr::UID).then_some(asked.uid),
        gid: has(fattr::GID).then_some(asked.gid),
        size: has(fattr::SIZE).then_some(asked.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, asked.atime, asked.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, asked.mtime, asked.mtimensec),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_as_the_kernel_means_them() {
        let asked = SetattrIn { valid: fattr::MTIME, mtime: -2, mtimensec: 500_000_000, ..SetattrIn::default() };
        let change = change(&asked);
        assert_eq!(change.mtime, SetTime::To(Time { sec: -2, nsec: 500_000_000 }));
        assert_eq!(change.atime, SetTime::Keep);
    }

    #[test]
    fn types_are_those_of_directory_entries() {
        for (kind, expected) in [(Kind::File, libc::DT_REG), (Kind::Dir, libc::DT_DIR), (Kind::Socket, libc::DT_SOCK)] {
            assert_eq!(entry_type(kind), u32::from(expected));
        }
    }

    #[test]
    fn device_numbers_survive_the_protocol() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 70_000), (0xfff, 0xfffff)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(device_number(protocol_device(device)), device);
        }
    }
}
