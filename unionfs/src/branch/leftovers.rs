//! What AuFS leaves in a branch that it wrote to, beside whiteouts and opaque marks. All of it is
//! skipped by its names; some of it means that the branch is not complete without AuFS.

use std::fmt;

use rustix::io::Errno;

use super::dir::Dir;
use super::stat::Kind;

/// The directory of hard links whose other names lie in branches below.
pub const PSEUDO_LINKS: &[u8] = b".wh..wh.plnk";
/// The directory of files that were removed while they were open.
pub const ORPHANS: &[u8] = b".wh..wh.orph";
/// The file of which AuFS's whiteouts are further names.
pub const WHITEOUT_BASE: &[u8] = b".wh..wh.aufs";
/// At the root of a branch with renamed directories.
const RENAMED: &[u8] = b".wh..wh.hino";
/// Prefix of a file in a renamed directory, which says what lies below it.
const RENAMED_FROM: &[u8] = b".wh..wh..dr.";

/// Something that a branch lacks without AuFS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// So many hard links that are joined by the directory of pseudo-links only.
    PseudoLinks(usize),
    /// So many files without a name.
    Orphans(usize),
    /// A file of the records of renamed directories.
    Renamed(Vec<u8>),
}

impl Leftover {
    /// Its name in the branch.
    pub fn name(&self) -> &[u8] {
        match self {
            Leftover::PseudoLinks(_) => PSEUDO_LINKS,
            Leftover::Orphans(_) => ORPHANS,
            Leftover::Renamed(name) => name,
        }
    }

    /// Whether something is missing that a user of the branch would see.
    pub fn is_loss(&self) -> bool {
        !matches!(self, Leftover::Orphans(_))
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::PseudoLinks(1) => f.write_str("it holds a hard link"),
            Leftover::PseudoLinks(count) => write!(f, "it holds {count} hard links"),
            Leftover::Orphans(count) => {
                return write!(f, "it holds what AuFS kept of {count} removed files: it can be removed");
            }
            Leftover::Renamed(_) => {
                return f.write_str(
                    "it is a record of a directory that AuFS renamed, which is not read, so that what lies below is \
                     missing in it: mount the branches with AuFS and copy the directory there",
                );
            }
        }?;
        f.write_str(
            " of AuFS, whose names in branches below show the old content: mount the branches with AuFS and run \
             'auplink MOUNTPOINT flush' there",
        )
    }
}

/// Whether a name is one of AuFS's records of renamed directories.
pub fn is_record_of_renaming(name: &[u8]) -> bool {
    name == RENAMED || name.starts_with(RENAMED_FROM)
}

/// What AuFS left at the root of a branch.
///
/// # Errors
/// Those of the branch.
pub fn of_aufs(root: &Dir) -> Result<Vec<Leftover>, Errno> {
    let mut found = losses(root)?;
    match count(root, ORPHANS)? {
        0 => {}
        count => found.push(Leftover::Orphans(count)),
    }
    Ok(found)
}

/// The same, but for what nobody misses.
///
/// # Errors
/// Those of the branch.
pub fn losses(root: &Dir) -> Result<Vec<Leftover>, Errno> {
    let mut found = Vec::new();
    match count(root, PSEUDO_LINKS)? {
        0 => {}
        count => found.push(Leftover::PseudoLinks(count)),
    }
    if kind(root, RENAMED)?.is_some() {
        found.push(Leftover::Renamed(RENAMED.to_vec()));
    }
    Ok(found)
}

/// How much is in a directory; nothing where there is none.
fn count(root: &Dir, name: &[u8]) -> Result<usize, Errno> {
    if kind(root, name)? == Some(Kind::Dir) { Ok(root.open_dir(name)?.entries()?.len()) } else { Ok(0) }
}

fn kind(root: &Dir, name: &[u8]) -> Result<Option<Kind>, Errno> {
    match root.find(name) {
        // the branch is a union itself, which has such names for nobody
        Err(Errno::PERM) => Ok(None),
        found => Ok(found?.map(|stat| stat.kind)),
    }
}
