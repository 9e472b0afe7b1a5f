//! In which order a change is written, so that whoever dies at any step leaves the state before
//! or after it: **whiteout, act, clean up**. An entry beats the whiteout of its own branch, so a
//! whiteout can be laid down before its entry goes, and taken away after its entry came.
//!
//! A plan is carried out on **one** branch, the carrier. The parents exist there, and for a
//! rename or exchange the source (and the target) were brought up to it.

pub mod overlay;

/// One of the two names of a change. Creating and removing know the target only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// The old name of a rename.
    Source,
    /// The new name of a rename; the name that is created or removed.
    Target,
}

/// One step: one or few system calls on the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Puts the prepared entry in its place; a directory has its opaque mark already.
    Install {
        /// Whether the directory must be made opaque while it is prepared.
        opaque: bool,
    },
    /// Writes the whiteout of a name.
    Whiteout(Which),
    /// Takes the whiteout of a name away.
    DropWhiteout(Which),
    /// Marks the directory of that name opaque.
    MarkOpaque(Which),
    /// Writes into the directory of that name the record of what merges with it from below.
    Record(Which),
    /// Takes whiteouts and marks out of the (logically empty) directory of that name; the opaque
    /// mark at last. From here on a whiteout beside it must stay until it is replaced.
    ClearMarks(Which),
    /// Removes the entry, which is not a directory.
    Unlink(Which),
    /// Moves the (logically empty) directory with its whiteouts into the work area.
    Retire(Which),
    /// Renames the source to the target.
    Move,
    /// Renames the source to the target and leaves a character device 0:0 at the source.
    MoveLeavingDevice,
    /// Exchanges source and target.
    Exchange,
}

/// What is known of a name on the carrier and below, where something is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    /// Whether a directory is made.
    pub dir: bool,
    /// Whether the carrier holds a whiteout of the name.
    pub whiteout: bool,
}

/// Plans the creation of an entry under a name that is not visible (rules 15 and 16).
pub fn create(of: Create) -> Vec<Step> {
    let mut steps = vec![Step::Install { opaque: of.dir && of.whiteout }];
    if of.whiteout {
        steps.push(Step::DropWhiteout(Which::Target));
    }
    steps
}

/// What is known of a name that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remove {
    /// Whether it is a directory (logically empty).
    pub dir: bool,
    /// Whether the carrier holds the entry; else it lies on a branch below.
    pub on_carrier: bool,
    /// Whether a lookup of the name in the branches below the carrier finds something.
    pub below: bool,
}

/// Plans the removal of an entry (rules 18 to 20): a whiteout exactly where it is needed.
pub fn remove(of: Remove) -> Vec<Step> {
    let mut steps = Vec::new();
    if of.below {
        steps.push(Step::Whiteout(Which::Target));
    }
    if of.on_carrier {
        steps.push(if of.dir { Step::Retire(Which::Target) } else { Step::Unlink(Which::Target) });
    }
    steps
}

/// How a rename ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The target is replaced.
    Plain,
    /// A character device 0:0 stays at the source (`RENAME_WHITEOUT`).
    LeavingDevice,
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Not a directory.
    Leaf,
    /// A directory.
    Dir(Merging),
}

/// What merges with a directory of the carrier from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merging {
    /// Nothing.
    Nothing,
    /// Directories of its name, so that it needs a record before it moves.
    ByName,
    /// Whatever its record says, which it takes along.
    ByRecord,
}

impl Moved {
    /// What has to be written into it before it comes to a place where `hidden` says that a
    /// whiteout or an entry lies under its new name. Where it is, that changes nothing.
    fn prepare(self, which: Which, hidden: bool) -> Option<Step> {
        match self {
            Moved::Dir(Merging::ByName) => Some(Step::Record(which)),
            Moved::Dir(Merging::Nothing) if hidden => Some(Step::MarkOpaque(which)),
            Moved::Leaf | Moved::Dir(_) => None,
        }
    }
}

/// What is known of the two names of a rename. The source is on the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rename {
    /// The source.
    pub source: Moved,
    /// Whether a lookup of the source's name in the branches below the carrier finds something.
    pub source_below: bool,
    /// Whether the carrier holds a directory (logically empty) at the target.
    pub target_dir: bool,
    /// Whether that directory has a record.
    pub target_record: bool,
    /// Whether the carrier holds a whiteout of the target.
    pub target_whiteout: bool,
    /// Whether the branches below the carrier hold something under the target's name.
    pub target_below: bool,
    /// How it ends.
    pub manner: Manner,
}

/// Plans a rename (rules 24 and 25).
pub fn rename(of: Rename) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(of.source.prepare(Which::Source, of.target_whiteout || of.target_below));
    if of.source_below && of.manner == Manner::Plain {
        steps.push(Step::Whiteout(Which::Source));
    }
    // a whiteout does not touch what a record says
    if of.target_dir && of.target_record {
        steps.push(Step::MarkOpaque(Which::Target));
    }
    // with a whiteout beside it the empty target is opaque, so its own marks can go
    let lay_down = of.target_dir && !of.target_whiteout;
    if lay_down {
        steps.push(Step::Whiteout(Which::Target));
    }
    if of.target_dir {
        steps.push(Step::ClearMarks(Which::Target));
    }
    steps.push(match of.manner {
        Manner::Plain => Step::Move,
        Manner::LeavingDevice => Step::MoveLeavingDevice,
    });
    if of.target_whiteout || lay_down {
        steps.push(Step::DropWhiteout(Which::Target));
    }
    steps
}

/// What is known of one of the two names of an exchange. Both are on the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// What it is.
    pub moved: Moved,
    /// Whether the carrier holds a whiteout of the name, too.
    pub whiteout: bool,
    /// Whether the branches below the carrier hold something under the name.
    pub below: bool,
}

/// Plans an exchange (rule 23).
pub fn exchange(source: Side, target: Side) -> Vec<Step> {
    let mut steps = Vec::new();
    for (which, moved, place) in [(Which::Source, source, target), (Which::Target, target, source)] {
        steps.extend(moved.moved.prepare(which, place.below || place.whiteout));
    }
    steps.push(Step::Exchange);
    steps
}
