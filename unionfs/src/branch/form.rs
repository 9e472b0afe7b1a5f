//! In which form a branch is written and read.

use super::kept::Kept;

/// What counts as a mark in a branch, and where the attributes of its entries are. Goes with every
/// open directory of the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// The marks of overlayfs count, too (`+ovl`): character devices 0:0, and what its extended
    /// attributes say.
    pub overlay: bool,
    /// Owner, mode and type of an entry are what was kept of it, where something was.
    pub kept: Option<Kept>,
}
