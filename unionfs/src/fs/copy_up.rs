//! Copy-up (rules 27 to 32): an entry is prepared in the work area with everything it has, made
//! durable, and renamed into place. Whatever fails before that leaves nothing behind.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Union;
use super::copy_data::{Content, Copying, Keep, Way};
use super::flags;
use crate::branch::at::{At, SetTime};
use crate::branch::dir::Dir;
use crate::branch::stat::{Kind, RealId, Stat};
use crate::branch::unplaced::Unplaced;
use crate::branch::work::Work;
use crate::handle::Real;
use crate::inode::{Dentry, Inode, Place, ROOT};
use crate::links::{self, Gone, Origin};
use crate::union::{BranchIndex, Name};

/// Copying so many bytes within memory takes no longer than having another thread do it.
const SHORT: u64 = 64 << 10;

/// A copy that is not in its place yet.
struct Copy<'a> {
    entry: Unplaced<'a>,
    /// Who it is.
    id: RealId,
    content: Content,
    /// How much of the content was kept.
    bytes: u64,
    /// Whether its number is on disk.
    has_number: bool,
}

/// Waits until a copy may get its name: no power cut must leave the name without the content.
///
/// A journal that keeps the order of names keeps that of blocks that become shared, too: where nothing
/// was written, it is enough (XFS; there fsync(2) would double the time of a reflinked copy-up). The
/// tree of btrfs keeps no such order: it logs names of files that were never synchronised.
fn wait_for_disk(file: &OwnedFd, work: &Work, content: Content) -> Result<(), Errno> {
    let in_order = content == Content::OnDisk && !work.needs_order();
    if in_order || !work.is_on_disk() { Ok(()) } else { rustix::fs::fsync(file) }
}

impl Copy<'_> {
    /// Sees to it that its number outlives the mount, for a record is found by the number.
    fn keep_number(&mut self, number: u64) -> Result<(), Errno> {
        if !self.has_number {
            self.entry.work().keep_number(self.id, number)?;
            self.has_number = true;
        }
        Ok(())
    }
}

/// What is copied.
struct Source<'a> {
    dir: &'a Dir,
    name: &'a [u8],
    branch: BranchIndex,
    /// If it is open already.
    open: Option<Arc<Real>>,
}

impl Source<'_> {
    fn stat(&self) -> Result<Stat, Errno> {
        match &self.open {
            Some(real) => real.at().stat(),
            None => self.dir.find(self.name)?.ok_or(Errno::STALE),
        }
    }
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

    /// Whether changing an inode has to wait for a copy-up that takes long: of much, or to a disk, or
    /// one that is going on.
    pub(super) fn copies_long(&self, inode: &Arc<Inode>) -> bool {
        if inode.kind == Kind::Dir || self.in_place(inode) {
            return false;
        }
        let size = || match inode.open_file() {
            Some(open) => open.real().at().stat(),
            None => self.stat_by_name(inode),
        };
        self.waits_for_disk || inode.gate.is_locked() || size().map_or(true, |stat| stat.size > SHORT)
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
        for _ in 0..4 {
            match self.try_copy_up(inode, dentry.clone(), branch, keep) {
                // the name went while it was copied: another leads to the object, or none is left
                Err(Errno::STALE) if dentry.is_none() => {}
                result => return result,
            }
            // forgets names that do not lead to it any more
            match self.stat_by_name(inode) {
                Ok(_) | Err(Errno::STALE) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.try_copy_up(inode, dentry, branch, keep)
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
            Place::Gone(gone) if !self.in_place(inode) => {
                return self.copy_ups.measure(|| self.copy_nameless(inode, gone.nlink, keep));
            }
            // somebody else did it while we waited
            _ => return Ok(()),
        };
        self.copy_ups.measure(|| self.copy_entry(inode, dentry, from, branch, keep))
    }

    /// Copies what lies on a branch. How many bytes of content.
    fn copy_entry(
        &self,
        inode: &Arc<Inode>,
        dentry: Option<Dentry>,
        from: BranchIndex,
        branch: Option<BranchIndex>,
        keep: Keep,
    ) -> Result<u64, Errno> {
        let dentry = dentry.or_else(|| inode.dentry()).ok_or(Errno::STALE)?;
        let target = branch.map_or_else(|| self.target_above(&dentry.parent, from), Ok)?;
        self.raise_dir(&dentry.parent, target)?;
        let dir = self.dir(&dentry.parent, from)?;
        let source = Source { dir: &dir, name: dentry.name.as_bytes(), branch: from, open: self.open_on(inode, from) };
        let mut copy = self.prepare(inode, &source, target, keep)?;
        let placed = self.put_in_place(inode, &dentry, from, target, &mut copy);
        if placed.is_err() {
            copy.entry.work().forget_number(copy.id);
        }
        let append_only = placed?;
        let bytes = copy.bytes;
        if let (Some(open), Some(file)) = (inode.open_file(), copy.entry.into_open()) {
            let (branch, form) = (Some(target), self.form(Some(target)));
            open.switch(Real { file, writable: true, append_only, branch, form });
        }
        Ok(bytes)
    }

    /// The open file of an inode on a branch, if its content can be had.
    fn open_on(&self, inode: &Inode, branch: BranchIndex) -> Option<Arc<Real>> {
        let open = inode.open_file().filter(|open| open.check_readable().is_ok())?;
        Some(open.real()).filter(|real| real.branch == Some(branch))
    }

    /// Makes the copy in the work area.
    fn prepare<'a>(
        &'a self,
        inode: &Inode,
        source: &Source<'_>,
        target: BranchIndex,
        keep: Keep,
    ) -> Result<Copy<'a>, Errno> {
        let stat = source.stat()?;
        if stat.id != inode.with(|state| state.real) {
            return Err(Errno::STALE);
        }
        // other names may lead to the copy before the change that it is made for
        let keep = if stat.nlink > 1 { Keep::All } else { keep };
        let mut copy = match stat.kind {
            Kind::File => self.copy_file(source, &stat, target, keep)?,
            _ => self.copy_other(source, &stat, target)?,
        };
        if matches!(keep, Keep::First(bytes) if bytes < stat.size) {
            // the content is another already, should nobody come to truncate it
            copy.entry.at().set_times(SetTime::Keep, SetTime::Now)?;
        }
        if let Some(file) = copy.entry.open()
            && !self.options.volatile
        {
            wait_for_disk(file, copy.entry.work(), copy.content)?;
        }
        self.wait_for_kept(target)?;
        if stat.nlink > 1 {
            // no names are held yet, and others may wait for those
            copy.keep_number(inode.ino)?;
        }
        Ok(copy)
    }

    /// Makes a regular file with the content that is kept.
    fn copy_file(&self, source: &Source<'_>, stat: &Stat, target: BranchIndex, keep: Keep) -> Result<Copy<'_>, Errno> {
        let opened;
        let from = match &source.open {
            Some(real) => Some(real.file.as_fd()),
            None => match source.dir.open_file(source.name, OFlags::RDONLY) {
                // what is not copied need not be readable
                Err(Errno::ACCESS) if keep.of(stat.size) == 0 => None,
                file => {
                    opened = file?;
                    Some(opened.as_fd())
                }
            },
        };
        let entry = Unplaced::file(self.work(target)?, stat.mode)?;
        let to = entry.open().ok_or(Errno::IO)?;
        let Some(from) = from else {
            let id = entry.at().take_attributes(source.dir.at(source.name), stat)?;
            return Ok(Copy { entry, id, content: Content::OnDisk, bytes: 0, has_number: false });
        };
        let content = self.copy_content(from, to.as_fd(), stat, keep, Some((source.branch, target)))?;
        flags::carry(&from, to);
        let id = entry.at().take_attributes(At::open(from, source.dir.form()), stat)?;
        Ok(Copy { entry, id, content, bytes: keep.of(stat.size), has_number: false })
    }

    /// Copies content in the best way that there is between two branches.
    fn copy_content(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        keep: Keep,
        between: Option<(BranchIndex, BranchIndex)>,
    ) -> Result<Content, Errno> {
        let known = between.map_or_else(Way::default, |between| self.ways.best(between));
        let durable = !self.options.volatile;
        let mut copying = Copying { from, to, size: stat.size, blocks: stat.blocks, keep, durable, way: known };
        let copied = copying.run();
        if let Some(between) = between
            && copying.way != known
        {
            self.ways.learn(between, copying.way);
        }
        copied
    }

    /// Makes a symbolic link, fifo, socket or device.
    fn copy_other(&self, source: &Source<'_>, stat: &Stat, target: BranchIndex) -> Result<Copy<'_>, Errno> {
        let work = self.work(target)?;
        let overlay = work.temporary().form().overlay;
        let entry = Unplaced::entry(work, |into, temporary| match stat.kind {
            Kind::Symlink => into.make_symlink(temporary, &source.dir.read_link(source.name)?),
            Kind::Dir => Err(Errno::ISDIR),
            // it would be a whiteout there
            Kind::Char if stat.rdev == 0 && overlay => Err(Errno::PERM),
            kind => into.make_node(temporary, kind, 0o600, stat.rdev),
        })?;
        let id = entry.at().take_attributes(source.dir.at(source.name), stat)?;
        Ok(Copy { entry, id, content: Content::OnDisk, bytes: 0, has_number: false })
    }

    /// Gives a copy its name, if it still is the name of the inode; what lost its name
    /// meanwhile goes on without one. Whether the copy is append-only from now on.
    fn put_in_place(
        &self,
        inode: &Arc<Inode>,
        dentry: &Dentry,
        from: BranchIndex,
        target: BranchIndex,
        copy: &mut Copy<'_>,
    ) -> Result<bool, Errno> {
        let parent = &dentry.parent;
        let name = dentry.name.as_name();
        let _names = parent.lock_names();
        let known = |d: &Dentry| Arc::ptr_eq(&d.parent, parent) && d.name == dentry.name;
        if !inode.with(|state| state.dentries.iter().any(known)) {
            return Err(Errno::STALE);
        }
        let sight = self.look(parent, name)?;
        let before = sight.stat.ok_or(Errno::STALE)?;
        if sight.resolved.topmost() != Some(from) || before.id != inode.with(|state| state.real) {
            return Err(Errno::STALE);
        }
        let into = self.spot(parent, target, name)?.dir;
        let recorded = before.nlink > 1;
        let _changing = recorded.then(|| self.records.change());
        if recorded {
            copy.keep_number(inode.ino)?;
            self.check_record(target, inode.ino)?;
            recording(copy, inode.ino, &before, &self.gone(parent, from, name)?, (&into, name))?;
        } else {
            // if it cannot be written, it is known in this mount
            copy.entry.work().set_number(copy.id, inode.ino).ok();
            into.keeping_times(|| copy.entry.place(&into, name.as_bytes()))?;
        }
        // what is append-only could not have been put in its place
        let append_only = before.guard.append_only && copy.entry.open().is_some_and(flags::make_append_only);
        inode.with(|state| {
            state.place = if recorded { Place::Record(target) } else { Place::Entry(target) };
            state.real = copy.id;
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
        let sight = self.look(parent, name)?;
        let (Some(stat), Some(top)) = (sight.stat, sight.resolved.topmost()) else { return Err(Errno::STALE) };
        if top == branch {
            return Ok(false);
        }
        if self.number(top, &stat) != inode.ino {
            return Err(Errno::STALE);
        }
        let work = self.work(branch)?;
        self.check_record(branch, inode.ino)?;
        let (into, gone) = (self.spot(parent, branch, name)?.dir, self.gone(parent, top, name)?);
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
    /// How many bytes of content.
    fn copy_nameless(&self, inode: &Arc<Inode>, nlink: u32, keep: Keep) -> Result<u64, Errno> {
        let open = inode.open_file().ok_or(Errno::STALE)?;
        let real = open.real();
        if keep != Keep::First(0) {
            open.check_readable()?;
        }
        let (target, work) = self.writable().next().ok_or(Errno::ROFS)?;
        let stat = real.at().stat()?;
        let copy = Unplaced::file(work, stat.mode)?;
        let to = copy.open().ok_or(Errno::IO)?;
        let between = real.branch.map(|branch| (branch, target));
        let content = self.copy_content(real.file.as_fd(), to.as_fd(), &stat, keep, between)?;
        let id = copy.at().take_attributes(real.at(), &stat)?;
        let recorded = nlink > 0;
        if recorded {
            if !self.options.volatile {
                wait_for_disk(to, work, content)?;
            }
            work.keep_number(id, inode.ino)?;
        }
        let _changing = recorded.then(|| self.records.change());
        if recorded {
            links::keep_copy(&copy, inode.ino)?;
        }
        let file = copy.into_open().ok_or(Errno::IO)?;
        let still_nameless = inode.with(|state| {
            let nameless = matches!(state.place, Place::Gone(_));
            if nameless && recorded {
                state.place = Place::Record(target);
                state.real = id;
            }
            nameless
        });
        if !still_nameless {
            // another name of it was looked up meanwhile, by which it is copied up
            return Err(Errno::STALE);
        }
        let form = self.form(Some(target));
        open.switch(Real { file, writable: true, append_only: false, branch: recorded.then_some(target), form });
        Ok(keep.of(stat.size))
    }
}

/// Makes a copy the record of an object with several names, and gives it the one name.
///
/// From the record on it is done: all names that stand below lead to it, this one, too, if it
/// cannot be put in its place.
fn recording(
    copy: &mut Copy<'_>,
    number: u64,
    before: &Stat,
    gone: &Gone,
    (into, name): (&Dir, Name<'_>),
) -> Result<(), Errno> {
    let work = copy.entry.work();
    links::note_gone(work, number, Origin::of(before), gone)?;
    let recorded = links::keep_copy(&copy.entry, number);
    let named = recorded.and_then(|()| into.keeping_times(|| copy.entry.place(into, name.as_bytes())));
    if named.is_err()
        && let Err(errno) = links::keep_gone(work, number, |known| known.place != gone.place)
    {
        tracing::warn!(%errno, "taking a name out of a hard-link record");
    }
    recorded
}
