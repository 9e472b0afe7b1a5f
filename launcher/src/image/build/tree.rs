//! Files as a union shows them: a build context, the files of a stage, and those that a step writes over them.
//!
//! All of it goes through the union's own operations, which reach branches by open directories and single names and follow
//! no link. Links are followed here, and lead no further than the root of the tree, whatever they say.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use unionfs::branch::at::SetTime;
use unionfs::branch::stat::{Kind, Time};
use unionfs::fs::{Attr, Caller, Change, Entry, New, Union, WrittenBy};
use unionfs::options::{Access, BranchSpec, Options};

use crate::failure::{Doing as _, Failure};

const ROOT: u64 = 1;
/// As many links may be on a path; as for the kernel, see path_resolution(7).
const MOST_LINKS: usize = 40;
const PIECE: usize = 256 * 1024;
/// Shorter pieces are written even if they are zeros.
const SHORTEST_HOLE: usize = 32 * 1024;
/// Attributes that belong to a file's content: what programs keep, and the rights of a program.
const KEPT_ATTRIBUTES: [&[u8]; 2] = [b"user.", b"security.capability"];

/// Extended attributes with their values.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// A tree of files.
#[derive(Debug)]
pub(crate) struct Tree {
    union: Arc<Union>,
    /// Where it is, if it is a directory of the host.
    place: Option<PathBuf>,
}

/// Something in a tree. It keeps its number as long as this lives.
#[derive(Debug)]
pub(super) struct Node {
    attr: Attr,
    _entry: Option<Entry>,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        self.attr.stat.kind
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == Kind::Dir
    }

    /// What its names have in common, where it is a file that has several.
    pub(super) fn shared(&self) -> Option<u64> {
        (self.kind() == Kind::File && self.attr.stat.nlink > 1).then_some(self.attr.ino)
    }

    pub(super) fn size(&self) -> u64 {
        self.attr.stat.size
    }

    /// The device that it stands for.
    pub(super) fn device(&self) -> u64 {
        self.attr.stat.rdev
    }

    pub(super) fn about(&self) -> About {
        let (mode, mtime) = (self.attr.stat.mode, Some(self.attr.stat.mtime));
        About { mode, owner: self.attr.owner, mtime }
    }
}

/// What is said of a file beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    /// Permission bits with set-id and sticky bits.
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    /// When it was changed; the present, where there is none.
    pub(super) mtime: Option<Time>,
}

/// Where a path leads: through all of its links.
#[derive(Debug)]
pub(super) struct Spot {
    /// The names on the way.
    pub(super) names: Vec<Vec<u8>>,
    /// What is there of it, the root first.
    nodes: Vec<Node>,
}

impl Spot {
    /// Where nothing can be.
    pub(super) fn nowhere() -> Spot {
        Spot { names: Vec::new(), nodes: Vec::new() }
    }

    /// What is there, if all of it is.
    pub(super) fn node(&self) -> Option<&Node> {
        self.nodes.last().filter(|_| self.nodes.len() == self.names.len() + 1)
    }

    /// The same.
    pub(super) fn into_node(mut self) -> Option<Node> {
        if self.nodes.len() == self.names.len() + 1 { self.nodes.pop() } else { None }
    }

    pub(super) fn path(&self) -> Vec<u8> {
        self.names.join(&b'/')
    }

    fn push(&mut self, name: Vec<u8>, node: Option<Node>) {
        self.names.push(name);
        self.nodes.extend(node);
    }

    /// One directory up; above the root there is the root.
    fn pop(&mut self) {
        if self.node().is_some() && self.nodes.len() > 1 {
            self.nodes.pop();
        }
        self.names.pop();
    }
}

impl Tree {
    /// A directory of the host, which is only read.
    pub(super) fn of_directory(path: &Path) -> Result<Tree, Failure> {
        let tree = Tree::open(&[branch(path, Access::ReadOnly, false)], None)?;
        Ok(Tree { place: Some(path.to_owned()), ..tree })
    }

    /// Layers, the topmost first, which are only read.
    pub(crate) fn of_layers(layers: &[PathBuf]) -> Result<Tree, Failure> {
        let layers: Vec<_> = layers.iter().map(|layer| branch(layer, Access::ReadOnly, true)).collect();
        Tree::open(&layers, None)
    }

    /// A directory of ours that is written over layers, the topmost first.
    pub(super) fn over(top: &Path, layers: &[PathBuf]) -> Result<Tree, Failure> {
        let layers = layers.iter().map(|layer| branch(layer, Access::ReadOnly, true));
        let all: Vec<_> = [branch(top, Access::ReadWrite, false)].into_iter().chain(layers).collect();
        Tree::open(&all, None)
    }

    /// A directory of ours alone, which is written and holds nothing else afterwards; `beside` is on the same mount.
    pub(crate) fn to_fill(directory: &Path, beside: &Path) -> Result<Tree, Failure> {
        Tree::open(&[branch(directory, Access::ReadWrite, false)], Some(beside.to_owned()))
    }

    fn open(branches: &[BranchSpec], workdir: Option<PathBuf>) -> Result<Tree, Failure> {
        // What is half-made is thrown away, so nothing has to wait for the disk on the way.
        let options = Options { volatile: true, workdir, ..Options::default() };
        let union = Union::open(branches, &options).map_err(|error| Failure::new(error.to_string()))?;
        Ok(Tree { union, place: None })
    }

    pub(super) fn root(&self) -> Result<Node, Errno> {
        Ok(Node { attr: self.union.getattr(ROOT)?, _entry: None })
    }

    pub(super) fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>, Errno> {
        // Names that no layer can have are those of no file; what is in the way of writing one is told there.
        let entry = self.union.lookup(directory.attr.ino, name)?;
        Ok(entry.map(node))
    }

    /// The names in a directory, sorted.
    pub(super) fn names(&self, directory: &Node) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        self.union.read_dir(directory.attr.ino, 0, |entry| {
            if !matches!(entry.name, b"." | b"..") {
                names.push(entry.name.to_vec());
            }
            false
        })?;
        names.sort_unstable();
        Ok(names)
    }

    /// The names in a directory of the host that no layer can have, and that are therefore in no tree. They are only told.
    pub(super) fn unseen(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let Some(place) = &self.place else { return Ok(Vec::new()) };
        let names =
            fs::read_dir(place.join(OsStr::from_bytes(path)))?.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = names.map(|name| name.map(OsString::into_vec)).collect::<io::Result<Vec<_>>>()?;
        names.retain(|name| is_unseen(name));
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn read_link(&self, node: &Node) -> Result<Vec<u8>, Errno> {
        self.union.read_link(node.attr.ino)
    }

    /// Gives a file's content to `take`, piece by piece.
    pub(super) fn read<E>(&self, node: &Node, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E>
    where
        E: From<Errno>,
    {
        let handle = Open { tree: self, handle: self.union.open_handle(node.attr.ino, OFlags::RDONLY.bits())?.handle };
        let mut buffer = vec![0; PIECE.min(usize::try_from(node.size()).unwrap_or(PIECE).max(4096))];
        let mut at = 0;
        loop {
            let read = self.union.read((node.attr.ino, handle.handle), at, &mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            take(&buffer[..read])?;
            at += read as u64;
        }
    }

    /// All of a file, up to a length.
    pub(super) fn content(&self, node: &Node, most: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.read(node, |piece| {
            content.extend_from_slice(piece);
            if content.len() as u64 > most { Err(io::Error::other("it is too long")) } else { Ok(()) }
        })?;
        Ok(content)
    }

    /// A file as a stream.
    pub(super) fn stream(&self, node: &Node) -> Result<Stream<'_>, Errno> {
        let handle = self.union.open_handle(node.attr.ino, OFlags::RDONLY.bits())?.handle;
        Ok(Stream { open: Open { tree: self, handle }, ino: node.attr.ino, at: 0 })
    }

    /// The attributes that belong to a file's content, with their values.
    pub(super) fn attributes(&self, node: &Node) -> Result<Attributes, Errno> {
        if !matches!(node.kind(), Kind::File | Kind::Dir) {
            return Ok(Vec::new());
        }
        let names = match self.union.list_xattr(node.attr.ino) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            names => names?,
        };
        let is_kept = |name: &&[u8]| Tree::keeps_attribute(name);
        let mut found = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).filter(is_kept) {
            found.push((name.to_vec(), self.union.get_xattr(node.attr.ino, name)?));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Whether an attribute belongs to the content.
    pub(super) fn keeps_attribute(name: &[u8]) -> bool {
        KEPT_ATTRIBUTES.iter().any(|kept| name.starts_with(kept))
    }

    /// Where a path leads, from the root, which no link leaves.
    pub(super) fn walk(&self, path: &[u8]) -> Result<Spot, Errno> {
        self.walk_from(Spot { names: Vec::new(), nodes: vec![self.root()?] }, path)
    }

    fn walk_from(&self, mut spot: Spot, path: &[u8]) -> Result<Spot, Errno> {
        let mut rest: VecDeque<Vec<u8>> = names(path).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                spot.pop();
                continue;
            }
            let node = match spot.node() {
                Some(directory) if !directory.is_dir() => return Err(Errno::NOTDIR),
                Some(directory) => self.child(directory, &name)?,
                None => None,
            };
            match node {
                Some(link) if link.kind() == Kind::Symlink => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = self.read_link(&link)?;
                    if target.starts_with(b"/") {
                        spot.names.clear();
                        spot.nodes.truncate(1);
                    }
                    names(&target).rev().for_each(|name| rest.push_front(name));
                }
                node => spot.push(name, node),
            }
        }
        Ok(spot)
    }

    /// Makes the directories on a path that are not there; the directory, and whether it is new.
    pub(super) fn make_directories(&self, mut spot: Spot, about: About) -> Result<(Node, bool), Errno> {
        let there = spot.nodes.len() - 1;
        let missing = spot.names.split_off(there.min(spot.names.len()));
        let mut last = spot.into_node().ok_or(Errno::NOENT)?;
        let is_new = !missing.is_empty();
        for name in missing {
            if !last.is_dir() {
                return Err(Errno::NOTDIR);
            }
            last = self.make(&last, &name, New::Dir, about)?;
        }
        if last.is_dir() { Ok((last, is_new)) } else { Err(Errno::NOTDIR) }
    }

    /// Makes an entry that is not there.
    pub(super) fn make(&self, directory: &Node, name: &[u8], new: New<'_>, about: About) -> Result<Node, Errno> {
        let made = node(self.union.make(directory.attr.ino, name, new, about.mode, 0, caller())?);
        self.set(&made, about)?;
        Ok(made)
    }

    /// Removes what is there and no directory.
    pub(super) fn remove(&self, directory: &Node, name: &[u8]) -> Result<(), Errno> {
        self.union.unlink(directory.attr.ino, name, true).map(drop)
    }

    /// Gives a file one more name.
    pub(super) fn link(&self, node: &Node, directory: &Node, name: &[u8]) -> Result<(), Errno> {
        self.union.link(node.attr.ino, directory.attr.ino, name).map(drop)
    }

    /// Makes a file; `fill` writes it.
    pub(super) fn make_file<E: From<Errno>>(
        &self,
        directory: &Node,
        name: &[u8],
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Errno>) -> Result<(), E>,
    ) -> Result<Node, E> {
        let flags = (OFlags::WRONLY | OFlags::EXCL).bits();
        let (entry, opened) = self.union.create(directory.attr.ino, name, 0o600, 0, flags, caller())?;
        let open = Open { tree: self, handle: opened.handle };
        let (mut at, mut ends_in_hole) = (0, false);
        fill(&mut |piece| {
            // A file with holes is copied as one.
            ends_in_hole = piece.len() >= SHORTEST_HOLE && piece.iter().all(|byte| *byte == 0);
            let mut rest = if ends_in_hole { &[] } else { piece };
            at += if ends_in_hole { piece.len() as u64 } else { 0 };
            while !rest.is_empty() {
                let written = self.union.write(open.handle, at, rest, WrittenBy::Caller, None)?;
                rest = rest.get(written..).unwrap_or_default();
                at += written as u64;
            }
            Ok(())
        })?;
        if ends_in_hole {
            let (atime, mtime) = (SetTime::Keep, SetTime::Keep);
            let change = Change { size: Some(at), mode: None, uid: None, gid: None, atime, mtime };
            self.union.setattr(entry.attr.ino, change, caller())?;
        }
        Ok(node(entry))
    }

    /// Sets owner, mode and time, in this order: a new owner takes set-id bits away.
    pub(super) fn set(&self, node: &Node, about: About) -> Result<(), Errno> {
        let is_link = node.kind() == Kind::Symlink;
        let (uid, gid) = about.owner;
        let is_owner = self.union.getattr(node.attr.ino)?.owner == about.owner;
        let change = Change {
            mode: (!is_link).then_some(about.mode),
            uid: (!is_owner).then_some(uid),
            gid: (!is_owner).then_some(gid),
            size: None,
            atime: SetTime::Keep,
            mtime: about.mtime.map_or(SetTime::Keep, SetTime::To),
        };
        self.union.setattr(node.attr.ino, change, caller()).map(drop)
    }

    pub(super) fn set_attributes(&self, node: &Node, attributes: &Attributes) -> Result<(), Errno> {
        for (name, value) in attributes {
            match self.union.set_xattr(node.attr.ino, name, value, 0, caller()) {
                // A file system without them, or a user who may not give rights: the content is there all the same.
                Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// A file of accounts; empty where it is missing.
    pub(super) fn accounts(&self, path: &str) -> Result<Vec<u8>, Failure> {
        const LONGEST: u64 = 16 << 20;
        let doing = format!("read {path} of the stage");
        let spot = self.walk(path.as_bytes()).map_err(io::Error::from).doing(&doing)?;
        match spot.node() {
            Some(node) if node.kind() == Kind::File => self.content(node, LONGEST).doing(&doing),
            _ => Ok(Vec::new()),
        }
    }
}

/// A file that is open.
struct Open<'a> {
    tree: &'a Tree,
    handle: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.tree.union.release(self.handle);
    }
}

/// A file that is read.
pub(super) struct Stream<'a> {
    open: Open<'a>,
    ino: u64,
    at: u64,
}

impl io::Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.open.tree.union.read((self.ino, self.open.handle), self.at, buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether a name means that another one is hidden, in layers.
pub(super) fn is_unseen(name: &[u8]) -> bool {
    name.starts_with(b".wh.")
}

fn node(entry: Entry) -> Node {
    Node { attr: entry.attr, _entry: Some(entry) }
}

/// This process, as root of what it can see.
fn caller() -> Caller {
    Caller { uid: 0, gid: 0, pid: std::process::id() }
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec)
}

fn branch(path: &Path, access: Access, whiteouts: bool) -> BranchSpec {
    BranchSpec { path: path.to_owned(), access, whiteouts, overlay: false, init: false, nolwh: false }
}
