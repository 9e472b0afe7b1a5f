//! Names: what a caller may use, and the `.wh.` grammar, whose only reader and writer this is.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Prefix of a whiteout file, as AuFS and the OCI image specification have it.
const PREFIX: &[u8] = b".wh.";
/// The file that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// The work area at the root of a writable branch.
pub const WORK_AREA: &[u8] = b".wh..wh.runionfs";
/// The record of a renamed directory, in it: a symbolic link whose target is the place of what
/// merges with it from below (rule 25). Made by one system call that a journal keeps whole.
pub const RECORD: &[u8] = b".wh..wh.redirect";
/// At the root of a branch: there may be records in it.
pub const RECORDS: &[u8] = b".wh..wh.redirects";
/// Prefix of the whiteout of a name that is too long for `.wh.NAME`.
const LONG: &[u8] = b".wh..wh.long.";
/// Longest name of a directory entry, in bytes (Linux `NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// One valid path component that is not part of the `.wh.` grammar.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a [u8]);

/// An owned [`Name`]. Most names are short, and lie in the value itself.
#[derive(Clone)]
pub struct NameBuf(Bytes);

#[derive(Clone)]
enum Bytes {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

/// As many bytes of a name fit into the size of a pointer, a length and a tag.
const SHORT: usize = 22;

/// Why some bytes are not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Empty, `.`, `..`, or with a slash or a zero byte in it: EINVAL.
    Invalid,
    /// Longer than [`NAME_MAX`]: ENAMETOOLONG.
    TooLong,
    /// Begins with `.wh.`: EPERM, so that nobody forges a whiteout through the mount.
    Reserved,
}

impl<'a> Name<'a> {
    /// Checks a caller's name.
    pub fn new(bytes: &'a [u8]) -> Result<Self, NameError> {
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(NameError::Invalid);
        }
        if bytes.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        if bytes.starts_with(PREFIX) {
            return Err(NameError::Reserved);
        }
        Ok(Name(bytes))
    }

    /// The bytes of the name.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// An owned copy.
    pub fn to_owned(self) -> NameBuf {
        if self.0.len() > SHORT {
            return NameBuf(Bytes::Long(self.0.into()));
        }
        let mut bytes = [0; SHORT];
        bytes[..self.0.len()].copy_from_slice(self.0);
        NameBuf(Bytes::Short { length: self.0.len() as u8, bytes })
    }

    /// The entry that hides this name in a layer of an image, which may be longer than a file
    /// name can be.
    pub fn whiteout_in_layer(self) -> Vec<u8> {
        [PREFIX, self.0].concat()
    }

    /// The file that hides this name in the branches below.
    pub fn whiteout(self) -> WhiteoutFile {
        if self.0.len() + PREFIX.len() <= NAME_MAX {
            return WhiteoutFile { file: [PREFIX, self.0].concat(), content: Vec::new() };
        }
        let hash = format!("{:032x}", fnv1a(self.0));
        WhiteoutFile { file: [LONG, hash.as_bytes()].concat(), content: self.0.to_vec() }
    }
}

/// The file that is a whiteout: its name, and its content, which is empty but for names of more
/// than 251 bytes, whose whiteout is named by a hash and holds the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhiteoutFile {
    /// Name of the file.
    pub file: Vec<u8>,
    /// What the file holds.
    pub content: Vec<u8>,
}

impl NameBuf {
    /// Borrows the name.
    pub fn as_name(&self) -> Name<'_> {
        Name(self.as_bytes())
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { length, bytes } => &bytes[..usize::from(*length)],
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for NameBuf {
    fn eq(&self, other: &NameBuf) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for NameBuf {}

impl Hash for NameBuf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_name().hash(state);
    }
}

impl PartialOrd for NameBuf {
    fn partial_cmp(&self, other: &NameBuf) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NameBuf {
    fn cmp(&self, other: &NameBuf) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.0))
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(f)
    }
}

/// What a name in a branch's directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawName<'a> {
    /// An ordinary entry.
    Entry(Name<'a>),
    /// The whiteout of a name.
    Whiteout(Name<'a>),
    /// The whiteout of a long name, which is the content of the file.
    LongWhiteout,
    /// The mark that makes the directory opaque.
    Opaque,
    /// Kept for this file system or AuFS (`.wh..wh.*`), or no name at all: skipped, never shown.
    Reserved,
}

impl<'a> RawName<'a> {
    /// Reads a name as it stands in a branch.
    pub fn parse(bytes: &'a [u8]) -> Self {
        let Some(hidden) = bytes.strip_prefix(PREFIX) else {
            return Name::new(bytes).map_or(RawName::Reserved, RawName::Entry);
        };
        if bytes == OPAQUE {
            return RawName::Opaque;
        }
        if bytes.starts_with(LONG) {
            return RawName::LongWhiteout;
        }
        Name::new(hidden).map_or(RawName::Reserved, RawName::Whiteout)
    }
}

/// FNV-1a, 128 bits: the same on every machine and in every version, as a file name must be.
fn fnv1a(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_read_as_it_is_written() {
        for (raw, expected) in [
            (&b"a"[..], RawName::Entry(Name(b"a"))),
            (b".wh", RawName::Entry(Name(b".wh"))),
            (b".wha", RawName::Entry(Name(b".wha"))),
            (b".wh.a", RawName::Whiteout(Name(b"a"))),
            (b".wh..a", RawName::Whiteout(Name(b".a"))),
            (b".wh.", RawName::Reserved),
            (b".wh..", RawName::Reserved),
            (b".wh...", RawName::Reserved),
            (b".wh..wh..opq", RawName::Opaque),
            (b".wh..wh.aufs", RawName::Reserved),
            (b".wh..wh.plnk", RawName::Reserved),
            (b".wh..wh.runionfs", RawName::Reserved),
            (b".wh..wh.long.0", RawName::LongWhiteout),
            (b"..", RawName::Reserved),
        ] {
            assert_eq!(RawName::parse(raw), expected, "{}", String::from_utf8_lossy(raw));
        }
    }

    #[test]
    fn an_owned_name_says_what_it_was_made_of() {
        for length in [1, SHORT - 1, SHORT, SHORT + 1, NAME_MAX] {
            let bytes = vec![b'n'; length];
            let owned = Name(&bytes).to_owned();
            assert_eq!(owned.as_bytes(), bytes);
            assert!(owned < Name(&[b'o'; 3]).to_owned());
        }
        assert_eq!(size_of::<NameBuf>(), 24);
    }

    #[test]
    fn callers_cannot_name_what_is_ours() {
        for (raw, expected) in [
            (&b".wh.a"[..], NameError::Reserved),
            (b".wh.", NameError::Reserved),
            (b".wh..wh..opq", NameError::Reserved),
            (b"", NameError::Invalid),
            (b".", NameError::Invalid),
            (b"..", NameError::Invalid),
            (b"a/b", NameError::Invalid),
            (b"a\0", NameError::Invalid),
            (&[b'x'; 256], NameError::TooLong),
        ] {
            assert_eq!(Name::new(raw), Err(expected), "{}", String::from_utf8_lossy(raw));
        }
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert!(Name::new(b"\xff\xfe").is_ok());
    }

    #[test]
    fn a_whiteout_file_hides_just_its_name() {
        let short = [b'x'; 251];
        let file = Name(&short).whiteout();
        assert_eq!(RawName::parse(&file.file), RawName::Whiteout(Name(&short)));
        assert!(file.content.is_empty());
        let long = [b'x'; 252];
        let file = Name(&long).whiteout();
        assert_eq!(RawName::parse(&file.file), RawName::LongWhiteout);
        assert_eq!(file.content, long);
        assert!(file.file.len() <= NAME_MAX);
        assert_ne!(file.file, Name(&[b'y'; 252]).whiteout().file);
    }
}
