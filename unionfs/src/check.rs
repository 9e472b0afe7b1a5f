//! What is wrong in the bookkeeping of the writable branches. Nothing is changed.
//!
//! What a crash leaves behind is no fault: each state between two steps of a change means the tree
//! before it or after it. Such things are told as notes. A problem is what no change of ours
//! leaves: somebody wrote to the branch, or the disk lost something.

mod area;
mod tree;

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::branch;
use crate::branch::leftovers;
use crate::diff::DiffError;
use crate::diff::view::View;
use crate::layer::shown;
use crate::options::{Access, BranchSpec};
use crate::union::BranchIndex;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Nothing is lost; it may have been left by a crash.
    Note,
    /// Something does not say what it should.
    Problem,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// Its path in the file system.
    pub path: Vec<u8>,
    /// What it is, and what can be done.
    pub what: String,
}

/// Why the branches could not be checked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CheckError {
    #[error(transparent)]
    View(#[from] DiffError),
    #[error("cannot read {}: {error}", path.display())]
    Branch { path: PathBuf, error: Errno },
    #[error("cannot read {}: {error}", shown(path))]
    Entry { path: Vec<u8>, error: Errno },
}

/// Checks the writable branches, and looks for what AuFS left in the others.
///
/// `workdir` is where the work area of the topmost writable branch lies, if not at its root. Each
/// finding is passed to `tell`.
///
/// # Errors
/// What could not be read.
pub fn check(branches: &[BranchSpec], workdir: Option<&Path>, tell: &mut dyn FnMut(Finding)) -> Result<(), CheckError> {
    let view = View::open_all(branches, workdir)?;
    let mut workdir = workdir;
    for (index, spec) in (0..).map(BranchIndex).zip(branches) {
        let failed = |error| CheckError::Branch { path: spec.path.clone(), error };
        let form = branch::form_of(spec);
        let root = branch::open_root(&spec.path, true, form).map_err(failed)?;
        let mut report = Report { root: &spec.path, tell };
        for leftover in leftovers::of_aufs(&root).map_err(failed)? {
            let weight = if leftover.is_loss() { Weight::Problem } else { Weight::Note };
            report.say(weight, leftover.name(), leftover.to_string());
        }
        if spec.access != Access::ReadWrite {
            continue;
        }
        match workdir.take() {
            Some(workdir) => {
                let failed = |error| CheckError::Branch { path: workdir.to_owned(), error };
                let dir = branch::open_root(workdir, true, form).map_err(failed)?;
                area::check(&dir, &mut Report { root: workdir, tell }).map_err(failed)?;
            }
            None => area::check(&root, &mut report).map_err(failed)?,
        }
        let has_below = branches.len() > index.get() + 1;
        tree::check(root, &view, index, has_below, &mut Report { root: &spec.path, tell })?;
    }
    Ok(())
}

/// Where findings of a branch go.
struct Report<'a> {
    root: &'a Path,
    tell: &'a mut dyn FnMut(Finding),
}

impl Report<'_> {
    /// Tells of something at a path in the branch.
    fn say(&mut self, weight: Weight, path: &[u8], what: impl Into<String>) {
        let path = [self.root.as_os_str().as_encoded_bytes(), path].join(&b'/');
        (self.tell)(Finding { weight, path, what: what.into() });
    }
}
