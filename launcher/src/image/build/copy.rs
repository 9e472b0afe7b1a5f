//! COPY and ADD: how what was found gets to its place.
//!
//! See <https://docs.docker.com/reference/dockerfile/#copy>.

use std::collections::HashMap;
use std::io;

use rustix::io::Errno;
use unionfs::branch::stat::Kind;
use unionfs::fs::New;

use super::archive;
use super::origin::{Event, Found, Origin, UNSEEN, at, join, shown};
use super::tree::{About, Node, Tree};
use crate::failure::{self, Failure};
use crate::message::{say, warn};

/// What is copied as what.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct How {
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    pub(super) unpacks: bool,
}

impl Origin<'_> {
    /// Copies what was found to a path, which begins at the root.
    pub(super) fn copy(&self, found: &[Found], to: &Tree, target: &str, how: How) -> Result<(), Failure> {
        let is_directory = target.ends_with('/') || target.ends_with("/.") || target == ".";
        if found.len() > 1 && !is_directory {
            let failure = Failure::new(format!("several files are copied to {target}, which is no directory"));
            return Err(failure.remedy("end it with a slash"));
        }
        let mut unseen = Vec::new();
        for one in found {
            self.copy_one(one, to, target, is_directory, how, &mut unseen)?;
        }
        if let [first, more @ ..] = unseen.as_slice() {
            let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
            warn(format_args!("{}{more}: left out, for {UNSEEN}", shown(first)));
        }
        Ok(())
    }

    fn copy_one(
        &self,
        one: &Found,
        to: &Tree,
        target: &str,
        is_directory: bool,
        how: How,
        unseen: &mut Vec<Vec<u8>>,
    ) -> Result<(), Failure> {
        let fail = |errno| at(target.as_bytes(), errno);
        let spot = to.walk(target.as_bytes()).map_err(fail)?;
        let around = About { mode: 0o755, owner: how.owner.unwrap_or((0, 0)), mtime: None };
        let archive = match one.node.kind() {
            Kind::File if how.unpacks => {
                archive::open(self.tree, &one.node).map_err(|error| broken(&one.path, &error))?
            }
            _ => None,
        };
        if one.node.is_dir() || archive.is_some() {
            let place = spot.path();
            let (directory, is_new) = to.make_directories(spot, around).map_err(fail)?;
            if let Some(archive) = archive {
                return archive::unpack(archive, to, &place, how.owner).map_err(|error| broken(&one.path, &error));
            }
            // The context itself may be in a directory that nobody else may enter.
            if is_new && !one.path.is_empty() {
                self.finish(to, &directory, &one.node, how).map_err(fail)?;
            }
            return self.copy_content(one, to, directory, how, unseen);
        }
        let mut whole = spot.path();
        let is_inside = is_directory || spot.node().is_some_and(Node::is_dir);
        let (directory, name) = if is_inside {
            whole = join(&whole, &one.name);
            (to.make_directories(spot, around).map_err(fail)?.0, one.name.clone())
        } else {
            let mut names = spot.names;
            let name = names.pop().ok_or_else(|| fail(Errno::ISDIR))?;
            let parent = to.walk(&names.join(&b'/')).map_err(fail)?;
            (to.make_directories(parent, around).map_err(fail)?.0, name)
        };
        let made = self.leaf(to, &directory, &name, &one.node, how);
        made.map(drop).map_err(|errno| at(&[b"/", whole.as_slice()].concat(), errno))
    }

    /// Copies what is in a directory into the root of a tree, which becomes like it. What is no directory, or not there, is
    /// an empty one.
    pub(crate) fn copy_all(&self, path: &[u8], to: &Tree) -> Result<(), Failure> {
        let fail = |errno| at(path, errno);
        let Some(found) = self.directory_at(path)? else { return Ok(()) };
        self.copy_content(&found, to, to.root().map_err(fail)?, How::default(), &mut Vec::new())?;
        self.finish(to, &to.root().map_err(fail)?, &found.node, How::default()).map_err(fail)
    }

    fn copy_content(
        &self,
        one: &Found,
        to: &Tree,
        directory: Node,
        how: How,
        unseen: &mut Vec<Vec<u8>>,
    ) -> Result<(), Failure> {
        self.add_unseen(&one.path, unseen)?;
        let mut stack = vec![directory];
        // Files with several names, and their copies.
        let mut shared: HashMap<u64, Node> = HashMap::new();
        self.each(one, &mut |path, event| {
            let fail = |errno| at(path, errno);
            let Some(directory) = stack.last() else { return Err(fail(Errno::IO)) };
            match event {
                Event::Enter(name, _) => {
                    self.add_unseen(path, unseen)?;
                    stack.push(self.directory(to, directory, name).map_err(fail)?);
                    Ok(())
                }
                Event::Leaf(name, node) => match node.shared().and_then(|number| shared.get(&number)) {
                    Some(first) => {
                        make_room(to, directory, name).map_err(fail)?;
                        to.link(first, directory, name).map_err(fail)
                    }
                    None => {
                        let made = self.leaf(to, directory, name, node, how).map_err(fail)?;
                        shared.extend(node.shared().zip(made));
                        Ok(())
                    }
                },
                Event::Leave(node) => {
                    // Its time is the source's, now that nothing is added any more.
                    self.finish(to, directory, node, how).map_err(fail)?;
                    stack.pop();
                    Ok(())
                }
            }
        })
    }

    /// A directory in which something is going to be copied; another kind of thing in its place stays.
    fn directory(&self, to: &Tree, around: &Node, name: &[u8]) -> Result<Node, Errno> {
        match to.child(around, name)? {
            Some(there) if there.is_dir() => Ok(there),
            Some(_) => Err(Errno::NOTDIR),
            None => to.make(around, name, New::Dir, About { mode: 0o755, owner: (0, 0), mtime: None }),
        }
    }

    /// Copies what is no directory; nothing where there can be no copy of it.
    fn leaf(&self, to: &Tree, directory: &Node, name: &[u8], source: &Node, how: How) -> Result<Option<Node>, Errno> {
        make_room(to, directory, name)?;
        let about = self.about(source, how);
        let made = match source.kind() {
            Kind::File => to.make_file(directory, name, |write| self.tree.read::<Errno>(source, write))?,
            Kind::Symlink => to.make(directory, name, New::Symlink(&self.tree.read_link(source)?), about)?,
            Kind::Socket => {
                say(format_args!("note: {} is left out: it is a socket, which layers do not have", shown(name)));
                return Ok(None);
            }
            kind => to.make(directory, name, New::Node(kind, source.device()), about)?,
        };
        self.finish(to, &made, source, how)?;
        Ok(Some(made))
    }

    /// Sets all that is said of a file, and its attributes last: a new owner takes the rights of a program away.
    fn finish(&self, to: &Tree, made: &Node, source: &Node, how: How) -> Result<(), Errno> {
        to.set(made, self.about(source, how))?;
        let attributes = self.tree.attributes(source)?;
        if attributes.is_empty() {
            return Ok(());
        }
        to.set_attributes(made, &attributes)
    }

    fn about(&self, source: &Node, how: How) -> About {
        let about = source.about();
        let own = if self.keeps_owners { about.owner } else { (0, 0) };
        // A link's own mode means nothing.
        let mode = how.mode.unwrap_or(about.mode);
        About { mode, owner: how.owner.unwrap_or(own), ..about }
    }
}

/// What is there goes, unless it is a directory.
fn make_room(to: &Tree, directory: &Node, name: &[u8]) -> Result<(), Errno> {
    match to.child(directory, name)? {
        Some(there) if there.is_dir() => Err(Errno::ISDIR),
        Some(_) => to.remove(directory, name),
        None => Ok(()),
    }
}

fn broken(path: &[u8], error: &io::Error) -> Failure {
    failure::told(error).at(&shown(path))
}
