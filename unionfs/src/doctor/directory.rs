//! What the file system of a directory can do for a branch. Tried with files that have no name.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RawDir, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;

use super::fuse::words;
use super::{Row, State};
use crate::mount::table;
use crate::sys;

/// A block, as large as any file system shares.
const BLOCK: usize = 65_536;

/// A branch that may be written.
struct Place<'a> {
    group: String,
    directory: OwnedFd,
    path: &'a Path,
}

/// # Errors
/// Where it is no directory, or cannot be opened.
pub(super) fn rows(path: &Path) -> io::Result<Vec<Row>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let place = Place { group: path.display().to_string(), directory, path };
    let mut rows = vec![place.file_system()?, place.types(), place.handles()];
    match place.new_file() {
        Ok(file) => rows.extend(place.written(&file)),
        Err(errno) => rows.push(
            place
                .row("writable", State::No)
                .found(words(errno))
                .gives("a branch that takes changes")
                .or("use it as a branch that is read (ro, ro+wh), or make it writable for this user"),
        ),
    }
    Ok(rows)
}

impl Place<'_> {
    fn row(&self, feature: &str, state: State) -> Row {
        Row::new(&self.group, feature, state)
    }

    fn file_system(&self) -> io::Result<Row> {
        let entries = table::read()?;
        let mount = self.path.canonicalize().ok().and_then(|path| table::leading_to(&entries, &path).cloned());
        let name =
            mount.as_ref().map_or_else(|| "not known".into(), |mount| mount.fs_type.to_string_lossy().into_owned());
        let read_only = rustix::fs::fstatvfs(&self.directory)?.f_flag.contains(StatVfsMountFlags::RDONLY);
        let found = if read_only { format!("{name}, read-only") } else { name };
        Ok(self.row("file system", State::Yes).found(found).gives("a branch that is read"))
    }

    /// Whether listings tell the types of entries.
    fn types(&self) -> Row {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let first = RawDir::new(&self.directory, &mut buffer).next().map(|entry| entry.map(|entry| entry.file_type()));
        let told = matches!(first, Some(Ok(kind)) if kind != FileType::Unknown);
        self.row("types in listings", State::of(told))
            .gives("listings without a question for each name")
            .or("make XFS with ftype=1, if it is XFS; it is only slower else")
    }

    fn handles(&self) -> Row {
        let handle = sys::file_handle(self.directory.as_fd(), b"");
        self.row("file handles", State::of(handle.is_ok()))
            .gives("stable inode numbers before Linux 4.11")
            .or("nothing: numbers of removed files may come back")
    }

    /// A file that is gone when it is closed.
    fn new_file(&self) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.directory, c".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
            file => return file.map(File::from),
        }
        let name = format!(".runionfs-doctor-{}", std::process::id());
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, &*name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::unlinkat(&self.directory, &*name, AtFlags::empty())?;
        Ok(File::from(file))
    }

    fn written(&self, file: &File) -> Vec<Row> {
        let nameless = || {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
            rustix::fs::openat(&self.directory, c".", flags, Mode::RUSR | Mode::WUSR)
        };
        vec![
            self.row("writable", State::Yes).gives("a branch that takes changes"),
            self.row("user.* attributes", State::of(has_attributes(file, "user.runionfs-doctor")))
                .gives("owners and modes that an ordinary user may not set are kept")
                .or("use ext4, XFS, btrfs, or tmpfs from Linux 6.6 on"),
            self.row("trusted.* attributes", State::of(has_attributes(file, "trusted.runionfs-doctor")))
                .gives("branches in the form of overlayfs, written by root")
                .or("mount as root of the machine; whiteouts in the form .wh. need none"),
            self.row("files without a name", State::of(nameless().is_ok()))
                .gives("copies that a crash leaves nothing of")
                .or("nothing: files get temporary names"),
            self.row("shared blocks", State::of(shares_blocks(self, file)))
                .gives("copies of large files at once (reflinks)")
                .or("use btrfs, or XFS with reflink=1; files are copied else"),
            self.row("locks", State::of(has_locks(&self.directory)))
                .gives("a branch that is written by one union only")
                .or("use a file system with flock(2)"),
        ]
    }
}

fn has_attributes(file: &File, name: &str) -> bool {
    rustix::fs::fsetxattr(file, name, b"x", XattrFlags::empty()).is_ok()
}

fn shares_blocks(place: &Place<'_>, file: &File) -> bool {
    let mut from = file;
    from.write_all(&[1; BLOCK]).is_ok()
        && place.new_file().is_ok_and(|to| sys::clone_beginning(file.as_fd(), to.as_fd(), 0).is_ok())
}

/// On a descriptor of its own, so that a union that holds the lock is no failure.
fn has_locks(directory: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let again = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let locked = again.and_then(|again| rustix::fs::flock(again, FlockOperation::NonBlockingLockShared));
    matches!(locked, Ok(()) | Err(Errno::WOULDBLOCK))
}
