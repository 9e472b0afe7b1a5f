//! Copy-up (rules 27 to 32): an entry is prepared in the work area with everything it has, made
//! durable, and renamed into place. Whatever fails before that leaves nothing behind.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use super::Union;
use super::copy_data::{Keep, copy_data};
use super::flags;
use super::records::Changing;
use crate::branch::at::{At, SetTime};
use crate::branch::dir::Dir;
use crate::branch::stat::{Kind, Stat};
use crate::branch::work::Work;
use crate::handle::Real;
use crate::inode::{Dentry, Inode, Place, ROOT};
use crate::links::{self, Gone, Origin};
use crate::union::BranchIndex;

/// A copy in the work area, not in its place yet.
struct Copy<'a> {
    work: &'a Work,
    name: Vec<u8>,
    stat: Stat,
    /// Of a regular file.
    file: Option<OwnedFd>,
}

impl Union {
    /// Whether changes to an inode's data and attributes go where it lies.
    pub(super) fn in_place(&self, inode: &Inode) -> bool {
        match inode.place() {
            Place::Entry(branch) => self.branch(branch).in_place(),
            Place::Stack(stack) => self.branch(stack.top()).in_place(),
            Place::Record(_) => true,
            Place::Gone(_) => {
                let branch = match inode.open_file() {
                    Some(open) => open.real().branch,
                    None => self.held.get(inode.ino).map(|(_, branch)| branch),
                };
                branch.is_none_or(|branch| self.branch(branch).in_place())
            }
        }
    }

    /// Makes sure that an inode can be changed: copies it up if it lies on a branch that is not
    /// written. No names are held.
    ///
    /// # Errors
    /// EROFS if no branch above takes it, and whatever copying answers.
    pub(super) fn make_changeable(&self, inode: &Arc<Inode>, keep: Keep) -> Result<(), Errno> {
        if self.in_place(inode) {
            return Ok(());
        }
        if let Place::Stack(stack) = inode.place() {
            let lost = if inode.ino == ROOT { Errno::ROFS } else { Errno::STALE };
            let dentry = inode.dentry().ok_or(lost)?;
            let target = self.target_above(&dentry.parent, stack.top())?;
            return self.raise_dir(inode, target);
        }
        let _gate = inode.gate.lock();
        self.copy_up(inode, None, None, keep)
    }

    /// Whether a copy-up of the inode would find a branch.
    pub(super) fn check_changeable(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        if self.in_place(inode) {
            return Ok(());
        }
        match inode.place() {
            Place::Entry(branch) => {
                let dentry = inode.dentry().ok_or(Errno::STALE)?;
                self.target_above(&dentry.parent, branch).map(drop)
            }
            _ => self.writable().next().map(drop).ok_or(Errno::ROFS),
        }
    }

    /// Makes an entry stand under a name on a branch itself, for a rename or link that this
    /// branch carries. No names are held.
    pub(super) fn bring_up(&self, inode: &Arc<Inode>, dentry: &Dentry, branch: BranchIndex) -> Result<(), Errno> {
        let _gate = inode.gate.lock();
        match inode.place() {
            Place::Record(at) if at == branch => self.link_record(inode, dentry, branch).map(drop),
            Place::Record(_) => Err(Errno::XDEV),
            Place::Entry(at) if at == branch => Ok(()),
            Place::Entry(_) => self.copy_up(inode, Some(dentry.clone()), Some(branch), Keep::All),
            Place::Stack(_) => self.raise_dir(inode, branch),
            Place::Gone(_) => Err(Errno::NOENT),
        }
    }

    /// Copies a non-directory up. The gate is held.
    fn copy_up(
        &self,
        inode: &Arc<Inode>,
        dentry: Option<Dentry>,
        branch: Option<BranchIndex>,
        keep: Keep,
    ) -> Result<(), Errno> {
        let mut tries = 0..4;
        loop {
            match self.try_copy_up(inode, dentry.clone(), branch, keep) {
                // the name went while it was copied: another leads to the object, or none is left
                Err(Errno::STALE) if dentry.is_none() && tries.next().is_some() => {}
                result => return result,
            }
        }
    }

    fn try_copy_up(
        &self,
        inode: &Arc<Inode>,
        dentry: Option<Dentry>,
        branch: Option<BranchIndex>,
        keep: Keep,
    ) -> Result<(), Errno> {
        let from = match inode.place() {
            Place::Entry(from) if branch.is_some() || !self.branch(from).in_place() => from,
            Place::Gone(gone) if !self.in_place(inode) => return self.copy_nameless(inode, gone.nlink, keep),
            // somebody else did it while we waited
            _ => return Ok(()),
        };
        if dentry.is_none() {
            // forgets names that do not lead to it any more
            self.stat_by_name(inode)?;
        }
        let dentry = dentry.or_else(|| inode.dentry()).ok_or(Errno::STALE)?;
        let target = branch.map_or_else(|| self.target_above(&dentry.parent, from), Ok)?;
        self.raise_dir(&dentry.parent, target)?;
        let source = self.dir(&dentry.parent, from)?;
        let copy = self.prepare(inode, &source, dentry.name.as_bytes(), target, keep)?;
        let placed = self.put_in_place(inode, &dentry, from, target, &copy);
        if placed.is_err() {
            copy.work.discard(&copy.name);
        }
        let append_only = placed?;
        if let (Some(open), Some(file)) = (inode.open_file(), copy.file) {
            open.switch(Real {
                file,
                writable: true,
                append_only,
                branch: Some(target),
                form: self.form(Some(target)),
            });
        }
        Ok(())
    }

    /// Makes the copy in the work area.
    fn prepare<'a>(
        &'a self,
        inode: &Inode,
        source: &Dir,
        name: &[u8],
        target: BranchIndex,
        keep: Keep,
    ) -> Result<Copy<'a>, Errno> {
        let work = self.work(target)?;
        let temporary = work.temporary_name();
        let make = || -> Result<(Stat, Option<OwnedFd>), Errno> {
            let stat = source.find(name)?.ok_or(Errno::STALE)?;
            // other names may lead to the copy before the change that it is made for
            let keep = if stat.nlink > 1 { Keep::All } else { keep };
            if stat.id != inode.with(|state| state.real) {
                return Err(Errno::STALE);
            }
            let file = self.copy_object(work, &temporary, source, name, &stat, keep)?;
            let at = work.temporary().at(&temporary);
            at.take_attributes(source.at(name), &stat)?;
            if matches!(keep, Keep::First(bytes) if bytes < stat.size) {
                // the content is another already, should nobody come to truncate it
                at.set_times(SetTime::Keep, SetTime::Now)?;
            }
            if let Some(file) = &file
                && !self.options.volatile
            {
                rustix::fs::fsync(file)?;
            }
            Ok((at.stat()?, file))
        };
        match make() {
            Ok((stat, file)) => Ok(Copy { work, name: temporary, stat, file }),
            Err(errno) => {
                work.discard(&temporary);
                Err(errno)
            }
        }
    }

    /// Makes an object of the same type, with the content that is kept.
    fn copy_object(
        &self,
        work: &Work,
        temporary: &[u8],
        source: &Dir,
        name: &[u8],
        stat: &Stat,
        keep: Keep,
    ) -> Result<Option<OwnedFd>, Errno> {
        let into = work.temporary();
        match stat.kind {
            Kind::File => {
                let from = match source.open_file(name, OFlags::RDONLY) {
                    // what is not copied need not be readable
                    Err(Errno::ACCESS) if keep.of(stat.size) == 0 => None,
                    from => Some(from?),
                };
                let to = into.create_file(temporary, 0o600)?;
                if let Some(from) = from {
                    copy_data(from.as_fd(), to.as_fd(), stat.size, keep)?;
                    flags::carry(&from, &to);
                }
                return Ok(Some(to));
            }
            Kind::Symlink => into.make_symlink(temporary, &source.read_link(name)?)?,
            Kind::Dir => return Err(Errno::ISDIR),
            // it would be a whiteout there
            Kind::Char if stat.rdev == 0 && into.form().overlay => return Err(Errno::PERM),
            kind => into.make_node(temporary, kind, 0o600, stat.rdev)?,
        }
        Ok(None)
    }

    /// Renames a copy to its name, if it still is the name of the inode; what lost its name
    /// meanwhile goes on without one. Whether the copy is append-only from now on.
    fn put_in_place(
        &self,
        inode: &Arc<Inode>,
        dentry: &Dentry,
        from: BranchIndex,
        target: BranchIndex,
        copy: &Copy<'_>,
    ) -> Result<bool, Errno> {
        let parent = &dentry.parent;
        let name = dentry.name.as_name();
        let _names = parent.lock_names();
        let known = |d: &Dentry| Arc::ptr_eq(&d.parent, parent) && d.name == dentry.name;
        if !inode.with(|state| state.dentries.iter().any(known)) {
            return Err(Errno::STALE);
        }
        let sight = self.look(&self.level(parent)?, name)?;
        let before = sight.stat.ok_or(Errno::STALE)?;
        if sight.resolved.topmost() != Some(from) || before.id != inode.with(|state| state.real) {
            return Err(Errno::STALE);
        }
        let into = self.dir(parent, target)?;
        let place = || {
            let temporary = copy.work.temporary();
            into.keeping_times(|| temporary.rename(&copy.name, &into, name.as_bytes(), RenameFlags::NOREPLACE))
        };
        let recorded = before.nlink > 1;
        let _changing = recorded.then(|| self.records.change());
        if recorded {
            // the record is found by the number, so that must outlive the mount, too
            copy.work.keep_number(copy.stat.id, inode.ino)?;
            self.check_record(target, inode.ino)?;
            recording(copy, inode.ino, &before, &self.gone(parent, from, name)?, place)?;
        } else {
            // if it cannot be written, it is known in this mount
            copy.work.set_number(copy.stat.id, inode.ino).ok();
            place()?;
        }
        // what is append-only could not have been put in its place
        let append_only = before.guard.append_only && copy.file.as_ref().is_some_and(flags::make_append_only);
        inode.with(|state| {
            state.place = if recorded { Place::Record(target) } else { Place::Entry(target) };
            state.real = copy.stat.id;
            state.unsynced = true;
        });
        Ok(append_only)
    }

    /// Makes a name that stands below a hard link of the copied-up file; false if it is one
    /// already. The gate is held.
    pub(super) fn link_record(&self, inode: &Arc<Inode>, dentry: &Dentry, branch: BranchIndex) -> Result<bool, Errno> {
        let (parent, name) = (&dentry.parent, dentry.name.as_name());
        self.raise_dir(parent, branch)?;
        let _names = parent.lock_names();
        let sight = self.look(&self.level(parent)?, name)?;
        let (Some(stat), Some(top)) = (sight.stat, sight.resolved.topmost()) else { return Err(Errno::STALE) };
        if top == branch {
            return Ok(false);
        }
        if self.number(top, &stat) != inode.ino {
            return Err(Errno::STALE);
        }
        let work = self.work(branch)?;
        self.check_record(branch, inode.ino)?;
        let (into, gone) = (self.dir(parent, branch)?, self.gone(parent, top, name)?);
        let _changing = self.records.change();
        links::note_gone(work, inode.ino, Origin::of(&stat), &gone)?;
        let linked = into.keeping_times(|| work.links().link(&links::link_name(inode.ino), &into, name.as_bytes()));
        if linked.is_err()
            && let Err(errno) = links::keep_gone(work, inode.ino, |known| known.place != gone.place)
        {
            tracing::warn!(%errno, "taking a name out of a hard-link record");
        }
        linked.map(|()| true)
    }

    /// Copies an open file that has no name we know. If none is left anywhere, the copy has none
    /// either; else it becomes the record to which the others lead.
    fn copy_nameless(&self, inode: &Arc<Inode>, nlink: u32, keep: Keep) -> Result<(), Errno> {
        let open = inode.open_file().ok_or(Errno::STALE)?;
        let real = open.real();
        if keep != Keep::First(0) {
            open.check_readable()?;
        }
        let (target, work) = self.writable().next().ok_or(Errno::ROFS)?;
        let temporary = work.temporary_name();
        let file = work.temporary().create_file(&temporary, 0o600)?;
        let made = || -> Result<(Stat, Option<Changing<'_>>), Errno> {
            let stat = real.at().stat()?;
            copy_data(real.file.as_fd(), file.as_fd(), stat.size, keep)?;
            let at = At::open(file.as_fd(), self.form(Some(target)));
            at.take_attributes(real.at(), &stat)?;
            let copied = at.stat()?;
            if nlink == 0 {
                return Ok((copied, None));
            }
            if !self.options.volatile {
                rustix::fs::fsync(&file)?;
            }
            let changing = self.records.change();
            links::keep_copy(work, &temporary, inode.ino)?;
            work.keep_number(copied.id, inode.ino)?;
            Ok((copied, Some(changing)))
        };
        let (copied, _changing) = made().inspect_err(|_| work.discard(&temporary))?;
        work.temporary().unlink(&temporary)?;
        let still_nameless = inode.with(|state| {
            let nameless = matches!(state.place, Place::Gone(_));
            if nameless && nlink > 0 {
                state.place = Place::Record(target);
                state.real = copied.id;
            }
            nameless
        });
        if !still_nameless {
            // another name of it was looked up meanwhile, by which it is copied up
            return Err(Errno::STALE);
        }
        let form = self.form(Some(target));
        open.switch(Real { file, writable: true, append_only: false, branch: (nlink > 0).then_some(target), form });
        Ok(())
    }
}

/// Makes a copy the record of an object with several names, and gives it the one name.
///
/// From the record on it is done: all names that stand below lead to it, this one, too, if it
/// cannot be put in its place.
fn recording(
    copy: &Copy<'_>,
    number: u64,
    before: &Stat,
    gone: &Gone,
    place: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let work = copy.work;
    links::note_gone(work, number, Origin::of(before), gone)?;
    let recorded = links::keep_copy(work, &copy.name, number);
    let named = recorded.and_then(|()| place());
    if named.is_err() {
        if let Err(errno) = links::keep_gone(work, number, |known| known.place != gone.place) {
            tracing::warn!(%errno, "taking a name out of a hard-link record");
        }
        if recorded.is_ok() {
            copy.work.discard(&copy.name);
        }
    }
    recorded
}
