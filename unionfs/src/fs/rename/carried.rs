//! The rename itself, on the branch that carries it. Everything it needs is there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::{End, RenameFlags};
use crate::branch::stat::Kind;
use crate::fs::remove::Going;
use crate::fs::steps::{Carrier, Spot};
use crate::fs::{Entry, Stale, Union};
use crate::inode::{Inode, Place, Stack};
use crate::union::plan::{self, Manner, Merging, Moved, Rename, Side, Step};
use crate::union::{BranchIndex, Cut, Resolved};

/// An object that gets another name.
struct Moving<'a> {
    inode: &'a Arc<Inode>,
    from: &'a End<'a>,
    to: &'a End<'a>,
    what: Moved,
    /// Of a directory that gets a record: what that says, and where all of it lies afterwards.
    record: Option<(Vec<u8>, Stack)>,
}

impl Moving<'_> {
    fn is_dir(&self) -> bool {
        self.what != Moved::Leaf
    }

    /// What is known of it once it has its new name; the tree is held.
    fn done(self) {
        let gone = self.inode.move_name((self.from.dir, self.from.name), (self.to.dir, self.to.name));
        drop(gone);
        if let Some((_, stack)) = self.record {
            self.inode.with(|state| state.place = Place::Stack(Arc::new(stack)));
        }
    }
}

/// The steps of a rename, by the form of the branch that carries it.
enum Plan {
    Wh(Vec<Step>),
    Overlay(Vec<plan::overlay::Step>),
}

impl Plan {
    /// Whether a record is written.
    fn records(&self) -> bool {
        matches!(self, Plan::Wh(steps) if steps.iter().any(|step| matches!(step, Step::Record(_))))
    }

    /// Whether whiteouts are written, be it for a moment.
    fn lays_whiteouts(&self) -> bool {
        matches!(self, Plan::Wh(steps) if steps.iter().any(|step| matches!(step, Step::Whiteout(_))))
    }

    fn run(&self, carrier: &Carrier<'_>) -> Result<(), Errno> {
        match self {
            Plan::Wh(steps) => carrier.run(steps, |_| Ok(())),
            Plan::Overlay(steps) => carrier.run_overlay(steps, |_| Ok(())),
        }
    }
}

impl Union {
    pub(super) fn rename_here(
        &self,
        branch: BranchIndex,
        (source, moved): (&End<'_>, &Entry),
        (target, replaced): (&End<'_>, Option<&Entry>),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let exchanged = replaced.filter(|_| flags == RenameFlags::Exchange);
        let lost = replaced.filter(|_| flags != RenameFlags::Exchange);
        let moving = self.moving(branch, moved, source, target)?;
        let back = exchanged.map(|entry| self.moving(branch, entry, target, source)).transpose()?;
        let moved_below =
            [Some(&moving), back.as_ref()].into_iter().flatten().any(|m| self.takes_names_along(branch, m));
        if moved_below {
            self.check_all_records();
        }
        let carrier = Carrier {
            work: self.work(branch)?,
            source: Some(self.spot_of(branch, source, Some(&moving))?),
            target: self.spot_of(branch, target, back.as_ref())?,
        };
        let plan = self.plan_rename(branch, &carrier, &moving, back.as_ref(), flags)?;
        if plan.records() {
            self.branch(branch).begin_records()?;
        }
        let _inside = lost.filter(|r| r.lookup.inode().kind == Kind::Dir).map(|r| r.lookup.inode().lock_names());
        let going = lost.zip(target.sight.stat.zip(target.top())).map(|(entry, (stat, top))| Going {
            victim: entry.lookup.inode(),
            dir: target.dir,
            name: target.name,
            carrier: branch,
            top,
            stat,
        });
        let counted = going.as_ref().map(|going| going.note(self)).transpose()?;
        // nobody takes a record away for names that are on the way
        let on_the_way = moved_below.then(|| self.records.change());
        if let Some(entry) = lost {
            self.hold(entry, target.dir, target.name, target.top())?;
        }
        let dirs = moving.is_dir() || back.as_ref().is_some_and(Moving::is_dir);
        if plan.lays_whiteouts() {
            self.note_whiteout(source.dir);
            self.note_whiteout(target.dir);
        }
        {
            // a directory on the way: nobody may walk by its old name now
            let _alone = dirs.then(|| self.tree.write());
            let _renaming = self.renames.begin();
            plan.run(&carrier).inspect_err(|_| going.iter().for_each(|going| going.stays(self)))?;
            if let Some(entry) = lost {
                self.after_removal(entry.lookup.inode(), target.dir, target.name, entry.attr.stat);
            }
            if moved_below {
                self.records.note_move();
            }
            moving.done();
            back.into_iter().for_each(Moving::done);
        }
        drop((counted, on_the_way));
        if !dirs {
            return Ok(());
        }
        // it is done, and whoever asked must not be told otherwise: the kernel would keep the old names
        self.refresh(target);
        if flags == RenameFlags::Exchange {
            self.refresh(source);
        }
        for entry in [Some(moved), exchanged].into_iter().flatten() {
            // the listing that the kernel keeps says which directory is above
            if !Arc::ptr_eq(source.dir, target.dir) && entry.lookup.inode().kind == Kind::Dir {
                self.tell(entry.attr.ino, Stale::Content);
            }
        }
        Ok(())
    }

    /// What moves from one name to the other.
    fn moving<'a>(
        &self,
        branch: BranchIndex,
        entry: &'a Entry,
        from: &'a End<'a>,
        to: &'a End<'a>,
    ) -> Result<Moving<'a>, Errno> {
        let inode = entry.lookup.inode();
        let Place::Stack(stack) = inode.place() else {
            return Ok(Moving { inode, from, to, what: Moved::Leaf, record: None });
        };
        let merging = match &from.sight.resolved {
            Resolved::Dir { cut: Some(Cut::Elsewhere(at)), .. } if *at == branch => Merging::ByRecord,
            _ if stack.branches.iter().any(|at| *at > branch) => Merging::ByName,
            _ => Merging::Nothing,
        };
        let record = match merging {
            Merging::ByName => Some(self.record(inode, &stack, branch)?),
            Merging::Nothing | Merging::ByRecord => None,
        };
        Ok(Moving { inode, from, to, what: Moved::Dir(merging), record })
    }

    /// Whether it is a directory that may have names of branches below in it, or in a renamed
    /// directory in it.
    fn takes_names_along(&self, branch: BranchIndex, moving: &Moving<'_>) -> bool {
        match moving.what {
            Moved::Dir(Merging::Nothing) => self.branch(branch).records.load(Ordering::Acquire),
            Moved::Dir(_) => true,
            Moved::Leaf => false,
        }
    }

    fn spot_of<'a>(&self, branch: BranchIndex, end: &End<'a>, moving: Option<&Moving<'_>>) -> Result<Spot<'a>, Errno> {
        let record = moving.and_then(|moving| moving.record.as_ref()).map(|(place, _)| place.clone());
        let spot = self.spot(end.dir, branch, end.name)?;
        let bare = spot.bare || self.shows_bare(&end.sight, branch) || self.is_bare(end.dir, &spot.dir, branch);
        Ok(Spot { record, bare, ..spot })
    }

    /// Takes over where a moved directory's merging ends now.
    pub(super) fn refresh(&self, end: &End<'_>) {
        if let Err(errno) = self.find(end.dir, end.name) {
            tracing::warn!(%errno, name = ?end.name, "looking at what was renamed");
        }
    }

    fn plan_rename(
        &self,
        branch: BranchIndex,
        carrier: &Carrier<'_>,
        moving: &Moving<'_>,
        back: Option<&Moving<'_>>,
        flags: RenameFlags,
    ) -> Result<Plan, Errno> {
        if carrier.target.dir.form().overlay {
            return self.plan_overlay(branch, carrier, moving, back).map(Plan::Overlay);
        }
        let (source, target) = (moving.from, moving.to);
        let below = |end: &End<'_>| self.shows_below(end.dir, branch, end.name, &end.sight);
        let side = |moving: &Moving<'_>, spot: &Spot<'_>| -> Result<Side, Errno> {
            let whiteout = spot.has_whiteout()?;
            Ok(Side { moved: moving.what, whiteout, below: below(moving.from)? })
        };
        let from = carrier.source.as_ref().ok_or(Errno::INVAL)?;
        let manner = match (flags, back) {
            (_, Some(back)) => {
                return Ok(Plan::Wh(plan::exchange(side(moving, from)?, side(back, &carrier.target)?)));
            }
            (RenameFlags::Whiteout, None) => Manner::LeavingDevice,
            (_, None) => Manner::Plain,
        };
        let cut = match target.sight.resolved {
            Resolved::Dir { cut, .. } => cut,
            Resolved::Leaf(_) | Resolved::Missing { .. } => None,
        };
        Ok(Plan::Wh(plan::rename(Rename {
            source: moving.what,
            source_below: below(source)?,
            target_dir: self.has_dir(branch, &carrier.target, target)?,
            target_record: cut == Some(Cut::Elsewhere(branch)),
            target_whiteout: carrier.target.has_whiteout()?,
            target_below: below(target)?,
            manner,
        })))
    }

    /// Whether the carrier holds a directory under the name.
    fn has_dir(&self, branch: BranchIndex, spot: &Spot<'_>, end: &End<'_>) -> Result<bool, Errno> {
        match &end.sight.resolved {
            // all branches were asked
            Resolved::Missing { cut: None } => Ok(false),
            Resolved::Leaf(top) if *top >= branch => Ok(false),
            Resolved::Dir { stack, .. } if stack.contains(&branch) => Ok(true),
            _ => Ok(spot.dir.find(spot.name.as_bytes())?.is_some_and(|stat| stat.kind == Kind::Dir)),
        }
    }

    /// The same on a branch in the form of overlayfs, where nothing is moved that merges.
    fn plan_overlay(
        &self,
        branch: BranchIndex,
        carrier: &Carrier<'_>,
        moving: &Moving<'_>,
        back: Option<&Moving<'_>>,
    ) -> Result<Vec<plan::overlay::Step>, Errno> {
        let slot = |end: &End<'_>, spot: &Spot<'_>| {
            let below = self.look_below(end.dir, branch, end.name)?;
            spot.slot(!matches!(below, Resolved::Missing { .. }))
        };
        // its record says a place where nothing is
        let redirected = |moving: &Moving<'_>| moving.what == Moved::Dir(Merging::ByRecord);
        let from = carrier.source.as_ref().ok_or(Errno::INVAL)?;
        let (source, target) = (slot(moving.from, from)?, slot(moving.to, &carrier.target)?);
        Ok(match back {
            Some(back) => plan::overlay::exchange((source, redirected(moving)), (target, redirected(back))),
            None => plan::overlay::rename(source, target, redirected(moving)),
        })
    }
}
