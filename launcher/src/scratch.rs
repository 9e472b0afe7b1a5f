//! The directory that a container on unions has for as long as it runs: a mount point and, for a throw-away copy, what
//! it writes.
//!
//! Whoever uses one holds a shared lock on it: the launcher, and the union's daemon, which may outlive a launcher that
//! is killed. A directory that can be locked exclusively was left behind, and the next start removes it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};

use nix::unistd::geteuid;

use crate::apt;
use crate::failure::{Doing as _, Failure};
use crate::folders;
use crate::lock::{Kind, Lock, lock};
use crate::message::warn;
use crate::rootless::is_root;

mod removal;

pub(crate) use removal::remove;

const PREFIX: &str = "rlaunch-";
/// Of those that are no leftovers: they belong to a container that is kept.
const KEPT_PREFIX: &str = "rlaunch-kept-";
const TOP: &str = "top";
const MOUNT_POINT: &str = "root";
const INIT: &str = "init";
const VOLUME: &str = "volume";
const ATTEMPTS: usize = 100;
/// Every machine has it, and no boot empties it.
const LAST_PLACE: &str = "/var/tmp";

/// A directory of a container's own; removed when it is dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    is_kept: bool,
    /// What of one that is kept goes all the same: init branches.
    passing: Vec<PathBuf>,
    _lock: Lock,
}

impl Scratch {
    /// Makes one on the first of the usual places that will do, and removes what killed launchers left there. With
    /// `parts`, those of the host that a throw-away copy shows, it is one on disk and has a top for each.
    pub(crate) fn create(parts: &[&Path]) -> Result<Scratch, Failure> {
        let mut reasons = Vec::new();
        for place in &places() {
            remove_leftovers(place);
            match Scratch::create_in(place, parts) {
                Ok(scratch) => return Ok(scratch),
                Err(reason) => reasons.push(format!("{}: {reason}", place.display())),
            }
        }
        let failure = Failure::because("make a directory for the container", reasons.join("; "));
        Err(failure.remedy("set TMPDIR to a directory on a disk"))
    }

    fn create_in(place: &Path, parts: &[&Path]) -> io::Result<Scratch> {
        for _ in 0..ATTEMPTS {
            if folders::is_ours(place) {
                folders::make_private(place)?;
            }
            // Somebody may find our folder empty, and remove it.
            let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && folders::is_ours(place);
            let reason = if parts.is_empty() { Ok(None) } else { is_bad(place) };
            match reason {
                Err(error) if is_gone(&error) => continue,
                Ok(Some(reason)) => {
                    folders::remove_empty_around(&place.join(TOP))?;
                    return Err(io::Error::other(reason));
                }
                result => result?,
            };
            let path = match make_private_directory(place) {
                Err(error) if is_gone(&error) => continue,
                result => result?,
            };
            // Somebody who cleans up may have come between: then the lock is taken, or the directory gone.
            if let Some(lock) = lock(&path, Kind::Shared)? {
                let scratch = Scratch { path, is_kept: false, passing: Vec::new(), _lock: lock };
                fs::create_dir(scratch.mount_point())?;
                make_tops(&scratch.path, parts)?;
                return Ok(scratch);
            }
        }
        Err(io::Error::other("somebody keeps removing the directories that are made there"))
    }

    /// Where a container that is kept keeps what is written: in its own directory, or with its id elsewhere where that is
    /// no place for it.
    pub(crate) fn place_to_keep(own: &Path, id: &str) -> Result<PathBuf, Failure> {
        let around = own.parent().unwrap_or(own);
        let doing = format!("look at {}", around.display());
        if folders::is_no_place_for_a_top(around).doing(&doing)?.is_none() {
            return Ok(own.to_owned());
        }
        let is_good = |place: &&PathBuf| is_bad(place).is_ok_and(|reason| reason.is_none());
        let failure = || Failure::new("there is no place on a disk for what the container writes");
        let places = others(std::env::var_os("TMPDIR"));
        let place = places.iter().find(is_good);
        let place = place.ok_or_else(|| failure().remedy("set TMPDIR to a directory on a disk"))?;
        Ok(place.join(format!("{KEPT_PREFIX}{id}")))
    }

    /// Uses a directory that stays, and what an earlier container has left in it.
    ///
    /// Programs that it holds may be set-id: where others can enter it, they could run them.
    pub(crate) fn keep(path: &Path, force: bool, parts: &[&Path]) -> Result<Scratch, Failure> {
        let doing = format!("keep what is written in {}", path.display());
        make_if_missing(path).doing(&doing)?;
        let metadata = fs::symlink_metadata(path).doing(&doing)?;
        if !metadata.is_dir() {
            return Err(Failure::because(&doing, "it is not a directory"));
        }
        if !force && (metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0) {
            let reason = "others can enter it, and would find set-id programs that a container has made";
            return Err(Failure::because(&doing, reason).remedy("chmod 700 it, or say --force"));
        }
        let lock = lock(path, Kind::Shared).doing(&doing)?;
        let lock = lock.ok_or_else(|| Failure::because(&doing, "somebody else has locked it"))?;
        let passing: Vec<PathBuf> = parts.iter().map(|part| path.join(name_of(INIT, part))).collect();
        // A launcher that was killed may have left some.
        passing.iter().try_for_each(|init| remove(init)).doing(&doing)?;
        let scratch = Scratch { path: path.to_owned(), is_kept: true, passing, _lock: lock };
        make_if_missing(&scratch.mount_point()).doing(&doing)?;
        make_tops(path, parts).doing(&doing)?;
        Ok(scratch)
    }

    /// The writable branch over a part of the host: its `/`, or what is mounted below.
    pub(crate) fn top(&self, part: &Path) -> PathBuf {
        top_in(&self.path, part)
    }

    /// What a container on an image has of its own at a path, beside what is written over the image.
    pub(crate) fn volume(&self, target: &Path) -> PathBuf {
        self.path.join(name_of(VOLUME, target))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory, for the container to mount its union on.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.path.join(MOUNT_POINT)
    }

    /// An empty directory, for what is the container's own between its top and its image, or a part of the host.
    pub(crate) fn init(&self, part: &Path) -> Result<PathBuf, Failure> {
        let path = self.path.join(name_of(INIT, part));
        fs::create_dir(&path).doing("make the container's init branch")?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_kept {
            for init in &self.passing {
                if let Err(error) = remove(init) {
                    warn(format_args!("cannot remove {}: {error}", init.display()));
                }
            }
            return;
        }
        if let Err(error) = remove(&self.path).and_then(|()| folders::remove_empty_around(&self.path)) {
            warn(format_args!("cannot remove {}: {error}", self.path.display()));
        }
    }
}

/// Makes a top for each part of the host in a scratch directory, where it is not there.
pub(crate) fn make_tops(directory: &Path, parts: &[&Path]) -> io::Result<()> {
    parts.iter().try_for_each(|part| make_top(&directory.join(name_of(TOP, part)), part))
}

fn make_if_missing(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// A top shows as the root of what it lies over, so it looks like that.
fn make_top(top: &Path, part: &Path) -> io::Result<()> {
    let below = fs::metadata(part)?;
    match fs::create_dir(top) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result?,
    }
    // In the namespace of an ordinary user all owners of the host are nobody or root, and shown as root.
    if is_root() {
        chown(top, Some(below.uid()), Some(below.gid()))?;
    }
    fs::set_permissions(top, below.permissions())?;
    if is_root() { Ok(()) } else { apt::make_room(top, part) }
}

/// The top over a part of the host, or over an image, in a directory of a container.
pub(crate) fn top_in(directory: &Path, part: &Path) -> PathBuf {
    directory.join(name_of(TOP, part))
}

/// `top` for `/`, and `top%srv%data` for `/srv/data`; a percent sign is doubled.
fn name_of(what: &str, part: &Path) -> OsString {
    let mut name = what.as_bytes().to_vec();
    for component in part.components().filter(|component| matches!(component, Component::Normal(_))) {
        name.push(b'%');
        name.extend(
            component
                .as_os_str()
                .as_bytes()
                .iter()
                .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'%' { 2 } else { 1 })),
        );
    }
    OsString::from_vec(name)
}

/// Where what is written goes, best first: the folder for what stays, and those that every machine has.
fn places() -> Vec<PathBuf> {
    folders::for_what_stays().into_iter().chain(others(std::env::var_os("TMPDIR"))).collect()
}

fn others(tmpdir: Option<OsString>) -> Vec<PathBuf> {
    let tmpdir = tmpdir.map(PathBuf::from).filter(|path| path.is_absolute() && *path != Path::new(LAST_PLACE));
    tmpdir.into_iter().chain([LAST_PLACE.into()]).collect()
}

/// What keeps a place from holding tops. The folder for what stays has others after it; of those, one in memory is refused.
fn is_bad(place: &Path) -> io::Result<Option<&'static str>> {
    match folders::is_ours(place) {
        true => folders::is_no_place_for_a_top(place),
        false => Ok(folders::is_in_memory(place)?.then_some("it is not on a disk")),
    }
}

/// What a container writes may be secret, or a set-id program: nobody else gets in.
fn make_private_directory(place: &Path) -> io::Result<PathBuf> {
    let private = fs::Permissions::from_mode(0o700);
    Ok(tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(place)?.keep())
}

/// Removes what killed launchers have left in all places.
pub(crate) fn remove_stale() {
    places().iter().for_each(|place| remove_leftovers(place));
}

/// The same in the folder that nobody else uses: one look.
pub(crate) fn remove_stale_of_ours() {
    folders::for_what_stays().iter().for_each(|place| remove_leftovers(place));
}

fn remove_leftovers(place: &Path) {
    // A place that is not there has no leftovers; what else is wrong with it shows when it is to be used.
    let Ok(entries) = fs::read_dir(place) else { return };
    let begins = |entry: &fs::DirEntry, prefix: &str| entry.file_name().as_bytes().starts_with(prefix.as_bytes());
    let ours = entries.flatten().filter(|entry| begins(entry, PREFIX) && !begins(entry, KEPT_PREFIX));
    for path in ours.map(|entry| entry.path()).filter(|path| may_be_ours(path)) {
        let result = lock(&path, Kind::Exclusive).and_then(|lock| match lock {
            Some(_held) => remove(&path).and_then(|()| folders::remove_empty_around(&path)),
            None => Ok(()),
        });
        if let Err(error) = result {
            warn(format_args!("cannot remove what another start left in {}: {error}", path.display()));
        }
    }
}

/// In a directory that everybody writes to, anybody may use our names.
fn may_be_ours(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.permissions().mode() & 0o7777 == 0o700
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On disk, for /tmp may be in memory.
    fn place() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }

    fn leave_behind(place: &Path) -> PathBuf {
        let path = make_private_directory(place).unwrap();
        fs::create_dir_all(path.join("top/etc")).unwrap();
        path
    }

    #[test]
    fn it_is_private_and_its_top_looks_like_the_hosts_root() {
        let place = place();
        let scratch = Scratch::create_in(place.path(), &[Path::new("/"), Path::new("/tmp")]).unwrap();
        assert_eq!(fs::metadata(&scratch.path).unwrap().mode() & 0o7777, 0o700);
        for part in ["/", "/tmp"] {
            let (top, below) = (fs::metadata(scratch.top(part.as_ref())).unwrap(), fs::metadata(part).unwrap());
            assert_eq!((top.mode(), top.gid()), (below.mode(), below.gid()));
        }
        let path = scratch.path.clone();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn every_part_has_a_top_of_its_own() {
        for (part, name) in [("/", "top"), ("/srv/data", "top%srv%data"), ("/srv%data", "top%srv%%data")] {
            assert_eq!(name_of(TOP, Path::new(part)), name, "{part}");
        }
    }

    #[test]
    fn a_directory_in_memory_is_enough_for_a_mount_point_only() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(Scratch::create_in(place.path(), &[]).unwrap().mount_point().exists());
        assert!(Scratch::create_in(place.path(), &[Path::new("/")]).is_err());
    }

    #[test]
    fn leftovers_go_and_those_in_use_stay() {
        let place = place();
        let abandoned = leave_behind(place.path());
        let used = Scratch::create_in(place.path(), &[Path::new("/")]).unwrap();
        remove_leftovers(place.path());
        assert!(!abandoned.exists());
        assert!(used.top(Path::new("/")).exists());
    }

    #[test]
    fn a_daemon_that_still_runs_keeps_the_directory() {
        let place = place();
        let path = leave_behind(place.path());
        let held = crate::lock::hold(&path).unwrap();
        remove_leftovers(place.path());
        assert!(path.exists());
        drop(held);
        remove_leftovers(place.path());
        assert!(!path.exists());
    }

    #[test]
    fn what_others_put_under_our_names_is_left_alone() {
        let place = place();
        let public = place.path().join("rlaunch-public");
        fs::create_dir(&public).unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o755)).unwrap();
        let precious = place.path().join("precious");
        fs::create_dir(&precious).unwrap();
        std::os::unix::fs::symlink(&precious, place.path().join("rlaunch-link")).unwrap();
        fs::write(place.path().join("rlaunch-file"), "").unwrap();
        remove_leftovers(place.path());
        for name in ["rlaunch-public", "precious", "rlaunch-link", "rlaunch-file"] {
            assert!(fs::symlink_metadata(place.path().join(name)).is_ok(), "{name}");
        }
    }

    #[test]
    fn tmpdir_comes_before_what_every_machine_has_and_must_be_absolute() {
        for (tmpdir, expected) in [
            (None, &["/var/tmp"][..]),
            (Some("/big"), &["/big", "/var/tmp"]),
            (Some("/var/tmp"), &["/var/tmp"]),
            (Some("relative"), &["/var/tmp"]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(others(tmpdir.map(OsString::from)), expected);
        }
    }
}
