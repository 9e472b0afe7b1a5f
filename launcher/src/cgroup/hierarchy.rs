//! A container's cgroups in one hierarchy.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::detect::{Controller, Mounted, Version};
use super::directory::{self, Directory};
use super::setting::Place;
use super::{v1, v2};
use crate::failure::errno_of;
use crate::message::warn;
use crate::rootless::is_root;

/// Where containers are, below the root of each hierarchy.
pub(crate) const PARENT: &str = "rlaunch";
/// The container's own cgroup, where there is one for the union's daemon as well.
const CONTAINER: &str = "container";
/// The cgroup of the union's daemon.
const DAEMON: &str = "fuse";
const ATTEMPTS: usize = 100;

/// What is wanted in every hierarchy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The cgroup in which the container's are made, if it was asked for.
    pub(crate) parent: Option<&'a Path>,
    /// The name.
    pub(crate) id: &'a str,
    /// Whether there is a daemon.
    pub(crate) union: bool,
    /// Whether controllers are worth moving processes for.
    pub(crate) has_limits: bool,
}

/// The cgroups of one container in one hierarchy.
///
/// Without a union it is one, `PARENT/ID`. With one, the container is in `ID/container` and the daemon in `ID/fuse`: on v2 a
/// cgroup with others below it cannot hold processes.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    pub(crate) mounted: Mounted,
    common: Directory,
    container: Option<Directory>,
    daemon: Option<Directory>,
    /// Those around them that were not there before.
    new_parents: Vec<PathBuf>,
    /// Controllers that the hierarchy has, but could not give.
    pub(crate) withheld: Vec<Withheld>,
    /// Tells others that it is in use.
    _lock: Option<Flock<File>>,
}

/// A controller that did not come down to the container.
#[derive(Debug)]
pub(crate) struct Withheld {
    pub(crate) controller: Controller,
    /// The cgroup where it stays.
    pub(crate) place: PathBuf,
    /// ENODEV where the cgroup has not got it itself; else why it could not be passed on.
    pub(crate) errno: Errno,
}

/// Where the container's cgroups are made: below the root for the administrator, and else below the cgroup that was
/// delegated to the user, who is in it.
pub(crate) fn parent_in(mounted: &Mounted, asked: Option<&Path>) -> PathBuf {
    match asked {
        Some(asked) => mounted.root.join(asked),
        None if is_root() => mounted.root.join(PARENT),
        None => delegated(mounted).join(PARENT),
    }
}

/// The cgroup that was delegated to an ordinary user, who is in it, or in the one below to which an earlier start has
/// moved its processes.
fn delegated(mounted: &Mounted) -> &Path {
    let own = mounted.own.as_path();
    if own.file_name() == Some(v2::LEAF.as_ref()) { own.parent().unwrap_or(own) } else { own }
}

impl Hierarchy {
    /// Makes them; nothing is left behind where that fails.
    pub(crate) fn create(mounted: &Mounted, wanted: &Wanted<'_>) -> Result<Hierarchy, Errno> {
        for _ in 0..ATTEMPTS {
            match Hierarchy::try_create(mounted.clone(), wanted) {
                // The container that was the last one there has just removed the cgroup around it.
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                result => return result,
            }
        }
        Err(Errno::EAGAIN)
    }

    fn try_create(mounted: Mounted, wanted: &Wanted<'_>) -> Result<Hierarchy, Errno> {
        let mut parents = Parents::default();
        let parent = parents.make(&mounted, wanted)?;
        let (common, lock) = make_locked(&parent.path().join(wanted.id))?;
        let mut hierarchy = Hierarchy {
            mounted,
            common,
            container: None,
            daemon: None,
            new_parents: parents.new,
            withheld: parents.withheld,
            _lock: Some(lock),
        };
        match hierarchy.fill(&parent, wanted.union) {
            Ok(()) => Ok(hierarchy),
            Err(errno) => hierarchy.common.try_remove().and(Err(errno)),
        }
    }

    fn fill(&mut self, parent: &Directory, union: bool) -> Result<(), Errno> {
        let has_cpuset = self.has(Controller::Cpuset) && self.mounted.version == Version::V1;
        if has_cpuset {
            v1::inherit_cpuset(parent, &self.common)?;
        }
        if union {
            if self.mounted.version == Version::V2 {
                self.withheld.extend(give_controllers(&self.common, false)?);
            }
            let below = |name| Directory::make(&self.common.path().join(name));
            let (container, daemon) = (below(CONTAINER)?, below(DAEMON)?);
            if has_cpuset {
                v1::inherit_cpuset(&self.common, &container)?;
                v1::inherit_cpuset(&self.common, &daemon)?;
            }
            (self.container, self.daemon) = (Some(container), Some(daemon));
        }
        if self.mounted.version == Version::V2 {
            let common = &self.common;
            self.mounted.controllers.retain(|own| common.has_controller(own.name(Version::V2)));
        }
        Ok(())
    }

    /// Opens those that another process has made, in one of which a container's first process is; none where that is
    /// somewhere else.
    pub(crate) fn open(mut mounted: Mounted, id: &str) -> Option<Hierarchy> {
        let common = mounted.own.ancestors().take(2).find(|path| path.file_name() == Some(id.as_ref()))?;
        let common = Directory::open(common).ok()?;
        let below = |name| Directory::open(&common.path().join(name)).ok();
        let daemon = below(DAEMON).filter(|_| common.path() != mounted.own);
        let container = daemon.as_ref().and_then(|_| below(CONTAINER));
        if mounted.version == Version::V2 {
            mounted.controllers.retain(|own| common.has_controller(own.name(Version::V2)));
        }
        let (new_parents, withheld) = (Vec::new(), Vec::new());
        Some(Hierarchy { mounted, common, container, daemon, new_parents, withheld, _lock: None })
    }

    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.mounted.controllers.contains(&controller)
    }

    /// The cgroup that is meant; none for a daemon that there is not.
    pub(crate) fn directory(&self, place: Place) -> Option<&Directory> {
        match place {
            Place::Common => Some(&self.common),
            Place::Container => Some(self.container()),
            Place::Daemon => self.daemon.as_ref(),
        }
    }

    /// Removes them and, with the last container, what is around them and ours. Who is still there is killed.
    pub(crate) fn remove(&self) -> Result<(), Errno> {
        self.common.remove()?;
        let ours = self.common.path().parent().filter(|parent| parent.file_name() == Some(PARENT.as_ref()));
        for parent in ours.into_iter().chain(self.new_parents.iter().map(PathBuf::as_path)) {
            match std::fs::remove_dir(parent).map_err(|error| errno_of(&error)) {
                // Other containers are there, or one that has ended in this moment has done it.
                Ok(()) | Err(Errno::EBUSY | Errno::ENOTEMPTY | Errno::ENOENT) => {}
                result => return result,
            }
        }
        Ok(())
    }

    pub(crate) fn container(&self) -> &Directory {
        self.container.as_ref().unwrap_or(&self.common)
    }

    pub(crate) fn common(&self) -> &Directory {
        &self.common
    }
}

/// What was found out while the cgroups around the container's were made.
#[derive(Default)]
struct Parents {
    /// Those that were not there before, the innermost first.
    new: Vec<PathBuf>,
    withheld: Vec<Withheld>,
}

impl Parents {
    /// Makes them, and has them pass on what they can.
    fn make(&mut self, mounted: &Mounted, wanted: &Wanted<'_>) -> Result<Directory, Errno> {
        let path = parent_in(mounted, wanted.parent);
        let delegated = delegated(mounted);
        let start = if path.starts_with(delegated) && !is_root() { delegated } else { &mounted.root };
        let mut directory = Directory::open(start)?;
        self.miss(mounted, &directory);
        // Whose processes are in the uppermost cgroup that can be seen is as good as known: it is all of a container, or
        // the scope of this command. A cgroup that was asked for is somebody else's business.
        self.pass_on(mounted, &directory, wanted.has_limits)?;
        for name in path.strip_prefix(start).unwrap_or(Path::new("")).components() {
            let (below, is_new) = Directory::open_or_make(&directory.path().join(name))?;
            if is_new {
                self.new.insert(0, below.path().to_owned());
            }
            if mounted.version == Version::V1 && mounted.controllers.contains(&Controller::Cpuset) {
                v1::inherit_cpuset(&directory, &below)?;
                if is_new {
                    v1::pass_on_cpuset(&below)?;
                }
            }
            self.pass_on(mounted, &below, false)?;
            directory = below;
        }
        Ok(directory)
    }

    fn pass_on(&mut self, mounted: &Mounted, directory: &Directory, may_move: bool) -> Result<(), Errno> {
        if mounted.version == Version::V2 {
            self.withheld.extend(give_controllers(directory, may_move)?);
        }
        Ok(())
    }

    /// Notes what was not delegated, though the machine has it.
    fn miss(&mut self, mounted: &Mounted, start: &Directory) {
        let is_missing = |own: &&Controller| !start.has_controller(own.name(Version::V2));
        let missing = mounted.controllers.iter().filter(|_| mounted.version == Version::V2).filter(is_missing);
        let place = start.path();
        self.withheld.extend(missing.map(|own| Withheld {
            controller: *own,
            place: place.into(),
            errno: Errno::ENODEV,
        }));
    }
}

fn give_controllers(directory: &Directory, may_move: bool) -> Result<Vec<Withheld>, Errno> {
    let failed = v2::give_controllers(directory, may_move)?.into_iter();
    let withheld = |(controller, errno)| Withheld { controller, place: directory.path().to_owned(), errno };
    Ok(failed.map(withheld).collect())
}

/// Makes a cgroup and marks it as used. Somebody who cleans up may come between, and remove it.
fn make_locked(path: &Path) -> Result<(Directory, Flock<File>), Errno> {
    for attempt in 0..ATTEMPTS {
        let directory = match Directory::make(path) {
            // It is the one of the last round, which is going to be removed at once.
            Err(Errno::EEXIST) if attempt > 0 => {
                sleep(Duration::from_millis(1));
                continue;
            }
            result => result?,
        };
        if let Some(lock) = directory.lock(FlockArg::LockSharedNonblock)?.filter(|_| path.exists()) {
            return Ok((directory, lock));
        }
    }
    Err(Errno::EAGAIN)
}

/// Removes the cgroups of containers whose launcher was killed. Somebody else's, and those in use, stay.
///
/// Those that are in use in one hierarchy are so in all: they are added to `in_use`, and not looked at again.
pub(crate) fn remove_stale(mounted: &Mounted, asked: Option<&Path>, in_use: &mut HashSet<OsString>) {
    // A parent that was asked for holds whatever its owner likes.
    if asked.is_some() {
        return;
    }
    let Ok(names) = directory::names_in(&parent_in(mounted, None)) else { return };
    for name in names {
        if in_use.contains(&name) {
            continue;
        }
        let Ok(directory) = Directory::open(&parent_in(mounted, None).join(&name)) else { continue };
        let Ok(Some(_lock)) = directory.lock(FlockArg::LockExclusiveNonblock) else {
            in_use.insert(name);
            continue;
        };
        match directory.try_remove() {
            // With processes in it, or out of our reach: a later start removes it, or one with more rights.
            Ok(()) | Err(Errno::EBUSY | Errno::EROFS | Errno::EACCES | Errno::EPERM) => {}
            Err(errno) => {
                warn(format_args!("cannot remove the cgroup {}: {}", directory.path().display(), errno.desc()));
            }
        }
    }
}
