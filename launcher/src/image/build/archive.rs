//! ADD of an archive: it is unpacked.
//!
//! Names in it are believed no more than those of a context: none leads above the directory, and links are followed within
//! the files of the stage only.

use std::io::{self, Read};

use rustix::fs::makedev;
use rustix::io::Errno;
use tar::{Entry, EntryType, Header};
use unionfs::branch::stat::{Kind, Time};
use unionfs::fs::New;
use unionfs::layer::compressed;

use super::tree::{About, Attributes, Node, Tree};
use crate::failure::told;

/// The archives that others unpack.
const FOREIGN: [(&[u8], &str); 2] = [(b"\xFD7zXZ\0", "xz"), (b"BZh", "bzip2")];
const BLOCK: usize = 512;
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// A plain archive.
pub(super) type Archive<'a> = Box<dyn Read + 'a>;

/// The archive that a file is, if it is one.
///
/// # Errors
/// Where it cannot be read, or is compressed in a way that is not known here.
pub(super) fn open<'a>(tree: &'a Tree, node: &Node) -> io::Result<Option<Archive<'a>>> {
    let head = start(tree.stream(node)?)?;
    if let Some((_, how)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(io::Error::other(format!(
            "it is compressed by {how}, which is not read here (use buildah, or COPY)"
        )));
    }
    // What is compressed and broken is no archive, but a file like any other.
    match compressed::plain(tree.stream(node)?).and_then(start) {
        Ok(block) if is_header(&block) => compressed::plain(tree.stream(node)?).map(Some),
        _ => Ok(None),
    }
}

fn start(input: impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::new();
    input.take(BLOCK as u64).read_to_end(&mut block)?;
    Ok(block)
}

/// Whether a block begins an archive: its sum is right, the bytes of the sum counted as blanks.
fn is_header(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(block) else { return false };
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    block[0] != 0 && Header::from_byte_slice(block).cksum().is_ok_and(|said| said == sum)
}

/// Unpacks into a directory of a tree.
///
/// # Errors
/// Where the archive is broken, or a name in it leads out.
pub(super) fn unpack(archive: Archive<'_>, to: &Tree, directory: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut unpacking = Unpacking { to, directory, owner, directories: Vec::new() };
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let name = String::from_utf8_lossy(&path).escape_debug().to_string();
        let named = |error: io::Error| io::Error::new(error.kind(), told(&error).at(&name).to_string());
        unpacking.add(&mut entry, &path).map_err(named)?;
    }
    // Times last, for whatever is added to a directory changes them.
    for (path, about) in unpacking.directories.into_iter().rev() {
        if let Some(node) = to.walk(&path)?.node() {
            to.set(node, about)?;
        }
    }
    Ok(())
}

struct Unpacking<'a> {
    to: &'a Tree,
    directory: &'a [u8],
    owner: Option<(u32, u32)>,
    directories: Vec<(Vec<u8>, About)>,
}

impl Unpacking<'_> {
    fn add(&mut self, entry: &mut Entry<'_, Archive<'_>>, path: &[u8]) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let about = self.about(entry.header())?;
        let mut names = self.place(path)?;
        if names.len() == count(self.directory) {
            // The directory itself was there, or was made, before.
            return Ok(());
        }
        // GNU tar writes a file that is named twice as a link to itself.
        if kind.is_hard_link() && self.place(&entry.link_name_bytes().unwrap_or_default())? == names {
            return Ok(());
        }
        let last = names.pop().ok_or(Errno::INVAL)?;
        let around = About { mode: 0o755, mtime: None, ..about };
        let (parent, _) = self.to.make_directories(self.to.walk(&names.join(&b'/'))?, around)?;
        let whole = [&names.join(&b'/'), &b"/"[..], &last].concat();
        let there = self.to.child(&parent, &last)?;
        if kind.is_dir() {
            self.directories.push((whole, about));
            match there {
                Some(there) if there.is_dir() => return Ok(()),
                Some(_) => self.to.remove(&parent, &last)?,
                None => {}
            }
            return Ok(self.to.make(&parent, &last, New::Dir, about).map(drop)?);
        }
        match there {
            Some(there) if there.is_dir() => return Err(Errno::ISDIR.into()),
            Some(_) => self.to.remove(&parent, &last)?,
            None => {}
        }
        let made = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.to.make_file(&parent, &last, |write| copy(entry, write))?
            }
            EntryType::Link => {
                let first = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?.into_owned();
                let first = self.to.walk(&self.place(&first)?.join(&b'/'))?.into_node().ok_or(Errno::NOENT)?;
                return Ok(self.to.link(&first, &parent, &last)?);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?.into_owned();
                return Ok(self.to.make(&parent, &last, New::Symlink(&target), about).map(drop)?);
            }
            EntryType::Fifo => self.to.make(&parent, &last, New::Node(Kind::Fifo, 0), about)?,
            EntryType::Char | EntryType::Block => {
                let kind = if kind == EntryType::Char { Kind::Char } else { Kind::Block };
                self.to.make(&parent, &last, New::Node(kind, device(entry.header())?), about)?
            }
            _ => return Err(io::Error::other("it is of a kind that is not known")),
        };
        self.to.set(&made, about)?;
        Ok(self.to.set_attributes(&made, &attributes(entry)?)?)
    }

    fn about(&self, header: &Header) -> io::Result<About> {
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner has too large a number"));
        let own = (id(header.uid()?)?, id(header.gid()?)?);
        let sec = i64::try_from(header.mtime()?).unwrap_or(i64::MAX);
        let mtime = Some(Time { sec, nsec: 0 });
        Ok(About { mode: header.mode()? & 0o7777, owner: self.owner.unwrap_or(own), mtime })
    }

    /// The names on the way to a path of the archive, the directory's first.
    fn place(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let inner = names(path);
        if inner.clone().any(|name| name == b"..") {
            return Err(io::Error::other("it leads out of the directory"));
        }
        Ok(names(self.directory).chain(inner).map(<[u8]>::to_vec).collect())
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

fn count(path: &[u8]) -> usize {
    names(path).count()
}

fn copy(from: &mut impl Read, write: &mut dyn FnMut(&[u8]) -> Result<(), Errno>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => write(&buffer[..read])?,
        }
    }
}

fn device(header: &Header) -> io::Result<u64> {
    let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
    Ok(makedev(major, minor))
}

/// The extended attributes of an entry; the tree takes those that belong to the content.
fn attributes(entry: &mut Entry<'_, Archive<'_>>) -> io::Result<Attributes> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let name = extension.key().ok().and_then(|key| key.strip_prefix(ATTRIBUTE));
        found.extend(name.map(|name| (name.as_bytes().to_vec(), extension.value_bytes().to_vec())));
    }
    found.retain(|(name, _)| Tree::keeps_attribute(name));
    Ok(found)
}
