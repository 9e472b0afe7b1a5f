//! Flushing hard-link records (rule 32): what they join becomes real hard links on their own
//! branch, so that it carries them alone, as a layer has to.
//!
//! Only the names that still stand below are missing there, and only they are searched for: on
//! foot, through the union, one directory after another, while others work in it. A name that is
//! found is brought up as it would be for a rename. What moves while it is searched for is found
//! the next time. A record goes when no name that is seen is left below; a crash before that costs
//! nothing but the rest of the work.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Union;
use super::names::leave_record;
use crate::branch::dir::{Dir, RawEntry};
use crate::branch::stat::{Kind, Stat};
use crate::inode::{Dentry, Inode, Place, Ref};
use crate::links;
use crate::union::{BranchIndex, Name, NameBuf, RawName};

/// At most so many records are worked on in one walk through the tree.
const BATCH: usize = 65_536;
/// So many walks are made while directories are moved about.
const WALKS: usize = 8;

/// What a flush has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flushed {
    /// Names below that became hard links on the branch of the copy.
    pub names: u64,
    /// Objects whose names all lie there now, without a record.
    pub objects: u64,
    /// Objects that still have names below: those could not be brought up, or not be searched for.
    pub pending: u64,
}

/// A record that is flushed.
#[derive(Debug, Clone, Copy)]
struct Pending {
    branch: BranchIndex,
    number: u64,
}

/// A search for the names that stand below.
struct Walk<'a> {
    union: &'a Union,
    /// The records, by the inode number that the object had below.
    wanted: HashMap<u64, Vec<Pending>>,
    /// The topmost branch that has a record.
    highest: BranchIndex,
    /// Names that were brought up.
    names: u64,
    /// Whether there was something that could not be looked at or brought up.
    incomplete: bool,
    /// Whether something was not there any more when it was looked at.
    disturbed: bool,
}

/// A directory on the way, and the directories in it that come next.
struct Frame {
    dir: Ref,
    inside: Vec<NameBuf>,
}

impl Union {
    /// Makes all hard-link records real hard links. Other operations go on meanwhile.
    ///
    /// What could not be done is counted, and stays as it was: joined by its record.
    ///
    /// # Errors
    /// What reading or writing the work areas answers.
    pub fn flush_links(&self) -> Result<Flushed, Errno> {
        let _alone = self.records.flushing.lock();
        let mut done = Flushed::default();
        let mut records = Vec::new();
        for (branch, work) in self.writable() {
            records.extend(links::numbers(work)?.into_iter().map(|number| Pending { branch, number }));
        }
        for batch in records.chunks(BATCH) {
            self.flush_some(batch, &mut done)?;
        }
        self.sync_branches()?;
        Ok(done)
    }

    fn flush_some(&self, batch: &[Pending], done: &mut Flushed) -> Result<(), Errno> {
        let mut with_copies = Vec::new();
        for record in batch {
            self.check_record(record.branch, record.number)?;
            if links::copied_up(self.work(record.branch)?, record.number)?.is_some() {
                with_copies.push(*record);
            } else {
                self.forget_leftover(*record)?;
            }
        }
        if with_copies.is_empty() {
            return Ok(());
        }
        let mut walk = self.walk(&with_copies)?;
        let mut searched = None;
        for _ in 0..WALKS {
            if walk.wanted.is_empty() || walk.incomplete {
                break;
            }
            let moves = self.records.moves();
            walk.search();
            searched = (!walk.incomplete && !walk.disturbed).then_some(moves);
            if searched == Some(self.records.moves()) {
                break;
            }
        }
        done.names += walk.names;
        // the new names are on disk before what joined them goes
        self.sync_branches()?;
        for record in with_copies {
            let finished = self.finish_record(record, searched).unwrap_or_else(|errno| {
                // an immutable file cannot lose a link either
                tracing::warn!(%errno, number = record.number, "flushing a hard-linked file");
                false
            });
            *if finished { &mut done.objects } else { &mut done.pending } += 1;
        }
        Ok(())
    }

    fn walk(&self, records: &[Pending]) -> Result<Walk<'_>, Errno> {
        let mut wanted: HashMap<u64, Vec<Pending>> = HashMap::new();
        for pending in records {
            if let Some(record) = links::read(self.work(pending.branch)?, pending.number)?
                && record.left() > 0
            {
                wanted.entry(record.origin.ino()).or_default().push(*pending);
            }
        }
        let highest = records.iter().map(|pending| pending.branch).min().unwrap_or(BranchIndex(0));
        Ok(Walk { union: self, wanted, highest, names: 0, incomplete: false, disturbed: false })
    }

    fn left_below(&self, record: Pending) -> Result<u64, Errno> {
        Ok(links::read(self.work(record.branch)?, record.number)?.map_or(0, |record| record.left()))
    }

    /// A record without a copy says how many names below are hidden; when none is left, nobody
    /// asks for it any more.
    fn forget_leftover(&self, record: Pending) -> Result<(), Errno> {
        // who is removing a name right now may have to take that back
        match self.records.change_alone() {
            Some(_alone) if self.left_below(record)? == 0 => links::remove(self.work(record.branch)?, record.number),
            _ => Ok(()),
        }
    }

    /// Takes a record away if all its names are real: those that it counts, or all that a search
    /// could see, if nothing came into sight since. Whether it is gone.
    fn finish_record(&self, record: Pending, searched: Option<u64>) -> Result<bool, Errno> {
        let Pending { branch, number } = record;
        let work = self.work(branch)?;
        let inode = self.inodes.get(number).ok();
        let _gate = inode.as_ref().map(|inode| inode.gate.lock());
        let Some(changing) = self.records.change_alone() else { return Ok(false) };
        // its last name went meanwhile
        let Some(copy) = links::copied_up(work, number)? else { return Ok(true) };
        if searched != Some(self.records.moves()) && self.left_below(record)? > 0 {
            return Ok(false);
        }
        links::remove(work, number)?;
        if let Some(inode) = &inode {
            leave_record(inode, branch, Some(Stat { nlink: copy.nlink.saturating_sub(1), ..copy }));
        }
        drop(changing);
        self.tell_stale(number);
        Ok(true)
    }

    /// Brings one name up that stands below. Whether there was something to do.
    fn flush_name(&self, wanted: &[Pending], dir: &Arc<Inode>, name: Name<'_>) -> Result<bool, Errno> {
        let found = {
            let _names = dir.names.read();
            self.find(dir, name)?
        };
        let Some(entry) = found else { return Ok(false) };
        let inode = entry.lookup.inode();
        let Some(Pending { branch, .. }) = wanted.iter().find(|pending| pending.number == inode.ino) else {
            return Ok(false);
        };
        let _gate = inode.gate.lock();
        match inode.place() {
            Place::Record(at) if at == *branch => {}
            _ => return Ok(false),
        }
        if !self.reaches(dir, *branch)? {
            return Err(Errno::XDEV);
        }
        let dentry = Dentry { parent: Arc::clone(dir), name: name.to_owned() };
        let linked = self.link_record(inode, &dentry, *branch)?;
        if linked {
            self.tell_stale(inode.ino);
        }
        Ok(linked)
    }

    /// Makes everything durable that was written to the branches (syncfs(2)).
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync_branches(&self) -> Result<(), Errno> {
        if self.options.volatile {
            return Ok(());
        }
        self.branches
            .iter()
            .filter(|branch| branch.in_place())
            .try_for_each(|branch| rustix::fs::syncfs(branch.root.open_for_reading()?))
    }
}

impl Walk<'_> {
    /// Walks through the whole tree, as far as it has anything below.
    fn search(&mut self) {
        self.disturbed = false;
        let root = Arc::clone(&self.union.root);
        let inside = self.look_into(&root);
        // the root is never forgotten, so it needs no lookup that is given back
        let mut pending = vec![(None, inside)];
        while let Some((dir, inside)) = pending.last_mut() {
            let Some(name) = inside.pop() else {
                pending.pop();
                continue;
            };
            let parent = dir.as_ref().map_or(&root, Ref::inode);
            if let Some(frame) = self.enter(parent, name.as_name()) {
                pending.push((Some(frame.dir), frame.inside));
            }
        }
    }

    /// A directory below another, if there may be anything in it.
    fn enter(&mut self, parent: &Arc<Inode>, name: Name<'_>) -> Option<Frame> {
        let found = {
            let _names = parent.names.read();
            self.union.find(parent, name)
        };
        let dir = self.unless_gone(parent, found)??.lookup;
        let stack = dir.inode().stack().ok()?;
        if !stack.branches.iter().any(|branch| self.leads_below(*branch)) {
            return None;
        }
        let inside = self.look_into(dir.inode());
        Some(Frame { dir, inside })
    }

    /// Whether a directory of a branch may hold a name that is searched for, or one further down: in
    /// a renamed directory it may, wherever that is by now.
    fn leads_below(&self, branch: BranchIndex) -> bool {
        branch > self.highest || self.union.branch(branch).records.load(Ordering::Acquire)
    }

    /// Brings names of a directory up, and returns the directories in it.
    fn look_into(&mut self, dir: &Arc<Inode>) -> Vec<NameBuf> {
        let mut inside = HashSet::new();
        let level = self.union.level(dir);
        for (branch, open) in self.unless_gone(dir, level).unwrap_or_default() {
            if self.leads_below(branch) {
                let read = self.look_through(dir, branch, &open, &mut inside);
                self.unless_gone(dir, read);
            }
        }
        inside.into_iter().collect()
    }

    /// Reads a directory of one branch, a bufferful at a time.
    fn look_through(
        &mut self,
        dir: &Arc<Inode>,
        branch: BranchIndex,
        open: &Dir,
        inside: &mut HashSet<NameBuf>,
    ) -> Result<(), Errno> {
        let fd = open.open_for_reading()?;
        loop {
            let mut entries = Vec::new();
            if !open.read_some(fd.as_fd(), |entry| entries.push(RawEntry::from(entry)))? {
                return Ok(());
            }
            for entry in entries {
                let RawName::Entry(name) = RawName::parse(&entry.name) else { continue };
                if entry.kind == Kind::Dir {
                    inside.insert(name.to_owned());
                }
                if entry.kind == Kind::Dir || branch <= self.highest {
                    continue;
                }
                let wanted = self.records_of(branch, open, &entry);
                let Some(wanted) = self.unless_gone(dir, wanted).flatten() else { continue };
                let linked = self.union.flush_name(&wanted, dir, name);
                self.names += u64::from(self.unless_gone(dir, linked).unwrap_or_default());
            }
        }
    }

    /// The records that an entry of a branch may belong to.
    fn records_of(&self, branch: BranchIndex, open: &Dir, entry: &RawEntry) -> Result<Option<Vec<Pending>>, Errno> {
        let ino = match self.union.branch(branch).honest_listing {
            true => Some(entry.ino),
            false => open.find(&entry.name)?.filter(|stat| stat.nlink > 1).map(|stat| stat.id.ino),
        };
        Ok(ino.and_then(|ino| self.wanted.get(&ino)).cloned())
    }

    /// What was looked at in a directory. That it went meanwhile is no failure: it is looked for once
    /// more, unless all of the directory is gone.
    fn unless_gone<T>(&mut self, dir: &Inode, looked: Result<T, Errno>) -> Option<T> {
        match looked {
            Ok(seen) => return Some(seen),
            Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR) => {
                self.disturbed |= !matches!(dir.place(), Place::Gone(_));
            }
            Err(errno) => {
                tracing::warn!(%errno, "flushing hard links: something could not be looked at or brought up");
                self.incomplete = true;
            }
        }
        None
    }
}
