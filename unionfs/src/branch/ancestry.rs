//! Which directories a directory lies in.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, makedev};
use rustix::io::Errno;

/// A longer path upwards is not walked at once, for the kernel takes none of any length.
const LONGEST: usize = 90;
const OPEN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Device and inode, which tell a directory from all others.
pub type Id = (u64, u64);

/// A directory as it is seen in one mount; elsewhere it lies in others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Seen {
    id: Id,
    /// Not told before Linux 5.8.
    mount: Option<u64>,
}

/// Finds out for many directories what they lie in, and asks for each of these once: the branches of a union
/// lie mostly beside each other.
#[derive(Debug, Default)]
pub struct Ancestors(HashMap<Seen, Vec<Id>>);

/// Where one directory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestry {
    /// Itself and all directories above it, nearest first.
    pub ids: Vec<Id>,
    /// The mount that it is seen in.
    pub mount: Option<u64>,
}

impl Ancestors {
    /// Of an open directory.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of(&mut self, dir: impl AsFd) -> Result<Ancestry, Errno> {
        let first = look(dir.as_fd(), b"")?;
        if let Some(known) = self.0.get(&first) {
            return Ok(Ancestry { ids: known.clone(), mount: first.mount });
        }
        let (mut walked, mut above) = (vec![first], Vec::new());
        let (mut from, mut path) = (None, Vec::new());
        let mut at = first;
        while above.is_empty() {
            let start = from.as_ref().map_or(dir.as_fd(), OwnedFd::as_fd);
            if path.len() > LONGEST {
                from = Some(rustix::fs::openat(start, &*path, OPEN, Mode::empty())?);
                path.clear();
                continue;
            }
            path.extend_from_slice(if path.is_empty() { b".." } else { b"/.." });
            let parent = look(start, &path)?;
            if parent == at {
                break;
            }
            at = parent;
            match self.0.get(&parent) {
                Some(known) => above.clone_from(known),
                None => walked.push(parent),
            }
        }
        let ids: Vec<Id> = walked.iter().map(|seen| seen.id).chain(above).collect();
        for (place, seen) in walked.into_iter().enumerate().filter(|(_, seen)| seen.mount.is_some()) {
            self.0.insert(seen, ids[place..].to_vec());
        }
        Ok(Ancestry { ids, mount: first.mount })
    }
}

/// Device and inode of a directory and all its ancestors, nearest first.
///
/// # Errors
/// Those of open(2) and statx(2).
pub fn ancestry(path: &Path) -> Result<Vec<Id>, Errno> {
    let dir = rustix::fs::openat(CWD, path, OPEN, Mode::empty())?;
    Ok(Ancestors::default().of(dir)?.ids)
}

/// What lies at a path from a directory.
fn look(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Seen, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, path, flags, StatxFlags::INO | StatxFlags::MNT_ID) {
        // before Linux 4.11, or behind a filter that does not know it
        Err(Errno::NOSYS | Errno::PERM) => {
            let stat = rustix::fs::statat(dir, path, flags)?;
            Ok(Seen { id: (stat.st_dev, stat.st_ino), mount: None })
        }
        about => {
            let about = about?;
            let told = about.stx_mask & StatxFlags::MNT_ID.bits() != 0;
            let id = (makedev(about.stx_dev_major, about.stx_dev_minor), about.stx_ino);
            Ok(Seen { id, mount: told.then_some(about.stx_mnt_id) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn open(path: &Path) -> std::fs::File {
        std::fs::File::open(path).unwrap()
    }

    #[test]
    fn directories_are_found_up_to_the_root_whoever_asked_before() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().canonicalize().unwrap();
        let deep = "d/".repeat(75);
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        std::fs::create_dir_all(base.join(&deep)).unwrap();
        std::fs::create_dir_all(base.join("c")).unwrap();
        let expected = |path: &Path| -> Vec<Id> {
            path.ancestors().map(|path| path.metadata().unwrap()).map(|about| (about.dev(), about.ino())).collect()
        };
        let mut ancestors = Ancestors::default();
        // each for itself, a sibling, one above what is known, the root, and once more
        for name in ["a/b", "c", "a", "", "/", "a/b", &deep] {
            let path = base.join(name);
            assert_eq!(ancestors.of(open(&path)).unwrap().ids, expected(&path), "{name}");
            assert_eq!(ancestry(&path).unwrap(), expected(&path), "{name}");
        }
    }
}
