//! The words of overlayfs and fuse-overlayfs after `-o`: `lowerdir=`, `upperdir=`, `workdir=` and the rest
//! that podman, buildah, containerd and mount(8) write for them.
//!
//! Words are separated by commas. `\,` `\:` `\"` and `\\` stand for the second of the two; any other backslash
//! is itself, for callers do not escape theirs. A value that begins with a quotation mark goes on to the next
//! one that a comma or the end follows. Colons separate the directories of `lowerdir=`; they are handed to the
//! kernel as they are, with `..` and all, for `l/LINK/../diff1` means what the link leads to.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::mount::MsFlags;

use super::ids::{self, Ids, IdsError};
use super::words::{Words, WordsError};
use super::{Dirren, Keeping, Udba, Whiteout, Wish};

/// More lower directories than this have no index.
const MOST: usize = u16::MAX as usize - 1;

/// A `timeout=` below so many seconds asks for changes of the branches to be seen.
const SHORT: f64 = 60.0;

/// Why such words are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// No lower directory.
    #[error("no lowerdir= is given: say -o lowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR]")]
    NoLower,
    /// Nothing between two colons.
    #[error("directory {0} of lowerdir= is empty (\\: is a colon in a path)")]
    EmptyLower(usize),
    /// More than can be counted.
    #[error("{0} lower directories are more than the {MOST} that one union can have")]
    TooMany(usize),
    /// A writable mount needs both.
    #[error("upperdir= is given without workdir=: name an empty directory on the same file system")]
    NoWork,
    /// A path that no path can be.
    #[error("{0}= is not a path")]
    NoPath(&'static str),
    /// Something that is not there, and without which the mount would be another.
    #[error("{0}= is not supported")]
    Unsupported(&'static str),
    /// The branches in two ways.
    #[error("lowerdir= and the branches of {0}= are two ways to say the same: give one")]
    Twice(String),
    /// An id or a list of them.
    #[error("{word}={given}: {error}")]
    Ids {
        /// The word.
        word: &'static str,
        /// The value.
        given: String,
        /// What is wrong with it.
        error: IdsError,
    },
    /// A value that a word does not take.
    #[error("{word}={given}: {expected} is expected")]
    BadValue {
        /// The word.
        word: &'static str,
        /// The value.
        given: String,
        /// What it takes.
        expected: &'static str,
    },
    /// A word of `runionfs mount`, wrongly used.
    #[error(transparent)]
    Word(#[from] WordsError),
}

/// What such words say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The lower directories, the uppermost first.
    pub lower: Vec<PathBuf>,
    /// The directory that takes the changes; without it nothing can be changed.
    pub upper: Option<PathBuf>,
    /// In which form whiteouts are written; nothing where the upper directory itself tells.
    pub whiteout: Option<Whiteout>,
    /// All that `runionfs mount` knows as well, the work directory among it.
    pub words: Words,
    /// Whether access times were spoken of.
    pub access_times: bool,
    /// Stay in the foreground and tell more.
    pub debug: bool,
    /// Labels for SELinux, as the kernel takes them.
    pub labels: Vec<OsString>,
    /// Words that nobody knows, each once.
    pub unknown: Vec<String>,
}

/// Whether words after `-o` are those of overlayfs: they say what lies below.
pub fn is_overlay(argument: &OsStr) -> bool {
    split(argument.as_bytes()).iter().any(|word| word.starts_with(b"lowerdir="))
}

/// Words that are true anyway, or of no meaning here, with their values if they have any.
const ACCEPTED: &[&str] = &[
    "allow_root",
    "async_read",
    "attr_timeout",
    "auto_cache",
    "auto_unmount",
    "blkdev",
    "blksize",
    "big_writes",
    "clone_fd",
    "entry_timeout",
    "fast_ino",
    "fast_ino_check",
    "ino32_t",
    "index",
    "kernel_cache",
    "large_read",
    "max_background",
    "max_idle_threads",
    "max_read",
    "max_readahead",
    "max_threads",
    "max_write",
    "metacopy",
    "negative_timeout",
    "nfs_export",
    "noacl",
    "noxattrs",
    "private",
    "redirect_dir",
    "rootmode",
    "rprivate",
    "rshared",
    "rslave",
    "shared",
    "slave",
    "splice_move",
    "splice_read",
    "splice_write",
    "static_nlink",
    "unbindable",
    "userxattr",
    "uuid",
    "verity",
    "xino",
];

/// What the kernel takes as a label, in mount(8).
const LABELS: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];

/// Words of `runionfs mount` that name branches.
const BRANCHES: &[&[u8]] = &[b"br", b"dirs", b"append", b"prepend"];

impl Overlay {
    /// Reads one `-o` argument on top of what was said before; later words win.
    ///
    /// # Errors
    /// A value that a known word does not take; unknown words are gathered.
    pub fn add(&mut self, argument: &OsStr) -> Result<(), OverlayError> {
        split(argument.as_bytes()).into_iter().filter(|word| !word.is_empty()).try_for_each(|word| self.add_word(word))
    }

    /// Checks that it is a whole.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), OverlayError> {
        match (&self.upper, &self.words.options.workdir) {
            _ if self.lower.is_empty() => Err(OverlayError::NoLower),
            (Some(_), None) => Err(OverlayError::NoWork),
            _ => Ok(()),
        }
    }

    fn add_word(&mut self, word: &[u8]) -> Result<(), OverlayError> {
        let (name, value) = match word.iter().position(|byte| *byte == b'=') {
            Some(at) => (&word[..at], unquoted(&word[at + 1..])),
            None => (word, &b""[..]),
        };
        let has_value = name.len() < word.len();
        match name {
            b"lowerdir" => self.lower = lower(value)?,
            b"upperdir" => self.upper = Some(path("upperdir", value)?),
            b"workdir" => self.words.options.workdir = Some(path("workdir", value)?),
            b"whiteout" => self.whiteout = Some(whiteout(&plain(value))?),
            b"uidmapping" => self.words.options.ids.users = mapping("uidmapping", &plain(value))?,
            b"gidmapping" => self.words.options.ids.groups = mapping("gidmapping", &plain(value))?,
            b"squash_to_root" => {
                self.words.options.ids.users = Ids::squashed(0);
                self.words.options.ids.groups = Ids::squashed(0);
            }
            b"squash_to_uid" => self.words.options.ids.users = squashed("squash_to_uid", &plain(value))?,
            b"squash_to_gid" => self.words.options.ids.groups = squashed("squash_to_gid", &plain(value))?,
            b"xattr_permissions" => self.words.options.keeping = keeping(&plain(value))?,
            b"plugins" if !value.is_empty() => return Err(OverlayError::Unsupported("plugins")),
            b"plugins" => {}
            b"debug" => self.debug = true,
            b"fsync" | b"sync" if has_value => self.words.options.volatile = !switch("fsync", &plain(value))?,
            b"threaded" => {
                self.words.options.threads = if switch("threaded", &plain(value))? { None } else { Some(1) };
            }
            b"writeback" if matches!(value, b"0" | b"1") => {
                self.words.options.writeback = if value == b"1" { Wish::Auto } else { Wish::Off };
            }
            b"timeout" => self.words.options.udba = timeout(&plain(value))?,
            _ => return self.add_other(name, has_value.then_some(value)),
        }
        Ok(())
    }

    /// What is none of overlayfs's own words.
    fn add_other(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<(), OverlayError> {
        let is_one_of = |words: &[&str]| words.iter().any(|word| word.as_bytes() == name);
        if BRANCHES.iter().any(|word| name == *word || name.starts_with(&[word, &b":"[..]].concat())) {
            return Err(OverlayError::Twice(lossy(name.split(|byte| *byte == b':').next().unwrap_or(name))));
        }
        if is_one_of(LABELS) {
            let value = plain(value.unwrap_or_default());
            self.labels.push(OsString::from_vec([name, b"=\"", &value, b"\""].concat()));
            return Ok(());
        }
        if is_one_of(ACCEPTED) {
            return Ok(());
        }
        self.access_times |= name.ends_with(b"atime");
        match self.words.add_one(name, value.map(plain).as_deref()) {
            Err(WordsError::Unknown(_)) => self.note_unknown(name),
            done => done?,
        }
        Ok(())
    }

    fn note_unknown(&mut self, name: &[u8]) {
        let name = lossy(name);
        if !self.unknown.contains(&name) {
            self.unknown.push(name);
        }
    }

    /// The flags of the mount: access times are not kept unless somebody asks for them.
    pub fn flags(&self) -> MsFlags {
        if self.access_times { self.words.flags } else { self.words.flags | MsFlags::MS_NOATIME }
    }

    /// The options that shape the union. Directories with content below are not renamed, for overlayfs and
    /// what reads its layers do not know how.
    pub fn options(&self, whiteout: Whiteout) -> super::Options {
        super::Options { whiteout, dirren: Dirren::Off, ..self.words.options.clone() }
    }
}

/// Cuts at the commas outside of quotes. Escapes and quotes stay.
fn split(argument: &[u8]) -> Vec<&[u8]> {
    let mut words = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < argument.len() {
        match argument[at] {
            b',' => {
                words.push(&argument[start..at]);
                start = at + 1;
            }
            b'\\' => at += 1,
            // a quotation mark elsewhere is a part of a path
            b'"' if at > start && argument[at - 1] == b'=' && !argument[start..at - 1].contains(&b'=') => {
                at = end_of_quote(argument, at).unwrap_or(at);
            }
            _ => {}
        }
        at += 1;
    }
    words.push(&argument[start..]);
    words
}

/// Where a quote that begins here ends: at the first quotation mark that a comma or the end follows.
fn end_of_quote(argument: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < argument.len() {
        match argument[at] {
            b'\\' => at += 1,
            b'"' if matches!(argument.get(at + 1), None | Some(b',')) => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// A value without the quotation marks around it.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] if end_of_quote(value, 0) == Some(value.len() - 1) => inner,
        value => value,
    }
}

/// Cuts at the colons that are not escaped, and takes the escapes away.
fn directories(value: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let taken = match byte {
            b':' => {
                all.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next_if(|next| matches!(next, b',' | b':' | b'"' | b'\\')).unwrap_or(b'\\'),
            _ => byte,
        };
        if let Some(directory) = all.last_mut() {
            directory.push(taken);
        }
    }
    all
}

/// A value that has no parts, without its escapes.
fn plain(value: &[u8]) -> Vec<u8> {
    directories(value).join(&b':')
}

fn lower(value: &[u8]) -> Result<Vec<PathBuf>, OverlayError> {
    let directories = directories(value);
    if directories.len() > MOST {
        return Err(OverlayError::TooMany(directories.len()));
    }
    let read = |(place, bytes): (usize, Vec<u8>)| match bytes {
        bytes if bytes.is_empty() => Err(OverlayError::EmptyLower(place)),
        bytes if bytes.contains(&0) => Err(OverlayError::NoPath("lowerdir")),
        bytes => Ok(PathBuf::from(OsString::from_vec(bytes))),
    };
    (1..).zip(directories).map(read).collect()
}

fn path(word: &'static str, value: &[u8]) -> Result<PathBuf, OverlayError> {
    let bytes = plain(value);
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(OverlayError::NoPath(word));
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

fn mapping(word: &'static str, value: &[u8]) -> Result<Ids, OverlayError> {
    Ids::parse(value).map_err(|error| OverlayError::Ids { word, given: lossy(value), error })
}

fn squashed(word: &'static str, value: &[u8]) -> Result<Ids, OverlayError> {
    let id = ids::id(value).map_err(|error| OverlayError::Ids { word, given: lossy(value), error })?;
    Ok(Ids::squashed(id))
}

fn whiteout(value: &[u8]) -> Result<Whiteout, OverlayError> {
    match value {
        b"wh" | b"aufs" => Ok(Whiteout::Wh),
        b"overlay" => Ok(Whiteout::Overlay),
        _ => Err(bad("whiteout", value, "wh or overlay")),
    }
}

fn keeping(value: &[u8]) -> Result<Keeping, OverlayError> {
    match value {
        b"0" => Ok(Keeping::Refused),
        b"1" => Ok(Keeping::Privileged),
        b"2" => Ok(Keeping::Owners),
        _ => Err(bad("xattr_permissions", value, "0, 1 or 2")),
    }
}

fn switch(word: &'static str, value: &[u8]) -> Result<bool, OverlayError> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(bad(word, value, "0 or 1")),
    }
}

fn timeout(value: &[u8]) -> Result<Udba, OverlayError> {
    let seconds: Option<f64> = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    match seconds.filter(|seconds| *seconds >= 0.0) {
        Some(seconds) if seconds < SHORT => Ok(Udba::Reval),
        Some(_) => Ok(Udba::None),
        None => Err(bad("timeout", value, "a number of seconds")),
    }
}

fn bad(word: &'static str, value: &[u8], expected: &'static str) -> OverlayError {
    OverlayError::BadValue { word, given: lossy(value), expected }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
