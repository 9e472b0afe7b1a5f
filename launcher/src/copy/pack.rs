//! A file or a directory with all that is in it, as a tar stream.
//!
//! Whoever owns the tree may change it meanwhile. A file is looked at once it is open, and a directory is not followed where
//! a link has taken its place; what is no file, directory or link is left out with a word.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tar::{Builder, EntryType, Header};

use crate::failure::{Doing as _, Failure};
use crate::message::warn;

/// What is packed.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) path: PathBuf,
    /// Whether the target of a link is meant, where the path leads to one.
    pub(super) follows: bool,
    /// What the names in the stream begin with; a stream for the other side has none.
    pub(super) prefix: Option<OsString>,
}

impl Packed {
    /// For a stream that others read: names begin with that of the source.
    pub(super) fn with_its_name(self) -> Packed {
        let prefix = super::last_name(&self.path);
        Packed { prefix, ..self }
    }

    /// Writes the stream.
    pub(super) fn write(&self, stream: impl Write) -> Result<(), Failure> {
        let doing = format!("copy {}", self.path.display());
        let mut packer = Packer { builder: Builder::new(io::BufWriter::new(stream)), links: HashMap::new() };
        let packed = packer.pack(self).and_then(|()| packer.builder.into_inner()?.flush());
        match packed {
            // The other side has failed, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && self.prefix.is_none() => Ok(()),
            result => result.doing(&doing),
        }
    }
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// The first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn pack(&mut self, packed: &Packed) -> io::Result<()> {
        // A slash at the end follows a link, for the kernel as well.
        let ends_in_slash = packed.path.as_os_str().as_bytes().ends_with(b"/");
        let path = match packed.follows || ends_in_slash {
            true => packed.path.canonicalize()?,
            false => packed.path.clone(),
        };
        let metadata = fs::symlink_metadata(&path)?;
        if ends_in_slash && !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let root = packed.prefix.as_deref().map_or_else(|| PathBuf::from("."), PathBuf::from);
        let mut pending = vec![(path, root)];
        while let Some((path, name)) = pending.pop() {
            let metadata = match fs::symlink_metadata(&path) {
                // It was removed while we were on our way; the first one was there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            let in_context = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            if self.one(&path, &name, &metadata).map_err(in_context)? {
                pending.extend(children(&path, &name).map_err(in_context)?);
            }
        }
        Ok(())
    }

    /// Writes one entry; whether it is a directory, whose content follows.
    fn one(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> io::Result<bool> {
        let kind = metadata.file_type();
        if kind.is_dir() {
            // With a slash at its end.
            self.entry(&name.join(""), metadata, EntryType::Directory, 0, io::empty())?;
        } else if kind.is_symlink() {
            let target = fs::read_link(path)?;
            self.times(metadata)?;
            self.builder.append_link(&mut header(metadata, EntryType::Symlink, 0), name, target)?;
        } else if kind.is_file() {
            self.file(path, name)?;
        } else {
            warn(format_args!("{} is left out: it is no file, directory or link", path.display()));
        }
        Ok(kind.is_dir())
    }

    fn file(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is changed while it is copied"));
        }
        if metadata.nlink() > 1 {
            let first = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.to_owned()).clone();
            if first != name {
                self.times(&metadata)?;
                return self.builder.append_link(&mut header(&metadata, EntryType::Link, 0), name, first);
            }
        }
        // The header has promised so many bytes, whatever happens to the file.
        let size = metadata.len();
        self.entry(name, &metadata, EntryType::Regular, size, Read::chain(&file, io::repeat(0)).take(size))
    }

    fn entry(
        &mut self,
        name: &Path,
        metadata: &Metadata,
        kind: EntryType,
        size: u64,
        content: impl io::Read,
    ) -> io::Result<()> {
        self.times(metadata)?;
        self.builder.append_data(&mut header(metadata, kind, size), name, content)
    }

    /// What of the time of the next entry a header has no room for; pax(1).
    fn times(&mut self, metadata: &Metadata) -> io::Result<()> {
        if metadata.mtime_nsec() == 0 && metadata.mtime() >= 0 {
            return Ok(());
        }
        let time = pax_time(metadata.mtime(), metadata.mtime_nsec());
        self.builder.append_pax_extensions([("mtime", time.as_bytes())])
    }
}

/// Seconds with a fraction; before 1970 the fraction counts from the second before as everywhere else.
fn pax_time(seconds: i64, nanoseconds: i64) -> String {
    match seconds < 0 && nanoseconds > 0 {
        true => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        false => format!("{seconds}.{nanoseconds:09}"),
    }
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(metadata.mtime().try_into().unwrap_or_default());
    header.set_size(size);
    header
}

fn children(path: &Path, name: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let directory = open_directory(path)?;
    // Through the descriptor: the path may lead elsewhere by now.
    let names = nix::dir::Dir::from_fd(directory.into())?.into_iter();
    let names = names.map(|entry| Ok(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned()));
    let names: Vec<OsString> = names.collect::<Result<_, nix::errno::Errno>>()?;
    let names = names.into_iter().filter(|child| child != "." && child != "..");
    let below = |child: OsString| match name == Path::new(".") {
        true => (path.join(&child), PathBuf::from(child)),
        false => (path.join(&child), name.join(child)),
    };
    Ok(names.map(below).collect())
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}
