//! Namespaces: which ones a container gets, and how its mount tree is cut off and entered.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use crate::message::warn;
use crate::rootfs::Rootfs;

/// The namespaces of a container's own.
pub(crate) const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// From here on no mount of ours reaches the host. Its unmounts still reach us, so that we keep nothing of it busy.
pub(crate) fn isolate_mounts() -> Result<(), Errno> {
    change_propagation(Path::new("/"), MsFlags::MS_SLAVE)
}

/// Makes a directory a mount of its own, which pivot_root(2) asks for, and opens it.
pub(crate) fn bind_root(tree: &Path) -> Result<Rootfs, Errno> {
    mount(Some(tree), tree, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    change_propagation(tree, MsFlags::MS_PRIVATE)?;
    Rootfs::open(tree)
}

fn change_propagation(path: &Path, kind: MsFlags) -> Result<(), Errno> {
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_REC | kind, None::<&str>)
}

/// Makes the new root `/` and detaches the old one.
pub(crate) fn enter(root: &Rootfs) -> Result<(), Errno> {
    let old = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    fchdir(root.directory())?;
    match pivot_root(".", ".") {
        // The root of an initramfs can neither be moved nor left.
        Err(Errno::EINVAL) => return cover(),
        result => result?,
    }
    // The old root now lies on the new one: see pivot_root(2), "pivot_root(".", ".")". It is a slave, so detaching it
    // detaches nothing of the host's.
    fchdir(&old)?;
    change_propagation(Path::new("."), MsFlags::MS_SLAVE)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Moves the new root, which is the working directory, over the old one, where that cannot be exchanged.
fn cover() -> Result<(), Errno> {
    warn(
        "the root of this machine cannot be exchanged, as on an initramfs; the container is held by chroot only, which a \
         privileged process can leave",
    );
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")
}
