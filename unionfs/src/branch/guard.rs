//! What file flags forbid (FS_IMMUTABLE_FL and FS_APPEND_FL of ioctl_iflags(2)).
//!
//! On a branch that is written the kernel sees to it. What lies on a branch that is not would be
//! copied up, renamed over or hidden without anybody asking, so the flags are looked at before. A
//! directory is protected by the flags of any directory behind it: a copy of it that was brought up
//! for something further down has none, for nothing could be brought up into an immutable one.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::dir::Dir;

/// On a directory whose flags were changed in the union: those of the directories below it do not
/// count any more.
const OWN_FLAGS: &[u8] = b"trusted.runionfs.flags";
/// The same where `trusted` is out of reach.
const OWN_FLAGS_OF_USER: &[u8] = b"user.runionfs.flags";

/// What the flags of an entry forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guard {
    /// Nothing changes: neither content nor attributes nor names.
    pub immutable: bool,
    /// What is there stays; something can be added.
    pub append_only: bool,
}

impl Guard {
    /// Whether it forbids anything.
    pub fn is_set(self) -> bool {
        self.immutable || self.append_only
    }

    /// What either forbids.
    #[must_use]
    pub fn or(self, other: Guard) -> Guard {
        Guard { immutable: self.immutable || other.immutable, append_only: self.append_only || other.append_only }
    }

    /// Refuses what both flags forbid: a change of attributes, another name, a removal.
    ///
    /// # Errors
    /// EPERM.
    pub fn check_change(self) -> Result<(), Errno> {
        if self.is_set() { Err(Errno::PERM) } else { Ok(()) }
    }

    /// Refuses what only the immutable forbid: something new in a directory.
    ///
    /// # Errors
    /// EPERM.
    pub fn check_addition(self) -> Result<(), Errno> {
        if self.immutable { Err(Errno::PERM) } else { Ok(()) }
    }
}

impl Dir {
    /// Whether the flags of directories below this one do not count.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn has_own_flags(&self) -> Result<bool, Errno> {
        for mark in [OWN_FLAGS, OWN_FLAGS_OF_USER] {
            match self.at(b"").xattr(mark) {
                Ok(None) | Err(Errno::OPNOTSUPP) => {}
                Ok(Some(_)) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }

    /// Says that the flags of directories below this one do not count.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn own_flags(&self) -> Result<(), Errno> {
        match self.at(b"").set_xattr(OWN_FLAGS, b"y", XattrFlags::empty()) {
            Err(Errno::PERM) => self.at(b"").set_xattr(OWN_FLAGS_OF_USER, b"y", XattrFlags::empty()),
            set => set,
        }
    }
}
