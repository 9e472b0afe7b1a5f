//! How a step makes a layer: it writes to a top over those that are there, and the top becomes the next one.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use unionfs::layer::apply::UNPACKED;
use unionfs::options::{Access, BranchSpec};

use crate::failure::{Doing as _, Failure};
use crate::image::files::Files;
use crate::image::load::{self, Loaded};
use crate::image::source::{LayerSource, Place};
use crate::image::store::{Store, Workspace};
use crate::init_branch::{self, Contents};
use crate::scratch;
use crate::written;

const MAKING: &str = "make a layer of it";

/// Where one step writes.
pub(super) struct Top<'a> {
    store: &'a Store,
    workspace: Workspace,
    /// What is written, over …
    pub(super) path: PathBuf,
    /// … these, the topmost first.
    pub(super) layers: Vec<PathBuf>,
}

impl<'a> Top<'a> {
    /// An empty one over these layers, the lowest first.
    pub(super) fn new(store: &'a Store, layers: &[Loaded]) -> Result<Top<'a>, Failure> {
        let workspace = store.workspace().doing(MAKING)?;
        let layers = unpacked(store, layers);
        let path = match layers.first() {
            Some(topmost) => {
                scratch::make_tops(workspace.path(), &[topmost]).doing(MAKING)?;
                scratch::top_in(workspace.path(), topmost)
            }
            None => {
                let path = workspace.path().join("top");
                fs::DirBuilder::new().mode(0o755).create(&path).doing(MAKING)?;
                path
            }
        };
        Ok(Top { store, workspace, path, layers })
    }

    /// A file for what is not to be shown yet.
    pub(super) fn aside(&self) -> PathBuf {
        self.workspace.path().join("output")
    }

    /// All branches, for a command to run on.
    pub(super) fn branches(&self) -> Vec<BranchSpec> {
        let layers = self.layers.iter().map(|layer| branch(layer, Access::ReadOnly, true));
        [branch(&self.path, Access::ReadWrite, false)].into_iter().chain(layers).collect()
    }

    /// Makes a layer of what was written; nothing where that is nothing. What is a container's own stays out, where a
    /// command has run in one.
    pub(super) fn finish(self, has_run: bool) -> Result<Option<Loaded>, Failure> {
        let mut branches = self.branches();
        if has_run {
            let own = self.workspace.path().join("own");
            fs::create_dir(&own).doing(MAKING)?;
            branches = init_branch::add(&branches, own);
            init_branch::fill(&branches, &Contents::usual())?;
        }
        let _in_use = written::settle(&branches).map_err(|reason| Failure::because(MAKING, reason))?;
        let source = LayerSource { from: Place::Branches(branches), descriptor: None, diff_id: None };
        let (loaded, made) = load::load(self.store, &self.workspace, &Files::Directory(PathBuf::new()), &[source])?;
        let place = made.layers.first().map(|(holder, _)| holder.join(UNPACKED));
        if place.is_some_and(|place| self.is_nothing(&place).unwrap_or(false)) {
            return Ok(None);
        }
        self.store.publish(&made).doing(MAKING)?;
        Ok(loaded.into_iter().next())
    }

    /// Whether a layer says no more than those below it.
    fn is_nothing(&self, layer: &Path) -> std::io::Result<bool> {
        if fs::read_dir(layer)?.next().is_some() {
            return Ok(false);
        }
        let Some(topmost) = self.layers.first() else { return Ok(true) };
        let (own, below) = (fs::metadata(layer)?, fs::metadata(topmost)?);
        Ok((own.mode(), own.uid(), own.gid()) == (below.mode(), below.uid(), below.gid()))
    }
}

fn branch(path: &Path, access: Access, whiteouts: bool) -> BranchSpec {
    BranchSpec { path: path.to_owned(), access, whiteouts, overlay: false, init: false, nolwh: false }
}

/// Where layers are unpacked, the topmost first. One that is there twice hides all below its topmost place.
pub(super) fn unpacked(store: &Store, layers: &[Loaded]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in layers.iter().rev().map(|layer| store.layer(layer.diff.diff_id).branch) {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}
