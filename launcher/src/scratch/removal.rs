//! Removing what a container has written, however it has made that.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rustix::fs::{AtFlags, IFlags, StatxAttributes, StatxFlags, ioctl_getflags, ioctl_setflags};

use crate::namespace::lies_on_another_mount;

/// Removes a directory and all that is in it, however deep a container has made that: a directory with content is first
/// moved up to `path`, so that neither recursion nor descriptors nor the length of a path sets a limit.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let mut removal = Removal { base: path, lifted: 0, pending: vec![path.to_owned()] };
    while let Some(directory) = removal.pending.last().cloned() {
        removal.empty(&directory)?;
        // What was lifted is pending now, and goes before what it was in.
        if removal.pending.last() != Some(&directory) {
            continue;
        }
        match in_spite_of_flags(&directory, || fs::remove_dir(&directory)) {
            // Some file systems leave names out while a directory that is being read is changed: once more.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => continue,
            result => remove_if_there(result)?,
        }
        removal.pending.pop();
    }
    Ok(())
}

struct Removal<'a> {
    base: &'a Path,
    lifted: u64,
    /// Directories to remove, all of them in the base but for the first, which is the base itself.
    pending: Vec<PathBuf>,
}

impl Removal<'_> {
    fn empty(&mut self, directory: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if !entry.file_type()?.is_dir() {
                remove_if_there(in_spite_of_flags(&path, || fs::remove_file(&path)))?;
            } else if directory != self.base {
                self.lift(&path)?;
            } else if is_mount_point(&path)? {
                return Err(io::Error::other(format!("something is mounted at {}", path.display())));
            } else {
                self.pending.push(path);
            }
        }
        Ok(())
    }

    /// Removes a directory at once if it is empty; moves it to the base for later if it is not.
    fn lift(&mut self, directory: &Path) -> io::Result<()> {
        let has_content = |error: &io::Error| error.kind() == io::ErrorKind::DirectoryNotEmpty;
        // Of one where something is mounted this is EBUSY, so nothing of that is touched.
        match in_spite_of_flags(directory, || fs::remove_dir(directory)) {
            Err(error) if has_content(&error) => {}
            result => return remove_if_there(result),
        }
        loop {
            let target = self.base.join(self.lifted.to_string());
            self.lifted += 1;
            match in_spite_of_flags(directory, || fs::rename(directory, &target)) {
                // Left by a removal that was interrupted, and pending like any other.
                Err(error) if has_content(&error) => {}
                result => {
                    self.pending.push(target);
                    return result;
                }
            }
        }
    }
}

/// Does something to an entry, once more where flags were in the way: what is immutable or may be appended to only cannot
/// be removed or renamed, and nothing in such a directory can.
fn in_spite_of_flags(path: &Path, action: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match action() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let cleared = path.parent().map_or(Ok(()), clear_flags).and_then(|()| clear_flags(path));
            // The first reason is the one that says what cannot be done.
            cleared.map_err(|_| error).and_then(|()| action())
        }
        result => result,
    }
}

fn clear_flags(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    // Others have none.
    if !kind.is_file() && !kind.is_dir() {
        return Ok(());
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let flags = ioctl_getflags(&file)?;
    let cleared = flags.difference(IFlags::IMMUTABLE | IFlags::APPEND);
    if cleared == flags { Ok(()) } else { Ok(ioctl_setflags(&file, cleared)?) }
}

/// Whether another file system begins here.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Ok(about) if about.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        // A kernel before 5.8 does not tell.
        Ok(_) | Err(rustix::io::Errno::NOSYS) => Ok(lies_on_another_mount(path)?),
        Err(error) => Err(error.into()),
    }
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::unistd::geteuid;

    use super::*;

    /// On disk, for /tmp may be in memory.
    fn place() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }

    fn left(place: &Path) -> PathBuf {
        let path = place.join("left");
        fs::create_dir_all(path.join("top/etc")).unwrap();
        path
    }

    #[test]
    fn however_deep_a_container_has_dug_it_is_removed() {
        let place = place();
        let path = left(place.path());
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o700);
        let mut directory = std::os::fd::OwnedFd::from(File::open(path.join("top")).unwrap());
        for level in 0..5_000 {
            nix::sys::stat::mkdirat(&directory, "d", mode).unwrap();
            if level % 100 == 0 {
                nix::sys::stat::mkdirat(&directory, "empty", mode).unwrap();
                nix::unistd::symlinkat("/etc", &directory, "link").unwrap();
            }
            directory = nix::fcntl::openat(&directory, "d", OFlag::O_DIRECTORY, mode).unwrap();
        }
        remove(&path).unwrap();
        assert!(!path.exists());
        assert!(Path::new("/etc").exists());
    }

    #[test]
    fn what_must_not_be_removed_is_removed_all_the_same() {
        if !geteuid().is_root() {
            return;
        }
        let place = place();
        let path = left(place.path());
        let directory = path.join("top/locked/inner");
        fs::create_dir_all(&directory).unwrap();
        for name in ["top/file", "top/locked/file", "top/locked/inner/file"] {
            fs::write(path.join(name), "").unwrap();
        }
        nix::unistd::mkfifo(&path.join("top/locked/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let set = |name: &str, flags| {
            let file = File::open(path.join(name)).unwrap();
            ioctl_setflags(&file, ioctl_getflags(&file).unwrap() | flags).is_ok()
        };
        // A file system without flags, or a root without the right to set them, is no place to try it.
        if !set("top/file", IFlags::IMMUTABLE) {
            return;
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o000)).unwrap();
        for name in ["top/locked/file", "top/locked/inner", "top/locked"] {
            assert!(set(name, IFlags::APPEND));
        }
        assert!(set("top", IFlags::IMMUTABLE));
        assert!(fs::remove_file(path.join("top/locked/pipe")).is_err());
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn an_interrupted_removal_is_taken_up_again() {
        let place = place();
        let path = left(place.path());
        for name in ["0/x/y", "1/x", "top/a/b/c", "top/d/e"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        fs::write(path.join("0/file"), "").unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }
}
