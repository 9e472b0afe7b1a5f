//! Doing an operation below a directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{Act, Allocate, HANDLES, HandleUse, Node, Op, OpenHow, RenameHow, Sight, Stat, Times, Xattr, XattrHow};
use crate::tree::bytes;

/// A caller of one tree: its root, and the handles it holds.
#[derive(Debug)]
pub struct Caller {
    root: PathBuf,
    handles: [Option<OwnedFd>; HANDLES],
}

impl Caller {
    /// A caller of the tree at `root`.
    #[must_use]
    pub fn new(root: &Path) -> Caller {
        Caller { root: root.to_owned(), handles: [const { None }; HANDLES] }
    }

    /// Closes all handles.
    pub fn close_all(&mut self) {
        self.handles = [const { None }; HANDLES];
    }

    /// The handle of a number, or the next one that is open.
    fn handle(&self, number: usize) -> Option<&OwnedFd> {
        self.handles.iter().cycle().skip(number).take(HANDLES).flatten().next()
    }

    /// Whether a handle is that of a fifo, socket or device that has no name any more.
    #[must_use]
    pub fn holds_removed_special(&self, number: usize) -> bool {
        let stat = self.handle(number).and_then(|handle| rustix::fs::fstat(handle).ok());
        stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile && stat.st_nlink == 0)
    }

    /// Closes one handle, if it is open.
    pub fn close(&mut self, handle: usize) {
        self.handles[handle % HANDLES] = None;
    }

    /// Does an operation as the one who does it. [`Op::Remount`] and [`Op::Layer`] close the handles, the rest of
    /// them and [`Op::Flush`] is the test's.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn act(&mut self, act: &Act) -> Result<Sight, Errno> {
        let umask = rustix::process::umask(Mode::from_raw_mode(act.who.umask));
        // these are per thread, and leaving 0 drops the capabilities over files as well (capabilities(7))
        nix::unistd::setfsgid(act.who.id.into());
        nix::unistd::setfsuid(act.who.id.into());
        let outcome = self.op(&act.op);
        nix::unistd::setfsuid(0.into());
        nix::unistd::setfsgid(0.into());
        rustix::process::umask(umask);
        outcome
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn op(&mut self, op: &Op) -> Result<Sight, Errno> {
        match op {
            Op::Open { .. } | Op::Write { .. } | Op::Append { .. } | Op::Read { .. } => self.data(op),
            Op::Truncate { .. } | Op::Allocate { .. } | Op::Copy { .. } => self.data(op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. } => self.xattr(op),
            Op::Stat { .. } | Op::Chmod { .. } | Op::Chown { .. } | Op::Times { .. } => self.attribute(op),
            Op::Hold { handle, at, how } => {
                let place = handle % HANDLES;
                self.handles[place] = None;
                self.handles[place] = Some(open(&self.at(at), *how, 0o666)?);
                Ok(Sight::Done)
            }
            Op::Use { handle, what } => match self.handle(*handle) {
                Some(file) => use_handle(file, what),
                None => Err(Errno::BADF),
            },
            Op::Close { handle } => {
                self.close(*handle);
                Ok(Sight::Done)
            }
            Op::Remount | Op::Layer => {
                self.close_all();
                Ok(Sight::Done)
            }
            Op::Flush => Ok(Sight::Done),
            _ => self.name(op),
        }
    }

    /// Whether root is about to write through a handle to a file with set-id bits.
    #[must_use]
    pub fn writes_set_id_file(&self, act: &Act) -> bool {
        let Op::Use { handle, what: HandleUse::Write { .. } } = act.op else { return false };
        let stat = self.handle(handle).map(rustix::fs::fstat);
        act.who.id == 0 && stat.is_some_and(|stat| stat.is_ok_and(|stat| stat.st_mode & 0o6000 != 0))
    }

    fn data(&self, op: &Op) -> Result<Sight, Errno> {
        match op {
            Op::Open { at, how, mode, write } => {
                let file = open(&self.at(at), *how, *mode)?;
                if *write == 0 {
                    return Ok(Sight::Done);
                }
                let written = rustix::io::write(&file, &bytes(*write, *write))?;
                close(file).map(|()| Sight::Count(written))
            }
            Op::Write { at, offset, length } => {
                let file = open(&self.at(at), OpenHow::Write, 0)?;
                let written = rustix::io::pwrite(&file, &bytes(*length, *length), *offset)?;
                close(file).map(|()| Sight::Count(written))
            }
            Op::Append { at, length } => {
                let file = open(&self.at(at), OpenHow::Append, 0)?;
                let written = rustix::io::write(&file, &bytes(*length, *length))?;
                close(file).map(|()| Sight::Count(written))
            }
            Op::Read { at } => read_all(&open(&self.at(at), OpenHow::Read, 0)?),
            Op::Truncate { at, length } => {
                let length = i64::try_from(*length).unwrap_or(i64::MAX);
                // file systems do not agree on whether a truncation to the present length moves the time
                let present = stat(&self.at(at), true).is_ok_and(|stat| stat.size == length);
                let length = if present { length + 1 } else { length };
                nix::unistd::truncate(&self.at(at), length).map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
                Ok(Sight::Done)
            }
            Op::Allocate { at, manner, offset, length } => {
                let file = open(&self.at(at), OpenHow::ReadWrite, 0)?;
                rustix::fs::fallocate(file, manner.flags(), *offset, *length)?;
                Ok(Sight::Done)
            }
            Op::Copy { from, to, offset, length } => {
                let from = open(&self.at(from), OpenHow::Read, 0)?;
                let to = open(&self.at(to), OpenHow::ReadWrite, 0)?;
                copy(&from, &to, *offset, *length)
            }
            _ => unreachable!("not about data: {op:?}"),
        }
    }

    fn attribute(&self, op: &Op) -> Result<Sight, Errno> {
        match op {
            Op::Stat { at, follow } => stat(&self.at(at), *follow).map(Sight::Stat),
            Op::Chmod { at, mode } => {
                rustix::fs::chmodat(CWD, self.at(at), Mode::from_raw_mode(*mode), AtFlags::empty())?;
                Ok(Sight::Done)
            }
            Op::Chown { at, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(CWD, self.at(at), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(Sight::Done)
            }
            Op::Times { at, times, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                rustix::fs::utimensat(CWD, self.at(at), &times.timestamps(), flags)?;
                Ok(Sight::Done)
            }
            _ => unreachable!("not about attributes: {op:?}"),
        }
    }

    fn xattr(&self, op: &Op) -> Result<Sight, Errno> {
        match op {
            Op::SetXattr { at, name, value, length, how } => {
                let flags = match how {
                    XattrHow::Any => XattrFlags::empty(),
                    XattrHow::Create => XattrFlags::CREATE,
                    XattrHow::Replace => XattrFlags::REPLACE,
                };
                rustix::fs::lsetxattr(self.at(at), name.name(), &name.value(*value, *length), flags)?;
                Ok(Sight::Done)
            }
            Op::GetXattr { at, name } => {
                let mut value = vec![0; 4_096];
                let count = rustix::fs::lgetxattr(self.at(at), name.name(), &mut value[..])?;
                value.truncate(count);
                Ok(Sight::Bytes(value))
            }
            Op::RemoveXattr { at, name } => {
                rustix::fs::lremovexattr(self.at(at), name.name())?;
                Ok(Sight::Done)
            }
            _ => unreachable!("not about xattrs: {op:?}"),
        }
    }

    fn name(&self, op: &Op) -> Result<Sight, Errno> {
        match op {
            Op::Mkdir { at, mode } => rustix::fs::mkdirat(CWD, self.at(at), Mode::from_raw_mode(*mode))?,
            Op::Rmdir { at } => rustix::fs::unlinkat(CWD, self.at(at), AtFlags::REMOVEDIR)?,
            Op::Unlink { at } => rustix::fs::unlinkat(CWD, self.at(at), AtFlags::empty())?,
            Op::Symlink { at, target } => rustix::fs::symlinkat(target.as_str(), CWD, self.at(at))?,
            Op::Readlink { at } => {
                return Ok(Sight::Bytes(rustix::fs::readlinkat(CWD, self.at(at), Vec::new())?.into_bytes()));
            }
            Op::Link { from, to } => rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())?,
            Op::Rename { from, to, how } => {
                let flags = match how {
                    RenameHow::Plain => RenameFlags::empty(),
                    RenameHow::NoReplace => RenameFlags::NOREPLACE,
                    RenameHow::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?;
            }
            Op::Mknod { at, kind, mode } => {
                let (kind, device) = match kind {
                    Node::File => (FileType::RegularFile, 0),
                    Node::Fifo => (FileType::Fifo, 0),
                    Node::Socket => (FileType::Socket, 0),
                    Node::Null => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                };
                rustix::fs::mknodat(CWD, self.at(at), kind, Mode::from_raw_mode(*mode), device)?;
            }
            Op::List { at } => return list(&self.at(at)),
            Op::Sync { at } => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::fsync(rustix::fs::open(self.at(at), flags, Mode::empty())?)?;
            }
            _ => unreachable!("not about names: {op:?}"),
        }
        Ok(Sight::Done)
    }
}

impl OpenHow {
    fn flags(self) -> OFlags {
        // a fifo must not make the test wait
        OFlags::NONBLOCK
            | OFlags::CLOEXEC
            | match self {
                OpenHow::Read => OFlags::RDONLY,
                OpenHow::Write => OFlags::WRONLY,
                OpenHow::ReadWrite => OFlags::RDWR,
                OpenHow::Create => OFlags::RDWR | OFlags::CREATE,
                OpenHow::CreateExclusive => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
                OpenHow::CreateTruncate => OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC,
                OpenHow::WriteTruncate => OFlags::WRONLY | OFlags::TRUNC,
                OpenHow::ReadTruncate => OFlags::RDONLY | OFlags::TRUNC,
                OpenHow::Append => OFlags::WRONLY | OFlags::APPEND,
            }
    }
}

impl Allocate {
    fn flags(self) -> FallocateFlags {
        match self {
            Allocate::Plain => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
            Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
        }
    }
}

impl Times {
    fn timestamps(self) -> Timestamps {
        let old = |tv_sec| Timespec { tv_sec, tv_nsec: 987_654_321 };
        let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        match self {
            Times::Old(seconds) => Timestamps { last_access: old(seconds), last_modification: old(seconds) },
            Times::OldModification(seconds) => {
                Timestamps { last_access: special(rustix::fs::UTIME_OMIT), last_modification: old(seconds) }
            }
            Times::Now => Timestamps {
                last_access: special(rustix::fs::UTIME_NOW),
                last_modification: special(rustix::fs::UTIME_NOW),
            },
        }
    }
}

impl Xattr {
    fn name(self) -> &'static str {
        match self {
            Xattr::UserA => "user.a",
            Xattr::UserLook => "user.look",
            Xattr::Trusted => "trusted.t",
            Xattr::AccessAcl => "system.posix_acl_access",
            Xattr::DefaultAcl => "system.posix_acl_default",
        }
    }

    /// A value of the right form.
    fn value(self, value: u8, length: usize) -> Vec<u8> {
        match self {
            Xattr::UserA | Xattr::UserLook | Xattr::Trusted => vec![value; length],
            Xattr::AccessAcl | Xattr::DefaultAcl => acl(value),
        }
    }
}

/// A POSIX ACL with an entry for user 1000, in the form of `linux/posix_acl_xattr.h`.
fn acl(seed: u8) -> Vec<u8> {
    const UNDEFINED: u32 = u32::MAX;
    let bits = |shift: u8| u16::from(seed.rotate_right(shift.into()) & 7);
    let entries: [(u16, u16, u32); 5] = [
        (0x01, bits(0) | 4, UNDEFINED),
        (0x02, bits(1), 1_000),
        (0x04, bits(2), UNDEFINED),
        (0x10, bits(3), UNDEFINED),
        (0x20, bits(4), UNDEFINED),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Closes a file, which tells what became of writes that the kernel gathered.
fn close(file: OwnedFd) -> Result<(), Errno> {
    nix::unistd::close(file).map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

fn open(path: &Path, how: OpenHow, mode: u32) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, how.flags(), Mode::from_raw_mode(mode))
}

fn read_all(file: &OwnedFd) -> Result<Sight, Errno> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let count = rustix::io::read(file, &mut buffer[..])?;
        // /dev/null and a file that grows without end are not what is tested here
        if count == 0 || all.len() > 1 << 24 {
            return Ok(Sight::Bytes(all));
        }
        all.extend(&buffer[..count]);
    }
}

fn copy(from: &OwnedFd, to: &OwnedFd, offset: u64, length: usize) -> Result<Sight, Errno> {
    let (mut at, mut copied) = (offset, 0);
    while copied < length {
        match rustix::fs::copy_file_range(from, None, to, Some(&mut at), length - copied)? {
            0 => break,
            count => copied += count,
        }
    }
    Ok(Sight::Count(copied))
}

fn stat(path: &Path, follow: bool) -> Result<Stat, Errno> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    Ok(seen_stat(&rustix::fs::statat(CWD, path, flags)?))
}

fn seen_stat(stat: &rustix::fs::Stat) -> Stat {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let counts = kind != FileType::Directory;
    Stat {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: if counts { stat.st_size } else { 0 },
        nlink: if counts { stat.st_nlink } else { 0 },
    }
}

fn list(path: &Path) -> Result<Sight, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = BTreeMap::new();
    for entry in rustix::fs::Dir::new(rustix::fs::open(path, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(name.to_vec(), known_type(path, name, entry.file_type())?);
        }
    }
    Ok(Sight::Names(names))
}

/// The type of an entry where the listing does not tell it.
fn known_type(dir: &Path, name: &[u8], listed: FileType) -> Result<FileType, Errno> {
    match listed {
        FileType::Unknown => Ok(stat(&dir.join(OsStr::from_bytes(name)), false)?.kind),
        known => Ok(known),
    }
}

fn use_handle(file: &OwnedFd, what: &HandleUse) -> Result<Sight, Errno> {
    let file = file.as_fd();
    match what {
        HandleUse::Read { offset, length } => {
            let mut buffer = vec![0; *length];
            let count = rustix::io::pread(file, &mut buffer[..], *offset)?;
            buffer.truncate(count);
            return Ok(Sight::Bytes(buffer));
        }
        HandleUse::Write { offset, length } => {
            return Ok(Sight::Count(rustix::io::pwrite(file, &bytes(*length, *length), *offset)?));
        }
        HandleUse::Truncate { length } => rustix::fs::ftruncate(file, *length)?,
        HandleUse::Stat => return Ok(Sight::Stat(seen_stat(&rustix::fs::fstat(file)?))),
        HandleUse::Chmod { mode } => rustix::fs::fchmod(file, Mode::from_raw_mode(*mode))?,
        HandleUse::Sync => rustix::fs::fsync(file)?,
    }
    Ok(Sight::Done)
}
