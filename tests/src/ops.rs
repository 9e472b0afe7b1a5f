//! System calls as values: drawn at random, shrunk, and done below any directory, with what the caller saw as a value.
//!
//! One list of operations is done on a union and on a plain directory; what the two say is then compared.

use std::collections::BTreeMap;

use rustix::fs::FileType;

mod caller;
mod draw;
mod pick;

pub use caller::Caller;
pub use draw::{acts, acts_and_remounts, acts_over_layers, single_changes, work_and_syncs};
pub use pick::Present;

/// How many handles a caller holds at most.
const HANDLES: usize = 4;

/// One thing that a caller does. Paths may be picks of what is there, see [`Present`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are called as the arguments of the system calls")]
pub enum Op {
    /// open(2) with these flags, write(2) if there is something to write, close(2).
    Open { at: String, how: OpenHow, mode: u32, write: usize },
    /// pwrite(2).
    Write { at: String, offset: u64, length: usize },
    /// write(2) with O_APPEND.
    Append { at: String, length: usize },
    /// Reads the whole file.
    Read { at: String },
    /// stat(2) or lstat(2).
    Stat { at: String, follow: bool },
    /// truncate(2).
    Truncate { at: String, length: u64 },
    /// fallocate(2).
    Allocate { at: String, manner: Allocate, offset: u64, length: u64 },
    /// copy_file_range(2) from one file to another.
    Copy { from: String, to: String, offset: u64, length: usize },
    /// chmod(2).
    Chmod { at: String, mode: u32 },
    /// lchown(2).
    Chown { at: String, uid: Option<u32>, gid: Option<u32> },
    /// utimensat(2).
    Times { at: String, times: Times, follow: bool },
    /// lsetxattr(2).
    SetXattr { at: String, name: Xattr, value: u8, length: usize, how: XattrHow },
    /// lgetxattr(2).
    GetXattr { at: String, name: Xattr },
    /// lremovexattr(2).
    RemoveXattr { at: String, name: Xattr },
    /// mkdir(2).
    Mkdir { at: String, mode: u32 },
    /// rmdir(2).
    Rmdir { at: String },
    /// unlink(2).
    Unlink { at: String },
    /// symlink(2).
    Symlink { at: String, target: String },
    /// readlink(2).
    Readlink { at: String },
    /// link(2).
    Link { from: String, to: String },
    /// renameat2(2).
    Rename { from: String, to: String, how: RenameHow },
    /// mknod(2).
    Mknod { at: String, kind: Node, mode: u32 },
    /// The names in a directory.
    List { at: String },
    /// fsync(2) of a file or directory.
    Sync { at: String },
    /// open(2) into a handle that stays open, in the place of the one that was there.
    Hold { handle: usize, at: String, how: OpenHow },
    /// A call on a handle, or the next one that is open.
    Use { handle: usize, what: HandleUse },
    /// close(2).
    Close { handle: usize },
    /// Unmounts and mounts again, all handles closed before; the whole tree is compared.
    Remount,
    /// `runionfs flush`: hard-link records become real hard links, and nothing is seen of it.
    Flush,
    /// As [`Op::Remount`], with an empty top over the one that was: that is a layer then, where it can be one.
    Layer,
}

/// Flags of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the flags")]
pub enum OpenHow {
    Read,
    Write,
    ReadWrite,
    Create,
    CreateExclusive,
    CreateTruncate,
    WriteTruncate,
    ReadTruncate,
    Append,
}

/// Calls on a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the system calls")]
pub enum HandleUse {
    Read { offset: u64, length: usize },
    Write { offset: u64, length: usize },
    Truncate { length: u64 },
    Stat,
    Chmod { mode: u32 },
    Sync,
}

/// Modes of fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the flags")]
pub enum Allocate {
    Plain,
    KeepSize,
    PunchHole,
    ZeroRange,
}

/// Times to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Both, to a second long ago.
    Old(i64),
    /// The modification time only, to a second long ago.
    OldModification(i64),
    /// Both, to now.
    Now,
}

/// Names of extended attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the attributes")]
pub enum Xattr {
    UserA,
    UserLook,
    Trusted,
    AccessAcl,
    DefaultAcl,
}

/// Flags of setxattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the flags")]
pub enum XattrHow {
    Any,
    Create,
    Replace,
}

/// Flags of renameat2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the flags")]
pub enum RenameHow {
    Plain,
    NoReplace,
    Exchange,
}

/// What mknod(2) makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as the kinds")]
pub enum Node {
    File,
    Fifo,
    Socket,
    Null,
}

/// Who does an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// User and group for the file system.
    pub id: u32,
    /// The umask.
    pub umask: u32,
}

/// An operation and who does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Who.
    pub who: Who,
    /// What.
    pub op: Op,
}

/// What the caller of a successful operation saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing but success.
    Done,
    /// Bytes of a file, an attribute or a link.
    Bytes(Vec<u8>),
    /// So many bytes.
    Count(usize),
    /// Names and types of a directory.
    Names(BTreeMap<Vec<u8>, FileType>),
    /// Attributes.
    Stat(Stat),
}

/// Attributes that a caller can rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as in stat(2)")]
pub struct Stat {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// 0 for directories.
    pub size: i64,
    /// 0 for directories.
    pub nlink: u64,
}
