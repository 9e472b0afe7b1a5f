//! Carrying out a plan on a branch in the form of overlayfs.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::{Carrier, Made, Spot};
use crate::branch::dir::Dir;
use crate::branch::stat::Kind;
use crate::branch::work::Work;
use crate::union::RawName;
use crate::union::name::OPAQUE;
use crate::union::plan::Which;
use crate::union::plan::overlay::{Held, Slot, Step};

/// How a prepared entry comes to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Install {
    /// A directory has to be opaque before.
    pub(in crate::fs) opaque: bool,
    /// It takes the place of a whiteout.
    pub(in crate::fs) over_whiteout: bool,
}

impl Carrier<'_> {
    /// Carries out all steps, or undoes those that were done.
    pub(in crate::fs) fn run_overlay(
        &self,
        steps: &[Step],
        mut install: impl FnMut(Install) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        // the directories that were not opaque before
        let mut made = Vec::new();
        for step in steps {
            if let Step::Clear(which) = step {
                // without its whiteouts, it would show what is below
                made.retain(|made| made != which);
            }
            let result = match *step {
                Step::Install { opaque, over_whiteout } => install(Install { opaque, over_whiteout }),
                Step::MarkOpaque(which) => self.make_opaque(which, &mut made),
                step => self.act_overlay(step),
            };
            match (result, step) {
                (Ok(()), _) => {}
                // it hides nothing, so the change is complete without this
                (Err(errno), Step::Uncover(_) | Step::DropMark(_)) => tracing::warn!(%errno, "removing a whiteout"),
                (Err(errno), _) => {
                    self.unmake_opaque(&made);
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn act_overlay(&self, step: Step) -> Result<(), Errno> {
        match step {
            Step::Install { .. } | Step::MarkOpaque(_) => Ok(()),
            Step::Cover { which, held } => self.spot(which)?.cover(self.work, held),
            Step::Uncover(which) => self.spot(which)?.uncover(),
            Step::DropMark(which) => self.spot(which)?.drop_whiteout(),
            Step::Clear(which) => clear(self.work, &self.spot(which)?.open()?),
            Step::Unlink(which) => {
                let spot = self.spot(which)?;
                spot.dir.unlink(spot.name.as_bytes())
            }
            Step::Retire(which) => {
                let spot = self.spot(which)?;
                self.work.retire(&spot.dir, spot.name.as_bytes())
            }
            Step::Move => self.rename(RenameFlags::empty()),
            Step::MoveLeavingWhiteout => self.rename(RenameFlags::WHITEOUT),
            Step::Exchange => self.rename(RenameFlags::EXCHANGE),
        }
    }

    fn make_opaque(&self, which: Which, made: &mut Vec<Which>) -> Result<(), Errno> {
        if super::mark_opaque(&self.spot(which)?.open()?)? == Made::Mark {
            made.push(which);
        }
        Ok(())
    }

    fn unmake_opaque(&self, made: &[Which]) {
        for which in made {
            let unmade = self.spot(*which).and_then(Spot::open).and_then(|dir| dir.unset_overlay_opaque());
            if let Err(errno) = unmade {
                tracing::warn!(%errno, "taking an opaque mark back");
            }
        }
    }
}

impl Spot<'_> {
    /// What the carrier holds under the name.
    pub(in crate::fs) fn slot(&self, below: bool) -> Result<Slot, Errno> {
        let held = match self.dir.find(self.name.as_bytes())?.map(|stat| stat.kind) {
            None => Held::Nothing,
            Some(Kind::Dir) => Held::Dir,
            Some(_) if self.dir.is_overlay_whiteout(self.name)? => Held::Whiteout,
            Some(_) => Held::Leaf,
        };
        Ok(Slot { held, marked: self.has_whiteout()?, below })
    }

    /// Puts a whiteout in the place of what is there.
    fn cover(&self, work: &Work, held: Held) -> Result<(), Errno> {
        match held {
            Held::Whiteout => return Ok(()),
            Held::Nothing => return self.dir.make_overlay_whiteout(self.name.as_bytes()),
            Held::Leaf | Held::Dir => {}
        }
        let flags = if held == Held::Dir { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        let temporary = work.temporary_name();
        work.temporary().make_overlay_whiteout(&temporary)?;
        let put = work.temporary().rename(&temporary, &self.dir, self.name.as_bytes(), flags);
        if put.is_err() || held == Held::Dir {
            // the whiteout that did not come to its place, or what it changed places with
            work.discard(&temporary);
        }
        put
    }

    fn uncover(&self) -> Result<(), Errno> {
        if self.dir.is_overlay_whiteout(self.name)? { self.dir.unlink(self.name.as_bytes()) } else { Ok(()) }
    }
}

/// Takes whiteouts and marks of both forms out of a logically empty directory, which is opaque by
/// its attribute.
fn clear(work: &Work, dir: &Dir) -> Result<(), Errno> {
    let attributes = dir.has_whiteout_attributes()?;
    let (last, marks): (Vec<_>, Vec<_>) = dir.entries()?.into_iter().partition(|entry| *entry.name == *OPAQUE);
    for entry in marks.into_iter().chain(last) {
        match dir.meaning(entry.as_read(), attributes)? {
            RawName::Entry(_) => return Err(Errno::NOTEMPTY),
            _ if entry.kind == Kind::Dir => work.retire(dir, &entry.name)?,
            _ => dir.unlink(&entry.name)?,
        }
    }
    Ok(())
}
