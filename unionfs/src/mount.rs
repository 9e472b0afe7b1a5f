//! Mounting: opening /dev/fuse, the mount call, and the unmount.
//!
//! Opening the device, attaching it somewhere, and serving are three steps, so that a launcher
//! can do each in the process and namespace where it belongs; [`mount`] does the first two.
//! The kernel library's own mount is not used: it unmounts whatever lies at the path when it is
//! dropped. Here a mount is told from others by what it is ([`Mounted`]), never by where it is.

mod fusermount;
pub mod holders;
pub mod mounted;
pub mod table;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::process::{getegid, geteuid};

pub use mounted::{Mounted, read_further_ahead};
pub use table::DeviceNumber;

/// The type in /proc/mounts, where nobody asks for another.
pub const FS_TYPE: &str = "fuse.runionfs";

/// The number of /dev/fuse (`admin-guide/devices.txt`).
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// The kernel takes one page for the source, with a zero byte at its end.
const LONGEST_SOURCE: usize = 4095;

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("cannot use {} as the mount point: {}{}", path.display(), error.desc(), dead(*error))]
    Target {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        error: Errno,
    },
    /// The device cannot be opened.
    #[error("cannot open /dev/fuse: {}{}", .0.desc(), device_remedy(*.0))]
    Device(Errno),
    /// What was given in the place of a mount point.
    #[error("{} is no open /dev/fuse that is mounted, which a mount point of that name has to be", .0.display())]
    NoDevice(PathBuf),
    /// mount(2) failed.
    #[error("cannot mount on {}: {}", path.display(), error.desc())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        error: Errno,
    },
    /// fusermount3 failed, or is not there.
    #[error("cannot mount on {} without privilege: {reason}", path.display())]
    Fusermount {
        /// The mount point.
        path: PathBuf,
        /// What fusermount3 said.
        reason: String,
    },
    /// The table of mounts cannot be read.
    #[error("cannot read the table of mounts: {0} (mount /proc first)")]
    NoTable(io::Error),
    /// There is no union whose flags could be changed.
    #[error("{} is no union that is mounted", .0.display())]
    NotMounted(PathBuf),
    /// The same union is there already.
    #[error("{0} is a mount of the same branches already ('runionfs umount {0}' takes it away, dead or alive)", path.display())]
    Already {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount is not to be seen at its mount point.
    #[error("mounted, but {} leads elsewhere; was something else mounted there at the same time?", path.display())]
    Elsewhere {
        /// The mount point.
        path: PathBuf,
    },
}

fn dead(error: Errno) -> &'static str {
    match error {
        Errno::ENOTCONN => " (a dead mount lies there; umount it first)",
        _ => "",
    }
}

fn device_remedy(error: Errno) -> &'static str {
    match error {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => " (load the module: modprobe fuse)",
        _ => "",
    }
}

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The source in /proc/mounts; shortened where the kernel takes no more.
    pub source: OsString,
    /// Flags as mount(2) takes them.
    pub flags: MsFlags,
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// What stands after `fuse.` in the type; nothing shows plain `fuse`.
    pub subtype: OsString,
    /// More words for the kernel, such as labels for SELinux.
    pub data: Vec<OsString>,
    /// Whether the same union may be laid on itself, as fuse-overlayfs does.
    pub stacks: bool,
}

impl MountOptions {
    /// Options of a mount with this source and type; other users may use it if `allow_other` says so.
    pub fn new(source: OsString, flags: MsFlags, allow_other: bool) -> MountOptions {
        MountOptions { source, flags, allow_other, subtype: "runionfs".into(), data: Vec::new(), stacks: false }
    }

    /// The type as mount(2) takes it.
    fn fs_type(&self) -> OsString {
        match self.subtype.is_empty() {
            true => "fuse".into(),
            false => [OsStr::new("fuse."), &self.subtype].into_iter().collect(),
        }
    }
}

/// Whether a file system of this type may be a union: its name can be chosen.
pub fn is_fuse(fs_type: &OsStr) -> bool {
    fs_type == "fuse" || fs_type.as_bytes().starts_with(b"fuse.")
}

/// Opens /dev/fuse, for one mount.
pub fn open_device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The device that whoever starts us has mounted already, and names in the place of the mount point: `/dev/fd/N`, as
/// mount.fuse3(8) does where it takes the privilege to mount away (`drop_privileges`). Nothing where a path is named.
///
/// # Errors
/// Where it is not what it has to be.
pub fn given_device(target: &Path) -> Result<Option<OwnedFd>, MountError> {
    let number = target.as_os_str().as_bytes().strip_prefix(b"/dev/fd/");
    let Some(number) = number.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok()) else {
        return Ok(None);
    };
    let no_device = || MountError::NoDevice(target.to_path_buf());
    let device = crate::sys::inherited(number).map_err(|_| no_device())?;
    let about = rustix::fs::fstat(&device).map_err(|_| no_device())?;
    let is_device = FileType::from_raw_mode(about.st_mode) == FileType::CharacterDevice;
    let number = (rustix::fs::major(about.st_rdev), rustix::fs::minor(about.st_rdev));
    if is_device && number == FUSE_DEVICE { Ok(Some(device)) } else { Err(no_device()) }
}

/// Mounts the device on a directory by mount(2), always with `default_permissions`.
///
/// Nothing is served yet, so whoever looks at the directory from now on waits.
pub fn attach(device: BorrowedFd<'_>, target: &Path, options: &MountOptions) -> Result<(), MountError> {
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw()
    );
    let more =
        options.allow_other.then(|| OsString::from("allow_other")).into_iter().chain(options.data.iter().cloned());
    let words: Vec<OsString> = [OsString::from(data)].into_iter().chain(more).collect();
    let data = words.join(OsStr::new(","));
    let (source, fs_type) = (shortened(&options.source), options.fs_type());
    nix::mount::mount(Some(&*source), target, Some(&*fs_type), options.flags, Some(&*data))
        .map_err(|error| MountError::Mount { path: target.to_path_buf(), error })
}

/// A mount point that can be used: its path without symbolic links, from the root, for the daemon
/// leaves its directory.
#[derive(Debug)]
pub struct Target(PathBuf);

impl Target {
    /// Checks a mount point before anything is done.
    pub fn check(target: &Path, options: &MountOptions) -> Result<Target, MountError> {
        let failed = |error| MountError::Target { path: target.to_path_buf(), error };
        let resolved = target.canonicalize().map_err(|error| failed(errno_of(&error)))?;
        // no request goes to a file system that lies there already, so that a stuck one stops nobody
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let there = rustix::fs::open(&resolved, flags, Mode::empty()).map_err(|error| failed(errno(error)))?;
        if !options.stacks && may_be_mount(&there) {
            refuse_same(&resolved, options)?;
        }
        Ok(Target(resolved))
    }
}

/// Opens a device and mounts it, with the help of fusermount3 where the privilege is missing.
pub fn mount(Target(target): Target, options: &MountOptions) -> Result<(OwnedFd, Mounted), MountError> {
    let device = match attach_own(&target, options) {
        Err(MountError::Mount { error: Errno::EPERM, .. } | MountError::Device(Errno::EACCES)) => {
            fusermount::mount(&target, options)?
        }
        other => other?,
    };
    Ok((device, Mounted::find(target)?))
}

/// Changes the flags of a union that is mounted, as `mount -o remount,ro` asks for; `flags` are all that it has then.
pub fn remount(target: &Path, flags: MsFlags) -> Result<(), MountError> {
    let failed = |error| MountError::Mount { path: target.to_path_buf(), error };
    let resolved = target.canonicalize().map_err(|error| failed(errno_of(&error)))?;
    let table = table::read().map_err(MountError::NoTable)?;
    if table::at(&table, &resolved).is_none_or(|entry| !is_fuse(&entry.fs_type)) {
        return Err(MountError::NotMounted(resolved));
    }
    let flags = flags | MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&OsStr>, &resolved, None::<&OsStr>, flags, None::<&OsStr>).map_err(failed)
}

/// Whether something is mounted at a directory, as far as it can be told without the table (Linux 5.8).
fn may_be_mount(directory: &OwnedFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let about = rustix::fs::statx(directory, "", flags, StatxFlags::empty());
    about.map_or(true, |about| {
        let told = about.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        !told || about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

/// Refuses to lay a union on itself, as a second call of the same command would.
fn refuse_same(target: &Path, options: &MountOptions) -> Result<(), MountError> {
    let table = table::read().map_err(MountError::NoTable)?;
    match table::at(&table, target) {
        Some(entry) if entry.fs_type == options.fs_type() && entry.source == shortened(&options.source) => {
            Err(MountError::Already { path: target.to_path_buf() })
        }
        _ => Ok(()),
    }
}

fn attach_own(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = open_device().map_err(|error| MountError::Device(errno_of(&error)))?;
    attach(device.as_fd(), target, options)?;
    Ok(device)
}

/// The source as the kernel takes it: the beginning, and an ellipsis where it is too long.
pub fn shortened(source: &OsStr) -> OsString {
    let bytes = source.as_bytes();
    if bytes.len() <= LONGEST_SOURCE {
        return source.to_os_string();
    }
    let ellipsis = b"...";
    OsString::from_vec([&bytes[..LONGEST_SOURCE - ellipsis.len()], ellipsis].concat())
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_no_longer_than_the_kernel_takes() {
        let short = OsString::from("/a=rw:/b=ro");
        assert_eq!(shortened(&short), short);
        let fits = OsString::from("x".repeat(4095));
        assert_eq!(shortened(&fits), fits);
        let long = shortened(OsStr::new(&"x".repeat(4096)));
        assert_eq!(long.len(), 4095);
        assert!(long.as_bytes().ends_with(b"x..."));
    }

    #[test]
    fn a_file_is_no_mount_point() {
        let options = MountOptions::new("x".into(), MsFlags::empty(), false);
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Target::check(file.path(), &options).unwrap_err();
        assert!(matches!(error, MountError::Target { error: Errno::ENOTDIR, .. }), "{error}");
        let error = Target::check(Path::new("/nonexistent"), &options).unwrap_err();
        assert!(matches!(error, MountError::Target { error: Errno::ENOENT, .. }), "{error}");
    }
}
