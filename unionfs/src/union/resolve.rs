//! What hides what: the one statement of it, for lookup and for listings (rules 3 to 7).

/// Place of a branch in the order of branches; 0 is the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchIndex(pub u16);

impl BranchIndex {
    /// The index as a position in a list.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

/// One branch's word on one name.
///
/// A branch that holds both an entry and a whiteout of the name (the state in the middle of a
/// change, or of an OCI layer that replaces a directory) says the entry, and a directory is then
/// opaque: the whiteout goes on hiding what is below, see [`Found::with_whiteout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// Neither an entry nor a whiteout.
    Nothing,
    /// A whiteout, and no entry.
    Whiteout,
    /// An entry that is not a directory.
    Leaf,
    /// A directory.
    Dir(Below),
}

/// What a directory does to the branches below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Below {
    /// The directories of its name there merge with it.
    Merges,
    /// It is opaque: nothing below shows in it.
    Hidden,
    /// It was renamed with what is below: its record says which directory there merges with it,
    /// whatever lies under its name (rule 25).
    Elsewhere,
}

impl Found {
    /// The same word of a branch that holds a whiteout of the name, too.
    pub fn with_whiteout(self) -> Found {
        match self {
            Found::Nothing | Found::Whiteout => Found::Whiteout,
            Found::Leaf => Found::Leaf,
            // what the whiteout hides has another name than what the record says
            Found::Dir(Below::Elsewhere) => Found::Dir(Below::Elsewhere),
            Found::Dir(Below::Merges | Below::Hidden) => Found::Dir(Below::Hidden),
        }
    }

    /// What this word says of the name, if no branch above said anything.
    pub fn verdict(self) -> Verdict {
        match self {
            Found::Nothing => Verdict::Open,
            Found::Whiteout => Verdict::Hidden,
            Found::Leaf | Found::Dir(_) => Verdict::Shown,
        }
    }
}

/// What the topmost word on a name decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: ask the next branch.
    Open,
    /// The name does not exist.
    Hidden,
    /// The name exists, with the type and attributes of this branch.
    Shown,
}

/// Where the search of a name ended before the last branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// By something of this branch that hides only what is below it: an opaque directory or a
    /// whiteout. A new entry on this branch would be seen, for an entry beats the whiteout of
    /// its own branch.
    Below(BranchIndex),
    /// By an entry of this branch that is not a directory, under a directory: its place is taken.
    From(BranchIndex),
    /// By the record of a directory of this branch: what merges with it below is found by
    /// [`super::redirect`], and not by the name.
    Elsewhere(BranchIndex),
}

impl Cut {
    /// The lowest branch on which a new entry of the name, or in the directory of that name,
    /// is seen; nothing if there is none.
    pub fn lowest_seen(self) -> Option<BranchIndex> {
        match self {
            Cut::Below(branch) | Cut::Elsewhere(branch) => Some(branch),
            Cut::From(branch) => branch.0.checked_sub(1).map(BranchIndex),
        }
    }
}

/// Where a union name lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// Nowhere.
    Missing {
        /// The whiteout that says so, if one does.
        cut: Option<Cut>,
    },
    /// An entry that is not a directory, on this branch.
    Leaf(BranchIndex),
    /// Directories that merge, top first, never empty.
    Dir {
        /// The branches.
        stack: Vec<BranchIndex>,
        /// What ended the stack.
        cut: Option<Cut>,
    },
}

impl Resolved {
    /// The branch of the topmost entry.
    pub fn topmost(&self) -> Option<BranchIndex> {
        match self {
            Resolved::Missing { .. } => None,
            Resolved::Leaf(branch) => Some(*branch),
            Resolved::Dir { stack, .. } => stack.first().copied(),
        }
    }
}

/// The search of one name, branch by branch from the top.
#[derive(Debug, Default)]
pub struct Scan {
    stack: Vec<BranchIndex>,
    leaf: Option<BranchIndex>,
    cut: Option<Cut>,
}

/// Whether a [`Scan`] wants to hear the next branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It does.
    More,
    /// The answer is known.
    Done,
}

impl Scan {
    /// Hears the next branch, which must be below all that it heard before.
    pub fn hear(&mut self, branch: BranchIndex, found: Found) -> Next {
        let first = self.stack.is_empty();
        match found {
            Found::Nothing => return Next::More,
            Found::Whiteout => self.cut = Some(Cut::Below(branch)),
            Found::Leaf if first => self.leaf = Some(branch),
            Found::Leaf => self.cut = Some(Cut::From(branch)),
            Found::Dir(below) => {
                self.stack.push(branch);
                match below {
                    Below::Merges => return Next::More,
                    Below::Hidden => self.cut = Some(Cut::Below(branch)),
                    Below::Elsewhere => self.cut = Some(Cut::Elsewhere(branch)),
                }
            }
        }
        Next::Done
    }

    /// The answer.
    pub fn finish(self) -> Resolved {
        match (self.leaf, self.stack.is_empty()) {
            (Some(branch), _) => Resolved::Leaf(branch),
            (None, true) => Resolved::Missing { cut: self.cut },
            (None, false) => Resolved::Dir { stack: self.stack, cut: self.cut },
        }
    }
}

/// Finds out where a name lives from the words of the branches, top first.
///
/// The iterator is asked only as far as needed, so it may read disks. A branch's error is the
/// caller's error, never "not there" (rule 9).
pub fn resolve<E>(words: impl IntoIterator<Item = Result<(BranchIndex, Found), E>>) -> Result<Resolved, E> {
    let mut scan = Scan::default();
    for word in words {
        let (branch, found) = word?;
        if scan.hear(branch, found) == Next::Done {
            break;
        }
    }
    Ok(scan.finish())
}
