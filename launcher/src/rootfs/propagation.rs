//! Mounts that container and host see of each other; see mount_namespaces(7).
//!
//! What is shared is cloned while the container's mount tree is still as the host's: from then on that has its mounts as
//! slaves, and what is made in them does not reach the host any more.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::failure::errno_of;

/// Clones what is mounted at a path of the host, with all that is mounted in it. EINVAL where that is not shared.
pub(crate) fn open_shared(source: &Path) -> Result<OwnedFd, Errno> {
    if !has_tag(&open(source)?, &["shared:"])? {
        return Err(Errno::EINVAL);
    }
    clone(source, true)
}

/// Clones what is mounted at a path, with what is mounted in it or without. The descriptor is that of the new mount, also
/// once that has a place, wherever others may have moved that to. ENOSYS before Linux 5.2.
pub(super) fn clone(source: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, source, flags).map_err(errno)
}

/// Mounts a clone; EBUSY where that would be seen by the host, because the place itself is shared.
pub(super) fn place(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    if has_tag(target, &["shared:"])? {
        return Err(Errno::EBUSY);
    }
    attach(tree, target)
}

/// Mounts something that was mounted nowhere.
pub(super) fn attach(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags).map_err(errno)
}

/// EINVAL where nothing of the host's arrives in the mount on which a path lies.
pub(super) fn check_slave(source: &Path) -> Result<(), Errno> {
    if has_tag(&open(source)?, &["master:", "shared:"])? { Ok(()) } else { Err(Errno::EINVAL) }
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether the mount on which something lies has one of these tags in the table of mounts.
fn has_tag(handle: &OwnedFd, tags: &[&str]) -> Result<bool, Errno> {
    let read = |path: &str| fs::read(path).map_err(|error| errno_of(&error));
    let about = read(&format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    let about = String::from_utf8_lossy(&about);
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim).ok_or(Errno::EINVAL)?;
    let table = read("/proc/self/mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    let line = table.lines().find(|line| line.split(' ').next() == Some(id)).ok_or(Errno::EINVAL)?;
    // The optional fields are the seventh and those that follow, up to a dash.
    let mut optional = line.split(' ').skip(6).take_while(|field| *field != "-");
    Ok(optional.any(|field| tags.iter().any(|tag| field.starts_with(tag))))
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}
