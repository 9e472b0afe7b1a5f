//! New entries: create, mkdir, mknod, symlink, link (rules 15 to 17).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::copy_data::Keep;
use super::steps::overlay::Install;
use super::steps::{Carrier, Spot, mark_opaque};
use super::{Caller, Entry, Opened, Sight, Union, name};
use crate::acl;
use crate::branch::at::At;
use crate::branch::dir::Dir;
use crate::branch::form::Form;
use crate::branch::kept::Kept;
use crate::branch::rights::rights;
use crate::branch::stat::Kind;
use crate::branch::work::Work;
use crate::handle::Real;
use crate::inode::{Dentry, Inode, Place};
use crate::union::{BranchIndex, Cut, Name, Resolved, policy};

const O_EXCL: u32 = libc::O_EXCL as u32;

/// What is made.
#[derive(Debug, Clone, Copy)]
pub enum New<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link to this.
    Symlink(&'a [u8]),
    /// A fifo, socket or device, with its device number.
    Node(Kind, u64),
}

impl New<'_> {
    fn kind(self) -> Kind {
        match self {
            New::File => Kind::File,
            New::Dir => Kind::Dir,
            New::Symlink(_) => Kind::Symlink,
            New::Node(kind, _) => kind,
        }
    }
}

/// How a new entry is born.
#[derive(Debug)]
struct Birth {
    uid: u32,
    gid: u32,
    mode: u32,
    /// Access ACL, and for directories the default ACL, as xattr values.
    access_acl: Option<Vec<u8>>,
    default_acl: Option<Arc<[u8]>>,
    /// Whether the directory has a default ACL, whatever comes of it.
    inherits: bool,
}

/// A new entry, and the file and branch of one that is a regular file.
type Made = (Entry, Option<(OwnedFd, BranchIndex)>);

impl Birth {
    /// Whether a plain system call of the daemon makes the entry like this.
    fn is_plain(&self, new: New<'_>) -> bool {
        let rights = rights();
        let own = (self.uid, self.gid) == (rights.uid, rights.gid);
        let granted = match new {
            New::File => rights.real_mode(Kind::File, self.mode) == self.mode,
            New::Dir => rights.real_mode(Kind::Dir, self.mode) == self.mode,
            New::Symlink(_) => true,
            New::Node(..) => rights.all,
        };
        own && granted && self.access_acl.is_none() && self.default_acl.is_none()
    }

    /// The mode under which the entry is prepared, where nobody else can reach it: the one that it
    /// gets, if that outlives a change of owner and a directory that hands something on. Else
    /// whoever must not be asked for rights can open it until it has its mode.
    fn first_mode(&self, new: New<'_>, form: Form) -> u32 {
        let kept = form.kept.is_some_and(Kept::writes);
        match new {
            New::Dir => 0o700,
            New::File if !kept && self.mode & 0o7000 == 0 => self.mode,
            _ => 0o600,
        }
    }
}

impl Union {
    /// Makes an entry. `mode` is the caller's, with the umask not applied yet.
    ///
    /// # Errors
    /// EEXIST, EROFS, EPERM for `.wh.` names, and those of the carrier.
    pub fn make(
        &self,
        parent: u64,
        bytes: &[u8],
        new: New<'_>,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        self.make_open(parent, bytes, new, mode, umask, caller).map(|(entry, _)| entry)
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    /// As [`Union::make`], and ENFILE if too many files are open.
    pub fn create(
        &self,
        parent: u64,
        bytes: &[u8],
        mode: u32,
        umask: u32,
        flags: u32,
        caller: Caller,
    ) -> Result<(Entry, Opened), Errno> {
        self.handles.check_room()?;
        let made = self.make_open(parent, bytes, New::File, mode, umask, caller);
        if matches!(made, Err(Errno::EXIST)) && flags & O_EXCL == 0 {
            return self.open_existing(parent, bytes, flags);
        }
        let (entry, real) = made?;
        let (file, branch) = real.ok_or(Errno::IO)?;
        let real =
            Real { file, writable: true, append_only: false, branch: Some(branch), form: self.form(Some(branch)) };
        // its attributes last also where the kernel may write to it unseen: before a mapping can be
        // stored to, the file grows, and whatever makes it grow makes the kernel ask
        let opened = self.open_made(&entry, real, flags)?;
        Ok((entry, opened))
    }

    /// Somebody else made the file since the kernel looked.
    fn open_existing(&self, parent: u64, bytes: &[u8], flags: u32) -> Result<(Entry, Opened), Errno> {
        let mut entry = self.lookup(parent, bytes)?.ok_or(Errno::STALE)?;
        if entry.lookup.inode().kind != Kind::File {
            // the kernel looks again, and finds what it is
            return Err(Errno::STALE);
        }
        let opened = self.open_handle(entry.attr.ino, flags)?;
        entry.attr.lasting &= opened.backing.is_none();
        Ok((entry, opened))
    }

    fn make_open(
        &self,
        parent: u64,
        bytes: &[u8],
        new: New<'_>,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Made, Errno> {
        let name = name(bytes)?;
        let dir = self.inodes.get(parent)?;
        loop {
            let names = dir.lock_names();
            if let Some(made) = self.make_unseen(&dir, name, new, || self.birth(&dir, new, mode, umask, caller))? {
                return Ok(made);
            }
            let sight = self.look(&dir, name)?;
            let target = self.target_for_new(&dir, &sight)?;
            self.guard(&dir)?.check_addition()?;
            if !dir.stack()?.branches.contains(&target) {
                drop(names);
                self.raise_dir(&dir, target)?;
                continue;
            }
            if matches!(new, New::Node(Kind::Char, 0)) && self.form(Some(target)).overlay {
                // it would be a whiteout there
                return Err(Errno::PERM);
            }
            let birth = self.birth(&dir, new, mode, umask, caller)?;
            let spot = self.spot(&dir, target, name)?;
            let bare = spot.bare || self.shows_bare(&sight, target) || self.is_bare(&dir, &spot.dir, target);
            let spot = spot.known_bare(bare);
            let file = self.install_new(&dir, &spot, target, new, &birth)?;
            // what a directory merges with depends on what was hidden
            let alone = !matches!(new, New::Dir) || matches!(sight.resolved, Resolved::Missing { cut: None });
            let entry = if alone {
                self.adopt_made(&dir, &spot, target, new.kind(), file.as_ref())?
            } else {
                self.find(&dir, name)?.ok_or(Errno::STALE)?
            };
            if matches!(new, New::Dir) {
                self.note_born(&dir, entry.lookup.inode(), target);
            }
            return Ok((entry, file.map(|file| (file, target))));
        }
    }

    /// Makes an entry in a directory that lies on one branch only, without whiteouts: the system
    /// call itself refuses a name that is there. Nothing if it does, or the directory is another.
    fn make_unseen(
        &self,
        dir: &Arc<Inode>,
        name: Name<'_>,
        new: New<'_>,
        birth: impl FnOnce() -> Result<Birth, Errno>,
    ) -> Result<Option<Made>, Errno> {
        let [target] = dir.stack()?.branches[..] else { return Ok(None) };
        if !self.branch(target).writable() {
            return Ok(None);
        }
        if !self.is_unmarked(dir, target, name) && !self.is_bare(dir, &*self.dir(dir, target)?, target) {
            return Ok(None);
        }
        self.guard(dir)?.check_addition()?;
        let birth = birth()?;
        let spot = self.spot(dir, target, name)?.known_bare(true);
        let into = &spot.dir;
        let put = if birth.is_plain(new) {
            put(into, name.as_bytes(), new, birth.mode)
        } else {
            let how = Install { opaque: false, over_whiteout: false };
            put_prepared(self.work(target)?, (into, name), new, &birth, how)
        };
        let file = match put {
            Err(Errno::EXIST) => return Ok(None),
            file => file?,
        };
        let entry = self.adopt_made(dir, &spot, target, new.kind(), file.as_ref())?;
        if matches!(new, New::Dir) {
            self.note_born(dir, entry.lookup.inode(), target);
        }
        if !birth.inherits {
            self.note_new(entry.lookup.inode(), target, new.kind() == Kind::Dir);
        }
        Ok(Some((entry, file.map(|file| (file, target)))))
    }

    /// Whether looking for a name that is not there was looking for a whiteout of it, too.
    pub(super) fn shows_bare(&self, sight: &Sight, branch: BranchIndex) -> bool {
        matches!(sight.resolved, Resolved::Missing { cut: None }) && sight.unmarked != Some(branch)
    }

    /// Makes an inode of what was just made on a branch, whatever lies below.
    fn adopt_made(
        &self,
        dir: &Arc<Inode>,
        spot: &Spot<'_>,
        target: BranchIndex,
        kind: Kind,
        file: Option<&OwnedFd>,
    ) -> Result<Entry, Errno> {
        let moment = self.records.moment();
        let stat = match file {
            Some(file) => At::open(file.as_fd(), spot.dir.form()).stat()?,
            None => spot.dir.at(spot.name.as_bytes()).stat()?,
        };
        if stat.kind != kind {
            // somebody changed the branch directly
            return Err(Errno::STALE);
        }
        let (resolved, dirs) = match kind {
            Kind::Dir => (Resolved::Dir { stack: vec![target], cut: None }, self.mix(0, &stat)),
            _ => (Resolved::Leaf(target), 0),
        };
        self.adopt(dir, spot.name, Sight { resolved, stat: Some(stat), dirs, redirect: None, unmarked: None, moment })
    }

    /// The branch for a new entry where a name is not visible.
    fn target_for_new(&self, dir: &Inode, sight: &Sight) -> Result<BranchIndex, Errno> {
        let Resolved::Missing { cut } = sight.resolved else { return Err(Errno::EXIST) };
        let lowest = cut.map_or(Some(BranchIndex(u16::MAX)), Cut::lowest_seen).ok_or(Errno::ROFS)?;
        self.target(dir, lowest)
    }

    /// Owner, group, mode and ACLs of a new entry (rule 17).
    fn birth(&self, dir: &Arc<Inode>, new: New<'_>, mode: u32, umask: u32, caller: Caller) -> Result<Birth, Errno> {
        let parent = self.heritage(dir)?;
        let inherited = parent.default_acl.filter(|_| !matches!(new, New::Symlink(_)));
        let is_dir = matches!(new, New::Dir);
        let (uid, gid) = self.kept_maker(caller);
        let mut birth = Birth {
            uid,
            gid: if parent.setgid { parent.gid } else { gid },
            mode: mode & 0o7777 | if parent.setgid && is_dir { 0o2000 } else { 0 },
            access_acl: None,
            default_acl: None,
            inherits: inherited.is_some(),
        };
        match inherited.as_deref().and_then(|default| acl::inherit(default, birth.mode)) {
            Some(acl) => {
                birth.mode = acl.mode;
                birth.access_acl = acl.access;
                birth.default_acl = inherited.filter(|_| is_dir);
            }
            None => birth.mode &= !(umask & 0o777),
        }
        Ok(birth)
    }

    /// Makes the entry on its branch.
    fn install_new(
        &self,
        dir: &Arc<Inode>,
        spot: &Spot<'_>,
        target: BranchIndex,
        new: New<'_>,
        birth: &Birth,
    ) -> Result<Option<OwnedFd>, Errno> {
        let work = self.work(target)?;
        let mut file = None;
        // another copy of the directory may have another group or ACL to pass on
        let plain = birth.is_plain(new) && dir.stack()?.top() == target;
        let carrier = Carrier { work, source: None, target: spot.clone() };
        let install = |how: Install| {
            file = if plain && !how.opaque && !how.over_whiteout {
                put(&spot.dir, spot.name.as_bytes(), new, birth.mode)?
            } else {
                put_prepared(work, (&spot.dir, spot.name), new, birth, how)?
            };
            Ok(())
        };
        carrier.create(matches!(new, New::Dir), install)?;
        Ok(file)
    }

    /// Gives an object that is not a directory one more name.
    ///
    /// # Errors
    /// EEXIST, EPERM for directories and `.wh.` names, EXDEV if no branch can hold both names.
    pub fn link(&self, ino: u64, parent: u64, bytes: &[u8]) -> Result<Entry, Errno> {
        let name = name(bytes)?;
        let inode = self.inodes.get(ino)?;
        let dir = self.inodes.get(parent)?;
        if inode.kind == Kind::Dir {
            return Err(Errno::PERM);
        }
        self.check_guard(&inode)?;
        if matches!(inode.place(), Place::Gone(gone) if gone.nlink > 0) {
            // its names are not known, but a copy can be the record of all of them
            self.make_changeable(&inode, Keep::All)?;
        }
        for _ in 0..16 {
            let names = dir.lock_names();
            match self.link_unseen(&inode, &dir, name) {
                Ok(Some(entry)) => return Ok(entry),
                Ok(None) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let sight = self.look(&dir, name)?;
            let chosen = self.target_for_new(&dir, &sight)?;
            self.guard(&dir)?.check_addition()?;
            let lowest = self.lowest_for_new(&dir, &sight)?;
            let target = self.link_carrier(&inode, &dir, chosen, lowest)?;
            let raised = dir.stack()?.branches.contains(&target);
            let here = match inode.place() {
                Place::Entry(branch) | Place::Record(branch) => branch == target,
                _ => return Err(Errno::NOENT),
            };
            if raised && here {
                let recorded = matches!(inode.place(), Place::Record(_));
                let spot = self.spot(&dir, target, name)?;
                let bare = spot.bare || self.shows_bare(&sight, target) || self.is_bare(&dir, &spot.dir, target);
                match self.link_here(&inode, &dir, spot.known_bare(bare), target) {
                    // its record was flushed in this moment
                    Err(Errno::NOENT) if recorded => continue,
                    linked => return linked,
                }
            }
            drop(names);
            self.raise_dir(&dir, target)?;
            let dentry: Dentry = inode.dentry().ok_or(Errno::NOENT)?;
            self.bring_up(&inode, &dentry, target)?;
        }
        Err(Errno::BUSY)
    }

    /// Links an object of the one branch that a directory without whiteouts lies on: the system call
    /// itself refuses a name that is there. Nothing if one of them is another.
    fn link_unseen(&self, inode: &Arc<Inode>, dir: &Arc<Inode>, name: Name<'_>) -> Result<Option<Entry>, Errno> {
        let [target] = dir.stack()?.branches[..] else { return Ok(None) };
        if !matches!(inode.place(), Place::Entry(branch) if branch == target) || !self.branch(target).writable() {
            return Ok(None);
        }
        if !self.is_unmarked(dir, target, name) && !self.is_bare(dir, &*self.dir(dir, target)?, target) {
            return Ok(None);
        }
        self.guard(dir)?.check_addition()?;
        self.link_here(inode, dir, self.spot(dir, target, name)?.known_bare(true), target).map(Some)
    }

    fn lowest_for_new(&self, dir: &Inode, sight: &Sight) -> Result<BranchIndex, Errno> {
        let lowest = dir.stack()?.lowest_seen;
        let Resolved::Missing { cut: Some(cut) } = sight.resolved else { return Ok(lowest) };
        Ok(cut.lowest_seen().ok_or(Errno::ROFS)?.min(lowest))
    }

    /// The branch on which both names of a new hard link lie: the one where the object is, if it
    /// takes the new name, else the chosen one or the nearest above the object.
    fn link_carrier(
        &self,
        inode: &Inode,
        dir: &Inode,
        chosen: BranchIndex,
        lowest: BranchIndex,
    ) -> Result<BranchIndex, Errno> {
        let takes = |branch| Ok(branch <= lowest && self.reaches(dir, branch)?);
        match inode.place() {
            Place::Record(branch) if takes(branch)? => Ok(branch),
            Place::Record(_) => Err(Errno::XDEV),
            Place::Entry(branch) if self.branch(branch).writable() && takes(branch)? => Ok(branch),
            Place::Entry(branch) if chosen < branch && self.reaches(parent_of(inode)?.as_ref(), chosen)? => Ok(chosen),
            Place::Entry(branch) => {
                let candidates = self.candidates_for_both(&*parent_of(inode)?, dir)?;
                let highest = branch.0.checked_sub(1).map(BranchIndex).ok_or(Errno::ROFS)?;
                policy::carrier(&candidates, highest.min(lowest)).ok_or(Errno::ROFS)
            }
            Place::Gone(_) => Err(Errno::NOENT),
            Place::Stack(_) => Err(Errno::PERM),
        }
    }

    fn link_here(
        &self,
        inode: &Arc<Inode>,
        dir: &Arc<Inode>,
        spot: Spot<'_>,
        target: BranchIndex,
    ) -> Result<Entry, Errno> {
        let (from, old) = self.real_name(inode)?;
        let work = self.work(target)?;
        let (into, name) = (Arc::clone(&spot.dir), spot.name);
        let carrier = Carrier { work, source: None, target: spot };
        carrier.create(false, |how| {
            if !how.over_whiteout {
                return from.link(&old, &into, name.as_bytes());
            }
            let temporary = work.temporary_name();
            from.link(&old, work.temporary(), &temporary)?;
            let put = work.put(&temporary, inode.kind, (&into, name.as_bytes()), true);
            put.inspect_err(|_| work.discard(&temporary))
        })?;
        self.adopt_made(dir, &carrier.target, target, inode.kind, None)
    }
}

fn parent_of(inode: &Inode) -> Result<Arc<Inode>, Errno> {
    inode.dentry().map(|dentry| dentry.parent).ok_or(Errno::NOENT)
}

/// Makes an entry in one system call.
fn put(dir: &Dir, name: &[u8], new: New<'_>, mode: u32) -> Result<Option<OwnedFd>, Errno> {
    match new {
        New::File => return dir.create_file(name, mode).map(Some),
        New::Dir => dir.make_dir(name, mode)?,
        New::Symlink(target) => dir.make_symlink(name, target)?,
        New::Node(kind, rdev) => dir.make_node(name, kind, mode, rdev)?,
    }
    Ok(None)
}

/// Makes an entry in the work area with all it has, then renames it into place.
fn put_prepared(
    work: &Work,
    (into, name): (&Dir, Name<'_>),
    new: New<'_>,
    birth: &Birth,
    how: Install,
) -> Result<Option<OwnedFd>, Errno> {
    let temporary = work.temporary_name();
    let make = || -> Result<Option<OwnedFd>, Errno> {
        let first = birth.first_mode(new, work.temporary().form());
        let file = put(work.temporary(), &temporary, new, first)?;
        if how.opaque {
            mark_opaque(&work.temporary().open_dir(&temporary)?)?;
        }
        let at = match &file {
            Some(file) => At::open(file.as_fd(), work.temporary().form()),
            None => work.temporary().at(&temporary),
        };
        give_birth(at, new, birth, first)?;
        work.put(&temporary, new.kind(), (into, name.as_bytes()), how.over_whiteout)?;
        Ok(file)
    };
    make().inspect_err(|_| work.discard(&temporary))
}

fn give_birth(at: At<'_>, new: New<'_>, birth: &Birth, first: u32) -> Result<(), Errno> {
    at.chown(Some(birth.uid), Some(birth.gid))?;
    if !matches!(new, New::Symlink(_)) && birth.mode != first {
        at.chmod(birth.mode)?;
    }
    if let Some(value) = &birth.access_acl {
        at.set_xattr(acl::ACCESS, value, XattrFlags::empty())?;
    }
    if let Some(value) = &birth.default_acl {
        at.set_xattr(acl::DEFAULT, value, XattrFlags::empty())?;
    }
    Ok(())
}
