//! The branch string: `PATH[=ATTRIBUTES]`, separated by colons, the top first.
//!
//! A backslash takes the meaning from a `:`, a `=` or a backslash that follows it; before any
//! other byte it is an ordinary byte. The last `=` that keeps its meaning starts the attributes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Access, BranchSpec, Whiteout};

/// More branches than this have no index ([`crate::union::BranchIndex`]).
const MOST: usize = u16::MAX as usize;

/// Why a branch string is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BranchesError {
    /// No branch at all.
    #[error("no branch is given: write PATH=rw:PATH=ro, the top first")]
    None,
    /// Nothing between two colons, or nothing before the `=`.
    #[error("branch {place} of the list has no path: write PATH=rw:PATH=ro, and \\: for a colon in a path")]
    NoPath {
        /// Its place in the list, counted from 1.
        place: usize,
    },
    /// A zero byte, which no path can hold.
    #[error("branch {place} of the list has a zero byte in it")]
    ZeroByte {
        /// Its place in the list, counted from 1.
        place: usize,
    },
    /// An attribute that is not one.
    #[error(
        "unknown attribute '{attribute}' of branch {path} (known are rw, ro and rr, then +wh, +ovl, +init and +nolwh; \
         write \\= for an = in a path)"
    )]
    UnknownAttribute {
        /// The path of the branch.
        path: String,
        /// What stands after the `=`, or between two `+`.
        attribute: String,
    },
    /// Attributes that exclude each other.
    #[error("branch {path} cannot be {access}{attribute}: {reason}")]
    Contradiction {
        /// The path of the branch.
        path: String,
        /// The access mode.
        access: &'static str,
        /// The attribute that does not go with it.
        attribute: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A writable branch in the form of overlayfs, without the word that has it written so.
    #[error("branch {path} is rw+ovl: a branch is written in that form with -o whiteout=overlay only")]
    WrittenOtherwise {
        /// The path of the branch.
        path: String,
    },
    /// The same path twice.
    #[error("branch {path} is given twice")]
    Doubled {
        /// The path.
        path: String,
    },
    /// More branches than can be counted.
    #[error("{count} branches are more than the {MOST} that one union can have")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

/// Reads a branch string. Without an attribute the first branch is `rw` and the others are `ro`.
pub fn parse(list: &OsStr) -> Result<Vec<BranchSpec>, BranchesError> {
    if list.is_empty() {
        return Err(BranchesError::None);
    }
    let items = split(list.as_bytes());
    if items.len() > MOST {
        return Err(BranchesError::TooMany { count: items.len() });
    }
    let mut branches = Vec::with_capacity(items.len());
    let mut seen = HashSet::new();
    for (item, place) in items.into_iter().zip(1..) {
        let branch = item.read(place)?;
        if !seen.insert(branch.path.clone()) {
            return Err(BranchesError::Doubled { path: shown(&branch.path) });
        }
        branches.push(branch);
    }
    Ok(branches)
}

/// Gives the branches that are written the form in which they are: that of `-o whiteout=`.
pub fn settle(mut branches: Vec<BranchSpec>, whiteout: Whiteout) -> Result<Vec<BranchSpec>, BranchesError> {
    for branch in branches.iter_mut().filter(|branch| branch.access == Access::ReadWrite) {
        match whiteout {
            Whiteout::Overlay => branch.overlay = true,
            Whiteout::Wh if branch.overlay => {
                return Err(BranchesError::WrittenOtherwise { path: shown(&branch.path) });
            }
            Whiteout::Wh => {}
        }
    }
    Ok(branches)
}

/// Prints branches so that [`parse`] reads the same again: `PATH=ATTRIBUTES`, colons between.
pub fn print(branches: &[BranchSpec]) -> OsString {
    let texts: Vec<Vec<u8>> = branches.iter().map(|branch| branch.to_text().into_vec()).collect();
    OsString::from_vec(texts.join(&b':'))
}

impl Access {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Access::ReadWrite => "rw",
            Access::ReadOnly => "ro",
            Access::RealReadOnly => "rr",
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl BranchSpec {
    /// The branch as `PATH=ATTRIBUTES`, with escapes.
    pub fn to_text(&self) -> OsString {
        let mut text = Vec::new();
        for &byte in self.path.as_os_str().as_bytes() {
            if is_special(byte) {
                text.push(b'\\');
            }
            text.push(byte);
        }
        text.push(b'=');
        text.extend_from_slice(self.attributes().as_bytes());
        OsString::from_vec(text)
    }

    /// What stands after the `=`: `rw`, `ro+wh` and the like.
    pub fn attributes(&self) -> String {
        let mut text = String::from(self.access.word());
        let whiteouts = self.whiteouts && !self.overlay;
        let words = [(whiteouts, "+wh"), (self.overlay, "+ovl"), (self.init, "+init"), (self.nolwh, "+nolwh")];
        for (given, word) in words {
            if given {
                text.push_str(word);
            }
        }
        text
    }
}

/// Whether the byte needs a backslash before it to be an ordinary one.
fn is_special(byte: u8) -> bool {
    matches!(byte, b':' | b'=' | b'\\')
}

/// A branch as it is written: the bytes without escapes, and where the attributes start.
#[derive(Debug, Default)]
struct Item {
    bytes: Vec<u8>,
    equals: Option<usize>,
}

/// Cuts the string at the colons that are not escaped.
fn split(list: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut item = Item::default();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => items.push(std::mem::take(&mut item)),
            b'=' => {
                item.equals = Some(item.bytes.len());
                item.bytes.push(b'=');
            }
            b'\\' => item.bytes.push(bytes.next_if(|next| is_special(*next)).unwrap_or(b'\\')),
            _ => item.bytes.push(byte),
        }
    }
    items.push(item);
    items
}

impl Item {
    fn read(self, place: usize) -> Result<BranchSpec, BranchesError> {
        if self.bytes.contains(&0) {
            return Err(BranchesError::ZeroByte { place });
        }
        let (path, attributes) = match self.equals {
            Some(at) => (&self.bytes[..at], Some(&self.bytes[at + 1..])),
            None => (&self.bytes[..], None),
        };
        if path.is_empty() {
            return Err(BranchesError::NoPath { place });
        }
        let path = PathBuf::from(OsStr::from_bytes(path));
        let default: &[u8] = if place == 1 { b"rw" } else { b"ro" };
        read_attributes(path, attributes.unwrap_or(default))
    }
}

fn read_attributes(path: PathBuf, attributes: &[u8]) -> Result<BranchSpec, BranchesError> {
    let unknown = |word: &[u8]| BranchesError::UnknownAttribute {
        path: shown(&path),
        attribute: String::from_utf8_lossy(word).into_owned(),
    };
    let mut words = attributes.split(|byte| *byte == b'+');
    let access = match words.next() {
        Some(b"rw") => Access::ReadWrite,
        Some(b"ro") => Access::ReadOnly,
        Some(b"rr") => Access::RealReadOnly,
        other => return Err(unknown(other.unwrap_or_default())),
    };
    let (mut whiteouts, mut overlay, mut init, mut nolwh) = (false, false, false, false);
    for word in words {
        match word {
            b"wh" => whiteouts = true,
            b"ovl" => overlay = true,
            b"init" => init = true,
            b"nolwh" => nolwh = true,
            _ => return Err(unknown(word)),
        }
    }
    check(&path, access, Given { overlay, init, nolwh })?;
    // whiteouts of a writable branch are always looked at, so that the word says nothing there
    let whiteouts = (whiteouts || overlay) && access != Access::ReadWrite;
    Ok(BranchSpec { path, access, whiteouts, overlay, init, nolwh })
}

/// Attributes that do not go with everything.
#[derive(Debug, Clone, Copy)]
struct Given {
    overlay: bool,
    init: bool,
    nolwh: bool,
}

/// Refuses attributes that do not go with the access mode or with each other.
fn check(path: &Path, access: Access, given: Given) -> Result<(), BranchesError> {
    let Given { overlay, init, nolwh } = given;
    let contradiction = |attribute, reason| {
        Err(BranchesError::Contradiction { path: shown(path), access: access.word(), attribute, reason })
    };
    match access {
        Access::ReadWrite if init => contradiction("+init", "an init branch is ro+wh+init, and takes writes in place"),
        Access::RealReadOnly if init => contradiction("+init", "rr promises that nobody writes it; use ro+wh+init"),
        Access::ReadOnly | Access::RealReadOnly if nolwh => {
            contradiction("+nolwh", "it says how whiteouts are written, so it goes with rw only")
        }
        _ if overlay && init => {
            contradiction("+ovl+init", "an init branch is written in place, and no layer of overlayfs")
        }
        _ if overlay && nolwh => contradiction("+ovl+nolwh", "it says how .wh. files are written, and +ovl has none"),
        _ => Ok(()),
    }
}

/// A path for a message.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests;
