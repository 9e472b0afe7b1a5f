//! The attributes of one entry, reached by an open directory and a single name, or of an open
//! file itself with an empty name. Symbolic links are never followed.
//!
//! Everything above sees the attributes that were kept of an entry, and has refused ones kept, by
//! these calls alone; how is told in `keep.rs`.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use smallvec::SmallVec;

use super::form::Form;
use super::private::is_private;
use super::stat::{RealId, Stat, Time};
use crate::{proc, sys};

/// A place whose attributes are read and changed.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) name: &'a [u8],
    pub(super) form: Form,
}

/// What becomes of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// It stays.
    Keep,
    /// The present.
    Now,
    /// This time.
    To(Time),
}

impl<'a> At<'a> {
    /// What a descriptor holds that was opened in a branch of this form.
    pub fn open(fd: BorrowedFd<'a>, form: Form) -> At<'a> {
        At { fd, name: b"", form }
    }

    /// How the branch is read.
    pub fn form(self) -> Form {
        self.form
    }

    /// The attributes.
    pub fn stat(self) -> Result<Stat, Errno> {
        self.shown(self.real_stat()?)
    }

    /// The attributes as they really are.
    pub(super) fn real_stat(self) -> Result<Stat, Errno> {
        Stat::at(self.fd, self.name)
    }

    /// Changes owner and group.
    pub fn chown(self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        match self.form.kept {
            Some(kept) if !kept.is_idle() => self.chown_or_keep(kept, uid, gid),
            _ => self.real_chown(uid, gid),
        }
    }

    pub(super) fn real_chown(self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        // to the kernel that means that there is no change, and is nobody's id; see chown(2)
        if [uid, gid].contains(&Some(u32::MAX)) {
            return Err(Errno::INVAL);
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        rustix::fs::chownat(self.fd, self.name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
    }

    /// Changes the mode of what is not a symbolic link.
    pub fn chmod(self, bits: u32) -> Result<(), Errno> {
        match self.form.kept {
            Some(kept) if !kept.is_idle() => self.chmod_or_keep(kept, bits & 0o7777),
            _ => self.real_chmod(bits),
        }
    }

    pub(super) fn real_chmod(self, bits: u32) -> Result<(), Errno> {
        let bits = bits & 0o7777;
        if sys::has_chmod_at() {
            return sys::chmod_at(self.fd, self.name, bits);
        }
        let mode = Mode::from_raw_mode(bits);
        if self.name.is_empty() {
            return match rustix::fs::fchmod(self.fd, mode) {
                // of O_PATH
                Err(Errno::BADF) => rustix::fs::chmod(proc_path(self.fd, b"").as_slice(), mode),
                changed => changed,
            };
        }
        // chmod(2) follows links, so the entry is held first
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = rustix::fs::openat(self.fd, self.name, flags, Mode::empty())?;
        rustix::fs::chmod(proc_path(entry.as_fd(), b"").as_slice(), mode)
    }

    /// Sets access and modification time.
    pub fn set_times(self, atime: SetTime, mtime: SetTime) -> Result<(), Errno> {
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        if !self.name.is_empty() {
            return rustix::fs::utimensat(self.fd, self.name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        match rustix::fs::utimensat(self.fd, c"", &times, AtFlags::EMPTY_PATH) {
            // before kernel 5.8
            Err(Errno::INVAL) => {
                rustix::fs::utimensat(CWD, proc_path(self.fd, b"").as_slice(), &times, AtFlags::empty())
            }
            set => set,
        }
    }

    /// Reads an extended attribute; nothing if there is none of that name.
    pub fn xattr(self, attribute: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        match self.form.kept {
            Some(kept) => self.xattr_or_kept(kept, attribute),
            None => self.real_xattr(attribute),
        }
    }

    pub(super) fn real_xattr(self, attribute: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let read = if self.is_reached_at() {
            grow(|buffer| sys::xattr_at(self.fd, self.name, attribute, buffer))
        } else {
            let path = proc_path(self.fd, self.name);
            grow(|buffer| match self.name {
                b"" => rustix::fs::getxattr(path.as_slice(), attribute, buffer),
                _ => rustix::fs::lgetxattr(path.as_slice(), attribute, buffer),
            })
        };
        match read {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the extended attributes, each with a zero byte after it.
    pub fn xattr_names(self) -> Result<Vec<u8>, Errno> {
        let names = self.real_xattr_names()?;
        Ok(if self.form.kept.is_some() { super::keep::shown_names(&names) } else { names })
    }

    fn real_xattr_names(self) -> Result<Vec<u8>, Errno> {
        if self.is_reached_at() {
            return grow(|buffer| sys::xattr_names_at(self.fd, self.name, buffer));
        }
        let path = proc_path(self.fd, self.name);
        grow(|buffer| match self.name {
            b"" => rustix::fs::listxattr(path.as_slice(), buffer),
            _ => rustix::fs::llistxattr(path.as_slice(), buffer),
        })
    }

    /// Sets an extended attribute.
    pub fn set_xattr(self, attribute: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
        match self.form.kept {
            Some(kept) => self.set_xattr_or_keep(kept, attribute, value, flags),
            None => self.real_set_xattr(attribute, value, flags),
        }
    }

    pub(super) fn real_set_xattr(self, attribute: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
        let path = proc_path(self.fd, self.name);
        match self.name {
            b"" => rustix::fs::setxattr(path.as_slice(), attribute, value, flags),
            _ => rustix::fs::lsetxattr(path.as_slice(), attribute, value, flags),
        }
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(self, attribute: &[u8]) -> Result<(), Errno> {
        match self.form.kept {
            Some(kept) => self.remove_xattr_or_kept(kept, attribute),
            None => self.real_remove_xattr(attribute),
        }
    }

    pub(super) fn real_remove_xattr(self, attribute: &[u8]) -> Result<(), Errno> {
        let path = proc_path(self.fd, self.name);
        match self.name {
            b"" => rustix::fs::removexattr(path.as_slice(), attribute),
            _ => rustix::fs::lremovexattr(path.as_slice(), attribute),
        }
    }

    /// Gives this place, where something was made just now, the owner, mode, extended attributes and
    /// times of another, in the order in which none undoes another: a change of owner strips set-id
    /// bits and capabilities. Attributes that are marks of a branch are not taken: they are about the
    /// place, and could hide or move something in another. Returns who it is.
    pub fn take_attributes(self, from: At<'_>, stat: &Stat) -> Result<RealId, Errno> {
        let made = self.stat()?;
        let owned = (made.uid, made.gid) == (stat.uid, stat.gid);
        if !owned {
            self.chown(Some(stat.uid), Some(stat.gid))?;
        }
        // a change of the owner may take more bits than it says
        if stat.kind != super::stat::Kind::Symlink && !(owned && made.mode == stat.mode) {
            self.chmod(stat.mode)?;
        }
        match from.xattr_names() {
            Ok(names) => {
                let overlay = self.form.overlay || from.form.overlay;
                let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                for attribute in names.filter(|name| !is_private(name, overlay)) {
                    if let Some(value) = from.xattr(attribute)? {
                        self.take_xattr(attribute, value)?;
                    }
                }
            }
            // a branch without extended attributes has none to give
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        self.set_times(SetTime::To(stat.atime), SetTime::To(stat.mtime))?;
        Ok(made.id)
    }
}

impl At<'_> {
    /// Whether it is what a descriptor holds, and no entry of it.
    pub(super) fn is_descriptor(self) -> bool {
        self.name.is_empty()
    }

    /// Whether its extended attributes can be asked for without a path.
    fn is_reached_at(self) -> bool {
        !self.name.is_empty() && sys::has_xattr_at()
    }

    /// A path to it.
    pub(super) fn path(self) -> Vec<u8> {
        proc_path(self.fd, self.name).into_vec()
    }
}

fn timespec(time: SetTime) -> Timespec {
    match time {
        SetTime::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::To(time) => time.into(),
    }
}

/// A path to what a descriptor holds, or to an entry of it, for the calls that exist only with
/// paths (extended attributes, chmod). The descriptor is held, so no component is walked twice.
pub(super) fn proc_path(fd: BorrowedFd<'_>, name: &[u8]) -> SmallVec<[u8; 64]> {
    let mut path = SmallVec::from_slice(proc::prefix().as_bytes());
    path.extend_from_slice(b"self/fd/");
    path.extend_from_slice(rustix::path::DecInt::from_fd(fd).as_bytes());
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Calls with a buffer that grows until the value fits (64 KiB is the kernel's limit).
fn grow(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 256];
    match call(&mut small) {
        Err(Errno::RANGE) => {}
        length => return Ok(small[..length?].to_vec()),
    }
    let mut buffer = vec![0; 4096];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 65_536 => buffer.resize(buffer.len() * 16, 0),
            Err(error) => return Err(error),
        }
    }
}
