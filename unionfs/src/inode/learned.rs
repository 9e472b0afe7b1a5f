//! What was found out about an object, and is remembered with it.

use std::sync::Arc;

use crate::branch::guard::Guard;
use crate::union::BranchIndex;

/// What was found out about a directory, and holds until something of it changes. Most inodes are
/// files, which have no room for it.
#[derive(Debug, Default)]
pub struct Learned {
    /// What the flags of the directories behind it forbid.
    pub guard: Option<Guard>,
    /// What new entries inherit.
    pub heritage: Option<Heritage>,
    /// The branch on which no whiteout is in it.
    pub bare: Option<BranchIndex>,
    /// How often that was asked, before it was known.
    pub asked: u8,
}

/// What new entries of a directory inherit from it.
#[derive(Debug, Clone)]
pub struct Heritage {
    /// Its group.
    pub gid: u32,
    /// Whether it hands its group on.
    pub setgid: bool,
    /// The ACL that it hands on.
    pub default_acl: Option<Arc<[u8]>>,
}

/// Extended attributes that an object does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absent(u8);

impl Absent {
    /// Nothing is known.
    pub const NOTHING: Absent = Absent(0);
    /// The capabilities of a program.
    pub const CAPABILITY: Absent = Absent(1);
    /// The ACL that decides who may use it.
    pub const ACCESS_ACL: Absent = Absent(2);
    /// The ACL that new entries inherit.
    pub const DEFAULT_ACL: Absent = Absent(4);
    /// All others of `user` and `trusted`, and labels.
    pub const OTHERS: Absent = Absent(8);
    /// All of those.
    pub const ALL: Absent = Absent(15);
    /// A listing of them is empty.
    pub const LISTED: Absent = Absent(16);

    /// Whether these are among them.
    pub fn contains(self, these: Absent) -> bool {
        self.0 & these.0 == these.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, these: Absent) -> Absent {
        Absent(self.0 | these.0)
    }
}
