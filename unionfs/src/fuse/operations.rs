//! The operations, each one call of the union and one reply.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{self, InHeader, fopen, op};
use super::convert::{self, attr_out, device_number, kind_of_mode};
use super::counts::Counts;
use super::device::{Answered, Reply};
use super::handshake::OpenDir;
use super::ioctl::Ioctl;
use super::listing::Listing;
use super::message::{Arguments, split};
use super::{Adapter, Shared};
use crate::branch::stat::Kind;
use crate::fs::NO_HANDLE;
use crate::fs::{Entry, New, Progress, RenameFlags, Seen, Union, WrittenBy};
use crate::sys::pages::Pages;

/// A value that xattr requests ask for: its size first, where there is no room for it.
fn reply_xattr(result: Result<Vec<u8>, Errno>, room: u32, reply: Reply) -> Answered {
    match result {
        Ok(value) if room == 0 => {
            let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
            reply.message(Ok(abi::GetxattrOut { size, padding: 0 }))
        }
        Ok(value) if value.len() > room as usize => reply.error(Errno::RANGE),
        value => reply.bytes(value),
    }
}

fn reply_written(result: Result<usize, Errno>, counts: &Arc<Counts>, reply: Reply) -> Answered {
    if let Ok(bytes) = result {
        counts.wrote(bytes);
    }
    let written = |bytes| abi::WriteOut { size: u32::try_from(bytes).unwrap_or(u32::MAX), padding: 0 };
    reply.message(result.map(written))
}

impl Shared {
    fn reply_entry(&self, result: Result<Entry, Errno>, reply: Reply) -> Answered {
        let told = result.map(|entry| {
            let told = convert::entry(&entry.lookup, &entry.attr, self.valid);
            // handed over first: the kernel may forget it before this thread goes on
            entry.lookup.hand_over();
            told
        });
        reply.message(told)
    }
}

impl Adapter {
    /// Serves one request. What a read or a listing is answered with is put into `room` first.
    pub(super) fn serve(&self, request: &[u8], room: &mut Pages) {
        let Some((head, arguments)) = split(request) else {
            return tracing::error!(length = request.len(), "a request that is too short");
        };
        let reply = Reply::counted(&self.device, head.unique, head.opcode);
        if self.begin(&head, arguments, room, reply).is_none() {
            tracing::error!(head.opcode, "a request that is too short; it was answered with EIO");
        }
    }

    /// Nothing if the request was too short; the reply is EIO then.
    fn begin(&self, head: &InHeader, arguments: Arguments<'_>, room: &mut Pages, reply: Reply) -> Option<Answered> {
        match head.opcode {
            newer if !self.cap.knows(newer) => Some(reply.error(Errno::NOSYS)),
            op::LOOKUP => self.lookup(head, arguments, reply),
            op::FORGET | op::BATCH_FORGET => self.forget(head, arguments, reply),
            op::GETATTR => self.getattr(head, reply),
            op::SETATTR => self.setattr(head, arguments, reply),
            op::READLINK => self.read_link(head, reply),
            op::MKNOD | op::MKDIR | op::SYMLINK => self.make(head, arguments, reply),
            op::UNLINK | op::RMDIR => self.remove(head, arguments, reply),
            op::RENAME | op::RENAME2 => self.rename(head, arguments, reply),
            op::LINK => self.link(head, arguments, reply),
            op::OPEN => self.open(head, arguments, reply),
            op::CREATE => self.create(head, arguments, reply),
            op::READ => self.read(head, arguments, room, reply),
            op::WRITE => self.write(head, arguments, reply),
            op::RELEASE => self.release(head, arguments, reply),
            op::FSYNC | op::FSYNCDIR => self.sync(head, arguments, reply),
            op::OPENDIR => Some(self.open_dir(reply)),
            op::READDIR => self.read_dir(head, arguments, room, reply),
            op::READDIRPLUS => self.read_dir_plus(head, arguments, room, reply),
            op::STATFS => self.statfs(reply),
            op::SETXATTR => self.set_xattr(head, arguments, reply),
            op::GETXATTR | op::LISTXATTR => self.get_xattr(head, arguments, reply),
            op::REMOVEXATTR => self.remove_xattr(head, arguments, reply),
            op::FALLOCATE => self.fallocate(head, arguments, reply),
            op::IOCTL => self.ioctl(head, arguments, reply),
            op::LSEEK => self.seek(head, arguments, reply),
            op::COPY_FILE_RANGE => self.copy_range(head, arguments, reply),
            op::RELEASEDIR | op::DESTROY => Some(reply.parts(&[])),
            op::INTERRUPT => self.interrupt(arguments, reply),
            // the kernel does by itself what it can, and asks no more: at each close, for instance,
            // for every write was answered when it was done
            _ => Some(reply.error(Errno::NOSYS)),
        }
    }

    /// A signal came for who waits for a request. No reply is waited for.
    fn interrupt(&self, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::InterruptIn>()?;
        if let Some(waiter) = self.waiters.lock().get(&asked.unique) {
            waiter.signal();
        }
        Some(reply.none())
    }

    fn lookup(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let name = arguments.name()?;
        Some(match self.shared.look(|union| union.lookup(head.nodeid, name)) {
            Ok(Some(entry)) => {
                if entry.attr.stat.kind != Kind::Dir {
                    self.walkers.looks_up(head.pid, head.nodeid);
                }
                self.shared.reply_entry(Ok(entry), reply)
            }
            // the kernel remembers that there is nothing
            found => reply.message(found.map(|_| convert::no_entry(self.shared.valid))),
        })
    }

    fn forget(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let unanswered = reply.none();
        if head.opcode == op::FORGET {
            self.union().forget(head.nodeid, arguments.take::<abi::ForgetIn>()?.nlookup);
            return Some(unanswered);
        }
        for _ in 0..arguments.take::<abi::BatchForgetIn>()?.count {
            let one = arguments.take::<abi::ForgetOne>()?;
            self.union().forget(one.nodeid, one.nlookup);
        }
        Some(unanswered)
    }

    fn getattr(&self, head: &InHeader, reply: Reply) -> Option<Answered> {
        let attr = self.shared.look(|union| union.getattr(head.nodeid));
        Some(reply.message(attr.map(|attr| attr_out(&attr, self.shared.valid))))
    }

    fn setattr(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let change = convert::change(&arguments.take()?);
        let (ino, caller) = (head.nodeid, head.caller());
        Some(self.dispatch(self.union().change_copies_up(ino), ino, head, move |shared| {
            let attr = shared.run(|union| union.setattr(ino, change, caller));
            reply.message(attr.map(|attr| attr_out(&attr, shared.valid)))
        }))
    }

    fn read_link(&self, head: &InHeader, reply: Reply) -> Option<Answered> {
        Some(reply.bytes(self.shared.look(|union| union.read_link(head.nodeid))))
    }

    fn make(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let made = match head.opcode {
            op::MKNOD => {
                let asked = arguments.take::<abi::MknodIn>()?;
                let name = arguments.name()?;
                self.shared.run(|union| {
                    let new = match kind_of_mode(asked.mode)? {
                        Kind::File => New::File,
                        kind => New::Node(kind, device_number(asked.rdev)),
                    };
                    union.make(head.nodeid, name, new, asked.mode, asked.umask, head.caller())
                })
            }
            op::MKDIR => {
                let asked = arguments.take::<abi::MkdirIn>()?;
                let name = arguments.name()?;
                let made =
                    |union: &Union| union.make(head.nodeid, name, New::Dir, asked.mode, asked.umask, head.caller());
                self.shared.run(made)
            }
            _ => {
                let (name, target) = (arguments.name()?, arguments.name()?);
                let new = New::Symlink(target);
                self.shared.run(|union| union.make(head.nodeid, name, new, 0o777, 0, head.caller()))
            }
        };
        Some(self.shared.reply_entry(made, reply))
    }

    fn remove(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let (parent, name) = (head.nodeid, arguments.name()?);
        if head.opcode == op::RMDIR {
            return Some(reply.empty(self.shared.run(|union| union.rmdir(parent, name))));
        }
        Some(match self.shared.run(|union| union.unlink(parent, name, false)) {
            Ok(Progress::Done) => reply.parts(&[]),
            Ok(Progress::TakesLong) => {
                let name = name.to_vec();
                self.dispatch(true, parent, head, move |shared| {
                    reply.empty(shared.run(|union| union.unlink(parent, &name, true)).map(drop))
                })
            }
            Err(errno) => reply.error(errno),
        })
    }

    fn rename(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let (to, flags) = match head.opcode {
            op::RENAME => (arguments.take::<abi::RenameIn>()?.newdir, 0),
            _ => {
                let asked = arguments.take::<abi::Rename2In>()?;
                (asked.newdir, asked.flags)
            }
        };
        let flags = match flags {
            0 => RenameFlags::Replace,
            libc::RENAME_NOREPLACE => RenameFlags::NoReplace,
            libc::RENAME_EXCHANGE => RenameFlags::Exchange,
            libc::RENAME_WHITEOUT => RenameFlags::Whiteout,
            _ => return Some(reply.error(Errno::INVAL)),
        };
        let (from, old, new) = (head.nodeid, arguments.name()?, arguments.name()?);
        Some(match self.shared.run(|union| union.rename((from, old), (to, new), flags, false)) {
            Ok(Progress::Done) => reply.parts(&[]),
            Ok(Progress::TakesLong) => {
                let (old, new) = (old.to_vec(), new.to_vec());
                self.dispatch(true, from, head, move |shared| {
                    let renamed = shared.run(|union| union.rename((from, &*old), (to, &*new), flags, true));
                    reply.empty(renamed.map(drop))
                })
            }
            Err(errno) => reply.error(errno),
        })
    }

    fn link(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let ino = arguments.take::<abi::LinkIn>()?.oldnodeid;
        let (parent, name) = (head.nodeid, arguments.name()?.to_vec());
        Some(self.dispatch(self.union().change_copies_up(ino), ino, head, move |shared| {
            shared.reply_entry(shared.run(|union| union.link(ino, parent, &name)), reply)
        }))
    }

    fn open(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        if self.no_open {
            return Some(reply.error(Errno::NOSYS));
        }
        let flags = arguments.take::<abi::OpenIn>()?.flags;
        let open = |union: &Union| union.open_handle(head.nodeid, flags);
        // who writes may have the file copied up
        let reads = OFlags::from_bits_retain(flags) & OFlags::RWMODE == OFlags::RDONLY;
        let opened = if reads { self.shared.look(open) } else { self.shared.run(open) };
        Some(reply.message(opened.map(|opened| convert::open_out(&opened))))
    }

    fn create(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::CreateIn>()?;
        let name = arguments.name()?;
        let made = self
            .shared
            .run(|union| union.create(head.nodeid, name, asked.mode, asked.umask, asked.flags, head.caller()));
        Some(reply.message(made.map(|(made, opened)| {
            let entry = convert::entry(&made.lookup, &made.attr, self.shared.valid);
            made.lookup.hand_over();
            abi::CreateOut { entry, open: convert::open_out(&opened) }
        })))
    }

    fn read(&self, head: &InHeader, mut arguments: Arguments<'_>, room: &mut Pages, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::ReadIn>()?;
        let room = room.first(asked.size as usize)?;
        let read = self.shared.look(|union| union.read((head.nodeid, asked.fh), asked.offset, room));
        if let Ok(bytes) = read {
            self.device.counts().read(bytes);
        }
        Some(reply.bytes(read.map(|read| &room[..read])))
    }

    fn write(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::WriteIn>()?;
        let data = arguments.bytes(asked.size)?;
        let has = |flag| asked.write_flags & flag != 0;
        let by = if has(abi::WRITE_CACHE) { WrittenBy::Cache } else { WrittenBy::Caller };
        let strip = has(abi::WRITE_KILL_SUIDGID).then(|| head.caller());
        if !self.union().write_copies_up(asked.fh) {
            let written = self.shared.run(|union| union.write(asked.fh, asked.offset, data, by, strip));
            return Some(reply_written(written, &self.shared.counts, reply));
        }
        let data = data.to_vec();
        Some(self.dispatch(true, head.nodeid, head, move |shared| {
            let written = shared.run(|union| union.write(asked.fh, asked.offset, &data, by, strip));
            reply_written(written, &shared.counts, reply)
        }))
    }

    fn release(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let handle = arguments.take::<abi::ReleaseIn>()?.fh;
        Some(self.dispatch(self.union().release_takes_long(handle), head.nodeid, head, move |shared| {
            shared.union.release(handle);
            reply.parts(&[])
        }))
    }

    fn sync(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::FsyncIn>()?;
        let (dir, data_only) = (head.opcode == op::FSYNCDIR, asked.fsync_flags & abi::FSYNC_FDATASYNC != 0);
        let ino = head.nodeid;
        Some(self.dispatch(self.union().waits_for_disk(), ino, head, move |shared| {
            reply.empty(shared.run(|union| match dir {
                true => union.sync_dir(ino),
                false if asked.fh == NO_HANDLE => Ok(()),
                false => union.sync(asked.fh, data_only),
            }))
        }))
    }

    fn open_dir(&self, reply: Reply) -> Answered {
        let open_flags = match self.open_dir {
            OpenDir::Never => return reply.error(Errno::NOSYS),
            OpenDir::Cached => fopen::CACHE_DIR | fopen::KEEP_CACHE,
            OpenDir::Fresh => 0,
        };
        reply.message(Ok(abi::OpenOut { open_flags, ..abi::OpenOut::default() }))
    }

    fn read_dir(
        &self,
        head: &InHeader,
        mut arguments: Arguments<'_>,
        room: &mut Pages,
        reply: Reply,
    ) -> Option<Answered> {
        let asked = arguments.take::<abi::ReadIn>()?;
        let mut listing = Listing::new(room.first(asked.size as usize)?);
        let read = self.shared.look(|union| {
            union.read_dir(head.nodeid, asked.offset, |entry| {
                let kind = convert::entry_type(entry.kind);
                listing.add(None, abi::Dirent { ino: entry.ino, off: entry.next, namelen: 0, kind }, entry.name)
            })
        });
        Some(reply.bytes(read.map(|()| listing.bytes())))
    }

    fn read_dir_plus(
        &self,
        head: &InHeader,
        mut arguments: Arguments<'_>,
        room: &mut Pages,
        reply: Reply,
    ) -> Option<Answered> {
        let asked = arguments.take::<abi::ReadIn>()?;
        let detail = self.walkers.lists(head.pid, head.nodeid, asked.offset);
        let mut listing = Listing::new(room.first(asked.size as usize)?);
        let read = self.shared.look(|union| {
            union.read_dir_plus(head.nodeid, asked.offset, detail, |name, seen, next| {
                let (told, lookup) = match seen {
                    Seen::Named(ino, kind) => (convert::only_name(ino, kind), None),
                    Seen::Entry(Entry { lookup, attr }) => {
                        (convert::entry(&lookup, &attr, self.shared.valid), Some(lookup))
                    }
                    Seen::Unreadable(lookup, kind) => (convert::only_type(&lookup, kind), Some(lookup)),
                };
                let head = abi::Dirent { ino: told.attr.ino, off: next, namelen: 0, kind: told.attr.mode >> 12 };
                let full = listing.add(Some(&told), head, name);
                if let Some(lookup) = lookup
                    && !full
                {
                    lookup.hand_over();
                }
                full
            })
        });
        Some(reply.bytes(read.map(|()| listing.bytes())))
    }

    fn statfs(&self, reply: Reply) -> Option<Answered> {
        let told = self.shared.run(Union::statfs).map(|s| abi::Kstatfs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: u32::try_from(s.f_bsize).unwrap_or(4096),
            namelen: crate::union::name::NAME_MAX as u32,
            frsize: u32::try_from(s.f_frsize).unwrap_or(4096),
            ..abi::Kstatfs::default()
        });
        Some(reply.message(told))
    }

    fn set_xattr(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::SetxattrIn>()?;
        let (name, value) = (arguments.name()?.to_vec(), arguments.bytes(asked.size)?.to_vec());
        let (ino, caller) = (head.nodeid, head.caller());
        Some(self.dispatch(self.union().change_copies_up(ino), ino, head, move |shared| {
            reply.empty(shared.run(|union| union.set_xattr(ino, &name, &value, asked.flags, caller)))
        }))
    }

    fn get_xattr(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let room = arguments.take::<abi::GetxattrIn>()?.size;
        let value = match head.opcode {
            op::LISTXATTR => self.shared.look(|union| union.list_xattr(head.nodeid)),
            _ => {
                let name = arguments.name()?;
                self.shared.look(|union| union.get_xattr(head.nodeid, name))
            }
        };
        Some(reply_xattr(value, room, reply))
    }

    fn remove_xattr(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let (ino, name) = (head.nodeid, arguments.name()?.to_vec());
        Some(self.dispatch(self.union().change_copies_up(ino), ino, head, move |shared| {
            reply.empty(shared.run(|union| union.remove_xattr(ino, &name)))
        }))
    }

    fn fallocate(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::FallocateIn>()?;
        let caller = head.caller();
        Some(self.dispatch(self.union().write_copies_up(asked.fh), head.nodeid, head, move |shared| {
            let done = |union: &Union| union.fallocate(asked.fh, asked.mode, asked.offset, asked.length, caller);
            reply.empty(shared.run(done))
        }))
    }

    fn ioctl(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::IoctlIn>()?;
        let Some(request) = Ioctl::read(asked.cmd, arguments.bytes(asked.in_size)?) else {
            return Some(reply.error(Errno::NOTTY));
        };
        let ino = head.nodeid;
        let long = request.changes() && self.union().change_copies_up(ino);
        Some(self.dispatch(long, ino, head, move |shared| match shared.run(|union| request.run(union, ino)) {
            Ok(bytes) => {
                let told = &bytes[..bytes.len().min(asked.out_size as usize)];
                reply.parts(&[abi::IoctlOut::default().as_bytes(), told])
            }
            Err(errno) => reply.error(errno),
        }))
    }

    fn seek(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::LseekIn>()?;
        let ino = head.nodeid;
        let seek = move |shared: &Shared| {
            let at = shared.run(|union| union.seek((ino, asked.fh), asked.offset as i64, asked.whence));
            reply.message(at.map(|offset| abi::LseekOut { offset }))
        };
        if !self.union().may_have_gathered(asked.fh) {
            return Some(seek(&self.shared));
        }
        Some(self.submit(&self.waiting, ino, head, move |shared| {
            // it waits for writes to the file, which must not wait for it
            shared.union.fetch_gathered(asked.fh);
            seek(shared)
        }))
    }

    fn copy_range(&self, head: &InHeader, mut arguments: Arguments<'_>, reply: Reply) -> Option<Answered> {
        let asked = arguments.take::<abi::CopyFileRangeIn>()?;
        let (from, to) = ((asked.fh_in, asked.off_in), (asked.fh_out, asked.off_out));
        let (length, caller) = (asked.len, head.caller());
        let long = self.union().copies_much(from.0, from.1, to.0, length);
        Some(self.dispatch(long, asked.nodeid_out, head, move |shared| {
            reply_written(shared.run(|union| union.copy_range(from, to, length, caller)), &shared.counts, reply)
        }))
    }
}
