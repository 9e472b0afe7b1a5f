//! Looking at the branches of a union without mounting it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use rustix::io::Errno;

use super::DiffError;
use crate::branch;
use crate::branch::at::At;
use crate::branch::dir::Dir;
use crate::branch::form::Form;
use crate::branch::marks::Heed;
use crate::branch::private::is_private;
use crate::branch::root::RootNames;
use crate::branch::stat::Stat;
use crate::options::{Access, BranchSpec, Keeping};
use crate::union::redirect::{self, Branches, Place, Places};
use crate::union::resolve::Next;
use crate::union::{BranchIndex, Found, Name, NameBuf, RawName, Redirect, Resolved, Scan};

/// A directory on each of its branches, top first; nothing where a mount point could not be looked
/// behind: it is empty then, as in the union.
pub(crate) type Level = Places<Option<Rc<Dir>>>;

/// The root of a branch.
type Root = (BranchIndex, Option<Rc<Dir>>);

/// The branches, open.
#[derive(Debug)]
pub(crate) struct View {
    branches: Vec<About>,
}

#[derive(Debug)]
struct About {
    root: Rc<Dir>,
    heed: Heed,
    init: bool,
}

/// What was found under a name.
#[derive(Debug)]
pub(crate) struct Sight {
    /// Where; of a directory, the branches that it is on under its name.
    pub(crate) resolved: Resolved,
    /// Of the topmost entry.
    pub(crate) stat: Option<Stat>,
}

/// Whether names are listed of which there is a whiteout only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    Too,
    Not,
}

impl Branches for View {
    type Dir = Option<Rc<Dir>>;
    type Error = Errno;

    fn roots_below(&self, branch: BranchIndex) -> Result<Vec<(BranchIndex, Self::Dir)>, Errno> {
        self.roots_from(branch.get() + 1)
    }

    fn word(&self, branch: BranchIndex, dir: &Self::Dir, name: Name<'_>) -> Result<(Found, Option<Redirect>), Errno> {
        let Some(dir) = dir else { return Ok((Found::Nothing, None)) };
        let word = dir.word(name, self.heed(branch))?;
        Ok((word.found, word.redirect))
    }

    fn endless(&self) -> Errno {
        Errno::LOOP
    }

    fn open(&self, _branch: BranchIndex, dir: &Self::Dir, name: Name<'_>) -> Result<Self::Dir, Errno> {
        let Some(dir) = dir else { return Ok(None) };
        match dir.open_dir(name.as_bytes()) {
            Ok(dir) => Ok(Some(Rc::new(dir))),
            Err(Errno::XDEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl View {
    /// Opens the branches, for reading only. `workdir` is where the work area of the topmost writable
    /// one lies, if not at its root.
    pub(crate) fn open_all(branches: &[BranchSpec], workdir: Option<&Path>) -> Result<View, DiffError> {
        let mut workdir = workdir;
        let open = |branch: &BranchSpec| {
            let workdir = workdir.take_if(|_| branch.access == Access::ReadWrite);
            open(branch, workdir)
        };
        Ok(View { branches: branches.iter().map(open).collect::<Result<_, _>>()? })
    }

    pub(crate) fn heed(&self, branch: BranchIndex) -> Heed {
        let nothing = Heed { whiteouts: false, beside: false, records: false };
        self.branches.get(branch.get()).map_or(nothing, |about| about.heed)
    }

    /// The root as it is on the branches from one on: an opaque mark in it hides all below.
    pub(crate) fn root(&self, first: usize) -> Result<Level, Errno> {
        let place = |(branch, dir)| Place { branch, dir, path: Vec::new() };
        let stack: Vec<_> = self.roots_from(first)?.into_iter().map(place).collect();
        let lowest_seen = stack.last().map_or(BranchIndex(0), |place| place.branch);
        Ok(Places { stack, lowest_seen })
    }

    fn roots_from(&self, first: usize) -> Result<Vec<Root>, Errno> {
        let mut roots = Vec::new();
        for (index, about) in (0..).map(BranchIndex).zip(&self.branches).skip(first) {
            roots.push((index, Some(Rc::clone(&about.root))));
            if about.heed.whiteouts && about.root.is_opaque()? {
                break;
            }
        }
        Ok(roots)
    }

    /// Finds a name in a directory.
    pub(crate) fn look(&self, level: &Level, name: Name<'_>) -> Result<Sight, Errno> {
        let mut scan = Scan::default();
        let mut topmost = None;
        for place in &level.stack {
            let Some(dir) = &place.dir else { continue };
            let word = dir.word(name, self.heed(place.branch))?;
            topmost = topmost.or(word.stat);
            if scan.hear(place.branch, word.found) == Next::Done {
                break;
            }
        }
        let resolved = scan.finish();
        Ok(Sight { stat: resolved.topmost().and(topmost), resolved })
    }

    /// The directory of a name; without branches if there is none.
    pub(crate) fn enter(&self, level: &Level, name: Name<'_>) -> Result<Level, Errno> {
        redirect::step(self, level, name)
    }

    /// Whether an init branch holds an entry of this name.
    pub(crate) fn is_in_init_branch(&self, level: &Level, name: Name<'_>) -> Result<bool, Errno> {
        for place in &level.stack {
            let is_init = self.branches.get(place.branch.get()).is_some_and(|about| about.init);
            if is_init
                && let Some(dir) = &place.dir
                && dir.find(name.as_bytes())?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn open(branch: &BranchSpec, workdir: Option<&Path>) -> Result<About, DiffError> {
    let failed = |path: &Path, error| DiffError::Branch { path: path.to_owned(), error };
    let fail = |error| failed(&branch.path, error);
    let area = match workdir {
        Some(dir) => Some(branch::open_root(dir, true, Form::default()).map_err(|error| failed(dir, error))?),
        None => None,
    };
    let root = branch::open_root(&branch.path, true, branch::form_of(branch))
        .and_then(|root| {
            let names = RootNames::of(&root)?;
            branch::with_kept(root, &names, false, Keeping::Refused, area.as_ref())
        })
        .map_err(fail)?;
    let writable = branch.access == Access::ReadWrite;
    if writable && !branch.overlay && root.is_overlay_written().map_err(fail)? {
        return Err(DiffError::WrittenAsOverlay(branch.path.clone()));
    }
    let whiteouts = branch.whiteouts || branch.overlay || writable;
    let heed = Heed { whiteouts, beside: whiteouts, records: whiteouts && branch::has_records(&root).map_err(fail)? };
    Ok(About { root: Rc::new(root), heed, init: branch.init })
}

/// The names that a directory of one branch speaks of.
pub(crate) fn names(dir: &Dir, marks: Marks, names: &mut BTreeSet<NameBuf>) -> Result<(), Errno> {
    let attributes = dir.has_whiteout_attributes()?;
    for entry in dir.entries()? {
        match dir.meaning(entry.as_read(), attributes)? {
            RawName::Entry(name) => drop(names.insert(name.to_owned())),
            RawName::Whiteout(name) if marks == Marks::Too => drop(names.insert(name.to_owned())),
            RawName::LongWhiteout if marks == Marks::Too => names.extend(dir.long_name(&entry.name)?),
            RawName::Whiteout(_) | RawName::LongWhiteout | RawName::Opaque | RawName::Reserved => {}
        }
    }
    Ok(())
}

/// Whether two directories are the same but for what is in them.
pub(crate) fn same_directory(old: (At<'_>, Option<Stat>), new: (At<'_>, Option<Stat>)) -> Result<bool, Errno> {
    let about = |stat: Stat| (stat.mode, stat.uid, stat.gid, stat.mtime);
    // a copy-up takes along what is a mark of neither
    let overlay = old.0.form().overlay || new.0.form().overlay;
    Ok(old.1.map(about) == new.1.map(about) && xattrs(old.0, overlay)? == xattrs(new.0, overlay)?)
}

/// The extended attributes; those that are marks left out.
fn xattrs(at: At<'_>, overlay: bool) -> Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>, Errno> {
    let names = match at.xattr_names() {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        names => names?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let public = names.filter(|name| !is_private(name, overlay));
    public.map(|name| Ok((name.to_vec(), at.xattr(name)?))).collect()
}
