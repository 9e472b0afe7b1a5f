//! In which order a change is written on a branch in the form of overlayfs.
//!
//! A whiteout stands there **in the place** of the name, so there is no entry beside it that could
//! beat it: the two take each other's place in one system call, prepared in the work area before
//! and cleaned up there after. Files `.wh.NAME`, which count here as well, are what an earlier mount
//! in the other form left; they go with the first change of their name.

use super::Which;

/// What the carrier holds under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A whiteout.
    Whiteout,
    /// An entry that is not a directory.
    Leaf,
    /// A directory.
    Dir,
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What the carrier holds there.
    pub held: Held,
    /// Whether it holds a file `.wh.NAME`, too.
    pub marked: bool,
    /// Whether a lookup of the name in the branches below the carrier finds something.
    pub below: bool,
}

impl Slot {
    /// Whether a directory that comes to this name must be opaque.
    fn merges(self) -> bool {
        self.below || self.marked || self.held == Held::Whiteout
    }
}

/// One step: one or few system calls on the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Puts the prepared entry in its place; a directory has its opaque mark already.
    Install {
        /// Whether the directory must be made opaque while it is prepared.
        opaque: bool,
        /// Whether it takes the place of a whiteout.
        over_whiteout: bool,
    },
    /// Puts a whiteout in the place of what is held there.
    Cover {
        /// The name.
        which: Which,
        /// What goes with it: nothing, a leaf, or a (logically empty) directory.
        held: Held,
    },
    /// Takes the whiteout of a name away.
    Uncover(Which),
    /// Takes the file `.wh.NAME` away.
    DropMark(Which),
    /// Marks the directory of that name opaque.
    MarkOpaque(Which),
    /// Takes whiteouts out of the (logically empty) directory of that name.
    Clear(Which),
    /// Removes the entry, which is not a directory.
    Unlink(Which),
    /// Moves the (logically empty) directory with its whiteouts into the work area.
    Retire(Which),
    /// Renames the source to the target.
    Move,
    /// Renames the source to the target and leaves a whiteout at the source.
    MoveLeavingWhiteout,
    /// Exchanges source and target.
    Exchange,
}

/// Takes the files away that said what the place of the names says now.
fn drop_marks(steps: &mut Vec<Step>, slots: &[(Which, Slot)]) {
    steps.extend(slots.iter().filter(|(_, slot)| slot.marked).map(|(which, _)| Step::DropMark(*which)));
}

/// Plans the creation of an entry under a name that is not visible.
pub fn create(dir: bool, target: Slot) -> Vec<Step> {
    let over_whiteout = target.held == Held::Whiteout;
    let mut steps = vec![Step::Install { opaque: dir && (over_whiteout || target.marked), over_whiteout }];
    drop_marks(&mut steps, &[(Which::Target, target)]);
    steps
}

/// Plans the removal of an entry, which lies below the carrier if nothing is held there.
pub fn remove(target: Slot) -> Vec<Step> {
    let mut steps = Vec::new();
    match target.held {
        held if target.below => steps.push(Step::Cover { which: Which::Target, held }),
        Held::Nothing | Held::Whiteout => {}
        Held::Leaf => steps.push(Step::Unlink(Which::Target)),
        Held::Dir => steps.push(Step::Retire(Which::Target)),
    }
    drop_marks(&mut steps, &[(Which::Target, target)]);
    steps
}

/// Plans a rename of what lies on the carrier alone; a directory at the target is logically empty.
/// `redirected` is a source directory whose attribute names a directory below that is not there.
pub fn rename(source: Slot, target: Slot, redirected: bool) -> Vec<Step> {
    let dir = source.held == Held::Dir;
    let mut steps = Vec::new();
    // nothing merges with the source where it is, so the mark changes nothing until it moves
    if dir && (target.merges() || redirected) {
        steps.push(Step::MarkOpaque(Which::Source));
    }
    // nor with the empty target, which is opaque before what it hides comes to light
    if target.held == Held::Dir {
        steps.extend([Step::MarkOpaque(Which::Target), Step::Clear(Which::Target)]);
    }
    if dir && target.held == Held::Whiteout {
        // a directory does not replace a device, but it can change places with it
        steps.push(Step::Exchange);
        if !source.below {
            steps.push(Step::Uncover(Which::Source));
        }
    } else {
        steps.push(if source.below { Step::MoveLeavingWhiteout } else { Step::Move });
    }
    drop_marks(&mut steps, &[(Which::Source, source), (Which::Target, target)]);
    steps
}

/// Plans an exchange of what lies on the carrier alone; of each of the two, whether it is a
/// redirected directory (see [`rename`]).
pub fn exchange(source: (Slot, bool), target: (Slot, bool)) -> Vec<Step> {
    let mut steps = Vec::new();
    for (which, (moved, redirected), (place, _)) in [(Which::Source, source, target), (Which::Target, target, source)] {
        if moved.held == Held::Dir && (place.merges() || redirected) {
            steps.push(Step::MarkOpaque(which));
        }
    }
    steps.push(Step::Exchange);
    drop_marks(&mut steps, &[(Which::Source, source.0), (Which::Target, target.0)]);
    steps
}
