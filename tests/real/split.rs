//! Splits a tree into layers whose union is that tree again, with everything between them that a union must get right.
//!
//! Where a file goes and what lies below it depends on nothing but its path, so that a failure comes again. Between
//! the layers there are
//!
//! - other things below a file under its name: a file, a directory, a symlink, or a whiteout and then a file;
//! - deleted names: files and directories, with their whiteouts in a layer above;
//! - replaced directories: an opaque mark, a whiteout beside the directory or below it, or a file below it, and old
//!   content under the names of the new;
//! - directories in several layers, of which only the topmost has the right attributes;
//! - the bookkeeping names of AuFS.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use harness::snapshot::{Entry, Kind, Snapshot};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};

/// Which layer: 0 is the topmost.
pub(crate) type Layer = usize;

/// Splits trees into layers.
pub(crate) struct Splitter<'a> {
    /// What the union has to be.
    expected: &'a Snapshot,
    /// The same tree on disk; its files are moved away.
    stock: &'a Path,
    /// The directories of the layers.
    layers: Vec<PathBuf>,
    /// The files that go to the first layer, which gets no others.
    first: &'a [&'a str],
    /// For each directory, the deepest layer that may have a part in it.
    deepest: BTreeMap<PathBuf, Layer>,
    /// For each directory, the layers where it is.
    present: BTreeMap<PathBuf, BTreeSet<Layer>>,
    /// How often each kind of thing was done, to be sure that all were.
    pub(crate) done: BTreeMap<&'static str, usize>,
}

impl<'a> Splitter<'a> {
    /// `layers` are empty directories, topmost first.
    pub(crate) fn new(expected: &'a Snapshot, stock: &'a Path, layers: Vec<PathBuf>, first: &'a [&'a str]) -> Self {
        let (deepest, present, done) = Default::default();
        Splitter { expected, stock, layers, first, deepest, present, done }
    }

    /// Distributes the tree.
    pub(crate) fn split(&mut self) {
        // Parents come before what is in them: a path is less than its extensions.
        for (path, entry) in &self.expected.entries {
            if entry.kind == Kind::Directory {
                self.directory(path);
            }
        }
        for (path, layer) in self.homes() {
            self.place(&path, layer);
        }
        self.empty_directories();
        self.bookkeeping();
        self.attributes();
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    /// Decides how deep a directory goes, and puts deleted and replaced things around it.
    fn directory(&mut self, path: &Path) {
        let Some(parent) = path.parent() else {
            self.deepest.insert(path.to_owned(), self.layers.len() - 1);
            self.present.insert(path.to_owned(), (0..self.layers.len()).collect());
            return;
        };
        let above = self.deepest[parent];
        let replaced = above >= 2 && roll(path, "replaced", 10) == 0;
        let deepest = if replaced { 1 + roll(path, "at", above - 1) } else { above };
        self.deepest.insert(path.to_owned(), deepest);
        if replaced {
            self.replace(path, deepest, above);
        }
        if deepest >= 2 && roll(path, "deleted", 4) == 0 {
            self.deleted(path, deepest);
        }
    }

    /// Puts an old directory below a new one that ends at `at`; `bottom` is the deepest layer of its parent.
    fn replace(&mut self, path: &Path, at: Layer, bottom: Layer) {
        let old = match roll(path, "how", 4) {
            0 => {
                self.make_directory(at, path);
                fs::write(self.at(at, &path.join(".wh..wh..opq")), "").expect("write a mark");
                self.count("opaque directories");
                at + 1
            }
            1 => {
                self.make_directory(at, path);
                self.whiteout(at, path);
                self.count("directories beside their whiteout");
                at + 1
            }
            2 => {
                self.whiteout(at + 1, path);
                self.count("directories over a whiteout");
                at + 2
            }
            _ => {
                self.decoy_file(at + 1, path);
                self.count("directories over a file");
                at + 2
            }
        };
        for layer in old..=bottom {
            self.decoy_directory(layer, path);
        }
    }

    /// Puts things into a directory that a layer above deletes again.
    fn deleted(&mut self, path: &Path, deepest: Layer) {
        let below = 2 + roll(path, "below", deepest - 1);
        let above = 1 + roll(path, "above", below - 1);
        let (file, directory) = (path.join("deleted file"), path.join("deleted directory"));
        self.decoy_file(below, &file);
        self.decoy_directory(below, &directory);
        self.whiteout(above, &file);
        self.whiteout(above, &directory);
        self.count("deleted names");
    }

    /// Which layer each name that is not a directory goes to: all names of one inode to the same.
    fn homes(&self) -> Vec<(PathBuf, Layer)> {
        let mut groups: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
        for (path, entry) in self.expected.entries.iter().filter(|(_, entry)| entry.kind != Kind::Directory) {
            groups.entry(entry.ino).or_default().push(path);
        }
        let mut homes = Vec::new();
        for names in groups.values() {
            let deepest = names.iter().map(|name| self.deepest[parent(name)]).min().expect("an inode has a name");
            let first = names.iter().any(|name| self.first.iter().any(|first| Path::new(first) == *name));
            let layer = if first { 0 } else { 1 + roll(names[0], "home", deepest) };
            homes.extend(names.iter().map(|&name| (name.to_owned(), layer)));
        }
        homes
    }

    /// Moves one name to its layer and puts other things below it.
    fn place(&mut self, path: &Path, layer: Layer) {
        self.make_directory(layer, parent(path));
        fs::rename(self.stock.join(path), self.at(layer, path)).expect("move a file to its layer");
        let deepest = self.deepest[parent(path)];
        if layer == deepest {
            return;
        }
        let below = layer + 1 + roll(path, "decoy", deepest - layer);
        match roll(path, "what", 12) {
            0 => self.decoy_file(below, path),
            1 => self.decoy_directory(below, path),
            2 => self.decoy_symlink(below, path),
            3 if layer > 0 => {
                self.whiteout(layer, path);
                self.decoy_file(below, path);
                self.count("files beside their whiteout");
            }
            4 if below < deepest => {
                self.whiteout(below, path);
                self.decoy_file(below + 1, path);
                self.count("files over a whiteout");
            }
            _ => (),
        }
    }

    fn empty_directories(&mut self) {
        for (path, deepest) in self.deepest.clone() {
            if !self.present.contains_key(&path) {
                self.make_directory(1 + roll(&path, "home", deepest), &path);
            }
        }
    }

    /// What AuFS leaves in its branches, and nobody may see.
    fn bookkeeping(&mut self) {
        let bottom = self.layers.len() - 1;
        fs::write(self.at(bottom, Path::new(".wh..wh.aufs")), "").expect("write a name of AuFS");
        for name in [".wh..wh.plnk", ".wh..wh.orph"] {
            fs::create_dir(self.at(1, Path::new(name))).expect("make a directory of AuFS");
        }
        // a hard link in the other one would be told at every mount: it is content that AuFS has not brought home
        fs::write(self.at(1, Path::new(".wh..wh.orph/1.2")), "x").expect("write into a directory of AuFS");
    }

    /// Gives the topmost of each directory the right attributes, and the others wrong ones.
    fn attributes(&mut self) {
        for (path, layers) in self.present.iter().rev() {
            let entry = &self.expected.entries[path];
            for (rank, layer) in layers.iter().enumerate() {
                let directory = self.layers[*layer].join(path);
                if rank == 0 {
                    dress(&directory, entry);
                } else {
                    disguise(&directory);
                }
            }
        }
    }

    fn at(&self, layer: Layer, path: &Path) -> PathBuf {
        self.layers[layer].join(path)
    }

    /// Makes a directory of the tree, and those above it, in a layer.
    fn make_directory(&mut self, layer: Layer, path: &Path) {
        for directory in path.ancestors() {
            self.present.entry(directory.to_owned()).or_default().insert(layer);
        }
        fs::create_dir_all(self.at(layer, path)).expect("make a directory in a layer");
    }

    fn whiteout(&mut self, layer: Layer, path: &Path) {
        self.make_directory(layer, parent(path));
        let mut name = OsString::from(".wh.");
        name.push(path.file_name().expect("a name to hide"));
        // Names of more than 251 bytes cannot be hidden in this way.
        if name.len() <= 255 {
            fs::write(self.at(layer, &path.with_file_name(name)), "").expect("write a whiteout");
        }
    }

    fn decoy_file(&mut self, layer: Layer, path: &Path) {
        self.make_directory(layer, parent(path));
        fs::write(self.at(layer, path), "a decoy").expect("write a decoy");
        self.count("files that must not be seen");
    }

    fn decoy_symlink(&mut self, layer: Layer, path: &Path) {
        self.make_directory(layer, parent(path));
        symlink("/a/decoy", self.at(layer, path)).expect("make a decoy");
        self.count("symlinks that must not be seen");
    }

    /// A directory with things in it, some of them under the names that the directory has in the expected tree.
    fn decoy_directory(&mut self, layer: Layer, path: &Path) {
        self.make_directory(layer, parent(path));
        let directory = self.at(layer, path);
        fs::create_dir_all(directory.join("decoy directory/deep")).expect("make a decoy");
        fs::write(directory.join("decoy"), "a decoy").expect("write a decoy");
        let inside = self.expected.entries.range(path.to_owned()..).take_while(|(inner, _)| inner.starts_with(path));
        for (inner, _) in inside.filter(|(inner, _)| inner.parent() == Some(path)).take(5) {
            fs::write(directory.join(inner.file_name().expect("a name")), "a decoy").expect("write a decoy");
        }
        self.count("directories that must not be seen");
    }
}

/// A number below `sides` that depends on the path and the question only (FNV-1a).
fn roll(path: &Path, question: &str, sides: usize) -> usize {
    let bytes = path.as_os_str().as_bytes().iter().chain(question.as_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    ((hash >> 17) % sides as u64) as usize
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("a path below the root")
}

/// Gives a directory the attributes that it must have.
pub(crate) fn dress(directory: &Path, entry: &Entry) {
    lchown(directory, Some(entry.uid), Some(entry.gid)).expect("chown");
    fs::set_permissions(directory, Permissions::from_mode(entry.mode)).expect("chmod");
    for (name, value) in &entry.xattrs {
        lsetxattr(directory, name.as_os_str(), value, XattrFlags::empty()).expect("set an xattr");
    }
    set_times(directory, entry.mtime);
}

/// Gives a directory attributes that nobody must see.
fn disguise(directory: &Path) {
    lchown(directory, Some(4711), Some(4712)).expect("chown");
    lsetxattr(directory, "user.decoy", b"1", XattrFlags::empty()).expect("set an xattr");
    fs::set_permissions(directory, Permissions::from_mode(0o2700)).expect("chmod");
    set_times(directory, (1, 1));
}

fn set_times(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("set times");
}
