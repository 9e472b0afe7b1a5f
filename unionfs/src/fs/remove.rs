//! Removing: unlink and rmdir (rules 18 to 22). No data is ever copied for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::records::Changing;
use super::steps::Carrier;
use super::{Entry, Progress, Sight, Union, name};
use crate::branch::dir::Dir;
use crate::branch::stat::{Kind, Stat};
use crate::inode::{Inode, Place};
use crate::links::{self, Origin};
use crate::union::plan::Remove;
use crate::union::{BranchIndex, Name, Resolved};

/// A file of so many bytes on disk takes long to go: its blocks are freed, and its pages. It is
/// held while its name goes, so that nobody waits for it but who removes it.
const LARGE: u64 = 16 << 20;

/// Whether the last name of a large file is asked for.
pub(super) fn is_large(stat: &Stat) -> bool {
    stat.kind == Kind::File && stat.nlink == 1 && stat.blocks > LARGE / 512
}

/// A name that is about to go, for the hard-link records.
pub(super) struct Going<'a> {
    pub(super) victim: &'a Inode,
    pub(super) dir: &'a Arc<Inode>,
    pub(super) name: Name<'a>,
    pub(super) carrier: BranchIndex,
    /// Where the name's topmost entry lies: on the carrier, or below it.
    pub(super) top: BranchIndex,
    /// Of the name's own entry.
    pub(super) stat: Stat,
}

impl Going<'_> {
    /// Counts the name, before it goes, if the object has others where this one stands. The change
    /// lasts until the name is gone.
    pub(super) fn note<'a>(&self, union: &'a Union) -> Result<Option<Changing<'a>>, Errno> {
        let Some(record) = self.record() else { return Ok(None) };
        let changing = union.records.change();
        union.check_record(record, self.victim.ino)?;
        let gone = union.gone(self.dir, self.top, self.name)?;
        links::note_gone(union.work(record)?, self.victim.ino, Origin::of(&self.stat), &gone)?;
        Ok(Some(changing))
    }

    /// Takes that back.
    pub(super) fn stays(&self, union: &Union) {
        let Some(record) = self.record() else { return };
        let keep = || -> Result<(), Errno> {
            let here = union.gone(self.dir, self.top, self.name)?;
            links::keep_gone(union.work(record)?, self.victim.ino, |gone| gone.place != here.place)
        };
        union.records.note_move();
        if let Err(errno) = keep() {
            tracing::warn!(%errno, "correcting a hard-link record");
        }
    }

    /// The branch of the record, if one is needed: the name stands below the object's copy, or is
    /// hidden while others like it stay.
    fn record(&self) -> Option<BranchIndex> {
        match self.victim.place() {
            _ if self.victim.kind == Kind::Dir => None,
            Place::Record(branch) => (self.stat.id != self.victim.with(|state| state.real)).then_some(branch),
            _ => (self.top != self.carrier && self.stat.nlink > 1).then_some(self.carrier),
        }
    }
}

impl Union {
    /// Removes a name of what is not a directory, unless that takes long and `may_wait` is not set.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS, EPERM for `.wh.` names.
    pub fn unlink(&self, parent: u64, bytes: &[u8], may_wait: bool) -> Result<Progress, Errno> {
        let check = |kind| if kind == Kind::Dir { Err(Errno::ISDIR) } else { Ok(()) };
        self.remove(parent, bytes, check, may_wait)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS, EBUSY if it is another branch.
    pub fn rmdir(&self, parent: u64, bytes: &[u8]) -> Result<(), Errno> {
        let check = |kind| if kind == Kind::Dir { Ok(()) } else { Err(Errno::NOTDIR) };
        self.remove(parent, bytes, check, true).map(drop)
    }

    fn remove(
        &self,
        parent: u64,
        bytes: &[u8],
        check: impl Fn(Kind) -> Result<(), Errno>,
        may_wait: bool,
    ) -> Result<Progress, Errno> {
        let name = name(bytes)?;
        let dir = self.inodes.get(parent)?;
        loop {
            let names = dir.lock_names();
            let sight = self.look(&dir, name)?;
            let (Some(stat), Some(top)) = (sight.stat, sight.resolved.topmost()) else { return Err(Errno::NOENT) };
            check(stat.kind)?;
            self.guard(&dir)?.check_change()?;
            let target = if self.branch(top).writable() { top } else { self.target_above(&dir, top)? };
            if !dir.stack()?.branches.contains(&target) {
                if stat.kind == Kind::Dir {
                    // refused before the parents are brought up for nothing
                    let victim = self.find(&dir, name)?.ok_or(Errno::NOENT)?;
                    self.check_removable(&victim)?;
                }
                drop(names);
                self.raise_dir(&dir, target)?;
                continue;
            }
            let large = top == target && is_large(&stat);
            if large && !may_wait {
                return Ok(Progress::TakesLong);
            }
            let large = large.then(|| self.hold_large(&dir, top, name)).flatten();
            self.remove_here(&dir, name, sight, target)?;
            drop(names);
            drop(large);
            return Ok(Progress::Done);
        }
    }

    /// Removes with the names of the directory held, on a branch where it exists.
    fn remove_here(&self, dir: &Arc<Inode>, name: Name<'_>, sight: Sight, target: BranchIndex) -> Result<(), Errno> {
        let top = sight.resolved.topmost();
        let on_carrier = top == Some(target);
        let (Some(stat), Some(top)) = (sight.stat, top) else { return Err(Errno::NOENT) };
        let below = self.shows_below(dir, target, name, &sight)?;
        let entry = self.adopt(dir, name, sight)?;
        let victim = entry.lookup.inode();
        entry.attr.stat.guard.check_change()?;
        let _inside = (victim.kind == Kind::Dir).then(|| victim.lock_names());
        let into = self.dir(dir, target)?;
        if victim.kind == Kind::Dir {
            if !below && self.is_removed_empty(victim, &into, name, target)? {
                self.after_removal(victim, dir, name, entry.attr.stat);
                return Ok(());
            }
            self.check_removable(&entry)?;
        }
        let going = Going { victim, dir, name, carrier: target, top, stat };
        let _changing = going.note(self)?;
        if !matches!(victim.kind, Kind::File | Kind::Symlink) {
            self.hold(&entry, dir, name, Some(top))?;
        }
        if below {
            self.note_whiteout(dir);
        }
        let carrier = Carrier { work: self.work(target)?, source: None, target: self.spot(dir, target, name)? };
        if let Err(errno) = carrier.remove(Remove { dir: victim.kind == Kind::Dir, on_carrier, below }) {
            going.stays(self);
            return Err(errno);
        }
        self.after_removal(victim, dir, name, entry.attr.stat);
        Ok(())
    }

    /// Whether a lookup of the name in the branches below one finds something.
    pub(super) fn shows_below(
        &self,
        dir: &Arc<Inode>,
        branch: BranchIndex,
        name: Name<'_>,
        sight: &Sight,
    ) -> Result<bool, Errno> {
        match &sight.resolved {
            Resolved::Leaf(top) if *top > branch => Ok(true),
            Resolved::Dir { stack, .. } if stack.iter().any(|at| *at > branch) => Ok(true),
            // all branches were asked
            Resolved::Dir { cut: None, .. } | Resolved::Missing { cut: None } => Ok(false),
            _ => Ok(!matches!(self.look_below(dir, branch, name)?, Resolved::Missing { .. })),
        }
    }

    /// Removes a directory with one system call if it lies on the carrier only, and nothing at all
    /// is in it there: the kernel sees to that, and to its flags. Whether it did.
    fn is_removed_empty(&self, victim: &Inode, into: &Dir, name: Name<'_>, target: BranchIndex) -> Result<bool, Errno> {
        let stack = victim.stack()?;
        let alone = stack.branches[..] == [target] && stack.redirect.is_none();
        if !alone || into.form().overlay || !self.branch(target).covered.is_empty() {
            return Ok(false);
        }
        // any other answer has a reason that is found by looking
        Ok(into.remove_dir(name.as_bytes()).is_ok())
    }

    /// Holds a large file while its name goes.
    pub(super) fn hold_large(&self, dir: &Arc<Inode>, top: BranchIndex, name: Name<'_>) -> Option<OwnedFd> {
        let held = self.dir(dir, top).and_then(|dir| dir.hold(name.as_bytes()));
        // without it, others wait a little
        held.inspect_err(|errno| tracing::debug!(%errno, "holding a large file")).ok()
    }

    /// Whether ending a handle takes long: the last one of a large file that has no name.
    pub fn release_takes_long(&self, handle: u64) -> bool {
        let handle = self.handles.file(handle);
        handle.is_ok_and(|handle| {
            handle.open.inode.with(|state| match &state.place {
                Place::Gone(stat) => stat.blocks > LARGE / 512,
                _ => false,
            })
        })
    }

    /// Holds an object whose last name is about to go.
    pub(super) fn hold(
        &self,
        entry: &Entry,
        dir: &Arc<Inode>,
        name: Name<'_>,
        top: Option<BranchIndex>,
    ) -> Result<(), Errno> {
        let inode = entry.lookup.inode();
        let by_its_name = matches!(inode.place(), Place::Entry(branch) if Some(branch) == top);
        let (Some(top), 1, true) = (top, entry.attr.stat.nlink, by_its_name) else { return Ok(()) };
        let held = self.dir(dir, top)?.hold(name.as_bytes())?;
        inode.with(|state| state.held = true);
        self.held.keep(inode.ino, held, top);
        Ok(())
    }

    /// A directory can go if the merged view of it is empty and it is no other branch.
    pub(super) fn check_removable(&self, entry: &Entry) -> Result<(), Errno> {
        let victim = entry.lookup.inode();
        self.guard_of_entry(entry)?.check_change()?;
        if self.level(victim)?.iter().any(|(_, dir)| self.is_stand_in(dir)) {
            return Err(Errno::BUSY);
        }
        if self.is_empty_dir(victim)? { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    /// What is known of an object after a name of it went. `before` are its attributes before.
    pub(super) fn after_removal(&self, victim: &Arc<Inode>, dir: &Arc<Inode>, name: Name<'_>, before: Stat) {
        let nlink = if victim.kind == Kind::Dir { 0 } else { before.nlink.saturating_sub(1) };
        let dentry = victim.remove_name(dir, name);
        let place = victim.place();
        let last_known = victim.with(|state| state.dentries.is_empty());
        if nlink == 0 || (last_known && !matches!(place, Place::Record(_))) {
            victim.with(|state| state.place = Place::Gone(Box::new(Stat { nlink, ..before })));
        }
        if nlink == 0 {
            self.forget_open(victim.ino);
            self.forget_records(victim, &place);
        }
        drop(dentry);
    }

    /// Removes what the work areas know of an object without names.
    fn forget_records(&self, victim: &Inode, place: &Place) {
        let real = victim.with(|state| state.real);
        let top = match place {
            Place::Entry(branch) | Place::Record(branch) => Some(*branch),
            Place::Stack(stack) => Some(stack.top()),
            Place::Gone(_) => None,
        };
        if let Some(work) = top.and_then(|branch| self.branch(branch).work.as_ref()) {
            work.forget_number(real);
        }
        if victim.kind == Kind::Dir {
            return;
        }
        let recorded = matches!(place, Place::Record(_)) || top.is_some_and(|branch| !self.branch(branch).writable());
        for (_, work) in self.writable().filter(|_| recorded) {
            if let Err(errno) = links::remove(work, victim.ino) {
                tracing::warn!(%errno, "removing a hard-link record");
            }
        }
    }
}
