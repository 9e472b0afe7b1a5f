//! A mount of ours: told from others by its identity, unmounted by it, gone with its owner.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::mount::MntFlags;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::{DeviceNumber, MountError, errno, is_fuse, table};
use crate::proc;
use crate::sys::file_system_of_mount;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): an id that is never given again.
const UNIQUE_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// `FUSE_SUPER_MAGIC`, statfs(2).
const FUSE: u64 = 0x6573_5546;

/// In KiB.
const READ_AHEAD: &str = "1024";

/// What tells a mount from every other. As long as our file system is mounted anywhere, nothing
/// else has its device number; the id tells this mount from a bind of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: DeviceNumber,
    /// The mount's id: unique since Linux 6.8, else used again after the mount's end; not known
    /// before 5.8.
    id: Option<u64>,
}

/// What lies at a path.
#[derive(Debug)]
struct Seen {
    identity: Identity,
    /// The id is never given again.
    unique: bool,
}

impl Seen {
    /// Whether it is a mount as we make them.
    fn is_union(&self, target: &Path) -> Result<bool, MountError> {
        // to read the whole table takes longer than all else that is asked for a mount
        if let Some(id) = self.identity.id.filter(|_| self.unique)
            && let Ok(magic) = file_system_of_mount(id)
        {
            return Ok(magic == FUSE);
        }
        let table = table::read().map_err(MountError::NoTable)?;
        let entry = table::at(&table, target);
        Ok(entry.is_some_and(|entry| is_fuse(&entry.fs_type) && entry.device == self.identity.device))
    }
}

/// A mount of ours. Dropping it unmounts it, unless it was [released](Mounted::release).
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    identity: Identity,
    released: AtomicBool,
}

impl Mounted {
    /// Takes over what was just mounted at this path, which must be resolved.
    pub fn find(target: PathBuf) -> Result<Mounted, MountError> {
        let (_, seen) = look(&target).map_err(|error| MountError::Mount { path: target.clone(), error })?;
        if !seen.is_union(&target)? {
            return Err(MountError::Elsewhere { path: target });
        }
        Ok(Mounted { target, identity: seen.identity, released: AtomicBool::new(false) })
    }

    /// Where it was mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The number of its device.
    pub fn device(&self) -> DeviceNumber {
        self.identity.device
    }

    /// Checks that its path leads to it.
    pub fn check(&self) -> Result<(), MountError> {
        match look(&self.target) {
            Ok((_, seen)) if seen.identity == self.identity => Ok(()),
            _ => Err(MountError::Elsewhere { path: self.target.clone() }),
        }
    }

    /// Gives it up: it is gone, or somebody else's to unmount. Its path is not touched any more.
    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Takes it out of the tree of mounts; it lives on for those who have files open in it.
    ///
    /// Whatever else lies at its path is left alone. If it is not to be found, covered by
    /// another mount or seen in other namespaces only, the answer is ENOENT.
    pub fn unmount(&self) -> io::Result<()> {
        let (root, target) = self.search()?.ok_or(Errno::ENOENT)?;
        // by the descriptor: what comes to lie at the path meanwhile is not what is unmounted
        let by_descriptor = proc::path(&format!("self/fd/{}", root.as_raw_fd()));
        match nix::mount::umount2(&by_descriptor, MntFlags::MNT_DETACH) {
            // fusermount3 knows the path only
            Err(Errno::EPERM) => unmount_as_user(&target, true),
            other => Ok(other?),
        }
    }

    /// Its root: at its mount point, or where it was moved to.
    fn search(&self) -> io::Result<Option<(OwnedFd, PathBuf)>> {
        let is_it = |target: &Path| look(target).ok().filter(|(_, seen)| seen.identity == self.identity);
        if let Some((root, _)) = is_it(&self.target) {
            return Ok(Some((root, self.target.clone())));
        }
        let table = table::read()?;
        let moved = table.into_iter().filter(|entry| entry.device == self.identity.device);
        Ok(moved.map(|entry| entry.target).find_map(|target| Some((is_it(&target)?.0, target))))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if *self.released.get_mut() {
            return;
        }
        if let Err(error) = self.unmount() {
            tracing::warn!("cannot unmount {}: {error}", self.target.display());
        }
    }
}

/// Lets the kernel read further ahead in a union than its 128 KiB, as far as one request goes; where it
/// does not let us, reads are smaller. What is said before the kernel's first request is answered has
/// no effect.
pub fn read_further_ahead(union: DeviceNumber) {
    let path = format!("/sys/class/bdi/{union}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD) {
        tracing::debug!(%error, path, "reading further ahead");
    }
}

/// Unmounts with the help of fusermount3, which lets users unmount what is theirs.
pub fn unmount_as_user(target: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(target);
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim().replace('\n', "; ")))
}

/// What is mounted at a path. Nothing is asked of the file system, which may not be served.
fn look(target: &Path) -> Result<(OwnedFd, Seen), Errno> {
    let open = || {
        let root = rustix::fs::open(target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let about = match rustix::fs::statx(&root, "", flags, StatxFlags::MNT_ID | UNIQUE_ID) {
            Err(rustix::io::Errno::NOSYS) => None,
            about => Some(about?),
        };
        Ok((root, about))
    };
    let (root, about) = open().map_err(errno)?;
    let Some(about) = about else { return look_in_table(target).map(|seen| (root, seen)) };
    let told = StatxFlags::from_bits_retain(about.stx_mask);
    let known = told.intersects(StatxFlags::MNT_ID | UNIQUE_ID);
    let device = DeviceNumber { major: about.stx_dev_major, minor: about.stx_dev_minor };
    let identity = Identity { device, id: known.then_some(about.stx_mnt_id) };
    Ok((root, Seen { identity, unique: told.contains(UNIQUE_ID) }))
}

/// The same before Linux 4.11, or behind a filter that does not know statx(2).
fn look_in_table(target: &Path) -> Result<Seen, Errno> {
    let table = table::read().map_err(|_| Errno::ENOENT)?;
    let entry = table::leading_to(&table, target).ok_or(Errno::ENOENT)?;
    Ok(Seen { identity: Identity { device: entry.device, id: Some(entry.id) }, unique: false })
}
