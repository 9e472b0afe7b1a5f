//! Lookup: what the branches hold under a name, and the inode it is.

use std::sync::Arc;

use rustix::io::Errno;

use super::index::{Asked, May};
use super::records::{LOOKS, is_linked};
use super::{Attr, Entry, Level, Sight, Union, name};
use crate::branch::dir::Dir;
use crate::branch::marks::Heed;
use crate::branch::stat::{Kind, RealId, Stat};
use crate::branch::work::Work;
use crate::inode::{Birth, GROWN, Inode, Place};
use crate::links::{self, Origin, Record};
use crate::union::{BranchIndex, Name, Resolved, resolve};

impl Union {
    /// Looks a name up; nothing if it is not there.
    ///
    /// # Errors
    /// EPERM for `.wh.` names, ENAMETOOLONG, and what the branches answer.
    pub fn lookup(&self, parent: u64, bytes: &[u8]) -> Result<Option<Entry>, Errno> {
        let name = name(bytes)?;
        let dir = self.inodes.get(parent)?;
        let _names = dir.names.read();
        self.find(&dir, name)
    }

    /// The entry of a name in a directory whose names are held.
    pub(super) fn find(&self, dir: &Arc<Inode>, name: Name<'_>) -> Result<Option<Entry>, Errno> {
        let sight = self.look(dir, name)?;
        if sight.stat.is_none() {
            return Ok(None);
        }
        self.adopt(dir, name, sight).map(Some)
    }

    /// What the branches of a directory hold under a name. The names of the directory are held.
    pub(super) fn look(&self, dir: &Arc<Inode>, name: Name<'_>) -> Result<Sight, Errno> {
        self.look_on(dir, &dir.stack()?.branches, name)
    }

    /// What the branches below one hold under a name.
    pub(super) fn look_below(&self, dir: &Arc<Inode>, branch: BranchIndex, name: Name<'_>) -> Result<Resolved, Errno> {
        let stack = dir.stack()?;
        let below = stack.branches.partition_point(|index| *index <= branch);
        Ok(self.look_on(dir, &stack.branches[below..], name)?.resolved)
    }

    fn look_on(&self, dir: &Arc<Inode>, stack: &[BranchIndex], name: Name<'_>) -> Result<Sight, Errno> {
        let asked = self.asked(dir, stack, name);
        let sight = self.hear(&asked, name, |branch| self.dir(dir, branch))?;
        if sight.stat.is_none() && !asked.is_empty() {
            self.note_miss(dir);
        }
        Ok(sight)
    }

    /// What is found under a name in open directories.
    pub(super) fn look_in(&self, level: &Level, name: Name<'_>) -> Result<Sight, Errno> {
        let asked: Asked = level.iter().map(|(branch, _)| (*branch, May::ANYTHING)).collect();
        self.hear(&asked, name, |branch| {
            let found = level.iter().find(|(index, _)| *index == branch);
            found.map(|(_, dir)| Arc::clone(dir)).ok_or(Errno::IO)
        })
    }

    /// What those branches say of a name that are asked for it.
    fn hear(
        &self,
        asked: &[(BranchIndex, May)],
        name: Name<'_>,
        open: impl Fn(BranchIndex) -> Result<Arc<Dir>, Errno>,
    ) -> Result<Sight, Errno> {
        let moment = self.records.moment();
        let (mut stat, mut dirs, mut redirect, mut unmarked) = (None, 0u64, None, None);
        let words = asked.iter().enumerate().map(|(at, (branch, may))| {
            // marks that could hide nothing are not looked for
            let marks_matter = at + 1 < asked.len() || self.has_writable_below(*branch);
            let heed = self.branch(*branch).heed(marks_matter);
            let heed = Heed { beside: heed.beside && may.whiteout, ..heed };
            if may.whiteout && !heed.beside {
                unmarked = Some(*branch);
            }
            let word = open(*branch)?.word(name, heed)?;
            if let Some(seen) = word.stat.filter(|seen| seen.kind == Kind::Dir) {
                dirs = self.mix(dirs, &seen);
            }
            stat = stat.or(word.stat);
            redirect = word.redirect;
            Ok((*branch, word.found))
        });
        let resolved = resolve(words)?;
        Ok(Sight { stat: resolved.topmost().and(stat), resolved, dirs, redirect, unmarked, moment })
    }

    /// Makes an inode of what was found, with one lookup on it.
    pub(super) fn adopt(&self, dir: &Arc<Inode>, name: Name<'_>, mut sight: Sight) -> Result<Entry, Errno> {
        for _ in 0..LOOKS {
            let entry = self.adopt_now(dir, name, &sight)?;
            let linked = sight.stat.is_some_and(|stat| is_linked(entry.lookup.inode(), &stat));
            if !linked || self.records.are_as_in(sight.moment) {
                return Ok(entry);
            }
            self.records.settle();
            sight = self.look(dir, name)?;
        }
        self.adopt_now(dir, name, &sight)
    }

    fn adopt_now(&self, dir: &Arc<Inode>, name: Name<'_>, sight: &Sight) -> Result<Entry, Errno> {
        let mut substitute = None;
        for attempt in 0.. {
            let (mut birth, stat, dirs) = self.identify(dir, sight)?;
            birth.ino = substitute.unwrap_or(birth.ino);
            let (kind, place, real, ino) = (birth.kind, birth.place.clone(), birth.real, birth.ino);
            match self.inodes.look_up(birth) {
                Ok(lookup) => {
                    let inode = lookup.inode();
                    let moved = inode.add_name(dir, name);
                    if kind == Kind::Dir {
                        self.take_place(inode, place, dirs);
                    }
                    drop(moved);
                    return Ok(Entry { attr: self.attr(inode, stat), lookup });
                }
                // another object had the number and the kernel still knows it: one that was
                // removed, or one that is being copied up right now, which shows the next time
                Err(_) if attempt < 3 => {}
                Err(_) if matches!(place, Place::Record(_)) => return Err(Errno::STALE),
                Err(_) if attempt < 8 => substitute = Some(self.substitute(sight, real)),
                Err(_) => {
                    tracing::error!(ino, "no free inode number was found");
                    return Err(Errno::IO);
                }
            }
        }
        Err(Errno::IO)
    }

    /// Takes over where a directory lies now. If it is not made of the same directories as before,
    /// what is open of it may be something else.
    fn take_place(&self, inode: &Inode, place: Place, dirs: u64) {
        let before = inode.with(|state| {
            state.place = place;
            if state.seen != dirs {
                state.forget_learned();
            }
            std::mem::replace(&mut state.seen, dirs)
        });
        if before != dirs && before != GROWN {
            self.forget_open(inode.ino);
        }
    }

    /// Forgets what is open of a directory and what it lists: it is gone, or something else.
    pub(super) fn forget_open(&self, ino: u64) {
        self.dirs.remove(ino);
        self.listings.remove(ino);
        self.indexes.remove(ino);
    }

    fn substitute(&self, sight: &Sight, real: RealId) -> u64 {
        let own = sight.resolved.topmost().and_then(|branch| self.branch(branch).work.as_ref());
        if let Some(work) = own {
            let number = work.substitute_number();
            // if it cannot be written, it is known in this mount
            work.set_number(real, number).ok();
            return number;
        }
        let any = self.writable().next().map(|(_, work)| work.substitute_number());
        any.unwrap_or_else(|| self.numbers.natural(RealId { dev: u64::MAX, ..real }))
    }

    /// The number, place and real identity of what was found, the attributes to show, and the
    /// identities of the directories behind it.
    fn identify(&self, dir: &Arc<Inode>, sight: &Sight) -> Result<(Birth, Stat, u64), Errno> {
        let (Some(stat), Some(top)) = (sight.stat, sight.resolved.topmost()) else { return Err(Errno::NOENT) };
        let ino = self.number(top, &stat);
        let birth = |place, real| Birth { ino, kind: stat.kind, place, real };
        if let Resolved::Dir { .. } = &sight.resolved {
            let (stack, dirs) = self.stack_of(dir, sight)?;
            return Ok((birth(Place::Stack(Arc::new(stack)), stat.id), stat, dirs));
        }
        if stat.nlink > 1 {
            let own = self.branch(top).work.as_ref();
            if let Some(work) = own.filter(|_| ino != self.numbers.natural(stat.id))
                && links::copied_up(work, ino)?.is_some_and(|copy| copy.id == stat.id)
            {
                self.check_record(top, ino)?;
                return Ok((birth(Place::Record(top), stat.id), stat, 0));
            }
            if let Some((branch, copy)) = self.copy_of(top, ino, &stat)? {
                return Ok((birth(Place::Record(branch), copy.id), copy, 0));
            }
        }
        Ok((birth(Place::Entry(top), stat.id), stat, 0))
    }

    /// The number of an entry.
    pub(super) fn number(&self, branch: BranchIndex, stat: &Stat) -> u64 {
        let recorded = self.branch(branch).work.as_ref().and_then(|work| work.number(stat.id));
        recorded.unwrap_or_else(|| self.numbers.natural(stat.id))
    }

    /// Where the object of an entry was copied up to under another name.
    fn copy_of(&self, branch: BranchIndex, ino: u64, stat: &Stat) -> Result<Option<(BranchIndex, Stat)>, Errno> {
        for (above, work) in self.writable().filter(|(index, _)| *index < branch) {
            if let Some(copy) = links::copied_up(work, ino)?
                && links::read(work, ino)?.is_some_and(|record| record.origin.is_same(Origin::of(stat)))
            {
                self.check_record(above, ino)?;
                return Ok(Some((above, copy)));
            }
        }
        Ok(None)
    }

    /// The attributes of an inode as the kernel is told them, from those of its topmost entry.
    pub(super) fn attr(&self, inode: &Arc<Inode>, mut stat: Stat) -> Attr {
        let (place, lasting) = inode.with(|state| (state.place.clone(), state.written.is_none()));
        stat.nlink = match place {
            Place::Stack(stack) if stack.branches.len() > 1 => 1,
            Place::Stack(_) => stat.nlink,
            Place::Gone(gone) => gone.nlink,
            Place::Entry(_) if stat.nlink == 1 => 1,
            Place::Entry(branch) => {
                let above = self.writable().filter(|(index, _)| *index < branch);
                let record = self.record_of(inode.ino, above, Some(Origin::of(&stat)));
                record.map_or(stat.nlink, |record| record.nlink_below(&stat))
            }
            Place::Record(branch) => {
                let (own, others): (Vec<_>, Vec<_>) = self.writable().partition(|(index, _)| *index == branch);
                let record = self.record_of(inode.ino, own.into_iter().chain(others), None);
                record.map_or(stat.nlink, |record| record.nlink_of_copy(&stat))
            }
        };
        if self.kernel_ignores_acls() {
            stat.mode = self.safe_mode(inode, &stat);
        }
        Attr { ino: inode.ino, stat, owner: self.shown_owner(&stat), lasting }
    }

    /// What the records on these branches say of an object, each of names that went on its branch: of
    /// the given one, or of that of the first record.
    fn record_of<'a>(
        &self,
        ino: u64,
        branches: impl Iterator<Item = (BranchIndex, &'a Work)>,
        mut origin: Option<Origin>,
    ) -> Option<Record> {
        let mut known: Option<Record> = None;
        for (index, work) in branches {
            if !matches!(links::read(work, ino), Ok(Some(_))) {
                continue;
            }
            if let Err(errno) = self.check_record(index, ino) {
                tracing::warn!(%errno, "checking a hard-link record");
            }
            let Ok(Some(record)) = links::read(work, ino) else { continue };
            if record.origin.is_same(*origin.get_or_insert(record.origin)) {
                known = Some(match known {
                    Some(known) => known.with_gone_of(record),
                    None => record,
                });
            }
        }
        known
    }
}
