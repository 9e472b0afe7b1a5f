//! File flags (ioctl_iflags(2), FS_IOC_FSGETXATTR), and what they forbid. The kernel has checked
//! who may change them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::IFlags;
use rustix::io::Errno;

use super::attr::Change;
use super::copy_data::Keep;
use super::{Entry, Union};
use crate::branch::at::SetTime;
use crate::branch::guard::Guard;
use crate::branch::stat::Kind;
use crate::inode::{Inode, Place};
use crate::sys::{self, ExtendedFlags};

/// The bits that say what is forbidden.
const GUARDED: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
/// Flags that a copy has from its original at once. Those that forbid something come last, or are
/// changed by whoever the copy is made for.
const CARRIED: IFlags = IFlags::NOATIME.union(IFlags::SYNC).union(IFlags::DIRSYNC).union(IFlags::NODUMP);

/// The bits of [`GUARDED`] among the extended flags (`FS_XFLAG_*`, `linux/fs.h`).
const EXTENDED_IMMUTABLE: u32 = 0x8;
const EXTENDED_APPEND: u32 = 0x10;

fn flags_of(guard: Guard) -> IFlags {
    let mut flags = IFlags::empty();
    flags.set(IFlags::IMMUTABLE, guard.immutable);
    flags.set(IFlags::APPEND, guard.append_only);
    flags
}

fn extended_flags_of(guard: Guard) -> u32 {
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    bit(guard.immutable, EXTENDED_IMMUTABLE) | bit(guard.append_only, EXTENDED_APPEND)
}

/// What becomes of the bits of a copy when those that were shown are changed to others: bits that
/// its file system has of its own, or has not at all, are left alone.
fn changed(copy: u32, shown: u32, wanted: u32) -> u32 {
    let bits = shown ^ wanted;
    copy & !bits | wanted & bits
}

impl Union {
    /// The flags of a file or directory, as FS_IOC_GETFLAGS tells them.
    ///
    /// # Errors
    /// ENOTTY where the branch's file system has none.
    pub fn flags(&self, ino: u64) -> Result<u32, Errno> {
        let inode = self.inode(ino)?;
        Ok(self.shown_flags(&inode)?.bits())
    }

    fn shown_flags(&self, inode: &Arc<Inode>) -> Result<IFlags, Errno> {
        let flags = get_flags(&self.open_for_flags(inode)?)?;
        Ok(flags | flags_of(self.guard_behind(inode)?))
    }

    /// Changes flags, as FS_IOC_SETFLAGS does. What lies on a branch that is not written is copied
    /// up.
    ///
    /// # Errors
    /// EPERM for a change of something immutable that stays so, ENOTTY or EOPNOTSUPP where the
    /// branch's file system does not have the flags, and those of a copy-up.
    pub fn set_flags(&self, ino: u64, wanted: u32) -> Result<(), Errno> {
        let inode = self.inode(ino)?;
        let (shown, wanted) = (self.shown_flags(&inode)?, IFlags::from_bits_retain(wanted));
        if shown == wanted {
            return Ok(());
        }
        // see ext4_ioctl_check_immutable
        if shown.contains(IFlags::IMMUTABLE) && wanted.contains(IFlags::IMMUTABLE) {
            return Err(Errno::PERM);
        }
        let real = self.raise_for_flags(&inode)?;
        let own = get_flags(&real)?;
        let flags = changed(own.bits(), shown.bits(), wanted.bits());
        // of a directory, those below do not count any more
        let flags = (IFlags::from_bits_retain(flags) - GUARDED) | (wanted & GUARDED);
        // names may be found in another case from now on
        self.indexes.remove(ino);
        rustix::fs::ioctl_setflags(&real, flags).inspect(|()| self.tell_stale(ino))
    }

    /// The extended flags and the project of a file or directory, as FS_IOC_FSGETXATTR tells them.
    ///
    /// # Errors
    /// ENOTTY where the branch's file system has none.
    pub fn extended_flags(&self, ino: u64) -> Result<ExtendedFlags, Errno> {
        let inode = self.inode(ino)?;
        let mut shown = sys::extended_flags(&self.open_for_flags(&inode)?).map_err(no_flags)?;
        shown.flags |= extended_flags_of(self.guard_behind(&inode)?);
        Ok(shown)
    }

    /// Changes them, as FS_IOC_FSSETXATTR does.
    ///
    /// # Errors
    /// As [`Union::set_flags`].
    pub fn set_extended_flags(&self, ino: u64, wanted: ExtendedFlags) -> Result<(), Errno> {
        let inode = self.inode(ino)?;
        let shown = self.extended_flags(ino)?;
        // that is counted and cannot be set
        let wanted = ExtendedFlags { extents: shown.extents, ..wanted };
        if shown == wanted {
            return Ok(());
        }
        if shown.flags & wanted.flags & EXTENDED_IMMUTABLE != 0 {
            return Err(Errno::PERM);
        }
        let real = self.raise_for_flags(&inode)?;
        let own = sys::extended_flags(&real).map_err(no_flags)?;
        let guarded = EXTENDED_IMMUTABLE | EXTENDED_APPEND;
        let flags = changed(own.flags, shown.flags, wanted.flags) & !guarded | wanted.flags & guarded;
        let set = sys::set_extended_flags(&real, ExtendedFlags { flags, ..wanted }).map_err(no_flags);
        set.inspect(|()| self.tell_stale(ino))
    }

    /// The generation of an entry's inode, as FS_IOC_GETVERSION tells it.
    ///
    /// # Errors
    /// ENOTTY where the branch's file system has none.
    pub fn version(&self, ino: u64) -> Result<u32, Errno> {
        sys::version(&self.open_for_flags(&self.inode(ino)?)?).map_err(no_flags)
    }

    /// Opens what an inode is, for asking and changing its flags: no access to the content is needed.
    fn open_for_flags(&self, inode: &Arc<Inode>) -> Result<OwnedFd, Errno> {
        match inode.kind {
            Kind::Dir => self.dir(inode, inode.stack()?.top())?.open_for_reading(),
            Kind::File => Ok(self.open_file(inode, false)?.real().file.try_clone().map_err(|_| Errno::MFILE)?),
            _ => Err(Errno::NOTTY),
        }
    }

    /// Brings an inode up, whatever its flags forbid, and opens it. What it had below counts no more
    /// afterwards.
    fn raise_for_flags(&self, inode: &Arc<Inode>) -> Result<OwnedFd, Errno> {
        self.make_changeable(inode, Keep::All)?;
        if inode.kind == Kind::Dir {
            if self.guard_below(inode)?.is_set() {
                self.dir(inode, inode.stack()?.top())?.own_flags()?;
            }
            inode.with(|state| state.learn().guard = None);
        }
        self.open_for_flags(inode)
    }

    /// What may not be done with a directory: what the flags of any directory behind it forbid.
    pub(super) fn guard(&self, dir: &Arc<Inode>) -> Result<Guard, Errno> {
        if let Some(known) = dir.with(|state| state.learned()?.guard).filter(|_| !self.revalidates()) {
            return Ok(known);
        }
        let level = self.level(dir)?;
        let stats = level.iter().map(|(_, open)| open.stat()).collect::<Result<Vec<_>, _>>()?;
        let mut guard = Guard::default();
        if stats.iter().any(|stat| stat.guard.is_set()) {
            for ((_, open), stat) in level.iter().zip(stats) {
                guard = guard.or(stat.guard);
                if open.has_own_flags()? {
                    break;
                }
            }
        }
        dir.with(|state| state.learn().guard = Some(guard));
        Ok(guard)
    }

    /// What may not be done with an entry that was just looked at.
    pub(super) fn guard_of_entry(&self, entry: &Entry) -> Result<Guard, Errno> {
        let inode = entry.lookup.inode();
        match inode.place() {
            Place::Stack(stack) if stack.branches.len() > 1 => self.guard(inode),
            _ => Ok(entry.attr.stat.guard),
        }
    }

    /// What directories below the topmost one forbid.
    fn guard_below(&self, dir: &Arc<Inode>) -> Result<Guard, Errno> {
        let level = self.level(dir)?;
        let (mut guard, mut above) = (Guard::default(), level.first());
        for next in &level[1.min(level.len())..] {
            if let Some((_, open)) = above
                && open.has_own_flags()?
            {
                break;
            }
            guard = guard.or(next.1.stat()?.guard);
            above = Some(next);
        }
        Ok(guard)
    }

    /// What is shown beside an inode's own flags.
    fn guard_behind(&self, inode: &Arc<Inode>) -> Result<Guard, Errno> {
        if inode.kind == Kind::Dir { self.guard_below(inode) } else { Ok(Guard::default()) }
    }

    /// What may not be done with an object: of one that is changed in its place, the kernel knows.
    fn guard_of(&self, inode: &Arc<Inode>) -> Result<Guard, Errno> {
        match inode.place() {
            Place::Stack(_) => self.guard(inode),
            Place::Gone(_) => Ok(Guard::default()),
            _ if self.in_place(inode) => Ok(Guard::default()),
            _ => match self.stat_by_name(inode) {
                // it lost its last name in this moment
                Err(Errno::STALE) => Ok(Guard::default()),
                stat => Ok(stat?.guard),
            },
        }
    }

    /// Refuses what flags forbid before anything is copied up for it: a change of attributes, or
    /// another name.
    ///
    /// # Errors
    /// EPERM.
    pub(super) fn check_guard(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        self.guard_of(inode)?.check_change()
    }

    /// Refuses a change of attributes. The times of what is append-only may be set to the present.
    ///
    /// # Errors
    /// EPERM.
    pub(super) fn check_attributes(&self, inode: &Arc<Inode>, change: &Change) -> Result<(), Errno> {
        let guard = self.guard_of(inode)?;
        let touch = !matches!(change.atime, SetTime::To(_)) && !matches!(change.mtime, SetTime::To(_));
        let only_touch = change.mode.is_none() && change.uid.is_none() && change.gid.is_none() && change.size.is_none();
        if touch && only_touch { guard.check_addition() } else { guard.check_change() }
    }
}

fn get_flags(real: &OwnedFd) -> Result<IFlags, Errno> {
    rustix::fs::ioctl_getflags(real).map_err(no_flags)
}

/// How the kernel says in a program that a file system has no flags.
fn no_flags(errno: Errno) -> Errno {
    match errno {
        Errno::NOSYS | Errno::INVAL => Errno::NOTTY,
        errno => errno,
    }
}

/// Gives a copy the flags that forbid nothing. A file system without flags has none to give or take.
pub(super) fn carry(from: &impl std::os::fd::AsFd, to: &impl std::os::fd::AsFd) {
    let carry = || -> Result<(), Errno> {
        let flags = rustix::fs::ioctl_getflags(from)? & CARRIED;
        if flags.is_empty() {
            return Ok(());
        }
        rustix::fs::ioctl_setflags(to, rustix::fs::ioctl_getflags(to)? | flags)
    };
    if let Err(errno) = carry() {
        tracing::debug!(%errno, "taking file flags along");
    }
}

/// Makes a copy append-only, as its original is. Whether that was possible.
pub(super) fn make_append_only(copy: &OwnedFd) -> bool {
    let make = || rustix::fs::ioctl_setflags(copy, rustix::fs::ioctl_getflags(copy)? | IFlags::APPEND);
    let made = make();
    if let Err(errno) = made {
        tracing::warn!(%errno, "a file that was append-only is not so any more: making its copy so");
    }
    made.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_changed_is_changed_in_the_copy() {
        let (extents, nodump, noatime) = (0x80000, 0x40, 0x80);
        assert_eq!(changed(0, extents, extents | nodump), nodump);
        assert_eq!(changed(extents | noatime, nodump, 0), extents | noatime);
        assert_eq!(changed(noatime, noatime | extents, extents), 0);
    }
}
