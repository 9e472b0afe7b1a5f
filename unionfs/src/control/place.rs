//! Where control sockets lie: `/run/runionfs` for root, `$XDG_RUNTIME_DIR/runionfs` for users.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::mount::DeviceNumber;

/// Why there is no place for a socket.
pub(super) const NOWHERE: &str = "XDG_RUNTIME_DIR is not set";

/// The longest path that `sockaddr_un` holds with its zero byte (unix(7)).
const LONGEST_PATH: usize = 107;

/// A socket in its directory, removed when dropped.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    name: String,
    inode: u64,
}

impl Place {
    /// Binds the socket for this device number.
    pub(super) fn bind(device: DeviceNumber) -> io::Result<(Place, UnixListener)> {
        let mut failure = io::Error::other(NOWHERE);
        for path in own_directories() {
            match Place::bind_in(&path, device) {
                Ok(bound) => return Ok(bound),
                Err(error) => failure = io::Error::new(error.kind(), format!("{}: {error}", path.display())),
            }
        }
        Err(failure)
    }

    fn bind_in(path: &Path, device: DeviceNumber) -> io::Result<(Place, UnixListener)> {
        let directory = open_private(path)?;
        let name = socket_name(device);
        let socket = path.join(&name);
        if socket.as_os_str().as_bytes().len() > LONGEST_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        // against the daemon that had the number before and is about to remove its own socket
        let lock = Lock::take(&directory)?;
        match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let listener = UnixListener::bind(&socket)?;
        rustix::fs::chmod(&socket, Mode::RUSR | Mode::WUSR)?;
        let inode = look(&directory, &name)?.st_ino;
        drop(lock);
        Ok((Place { directory, name, inode }, listener))
    }

    /// Removes the socket, unless a successor put its own there.
    pub(super) fn remove(&self) -> io::Result<()> {
        let _lock = Lock::take(&self.directory)?;
        match look(&self.directory, &self.name) {
            Ok(found) if found.st_ino == self.inode => {
                Ok(rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())?)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!("cannot remove the control socket {}: {error}", self.name);
        }
    }
}

/// Where the socket of a mount may lie, for who wants to connect: `owner` is who mounted it.
pub(super) fn candidates(device: DeviceNumber, owner: u32) -> Vec<PathBuf> {
    let of_owner = (owner != 0).then(|| PathBuf::from(format!("/run/user/{owner}/runionfs")));
    let mut places = own_directories();
    places.extend(of_owner.filter(|place| !own_directories().contains(place)));
    places.iter().map(|place| place.join(socket_name(device))).collect()
}

/// All sockets of this user, some of which may be those of daemons that were killed.
pub(super) fn all() -> Vec<PathBuf> {
    let sockets = own_directories().into_iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let paths = sockets.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "sock")).collect()
}

/// Where sockets of this user lie. Who is root in a user namespace only cannot write to the
/// first and has the second.
fn own_directories() -> Vec<PathBuf> {
    let of_root = geteuid().is_root().then(|| PathBuf::from("/run/runionfs"));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    of_root.into_iter().chain(runtime.map(|dir| Path::new(&dir).join("runionfs"))).collect()
}

fn socket_name(device: DeviceNumber) -> String {
    format!("{device}.sock")
}

/// Opens the directory, which must be nobody else's to enter, and makes it if it is not there.
fn open_private(path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let about = rustix::fs::fstat(&directory)?;
    let mode = Mode::from_raw_mode(about.st_mode);
    if about.st_uid != geteuid().as_raw() || mode.intersects(Mode::RWXG | Mode::RWXO) {
        return Err(io::Error::other("the directory is not ours alone (mode 0700 is needed)"));
    }
    Ok(directory)
}

fn look(directory: &OwnedFd, name: &str) -> Result<Stat, Errno> {
    let about = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(about.st_mode) {
        FileType::Socket => Ok(about),
        _ => Err(Errno::NOTSOCK),
    }
}

/// The lock on the directory, held while a socket in it is exchanged or removed.
struct Lock<'a>(&'a OwnedFd);

impl<'a> Lock<'a> {
    fn take(directory: &'a OwnedFd) -> Result<Lock<'a>, Errno> {
        rustix::io::retry_on_intr(|| rustix::fs::flock(directory, FlockOperation::LockExclusive))?;
        Ok(Lock(directory))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(self.0, FlockOperation::Unlock) {
            tracing::warn!("cannot unlock the directory of control sockets: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const DEVICE: DeviceNumber = DeviceNumber { major: 0, minor: 7 };

    #[test]
    fn a_socket_is_removed_by_its_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("runionfs");
        let socket = directory.join("0:7.sock");
        let (first, _listener) = Place::bind_in(&directory, DEVICE).unwrap();
        assert!(UnixStream::connect(&socket).is_ok());
        let (second, _successor) = Place::bind_in(&directory, DEVICE).unwrap();
        drop(first);
        assert!(UnixStream::connect(&socket).is_ok());
        drop(second);
        assert!(!socket.exists());
    }

    #[test]
    fn a_directory_that_others_can_enter_is_not_used() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("runionfs");
        std::fs::create_dir(&directory).unwrap();
        rustix::fs::chmod(&directory, Mode::from_raw_mode(0o755)).unwrap();
        assert!(Place::bind_in(&directory, DEVICE).unwrap_err().to_string().contains("0700"));
        std::fs::remove_dir(&directory).unwrap();
        std::os::unix::fs::symlink("/", &directory).unwrap();
        assert!(Place::bind_in(&directory, DEVICE).is_err());
    }
}
