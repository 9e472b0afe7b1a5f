//! Where the content below of a renamed directory lies: its record, and how that is followed
//! (rules 3 to 7 and 25).
//!
//! A directory that is renamed while directories of branches below merge with it takes a record
//! along: the place of those in the union of the branches **below the record's branch**. It takes
//! the place of merging by name. What that union holds at the place is found by the ordinary rules,
//! and by the records of those branches; whiteouts of the record's branch and of those above do not
//! count. An opaque mark in the directory beats its record, a whiteout beside it does not.

use super::name::{Name, NameBuf};
use super::resolve::{BranchIndex, Cut, Found, Next, Resolved, Scan};

/// What a record says: where in the union of the branches below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// At this path from the root; never empty.
    Path(Vec<NameBuf>),
    /// Under another name in the same directory (overlayfs has this form, too).
    Sibling(NameBuf),
}

impl Redirect {
    /// Reads a path with slashes between its names, none at its ends. Nothing if it is none, or has
    /// a name in it that no directory of a union can have.
    pub fn path(bytes: &[u8]) -> Option<Redirect> {
        let names = bytes.split(|byte| *byte == b'/').map(|name| Name::new(name).ok().map(Name::to_owned));
        names.collect::<Option<Vec<_>>>().map(Redirect::Path)
    }

    /// Reads the value of overlayfs's attribute `redirect`: an absolute path, or a name.
    pub fn overlay(bytes: &[u8]) -> Option<Redirect> {
        match bytes.strip_prefix(b"/") {
            Some(path) => Redirect::path(path),
            None => Name::new(bytes).ok().map(|name| Redirect::Sibling(name.to_owned())),
        }
    }
}

/// Branches, as records are followed through them.
pub trait Branches {
    /// An open directory of a branch.
    type Dir: Clone;
    /// Why a branch does not answer.
    type Error;

    /// The roots of the branches below one, top first, down to the first that is opaque.
    fn roots_below(&self, branch: BranchIndex) -> Result<Vec<(BranchIndex, Self::Dir)>, Self::Error>;

    /// A branch's word on a name in a directory of it, with the record where that is
    /// [`Below::Elsewhere`](super::Below::Elsewhere).
    fn word(
        &self,
        branch: BranchIndex,
        dir: &Self::Dir,
        name: Name<'_>,
    ) -> Result<(Found, Option<Redirect>), Self::Error>;

    /// The error for records that lead on and on.
    fn endless(&self) -> Self::Error;

    /// Opens a directory below.
    fn open(&self, branch: BranchIndex, dir: &Self::Dir, name: Name<'_>) -> Result<Self::Dir, Self::Error>;
}

/// A directory of one branch.
#[derive(Debug, Clone)]
pub struct Place<D> {
    /// The branch.
    pub branch: BranchIndex,
    /// The directory.
    pub dir: D,
    /// Its path in the branch, without a slash at its start.
    pub path: Vec<u8>,
}

/// The directories of the branches behind one directory of a union.
#[derive(Debug, Clone)]
pub struct Places<D> {
    /// The directories, top first.
    pub stack: Vec<Place<D>>,
    /// The lowest branch on which a new entry in the directory is seen.
    pub lowest_seen: BranchIndex,
}

impl<D: Clone> Places<D> {
    /// What of it lies below a branch.
    pub fn below(&self, branch: BranchIndex) -> Places<D> {
        let stack = self.stack.iter().filter(|place| place.branch > branch).cloned().collect();
        Places { stack, lowest_seen: self.lowest_seen }
    }
}

/// So many words of branches are asked for one directory at most, the roots counted. A few thousand are
/// what hundreds of branches and long paths need; layers that were made to mislead could ask for any
/// number.
const MOST_WORDS: usize = 100_000;

/// So many records are followed at most, each to find the place of the one before: as many as
/// overlayfs has layers. Each takes room on the stack.
const MOST_NESTED: usize = 500;

/// What merges with a directory of `branch` by its record. `parent` is the directory that holds it.
/// Nothing merges if there is no directory at the place.
pub fn follow<B: Branches>(
    branches: &B,
    parent: &Places<B::Dir>,
    branch: BranchIndex,
    record: &Redirect,
) -> Result<Places<B::Dir>, B::Error> {
    Search { branches, words: 0, nested: 0 }.follow(parent, branch, record)
}

/// The directory of a name in a directory; without branches if there is no directory of that name.
pub fn step<B: Branches>(branches: &B, parent: &Places<B::Dir>, name: Name<'_>) -> Result<Places<B::Dir>, B::Error> {
    Search { branches, words: 0, nested: 0 }.step(parent, name)
}

/// One search: how many words it has asked for, and how many records it is following right now.
struct Search<'a, B> {
    branches: &'a B,
    words: usize,
    nested: usize,
}

impl<B: Branches> Search<'_, B> {
    fn follow(
        &mut self,
        parent: &Places<B::Dir>,
        branch: BranchIndex,
        record: &Redirect,
    ) -> Result<Places<B::Dir>, B::Error> {
        self.nested += 1;
        if self.nested > MOST_NESTED {
            return Err(self.branches.endless());
        }
        let found = match record {
            Redirect::Sibling(name) => self.step(&parent.below(branch), name.as_name())?,
            Redirect::Path(path) => self.walk(branch, path)?,
        };
        self.nested -= 1;
        Ok(if found.stack.is_empty() { Places { stack: Vec::new(), lowest_seen: branch } } else { found })
    }

    /// The directory at a path in the union of the branches below one.
    fn walk(&mut self, branch: BranchIndex, path: &[NameBuf]) -> Result<Places<B::Dir>, B::Error> {
        let roots = self.branches.roots_below(branch)?;
        self.count(roots.len())?;
        let lowest_seen = roots.last().map_or(branch, |(last, _)| *last);
        let root = |(branch, dir)| Place { branch, dir, path: Vec::new() };
        let mut here = Places { stack: roots.into_iter().map(root).collect(), lowest_seen };
        for name in path {
            here = self.step(&here, name.as_name())?;
        }
        Ok(here)
    }

    fn step(&mut self, parent: &Places<B::Dir>, name: Name<'_>) -> Result<Places<B::Dir>, B::Error> {
        let mut places = Places { stack: Vec::new(), lowest_seen: parent.lowest_seen };
        let (found, record) = self.look(parent, name)?;
        let Resolved::Dir { stack, cut } = found else { return Ok(places) };
        for place in parent.stack.iter().filter(|place| stack.contains(&place.branch)) {
            let dir = self.branches.open(place.branch, &place.dir, name)?;
            places.stack.push(Place { branch: place.branch, dir, path: join(&place.path, name) });
        }
        match (cut, record) {
            (Some(Cut::Elsewhere(branch)), Some(record)) => {
                let rest = self.follow(parent, branch, &record)?;
                places.stack.extend(rest.stack);
                places.lowest_seen = rest.lowest_seen;
            }
            (cut, _) => {
                let seen = cut.and_then(Cut::lowest_seen).unwrap_or(parent.lowest_seen);
                places.lowest_seen = seen.min(parent.lowest_seen);
            }
        }
        Ok(places)
    }

    fn count(&mut self, words: usize) -> Result<(), B::Error> {
        self.words += words;
        if self.words > MOST_WORDS { Err(self.branches.endless()) } else { Ok(()) }
    }

    /// What is found under a name, and the record of the last directory.
    fn look(&mut self, parent: &Places<B::Dir>, name: Name<'_>) -> Result<(Resolved, Option<Redirect>), B::Error> {
        let mut scan = Scan::default();
        let mut record = None;
        for place in &parent.stack {
            self.count(1)?;
            let (found, redirect) = self.branches.word(place.branch, &place.dir, name)?;
            record = redirect;
            if scan.hear(place.branch, found) == Next::Done {
                break;
            }
        }
        Ok((scan.finish(), record))
    }
}

/// A path below a path.
pub fn join(path: &[u8], name: Name<'_>) -> Vec<u8> {
    if path.is_empty() { name.as_bytes().to_vec() } else { [path, name.as_bytes()].join(&b'/') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_path_that_a_union_can_have() {
        let names = |names: &[&str]| names.iter().map(|n| Name::new(n.as_bytes()).unwrap().to_owned()).collect();
        assert_eq!(Redirect::path(b"a/b c/\xff"), {
            let mut path: Vec<NameBuf> = names(&["a", "b c"]);
            path.push(Name::new(b"\xff").unwrap().to_owned());
            Some(Redirect::Path(path))
        });
        for bad in [&b""[..], b"/a", b"a/", b"a//b", b"a/../b", b".", b"a/.wh.b", b"a\0"] {
            assert_eq!(Redirect::path(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn overlayfs_says_a_path_or_a_name() {
        let name = |name: &str| Name::new(name.as_bytes()).unwrap().to_owned();
        assert_eq!(Redirect::overlay(b"/a/b"), Some(Redirect::Path(vec![name("a"), name("b")])));
        assert_eq!(Redirect::overlay(b"a"), Some(Redirect::Sibling(name("a"))));
        for bad in [&b""[..], b"/", b"a/b", b"..", b"/a/.."] {
            assert_eq!(Redirect::overlay(bad), None, "{}", bad.escape_ascii());
        }
    }
}
