//! The kernel's overlayfs: it writes layers that we read, and reads what we write.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::ops::{Act, Caller, Op, Present};
use crate::sandbox::run;
use crate::snapshot::{Kind, Snapshot};
use crate::tree::bytes;

/// A mounted overlayfs; dropping it unmounts.
#[derive(Debug)]
pub struct Overlay {
    target: PathBuf,
}

impl Overlay {
    /// Mounts directories, the top first, at the new directory `target`. With `upper`, a directory and its new working
    /// directory take the changes. `options` are further ones, with commas between.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn mount(target: &Path, lower: &[PathBuf], upper: Option<(&Path, &Path)>, options: &str) -> Overlay {
        let paths: Vec<&OsStr> = lower.iter().map(|path| path.as_os_str()).collect();
        let mut data = OsString::from("index=off,xino=off,lowerdir=");
        data.push(paths.join(OsStr::new(":")));
        if let Some((upper, work)) = upper {
            fs::create_dir_all(work).expect("make a working directory");
            for (word, path) in [(",upperdir=", upper), (",workdir=", work)] {
                data.push(word);
                data.push(path);
            }
        }
        if !options.is_empty() {
            data.push(",");
            data.push(options);
        }
        fs::create_dir_all(target).expect("make a mount point");
        mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(data.as_os_str()))
            .unwrap_or_else(|errno| panic!("mount an overlayfs with {}: {errno}", data.display()));
        Overlay { target: target.to_owned() }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(errno) = umount2(&self.target, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {errno}", self.target.display());
        }
    }
}

/// Layers that overlayfs wrote, one after the other, each over those before it.
#[derive(Debug)]
pub struct Layers {
    /// The directory of all.
    root: PathBuf,
    /// The layers, the top first.
    pub paths: Vec<PathBuf>,
    options: String,
}

impl Layers {
    /// Does each list of operations in a layer of its own, below the new directory `root`. Hard links are left out, for
    /// overlayfs tears them apart.
    ///
    /// # Panics
    /// When something cannot be made or mounted.
    #[must_use]
    pub fn write(root: &Path, options: &str, histories: &[Vec<Act>]) -> Layers {
        let bottom = root.join("bottom");
        fs::create_dir_all(root).expect("make a directory");
        fill(&bottom, 3).expect("fill a layer");
        let mut layers = Layers { root: root.to_owned(), paths: vec![bottom], options: options.to_owned() };
        for (number, history) in histories.iter().enumerate() {
            layers.add(number, history);
        }
        layers
    }

    fn add(&mut self, number: usize, history: &[Act]) {
        let upper = self.root.join(format!("layer{number}"));
        fs::create_dir(&upper).expect("make a layer");
        let (work, target) = (self.root.join(format!("work{number}")), self.root.join(format!("written{number}")));
        let overlay = Overlay::mount(&target, &self.paths, Some((&upper, &work)), &self.options);
        let mut caller = Caller::new(overlay.target());
        for act in history.iter().filter(|act| !matches!(act.op, Op::Link { .. })) {
            let act = Present::of(overlay.target()).resolve(act);
            // an operation that fails is part of the play
            let (Ok(_) | Err(_)) = caller.act(&act);
        }
        caller.close_all();
        drop(overlay);
        self.paths.insert(0, upper);
    }

    /// What overlayfs shows of them.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn shown(&self) -> Overlay {
        Overlay::mount(&self.root.join("shown"), &self.paths, None, &self.reading())
    }

    /// Options for reading them.
    #[must_use]
    pub fn reading(&self) -> String {
        self.options.replace("redirect_dir=on", "redirect_dir=follow")
    }

    /// The same as branches for `runionfs mount`.
    #[must_use]
    pub fn branch_string(&self) -> OsString {
        let branches: Vec<OsString> =
            self.paths.iter().map(|path| [path.as_os_str(), OsStr::new("=ro+ovl")].join(OsStr::new(""))).collect();
        branches.join(OsStr::new(":"))
    }
}

/// Makes a directory with directories in it, so many levels of them, and files.
fn fill(dir: &Path, levels: usize) -> io::Result<()> {
    fs::create_dir(dir)?;
    for (name, length) in [("c", 0), ("d", 5_000)] {
        fs::write(dir.join(name), bytes(levels, length))?;
    }
    let below = if levels > 0 { &["a", "b"][..] } else { &[] };
    below.iter().try_for_each(|name| fill(&dir.join(name), levels - 1))
}

/// How many marks of each kind a layer holds: tests that never meet one prove nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Devices 0:0.
    pub whiteouts: usize,
    /// Directories that hide what is below.
    pub opaque: usize,
    /// Directories that were renamed with what is below.
    pub redirects: usize,
}

impl Marks {
    /// Adds those of one layer.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn count(&mut self, layer: &Path) {
        for entry in Snapshot::take(layer).entries.values() {
            let has = |mark: &str| entry.xattrs.keys().any(|name| name.to_string_lossy().ends_with(mark));
            self.whiteouts += usize::from(entry.kind == Kind::Character && entry.rdev == 0);
            self.opaque += usize::from(has(".overlay.opaque"));
            self.redirects += usize::from(has(".overlay.redirect"));
        }
    }
}

/// Copies a tree with all its attributes to the new directory `to`.
///
/// # Panics
/// When that fails.
pub fn copy_tree(from: &Path, to: &Path) {
    run(Command::new("cp").args(["-a", "--no-target-directory"]).arg(from).arg(to));
}
