//! Carrying out a plan on the branch that carries it. What was begun is undone when a step fails.

pub(super) mod overlay;

use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use self::overlay::Install;
use super::Union;
use crate::branch::dir::Dir;
use crate::branch::stat::Kind;
use crate::branch::work::Work;
use crate::inode::Inode;
use crate::links::write_all;
use crate::union::name::{OPAQUE, RECORD};
use crate::union::plan::{self, Create, Remove, Step, Which};
use crate::union::{BranchIndex, Name, RawName};

/// What a step left that has to be taken away if a later one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// Nothing, or a mark that was there before: by a change that did not come to its end, or in
    /// an image layer.
    Nothing,
    /// A whiteout or an opaque mark.
    Mark,
}

impl Made {
    fn unless_there(result: Result<(), Errno>) -> Result<Made, Errno> {
        match result {
            Ok(()) => Ok(Made::Mark),
            Err(Errno::EXIST) => Ok(Made::Nothing),
            Err(errno) => Err(errno),
        }
    }
}

/// A name in a directory of the carrier.
#[derive(Debug, Clone)]
pub(super) struct Spot<'a> {
    pub(super) dir: Arc<Dir>,
    pub(super) name: Name<'a>,
    /// For a directory that gets a record: what that says.
    pub(super) record: Option<Vec<u8>>,
    /// Whether it is known that no whiteout is beside it.
    pub(super) bare: bool,
}

impl Union {
    /// A name in a directory of a branch, where something is about to be made: every change of names
    /// comes by here. The names of the directory are held to change them.
    pub(super) fn spot<'a>(&self, dir: &Arc<Inode>, branch: BranchIndex, name: Name<'a>) -> Result<Spot<'a>, Errno> {
        let bare = self.is_unmarked(dir, branch, name);
        self.note(dir, name, branch);
        Ok(Spot { dir: self.dir(dir, branch)?, name, record: None, bare })
    }
}

/// The carrier's part of the names of a change. Creating and removing know the target only.
#[derive(Debug)]
pub(super) struct Carrier<'a> {
    pub(super) work: &'a Work,
    pub(super) source: Option<Spot<'a>>,
    pub(super) target: Spot<'a>,
}

impl Carrier<'_> {
    /// Creates an entry under the target's name, which is not visible. `install` puts what is
    /// prepared in its place.
    pub(super) fn create(&self, dir: bool, mut install: impl FnMut(Install) -> Result<(), Errno>) -> Result<(), Errno> {
        let target = &self.target;
        if target.dir.form().overlay {
            return self.run_overlay(&plan::overlay::create(dir, target.slot(false)?), install);
        }
        let steps = plan::create(Create { dir, whiteout: target.has_whiteout()? });
        self.run(&steps, |opaque| install(Install { opaque, over_whiteout: false }))
    }

    /// Removes the entry under the target's name.
    pub(super) fn remove(&self, of: Remove) -> Result<(), Errno> {
        if self.target.dir.form().overlay {
            return self.run_overlay(&plan::overlay::remove(self.target.slot(of.below)?), |_| Ok(()));
        }
        self.run(&plan::remove(of), |_| Ok(()))
    }

    /// Carries out all steps, or undoes those that were done.
    ///
    /// `install` puts a prepared entry in its place; it is told whether a directory is opaque.
    pub(super) fn run(&self, steps: &[Step], mut install: impl FnMut(bool) -> Result<(), Errno>) -> Result<(), Errno> {
        // the steps that made a mark which was not there before
        let mut made = Vec::new();
        for step in steps {
            if matches!(step, Step::ClearMarks(_)) {
                // without its marks, the empty target would show what is below
                made.retain(|made| !matches!(made, Step::Whiteout(Which::Target) | Step::MarkOpaque(Which::Target)));
            }
            let result = match step {
                Step::Install { opaque } => install(*opaque).map(|()| Made::Nothing),
                step => self.act(*step),
            };
            match (result, step) {
                (Ok(Made::Mark), step) => made.push(*step),
                (Ok(Made::Nothing), _) => {}
                // an entry beats the whiteout beside it, so the change is complete without this
                (Err(errno), Step::DropWhiteout(_)) => tracing::warn!(%errno, "removing a whiteout that hides nothing"),
                (Err(errno), _) => {
                    self.undo(&made);
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

    fn act(&self, step: Step) -> Result<Made, Errno> {
        match step {
            Step::Whiteout(which) => return self.spot(which)?.write_whiteout(self.work),
            Step::MarkOpaque(which) => return mark_opaque(&self.spot(which)?.open()?),
            Step::Record(which) => return self.spot(which)?.write_record(self.work),
            step => self.act_unmarked(step)?,
        }
        Ok(Made::Nothing)
    }

    fn act_unmarked(&self, step: Step) -> Result<(), Errno> {
        match step {
            Step::Install { .. } | Step::Whiteout(_) | Step::MarkOpaque(_) | Step::Record(_) => Ok(()),
            Step::DropWhiteout(which) => self.spot(which)?.drop_whiteout(),
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
                Step::MarkOpaque(which) => self.spot(*which).and_then(|spot| spot.take_out(OPAQUE)),
                Step::Record(which) => self.spot(*which).and_then(|spot| spot.take_out(RECORD)),
                _ => Ok(()),
            };
            if let Err(errno) = undone {
                tracing::warn!(%errno, ?step, "undoing a step");
            }
        }
    }
}

impl Spot<'_> {
    /// The same name, if `bare` known to have no whiteout beside it.
    pub(super) fn known_bare(self, bare: bool) -> Self {
        Spot { bare: self.bare || bare, ..self }
    }

    /// Whether there is a whiteout of the name.
    pub(super) fn has_whiteout(&self) -> Result<bool, Errno> {
        if self.bare { Ok(false) } else { self.dir.has_whiteout(self.name) }
    }

    /// Takes a mark out of the directory of the name.
    fn take_out(&self, mark: &[u8]) -> Result<(), Errno> {
        let dir = self.open()?;
        dir.keeping_times(|| absent_is_fine(dir.unlink(mark)))
    }

    /// Writes the record of the directory of the name into it.
    fn write_record(&self, work: &Work) -> Result<Made, Errno> {
        let place = self.record.as_deref().ok_or(Errno::INVAL)?;
        let dir = self.open()?;
        let made = dir.keeping_times(|| match dir.make_symlink(RECORD, place) {
            Ok(()) => Ok(Made::Mark),
            // one that an opaque mark had made void
            Err(Errno::EXIST) => replace_record(work, &dir, place).map(|()| Made::Nothing),
            // a file system that cannot keep it
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NAMETOOLONG) => Err(Errno::XDEV),
            Err(errno) => Err(errno),
        })?;
        if work.needs_order() {
            dir.sync()?;
        }
        Ok(made)
    }

    fn open(&self) -> Result<Dir, Errno> {
        self.dir.open_dir(self.name.as_bytes())
    }

    /// Hides the name in the branches below.
    fn write_whiteout(&self, work: &Work) -> Result<Made, Errno> {
        let whiteout = self.name.whiteout();
        if whiteout.content.is_empty() {
            return Made::unless_there(self.dir.make_node(&whiteout.file, Kind::File, 0o444, 0));
        }
        if self.dir.has_whiteout(self.name)? {
            return Ok(Made::Nothing);
        }
        let temporary = work.temporary_name();
        let file = work.temporary().create_file(&temporary, 0o444)?;
        // a journal keeps the name of a file without its content, and that would hide nothing
        let written = write_all(&file, &whiteout.content)
            .and_then(|()| work.sync(&file))
            .and_then(|()| work.temporary().rename(&temporary, &self.dir, &whiteout.file, RenameFlags::empty()));
        written.inspect_err(|_| work.discard(&temporary)).map(|()| Made::Mark)
    }

    fn drop_whiteout(&self) -> Result<(), Errno> {
        absent_is_fine(self.dir.unlink(&self.name.whiteout().file))
    }
}

/// Makes a directory hide what is below it.
pub(super) fn mark_opaque(dir: &Dir) -> Result<Made, Errno> {
    if dir.form().overlay {
        return Ok(if dir.set_overlay_opaque()? { Made::Mark } else { Made::Nothing });
    }
    // the directory itself does not change for those who look at the union
    dir.keeping_times(|| Made::unless_there(dir.make_node(OPAQUE, Kind::File, 0o444, 0)))
}

/// Takes whiteouts and marks out of a logically empty directory.
fn clear_marks(work: &Work, dir: &Dir) -> Result<(), Errno> {
    let (last, marks): (Vec<_>, Vec<_>) = dir.entries()?.into_iter().partition(|entry| *entry.name == *OPAQUE);
    // a record counts again without the opaque mark
    for entry in marks.into_iter().chain(last) {
        match RawName::parse(&entry.name) {
            RawName::Entry(_) => return Err(Errno::NOTEMPTY),
            _ if entry.kind == Kind::Dir => work.retire(dir, &entry.name)?,
            _ => dir.unlink(&entry.name)?,
        }
    }
    Ok(())
}

fn replace_record(work: &Work, dir: &Dir, place: &[u8]) -> Result<(), Errno> {
    let temporary = work.temporary_name();
    work.temporary().make_symlink(&temporary, place)?;
    let put = work.temporary().rename(&temporary, dir, RECORD, RenameFlags::empty());
    put.inspect_err(|_| work.discard(&temporary))
}

fn absent_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
