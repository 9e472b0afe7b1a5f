//! Removing: unlink and rmdir (rules 18 to 22). No data is ever copied for it.

use std::sync::Arc;

use rustix::io::Errno;

use super::steps::{Carrier, Spot};
use super::{Entry, Sight, Union, name};
use crate::branch::stat::{Kind, Stat};
use crate::inode::{Inode, Place};
use crate::links::{self, Origin};
use crate::union::plan::{self, Remove};
use crate::union::{BranchIndex, Name, Resolved};

impl Union {
    /// Removes a name of what is not a directory.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS, EPERM for `.wh.` names.
    pub fn unlink(&self, parent: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.remove(parent, bytes, |kind| if kind == Kind::Dir { Err(Errno::ISDIR) } else { Ok(()) })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS, EBUSY if it is another branch.
    pub fn rmdir(&self, parent: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.remove(parent, bytes, |kind| if kind == Kind::Dir { Ok(()) } else { Err(Errno::NOTDIR) })
    }

    fn remove(&self, parent: u64, bytes: &[u8], check: impl Fn(Kind) -> Result<(), Errno>) -> Result<(), Errno> {
        let name = name(bytes)?;
        let dir = self.inodes.get(parent)?;
        loop {
            let names = dir.names.write();
            let sight = self.look(&self.level(&dir)?, name)?;
            let (Some(stat), Some(top)) = (sight.stat, sight.resolved.topmost()) else { return Err(Errno::NOENT) };
            check(stat.kind)?;
            let target = if self.branch(top).writable() { top } else { self.target_above(&dir, top)? };
            if !dir.stack()?.branches.contains(&target) {
                if stat.kind == Kind::Dir {
                    // refused before the parents are brought up for nothing
                    let victim = self.find(&dir, name)?.ok_or(Errno::NOENT)?;
                    self.check_removable(victim.lookup.inode())?;
                }
                drop(names);
                self.raise_dir(&dir, target)?;
                continue;
            }
            return self.remove_here(&dir, name, sight, target);
        }
    }

    /// Removes with the names of the directory held, on a branch where it exists.
    fn remove_here(&self, dir: &Arc<Inode>, name: Name<'_>, sight: Sight, target: BranchIndex) -> Result<(), Errno> {
        let top = sight.resolved.topmost();
        let on_carrier = top == Some(target);
        let stat = sight.stat.ok_or(Errno::NOENT)?;
        let entry = self.adopt(dir, name, sight)?;
        let victim = entry.lookup.inode();
        let _inside = (victim.kind == Kind::Dir).then(|| victim.names.write());
        if victim.kind == Kind::Dir {
            self.check_removable(victim)?;
        }
        let level = self.level(dir)?;
        let below = !matches!(self.look_below(&level, target, name)?, Resolved::Missing { .. });
        self.note_alias_gone(victim, dir, name, target, on_carrier, &stat)?;
        if !matches!(victim.kind, Kind::File | Kind::Symlink) {
            self.hold(&entry, dir, name, top)?;
        }
        let steps = plan::remove(Remove { dir: victim.kind == Kind::Dir, on_carrier, below });
        let into = self.dir(dir, target)?;
        let carrier = Carrier { work: self.work(target)?, source: None, target: Spot { dir: into, name } };
        if let Err(errno) = carrier.run(&steps, |_| Ok(())) {
            self.alias_stays(victim, dir, name, target, on_carrier, &stat);
            return Err(errno);
        }
        self.after_removal(victim, dir, name, entry.attr.stat);
        Ok(())
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
        self.held.keep(inode.ino, held, top);
        Ok(())
    }

    /// A directory can go if the merged view of it is empty and it is no other branch.
    pub(super) fn check_removable(&self, victim: &Arc<Inode>) -> Result<(), Errno> {
        if self.level(victim)?.iter().any(|(_, dir)| self.is_stand_in(dir)) {
            return Err(Errno::BUSY);
        }
        if self.merged(victim)?.is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    /// Counts a name below that goes, before it goes, if the object has other names there.
    pub(super) fn note_alias_gone(
        &self,
        victim: &Inode,
        dir: &Arc<Inode>,
        name: Name<'_>,
        target: BranchIndex,
        on_carrier: bool,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let Some(record) = self.record_branch(victim, target, on_carrier, stat) else { return Ok(()) };
        let path = Inode::path_of(dir, name);
        links::note_gone(self.work(record)?, victim.ino, Origin::of(stat), &path)
    }

    /// Takes [`Union::note_alias_gone`] back.
    pub(super) fn alias_stays(
        &self,
        victim: &Inode,
        dir: &Arc<Inode>,
        name: Name<'_>,
        target: BranchIndex,
        on_carrier: bool,
        stat: &Stat,
    ) {
        let Some(record) = self.record_branch(victim, target, on_carrier, stat) else { return };
        let path = Inode::path_of(dir, name);
        let kept = self.work(record).and_then(|work| links::keep_gone(work, victim.ino, |gone| gone != path));
        if let Err(errno) = kept {
            tracing::warn!(%errno, "correcting a hard-link record");
        }
    }

    /// Where the record of a name is kept that goes, if it needs one: the name stands below the
    /// object's copy, or is hidden while others like it stay. `stat` is that of the name's own
    /// entry.
    fn record_branch(&self, victim: &Inode, target: BranchIndex, on_carrier: bool, stat: &Stat) -> Option<BranchIndex> {
        match victim.place() {
            _ if victim.kind == Kind::Dir => None,
            Place::Record(branch) => (stat.id != victim.with(|state| state.real)).then_some(branch),
            _ => (!on_carrier && stat.nlink > 1).then_some(target),
        }
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
            self.dirs.remove(victim.ino);
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
            work.set_number(real, None);
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
