//! Carrying out a plan on the branch that carries it. What was begun is undone when a step fails.

use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::branch::dir::Dir;
use crate::branch::stat::Kind;
use crate::branch::work::Work;
use crate::links::write_all;
use crate::union::name::OPAQUE;
use crate::union::plan::{Step, Which};
use crate::union::{Name, RawName};

/// A name in a directory of the carrier.
#[derive(Debug, Clone)]
pub(super) struct Spot<'a> {
    pub(super) dir: Arc<Dir>,
    pub(super) name: Name<'a>,
}

/// The carrier's part of the names of a change. Creating and removing know the target only.
#[derive(Debug)]
pub(super) struct Carrier<'a> {
    pub(super) work: &'a Work,
    pub(super) source: Option<Spot<'a>>,
    pub(super) target: Spot<'a>,
}

impl Carrier<'_> {
    /// Carries out all steps, or undoes those that were done.
    ///
    /// `install` puts a prepared entry in its place; it is told whether a directory is opaque.
    pub(super) fn run(&self, steps: &[Step], mut install: impl FnMut(bool) -> Result<(), Errno>) -> Result<(), Errno> {
        for (done, step) in steps.iter().enumerate() {
            let result = match step {
                Step::Install { opaque } => install(*opaque),
                step => self.act(*step),
            };
            match (result, step) {
                (Ok(()), _) => {}
                // an entry beats the whiteout beside it, so the change is complete without this
                (Err(errno), Step::DropWhiteout(_)) => tracing::warn!(%errno, "removing a whiteout that hides nothing"),
                (Err(errno), _) => {
                    self.undo(&steps[..done]);
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn spot(&self, which: Which) -> Result<&Spot<'_>, Errno> {
        match which {
            Which::Source => self.source.as_ref().ok_or(Errno::INVAL),
            Which::Target => Ok(&self.target),
        }
    }

    fn act(&self, step: Step) -> Result<(), Errno> {
        match step {
            Step::Install { .. } => Ok(()),
            Step::Whiteout(which) => self.spot(which)?.write_whiteout(self.work),
            Step::DropWhiteout(which) => self.spot(which)?.drop_whiteout(),
            Step::MarkOpaque(which) => mark_opaque(&self.spot(which)?.open()?),
            Step::ClearMarks(which) => clear_marks(self.work, &self.spot(which)?.open()?),
            Step::Unlink(which) => {
                let spot = self.spot(which)?;
                spot.dir.unlink(spot.name.as_bytes())
            }
            Step::Retire(which) => {
                let spot = self.spot(which)?;
                self.work.retire(&spot.dir, spot.name.as_bytes())
            }
            Step::Move => self.rename(RenameFlags::empty()),
            Step::MoveLeavingDevice => self.rename(RenameFlags::WHITEOUT),
            Step::Exchange => self.rename(RenameFlags::EXCHANGE),
        }
    }

    fn rename(&self, flags: RenameFlags) -> Result<(), Errno> {
        let (from, to) = (self.spot(Which::Source)?, &self.target);
        from.dir.rename(from.name.as_bytes(), &to.dir, to.name.as_bytes(), flags)
    }

    /// Takes marks back that were made for a change which failed. One that stays changes nothing
    /// that a caller sees, for the entry is still beside it.
    fn undo(&self, steps: &[Step]) {
        for step in steps.iter().rev() {
            let undone = match step {
                Step::Whiteout(which) => self.spot(*which).and_then(Spot::drop_whiteout),
                Step::MarkOpaque(which) => self
                    .spot(*which)
                    .and_then(Spot::open)
                    .and_then(|dir| dir.keeping_times(|| absent_is_fine(dir.unlink(OPAQUE)))),
                _ => Ok(()),
            };
            if let Err(errno) = undone {
                tracing::warn!(%errno, ?step, "undoing a step");
            }
        }
    }
}

impl Spot<'_> {
    fn open(&self) -> Result<Dir, Errno> {
        self.dir.open_dir(self.name.as_bytes())
    }

    /// Hides the name in the branches below.
    fn write_whiteout(&self, work: &Work) -> Result<(), Errno> {
        let whiteout = self.name.whiteout();
        if whiteout.content.is_empty() {
            return match self.dir.make_node(&whiteout.file, Kind::File, 0o444, 0) {
                // laid down before, by a change that did not come to its end
                Err(Errno::EXIST) => Ok(()),
                result => result,
            };
        }
        let temporary = work.temporary_name();
        let file = work.temporary().create_file(&temporary, 0o444)?;
        let written = write_all(&file, &whiteout.content)
            .and_then(|()| work.temporary().rename(&temporary, &self.dir, &whiteout.file, RenameFlags::empty()));
        written.inspect_err(|_| work.discard(&temporary))
    }

    fn drop_whiteout(&self) -> Result<(), Errno> {
        absent_is_fine(self.dir.unlink(&self.name.whiteout().file))
    }
}

/// Makes a directory hide what is below it.
pub(super) fn mark_opaque(dir: &Dir) -> Result<(), Errno> {
    // the directory itself does not change for those who look at the union
    dir.keeping_times(|| match dir.make_node(OPAQUE, Kind::File, 0o444, 0) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    })
}

/// Takes whiteouts and marks out of a logically empty directory.
fn clear_marks(work: &Work, dir: &Dir) -> Result<(), Errno> {
    for entry in dir.entries()? {
        match RawName::parse(&entry.name) {
            RawName::Entry(_) => return Err(Errno::NOTEMPTY),
            _ if entry.kind == Kind::Dir => work.retire(dir, &entry.name)?,
            _ => dir.unlink(&entry.name)?,
        }
    }
    Ok(())
}

fn absent_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
