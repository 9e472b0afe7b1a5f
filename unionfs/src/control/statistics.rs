//! What `runionfs stats` is told of a mount.

use serde::{Deserialize, Serialize};

use super::Text;
use crate::fs::{Space, Tally};
use crate::fuse::Operation;

/// What a daemon has counted since its mount began, and what there is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// The version of the daemon.
    pub version: String,
    /// Its process id, in its own pid namespace.
    pub pid: u32,
    /// Where it mounted.
    pub mountpoint: Text,
    /// Since when it serves, in milliseconds.
    pub uptime_milliseconds: u64,
    /// The operations that were asked for at all.
    pub operations: Vec<Operation>,
    /// Bytes that were read through the daemon.
    pub read_bytes: u64,
    /// Bytes that were written through the daemon.
    pub written_bytes: u64,
    /// Copy-ups, caches and what is open.
    #[serde(flatten)]
    pub tally: Tally,
    /// The branches, top first.
    pub branches: Vec<BranchSpace>,
}

/// A branch and what is left of its file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchSpace {
    /// The branch as `PATH=ATTRIBUTES`.
    pub branch: Text,
    /// What is left.
    pub space: Option<Space>,
    /// Why that cannot be told.
    pub error: Option<String>,
}

impl BranchSpace {
    /// Of a branch, from what its file system answered.
    pub fn new(branch: Text, answered: Result<Space, rustix::io::Errno>) -> BranchSpace {
        let (space, error) = match answered {
            Ok(space) => (Some(space), None),
            Err(errno) => (None, Some(errno.to_string())),
        };
        BranchSpace { branch, space, error }
    }
}

impl Statistics {
    /// One line of JSON.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_line(&self) -> std::io::Result<Vec<u8>> {
        super::to_line(self)
    }
}
