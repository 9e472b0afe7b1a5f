//! Where this program keeps things: a folder for what runs, which every boot finds empty, and one for what stays.
//!
//! Both are the user's own and closed to others: what a container has written may be secret, or a set-id program, and what
//! a record says is believed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, fstatfs, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;

use crate::failure::{Doing as _, Failure};
use crate::rootless;

const ATTEMPTS: usize = 100;
/// linux/magic.h
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// File systems that other machines use as well, beside NFS: Lustre, Ceph, GPFS, BeeGFS, AFS, SMB, SMB 2, 9P; statfs(2).
const FAR_AWAY: [FsType; 8] = [
    FsType(0x0bd0_0bd0),
    FsType(0x00c3_6400),
    FsType(0x4750_4653),
    FsType(0x1983_0326),
    FsType(0x5346_414f),
    FsType(0xff53_4d42),
    FsType(0xfe53_4d42),
    FsType(0x0102_1997),
];

/// For what runs: /run/rlaunch, or that of the user's session.
///
/// # Errors
/// Where it cannot be found out whose it would be.
pub(crate) fn for_what_runs() -> Result<PathBuf, Failure> {
    if rootless::is_root() {
        return Ok("/run/rlaunch".into());
    }
    // Who has not logged in has none, such as a job of cron or a user of su.
    let user = rootless::user().doing("find out who starts this container")?;
    Ok(named("XDG_RUNTIME_DIR")
        .map_or_else(|| format!("/tmp/rlaunch-{user}").into(), |runtime| runtime.join("rlaunch")))
}

/// For what stays: /var/lib/rlaunch, or that of the user's data. None for a user without a home directory.
pub(crate) fn for_what_stays() -> Option<PathBuf> {
    if rootless::is_root() {
        return Some("/var/lib/rlaunch".into());
    }
    let data = named("XDG_DATA_HOME").or_else(|| Some(named("HOME")?.join(".local/share")));
    data.map(|data| data.join("rlaunch"))
}

/// Whether it is one of these two.
pub(crate) fn is_ours(folder: &Path) -> bool {
    for_what_stays().is_some_and(|ours| ours == folder) || for_what_runs().is_ok_and(|ours| ours == folder)
}

/// Removes the folders of ours around a path, as far as they are empty.
pub(crate) fn remove_empty_around(path: &Path) -> io::Result<()> {
    for folder in path.ancestors().skip(1).take_while(|folder| is_ours(folder) || folder.parent().is_some_and(is_ours))
    {
        let Err(error) = fs::remove_dir(folder) else { continue };
        match error.kind() {
            io::ErrorKind::NotFound => {}
            // In use, or a file system of its own, or where we make nothing anyway.
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::ResourceBusy
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied => break,
            _ => return Err(error),
        }
    }
    Ok(())
}

fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Makes a folder, and those around it, where it is not there. Nobody else may have made it, and nobody else can enter it
/// afterwards: one that came with a package may be open.
///
/// # Errors
/// Where that cannot be, or it is somebody else's.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        match try_make_private(folder) {
            // Somebody has found it empty and removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    Err(io::Error::other("somebody keeps removing it"))
}

fn try_make_private(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).recursive(true).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    let metadata = fs::symlink_metadata(folder)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
        return Err(io::Error::other("it is not a directory of our own"));
    }
    match metadata.mode() & 0o077 {
        0 => Ok(()),
        _ => fs::set_permissions(folder, fs::Permissions::from_mode(0o700)),
    }
}

/// Whether what is written there stays in memory.
pub(crate) fn is_in_memory(place: &Path) -> io::Result<bool> {
    let kind = statfs(place)?.filesystem_type();
    Ok(kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

/// Whether other machines use it as well, so that the kernel's locks may be those of this machine alone.
pub(crate) fn is_far_away(place: impl AsFd) -> io::Result<bool> {
    Ok(is_shared(fstatfs(place)?.filesystem_type()))
}

fn is_shared(kind: FsType) -> bool {
    kind == NFS_SUPER_MAGIC || FAR_AWAY.contains(&kind)
}

/// What keeps a place from holding what a container writes.
pub(crate) fn is_no_place_for_a_top(place: &Path) -> io::Result<Option<&'static str>> {
    if is_in_memory(place)? {
        return Ok(Some("it is not on a disk"));
    }
    if is_shared(statfs(place)?.filesystem_type()) {
        return Ok(Some("it is on another machine"));
    }
    if statfs(place)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
        return Ok(Some("it is a union itself"));
    }
    Ok(statvfs(place)?.flags().contains(FsFlags::ST_RDONLY).then_some("it is read-only"))
}
