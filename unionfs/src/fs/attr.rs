//! Attributes: getattr, setattr, readlink, statfs.

use std::sync::Arc;

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::copy_data::Keep;
use super::file::Privilege;
use super::names::{Where, is_ours};
use super::records::{LOOKS, is_linked};
use super::{Attr, Caller, Union};
use crate::branch::at::SetTime;
use crate::branch::stat::{Kind, Stat};
use crate::handle::Real;
use crate::inode::{Inode, Place, ROOT};
use crate::union::BranchIndex;

/// A change of attributes; what is `None` stays.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// Permission bits with set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
}

impl Change {
    fn is_empty(&self) -> bool {
        let times = self.atime == SetTime::Keep && self.mtime == SetTime::Keep;
        times && self.mode.is_none() && self.uid.is_none() && self.gid.is_none() && self.size.is_none()
    }
}

impl Union {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// ESTALE if the kernel should look its name up again.
    pub fn getattr(&self, ino: u64) -> Result<Attr, Errno> {
        let inode = self.inode(ino)?;
        self.settle_written(&inode);
        for _ in 0..LOOKS {
            let moment = self.records.moment();
            let stat = self.stat_of(&inode)?;
            let attr = self.attr(&inode, stat);
            if !is_linked(&inode, &stat) || self.records.are_as_in(moment) {
                return Ok(attr);
            }
            self.records.settle();
        }
        self.stat_of(&inode).map(|stat| self.attr(&inode, stat))
    }

    fn stat_of(&self, inode: &Arc<Inode>) -> Result<Stat, Errno> {
        match inode.open_file() {
            Some(open) => open.real().at().stat(),
            None => match self.stat_by_name(inode) {
                Err(Errno::STALE) => self.last_stat(inode),
                stat => stat,
            },
        }
    }

    /// The inode of a number, the root included.
    pub(super) fn inode(&self, ino: u64) -> Result<Arc<Inode>, Errno> {
        if ino == ROOT { Ok(Arc::clone(&self.root)) } else { self.inodes.get(ino) }
    }

    /// The attributes of what lost its last name.
    fn last_stat(&self, inode: &Arc<Inode>) -> Result<Stat, Errno> {
        let Place::Gone(gone) = inode.place() else { return Err(Errno::STALE) };
        match self.whereabouts(inode) {
            // nothing holds it any more but the kernel's memory of it
            Err(Errno::STALE) => Ok(*gone),
            place => place?.at().stat(),
        }
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// EROFS, EISDIR for the size of a directory, those of a copy-up and of the branch.
    pub fn setattr(&self, ino: u64, change: Change, caller: Caller) -> Result<Attr, Errno> {
        let inode = self.inode(ino)?;
        match (change.size, inode.kind) {
            (Some(_), Kind::Dir) => return Err(Errno::ISDIR),
            (Some(_), kind) if kind != Kind::File => return Err(Errno::INVAL),
            _ => {}
        }
        let change = self.kept_owner(self.meant(&inode, change)?)?;
        if change.is_empty() {
            return self.getattr(ino);
        }
        self.check_attributes(&inode, &change)?;
        self.make_changeable(&inode, change.size.map_or(Keep::All, Keep::First))?;
        let changed = self.change(&inode, change, caller);
        if inode.kind == Kind::Dir {
            // what new entries inherit
            self.note_change(&inode);
        }
        let stat = changed?;
        if is_linked(&inode, &stat) { self.getattr(ino) } else { Ok(self.attr(&inode, stat)) }
    }

    /// What is left of a change where the kernel gathers writes: it has times of its own for files
    /// then. It tells them by themselves with every write, new name and name less, when they may be so
    /// already, and a file of a read-only branch is not copied up for that. In the place of the present
    /// it tells the time that it took.
    fn meant(&self, inode: &Arc<Inode>, change: Change) -> Result<Change, Errno> {
        let SetTime::To(mtime) = change.mtime else { return Ok(change) };
        if !self.gathers_writes() || inode.kind != Kind::File {
            return Ok(change);
        }
        let rest = Change { mtime: SetTime::Keep, ..change };
        let stat = self.stat_of(inode)?;
        let guarded = stat.guard.append_only || stat.guard.immutable;
        Ok(match change.atime {
            SetTime::Keep if guarded || stat.mtime == mtime => rest,
            SetTime::Now if guarded => Change { mtime: SetTime::Now, ..change },
            _ => change,
        })
    }

    /// Changes attributes of the object itself; they are returned.
    fn change(&self, inode: &Arc<Inode>, change: Change, caller: Caller) -> Result<Stat, Errno> {
        let place = match change.size {
            Some(size) => Where::Open(self.truncate(inode, size, caller)?),
            None => self.hold_to_change(inode)?,
        };
        let at = place.at();
        if change.uid.is_some() || change.gid.is_some() {
            at.chown(change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            at.chmod(mode)?;
        }
        if change.atime != SetTime::Keep || change.mtime != SetTime::Keep {
            let set = || at.set_times(change.atime, change.mtime);
            match inode.open_file() {
                Some(open) => open.by_turns(set)?,
                None => set()?,
            }
        }
        at.stat()
    }

    fn truncate(&self, inode: &Arc<Inode>, size: u64, caller: Caller) -> Result<Arc<Real>, Errno> {
        let open = self.open_file(inode, true)?;
        let real = open.real();
        real.at().drop_capability()?;
        self.strip_set_id(inode, &real, caller, Privilege::Asked)?;
        self.in_its_time(&open, &real, || rustix::fs::ftruncate(&real.file, size))?;
        Ok(real)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        let checks = self.revalidates();
        self.by_name(&inode, |dir, name| {
            if checks && !is_ours(&inode, dir.at(name).stat()?.id) {
                return Ok(None);
            }
            dir.read_link(name).map(Some)
        })
    }

    /// The file system of the top writable branch, or of the top one (rule 37).
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn statfs(&self) -> Result<StatVfs, Errno> {
        let top = self.writable().next().map_or(BranchIndex(0), |(index, _)| index);
        rustix::fs::fstatvfs(&*self.branch(top).root)
    }
}
