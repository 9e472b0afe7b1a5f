//! The lower trees: made once, kept between runs, read-only while contenders run.
//!
//! Workloads know what is in a tree by its kind and [`Scale`]; the names are made here and nowhere else.

mod debian;
pub(crate) mod project;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::medium::{self, Medium};
use crate::sandbox::Sandbox;
use crate::workload::Workload;

/// Changes whenever the content of a tree does, so that no tree of a former version is used.
const VERSION: u32 = 1;

/// How large everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// As the results are meant.
    Full,
    /// Just enough to run through everything.
    Quick,
}

impl Scale {
    /// The one or the other.
    pub(crate) fn of(self, full: usize, quick: usize) -> usize {
        if self == Scale::Full { full } else { quick }
    }

    /// Where the trees of this size are kept.
    pub(crate) fn folder(self) -> String {
        format!("{}-{VERSION}", if self == Scale::Full { "full" } else { "quick" })
    }
}

/// A kind of lower tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tree {
    /// Nothing.
    Empty,
    /// Small files in many directories, and symbolic links to them.
    Files,
    /// Empty directories in directories.
    Folders,
    /// One directory with very many entries.
    Wide,
    /// Very many empty files.
    Crowd,
    /// Files in the same directories of this many branches, each file in one of them.
    Layers(usize),
    /// Files to copy up: small ones, a medium one and a large one.
    Big,
    /// One file to read.
    Data,
    /// The files of [`Tree::Files`] in one archive.
    Archive,
    /// A git repository with two branches.
    Git,
    /// A C program with a Makefile.
    CSources,
    /// A Rust program for cargo.
    RustSources,
    /// The standard library of Python.
    Python,
    /// The root file system of a Debian.
    Debian,
    /// A root with nothing but busybox in it.
    Busybox,
    /// Packages to install in [`Tree::Debian`].
    Packages,
}

impl Tree {
    fn name(self) -> String {
        match self {
            Tree::Layers(count) => format!("layers{count}"),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    /// The directories to stack, top first.
    pub(crate) fn branches(self, trees: &Path) -> Vec<PathBuf> {
        let count = if let Tree::Layers(count) = self { count } else { 1 };
        (0..count).map(|index| trees.join(self.name()).join(index.to_string())).collect()
    }

    /// The same as one directory without a union.
    pub(crate) fn plain(self, trees: &Path) -> PathBuf {
        let single = if let Tree::Layers(_) = self { Tree::Layers(1) } else { self };
        trees.join(single.name()).join("0")
    }

    fn fill(self, branches: &[PathBuf], trees: &Path, scale: Scale) -> io::Result<()> {
        let root = &branches[0];
        match self {
            Tree::Empty => Ok(()),
            Tree::Files => files(root, scale),
            Tree::Folders => folder_names(scale).iter().try_for_each(|name| fs::create_dir_all(root.join(name))),
            Tree::Wide => wide(root, scale),
            Tree::Crowd => write_all(root, crowd_names(scale), &[]),
            Tree::Layers(_) => layers(branches, scale),
            Tree::Big => big(root, scale),
            Tree::Data => pattern(&root.join("data"), data_size(scale)),
            Tree::Archive => project::archive(root, &Tree::Files.plain(trees)),
            Tree::Git => project::git(root, scale),
            Tree::CSources => project::c_sources(root, scale),
            Tree::RustSources => project::rust_sources(root, scale),
            Tree::Python => project::python(root),
            Tree::Debian => debian::root(root),
            Tree::Busybox => busybox(root),
            Tree::Packages => debian::packages(root, scale),
        }
    }
}

/// Workloads that cannot be measured, by name, and why.
pub(crate) type Broken = HashMap<&'static str, String>;

/// Makes the trees that these workloads need and that are not there yet, and says which workloads have to go without.
pub(crate) fn prepare(sandbox: &Sandbox, workloads: &[&'static Workload]) -> Broken {
    let mut broken = Broken::new();
    for medium in [Medium::Usual, Medium::Btrfs, Medium::Xfs] {
        let here: Vec<_> = workloads.iter().filter(|workload| workload.medium == medium).collect();
        let mounted = if here.is_empty() { Ok(()) } else { sandbox.mount(medium) };
        for workload in here {
            let made = match &mounted {
                Ok(()) => make_for(workload, sandbox),
                Err(error) => Err(format!("cannot mount {medium:?}: {error}")),
            };
            if let Err(reason) = made {
                broken.insert(workload.name, reason);
            }
        }
    }
    broken
}

fn make_for(workload: &Workload, sandbox: &Sandbox) -> Result<(), String> {
    // The archive is made of the files.
    let source = if workload.assets == Tree::Archive { Tree::Files } else { workload.assets };
    let plain = if let Tree::Layers(_) = workload.tree { Tree::Layers(1) } else { workload.tree };
    let own = [(workload.medium, Tree::Empty), (workload.medium, workload.tree), (workload.medium, plain)];
    for (medium, tree) in own.into_iter().chain([source, workload.assets].map(|tree| (Medium::Usual, tree))) {
        make(tree, &sandbox.ground(medium).trees, sandbox.scale)
            .map_err(|error| format!("cannot make the tree {tree:?}: {error}"))?;
    }
    Ok(())
}

/// Made under another name first: what has its name is whole.
fn make(tree: Tree, trees: &Path, scale: Scale) -> io::Result<()> {
    let place = trees.join(tree.name());
    if place.exists() {
        return Ok(());
    }
    let unfinished = trees.join("unfinished");
    medium::empty(&unfinished)?;
    let count = tree.branches(trees).len();
    let branches: Vec<PathBuf> = (0..count).map(|index| unfinished.join(index.to_string())).collect();
    branches.iter().try_for_each(fs::create_dir_all)?;
    tree.fill(&branches, trees, scale)?;
    // Else writing it back would go on while the first rounds run.
    rustix::fs::sync();
    fs::rename(&unfinished, &place)
}

/// Drops a tree's files from the page cache.
pub(crate) fn evict(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}

/// All that launchers want to find in a root that they cannot write.
fn busybox(root: &Path) -> io::Result<()> {
    ["bin", "dev", "etc", "proc", "sys", "tmp"].iter().try_for_each(|name| fs::create_dir(root.join(name)))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|path| path.is_file());
    let program = program.ok_or_else(|| io::Error::other("bench/setup has not installed busybox"))?;
    fs::copy(program, root.join("bin/busybox"))?;
    ["sh", "true", "sleep"].iter().try_for_each(|name| symlink("busybox", root.join("bin").join(name)))
}

/// The files of [`Tree::Files`], below the root.
pub(crate) fn file_names(scale: Scale) -> Vec<PathBuf> {
    grid(scale.of(200, 10), 100)
}

/// The links of [`Tree::Files`].
pub(crate) fn link_names(scale: Scale) -> Vec<PathBuf> {
    (0..scale.of(2000, 100)).map(|link| PathBuf::from(format!("links/l{link:04}"))).collect()
}

/// The directories of [`Tree::Folders`] that are empty.
pub(crate) fn folder_names(scale: Scale) -> Vec<PathBuf> {
    grid(scale.of(50, 3), 100)
}

/// The files of [`Tree::Crowd`].
pub(crate) fn crowd_names(scale: Scale) -> Vec<PathBuf> {
    grid(scale.of(200, 10), 1000)
}

/// The files of [`Tree::Layers`], the same however many branches they lie in.
pub(crate) fn layer_names(scale: Scale) -> Vec<PathBuf> {
    grid(scale.of(50, 3), 100)
}

/// How many entries [`Tree::Wide`] has.
pub(crate) fn wide_count(scale: Scale) -> usize {
    scale.of(50_000, 2000)
}

/// How many small files [`Tree::Big`] has.
pub(crate) const SMALL_FILES: usize = 100;

/// The size of the file in [`Tree::Data`].
pub(crate) fn data_size(scale: Scale) -> usize {
    scale.of(500 << 20, 16 << 20)
}

fn grid(directories: usize, files: usize) -> Vec<PathBuf> {
    let names = |directory| (0..files).map(move |file| PathBuf::from(format!("d{directory:03}/f{file:03}")));
    (0..directories).flat_map(names).collect()
}

fn files(root: &Path, scale: Scale) -> io::Result<()> {
    let names = file_names(scale);
    write_all(root, names.clone(), &[b'x'; 4096])?;
    fs::create_dir(root.join("links"))?;
    let links = link_names(scale);
    links.iter().zip(&names).try_for_each(|(link, name)| symlink(Path::new("..").join(name), root.join(link)))
}

fn write_all(root: &Path, names: Vec<PathBuf>, content: &[u8]) -> io::Result<()> {
    for name in names {
        write(&root.join(name), content)?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

fn wide(root: &Path, scale: Scale) -> io::Result<()> {
    write_all(root, (0..wide_count(scale)).map(|entry| format!("wide/e{entry:05}").into()).collect(), &[])
}

/// Every branch has all directories, as the layers of an image that was built step by step.
fn layers(branches: &[PathBuf], scale: Scale) -> io::Result<()> {
    for (index, name) in layer_names(scale).into_iter().enumerate() {
        write(&branches[index % branches.len()].join(&name), b"x")?;
        let directory = name.parent().unwrap_or(Path::new(""));
        branches.iter().try_for_each(|branch| fs::create_dir_all(branch.join(directory)))?;
    }
    Ok(())
}

fn big(root: &Path, scale: Scale) -> io::Result<()> {
    for file in 0..SMALL_FILES {
        write(&root.join(format!("small/s{file:03}")), &[b'x'; 4096])?;
    }
    pattern(&root.join("medium"), scale.of(64 << 20, 4 << 20))?;
    pattern(&root.join("large"), scale.of(1 << 30, 16 << 20))
}

/// A file without holes and without two equal pages near each other. `size` is in bytes, whole mebibytes.
fn pattern(path: &Path, size: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 1_u64;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..size >> 20 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_as_many_names_as_the_results_say() {
        let distinct = |names: Vec<PathBuf>| names.into_iter().collect::<HashSet<_>>().len();
        assert_eq!(distinct(file_names(Scale::Full)), 20_000);
        assert_eq!(distinct(crowd_names(Scale::Full)), 200_000);
        assert_eq!(distinct(layer_names(Scale::Full)), 5000);
        assert_eq!(distinct(link_names(Scale::Full)), 2000);
    }

    #[test]
    fn every_depth_has_the_same_plain_directory() {
        let trees = Path::new("/t");
        assert_eq!(Tree::Layers(50).plain(trees), Tree::Layers(1).branches(trees)[0]);
        assert_eq!(Tree::Layers(50).branches(trees).len(), 50);
        assert_eq!(Tree::Files.branches(trees), [Tree::Files.plain(trees)]);
    }
}
