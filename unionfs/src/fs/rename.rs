//! Renaming (rules 23 to 26): one branch carries it, all of it.

mod carried;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::io::Errno;

use super::remove::is_large;
use super::{Entry, Sight, Union, name};
use crate::branch::stat::Kind;
use crate::inode::{Dentry, Inode, Place};
use crate::options::Dirren;
use crate::union::{BranchIndex, Cut, Name, Resolved, policy};

/// How a rename is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameFlags {
    /// The target is replaced.
    Replace,
    /// EEXIST if the target is there.
    NoReplace,
    /// Source and target change places.
    Exchange,
    /// A character device 0:0 stays at the source.
    Whiteout,
}

/// How far a rename or removal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is done.
    Done,
    /// It was not begun, for it takes long: a file has to be copied up first, or a large one goes.
    TakesLong,
}

/// One of the two names.
struct End<'a> {
    dir: &'a Arc<Inode>,
    name: Name<'a>,
    sight: Sight,
}

impl End<'_> {
    fn top(&self) -> Option<BranchIndex> {
        self.sight.resolved.topmost()
    }

    fn is_dir(&self) -> bool {
        self.sight.stat.is_some_and(|stat| stat.kind == Kind::Dir)
    }

    /// The lowest branch on which an entry under this name is seen.
    fn lowest_seen(&self) -> Result<BranchIndex, Errno> {
        let lowest = self.dir.stack()?.lowest_seen;
        let here = match &self.sight.resolved {
            Resolved::Missing { cut: Some(cut) } => cut.lowest_seen().ok_or(Errno::ROFS)?,
            Resolved::Missing { cut: None } => lowest,
            Resolved::Leaf(branch) => *branch,
            Resolved::Dir { stack, cut } => {
                let cut = cut.and_then(Cut::lowest_seen).unwrap_or(lowest);
                stack.first().map_or(cut, |top| cut.min(*top))
            }
        };
        Ok(here.min(lowest))
    }
}

/// What a try came to.
enum Outcome {
    /// With what was replaced, if it is large.
    Done(Option<OwnedFd>),
    /// A large file would be replaced.
    TakesLong,
    /// Something has to be brought up first, without names held.
    BringUp { directories: Vec<Arc<Inode>>, entries: Vec<(Arc<Inode>, Dentry)>, branch: BranchIndex },
}

impl Union {
    /// Renames an entry, unless that takes long and `may_wait` is not set.
    ///
    /// # Errors
    /// ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EBUSY, EROFS, EPERM for `.wh.` names; EXDEV
    /// with `dirren=off` for a directory that has content on branches below.
    pub fn rename(
        &self,
        (parent, old): (u64, &[u8]),
        (new_parent, new): (u64, &[u8]),
        flags: RenameFlags,
        may_wait: bool,
    ) -> Result<Progress, Errno> {
        let (old, new) = (name(old)?, name(new)?);
        let (from, to) = (self.inodes.get(parent)?, self.inodes.get(new_parent)?);
        // each turn brings something up, so a few are enough unless others undo it all the time
        for _ in 0..32 {
            let names = lock_both(&from, &to);
            match self.try_rename((&from, old), (&to, new), flags, may_wait)? {
                Outcome::Done(large) => {
                    drop(names);
                    drop(large);
                    return Ok(Progress::Done);
                }
                Outcome::TakesLong => return Ok(Progress::TakesLong),
                Outcome::BringUp { directories, entries, branch } => {
                    drop(names);
                    if !may_wait && entries.iter().any(|(inode, _)| needs_copy(inode) && self.copies_long(inode)) {
                        return Ok(Progress::TakesLong);
                    }
                    for dir in directories {
                        self.raise_dir(&dir, branch)?;
                    }
                    for (inode, dentry) in entries {
                        self.bring_up(&inode, &dentry, branch)?;
                    }
                }
            }
        }
        Err(Errno::BUSY)
    }

    fn try_rename(
        &self,
        from: (&Arc<Inode>, Name<'_>),
        to: (&Arc<Inode>, Name<'_>),
        flags: RenameFlags,
        may_wait: bool,
    ) -> Result<Outcome, Errno> {
        let (source, target) = (self.end(from)?, self.end(to)?);
        let source_top = source.top().ok_or(Errno::NOENT)?;
        match (flags, target.top()) {
            (RenameFlags::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameFlags::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        let moved = self.entry_of(&source)?.ok_or(Errno::NOENT)?;
        let replaced = self.entry_of(&target)?;
        if replaced.as_ref().is_some_and(|entry| entry.attr.ino == moved.attr.ino) {
            return Ok(Outcome::Done(None));
        }
        self.check_leaves(&source, Some(&moved))?;
        match flags {
            RenameFlags::Exchange => self.check_leaves(&target, replaced.as_ref())?,
            _ if replaced.is_some() => self.check_leaves(&target, replaced.as_ref())?,
            _ => self.guard(target.dir)?.check_addition()?,
        }
        if flags != RenameFlags::Exchange
            && let Some(replaced) = &replaced
        {
            self.check_replaceable(&source, &target, replaced)?;
        }
        let mut highest = source_top.min(target.lowest_seen()?);
        if flags == RenameFlags::Exchange {
            highest = highest.min(target.top().unwrap_or(highest));
        }
        for entry in [Some(&moved), replaced.as_ref().filter(|_| flags == RenameFlags::Exchange)].into_iter().flatten()
        {
            // the copy of a hard-linked file stays where it is, and a name of it goes there
            if let Place::Record(copy) = entry.lookup.inode().place() {
                highest = highest.min(copy);
            }
        }
        let candidates = self.candidates_for_both(source.dir, target.dir)?;
        let carrier = policy::carrier(&candidates, highest).ok_or(Errno::ROFS)?;
        if flags == RenameFlags::Whiteout && self.form(Some(carrier)).overlay {
            // a device that hides what is below is no entry there
            return Err(Errno::PERM);
        }
        self.check_movable(&moved, carrier)?;
        if flags == RenameFlags::Exchange
            && let Some(replaced) = &replaced
        {
            self.check_movable(replaced, carrier)?;
        }
        if let Some(outcome) = self.missing_on(carrier, &source, &target, &moved, replaced.as_ref(), flags)? {
            return Ok(outcome);
        }
        let goes = flags != RenameFlags::Exchange && target.sight.stat.is_some_and(|stat| is_large(&stat));
        let large = match target.top().filter(|top| goes && self.branch(*top).writable()) {
            Some(_) if !may_wait => return Ok(Outcome::TakesLong),
            Some(top) => self.hold_large(target.dir, top, target.name),
            None => None,
        };
        let renamed = self.rename_here(carrier, (&source, &moved), (&target, replaced.as_ref()), flags);
        if renamed.is_err() {
            // what a step left may have changed how its directory merges, but not what it shows
            self.refresh(&target);
        }
        renamed.map(|()| Outcome::Done(large))
    }

    fn end<'a>(&self, (dir, name): (&'a Arc<Inode>, Name<'a>)) -> Result<End<'a>, Errno> {
        let sight = self.look(dir, name)?;
        Ok(End { dir, name, sight })
    }

    fn entry_of(&self, end: &End<'_>) -> Result<Option<Entry>, Errno> {
        match end.sight.stat {
            None => Ok(None),
            Some(_) => self.adopt(end.dir, end.name, end.sight.clone()).map(Some),
        }
    }

    /// Refuses that an entry leaves its name where flags forbid it: its own, or those of the
    /// directory that it is in.
    fn check_leaves(&self, end: &End<'_>, entry: Option<&Entry>) -> Result<(), Errno> {
        let Some(entry) = entry else { return Ok(()) };
        self.guard(end.dir)?.check_change()?;
        self.guard_of_entry(entry)?.check_change()
    }

    fn check_replaceable(&self, source: &End<'_>, target: &End<'_>, replaced: &Entry) -> Result<(), Errno> {
        match (source.is_dir(), target.is_dir()) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) => self.check_removable(replaced),
            (false, false) => Ok(()),
        }
    }

    /// A directory with something below moves only where that can be recorded (rule 25).
    fn check_movable(&self, entry: &Entry, carrier: BranchIndex) -> Result<(), Errno> {
        let Place::Stack(stack) = entry.lookup.inode().place() else { return Ok(()) };
        if stack.branches[..] == [carrier] {
            // nothing stands in for a directory where it is written, and the kernel minds mount points
            return Ok(());
        }
        if self.level(entry.lookup.inode())?.iter().any(|(_, dir)| self.is_stand_in(dir)) {
            return Err(Errno::BUSY);
        }
        let merges = stack.branches[..] != [carrier];
        let recordable = self.options.dirren == Dirren::On && !self.form(Some(carrier)).overlay;
        if merges && !recordable { Err(Errno::XDEV) } else { Ok(()) }
    }

    /// What has to be brought up to the carrier before it can carry the rename.
    fn missing_on(
        &self,
        carrier: BranchIndex,
        source: &End<'_>,
        target: &End<'_>,
        moved: &Entry,
        replaced: Option<&Entry>,
        flags: RenameFlags,
    ) -> Result<Option<Outcome>, Errno> {
        let mut directories = Vec::new();
        for end in [source, target] {
            if !end.dir.stack()?.branches.contains(&carrier) {
                directories.push(Arc::clone(end.dir));
            }
        }
        let mut entries = Vec::new();
        let both = [Some((source, moved)), replaced.filter(|_| flags == RenameFlags::Exchange).map(|r| (target, r))];
        for (end, entry) in both.into_iter().flatten() {
            if end.top() != Some(carrier) {
                let dentry = Dentry { parent: Arc::clone(end.dir), name: end.name.to_owned() };
                entries.push((Arc::clone(entry.lookup.inode()), dentry));
            }
        }
        let nothing = directories.is_empty() && entries.is_empty();
        Ok((!nothing).then_some(Outcome::BringUp { directories, entries, branch: carrier }))
    }
}

/// Whether bringing an entry up copies data.
fn needs_copy(inode: &Inode) -> bool {
    inode.kind == Kind::File && matches!(inode.place(), Place::Entry(_))
}

/// Holds the names of one or two directories.
fn lock_both<'a>(a: &'a Arc<Inode>, b: &'a Arc<Inode>) -> (RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>) {
    if a.ino == b.ino {
        return (a.lock_names(), None);
    }
    let (first, second) = if a.ino < b.ino { (a, b) } else { (b, a) };
    (first.lock_names(), Some(second.lock_names()))
}
