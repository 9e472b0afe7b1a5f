//! A tree as a value: what one directory holds, comparable, with a difference that can be read.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The name of a work area in a writable branch.
pub const WORK_AREA: &str = ".wh..wh.runionfs";

/// Files are read in pieces of this size.
const CHUNK: usize = 1 << 18;

/// A time in seconds and nanoseconds since 1970.
pub type Time = (i64, i64);

/// What kind of thing an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// The bytes of a file: enough of them to read, and a sum over all of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    head: Vec<u8>,
    hash: u64,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"#{:x}", self.head.escape_ascii(), self.hash)
    }
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; 0 for directories, whose size is the file system's own affair.
    pub size: u64,
    /// The bytes of a regular file.
    pub content: Option<Content>,
    /// Where a symlink points.
    pub target: Option<PathBuf>,
    /// The number of a device.
    pub rdev: u64,
    /// Number of names.
    pub nlink: u64,
    /// Extended attributes, ACLs and capabilities among them.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Last read; `None` for symlinks, which cannot be looked at without changing it.
    pub atime: Option<Time>,
    /// Inode number.
    pub ino: u64,
}

/// How exact a comparison is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    /// Every byte, every number and every time: for trees that nobody may touch.
    Untouched,
    /// What a user sees of an equal tree elsewhere: not inode numbers, link counts of directories, ctime and atime.
    Equal,
    /// As `Equal`, without any time.
    EqualButTimes,
}

/// A tree: relative paths (the root is the empty path) and what is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The entries by path.
    pub entries: BTreeMap<PathBuf, Entry>,
}

impl Snapshot {
    /// Reads the tree at `root` without changing an access time.
    ///
    /// # Panics
    /// When anything in it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn take(root: &Path) -> Snapshot {
        match Snapshot::try_take(root) {
            Ok(snapshot) => snapshot,
            Err((path, error)) => panic!("cannot take a snapshot: {}: {error}", path.display()),
        }
    }

    /// Reads the tree at `root` without changing an access time.
    ///
    /// # Errors
    /// The first path that cannot be read, and why.
    pub fn try_take(root: &Path) -> Result<Snapshot, (PathBuf, io::Error)> {
        let mut snapshot = Snapshot::default();
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
            let entry = look(&path).map_err(|error| (path.clone(), error))?;
            if entry.kind == Kind::Directory {
                let names = names(&path).map_err(|error| (path.clone(), error))?;
                pending.extend(names.iter().map(|name| relative.join(name)));
            }
            snapshot.entries.insert(relative, entry);
        }
        Ok(snapshot)
    }

    /// The same tree without the entries at and below the paths that `unwanted` names.
    #[must_use]
    pub fn without(mut self, unwanted: impl Fn(&Path) -> bool) -> Snapshot {
        self.entries.retain(|path, _| !path.ancestors().any(|above| !above.as_os_str().is_empty() && unwanted(above)));
        self
    }

    /// The same tree without the work area of a writable branch.
    #[must_use]
    pub fn without_work_area(self) -> Snapshot {
        self.without(|path| path.file_name() == Some(OsStr::new(WORK_AREA)))
    }

    /// The paths, the root's excluded, as text (bytes that are no UTF-8 are replaced).
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let paths = self.entries.keys().filter(|path| !path.as_os_str().is_empty());
        paths.map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// What differs, one line each; nothing when the trees are the same.
    #[must_use]
    pub fn difference(&self, other: &Snapshot, exactness: Exactness) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, entry) in &self.entries {
            match other.entries.get(path) {
                None => lines.push(format!("- {}: {:?} is gone", path.display(), entry.kind)),
                Some(theirs) => lines
                    .extend(entry.difference(theirs, exactness).map(|text| format!("! {}: {text}", path.display()))),
            }
        }
        let added = other.entries.iter().filter(|(path, _)| !self.entries.contains_key(*path));
        lines.extend(added.map(|(path, entry)| format!("+ {}: {:?} is new", path.display(), entry.kind)));
        lines
    }

    /// Asserts that `other`, seen later or elsewhere, is the same tree.
    ///
    /// # Panics
    /// With the list of differences.
    #[track_caller]
    pub fn assert_same(&self, other: &Snapshot, exactness: Exactness, what: &str) {
        let lines = self.difference(other, exactness);
        assert!(lines.is_empty(), "{what}: {} differences\n{}", lines.len(), lines.join("\n"));
    }
}

impl Entry {
    /// What differs, as text; `None` when nothing does.
    fn difference(&self, other: &Entry, exactness: Exactness) -> impl Iterator<Item = String> + use<> {
        let mut found = Vec::new();
        let mut compare = |what: &str, ours: &dyn fmt::Debug, theirs: &dyn fmt::Debug| {
            let (ours, theirs) = (format!("{ours:?}"), format!("{theirs:?}"));
            if ours != theirs {
                found.push(format!("{what} {ours} became {theirs}"));
            }
        };
        compare("kind", &self.kind, &other.kind);
        compare("mode", &format_args!("{:04o}", self.mode), &format_args!("{:04o}", other.mode));
        compare("owner", &(self.uid, self.gid), &(other.uid, other.gid));
        compare("size", &self.size, &other.size);
        compare("content", &self.content, &other.content);
        compare("target", &self.target, &other.target);
        compare("rdev", &self.rdev, &other.rdev);
        compare("xattrs", &self.xattrs, &other.xattrs);
        let untouched = exactness == Exactness::Untouched;
        if untouched || self.kind != Kind::Directory {
            compare("nlink", &self.nlink, &other.nlink);
        }
        if exactness != Exactness::EqualButTimes {
            compare("mtime", &self.mtime, &other.mtime);
        }
        if untouched {
            compare("ctime", &self.ctime, &other.ctime);
            compare("atime", &self.atime, &other.atime);
            compare("inode", &self.ino, &other.ino);
        }
        found.into_iter()
    }
}

/// Looks at one entry.
fn look(path: &Path) -> io::Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = kind(metadata.file_type());
    Ok(Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if kind == Kind::Directory { 0 } else { metadata.size() },
        content: if kind == Kind::File { Some(content(path)?) } else { None },
        target: if kind == Kind::Symlink { Some(fs::read_link(path)?) } else { None },
        rdev: metadata.rdev(),
        nlink: metadata.nlink(),
        xattrs: xattrs(path)?,
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        ctime: (metadata.ctime(), metadata.ctime_nsec()),
        atime: (kind != Kind::Symlink).then(|| (metadata.atime(), metadata.atime_nsec())),
        ino: metadata.ino(),
    })
}

fn kind(kind: fs::FileType) -> Kind {
    match kind {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink,
        kind if kind.is_fifo() => Kind::Fifo,
        kind if kind.is_socket() => Kind::Socket,
        kind if kind.is_char_device() => Kind::Character,
        kind if kind.is_block_device() => Kind::Block,
        _ => Kind::File,
    }
}

/// Opens for reading without moving the access time.
fn open(path: &Path) -> io::Result<fs::File> {
    fs::File::options().read(true).custom_flags(libc::O_NOATIME | libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn content(path: &Path) -> io::Result<Content> {
    let mut file = open(path)?;
    let mut content = Content { head: Vec::new(), hash: 0 };
    let mut hasher = DefaultHasher::new();
    let mut last = Vec::new();
    loop {
        let chunk = next_chunk(&mut file)?;
        if chunk.is_empty() {
            break;
        }
        let room = 60_usize.saturating_sub(content.head.len());
        content.head.extend(chunk.iter().take(room));
        // Comparing is much faster than hashing, and large files of tests repeat themselves.
        hasher.write_u8(u8::from(chunk == last));
        if chunk != last {
            hasher.write(&chunk);
            last = chunk;
        }
    }
    content.hash = hasher.finish();
    Ok(content)
}

/// The next bytes of a file, none at its end. A large hole is not read: it is zeros.
fn next_chunk(file: &mut fs::File) -> io::Result<Vec<u8>> {
    let (start, end) = (file.stream_position()?, file.metadata()?.len());
    let past = start.saturating_add(CHUNK as u64);
    let data = match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(start)) {
        // ENXIO: there is no data any more.
        Err(rustix::io::Errno::NXIO) => end,
        other => other?,
    };
    if past <= end && data >= past {
        file.seek(SeekFrom::Start(past))?;
        return Ok(vec![0; CHUNK]);
    }
    file.seek(SeekFrom::Start(start))?;
    let mut chunk = Vec::with_capacity(CHUNK);
    file.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

/// The names in a directory, without `.` and `..`.
///
/// # Errors
/// When it cannot be opened or read.
pub fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let directory = rustix::fs::Dir::new(std::os::fd::OwnedFd::from(open(path)?))?;
    let mut names = Vec::new();
    for entry in directory {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// All extended attributes of an entry, itself and not what it points to.
///
/// # Errors
/// When they cannot be read.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut list = vec![0; 65_536];
    let count = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(count) => count,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut found = BTreeMap::new();
    for name in list.get(..count).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let count = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(count);
        found.insert(OsStr::from_bytes(name).to_owned(), value);
    }
    Ok(found)
}
