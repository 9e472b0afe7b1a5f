//! The init branch: what a container on branches has of its own between its top and its image, as docker's AuFS driver
//! made it. It lies beside the container's mount point and goes with it.
//!
//! Its files can be written, and are written in place, so that nothing of them reaches the top; mount points that the
//! image lacks are made in it, so that they do not either. The union's daemon fills it, while the container's first
//! process is on its way.
//!
//! A copy of the host whose top is kept has one for mount points alone, where the host lacks some.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use unionfs::init_branch::{Entry, InitBranch, MountPoint};
use unionfs::options::{Access, BranchSpec};

use crate::failure::{Doing as _, Failure};
use crate::host::FRESH;
use crate::network::OwnFile;
use crate::spec::Spec;
use crate::volume::VolumeOptions;

/// What every container has. What is mounted there later, in /dev, is never seen.
const DIRECTORIES: [&str; 4] = ["/proc", "/sys", "/dev/pts", "/dev/shm"];
const CONSOLE: &str = "/dev/console";
/// What is mounted is known to the kernel alone.
const MOUNT_TABLE: (&str, &str) = ("/etc/mtab", "/proc/mounts");
/// Says to programs that they are in a container; see <https://systemd.io/CONTAINER_INTERFACE>.
const MARKER: (&str, &str) = ("/run/host/container-manager", "rlaunch\n");

/// What an init branch holds.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Whether it is that of a whole root, with what every container has.
    is_of_root: bool,
    files: Vec<OwnFile>,
    mount_points: Vec<MountPointOf>,
}

/// Where something of the host is shown, and what; nothing for a directory in memory.
type MountPointOf = (PathBuf, Option<PathBuf>);

/// Whether a container on these branches gets one; not beside one of the user's.
pub(crate) fn is_added(branches: &[BranchSpec]) -> bool {
    !branches.iter().any(|branch| branch.init)
}

impl Contents {
    /// What nearly every container has, to find out what of a top is under such names.
    pub(crate) fn usual() -> Contents {
        let names = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        let files = names.map(|at| OwnFile { at, content: Vec::new(), is_made: true });
        Contents { is_of_root: true, files: files.to_vec(), mount_points: Vec::new() }
    }

    /// What it holds for a container.
    pub(crate) fn of(spec: &Spec) -> Contents {
        let mount_points = mount_points(&spec.volumes).collect();
        Contents { is_of_root: true, files: spec.files.clone(), mount_points }
    }

    /// Mount points that a part of the host lacks, among all parts that a copy shows. None where it has them all.
    pub(crate) fn missing_in(part: &Path, parts: &[&Path], volumes: &VolumeOptions) -> Option<Contents> {
        let is_here = |target: &Path| {
            let around = parts.iter().filter(|part| target.starts_with(part));
            around.max_by_key(|part| part.components().count()).is_some_and(|nearest| *nearest == part)
        };
        let is_missing = |target: &Path| {
            let is_fresh = FRESH.iter().any(|fresh| target.starts_with(fresh));
            !is_fresh && target.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        let wanted = mount_points(volumes).filter(|(target, _)| is_here(target) && is_missing(target));
        let inside =
            |(target, source): MountPointOf| Some((Path::new("/").join(target.strip_prefix(part).ok()?), source));
        let mount_points: Vec<_> = wanted.filter_map(inside).collect();
        (!mount_points.is_empty()).then_some(Contents { is_of_root: false, files: Vec::new(), mount_points })
    }
}

fn mount_points(volumes: &VolumeOptions) -> impl Iterator<Item = MountPointOf> {
    let shown = volumes.volume.iter().map(|volume| (volume.target.clone(), Some(volume.source.clone())));
    volumes.tmpfs.iter().map(|tmpfs| (tmpfs.target.clone(), None)).chain(shown)
}

/// The branches with an init branch below those that are written.
pub(crate) fn add(branches: &[BranchSpec], directory: PathBuf) -> Vec<BranchSpec> {
    let own = BranchSpec {
        path: directory,
        access: Access::ReadOnly,
        whiteouts: true,
        overlay: false,
        init: true,
        nolwh: false,
    };
    let tops = branches.iter().take_while(|branch| branch.access == Access::ReadWrite).count();
    let (tops, image) = branches.split_at(tops);
    [tops, &[own], image].concat()
}

/// Fills the one among these branches.
///
/// # Errors
/// Where a branch cannot be read, or the init branch not be written.
pub(crate) fn fill(branches: &[BranchSpec], contents: &Contents) -> Result<(), Failure> {
    let init = InitBranch::open(branches).map_err(|error| Failure::new(error.to_string()))?;
    let put =
        |path: &str, entry| init.put(Path::new(path), entry).doing(&format!("make {path} of the container's own"));
    if contents.is_of_root {
        DIRECTORIES.iter().try_for_each(|path| put(path, Entry::Directory))?;
        put(CONSOLE, Entry::File(b""))?;
        put(MOUNT_TABLE.0, Entry::Link(MOUNT_TABLE.1.as_bytes()))?;
        put(MARKER.0, Entry::File(MARKER.1.as_bytes()))?;
    }
    contents.files.iter().try_for_each(|file| put(file.at, Entry::File(&file.content)))?;
    contents.mount_points.iter().try_for_each(|(path, source)| {
        // A source that is missing is told by whoever mounts it.
        let is_file = source.as_ref().is_some_and(|source| source.exists() && !source.is_dir());
        let kind = if is_file { MountPoint::File } else { MountPoint::Directory };
        init.make_missing(path, kind).doing(&format!("make the mount point {}", path.display()))
    })
}
