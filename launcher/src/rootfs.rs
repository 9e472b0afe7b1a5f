//! The root of a container while it is being filled: mounts, devices, links and files, relative to an open directory.
//!
//! What lies in a root is not to be trusted: its `/dev` may be a link that leads to the host's. So every path is walked
//! component by component, no link is ever followed, and a mount goes onto the descriptor that the walk ended with.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, makedev, mkdirat, mknodat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{symlinkat, write};

use crate::message::warn;
use crate::steps::{Device, FileSystem};

mod confined;
mod flags;
mod fresh;
mod propagation;
mod resolve;
mod view;
mod volumes;

pub(crate) use propagation::open_shared;

const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// File systems whose content decides what a container may do: what is hidden there, and which devices it has.
const HELD: [&str; 3] = ["/proc", "/sys", "/dev"];

/// An open root directory.
#[derive(Debug)]
pub(crate) struct Rootfs {
    directory: OwnedFd,
    /// Where we have mounted something, and what. All that lies in there is found through these: others who may write to the
    /// root can exchange the directories below such a mount at any time (CVE-2025-31133, CVE-2025-52565).
    held: RefCell<Vec<(&'static Path, OwnedFd)>>,
}

impl From<OwnedFd> for Rootfs {
    fn from(directory: OwnedFd) -> Rootfs {
        Rootfs { directory, held: RefCell::default() }
    }
}

impl Rootfs {
    /// Opens a directory of the host as the root; what is mounted there now is what counts.
    pub(crate) fn open(path: &Path) -> Result<Rootfs, Errno> {
        let directory = openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Rootfs::from(directory))
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Mounts a fresh file system; its directory is made where it is missing.
    pub(crate) fn mount(&self, file_system: &FileSystem) -> Result<(), Errno> {
        let target = self.make_directories(Path::new(file_system.at), Mode::from_bits_truncate(0o755))?;
        let FileSystem { kind, at, flags, data } = *file_system;
        match self.mount_and_hold(file_system, &target) {
            // Its group is not there in a user namespace with one id.
            Err(Errno::EINVAL) if kind == "devpts" => {
                mount(Some(kind), &path_of(&target), Some(kind), flags, Some(data.trim_end_matches(",gid=5")))
            }
            // It belongs to the owner of the network, and the host's network to somebody outside of a user namespace.
            Err(Errno::EPERM) if kind == "sysfs" => self.show_all_of(Path::new(at)),
            // Where something is mounted in the /proc around us, a user namespace gets none without it: mount_namespaces(7).
            Err(Errno::EPERM) if kind == "proc" => {
                warn(
                    "the container cannot have a /proc of its own, because the machine hides parts of its /proc, or the \
                     processes are the machine's; it is shown that one, read-only",
                );
                self.show_all_of(Path::new(at))
            }
            result => result,
        }
    }

    fn mount_and_hold(&self, file_system: &FileSystem, target: &OwnedFd) -> Result<(), Errno> {
        let FileSystem { kind, at, flags, data } = *file_system;
        let is_held = HELD.contains(&at);
        match if is_held { fresh::make(file_system) } else { Err(Errno::ENOSYS) } {
            Ok(made) => self.place_and_hold(made, Path::new(at), target),
            // Linux before 5.2, or a filter around us that does not know the call; what is not allowed is so by either.
            Err(Errno::ENOSYS | Errno::EPERM) => mount(Some(kind), &path_of(target), Some(kind), flags, Some(data)),
            Err(errno) => Err(errno),
        }
    }

    fn place_and_hold(&self, made: OwnedFd, at: &'static Path, target: &OwnedFd) -> Result<(), Errno> {
        propagation::attach(&made, target)?;
        self.held.borrow_mut().push((at, made));
        Ok(())
    }

    /// Binds what the host has at `path`, with all that is mounted there, and makes it read-only. In a user namespace it
    /// cannot be had without what is mounted there; what that allows is the host's to say.
    fn show_all_of(&self, path: &'static Path) -> Result<(), Errno> {
        let target = self.walk_directories(path)?;
        match propagation::clone(path, true) {
            Ok(tree) => self.place_and_hold(tree, path, &target)?,
            Err(Errno::ENOSYS | Errno::EPERM) => {
                mount(Some(path), &path_of(&target), None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            }
            Err(errno) => return Err(errno),
        }
        self.make_all_read_only(path)
    }

    /// Makes what is mounted there read-only, with all that is mounted in it. No file system is asked for anything, from
    /// Linux 5.12 on: it may lie on a machine that does not answer.
    fn make_all_read_only(&self, path: &Path) -> Result<(), Errno> {
        flags::set_on_all(&self.walk(path)?, MsFlags::MS_RDONLY)
    }

    /// Lets `mount` put something on a directory that is there.
    pub(crate) fn mount_on(&self, at: &Path, mount: impl FnOnce(&Path) -> Result<(), Errno>) -> Result<(), Errno> {
        mount(&path_of(&self.walk_directories(at)?))
    }

    /// Binds what the host has at `path` to the same place, and makes that read-only.
    pub(crate) fn bind_read_only(&self, path: &Path) -> Result<(), Errno> {
        self.bind(path, path)?;
        self.make_all_read_only(path)
    }

    /// Makes what is mounted there read-only.
    pub(crate) fn make_read_only(&self, path: &Path) -> Result<(), Errno> {
        flags::set_on_one(&self.walk(path)?, MsFlags::MS_RDONLY)
    }

    fn bind(&self, source: &Path, at: &Path) -> Result<(), Errno> {
        let target = self.walk(at)?;
        // Mounting a directory over a link would follow it, or be refused with ENOTDIR: tell what it is.
        if is_link(&target)? {
            return Err(Errno::ELOOP);
        }
        mount(Some(source), &path_of(&target), None::<&str>, MsFlags::MS_BIND, None::<&str>)
    }

    /// Makes character devices with mode 0666, or binds the host's where no devices can be made.
    pub(crate) fn make_devices(&self, directory: &Path, devices: &[Device]) -> Result<(), Errno> {
        let parent = self.walk_directories(directory)?;
        devices.iter().try_for_each(|device| self.make_device(&parent, directory, device))
    }

    fn make_device(&self, parent: &OwnedFd, directory: &Path, device: &Device) -> Result<(), Errno> {
        let mode = Mode::from_bits_truncate(0o666);
        match mknodat(parent, device.name, SFlag::S_IFCHR, mode, makedev(device.major, device.minor)) {
            Err(Errno::EPERM) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(parent, device.name, flags, mode)?;
                self.bind(&Path::new("/dev").join(device.name), &directory.join(device.name))
            }
            result => result,
        }
    }

    /// Makes symbolic links.
    pub(crate) fn make_links(&self, directory: &Path, links: &[(&str, &str)]) -> Result<(), Errno> {
        let parent = self.walk_directories(directory)?;
        links.iter().try_for_each(|(name, to)| symlinkat(*to, &parent, *name))
    }

    /// Makes a directory and those above it, where they are missing; `mode` is that of the last one.
    pub(crate) fn make_directory(&self, at: &Path, mode: u32) -> Result<(), Errno> {
        self.make_directories(at, Mode::from_bits_truncate(mode)).map(drop)
    }

    /// Makes a file that is not there yet.
    pub(crate) fn make_file(&self, at: &Path, content: &[u8]) -> Result<(), Errno> {
        let (parent, name) = self.parent_of(at)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&parent, name, flags, Mode::from_bits_truncate(0o644))?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        // Not what is left of the mode by a umask.
        fchmod(&file, Mode::from_bits_truncate(0o644))
    }

    /// Opens what is at `path`; the last component may be anything, also a link itself.
    fn walk(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let is_held = self.with_start(path, |_, below| below.as_os_str().is_empty());
        let Some(name) = path.file_name().filter(|_| !is_held) else { return self.walk_directories(path) };
        let slowly = || openat(&self.parent_of(path)?.0, name, HANDLE, Mode::empty());
        self.walk_at_once(path, HANDLE).unwrap_or_else(slowly)
    }

    fn parent_of<'path>(&self, path: &'path Path) -> Result<(OwnedFd, &'path OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        Ok((self.walk_directories(path.parent().ok_or(Errno::EINVAL)?)?, name))
    }

    fn walk_directories(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.walk_at_once(path, HANDLE | OFlag::O_DIRECTORY).unwrap_or_else(|| self.walk_one_by_one(path))
    }

    /// The kernel's own walk, Linux 5.6. `None` where it does not say what is wrong as exactly as ours.
    fn walk_at_once(&self, path: &Path, flags: OFlag) -> Option<Result<OwnedFd, Errno>> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        // RESOLVE_BENEATH allows `..` below the root, which no path of ours has.
        components(path).ok()?;
        self.with_start(path, |start, below| {
            let below = Some(below).filter(|below| !below.as_os_str().is_empty())?;
            match openat2(start, below, OpenHow::new().flags(flags).resolve(resolve)) {
                Err(Errno::ENOENT) => Some(Err(Errno::ENOENT)),
                result => result.ok().map(Ok),
            }
        })
    }

    fn walk_one_by_one(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.with_start(path, |start, below| {
            let start = start.try_clone_to_owned().map_err(|error| crate::failure::errno_of(&error))?;
            components(below)?.into_iter().try_fold(start, |directory, name| open_directory(&directory, name))
        })
    }

    /// Walks a path from where its walk begins: from what we have mounted on the way, or from the root.
    fn with_start<T>(&self, path: &Path, walk: impl FnOnce(BorrowedFd<'_>, &Path) -> T) -> T {
        let held = self.held.borrow();
        let in_it = held.iter().rev().find_map(|(at, mount)| Some((mount, path.strip_prefix(at).ok()?)));
        let (start, below) = in_it.unwrap_or_else(|| (&self.directory, path.strip_prefix("/").unwrap_or(path)));
        walk(start.as_fd(), below)
    }

    fn make_directories(&self, path: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
        match self.walk_directories(path) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        let above = path.parent().ok_or(Errno::EINVAL)?;
        let parent = self.make_directories(above, Mode::from_bits_truncate(0o755))?;
        match mkdirat(&parent, name, mode) {
            // Another container is being started on the same tree.
            Ok(()) | Err(Errno::EEXIST) => open_directory(&parent, name),
            Err(errno) => Err(errno),
        }
    }
}

/// The names in a path. One that could lead upwards is refused.
fn components(path: &Path) -> Result<Vec<&OsStr>, Errno> {
    let name = |component| match component {
        Component::RootDir => None,
        Component::Normal(name) => Some(Ok(name)),
        Component::CurDir | Component::ParentDir | Component::Prefix(_) => Some(Err(Errno::EINVAL)),
    };
    path.components().filter_map(name).collect()
}

/// Enters one directory, and a mount on it; a link is ELOOP, anything else that is not a directory ENOTDIR.
fn open_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    match openat(parent, name, HANDLE | OFlag::O_DIRECTORY, Mode::empty()) {
        // The kernel says ENOTDIR for a link as well.
        Err(Errno::ENOTDIR) if is_link(&openat(parent, name, HANDLE, Mode::empty())?)? => Err(Errno::ELOOP),
        result => result,
    }
}

fn is_link(handle: &OwnedFd) -> Result<bool, Errno> {
    Ok(kind(handle)? == SFlag::S_IFLNK)
}

fn kind(handle: &OwnedFd) -> Result<SFlag, Errno> {
    Ok(SFlag::from_bits_truncate(fstat(handle)?.st_mode) & SFlag::S_IFMT)
}

/// A path to an open descriptor, for calls that take none. It cannot be redirected: /proc is still the host's.
fn path_of(handle: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", handle.as_raw_fd()).into()
}

/// The flags of the mount on which `handle` lies.
fn mount_flags(handle: &OwnedFd) -> Result<MsFlags, Errno> {
    let set = fstatvfs(handle)?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs.into_iter().filter(|(bit, _)| set.contains(*bit)).map(|(_, flag)| flag).collect())
}
