//! A tar stream, as files.
//!
//! Names in it are believed no more than whoever has packed it: each is walked from the target directory without following
//! a link, and none leads above it. Devices are not made.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstatat, mkdirat, umask, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use crate::failure::{Doing as _, Failure};
use crate::message::warn;

/// Where a stream goes.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) path: PathBuf,
    /// The name of a copy in a directory that is there; none where the content of a directory is copied.
    pub(super) name: Option<OsString>,
    /// Whether the stream is the caller's: then it goes to a directory with the names that it has.
    pub(super) is_stream: bool,
    pub(super) keeps_owners: bool,
}

impl Unpacked {
    /// Reads the stream to its end.
    pub(super) fn read(&self, stream: impl Read) -> Result<(), Failure> {
        let doing = format!("copy to {}", self.path.display());
        umask(Mode::empty());
        let mut stream = io::BufReader::new(stream);
        self.unpack(&mut Archive::new(&mut stream)).doing(&doing)?;
        // What comes behind the end is not ours, but whoever writes it shall not fail.
        io::copy(&mut stream, &mut io::sink()).doing(&doing).map(drop)
    }

    fn unpack(&self, archive: &mut Archive<impl Read>) -> io::Result<()> {
        let mut entries = archive.entries()?;
        if self.is_stream {
            let mut tree = Tree::open(&self.path, self.keeps_owners)?;
            entries.try_for_each(|entry| tree.add(&mut entry?))?;
            return tree.finish();
        }
        // The other side has failed, and says why.
        let Some(first) = entries.next() else { return Ok(()) };
        let mut first = first?;
        let is_directory = first.header().entry_type().is_dir();
        let target = self.target(is_directory)?;
        let (parent, name) = match (target.parent(), target.file_name()) {
            (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => (parent, name),
            (Some(_), Some(name)) => (Path::new("."), name),
            // The content of a directory, for one that is there.
            _ => {
                let mut tree = Tree::open(&target, self.keeps_owners)?;
                entries.try_for_each(|entry| tree.add(&mut entry?))?;
                return tree.finish();
            }
        };
        let mut around = Tree::open(parent, self.keeps_owners)?;
        around.add_as(&mut first, Path::new(name))?;
        if is_directory {
            let mut tree = Tree::open(&target, self.keeps_owners)?;
            entries.try_for_each(|entry| tree.add(&mut entry?))?;
            tree.finish()?;
        }
        around.finish()
    }

    /// As cp(1) and docker decide it: in a directory that is there, else in its place.
    fn target(&self, is_directory: bool) -> io::Result<PathBuf> {
        let ends_in_slash = self.path.as_os_str().as_bytes().ends_with(b"/");
        match (fs::metadata(&self.path), &self.name) {
            (Ok(metadata), Some(name)) if metadata.is_dir() => Ok(self.path.canonicalize()?.join(name)),
            (Ok(metadata), None) if metadata.is_dir() => self.path.canonicalize(),
            (Ok(_), _) if is_directory => Err(io::Error::other("it is not a directory")),
            (Ok(_), _) if ends_in_slash => Err(io::ErrorKind::NotADirectory.into()),
            (Ok(_), _) => self.path.canonicalize(),
            (Err(error), _) if error.kind() != io::ErrorKind::NotFound => Err(error),
            (Err(error), _) if ends_in_slash && !is_directory => Err(error),
            // The last name is a new one; a link there that leads nowhere is replaced.
            (Err(_), _) => match (self.path.parent(), self.path.file_name()) {
                (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => Ok(parent.canonicalize()?.join(name)),
                _ => Ok(self.path.clone()),
            },
        }
    }
}

/// What a header says of a file, beside its content.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: Mode,
    user: u32,
    group: u32,
    time: TimeSpec,
}

/// A directory that entries are added to.
struct Tree {
    root: OwnedFd,
    keeps_owners: bool,
    /// Attributes of directories, which are set when nothing is added any more.
    directories: HashMap<PathBuf, Attributes>,
}

impl Tree {
    fn open(path: &Path, keeps_owners: bool) -> io::Result<Tree> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Tree { root: open(path, flags, Mode::empty())?, keeps_owners, directories: HashMap::new() })
    }

    fn add(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let name = plain(&entry.path()?)?;
        self.add_as(entry, &name)
    }

    fn add_as(&mut self, entry: &mut Entry<'_, impl Read>, name: &Path) -> io::Result<()> {
        let in_context = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", name.display()));
        let attributes = attributes(entry, self.keeps_owners)?;
        let Some(last) = name.file_name() else {
            // The target directory itself was there before.
            return Ok(());
        };
        let parent = self.walk(name.parent().unwrap_or(Path::new(""))).map_err(|errno| in_context(errno.into()))?;
        let kind = entry.header().entry_type();
        let result = match kind {
            EntryType::Directory => self.directory(&parent, last, name, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&parent, last, entry, attributes)
            }
            EntryType::Symlink => self.link(&parent, last, entry, attributes),
            EntryType::Link => self.other_name(&parent, last, entry),
            _ => {
                warn(format_args!("{} is left out: it is no file, directory or link", name.display()));
                Ok(())
            }
        };
        result.map_err(in_context)
    }

    /// The directory at a path in the tree, no part of which may be a link.
    fn walk(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let start = openat(&self.root, ".", flags, Mode::empty())?;
        path.components().try_fold(start, |directory, name| openat(&directory, name.as_os_str(), flags, Mode::empty()))
    }

    fn directory(&mut self, parent: &OwnedFd, last: &OsStr, name: &Path, attributes: Attributes) -> io::Result<()> {
        match mkdirat(parent, last, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => {
                // One that is there keeps what it holds, but a link in its place would lead elsewhere.
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(parent, last, flags, Mode::empty())?;
            }
            result => result?,
        }
        self.directories.insert(name.to_owned(), attributes);
        Ok(())
    }

    fn file(
        &self,
        parent: &OwnedFd,
        last: &OsStr,
        entry: &mut Entry<'_, impl Read>,
        attributes: Attributes,
    ) -> io::Result<()> {
        clear(parent, last)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(parent, last, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        io::copy(entry, &mut file)?;
        self.own(parent, last, attributes)?;
        // Behind the owner, for who changes that takes the set-id bits away.
        fchmod(file.as_fd(), attributes.mode)?;
        set_time(parent, last, attributes)?;
        Ok(())
    }

    fn link(
        &self,
        parent: &OwnedFd,
        last: &OsStr,
        entry: &Entry<'_, impl Read>,
        attributes: Attributes,
    ) -> io::Result<()> {
        let target = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?;
        clear(parent, last)?;
        symlinkat(OsStr::from_bytes(&target), parent, last)?;
        self.own(parent, last, attributes)?;
        set_time(parent, last, attributes)?;
        Ok(())
    }

    /// One more name of a file that came before.
    fn other_name(&self, parent: &OwnedFd, last: &OsStr, entry: &Entry<'_, impl Read>) -> io::Result<()> {
        let first = plain(&entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?)?;
        let name = first.file_name().ok_or(io::ErrorKind::InvalidData)?;
        let directory = self.walk(first.parent().unwrap_or(Path::new("")))?;
        clear(parent, last)?;
        // Without a flag it makes a name for a link, not for what that points to.
        linkat(&directory, name, parent, last, LinkatFlags::empty())?;
        Ok(())
    }

    fn own(&self, directory: &OwnedFd, name: &OsStr, attributes: Attributes) -> Result<(), Errno> {
        if !self.keeps_owners {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(attributes.user), Gid::from_raw(attributes.group));
        fchownat(directory, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// The attributes of directories, the innermost first.
    fn finish(self) -> io::Result<()> {
        let mut directories: Vec<_> = self.directories.iter().collect();
        directories.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        for (path, attributes) in directories {
            let directory = self.walk(path)?;
            self.own(&directory, OsStr::new("."), *attributes)?;
            fchmod(directory.as_fd(), attributes.mode)?;
            set_time(&directory, OsStr::new("."), *attributes)?;
        }
        Ok(())
    }
}

/// A name without what leads elsewhere; one that leads above is refused.
fn plain(path: &Path) -> io::Result<PathBuf> {
    path.components()
        .filter(|component| !matches!(component, Component::CurDir | Component::RootDir))
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::other(format!("{} leads out of the directory", path.display()))),
        })
        .collect()
}

/// Makes room for a file or a link: what has its name goes, unless it is a directory.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        // Some file systems say EPERM for a directory.
        Err(Errno::EPERM) if fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(is_directory) => {
            Err(Errno::EISDIR)
        }
        result => result,
    }
}

fn is_directory(status: nix::sys::stat::FileStat) -> bool {
    status.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
}

fn set_time(directory: &OwnedFd, name: &OsStr, attributes: Attributes) -> Result<(), Errno> {
    utimensat(directory, name, &attributes.time, &attributes.time, UtimensatFlags::NoFollowSymlink)
}

/// What belongs to somebody else must not become set-id: without owners, the bits go as well.
fn attributes(entry: &mut Entry<'_, impl Read>, keeps_owners: bool) -> io::Result<Attributes> {
    let kept = if keeps_owners { 0o7777 } else { 0o1777 };
    let mode = Mode::from_bits_truncate(entry.header().mode()? & kept);
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner has too large a number"));
    let (user, group) = (id(entry.header().uid()?)?, id(entry.header().gid()?)?);
    let mut time = TimeSpec::new(entry.header().mtime()?.try_into().unwrap_or_default(), 0);
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if extension.key() == Ok("mtime") {
            time = extension.value().ok().and_then(pax_time).unwrap_or(time);
        }
    }
    Ok(Attributes { mode, user, group, time })
}

/// Seconds with a fraction, as pax(1) writes a time.
fn pax_time(text: &str) -> Option<TimeSpec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    match text.starts_with('-') && nanoseconds > 0 {
        true => Some(TimeSpec::new(seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some(TimeSpec::new(seconds, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        for (name, expected) in
            [("a/b", Some("a/b")), ("./a//b/.", Some("a/b")), ("/etc/x", Some("etc/x")), ("./", Some(""))]
        {
            assert_eq!(plain(Path::new(name)).ok(), expected.map(PathBuf::from), "{name}");
        }
        for name in ["..", "../x", "a/../../x", "/.."] {
            assert!(plain(Path::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn times_are_read_with_their_fraction() {
        for (text, seconds, nanoseconds) in [
            ("12", 12, 0),
            ("12.5", 12, 500_000_000),
            ("0.000000001", 0, 1),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
        ] {
            assert_eq!(pax_time(text), Some(TimeSpec::new(seconds, nanoseconds)), "{text}");
        }
        assert_eq!(pax_time("x"), None);
    }
}
