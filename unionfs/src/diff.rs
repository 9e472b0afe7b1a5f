//! What the writable branches on top change of the branches below, as `docker diff` says it.
//!
//! Read from the branches, whether they are mounted or not. Each directory is looked at twice:
//! as it is in the whole union, and as it would be without the branches on top; both by
//! [`crate::union`], so that the answer cannot differ from what the mount shows. Only names that
//! the top speaks of are asked for, and those below a directory that it hides.

pub(crate) mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::io::Errno;

use crate::branch::dir::Dir;
use crate::options::{Access, BranchSpec};
use crate::union::redirect::Place;
use crate::union::{BranchIndex, NameBuf, Resolved};
use view::{Level, Sight, View};

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It is not there without the branches on top.
    Added,
    /// It is there, and its content, type or attributes changed.
    Changed,
    /// It is there without the branches on top only.
    Deleted,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Added => "A",
            Kind::Changed => "C",
            Kind::Deleted => "D",
        })
    }
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub kind: Kind,
    /// Its path from the root of the union, as `/etc/hosts`.
    pub path: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// Nothing can have been changed.
    #[error("the top branch {} is not writable, so that nothing was changed in it", .0.display())]
    NothingOnTop(PathBuf),
    /// A branch cannot be opened.
    #[error("cannot open branch {}: {error}", path.display())]
    Branch {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        error: Errno,
    },
    /// A writable branch is said to be in another form than it is.
    #[error("branch {} was written with whiteout=overlay: give it as {}=rw+ovl", .0.display(), .0.display())]
    WrittenAsOverlay(PathBuf),
    /// There is none that could be filled.
    #[error("no branch is an init branch")]
    NoInitBranch,
    /// A directory cannot be read.
    #[error("cannot read {}: {error}", String::from_utf8_lossy(path))]
    Directory {
        /// Its path in the union.
        path: Vec<u8>,
        /// Why not.
        error: Errno,
    },
}

/// Compares the writable branches on top with what is below, sorted by path. `workdir` is where the
/// work area of the topmost writable branch lies, if not at its root.
///
/// A directory in which something changed is named, too, as `docker diff` does; one that was only
/// copied up is not. A deleted one is named without what was in it. What an init branch holds is the container's own, and
/// what became of it is not named either.
pub fn diff(branches: &[BranchSpec], workdir: Option<&Path>) -> Result<Vec<Change>, DiffError> {
    let on_top = branches.iter().take_while(|branch| branch.access == Access::ReadWrite).count();
    if on_top == 0 {
        return Err(DiffError::NothingOnTop(branches.first().map(|branch| branch.path.clone()).unwrap_or_default()));
    }
    let view = View::open_all(branches, workdir)?;
    let root = |first| view.root(first).map_err(|error| failed(b"/", error));
    let roots = Twice { now: root(0)?, before: root(on_top)? };
    let mut walk = Walk { view, on_top, changes: Vec::new() };
    walk.all(roots)?;
    Ok(with_parents(walk.changes))
}

/// Adds the directories in which something changed, and sorts by path.
fn with_parents(changes: Vec<Change>) -> Vec<Change> {
    let mut all: BTreeMap<Vec<u8>, Kind> = changes.into_iter().map(|change| (change.path, change.kind)).collect();
    let paths: Vec<Vec<u8>> = all.keys().cloned().collect();
    for path in paths {
        for (slash, _) in path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/') {
            all.entry(path[..slash].to_vec()).or_insert(Kind::Changed);
        }
    }
    all.into_iter().map(|(path, kind)| Change { kind, path }).collect()
}

/// A directory with the branches on top and without them.
#[derive(Debug)]
pub(crate) struct Twice {
    /// On all branches where it is seen.
    pub(crate) now: Level,
    /// On the branches below the top where it would be seen.
    pub(crate) before: Level,
}

/// A directory that is still to be looked at. It is opened only then, so that no more
/// directories are open than one path is deep.
struct Pending {
    parent: Rc<Twice>,
    /// The path of the parent, with a slash at its end.
    path: Rc<[u8]>,
    name: NameBuf,
}

struct Walk {
    view: View,
    on_top: usize,
    changes: Vec<Change>,
}

impl Walk {
    fn all(&mut self, roots: Twice) -> Result<(), DiffError> {
        let mut pending = self.directory(Rc::new(roots), b"/".as_slice().into())?;
        while let Some(next) = pending.pop() {
            let path: Rc<[u8]> = [&next.path, next.name.as_bytes(), b"/"].concat().into();
            let twice = self.open(&next).map_err(|error| failed(&path, error))?;
            pending.extend(self.directory(Rc::new(twice), path)?);
        }
        Ok(())
    }

    fn open(&self, pending: &Pending) -> Result<Twice, Errno> {
        let (parent, name) = (&pending.parent, pending.name.as_name());
        Ok(Twice { now: self.view.enter(&parent.now, name)?, before: self.view.enter(&parent.before, name)? })
    }

    /// Compares the entries of one directory; the directories in it that may differ, too.
    fn directory(&mut self, dir: Rc<Twice>, path: Rc<[u8]>) -> Result<Vec<Pending>, DiffError> {
        let mut pending = Vec::new();
        for name in self.names(&dir).map_err(|error| failed(&path, error))? {
            if self.entry(&dir, &path, &name).map_err(|error| failed(&path, error))? {
                pending.push(Pending { parent: Rc::clone(&dir), path: Rc::clone(&path), name });
            }
        }
        Ok(pending)
    }

    /// The names whose fate may differ: those the top speaks of, and all others where it hides
    /// a branch or shows one that lies elsewhere.
    fn names(&self, dir: &Twice) -> Result<BTreeSet<NameBuf>, Errno> {
        let mut names = BTreeSet::new();
        let on_top = |place: &&Place<Option<Rc<Dir>>>| self.is_on_top(place.branch);
        for dir in dir.now.stack.iter().filter(on_top).filter_map(|place| place.dir.as_ref()) {
            view::names(dir, view::Marks::Too, &mut names)?;
        }
        if !self.shows_the_same_below(dir) {
            let below = dir.now.stack.iter().filter(|place| !on_top(place)).chain(&dir.before.stack);
            for dir in below.filter_map(|place| place.dir.as_ref()) {
                view::names(dir, view::Marks::Not, &mut names)?;
            }
        }
        Ok(names)
    }

    /// Whether what is below the top is the same with it and without.
    fn shows_the_same_below(&self, dir: &Twice) -> bool {
        let below = dir.now.stack.iter().filter(|place| !self.is_on_top(place.branch));
        let place = |place: &Place<_>| (place.branch, place.path.clone());
        below.map(place).eq(dir.before.stack.iter().map(place))
    }

    /// Compares one entry. Says whether it is a directory in which something may differ.
    fn entry(&mut self, dir: &Twice, path: &[u8], name: &NameBuf) -> Result<bool, Errno> {
        let now = self.view.look(&dir.now, name.as_name())?;
        let before = self.view.look(&dir.before, name.as_name())?;
        let is_own = self.view.is_in_init_branch(&dir.before, name.as_name())?;
        if let Some(kind) = self.fate(dir, name, &before, &now)?.filter(|_| !is_own) {
            self.changes.push(Change { kind, path: [path, name.as_bytes()].concat() });
        }
        let Resolved::Dir { stack, .. } = now.resolved else { return Ok(false) };
        let below = |place: &&Place<_>| !self.is_on_top(place.branch);
        let elsewhere = !self.shows_the_same_below(dir) && dir.now.stack.iter().any(|place| below(&place));
        Ok(elsewhere || stack.iter().any(|branch| self.is_on_top(*branch)))
    }

    fn fate(&self, dir: &Twice, name: &NameBuf, before: &Sight, now: &Sight) -> Result<Option<Kind>, Errno> {
        Ok(match (before.resolved.topmost(), now.resolved.topmost()) {
            (None, None) => None,
            (None, Some(_)) => Some(Kind::Added),
            (Some(_), None) => Some(Kind::Deleted),
            // the same entry, unless a directory above it lies elsewhere
            (Some(_), Some(on)) if !self.is_on_top(on) => {
                let id = |sight: &Sight| sight.stat.map(|stat| stat.id);
                (id(before) != id(now)).then_some(Kind::Changed)
            }
            (Some(old), Some(new)) => {
                let both_dirs = [before, now].iter().all(|sight| matches!(sight.resolved, Resolved::Dir { .. }));
                let same = both_dirs
                    && view::same_directory(
                        (on(&dir.before, old)?.at(name.as_bytes()), before.stat),
                        (on(&dir.now, new)?.at(name.as_bytes()), now.stat),
                    )?;
                (!same).then_some(Kind::Changed)
            }
        })
    }

    fn is_on_top(&self, branch: BranchIndex) -> bool {
        branch.get() < self.on_top
    }
}

/// A directory on one of its branches.
pub(crate) fn on(level: &Level, branch: BranchIndex) -> Result<&Dir, Errno> {
    let place = level.stack.iter().find(|place| place.branch == branch);
    place.and_then(|place| place.dir.as_deref()).ok_or(Errno::NOENT)
}

fn failed(path: &[u8], error: Errno) -> DiffError {
    DiffError::Directory { path: path.to_vec(), error }
}

#[cfg(test)]
mod tests;
