//! One directory of one branch, and the calls relative to it.
//!
//! Every call takes a single component and follows no symbolic link, so it cannot leave the
//! directory, whatever somebody planted in the branch.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::at::{At, SetTime};
use super::form::Form;
use super::stat::{Kind, Stat};
use crate::{mount_id, sys};

/// An open directory of a branch.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    /// How the branch is read.
    pub(super) form: Form,
}

/// One entry of a directory as it lies in the buffer of who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadEntry<'a> {
    /// The name as it stands in the branch.
    pub name: &'a [u8],
    /// Its inode number on the branch's file system.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
}

/// One entry of a directory as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// The name as it stands in the branch.
    pub name: Box<[u8]>,
    /// Its inode number on the branch's file system.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
}

impl RawEntry {
    /// The same as it is read.
    pub fn as_read(&self) -> ReadEntry<'_> {
        ReadEntry { name: &self.name, ino: self.ino, kind: self.kind }
    }
}

impl From<ReadEntry<'_>> for RawEntry {
    fn from(read: ReadEntry<'_>) -> RawEntry {
        RawEntry { name: read.name.into(), ino: read.ino, kind: read.kind }
    }
}

const DIR_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

fn absent(error: Errno) -> Result<Option<Stat>, Errno> {
    // a name that the branch's file system cannot hold is a name that is not there (rule 9)
    if matches!(error, Errno::NOENT | Errno::NAMETOOLONG) { Ok(None) } else { Err(error) }
}

impl Dir {
    /// Takes an open directory.
    pub fn new(fd: OwnedFd, form: Form) -> Dir {
        Dir { fd, form }
    }

    /// The same directory, read and written in another form.
    pub fn with_form(self, form: Form) -> Dir {
        Dir { form, ..self }
    }

    /// How the branch is read.
    pub fn form(&self) -> Form {
        self.form
    }

    /// An entry of the directory, for its attributes.
    pub fn at<'a>(&'a self, name: &'a [u8]) -> At<'a> {
        At { fd: self.fd.as_fd(), name, form: self.form }
    }

    /// The attributes of the directory itself.
    pub fn stat(&self) -> Result<Stat, Errno> {
        self.at(b"").stat()
    }

    /// The attributes of an entry, or nothing if there is none.
    pub fn find(&self, name: &[u8]) -> Result<Option<Stat>, Errno> {
        self.at(name).stat().map_or_else(absent, |stat| Ok(Some(stat)))
    }

    /// Whether there is an entry of that name.
    pub fn has(&self, name: &[u8]) -> Result<bool, Errno> {
        Ok(self.at(name).real_stat().map_or_else(absent, |stat| Ok(Some(stat)))?.is_some())
    }

    /// Opens a directory below, never one of another mount.
    pub fn open_dir(&self, name: &[u8]) -> Result<Dir, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match rustix::fs::openat2(&self.fd, name, DIR_FLAGS, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => Ok(Dir::new(self.open_on_same_mount(name)?, self.form)),
            opened => Ok(Dir::new(opened?, self.form)),
        }
    }

    /// The same before Linux 5.6, or behind a filter that does not know openat2(2). What is opened is looked at
    /// afterwards, so that nobody can put something else in its place meanwhile. To open a mount by its path alone asks
    /// its file system nothing, which may be our own.
    fn open_on_same_mount(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        let opened = rustix::fs::openat(&self.fd, name, DIR_FLAGS, Mode::empty())?;
        if mount_id::differs(self.fd.as_fd(), opened.as_fd())? { Err(Errno::XDEV) } else { Ok(opened) }
    }

    /// Opens the directory itself once more.
    pub fn reopen(&self) -> Result<Dir, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir::new(rustix::fs::openat(&self.fd, c".", flags, Mode::empty())?, self.form))
    }

    /// Opens a regular file below. The access time stays as it is where that is allowed.
    ///
    /// # Errors
    /// ESTALE if something else stands there by now, EIO if its data is on another branch.
    pub fn open_file(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_seen(name, flags).map(|(file, _)| file)
    }

    /// The same, and what was opened, as it really is.
    ///
    /// # Errors
    /// As [`Dir::open_file`].
    pub fn open_seen(&self, name: &[u8], flags: OFlags) -> Result<(OwnedFd, Stat), Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = match self.open_unleased(name, flags | OFlags::NOATIME) {
            Err(Errno::PERM) => self.open_unleased(name, flags),
            opened => opened,
        };
        let file = match opened {
            // somebody put a link, a device or a directory in its place
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(Errno::STALE),
            opened => opened?,
        };
        let stat = Stat::of_file(&file)?;
        if stat.kind != Kind::File {
            return Err(Errno::STALE);
        }
        self.check_has_data(&file, name)?;
        Ok((file, stat))
    }

    /// Opens an entry. Without waiting, it is EAGAIN while somebody has a lease on it, as we have for a moment to
    /// learn who writes to a file.
    fn open_unleased(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        const TRIES: usize = 200;
        for _ in 0..TRIES {
            match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
                Err(Errno::AGAIN) => std::thread::sleep(std::time::Duration::from_micros(50)),
                opened => return opened,
            }
        }
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
    }

    /// Holds an entry, whatever becomes of its name, without access to its content.
    pub fn hold(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
    }

    /// Makes a new regular file and opens it for reading and writing.
    pub fn create_file(&self, name: &[u8], bits: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, mode(bits))?;
        self.at(name).forget_kept()?;
        Ok(file)
    }

    /// Makes a directory.
    pub fn make_dir(&self, name: &[u8], bits: u32) -> Result<(), Errno> {
        rustix::fs::mkdirat(&self.fd, name, mode(bits))?;
        self.at(name).forget_kept()
    }

    /// Makes a fifo, socket or device, or an empty regular file. Where the kernel refuses the type
    /// and the branch can keep it, the entry is an empty file for a moment: this is for entries that
    /// are prepared then.
    pub fn make_node(&self, name: &[u8], kind: Kind, bits: u32, rdev: u64) -> Result<(), Errno> {
        match rustix::fs::mknodat(&self.fd, name, kind.file_type(), mode(bits), rdev as Dev) {
            Err(Errno::PERM) if kind != Kind::File => {
                let kept = self.form.kept.filter(|kept| kept.writes()).ok_or(Errno::PERM)?;
                self.create_file(name, 0o600)?;
                self.at(name).become_placeholder(kept, kind, bits, rdev)
            }
            made => made.and_then(|()| self.at(name).forget_kept()),
        }
    }

    /// Makes a symbolic link.
    pub fn make_symlink(&self, name: &[u8], target: &[u8]) -> Result<(), Errno> {
        rustix::fs::symlinkat(target, &self.fd, name)?;
        self.at(name).forget_kept()
    }

    /// Gives an entry a second name, here or in another directory of the same mount.
    pub fn link(&self, name: &[u8], to: &Dir, new: &[u8]) -> Result<(), Errno> {
        rustix::fs::linkat(&self.fd, name, &to.fd, new, AtFlags::empty())
    }

    /// Renames an entry, here or into another directory of the same mount.
    pub fn rename(&self, name: &[u8], to: &Dir, new: &[u8], flags: RenameFlags) -> Result<(), Errno> {
        if flags.is_empty() {
            return rustix::fs::renameat(&self.fd, name, &to.fd, new);
        }
        let missing = !sys::has_rename_with_flags();
        match if missing { Err(Errno::INVAL) } else { rustix::fs::renameat_with(&self.fd, name, &to.fd, new, flags) } {
            Err(Errno::INVAL) if flags == RenameFlags::NOREPLACE => self.rename_to_free_name(name, to, new),
            renamed => renamed,
        }
    }

    /// Renames to a name that nothing has before Linux 3.15, or on a file system that knows no flags for that: by a second
    /// name, and where there can be none by looking first. Names in a branch and its work area are made by us only.
    fn rename_to_free_name(&self, name: &[u8], to: &Dir, new: &[u8]) -> Result<(), Errno> {
        match self.link(name, to, new) {
            // a directory, somebody else's file, or a file system without hard links
            Err(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) if to.has(new)? => Err(Errno::EXIST),
            Err(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) => rustix::fs::renameat(&self.fd, name, &to.fd, new),
            linked => linked.and_then(|()| self.unlink(name)),
        }
    }

    /// Removes an entry that is not a directory.
    pub fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, name: &[u8]) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    /// Opens the directory for reading its entries, or for fsync.
    pub fn open_for_reading(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, c".", flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => rustix::fs::openat(&self.fd, c".", flags, Mode::empty()),
            opened => opened,
        }
    }

    /// All entries but `.` and `..`, types resolved.
    pub fn entries(&self) -> Result<Vec<RawEntry>, Errno> {
        let mut entries = Vec::new();
        self.each_entry(|entry| {
            entries.push(entry.into());
            Ok(true)
        })?;
        Ok(entries)
    }

    /// Gives all entries but `.` and `..` to `take`, types resolved, until it says that it has enough.
    ///
    /// # Errors
    /// Those of reading a directory, and of `take`.
    pub fn each_entry(&self, take: impl FnMut(ReadEntry<'_>) -> Result<bool, Errno>) -> Result<(), Errno> {
        self.each_entry_of(self.open_for_reading()?.as_fd(), take)
    }

    /// The same by a descriptor of [`Dir::open_for_reading`].
    ///
    /// # Errors
    /// Those of reading a directory, and of `take`.
    pub fn each_entry_of(
        &self,
        fd: BorrowedFd<'_>,
        mut take: impl FnMut(ReadEntry<'_>) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let mut done = Ok(true);
        let mut more = true;
        while more && matches!(done, Ok(true)) {
            more = self.read_some(fd, |entry| {
                if matches!(done, Ok(true)) && !matches!(entry.name, b"." | b"..") {
                    done = take(entry);
                }
            })?;
        }
        done.map(drop)
    }

    /// Reads a bufferful of entries, `.` and `..` included, from a descriptor of
    /// [`Dir::open_for_reading`]; false at the end. A directory that was removed has none.
    pub fn read_some(&self, fd: BorrowedFd<'_>, mut take: impl FnMut(ReadEntry<'_>)) -> Result<bool, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; 32 * 1024];
        let mut reader = RawDir::new(fd, &mut buffer);
        let mut any = false;
        while let Some(entry) = reader.next() {
            let entry = match entry {
                Err(Errno::NOENT) => return Ok(false),
                entry => entry?,
            };
            any = true;
            let name = entry.file_name().to_bytes();
            let kind = match entry.file_type() {
                FileType::Unknown => self.find(name)?.map(|stat| stat.kind),
                FileType::RegularFile if self.form.kept.is_some() => self.kind_of_file(name)?,
                known => Some(Kind::of(known)?),
            };
            // gone between reading its name and asking for its type: not an entry any more
            if let Some(kind) = kind {
                take(ReadEntry { name, ino: entry.ino(), kind });
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        Ok(any)
    }

    /// The type of an entry that is a regular file; nothing if it is gone.
    fn kind_of_file(&self, name: &[u8]) -> Result<Option<Kind>, Errno> {
        match self.at(name).stands_for() {
            Err(Errno::NOENT) => Ok(None),
            kind => kind.map(Some),
        }
    }

    /// Does something in the directory that must not move its times: what changes nothing that a
    /// caller sees.
    ///
    /// # Errors
    /// Those of `act`; times that cannot be restored are only logged.
    pub fn keeping_times<T>(&self, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let before = self.stat()?;
        let done = act()?;
        self.restore_times(&before);
        Ok(done)
    }

    /// Gives it back the times that it had before; an error is only logged.
    pub fn restore_times(&self, before: &Stat) {
        match self.at(b"").set_times(SetTime::To(before.atime), SetTime::To(before.mtime)) {
            // append-only
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => tracing::warn!(%errno, "restoring a directory's times"),
        }
    }

    /// Makes the directory's entries durable.
    pub fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(self.open_for_reading()?)
    }
}

/// `FS_CASEFOLD_FL` of `linux/fs.h`.
const CASE_FOLDED: u32 = 0x4000_0000;

/// Whether a directory finds names that it does not list, spelled in another case.
///
/// # Errors
/// Those of FS_IOC_GETFLAGS, but for those of a file system that has no flags.
pub fn folds_case(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::fs::ioctl_getflags(dir) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        flags => Ok(flags?.bits() & CASE_FOLDED != 0),
    }
}

/// Opens what a descriptor holds once more.
///
/// # Errors
/// Those of open(2).
pub fn open_again(held: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = super::at::proc_path(held, b"");
    rustix::fs::open(path.as_slice(), flags | OFlags::CLOEXEC, Mode::empty())
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
