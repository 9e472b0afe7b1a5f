//! Volumes, memory and files of the container's own in its root.
//!
//! Their targets are paths that somebody has named, so links in the root are followed, but only as far as they lead in the
//! root itself; see `resolve`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::{HANDLE, Rootfs, flags, path_of, propagation, resolve};
use crate::network::OwnFile;
use crate::steps::FileSystem;
use crate::volume::{Propagation, Tmpfs, Volume};

/// Links to things that are missing and are to be made, one behind the other.
const MOST_LINKS: usize = 8;
/// For a few small files.
pub(super) const OWN_FILES: FileSystem = FileSystem {
    kind: "tmpfs",
    at: "/dev/shm",
    flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC),
    data: "mode=755,size=1m",
};

impl Rootfs {
    /// Shows a directory or file of the host; a mount point that is missing is made.
    pub(crate) fn bind_volume(&self, volume: &Volume) -> Result<(), Errno> {
        let Volume { source, target, .. } = volume;
        if volume.propagation == Propagation::Slave {
            propagation::check_slave(source)?;
        }
        let is_directory = std::fs::metadata(source).map_err(|error| crate::failure::errno_of(&error))?.is_dir();
        let place = self.open_target(target, is_directory)?;
        if is_directory != (super::kind(&place)? == SFlag::S_IFDIR) {
            return Err(Errno::ENOTDIR);
        }
        let bound = match propagation::clone(source, true) {
            Ok(tree) => {
                propagation::attach(&tree, &place)?;
                tree
            }
            // Before Linux 5.2, or behind a filter that does not know the call, it has to be found again, and may be another
            // by then where others write to the root.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(source), &path_of(&place), None::<&str>, bind, None::<&str>)?;
                self.resolve(target)?
            }
            Err(errno) => return Err(errno),
        };
        let kind = if volume.propagation == Propagation::Slave { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
        let all_of_it = if volume.recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        mount(None::<&str>, &path_of(&bound), None::<&str>, all_of_it | kind, None::<&str>)?;
        flags::set_on_all(&bound, volume.flags)
    }

    /// Shows what of the host was opened to be shared; a mount point that is missing is made.
    pub(crate) fn place_shared(&self, volume: &Volume, tree: &OwnedFd) -> Result<(), Errno> {
        let is_directory = super::kind(tree)? == SFlag::S_IFDIR;
        let place = self.open_target(&volume.target, is_directory)?;
        propagation::place(tree, &place)?;
        flags::set_on_all(tree, volume.flags)
    }

    /// Mounts an empty file system in memory; a mount point that is missing is made.
    pub(crate) fn mount_memory(&self, tmpfs: &Tmpfs) -> Result<(), Errno> {
        let place = self.open_target(&tmpfs.target, true)?;
        mount(Some("tmpfs"), &path_of(&place), Some("tmpfs"), tmpfs.flags, Some(tmpfs.data.as_str()))
    }

    /// Lays files of the container's own over those of the root.
    ///
    /// They lie in a file system in memory, which is mounted over /dev/shm for a moment, and lives on in the files alone.
    pub(crate) fn cover(&self, files: &[OwnFile]) -> Result<(), Errno> {
        let places = files.iter().filter_map(|file| self.place_of(file).transpose());
        let places = places.collect::<Result<Vec<_>, _>>()?;
        if places.is_empty() {
            return Ok(());
        }
        self.mount(&OWN_FILES)?;
        let memory = Rootfs::from(self.walk_directories(Path::new(OWN_FILES.at))?);
        places.iter().try_for_each(|(file, place)| cover_one(&memory, file, place))?;
        umount2(&path_of(memory.directory()), MntFlags::MNT_DETACH)
    }

    /// What a file is laid over; nothing where the root has none, and is left as it is.
    fn place_of<'file>(&self, file: &'file OwnFile) -> Result<Option<(&'file OwnFile, OwnedFd)>, Errno> {
        let at = Path::new(file.at);
        match if file.is_made { self.open_target(at, false) } else { self.resolve_outside_proc(at) } {
            Err(Errno::ENOENT | Errno::ENOTDIR) if !file.is_made => Ok(None),
            result => result.map(|place| Some((file, place))),
        }
    }

    /// Does so with those that the root does not show as they are: its top has others, from earlier.
    pub(crate) fn cover_hidden(&self, files: &[OwnFile]) -> Result<(), Errno> {
        let is_shown = |file: &OwnFile| self.content(Path::new(file.at)).is_ok_and(|content| content == file.content);
        let hidden: Vec<_> = files.iter().filter(|file| !is_shown(file)).cloned().collect();
        if hidden.is_empty() { Ok(()) } else { self.cover(&hidden) }
    }

    /// What a regular file holds, seen from inside.
    fn content(&self, path: &Path) -> Result<Vec<u8>, Errno> {
        let found = self.resolve(path)?;
        if super::kind(&found)? != SFlag::S_IFREG {
            return Err(Errno::EINVAL);
        }
        std::fs::read(path_of(&found)).map_err(|error| crate::failure::errno_of(&error))
    }

    /// Opens a mount point, and makes it and the directories above where they are missing.
    fn open_target(&self, path: &Path, is_directory: bool) -> Result<OwnedFd, Errno> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            match self.resolve_outside_proc(&path) {
                Err(Errno::ENOENT) => {}
                result => return result,
            }
            let name = path.file_name().ok_or(Errno::ENOENT)?.to_owned();
            let above = path.parent().ok_or(Errno::ENOENT)?;
            let parent = self.open_target(above, true)?;
            match readlinkat(&parent, name.as_os_str()) {
                Ok(link) => path = join(above, Path::new(&link)),
                Err(Errno::ENOENT) => return make(&parent, &name, is_directory),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::ELOOP)
    }

    /// Mounts on files of /proc would let a root decide what programs believe of the kernel.
    fn resolve_outside_proc(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let found = self.resolve(path)?;
        if fstatfs(&found)?.filesystem_type() == PROC_SUPER_MAGIC {
            return Err(Errno::EACCES);
        }
        Ok(found)
    }

    /// Opens what is at a path, seen from inside.
    fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        resolve::resolve(&self.directory, path)
    }
}

fn cover_one(memory: &Rootfs, file: &OwnFile, place: &OwnedFd) -> Result<(), Errno> {
    let source = Path::new("/").join(Path::new(file.at).file_name().ok_or(Errno::EINVAL)?);
    memory.make_file(&source, &file.content)?;
    let source = memory.walk(&source)?;
    mount(Some(&path_of(&source)), &path_of(place), None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

fn make(parent: impl AsFd, name: &OsStr, is_directory: bool) -> Result<OwnedFd, Errno> {
    if is_directory {
        mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
    } else {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&parent, name, flags, Mode::from_bits_truncate(0o644))?;
    }
    openat(&parent, name, HANDLE, Mode::empty())
}

/// Where a link in a directory leads, with the dots taken out; above the root there is the root.
fn join(directory: &Path, link: &Path) -> PathBuf {
    let mut path = PathBuf::from("/");
    for component in directory.join(link).components() {
        match component {
            Component::Normal(name) => path.push(OsStr::from_bytes(name.as_bytes())),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_joined_without_leaving_the_root() {
        for (directory, link, expected) in [
            ("/etc", "../run/x", "/run/x"),
            ("/etc", "/run/x", "/run/x"),
            ("/etc", "x", "/etc/x"),
            ("/", "../../x/./y", "/x/y"),
        ] {
            assert_eq!(join(Path::new(directory), Path::new(link)), Path::new(expected), "{directory} {link}");
        }
    }
}
