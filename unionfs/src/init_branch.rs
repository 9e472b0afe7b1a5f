//! Filling the init branch of a union that nobody looks at yet: the entries that a container has of its own between its
//! top and its image (rule 13).
//!
//! There are two ways. What is [put](InitBranch::put) at a path is there whatever the branches below have under the
//! names on the way: a link of an image is replaced, and never followed. A [mount point](InitBranch::make_missing) is
//! made where the union leads with that path, links followed inside of it, and only if nothing is there.
//!
//! A directory that lies on a branch below as well is made like that, so that nobody sees a difference.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::io::Errno;

use crate::branch::dir::Dir;
use crate::branch::root::RootNames;
use crate::branch::stat::{Kind, Stat};
use crate::branch::{self, form_of};
use crate::diff::DiffError;
use crate::diff::view::{Level, View};
use crate::options::{BranchSpec, Keeping};
use crate::union::{Name, NameBuf, NameError, Resolved};

/// Links that are followed on the way to one path, as by the kernel; see path_resolution(7).
const MOST_LINKS: usize = 40;
/// Of directories and files that no branch below has.
const DIRECTORY: u32 = 0o755;
const FILE: u32 = 0o644;

/// Something to put into an init branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A directory.
    Directory,
    /// A file with this content.
    File(&'a [u8]),
    /// A symbolic link to this path.
    Link(&'a [u8]),
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPoint {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// An init branch, and the union that it is in.
#[derive(Debug)]
pub struct InitBranch {
    view: View,
    root: Dir,
}

impl InitBranch {
    /// Opens the branches of a union, of which one is an init branch.
    ///
    /// # Errors
    /// Where a branch cannot be opened, or none is an init branch.
    pub fn open(branches: &[BranchSpec]) -> Result<InitBranch, DiffError> {
        let own = branches.iter().find(|branch| branch.init).ok_or(DiffError::NoInitBranch)?;
        let fail = |error| DiffError::Branch { path: own.path.clone(), error };
        let root = branch::open_root(&own.path, false, form_of(own)).map_err(fail)?;
        let names = RootNames::of(&root).map_err(fail)?;
        let root = branch::with_kept(root, &names, true, Keeping::Refused, None).map_err(fail)?;
        let view = View::open_all(branches, None)?;
        if branches.first().is_some_and(|top| top.init) {
            look_like(&root, &view.root(1).map_err(fail)?).map_err(fail)?;
        }
        Ok(InitBranch { view, root })
    }

    /// Puts an entry at an absolute path, in the place of what the branches below have there.
    ///
    /// # Errors
    /// Those of writing to the branch; EISDIR where it has a directory in the place of what is no directory.
    pub fn put(&self, path: &Path, entry: Entry<'_>) -> io::Result<()> {
        let names = names(path)?;
        let Some((last, parents)) = names.split_last() else { return Ok(()) };
        let (parent, level) = self.raise(parents)?;
        if entry == Entry::Directory {
            return Ok(self.raise_one(&parent, &level, last.as_name()).map(drop)?);
        }
        match parent.unlink(last.as_bytes()) {
            // an earlier start has left it
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        match entry {
            Entry::File(content) => make_file(&parent, last.as_name(), content),
            Entry::Link(target) => Ok(parent.keeping_times(|| parent.make_symlink(last.as_bytes(), target))?),
            Entry::Directory => Ok(()),
        }
    }

    /// Makes what is missing on an absolute path to a mount point, as far as it would be seen: the top may hide it.
    ///
    /// # Errors
    /// Those of reading the branches and of writing to this one.
    pub fn make_missing(&self, path: &Path, last: MountPoint) -> io::Result<()> {
        let mut walk = Walk { view: &self.view, levels: vec![self.view.root(0)?], names: Vec::new(), links: 0 };
        // what cannot be a name in a union is told by whoever mounts there
        let Some(missing) = walk.follow(path)? else { return Ok(()) };
        let Some((name, parents)) = missing.split_last() else { return Ok(()) };
        let directories: Vec<NameBuf> = walk.names.iter().chain(parents).cloned().collect();
        let (parent, level) = self.raise(&directories)?;
        match last {
            MountPoint::Directory => Ok(self.raise_one(&parent, &level, name.as_name()).map(drop)?),
            MountPoint::File => make_file(&parent, name.as_name(), b""),
        }
    }

    /// Makes a directory and those above it, like those of the union.
    fn raise(&self, path: &[NameBuf]) -> Result<(Dir, Level), Errno> {
        let mut here = (self.root.reopen()?, self.view.root(0)?);
        for name in path {
            here = self.raise_one(&here.0, &here.1, name.as_name())?;
        }
        Ok(here)
    }

    fn raise_one(&self, parent: &Dir, level: &Level, name: Name<'_>) -> Result<(Dir, Level), Errno> {
        let below = self.view.enter(level, name)?;
        match make_directory(parent, name, &below) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        Ok((parent.open_dir(name.as_bytes())?, self.view.enter(level, name)?))
    }
}

/// A path being followed through a union.
struct Walk<'a> {
    view: &'a View,
    /// The directories on the way, the root first.
    levels: Vec<Level>,
    /// Their names, but for the root's.
    names: Vec<NameBuf>,
    links: usize,
}

impl Walk<'_> {
    /// Follows a path as far as it leads: the names that are missing, or nothing where that is not what it ends with.
    fn follow(&mut self, path: &Path) -> Result<Option<Vec<NameBuf>>, Errno> {
        let mut components = path.components();
        while let Some(component) = components.next() {
            let name = match component {
                Component::RootDir => {
                    self.levels.truncate(1);
                    self.names.clear();
                    continue;
                }
                Component::ParentDir => {
                    self.levels.truncate(self.names.len().max(1));
                    self.names.pop();
                    continue;
                }
                Component::CurDir | Component::Prefix(_) => continue,
                Component::Normal(name) => name.as_encoded_bytes(),
            };
            let (Ok(name), Some(level)) = (Name::new(name), self.levels.last()) else { return Ok(None) };
            let sight = self.view.look(level, name)?;
            match (&sight.resolved, sight.stat) {
                (Resolved::Missing { .. }, _) => {
                    let rest: Result<Vec<NameBuf>, _> = names(components.as_path());
                    return Ok(rest.ok().map(|rest| [vec![name.to_owned()], rest].concat()));
                }
                (Resolved::Dir { .. }, _) => {
                    self.levels.push(self.view.enter(level, name)?);
                    self.names.push(name.to_owned());
                }
                (Resolved::Leaf(branch), Some(Stat { kind: Kind::Symlink, .. })) => {
                    self.links += 1;
                    let place = level.stack.iter().find(|place| place.branch == *branch);
                    let Some(dir) = place.and_then(|place| place.dir.as_ref()) else { return Ok(None) };
                    if self.links > MOST_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = dir.read_link(name.as_bytes())?;
                    let target = Path::new(OsStr::from_bytes(&target)).join(components.as_path());
                    return self.follow(&target);
                }
                (Resolved::Leaf(_), _) => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The names in a path without dots.
fn names(path: &Path) -> Result<Vec<NameBuf>, Errno> {
    let name = |component| match component {
        Component::RootDir => None,
        Component::Normal(name) => Some(Name::new(name.as_encoded_bytes()).map(Name::to_owned).map_err(errno_of)),
        Component::CurDir | Component::ParentDir | Component::Prefix(_) => Some(Err(Errno::INVAL)),
    };
    path.components().filter_map(name).collect()
}

fn errno_of(error: NameError) -> Errno {
    match error {
        NameError::Invalid => Errno::INVAL,
        NameError::TooLong => Errno::NAMETOOLONG,
        NameError::Reserved => Errno::PERM,
    }
}

/// Gives the uppermost root the attributes of the one below, for it is the one that is seen.
fn look_like(root: &Dir, below: &Level) -> Result<(), Errno> {
    match below.stack.first().and_then(|place| place.dir.as_ref()) {
        Some(dir) => root.at(b"").take_attributes(dir.at(b""), &dir.stat()?).map(drop),
        None => Ok(()),
    }
}

/// Makes a directory with the attributes of the one that the union shows there, if it does.
fn make_directory(parent: &Dir, name: Name<'_>, shown: &Level) -> Result<(), Errno> {
    parent.keeping_times(|| parent.make_dir(name.as_bytes(), DIRECTORY))?;
    let new = parent.at(name.as_bytes());
    match shown.stack.first().and_then(|place| place.dir.as_ref()) {
        Some(dir) => new.take_attributes(dir.at(b""), &dir.stat()?).map(drop),
        // whatever the umask has left of it
        None => new.chmod(DIRECTORY),
    }
}

fn make_file(parent: &Dir, name: Name<'_>, content: &[u8]) -> io::Result<()> {
    let file = parent.keeping_times(|| parent.create_file(name.as_bytes(), FILE))?;
    File::from(file).write_all(content)?;
    Ok(parent.at(name.as_bytes()).chmod(FILE)?)
}
