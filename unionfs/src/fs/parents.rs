//! Bringing directories up to a branch (rule 28), and choosing that branch.

use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::names::is_ours;
use super::steps::mark_opaque;
use crate::branch::stat::{Kind, RealId};
use crate::inode::{Dentry, GROWN, Inode, Place};
use crate::union::{BranchIndex, policy};

/// So often is begun again when directories on the way are renamed.
const MOST_TURNS: usize = 64;

/// What became of a directory that was to be brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Raised {
    /// It lies on the branch.
    Done,
    /// It, or one on the way, has got another name meanwhile.
    Renamed,
}

impl Union {
    /// The branch for a new entry in a directory, seen on `lowest_seen` and above.
    ///
    /// # Errors
    /// EROFS if no branch takes it.
    pub(super) fn target(&self, dir: &Inode, lowest_seen: BranchIndex) -> Result<BranchIndex, Errno> {
        let stack = dir.stack()?;
        let lowest_seen = lowest_seen.min(stack.lowest_seen);
        policy::top_down_parent(&self.candidates(dir)?, lowest_seen).ok_or(Errno::ROFS)
    }

    /// The branch to copy an entry of `branch` up to.
    ///
    /// # Errors
    /// EROFS if none above takes it.
    pub(super) fn target_above(&self, dir: &Inode, branch: BranchIndex) -> Result<BranchIndex, Errno> {
        let above = branch.0.checked_sub(1).map(BranchIndex).ok_or(Errno::ROFS)?;
        self.target(dir, above)
    }

    /// Makes a directory exist on a branch, and its parents before it. No names are held.
    pub(super) fn raise_dir(&self, dir: &Arc<Inode>, branch: BranchIndex) -> Result<(), Errno> {
        // who renames a directory on the way brings it up first, so a few turns are enough
        for _ in 0..MOST_TURNS {
            if self.raise_by_names(dir, branch)? == Raised::Done {
                return Ok(());
            }
        }
        Err(Errno::STALE)
    }

    fn raise_by_names(&self, dir: &Arc<Inode>, branch: BranchIndex) -> Result<Raised, Errno> {
        let mut missing = Vec::new();
        let mut at = Arc::clone(dir);
        while !at.stack()?.branches.contains(&branch) {
            let dentry = at.dentry().ok_or(Errno::NOENT)?;
            missing.push((at, dentry.clone()));
            at = dentry.parent;
        }
        while let Some((inode, Dentry { parent, name })) = missing.pop() {
            let _names = parent.lock_names();
            let now = inode.dentry().ok_or(Errno::NOENT)?;
            if !Arc::ptr_eq(&now.parent, &parent) || now.name != name {
                return Ok(Raised::Renamed);
            }
            self.raise_one(&parent, &inode, name.as_bytes(), branch)?;
        }
        Ok(Raised::Done)
    }

    /// Copies one directory up, without what is in it; the names of its parent are held.
    fn raise_one(
        &self,
        parent: &Arc<Inode>,
        inode: &Arc<Inode>,
        name: &[u8],
        branch: BranchIndex,
    ) -> Result<(), Errno> {
        let stack = inode.stack()?;
        if stack.branches.contains(&branch) {
            return Ok(());
        }
        if !stack.takes(branch) {
            // it was renamed after the branch was chosen, and would not be seen there any more
            return Err(Errno::STALE);
        }
        let top = stack.top();
        let (own, above) = (self.dir(inode, top)?, self.dir(parent, top)?);
        // what stands in for another branch has the content of an empty directory only
        let from = if self.is_stand_in(&own) { above.at(name) } else { own.at(b"") };
        let stat = from.stat()?;
        if !is_ours(inode, stat.id) {
            return Err(Errno::STALE);
        }
        let work = self.work(branch)?;
        let temporary = work.temporary_name();
        let union_name = super::name(name)?;
        let into = self.spot(parent, branch, union_name)?.dir;
        // one that hid the directories of this name on branches below the stack
        let over_whiteout = into.is_overlay_whiteout(union_name)?;
        let prepare = || -> Result<RealId, Errno> {
            work.temporary().make_dir(&temporary, 0o700)?;
            if over_whiteout {
                mark_opaque(&work.temporary().open_dir(&temporary)?)?;
            }
            let new = work.temporary().at(&temporary).take_attributes(from, &stat)?;
            self.wait_for_kept(branch).map(|()| new)
        };
        let place = |new: RealId| {
            if branch < top {
                // if it cannot be written, it is known in this mount
                work.set_number(new, inode.ino).ok();
            }
            into.keeping_times(|| work.put(&temporary, Kind::Dir, (&into, name), over_whiteout))
        };
        let new = prepare().and_then(|new| place(new).map(|()| new)).inspect_err(|_| work.discard(&temporary))?;
        inode.with(|state| {
            state.place = Place::Stack(Arc::new(stack.with(branch)));
            state.unsynced = true;
            state.seen = GROWN;
            if branch < top {
                state.real = new;
            }
        });
        self.note_fresh(inode, branch);
        Ok(())
    }
}
