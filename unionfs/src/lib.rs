//! A union file system: directories ("branches") stacked into one view, with AuFS semantics.
//! (Being written.)

pub mod acl;
pub mod branch;
mod caller;
pub mod control;
pub mod diff;
pub mod fs;
pub mod fuse;
pub mod handle;
pub mod identity;
pub mod inode;
pub mod links;
pub mod mount;
pub mod options;
mod pool;
mod sys;
pub mod union;
