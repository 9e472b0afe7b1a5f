//! Flags of mounts, with all that is mounted in them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::openat;
use nix::libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use super::{HANDLE, mount_flags, path_of};
use crate::failure::errno_of;
use crate::mount_table::{self, Mount};
use crate::namespace::mount_of;
use crate::process::kernel_calls::set_mount_attributes;

/// Sets flags on a mount that has a place, and on all that are mounted in it.
pub(super) fn set_on_all(top: &OwnedFd, flags: MsFlags) -> Result<(), Errno> {
    if flags.is_empty() {
        return Ok(());
    }
    match set_mount_attributes(top, attributes(flags)) {
        // Linux before 5.12, or a filter around us that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => set_one_by_one(top, flags),
        result => result,
    }
}

/// The same for one mount after the other: each is found below the first by its number, so that it is the one that the
/// table means. One that another covers cannot be reached, by nobody.
fn set_one_by_one(top: &OwnedFd, flags: MsFlags) -> Result<(), Errno> {
    let table = mount_table::parse(&std::fs::read("/proc/thread-self/mountinfo").map_err(|error| errno_of(&error))?);
    let first = mount_of(top)?;
    let start = table.iter().find(|mount| mount.id == first).ok_or(Errno::EINVAL)?;
    set_on_one(top, flags)?;
    for mount in below(&table, first) {
        let Ok(path) = mount.target.strip_prefix(&start.target) else { continue };
        match walk(top, path) {
            Ok(place) if mount_of(&place)? == mount.id => set_on_one(&place, flags)?,
            // Covered by another one, or in a directory that is closed to us, and so to all that we start.
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The flags of a bind are set by a second call, which must keep those that are there: dropping them is not allowed in a
/// user namespace, and nobody asked for it anywhere else.
pub(super) fn set_on_one(place: &OwnedFd, flags: MsFlags) -> Result<(), Errno> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags | mount_flags(place)?;
    mount(None::<&str>, &path_of(place), None::<&str>, flags, None::<&str>)
}

/// The mounts that lie on a mount, or on one that does.
fn below(table: &[Mount], first: u32) -> Vec<&Mount> {
    let mut found: Vec<&Mount> = Vec::new();
    let mut above = vec![first];
    while let Some(parent) = above.pop() {
        // The uppermost mount is said to lie on itself.
        let children = table.iter().filter(|mount| mount.parent == parent && mount.id != parent);
        let children: Vec<&Mount> = children.filter(|mount| !found.iter().any(|known| known.id == mount.id)).collect();
        above.extend(children.iter().map(|mount| mount.id));
        found.extend(children);
    }
    found
}

/// Opens what lies at a path of the table, which has no links, from a mount that was opened.
fn walk(top: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let start = top.as_fd().try_clone_to_owned().map_err(|error| errno_of(&error))?;
    path.components().try_fold(start, |at, name| openat(&at, name.as_os_str(), HANDLE, Mode::empty()))
}

/// The same flags under their newer names.
pub(super) fn attributes(flags: MsFlags) -> u64 {
    let pairs = [
        (MsFlags::MS_RDONLY, MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, MOUNT_ATTR_NOEXEC),
    ];
    pairs.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, attribute)| attribute).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_lies_below_a_mount_is_found_and_nothing_beside_it() {
        let table = mount_table::parse(
            b"1 1 0:1 / / rw - tmpfs t rw\n5 1 0:2 / /a rw - tmpfs t rw\n7 5 0:3 / /a/b rw - tmpfs t rw\n\
              8 7 0:4 / /a/b/c rw - tmpfs t rw\n6 1 0:5 / /ab rw - tmpfs t rw\n9 5 0:6 / /a/d rw - tmpfs t rw\n",
        );
        let numbers = |first| {
            let mut numbers: Vec<u32> = below(&table, first).iter().map(|mount| mount.id).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!((numbers(5), numbers(8), numbers(1)), (vec![7, 8, 9], vec![], vec![5, 6, 7, 8, 9]));
    }
}
