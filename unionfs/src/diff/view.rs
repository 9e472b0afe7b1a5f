//! Looking at the branches of a union without mounting it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rustix::io::Errno;

use super::Twice;
use crate::branch::at::At;
use crate::branch::dir::Dir;
use crate::branch::stat::Stat;
use crate::options::{Access, BranchSpec};
use crate::union::resolve::Next;
use crate::union::{BranchIndex, Name, NameBuf, RawName, Resolved, Scan};

/// A directory on each of its branches, top first.
pub(super) type Level = Vec<(BranchIndex, Rc<Dir>)>;

/// Extended attributes with this in their names are ours, and no part of a directory.
const PRIVATE: &[u8] = b".runionfs.";

/// What the branches are to the rules.
#[derive(Debug)]
pub(super) struct View {
    branches: Vec<About>,
}

#[derive(Debug)]
struct About {
    honours_whiteouts: bool,
    init: bool,
}

/// What was found under a name.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) resolved: Resolved,
    /// Of the topmost entry.
    pub(super) stat: Option<Stat>,
}

/// Whether names are listed of which there is a whiteout only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    Too,
    Not,
}

impl View {
    pub(super) fn new(branches: &[BranchSpec]) -> View {
        let about = |branch: &BranchSpec| About {
            honours_whiteouts: branch.whiteouts || branch.access == Access::ReadWrite,
            init: branch.init,
        };
        View { branches: branches.iter().map(about).collect() }
    }

    fn honours_whiteouts(&self, branch: BranchIndex) -> bool {
        self.branches.get(branch.get()).is_some_and(|about| about.honours_whiteouts)
    }

    /// Both views of the root: an opaque mark in the root of a branch hides all below it.
    pub(super) fn cut_roots(&self, all: &Level, on_top: usize) -> Result<Twice, Errno> {
        Ok(Twice { now: self.cut(all)?, before: self.cut(&all[on_top.min(all.len())..])? })
    }

    fn cut(&self, level: &[(BranchIndex, Rc<Dir>)]) -> Result<Level, Errno> {
        let mut seen = Vec::new();
        for (branch, dir) in level {
            seen.push((*branch, Rc::clone(dir)));
            if self.honours_whiteouts(*branch) && dir.is_opaque()? {
                break;
            }
        }
        Ok(seen)
    }

    /// Finds a name in a directory.
    pub(super) fn look(&self, level: &Level, name: Name<'_>) -> Result<Sight, Errno> {
        let mut scan = Scan::default();
        let mut topmost = None;
        for (branch, dir) in level {
            let (found, stat) = dir.word(name, self.honours_whiteouts(*branch))?;
            topmost = topmost.or(stat);
            if scan.hear(*branch, found) == Next::Done {
                break;
            }
        }
        Ok(Sight { resolved: scan.finish(), stat: topmost })
    }

    /// Whether an init branch holds an entry of this name.
    pub(super) fn is_in_init_branch(&self, level: &Level, name: Name<'_>) -> Result<bool, Errno> {
        for (branch, dir) in level {
            let is_init = self.branches.get(branch.get()).is_some_and(|about| about.init);
            if is_init && dir.find(name.as_bytes())?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The names that a directory of one branch speaks of.
pub(super) fn names(dir: &Dir, marks: Marks, names: &mut BTreeSet<NameBuf>) -> Result<(), Errno> {
    for entry in dir.entries()? {
        match RawName::parse(&entry.name) {
            RawName::Entry(name) => drop(names.insert(name.to_owned())),
            RawName::Whiteout(name) if marks == Marks::Too => drop(names.insert(name.to_owned())),
            RawName::LongWhiteout if marks == Marks::Too => names.extend(dir.long_name(&entry.name)?),
            RawName::Whiteout(_) | RawName::LongWhiteout | RawName::Opaque | RawName::Reserved => {}
        }
    }
    Ok(())
}

/// Opens a directory below on the branches behind it. Where a mount point could not be looked
/// behind, it is empty, as in the union.
pub(super) fn open(level: &Level, stack: &[BranchIndex], name: &[u8]) -> Result<Level, Errno> {
    let mut below = Vec::with_capacity(stack.len());
    for (branch, dir) in level.iter().filter(|(branch, _)| stack.contains(branch)) {
        match dir.open_dir(name) {
            Ok(dir) => below.push((*branch, Rc::new(dir))),
            Err(Errno::XDEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(below)
}

/// Whether two directories are the same but for what is in them.
pub(super) fn same_directory(old: (At<'_>, Option<Stat>), new: (At<'_>, Option<Stat>)) -> Result<bool, Errno> {
    let about = |stat: Stat| (stat.mode, stat.uid, stat.gid, stat.mtime);
    Ok(old.1.map(about) == new.1.map(about) && xattrs(old.0)? == xattrs(new.0)?)
}

/// The extended attributes; those of ours left out.
fn xattrs(at: At<'_>) -> Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>, Errno> {
    let names = match at.xattr_names() {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        names => names?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let public = names.filter(|name| !name.windows(PRIVATE.len()).any(|part| part == PRIVATE));
    public.map(|name| Ok((name.to_vec(), at.xattr(name)?))).collect()
}
