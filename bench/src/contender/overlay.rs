//! Kernel overlayfs with its default options.

use std::io;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    move_mount,
};

use super::Stack;

/// Mounts by the calls of Linux 6.8 that take one lower directory at a time: mount(2) takes a page of options, which
/// is not enough for 500 branches.
pub(super) fn mount(stack: &Stack<'_>) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for branch in stack.lower {
        fsconfig_set_string(&context, "lowerdir+", branch)?;
    }
    if let Some(top) = stack.top {
        fsconfig_set_string(&context, "upperdir", top)?;
        fsconfig_set_string(&context, "workdir", stack.work)?;
    }
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(move_mount(&mount, "", CWD, stack.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
