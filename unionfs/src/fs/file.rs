//! Open files: open, read, write and what else works on a handle.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::copy_data::Keep;
use super::names::is_ours;
use super::{Caller, Entry, Union};
use crate::branch::at::SetTime;
use crate::branch::dir::open_again;
use crate::branch::stat::{Kind, RealId, Stat};
use crate::handle::{OpenFile, Real};
use crate::inode::{Inode, Place};

/// Whether a caller may keep set-id bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Privilege {
    /// The kernel found out that it may not.
    None,
    /// That is ours to find out.
    Asked,
}

/// Who waits for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrittenBy {
    /// A caller, who is told how much was written.
    Caller,
    /// The kernel's page cache, which does not look at how much: it is all of it, or an error.
    Cache,
}

/// The handle of a file that was opened without a request.
pub const NO_HANDLE: u64 = 0;

/// An opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// The number of the handle.
    pub handle: u64,
    /// Whether the kernel may keep the pages that it has of the file.
    pub keep_cache: bool,
    /// The number of the file that the kernel reads and writes itself, if it is to.
    pub backing: Option<i32>,
    /// Whether single reads and writes are to come to us even so (FOPEN_DIRECT_IO).
    pub direct: bool,
}

impl Union {
    /// Opens a regular file. `flags` are those of open(2); a truncation comes as a change of the
    /// size after it.
    ///
    /// A file of a branch that is not written is copied up at the first write (rule 27), or by
    /// the truncation, which copies only what survives. Whether it can be is known now.
    ///
    /// # Errors
    /// EROFS, ESTALE if the file was replaced behind the mount's back, ENFILE if too many files are open,
    /// and those of open(2).
    pub fn open_handle(&self, ino: u64, flags: u32) -> Result<Opened, Errno> {
        let inode = self.inodes.get(ino)?;
        let writes = writes(OFlags::from_bits_retain(flags));
        if writes {
            self.check_changeable(&inode)?;
        }
        let known = inode.open_file().is_some();
        if !known {
            self.handles.check_room()?;
        }
        let in_place = self.in_place(&inode);
        let open = match self.open_file(&inode, writes && in_place) {
            // a truncation may follow, which needs nothing of the content
            Err(Errno::ACCESS) if writes && !in_place => self.open_unread(&inode)?,
            open => open?,
        };
        if writes && (known || open.real().append_only || !in_place) {
            check_open(&open, OFlags::from_bits_retain(flags))?;
        }
        self.add_handle(open, OFlags::from_bits_retain(flags), None)
    }

    /// A handle on a file that was just made.
    pub(super) fn open_made(&self, entry: &Entry, real: Real, flags: u32) -> Result<Opened, Errno> {
        let inode = entry.lookup.inode();
        let made = self.handles.open(Arc::clone(inode), real);
        let open = inode.with(|state| match state.open.upgrade() {
            // somebody found the name and opened it already
            Some(open) => open,
            None => {
                state.open = Arc::downgrade(&made);
                Arc::clone(&made)
            }
        });
        self.add_handle(open, OFlags::from_bits_retain(flags), Some(&entry.attr.stat))
    }

    /// The open file of an inode, opened if no handle is on it yet.
    pub(super) fn open_file(&self, inode: &Arc<Inode>, write: bool) -> Result<Arc<OpenFile>, Errno> {
        for _ in 0..4 {
            if let Some(open) = inode.open_file() {
                if write && !open.real().writable {
                    self.make_writable(&open)?;
                }
                open.check_readable()?;
                return Ok(open);
            }
            let (real, id) = match inode.place() {
                Place::Gone(_) => self.open_replaced(inode)?,
                _ => match self.open_real(inode, write) {
                    // it lost its last name in this moment
                    Err(Errno::STALE) if matches!(inode.place(), Place::Gone(_)) => continue,
                    opened => opened?,
                },
            };
            let opened = self.handles.open(Arc::clone(inode), real);
            inode.with(|state| {
                if state.real == id && state.open.strong_count() == 0 {
                    state.open = Arc::downgrade(&opened);
                }
            });
            // the next turn finds it, or what somebody else opened meanwhile
            if inode.open_file().is_some_and(|open| Arc::ptr_eq(&open, &opened)) && (!write || opened.real().writable) {
                return Ok(opened);
            }
        }
        Err(Errno::STALE)
    }

    /// Opens the real file where it lies, and sees that it still is the one that was looked up.
    fn open_real(&self, inode: &Arc<Inode>, write: bool) -> Result<(Real, RealId), Errno> {
        if inode.kind != Kind::File {
            return Err(Errno::OPNOTSUPP);
        }
        let branch = match inode.place() {
            Place::Entry(branch) | Place::Record(branch) => branch,
            Place::Gone(_) | Place::Stack(_) => return Err(Errno::STALE),
        };
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let (file, id, append_only) = self.by_name(inode, |dir, name| {
            let ((file, Stat { id, .. }), append_only) = match dir.open_seen(name, flags) {
                Err(Errno::PERM) if write => (dir.open_seen(name, flags | OFlags::APPEND)?, true),
                opened => (opened?, false),
            };
            Ok(is_ours(inode, id).then_some((file, id, append_only)))
        })?;
        let form = self.form(Some(branch));
        Ok((Real { file, writable: write, append_only, branch: Some(branch), form }, id))
    }

    /// Holds a file of a read-only branch that we may not read, to be written anew.
    fn open_unread(&self, inode: &Arc<Inode>) -> Result<Arc<OpenFile>, Errno> {
        let Place::Entry(branch) = inode.place() else { return Err(Errno::ACCESS) };
        let (file, form) = self.by_name(inode, |dir, name| {
            let file = dir.hold(name)?;
            Ok(is_ours(inode, Stat::of_file(&file)?.id).then_some((file, dir.form())))
        })?;
        let real = Real { file, writable: false, append_only: false, branch: Some(branch), form };
        let held = self.handles.open_unread(Arc::clone(inode), real);
        Ok(inode.with(|state| match state.open.upgrade() {
            Some(open) => open,
            None => {
                state.open = Arc::downgrade(&held);
                held
            }
        }))
    }

    /// Opens a file that a rename replaced a moment ago, for reading.
    fn open_replaced(&self, inode: &Inode) -> Result<(Real, RealId), Errno> {
        let (held, branch) = self.held.get(inode.ino).ok_or(Errno::STALE)?;
        let file = open_again(held.as_fd(), OFlags::RDONLY | OFlags::NOCTTY)?;
        let id = Stat::of_file(&file)?.id;
        Ok((
            Real { file, writable: false, append_only: false, branch: Some(branch), form: self.form(Some(branch)) },
            id,
        ))
    }

    /// Makes the real file of an open inode one that may be written: copies it up, or opens it
    /// again where it lies.
    fn make_writable(&self, open: &Arc<OpenFile>) -> Result<(), Errno> {
        self.make_changeable(&open.inode, Keep::All)?;
        let real = open.real();
        if real.writable {
            return Ok(());
        }
        let again = match self.open_real(&open.inode, true) {
            Ok((again, _)) => again,
            // without a name; the descriptor itself leads to it
            Err(Errno::STALE) => {
                let file = open_again(real.file.as_fd(), OFlags::RDWR)?;
                Real { file, writable: true, append_only: false, branch: real.branch, form: real.form }
            }
            Err(errno) => return Err(errno),
        };
        open.switch(again);
        Ok(())
    }

    fn writable_real(&self, handle: u64) -> Result<(Arc<OpenFile>, Arc<Real>), Errno> {
        if handle == NO_HANDLE {
            // somebody made the mount of a union that nobody writes one that may be written
            return Err(Errno::ROFS);
        }
        let handle = self.handles.file(handle)?;
        if !handle.writes {
            return Err(Errno::BADF);
        }
        let open = Arc::clone(&handle.open);
        if !open.real().writable {
            self.make_writable(&open)?;
        }
        let real = open.real();
        real.at().drop_capability()?;
        Ok((open, real))
    }

    /// Whether a write to a handle would have to copy the file up first, which takes long.
    pub fn write_copies_up(&self, handle: u64) -> bool {
        let handle = self.handles.file(handle);
        handle.is_ok_and(|handle| !handle.open.real().writable && self.copies_long(&handle.open.inode))
    }

    /// Whether copying a range between handles would take long.
    pub fn copies_much(&self, from: u64, from_at: u64, to: u64, length: u64) -> bool {
        const MUCH: u64 = 1 << 20;
        let size = self.handles.file(from).and_then(|handle| Stat::of_file(&handle.open.real().file));
        let rest = size.map_or(u64::MAX, |stat| stat.size.saturating_sub(from_at));
        rest.min(length) > MUCH || self.write_copies_up(to)
    }

    /// Whether changing an inode would have to copy it up first, which takes long.
    pub fn change_copies_up(&self, ino: u64) -> bool {
        self.inodes.get(ino).is_ok_and(|inode| self.copies_long(&inode))
    }

    /// What is open under a handle of an inode; without a handle, as long as there is room for it.
    fn file_of(&self, (ino, handle): (u64, u64)) -> Result<Arc<OpenFile>, Errno> {
        if handle != NO_HANDLE {
            return Ok(Arc::clone(&self.handles.file(handle)?.open));
        }
        match self.unasked.get(ino) {
            Some(open) => Ok(open),
            None => {
                let open = self.open_file(&self.inodes.get(ino)?, false)?;
                self.unasked.keep(ino, &open);
                Ok(open)
            }
        }
    }

    /// Reads at an offset; fewer bytes than asked for at the end of the file.
    ///
    /// # Errors
    /// EBADF, and those of pread(2).
    pub fn read(&self, file: (u64, u64), offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let open = self.file_of(file)?;
        open.check_readable()?;
        let real = open.real();
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&real.file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Writes at an offset, all of it or as much as there is room for, see [`WrittenBy`]. `strip` is
    /// the caller if the write takes set-id bits away.
    ///
    /// # Errors
    /// EBADF, ENOSPC, those of pwrite(2) and of a copy-up.
    pub fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        by: WrittenBy,
        strip: Option<Caller>,
    ) -> Result<usize, Errno> {
        let (open, real) = self.writable_real(handle)?;
        if let Some(caller) = strip {
            self.strip_set_id(&open.inode, &real, caller, Privilege::None)?;
        }
        if real.append_only {
            return append(&real, offset, data, by);
        }
        self.in_its_time(&open, &real, || put(&real, offset, data, by))
    }

    /// Changes content. Where the kernel gathers writes, the time of a change is its to tell, if it is
    /// not told already; so the real file keeps its own.
    pub(super) fn in_its_time<T>(
        &self,
        open: &OpenFile,
        real: &Real,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if !self.gathers_writes() {
            return change();
        }
        open.by_turns(|| {
            let before = Stat::of_file(&real.file)?.mtime;
            let done = change()?;
            match real.at().set_times(SetTime::Keep, SetTime::To(before)) {
                // somebody else's
                Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(done),
                Err(errno) => Err(errno),
            }
        })
    }

    /// Ends a handle.
    pub fn release(&self, handle: u64) {
        self.handles.remove_file(handle);
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// Those of fallocate(2) and of a copy-up.
    pub fn fallocate(&self, handle: u64, mode: u32, offset: u64, length: u64, caller: Caller) -> Result<(), Errno> {
        let (open, real) = self.writable_real(handle)?;
        self.strip_set_id(&open.inode, &real, caller, Privilege::Asked)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        self.in_its_time(&open, &real, || rustix::fs::fallocate(&real.file, mode, offset, length))
    }

    /// lseek(2) for data and holes, of what is in the real file: see [`Union::may_have_gathered`].
    ///
    /// # Errors
    /// ENXIO past the end, EINVAL for another `whence`.
    pub fn seek(&self, file: (u64, u64), offset: i64, whence: u32) -> Result<u64, Errno> {
        let open = self.file_of(file)?;
        open.check_readable()?;
        let real = open.real();
        let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(at),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&real.file, to)
    }

    /// copy_file_range(2) between two handles, each with an offset.
    ///
    /// # Errors
    /// Those of copy_file_range(2); EXDEV lets the kernel copy by reading and writing.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), length: u64, caller: Caller) -> Result<usize, Errno> {
        let ((from, from_at), (to, to_at)) = (from, to);
        // the target first: the source may be the same file
        let (open, target) = self.writable_real(to)?;
        self.strip_set_id(&open.inode, &target, caller, Privilege::Asked)?;
        let from = self.handles.file(from)?;
        from.open.check_readable()?;
        let source = from.open.real();
        let (mut read_at, mut write_at) = (from_at, to_at);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        self.in_its_time(&open, &target, || {
            match rustix::fs::copy_file_range(
                &source.file,
                Some(&mut read_at),
                &target.file,
                Some(&mut write_at),
                length,
            ) {
                // an older kernel, or a filter around us that does not know the call
                Err(Errno::NOSYS | Errno::PERM) => Err(Errno::XDEV),
                copied => copied,
            }
        })
    }

    /// A change of the content takes set-id bits away, unless the caller may keep them (rule 35).
    /// The kernel leaves that to us (FUSE_HANDLE_KILLPRIV_V2); capabilities go by the change of
    /// the real file itself.
    pub(super) fn strip_set_id(
        &self,
        inode: &Inode,
        real: &Real,
        caller: Caller,
        privilege: Privilege,
    ) -> Result<(), Errno> {
        let stat = real.at().stat()?;
        let keeps = || privilege == Privilege::Asked && caller.may_keep_set_id();
        if stat.mode & 0o6000 == 0 || keeps() {
            return Ok(());
        }
        // see setattr_should_drop_sgid in the kernel: without the execute bit for the group, the
        // bit means something to the group's members only
        let setgid = stat.mode & 0o2000 != 0 && (stat.mode & 0o10 != 0 || !self.is_in_group(caller, stat.gid));
        let gone = stat.mode & (0o4000 | if setgid { 0o2000 } else { 0 });
        if gone != 0 {
            real.at().chmod(stat.mode & !gone)?;
            // the kernel asks for the mode no more, and an old one would still give rights
            self.tell_stale(inode.ino);
        }
        Ok(())
    }
}

/// Writes all of it, or for a caller as much as there is room for.
fn put(real: &Real, offset: u64, data: &[u8], by: WrittenBy) -> Result<usize, Errno> {
    let mut done = 0;
    while done < data.len() {
        let written = match rustix::io::pwrite(&real.file, &data[done..], offset + done as u64) {
            Ok(0) => Err(Errno::NOSPC),
            Err(Errno::INTR) => continue,
            written => written,
        };
        match written {
            Ok(written) => done += written,
            Err(errno) if done == 0 || by == WrittenBy::Cache => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Writes to the end of what is append-only. Where the kernel gathers writes they are whole pages, which
/// begin with what is there.
fn append(real: &Real, offset: u64, data: &[u8], by: WrittenBy) -> Result<usize, Errno> {
    let size = Stat::of_file(&real.file)?.size;
    let known = size.checked_sub(offset).and_then(|known| usize::try_from(known).ok()).ok_or(Errno::PERM)?;
    let known = known.min(data.len());
    let mut there = vec![0; known];
    let same = rustix::io::pread(&real.file, &mut there[..], offset)? == known && there == data[..known];
    let done = put(real, size, &data[known..], by)?;
    // what was appended is not lost with what must not be overwritten
    if same { Ok(known + done) } else { Err(Errno::PERM) }
}

/// Refuses to open for writing what its flags protect; where the file was opened anew for that, the
/// kernel has.
fn check_open(open: &OpenFile, flags: OFlags) -> Result<(), Errno> {
    let guard = Stat::of_file(&open.real().file)?.guard;
    if guard.immutable || guard.append_only && !flags.contains(OFlags::APPEND) { Err(Errno::PERM) } else { Ok(()) }
}

pub(super) fn writes(flags: OFlags) -> bool {
    matches!(flags & OFlags::RWMODE, OFlags::WRONLY | OFlags::RDWR)
}
