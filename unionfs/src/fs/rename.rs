//! Renaming (rules 23 to 26): one branch carries it, all of it.

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::io::Errno;

use super::remove::Going;
use super::steps::{Carrier, Spot};
use super::{Entry, Level, Sight, Union, name};
use crate::branch::stat::{Kind, Stat};
use crate::inode::{Dentry, Inode, Place};
use crate::union::plan::{self, Manner, Rename, Side, Step};
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

/// How far a rename came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is done.
    Done,
    /// A file has to be copied up first, which may take long.
    NeedsCopy,
}

/// One of the two names.
struct End<'a> {
    dir: &'a Arc<Inode>,
    name: Name<'a>,
    level: Level,
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
    Done,
    /// Something has to be brought up first, without names held.
    BringUp {
        directories: Vec<Arc<Inode>>,
        entries: Vec<(Arc<Inode>, Dentry)>,
        branch: BranchIndex,
    },
}

impl Union {
    /// Renames an entry, unless a file would have to be copied up for it and `may_copy` is not
    /// set.
    ///
    /// # Errors
    /// ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EBUSY, EROFS, EPERM for `.wh.` names, EXDEV
    /// for a directory that has content on branches below.
    pub fn rename(
        &self,
        (parent, old): (u64, &[u8]),
        (new_parent, new): (u64, &[u8]),
        flags: RenameFlags,
        may_copy: bool,
    ) -> Result<Progress, Errno> {
        let (old, new) = (name(old)?, name(new)?);
        let (from, to) = (self.inodes.get(parent)?, self.inodes.get(new_parent)?);
        // each turn brings something up, so a few are enough unless others undo it all the time
        for _ in 0..32 {
            let names = lock_both(&from, &to);
            match self.try_rename((&from, old), (&to, new), flags)? {
                Outcome::Done => return Ok(Progress::Done),
                Outcome::BringUp { directories, entries, branch } => {
                    drop(names);
                    if !may_copy && entries.iter().any(|(inode, _)| needs_copy(inode)) {
                        return Ok(Progress::NeedsCopy);
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
            return Ok(Outcome::Done);
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
        let carrier = policy::carrier(&self.candidates(&*source.dir.stack()?), highest).ok_or(Errno::ROFS)?;
        self.check_movable(&moved, carrier)?;
        if flags == RenameFlags::Exchange
            && let Some(replaced) = &replaced
        {
            self.check_movable(replaced, carrier)?;
        }
        if let Some(outcome) = self.missing_on(carrier, &source, &target, &moved, replaced.as_ref(), flags)? {
            return Ok(outcome);
        }
        self.rename_here(carrier, &source, &target, &moved, replaced, flags)?;
        Ok(Outcome::Done)
    }

    fn end<'a>(&self, (dir, name): (&'a Arc<Inode>, Name<'a>)) -> Result<End<'a>, Errno> {
        let level = self.level(dir)?;
        let sight = self.look(&level, name)?;
        Ok(End { dir, name, level, sight })
    }

    fn entry_of(&self, end: &End<'_>) -> Result<Option<Entry>, Errno> {
        self.find(end.dir, end.name)
    }

    fn check_replaceable(&self, source: &End<'_>, target: &End<'_>, replaced: &Entry) -> Result<(), Errno> {
        match (source.is_dir(), target.is_dir()) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) => self.check_removable(replaced.lookup.inode()),
            (false, false) => Ok(()),
        }
    }

    /// A directory moves only if all of it lies on the carrier (rule 25, without records).
    fn check_movable(&self, entry: &Entry, carrier: BranchIndex) -> Result<(), Errno> {
        let Place::Stack(stack) = entry.lookup.inode().place() else { return Ok(()) };
        if self.level(entry.lookup.inode())?.iter().any(|(_, dir)| self.is_stand_in(dir)) {
            return Err(Errno::BUSY);
        }
        if stack.branches[..] == [carrier] { Ok(()) } else { Err(Errno::XDEV) }
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

    fn rename_here(
        &self,
        branch: BranchIndex,
        source: &End<'_>,
        target: &End<'_>,
        moved: &Entry,
        replaced: Option<Entry>,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let spot = |end: &End<'_>| -> Result<_, Errno> { self.dir(end.dir, branch) };
        let carrier = Carrier {
            work: self.work(branch)?,
            source: Some(Spot { dir: spot(source)?, name: source.name }),
            target: Spot { dir: spot(target)?, name: target.name },
        };
        let steps = self.plan_rename(branch, &carrier, source, target, flags)?;
        // a directory on the way: nobody may walk by its old name now
        let walls = source.is_dir() || (flags == RenameFlags::Exchange && target.is_dir());
        let _inside =
            replaced.as_ref().filter(|r| r.lookup.inode().kind == Kind::Dir).map(|r| r.lookup.inode().lock_names());
        let on_carrier = target.top() == Some(branch);
        let lost = replaced.as_ref().filter(|_| flags != RenameFlags::Exchange).zip(target.sight.stat);
        let going = lost.as_ref().map(|(entry, stat)| {
            let (victim, dir, name) = (&**entry.lookup.inode(), target.dir, target.name);
            Going { victim, dir, name, carrier: branch, on_carrier, stat: *stat }
        });
        if let Some(going) = &going {
            going.note(self)?;
        }
        if let Some((entry, _)) = &lost {
            self.hold(entry, target.dir, target.name, target.top())?;
        }
        {
            let _alone = walls.then(|| self.tree.write());
            if let Err(errno) = carrier.run(&steps, |_| Ok(())) {
                if let Some(going) = &going {
                    going.stays(self);
                }
                return Err(errno);
            }
            if let Some((entry, _)) = &lost {
                self.after_removal(entry.lookup.inode(), target.dir, target.name, entry.attr.stat);
            }
            move_name(moved.lookup.inode(), source, target);
            if flags == RenameFlags::Exchange
                && let Some(other) = &replaced
            {
                move_name(other.lookup.inode(), target, source);
            }
        }
        self.refresh(target)?;
        if flags == RenameFlags::Exchange { self.refresh(source) } else { Ok(()) }
    }

    /// Takes over where a moved directory's merging ends now.
    fn refresh(&self, end: &End<'_>) -> Result<(), Errno> {
        self.find(end.dir, end.name).map(drop)
    }

    fn plan_rename(
        &self,
        branch: BranchIndex,
        carrier: &Carrier<'_>,
        source: &End<'_>,
        target: &End<'_>,
        flags: RenameFlags,
    ) -> Result<Vec<Step>, Errno> {
        let below = |end: &End<'_>| -> Result<bool, Errno> {
            Ok(!matches!(self.look_below(&end.level, branch, end.name)?, Resolved::Missing { .. }))
        };
        let manner = match flags {
            RenameFlags::Exchange => {
                let side = |end: &End<'_>, spot: &Spot<'_>| -> Result<Side, Errno> {
                    Ok(Side { dir: end.is_dir(), whiteout: spot.dir.has_whiteout(end.name)?, below: below(end)? })
                };
                let from = carrier.source.as_ref().ok_or(Errno::INVAL)?;
                return Ok(plan::exchange(side(source, from)?, side(target, &carrier.target)?));
            }
            RenameFlags::Whiteout => Manner::LeavingDevice,
            RenameFlags::Replace | RenameFlags::NoReplace => Manner::Plain,
        };
        let is_dir = |stat: Option<Stat>| stat.is_some_and(|stat| stat.kind == Kind::Dir);
        Ok(plan::rename(Rename {
            dir: source.is_dir(),
            source_below: below(source)?,
            target_dir: is_dir(carrier.target.dir.find(target.name.as_bytes())?),
            target_whiteout: carrier.target.dir.has_whiteout(target.name)?,
            target_below: below(target)?,
            manner,
        }))
    }
}

/// Whether bringing an entry up copies data.
fn needs_copy(inode: &Inode) -> bool {
    inode.kind == Kind::File && matches!(inode.place(), Place::Entry(_))
}

fn move_name(inode: &Arc<Inode>, from: &End<'_>, to: &End<'_>) {
    let gone = inode.move_name((from.dir, from.name), (to.dir, to.name));
    drop(gone);
}

/// Holds the names of one or two directories.
fn lock_both<'a>(a: &'a Arc<Inode>, b: &'a Arc<Inode>) -> (RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>) {
    if a.ino == b.ino {
        return (a.lock_names(), None);
    }
    let (first, second) = if a.ino < b.ino { (a, b) } else { (b, a) };
    (first.lock_names(), Some(second.lock_names()))
}
