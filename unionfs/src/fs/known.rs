//! What is known without a system call: of a directory, what its new entries inherit and that no
//! whiteout is in it; of any object, which extended attributes it does not have.
//!
//! Nobody else writes to the branches, so what was found out holds until an operation of ours
//! changes it. With `udba=reval` somebody may, and nothing is remembered. What is found out while
//! something changes is not remembered either, see [`Changes`].

use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

use super::Union;
use crate::acl;
use crate::branch::dir::Dir;
use crate::inode::{Absent, Heritage, Inode};
use crate::union::BranchIndex;

/// The label of SELinux.
pub(super) const LABEL: &[u8] = b"security.selinux";
/// The capabilities of a program.
const CAPABILITY: &[u8] = b"security.capability";
/// So often is asked for one whiteout before the directory is read.
const ASKED_BEFORE_READING: u8 = 4;

/// Counts changes of attributes. Whoever found something out remembers it only if the count stands
/// where it stood before; whoever changes something changes the disk, counts, and then forgets what
/// was known.
#[derive(Debug, Default)]
pub(super) struct Changes(AtomicU64);

impl Changes {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What is known of security labels in the branches.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// Somebody saw or set one.
    seen: AtomicBool,
}

impl Labels {
    /// Notes that there are labels.
    pub(super) fn note(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// Whether getxattr(2) for a label can be answered as by a file system that has none: no
    /// security module gives any, and no branch brings some along.
    pub(super) fn are_unknown(&self) -> bool {
        !are_given() && !self.seen.load(Ordering::Relaxed)
    }
}

/// Whether the kernel gives files security attributes on its own, which nobody tells us of.
fn are_given() -> bool {
    static GIVEN: OnceLock<bool> = OnceLock::new();
    let places = ["/sys/fs/selinux", "/sys/fs/smackfs", "/sys/kernel/security/ima", "/sys/kernel/security/evm"];
    *GIVEN.get_or_init(|| places.iter().any(|place| Path::new(place).exists()))
}

/// Which attributes an object lacks if it lacks this one as far as is remembered; nothing if that
/// is not remembered of it.
fn kind_of(attribute: &[u8]) -> Option<Absent> {
    match attribute {
        CAPABILITY => Some(Absent::CAPABILITY),
        acl::ACCESS => Some(Absent::ACCESS_ACL),
        acl::DEFAULT => Some(Absent::DEFAULT_ACL),
        LABEL => (!are_given()).then_some(Absent::OTHERS),
        // a listing does not tell of all others
        _ if attribute.starts_with(b"user.") || attribute.starts_with(b"trusted.") => Some(Absent::OTHERS),
        _ => None,
    }
}

/// Whether programs, or the kernel, ask for an attribute again and again, of files that do not have
/// it.
pub(super) fn is_asked_often(attribute: &[u8]) -> bool {
    match kind_of(attribute) {
        Some(Absent::OTHERS) => attribute == LABEL,
        kind => kind.is_some(),
    }
}

/// What an object lacks that has these attributes.
fn absent_of(names: &[u8]) -> Absent {
    let has = |wanted: &[u8]| names.split(|byte| *byte == 0).any(|name| name == wanted);
    let unless = |there: bool, kind| if there { Absent::NOTHING } else { kind };
    unless(has(CAPABILITY), Absent::CAPABILITY)
        .with(unless(has(acl::ACCESS), Absent::ACCESS_ACL))
        .with(unless(has(acl::DEFAULT), Absent::DEFAULT_ACL))
        .with(unless(!names.is_empty(), Absent::OTHERS.with(Absent::LISTED)))
}

impl Union {
    /// Attributes of an inode were changed, which may have been known.
    pub(super) fn note_change(&self, inode: &Inode) {
        self.changes.0.fetch_add(1, Ordering::AcqRel);
        inode.with(|state| {
            state.absent = Absent::NOTHING;
            if state.learned().is_some() {
                state.learn().heritage = None;
            }
        });
    }

    /// Whether an inode is known not to have an extended attribute.
    pub(super) fn lacks(&self, inode: &Inode, attribute: &[u8]) -> bool {
        kind_of(attribute).is_some_and(|kind| inode.with(|state| state.absent).contains(kind))
    }

    /// Whether a listing of the extended attributes of an inode is known to be empty.
    pub(super) fn lists_nothing(&self, inode: &Inode) -> bool {
        !are_given() && inode.with(|state| state.absent).contains(Absent::LISTED)
    }

    /// Remembers which attributes an inode does not have; these were all of it since `before`.
    pub(super) fn note_names(&self, inode: &Inode, names: &[u8], before: u64) {
        if names.split(|byte| *byte == 0).any(|name| name == LABEL) {
            self.labels.note();
        }
        if self.revalidates() {
            return;
        }
        inode.with(|state| {
            if self.changes.count() == before {
                state.absent = absent_of(names);
            }
        });
    }

    /// A new inode, whose names nobody has yet, has no extended attributes but what its file system
    /// gives it, and a directory no entries.
    pub(super) fn note_new(&self, inode: &Inode, branch: BranchIndex, is_dir: bool) {
        if self.revalidates() {
            return;
        }
        inode.with(|state| {
            state.absent = Absent::ALL;
            if is_dir {
                state.learn().bare = Some(branch);
            }
        });
    }

    /// What new entries of a directory inherit from it.
    pub(super) fn heritage(&self, dir: &Arc<Inode>) -> Result<Heritage, Errno> {
        if let Some(known) = dir.with(|state| state.learned()?.heritage.clone()) {
            return Ok(known);
        }
        let before = self.changes.count();
        let from = self.dir(dir, dir.stack()?.top())?;
        let stat = from.stat()?;
        let default_acl = match from.at(b"").xattr(acl::DEFAULT) {
            Err(Errno::OPNOTSUPP) => None,
            value => value?.map(Arc::from),
        };
        let found = Heritage { gid: stat.gid, setgid: stat.mode & 0o2000 != 0, default_acl };
        if !self.revalidates() {
            dir.with(|state| {
                if self.changes.count() == before {
                    state.learn().heritage = Some(found.clone());
                }
            });
        }
        Ok(found)
    }

    /// Whether a directory is known to hold no whiteouts on a branch. Its names are held to change
    /// them. One that is asked for again and again, and is not large, is read for that.
    pub(super) fn is_bare(&self, dir: &Inode, open: &Dir, branch: BranchIndex) -> bool {
        if self.revalidates() || open.form().overlay {
            return false;
        }
        let read = dir.with(|state| {
            if state.learned().is_some_and(|learned| learned.bare == Some(branch)) {
                return None;
            }
            let learned = state.learn();
            learned.asked = learned.asked.saturating_add(1);
            Some(learned.asked == ASKED_BEFORE_READING)
        });
        match read {
            None => true,
            Some(false) => false,
            // what cannot be read is asked by name, which says the reason
            Some(true) => match open.is_seen_bare() {
                Ok(bare) => {
                    dir.with(|state| state.learn().bare = bare.then_some(branch));
                    bare
                }
                Err(_) => false,
            },
        }
    }

    /// A whiteout is about to be written into a directory, whose names are held.
    pub(super) fn note_whiteout(&self, dir: &Inode) {
        dir.with(|state| {
            if state.learned().is_some() {
                state.learn().bare = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_tells_what_is_not_in_it() {
        assert_eq!(absent_of(b""), Absent::ALL.with(Absent::LISTED));
        let some = absent_of(b"user.a\0system.posix_acl_access\0");
        assert!(some.contains(Absent::CAPABILITY) && some.contains(Absent::DEFAULT_ACL));
        assert!(!some.contains(Absent::ACCESS_ACL) && !some.contains(Absent::OTHERS));
        for attribute in [&b"security.ima"[..], b"system.nfs4_acl", b"btrfs.compression"] {
            assert_eq!(kind_of(attribute), None);
        }
    }
}
