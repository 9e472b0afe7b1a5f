//! The files of what is imported, by their names: a directory, an archive in which each is found by one pass over the
//! headers, or a registry.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use tar::{EntryType, Header, PaxExtensions};

use super::manifest::LONGEST;

/// Archives consist of such blocks.
const BLOCK: u64 = 512;
/// Where the checksum is in a header, which counts as blanks in it.
const SUM: Range<usize> = 148..156;
/// A header that is longer tells of no part of an image.
const LONGEST_TEXT: usize = 64 << 10;

/// An archive with more members than this is not one of an image's parts.
const MOST_MEMBERS: usize = 100_000;
/// So many links may lead to a file.
const LONGEST_CHAIN: usize = 8;

/// Files by their names.
#[derive(Debug)]
pub(crate) enum Files {
    Directory(PathBuf),
    Archive(Archive),
    /// Blobs of a registry, by their digests.
    Registry(Box<dyn Remote>),
}

/// Files that are elsewhere. It stands between images and registries, so that a program which has nothing to do with
/// these has nothing of them in it.
pub(crate) trait Remote: std::fmt::Debug + Send + Sync {
    fn has(&self, name: &str) -> bool;

    /// Begins to read a file. What comes is not verified.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;
}

/// A plain tar archive that can be read at any place.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<File>,
    members: HashMap<PathBuf, Member>,
}

#[derive(Debug)]
enum Member {
    Content {
        at: u64,
        size: u64,
    },
    /// docker's archives have links to layers.
    Link(PathBuf),
}

impl Files {
    /// Looks through an archive.
    pub(crate) fn of_archive(file: File) -> io::Result<Files> {
        let mut members = HashMap::new();
        let mut headers = Headers { file: &file, at: 0 };
        while let Some((name, member)) = headers.next()? {
            members.insert(name, member);
            if members.len() > MOST_MEMBERS {
                return Err(io::Error::other("it has too many members for an image"));
            }
        }
        Ok(Files::Archive(Archive { file: Arc::new(file), members }))
    }

    /// Opens a file by its name.
    pub(crate) fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Files::Directory(directory) => open_file(&directory.join(relative(name)?)).map(|file| Box::new(file) as _),
            Files::Registry(remote) => remote.open(name),
            Files::Archive(archive) => {
                let (at, size) = archive.find(name)?;
                let length = archive.file.metadata()?.len();
                if at.checked_add(size).is_none_or(|end| end > length) {
                    return Err(io::Error::other("the archive is cut off"));
                }
                Ok(Box::new(Section { file: Arc::clone(&archive.file), at, end: at + size }))
            }
        }
    }

    /// What tells whether two names lead to the same content.
    pub(crate) fn key(&self, name: &str) -> String {
        match self {
            Files::Archive(archive) => archive.find(name).map_or_else(|_| name.to_owned(), |(at, _)| format!("@{at}")),
            Files::Directory(_) | Files::Registry(_) => name.to_owned(),
        }
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Files::Directory(directory) => directory.join(name).is_file(),
            Files::Archive(archive) => archive.find(name).is_ok(),
            Files::Registry(remote) => remote.has(name),
        }
    }

    /// The whole of a document.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open(name)?.take(LONGEST + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LONGEST {
            return Err(io::Error::other("it is too long for a document of an image"));
        }
        Ok(content)
    }
}

/// The headers of an archive, one after the other. What they say of names is read as far as it can be one.
struct Headers<'a> {
    file: &'a File,
    at: u64,
}

/// What headers before the one of a member say of it.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Headers<'_> {
    /// The next member that is a file or a link to one.
    fn next(&mut self) -> io::Result<Option<(PathBuf, Member)>> {
        let mut said = Said::default();
        while let Some(header) = self.header()? {
            let size = said.size.take().map_or_else(|| header.entry_size(), Ok)?;
            let content = self.at;
            // Past the end there is no further header, and that is told then.
            let padded = size.checked_next_multiple_of(BLOCK);
            self.at = padded.and_then(|size| content.checked_add(size)).ok_or(io::ErrorKind::InvalidData)?;
            match header.entry_type() {
                EntryType::GNULongName => said.name = Some(until_zero(self.text(content, size)?)),
                EntryType::GNULongLink => said.target = Some(until_zero(self.text(content, size)?)),
                EntryType::XHeader => said.take(&self.text(content, size)?)?,
                kind => {
                    let name = said.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    let target = said.target.take().or_else(|| header.link_name_bytes().map(Cow::into_owned));
                    said = Said::default();
                    if let Some(member) = member(kind, &clean(&name), target, content, size) {
                        return Ok(Some((clean(&name), member)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The next header; nothing at the end mark, or at the end of the file.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        match self.file.read_exact_at(header.as_mut_bytes(), self.at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => match self.is_at_the_end()? {
                true => return Ok(None),
                false => return Err(io::Error::other("the archive is cut off")),
            },
            result => result?,
        }
        self.at += BLOCK;
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = bytes.iter().enumerate().map(|(at, byte)| if SUM.contains(&at) { 32 } else { u32::from(*byte) });
        if header.cksum()? != sum.sum::<u32>() {
            return Err(io::Error::other("it is no archive, or damaged"));
        }
        Ok(Some(header))
    }

    fn is_at_the_end(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() == self.at)
    }

    /// The content of an extended header.
    fn text(&self, at: u64, size: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(size).ok().filter(|length| *length <= LONGEST_TEXT);
        let mut text = vec![0; length.ok_or_else(|| io::Error::other("a header of it is too long"))?];
        self.file.read_exact_at(&mut text, at)?;
        Ok(text)
    }
}

impl Said {
    fn take(&mut self, records: &[u8]) -> io::Result<()> {
        for record in PaxExtensions::new(records) {
            let record = record?;
            match record.key_bytes() {
                b"path" => self.name = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.target = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|value| value.parse().ok());
                    self.size = Some(size.ok_or(io::ErrorKind::InvalidData)?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A member as something that can be opened; nothing of other kinds.
fn member(kind: EntryType, name: &Path, target: Option<Vec<u8>>, at: u64, size: u64) -> Option<Member> {
    match kind {
        EntryType::Regular | EntryType::Continuous => Some(Member::Content { at, size }),
        EntryType::Symlink => Some(Member::Link(resolve(name, Path::new(OsStr::from_bytes(&target?))))),
        EntryType::Link => Some(Member::Link(clean(&target?))),
        _ => None,
    }
}

fn until_zero(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    text
}

/// Opens what is a file, or leads to one; nothing else is opened, for that may already do something, or wait.
fn open_file(path: &Path) -> io::Result<File> {
    let no_file = || io::Error::other("it is no file");
    if !fs::metadata(path)?.is_file() {
        return Err(no_file());
    }
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

impl Archive {
    fn find(&self, name: &str) -> io::Result<(u64, u64)> {
        let mut name = clean(name.as_bytes());
        for _ in 0..LONGEST_CHAIN {
            match self.members.get(&name) {
                Some(Member::Content { at, size }) => return Ok((*at, *size)),
                Some(Member::Link(target)) => name.clone_from(target),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Err(io::Error::other("its links lead in a circle"))
    }
}

/// A part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The name of the first member of an archive, by its first block.
pub(crate) fn first_name(block: &[u8]) -> io::Result<Option<PathBuf>> {
    let mut header = tar::Header::new_old();
    if block.len() < header.as_bytes().len() {
        return Ok(None);
    }
    header.as_mut_bytes().copy_from_slice(block);
    Ok(Some(clean(&header.path_bytes())))
}

/// A name in documents of others leads to nothing outside.
fn relative(name: &str) -> io::Result<&Path> {
    let path = Path::new(name);
    let is_inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if is_inside { Ok(path) } else { Err(io::Error::other("the name leads out of the directory")) }
}

fn clean(path: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(path)).components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// Where a symbolic link leads; one that leads out leads to nothing that is there.
fn resolve(link: &Path, target: &Path) -> PathBuf {
    let mut path = link.parent().map(Path::to_owned).unwrap_or_default();
    for part in target.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, SeekFrom, Write as _};

    fn archive() -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, "./a/layer.tar", &b"abc"[..]).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();
        builder.append_link(&mut link, "loop", "loop").unwrap();
        builder.append_link(&mut link, "out", "../../../etc/passwd").unwrap();
        let mut file = builder.into_inner().unwrap();
        file.flush().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    #[test]
    fn members_are_found_through_links_and_nothing_else_is() {
        let file = archive();
        let mut block = [0; 512];
        file.read_at(&mut block, 0).unwrap();
        assert_eq!(first_name(&block).unwrap(), Some("a/layer.tar".into()));
        let files = Files::of_archive(file).unwrap();
        assert_eq!(files.read("b/layer.tar").unwrap(), b"abc");
        assert_eq!(files.key("b/layer.tar"), files.key("a/layer.tar"));
        for name in ["loop", "out", "missing", "/etc/passwd", ""] {
            assert!(files.read(name).is_err() && !files.has(name), "{name}");
        }
    }

    #[test]
    fn an_archive_that_is_cut_off_says_so() {
        let file = archive();
        file.set_len(513).unwrap();
        let files = Files::of_archive(file);
        assert!(files.is_err() || files.unwrap().read("a/layer.tar").is_err());
    }

    #[test]
    fn names_in_a_directory_lead_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::Directory(directory.path().to_owned());
        for name in ["../x", "/etc/passwd", "a/../../x"] {
            assert!(files.open(name).is_err(), "{name}");
        }
    }
}
