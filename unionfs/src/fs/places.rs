//! Where branches lie to each other (rule 40): apart, or one inside the other.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::branch;
use crate::mount::table::{self, DeviceNumber};

/// Where a branch lies.
#[derive(Debug)]
pub(super) struct Site {
    /// Device and inode of the branch and all directories above it, nearest first.
    ancestry: Vec<(u64, u64)>,
    /// Its place within its file system, which a bind mount does not change.
    within: Option<(DeviceNumber, PathBuf)>,
}

/// How one branch lies to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// Neither is in the other, or the other is in this one.
    Apart,
    /// They are one directory.
    Same,
    /// This one is below the other.
    Inside,
}

impl Site {
    /// Finds out where a directory lies.
    pub(super) fn of(path: &Path, mounts: &[table::Entry]) -> Result<Site, Errno> {
        let within = table::within_file_system(mounts, path);
        // spelled in one way only, for hundreds of branches are compared with each other
        let within = within.map(|(device, path)| (device, path.components().collect()));
        Ok(Site { ancestry: branch::ancestry(path)?, within })
    }

    /// Device and inode.
    pub(super) fn id(&self) -> Option<(u64, u64)> {
        self.ancestry.first().copied()
    }

    /// How this lies to another.
    pub(super) fn lies(&self, other: &Site) -> Relation {
        match self.ancestry.iter().position(|id| Some(*id) == other.id()) {
            Some(0) => Relation::Same,
            Some(_) => Relation::Inside,
            None if self.is_within(other) => Relation::Inside,
            None => Relation::Apart,
        }
    }

    /// Whether it is the other or below it, by its place in its file system.
    fn is_within(&self, other: &Site) -> bool {
        let both = self.within.as_ref().zip(other.within.as_ref());
        both.is_some_and(|((device, path), (others, outer))| device == others && is_below(path, outer))
    }
}

/// As [`Path::starts_with`], for paths that are spelled without anything superfluous.
fn is_below(path: &Path, outer: &Path) -> bool {
    let (path, outer) = (path.as_os_str().as_bytes(), outer.as_os_str().as_bytes());
    path.strip_prefix(outer).is_some_and(|rest| matches!(rest, [] | [b'/', ..]) || outer == b"/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_below_another_by_whole_names() {
        for (path, outer) in [
            ("/a/b", "/a"),
            ("/a/b", "/a/b"),
            ("/a/bc", "/a/b"),
            ("/a", "/"),
            ("/", "/"),
            ("/ab", "/a"),
            ("/a", "/a/b"),
        ] {
            let (path, outer) = (Path::new(path), Path::new(outer));
            assert_eq!(is_below(path, outer), path.starts_with(outer), "{path:?} {outer:?}");
        }
    }
}
