//! The operations, each one call of the union and one reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::convert::{self, attributes, device_number, generation, kind_of_mode, set_time};
use super::ioctl::Ioctl;
use super::{Adapter, MAX_WRITE, Outcome, WANTED};
use crate::branch::stat::Kind;
use crate::fs::{Caller, Change, New, Progress, RenameFlags, Seen, Union};

fn reply_empty(result: Outcome<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn reply_written(result: Outcome<usize>, reply: ReplyWrite) {
    match result {
        Ok(bytes) => reply.written(u32::try_from(bytes).unwrap_or(u32::MAX)),
        Err(errno) => reply.error(errno),
    }
}

fn reply_xattr(result: Outcome<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

thread_local! {
    /// What a read request is answered from.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut features = vec![format!("protocol={}", config.kernel_abi())];
        let revalidates = self.union().revalidates();
        let extra = if revalidates {
            (InitFlags::FUSE_AUTO_INVAL_DATA, "auto_inval_data")
        } else {
            (InitFlags::FUSE_CACHE_SYMLINKS, "cache_symlinks")
        };
        for (flag, name) in WANTED.into_iter().chain([extra]) {
            if config.add_capabilities(flag).is_ok() {
                features.push(name.to_owned());
            }
        }
        if config.set_max_write(MAX_WRITE).is_err() {
            tracing::debug!("the kernel keeps its size of write requests");
        }
        if config.set_max_background(64).is_err() {
            tracing::debug!("the kernel keeps its number of background requests");
        }
        *self.features.lock() = features;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.shared.run(|union| union.lookup(parent.0, name.as_bytes())) {
            Ok(Some(entry)) => self.shared.reply_entry(Ok(entry), reply),
            // the kernel remembers that there is nothing
            Ok(None) => reply.entry(&self.shared.ttl, &convert::no_attributes(), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.union().forget(ino.0, lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.run(|union| union.getattr(ino.0)) {
            Ok(attr) => reply.attr(&self.shared.ttl, &attributes(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size, atime: set_time(atime), mtime: set_time(mtime) };
        let caller = caller(request);
        self.dispatch(self.union().change_copies_up(ino.0), ino, move |shared| {
            match shared.run(|union| union.setattr(ino.0, change, caller)) {
                Ok(attr) => reply.attr(&shared.ttl, &attributes(&attr)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.shared.run(|union| union.read_link(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = self.shared.run(|union| {
            let kind = kind_of_mode(mode)?;
            let new = match kind {
                Kind::File => New::File,
                kind => New::Node(kind, device_number(rdev)),
            };
            union.make(parent.0, name.as_bytes(), new, mode, umask, caller(request))
        });
        self.shared.reply_entry(made, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = |union: &Union| union.make(parent.0, name.as_bytes(), New::Dir, mode, umask, caller(request));
        self.shared.reply_entry(self.shared.run(made), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = New::Symlink(target.as_os_str().as_bytes());
        let made = |union: &Union| union.make(parent.0, name.as_bytes(), new, 0o777, 0, caller(request));
        self.shared.reply_entry(self.shared.run(made), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.shared.run(|union| union.unlink(parent.0, name.as_bytes())), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.shared.run(|union| union.rmdir(parent.0, name.as_bytes())), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = match flags.bits() {
            0 => RenameFlags::Replace,
            libc::RENAME_NOREPLACE => RenameFlags::NoReplace,
            libc::RENAME_EXCHANGE => RenameFlags::Exchange,
            libc::RENAME_WHITEOUT => RenameFlags::Whiteout,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (old, new) = ((parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()));
        match self.shared.run(|union| union.rename(old, new, flags, false)) {
            Ok(Progress::Done) => reply.ok(),
            Ok(Progress::NeedsCopy) => {
                let (old, new) = (old.1.to_vec(), new.1.to_vec());
                self.dispatch(true, parent, move |shared| {
                    let (old, new) = ((parent.0, &*old), (new_parent.0, &*new));
                    let renamed = shared.run(|union| union.rename(old, new, flags, true));
                    reply_empty(renamed.map(|_| ()), reply);
                });
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.dispatch(self.union().change_copies_up(ino.0), ino, move |shared| {
            shared.reply_entry(shared.run(|union| union.link(ino.0, parent.0, &name)), reply);
        });
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.shared.run(|union| union.open_handle(ino.0, flags.0 as u32)) {
            Ok(opened) => {
                let keep = if opened.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                reply.opened(FileHandle(opened.handle), keep);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self
            .shared
            .run(|union| union.create(parent.0, name.as_bytes(), mode, umask, flags as u32, caller(request)));
        match made {
            Ok((entry, opened)) => {
                let generation = generation(&entry.lookup);
                entry.lookup.hand_over();
                let attr = attributes(&entry.attr);
                let keep = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&self.shared.ttl, &attr, generation, FileHandle(opened.handle), keep);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.shared.run(|union| union.read(handle.0, offset, &mut buffer[..size])) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let strip = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| caller(request));
        if !self.union().write_copies_up(handle.0) {
            return reply_written(self.shared.run(|union| union.write(handle.0, offset, data, strip)), reply);
        }
        let data = data.to_vec();
        self.dispatch(true, ino, move |shared| {
            reply_written(shared.run(|union| union.write(handle.0, offset, &data, strip)), reply);
        });
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // every write was answered when it was done, so the kernel need not ask at each close
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.union().release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.dispatch(true, ino, move |shared| reply_empty(shared.run(|union| union.sync(handle.0, data_only)), reply));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.shared.run(|union| union.open_dir(ino.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let read = self.shared.run(|union| {
            union.read_dir(handle.0, offset, |entry| {
                let kind = convert::file_type(entry.kind);
                reply.add(INodeNo(entry.ino), entry.next, kind, OsStr::from_bytes(entry.name))
            })
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let read = self.shared.run(|union| {
            union.read_dir_plus(handle.0, offset, |name, seen, next| {
                let (attr, ttl, lookup) = match seen {
                    Seen::Directory(attr) => (attributes(&attr), self.shared.ttl, None),
                    Seen::Entry(entry) => (attributes(&entry.attr), self.shared.ttl, Some(entry.lookup)),
                    Seen::Unreadable(lookup, kind) => {
                        (convert::only_type(lookup.inode().ino, kind), Duration::ZERO, Some(lookup))
                    }
                };
                let generation = lookup.as_ref().map_or(Generation(0), generation);
                let full = reply.add(attr.ino, next, OsStr::from_bytes(name), &ttl, &attr, generation);
                if let Some(lookup) = lookup
                    && !full
                {
                    lookup.hand_over();
                }
                full
            })
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.union().release_dir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.dispatch(true, ino, move |shared| reply_empty(shared.run(|union| union.sync_dir(handle.0)), reply));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.shared.run(Union::statfs) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                u32::try_from(s.f_bsize).unwrap_or(4096),
                crate::union::name::NAME_MAX as u32,
                u32::try_from(s.f_frsize).unwrap_or(4096),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value, caller) = (name.as_bytes().to_vec(), value.to_vec(), caller(request));
        self.dispatch(self.union().change_copies_up(ino.0), ino, move |shared| {
            reply_empty(shared.run(|union| union.set_xattr(ino.0, &name, &value, flags as u32, caller)), reply);
        });
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.shared.run(|union| union.get_xattr(ino.0, name.as_bytes())), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(self.shared.run(|union| union.list_xattr(ino.0)), size, reply);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.dispatch(self.union().change_copies_up(ino.0), ino, move |shared| {
            reply_empty(shared.run(|union| union.remove_xattr(ino.0, &name)), reply);
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(request);
        self.dispatch(self.union().write_copies_up(handle.0), ino, move |shared| {
            reply_empty(shared.run(|union| union.fallocate(handle.0, mode as u32, offset, length, caller)), reply);
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let Some(asked) = Ioctl::read(command, data) else { return reply.error(fuser::Errno::ENOTTY) };
        let long = asked.changes() && self.union().change_copies_up(ino.0);
        self.dispatch(long, ino, move |shared| match shared.run(|union| asked.run(union, ino.0)) {
            Ok(bytes) => reply.ioctl(0, &bytes[..bytes.len().min(out_size as usize)]),
            Err(errno) => reply.error(errno),
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.shared.run(|union| union.seek(handle.0, offset, whence as u32)) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _from_ino: INodeNo,
        from: FileHandle,
        from_at: u64,
        to_ino: INodeNo,
        to: FileHandle,
        to_at: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (caller, from, to) = (caller(request), (from.0, from_at), (to.0, to_at));
        let long = self.union().copies_much(from.0, from.1, to.0, length);
        self.dispatch(long, to_ino, move |shared| {
            reply_written(shared.run(|union| union.copy_range(from, to, length, caller)), reply);
        });
    }
}
