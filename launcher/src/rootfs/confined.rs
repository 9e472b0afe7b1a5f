//! What of a root is hidden, cannot be written, or is a device.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc::MOUNT_ATTR_RDONLY;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{HANDLE, Rootfs, flags, kind, path_of};
use crate::confine::HostDevice;
use crate::process::kernel_calls::set_mount_attributes;

impl Rootfs {
    /// Binds what is at `path` onto itself, read-only; nothing where there is nothing.
    pub(crate) fn protect(&self, path: &Path) -> Result<(), Errno> {
        let Some(target) = self.find(path)? else { return Ok(()) };
        match protect_at_once(&target) {
            // Linux before 5.12, or a filter around us.
            Err(Errno::ENOSYS | Errno::EPERM) => {}
            result => return result,
        }
        let place = path_of(&target);
        mount(Some(&place), &place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        flags::set_on_all(&self.walk(path)?, MsFlags::MS_RDONLY)
    }

    /// Covers what is at `path`: a directory by an empty one, anything else by /dev/null; nothing where there is nothing.
    pub(crate) fn mask(&self, path: &Path) -> Result<(), Errno> {
        let Some(target) = self.find(path)? else { return Ok(()) };
        let place = path_of(&target);
        if kind(&target)? == SFlag::S_IFDIR {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            return mount(Some("tmpfs"), &place, Some("tmpfs"), flags, Some("nr_blocks=1,nr_inodes=1"));
        }
        // The container's own, for its root may change the mode of it; and really that: what is bound over a path of the
        // kernel's must not be another (CVE-2025-31133).
        let null = self.walk(Path::new("/dev/null"))?;
        let found = fstat(&null)?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFCHR || found.st_rdev != makedev(1, 3) {
            return Err(Errno::ENODEV);
        }
        mount(Some(&path_of(&null)), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    }

    pub(super) fn find(&self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        match self.walk(path) {
            // Behind a link, there is nothing that we have mounted.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Makes devices inert in all that the root shows now.
    pub(crate) fn disable_devices(&self) -> Result<(), Errno> {
        flags::set_on_all(&self.directory, MsFlags::MS_NODEV)
    }

    /// Makes a node for a device of the host, or binds the host's node where none can be made.
    pub(crate) fn show_device(&self, device: &HostDevice) -> Result<(), Errno> {
        let (directory, name) = (device.target.parent(), device.target.file_name());
        let (Some(directory), Some(name)) = (directory, name) else { return Err(Errno::EINVAL) };
        let parent = self.make_directories(directory, Mode::from_bits_truncate(0o755))?;
        let kind = if device.is_block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
        match mknodat(&parent, name, kind, Mode::from_bits_truncate(device.mode), device.number) {
            Err(Errno::EPERM) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&parent, name, flags, Mode::from_bits_truncate(device.mode))?;
                return self.bind(&device.source, &device.target);
            }
            // One of those that every container has.
            Err(Errno::EEXIST) => {
                let there = fstat(&openat(&parent, name, HANDLE, Mode::empty())?)?;
                return if there.st_rdev == device.number { Ok(()) } else { Err(Errno::EEXIST) };
            }
            result => result?,
        }
        let (user, group) = device.owner;
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        fchownat(&parent, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

/// Binds what is there onto itself so that there is no moment in which it can be written, nor anything that is mounted in it.
fn protect_at_once(target: &OwnedFd) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let errno = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
    let mounts = open_tree(target, "", flags).map_err(errno)?;
    set_mount_attributes(&mounts, MOUNT_ATTR_RDONLY)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mounts, "", target, "", flags).map_err(errno)
}
