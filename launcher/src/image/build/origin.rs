//! Where COPY and ADD copy from: what a source names, what is met on a walk through it, and a digest of all of it.

use std::collections::HashMap;
use std::io;

use nix::errno::Errno as NixErrno;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use unionfs::branch::stat::Kind;

use super::ignore::{Ignored, Pattern, clean, is_pattern};
use super::tree::{Node, Spot, Tree, is_unseen};
use crate::failure::{Doing as _, Failure, said};

/// Where something is copied from.
pub(crate) struct Origin<'a> {
    pub(super) tree: &'a Tree,
    pub(super) ignored: &'a Ignored,
    /// Whether owners are those of the source. What comes from the context is root's.
    pub(super) keeps_owners: bool,
}

/// One source, found.
#[derive(Debug)]
pub(super) struct Found {
    /// The name that a copy of it has in a directory.
    pub(super) name: Vec<u8>,
    /// Where it lies in the tree, all links followed.
    pub(super) path: Vec<u8>,
    pub(super) node: Node,
}

/// What is met on a walk through a source.
pub(super) enum Event<'a> {
    Enter(&'a [u8], &'a Node),
    Leaf(&'a [u8], &'a Node),
    /// The same directory, with all that is in it behind.
    Leave(&'a Node),
}

/// Hears of it, with the path.
pub(super) type Take<'a> = dyn FnMut(&[u8], Event<'_>) -> Result<(), Failure> + 'a;

/// Why something is left out.
pub(super) const UNSEEN: &str = "a name that begins with .wh. cannot be in a layer, where it hides another one";

/// What is wrong with a path.
pub(super) fn at(path: &[u8], errno: Errno) -> Failure {
    let failure = match errno == Errno::PERM && path.split(|byte| *byte == b'/').any(is_unseen) {
        true => Failure::new(UNSEEN),
        false => said(NixErrno::from_raw(errno.raw_os_error())),
    };
    failure.at(&shown(path))
}

pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

impl<'a> Origin<'a> {
    pub(crate) fn all_of(tree: &'a Tree, ignored: &'a Ignored) -> Origin<'a> {
        Origin { tree, ignored, keeps_owners: true }
    }

    /// Finds what all sources name, and the key of a step that copies it in this way.
    pub(super) fn find_all(&self, sources: &[String], how: &str) -> Result<(Vec<Found>, Vec<u8>), Failure> {
        let mut found = Vec::new();
        for source in sources {
            found.extend(self.find(source)?);
        }
        let mut digest = Sha256::new();
        field(&mut digest, how.as_bytes());
        self.digest(&found, &mut digest)?;
        Ok((found, [&b"COPY"[..], &digest.finalize()].concat()))
    }

    /// Finds what a source names; patterns may name several.
    fn find(&self, source: &str) -> Result<Vec<Found>, Failure> {
        let path = clean(source.as_bytes());
        let mut found = Vec::new();
        if is_pattern(&path) {
            for path in self.matching(&path)? {
                found.extend(self.one(path)?);
            }
        } else {
            found.extend(self.one(path)?);
        }
        match found.is_empty() {
            true => {
                Err(Failure::new(format!("there is no {}, or it is left out by .dockerignore", source.escape_debug())))
            }
            false => Ok(found),
        }
    }

    fn one(&self, path: Vec<u8>) -> Result<Option<Found>, Failure> {
        let spot = self.walk(&path)?;
        let real = spot.path();
        let Some(node) = spot.into_node() else { return Ok(None) };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        let is_left_out = self.ignored.matches(&path) || self.ignored.matches(&real);
        let found = Found { name, path: real, node };
        match is_left_out && !self.has_some(&found)? {
            true => Ok(None),
            false => Ok(Some(found)),
        }
    }

    /// A directory, all of which is meant.
    pub(super) fn directory_at(&self, path: &[u8]) -> Result<Option<Found>, Failure> {
        let spot = self.walk(path)?;
        let real = spot.path();
        let found = |node| Found { name: Vec::new(), path: real, node };
        Ok(spot.into_node().filter(Node::is_dir).map(found))
    }

    /// Whether something in a directory that is left out is there after all.
    fn has_some(&self, found: &Found) -> Result<bool, Failure> {
        let mut has_some = false;
        if found.node.is_dir() && self.ignored.has_exceptions() {
            self.each(found, &mut |_, _| {
                has_some = true;
                Ok(())
            })?;
        }
        Ok(has_some)
    }

    /// Whether something is left out with all that is in it.
    fn leaves_out(&self, path: &[u8], node: &Node) -> bool {
        self.ignored.matches(path) && !(node.is_dir() && self.ignored.has_exceptions())
    }

    /// Adds what cannot be met in a directory, nor copied, and is not left out by .dockerignore.
    pub(super) fn add_unseen(&self, path: &[u8], to: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        match self.tree.unseen(path) {
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            names => {
                let paths = names.doing(&format!("read {}", shown(path)))?.into_iter().map(|name| join(path, &name));
                to.extend(paths.filter(|path| !self.ignored.matches(path)));
            }
        }
        Ok(())
    }

    fn walk(&self, path: &[u8]) -> Result<Spot, Failure> {
        match self.tree.walk(path) {
            // What is no directory has nothing in it.
            Err(Errno::NOTDIR) => Ok(Spot::nowhere()),
            result => result.map_err(|errno| at(path, errno)),
        }
    }

    /// The paths that a pattern matches, name by name, sorted.
    fn matching(&self, pattern: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
        for part in pattern.split(|byte| *byte == b'/') {
            let wrong = |why: &str| Failure::new(format!("{}: {why}", shown(pattern)));
            let wanted = Pattern::read(part, false).map_err(wrong)?;
            let mut longer = Vec::new();
            for path in paths {
                let spot = self.walk(&path)?;
                let Some(directory) = spot.node().filter(|node| node.is_dir()) else { continue };
                let names = self.tree.names(directory).map_err(|errno| at(&path, errno))?;
                longer.extend(names.iter().filter(|name| wanted.matches(name)).map(|name| join(&path, name)));
            }
            paths = longer;
        }
        paths.sort_unstable();
        Ok(paths)
    }

    /// Walks through a directory; what is left out is not met, nor directories of which all is.
    pub(super) fn each(&self, found: &Found, take: &mut Take<'_>) -> Result<(), Failure> {
        let mut stack = vec![self.frame(&found.path, None, true)?];
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.names.next() else {
                if let (true, Some(node)) = (frame.is_met, &frame.node) {
                    take(&frame.path, Event::Leave(node))?;
                }
                stack.pop();
                continue;
            };
            let path = join(&frame.path, &name);
            let parent = frame.node.as_ref().unwrap_or(&found.node);
            // Whoever has removed it meanwhile did not want it copied.
            let Some(node) = self.tree.child(parent, &name).map_err(|errno| at(&path, errno))? else { continue };
            if self.leaves_out(&path, &node) {
                continue;
            }
            let is_met = !self.ignored.matches(&path);
            if is_met {
                meet(&mut stack, take)?;
            }
            if node.is_dir() {
                if is_met {
                    take(&path, Event::Enter(&name, &node))?;
                }
                let names = self.tree.names(&node).map_err(|errno| at(&path, errno))?.into_iter();
                stack.push(Frame { path, name, names, node: Some(node), is_met });
            } else if is_met {
                take(&path, Event::Leaf(&name, &node))?;
            }
        }
        Ok(())
    }

    fn frame(&self, path: &[u8], node: Option<Node>, is_met: bool) -> Result<Frame, Failure> {
        let spot = self.walk(path)?;
        let directory = spot.node().filter(|node| node.is_dir());
        let names = directory.map_or(Ok(Vec::new()), |directory| self.tree.names(directory));
        let names = names.map_err(|errno| at(path, errno))?.into_iter();
        Ok(Frame { path: path.to_vec(), name: Vec::new(), names, node, is_met })
    }

    /// Adds what is copied to a digest: all but times.
    fn digest(&self, found: &[Found], into: &mut Sha256) -> Result<(), Failure> {
        // Files with several names, by the order in which they are met.
        let mut met: HashMap<u64, usize> = HashMap::new();
        for one in found {
            field(into, &one.name);
            self.digest_of(&one.path, &one.node, into)?;
            if one.node.is_dir() {
                self.each(one, &mut |path, event| match event {
                    Event::Enter(name, node) => {
                        field(into, b"enter");
                        field(into, name);
                        self.digest_of(path, node, into)
                    }
                    Event::Leaf(name, node) => {
                        field(into, name);
                        let number = met.len();
                        if let Some(shared) = node.shared() {
                            let first = *met.entry(shared).or_insert(number);
                            field(into, &first.to_le_bytes());
                        }
                        self.digest_of(path, node, into)
                    }
                    Event::Leave(_) => {
                        field(into, b"leave");
                        Ok(())
                    }
                })?;
            }
        }
        Ok(())
    }

    fn digest_of(&self, path: &[u8], node: &Node, into: &mut Sha256) -> Result<(), Failure> {
        let fail = |errno| at(path, errno);
        let about = node.about();
        let (user, group) = if self.keeps_owners { about.owner } else { (0, 0) };
        into.update([node.kind() as u8]);
        [about.mode, user, group].iter().for_each(|number| into.update(number.to_le_bytes()));
        match node.kind() {
            Kind::File => {
                let mut inner = Sha256::new();
                self.tree
                    .read::<Errno>(node, |piece| {
                        inner.update(piece);
                        Ok(())
                    })
                    .map_err(fail)?;
                field(into, &inner.finalize());
            }
            Kind::Symlink => field(into, &self.tree.read_link(node).map_err(fail)?),
            _ => into.update(node.device().to_le_bytes()),
        }
        for (name, value) in self.tree.attributes(node).map_err(fail)? {
            field(into, &name);
            field(into, &value);
        }
        Ok(())
    }
}

/// A directory on a walk.
struct Frame {
    path: Vec<u8>,
    name: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
    /// None for the one that the walk begins in.
    node: Option<Node>,
    /// Whether it was told.
    is_met: bool,
}

/// Tells of directories in which something is met, although they themselves are left out.
fn meet(stack: &mut [Frame], take: &mut Take<'_>) -> Result<(), Failure> {
    for frame in stack.iter_mut().filter(|frame| !frame.is_met) {
        if let Some(node) = &frame.node {
            take(&frame.path, Event::Enter(&frame.name, node))?;
        }
        frame.is_met = true;
    }
    Ok(())
}

/// One part of what a digest is of, so that no two rows of parts look the same.
fn field(into: &mut Sha256, value: &[u8]) {
    into.update((value.len() as u64).to_le_bytes());
    into.update(value);
}

pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
