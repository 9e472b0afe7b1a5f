//! The directory that a container on unions has for as long as it runs: a mount point and, for a throw-away copy, what
//! it writes.
//!
//! Whoever uses one holds a shared lock on it: the launcher, and the union's daemon, which may outlive a launcher that
//! is killed. A directory that can be locked exclusively was left behind, and the next start removes it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use rustix::fs::{AtFlags, IFlags, StatxAttributes, StatxFlags, ioctl_getflags, ioctl_setflags};

use crate::apt;
use crate::failure::{Doing as _, Failure};
use crate::folders;
use crate::lock::{Kind, Lock, lock};
use crate::message::warn;
use crate::namespace::lies_on_another_mount;
use crate::rootless::is_root;

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

/// Removes a directory and all that is in it, however deep a container has made that: a directory with content is first
/// moved up to `path`, so that neither recursion nor descriptors nor the length of a path sets a limit.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let mut removal = Removal { base: path, lifted: 0, pending: vec![path.to_owned()] };
    while let Some(directory) = removal.pending.last().cloned() {
        removal.empty(&directory)?;
        // What was lifted is pending now, and goes before what it was in.
        if removal.pending.last() != Some(&directory) {
            continue;
        }
        match in_spite_of_flags(&directory, || fs::remove_dir(&directory)) {
            // Some file systems leave names out while a directory that is being read is changed: once more.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => continue,
            result => remove_if_there(result)?,
        }
        removal.pending.pop();
    }
    Ok(())
}

struct Removal<'a> {
    base: &'a Path,
    lifted: u64,
    /// Directories to remove, all of them in the base but for the first, which is the base itself.
    pending: Vec<PathBuf>,
}

impl Removal<'_> {
    fn empty(&mut self, directory: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if !entry.file_type()?.is_dir() {
                remove_if_there(in_spite_of_flags(&path, || fs::remove_file(&path)))?;
            } else if directory != self.base {
                self.lift(&path)?;
            } else if is_mount_point(&path)? {
                return Err(io::Error::other(format!("something is mounted at {}", path.display())));
            } else {
                self.pending.push(path);
            }
        }
        Ok(())
    }

    /// Removes a directory at once if it is empty; moves it to the base for later if it is not.
    fn lift(&mut self, directory: &Path) -> io::Result<()> {
        let has_content = |error: &io::Error| error.kind() == io::ErrorKind::DirectoryNotEmpty;
        // Of one where something is mounted this is EBUSY, so nothing of that is touched.
        match in_spite_of_flags(directory, || fs::remove_dir(directory)) {
            Err(error) if has_content(&error) => {}
            result => return remove_if_there(result),
        }
        loop {
            let target = self.base.join(self.lifted.to_string());
            self.lifted += 1;
            match in_spite_of_flags(directory, || fs::rename(directory, &target)) {
                // Left by a removal that was interrupted, and pending like any other.
                Err(error) if has_content(&error) => {}
                result => {
                    self.pending.push(target);
                    return result;
                }
            }
        }
    }
}

/// Does something to an entry, once more where flags were in the way: what is immutable or may be appended to only cannot
/// be removed or renamed, and nothing in such a directory can.
fn in_spite_of_flags(path: &Path, action: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match action() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let cleared = path.parent().map_or(Ok(()), clear_flags).and_then(|()| clear_flags(path));
            // The first reason is the one that says what cannot be done.
            cleared.map_err(|_| error).and_then(|()| action())
        }
        result => result,
    }
}

fn clear_flags(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    // Others have none.
    if !kind.is_file() && !kind.is_dir() {
        return Ok(());
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let flags = ioctl_getflags(&file)?;
    let cleared = flags.difference(IFlags::IMMUTABLE | IFlags::APPEND);
    if cleared == flags { Ok(()) } else { Ok(ioctl_setflags(&file, cleared)?) }
}

/// Whether another file system begins here.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Ok(about) if about.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        // A kernel before 5.8 does not tell.
        Ok(_) | Err(rustix::io::Errno::NOSYS) => Ok(lies_on_another_mount(path)?),
        Err(error) => Err(error.into()),
    }
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
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
    fn however_deep_a_container_has_dug_it_is_removed() {
        let place = place();
        let path = leave_behind(place.path());
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o700);
        let mut directory = std::os::fd::OwnedFd::from(File::open(path.join("top")).unwrap());
        for level in 0..5_000 {
            nix::sys::stat::mkdirat(&directory, "d", mode).unwrap();
            if level % 100 == 0 {
                nix::sys::stat::mkdirat(&directory, "empty", mode).unwrap();
                nix::unistd::symlinkat("/etc", &directory, "link").unwrap();
            }
            directory = nix::fcntl::openat(&directory, "d", OFlag::O_DIRECTORY, mode).unwrap();
        }
        remove(&path).unwrap();
        assert!(!path.exists());
        assert!(Path::new("/etc").exists());
    }

    #[test]
    fn what_must_not_be_removed_is_removed_all_the_same() {
        if !geteuid().is_root() {
            return;
        }
        let place = place();
        let path = leave_behind(place.path());
        let directory = path.join("top/locked/inner");
        fs::create_dir_all(&directory).unwrap();
        for name in ["top/file", "top/locked/file", "top/locked/inner/file"] {
            fs::write(path.join(name), "").unwrap();
        }
        nix::unistd::mkfifo(&path.join("top/locked/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let set = |name: &str, flags| {
            let file = File::open(path.join(name)).unwrap();
            ioctl_setflags(&file, ioctl_getflags(&file).unwrap() | flags).is_ok()
        };
        // A file system without flags, or a root without the right to set them, is no place to try it.
        if !set("top/file", IFlags::IMMUTABLE) {
            return;
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o000)).unwrap();
        for name in ["top/locked/file", "top/locked/inner", "top/locked"] {
            assert!(set(name, IFlags::APPEND));
        }
        assert!(set("top", IFlags::IMMUTABLE));
        assert!(fs::remove_file(path.join("top/locked/pipe")).is_err());
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn an_interrupted_removal_is_taken_up_again() {
        let place = place();
        let path = leave_behind(place.path());
        for name in ["0/x/y", "1/x", "top/a/b/c", "top/d/e"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        fs::write(path.join("0/file"), "").unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
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
