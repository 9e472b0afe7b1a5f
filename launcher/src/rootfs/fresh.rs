//! File systems that are made before they have a place, so that there is a descriptor of the mount itself; fsopen(2).

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::steps::FileSystem;

/// Makes one that is mounted nowhere yet. ENOSYS before Linux 5.2.
pub(super) fn make(file_system: &FileSystem) -> Result<OwnedFd, Errno> {
    configure(file_system).map_err(|error| Errno::from_raw(error.raw_os_error()))
}

fn configure(file_system: &FileSystem) -> rustix::io::Result<OwnedFd> {
    let FileSystem { kind, data, flags, .. } = file_system;
    let context = fsopen(*kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", *kind)?;
    for word in data.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some((name, value)) => fsconfig_set_string(&context, name, value)?,
            None => fsconfig_set_flag(&context, word)?,
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(*flags))
}

/// The same flags under their newer names.
fn attributes(flags: MsFlags) -> MountAttrFlags {
    let names = [
        (MsFlags::MS_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ];
    names.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, attribute)| attribute).collect()
}
