//! One entry of a layer as a value.

use crate::branch::at::At;
use crate::branch::private;
use crate::branch::stat::{Kind, Stat, Time};
use rustix::io::Errno;

/// What an entry is, beyond the attributes that all have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A regular file of so many bytes, which follow.
    File(u64),
    Dir,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A further name of the entry with this path.
    Link(Vec<u8>),
    Fifo,
    /// A character device of this number.
    Char(u64),
    /// A block device of this number.
    Block(u64),
}

/// Names and values of extended attributes, sorted by name.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// From the root of the layer, without a slash at either end; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) what: What,
    pub(super) look: Look,
}

/// The attributes that all entries have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Look {
    /// Permission bits with set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Xattrs,
}

impl Member {
    /// A whiteout or an opaque mark. It says nothing by its attributes, so they are always the
    /// same ones.
    pub(super) fn mark(path: Vec<u8>) -> Member {
        Member { path, what: What::File(0), look: Look { mode: 0o444, ..Look::default() } }
    }
}

impl Look {
    /// The attributes of an entry of a branch.
    pub(super) fn of(at: At<'_>, stat: &Stat) -> Result<Look, Errno> {
        // the kernel has no attributes of these that could be told
        let xattrs = if stat.kind == Kind::Socket { Vec::new() } else { xattrs(at)? };
        Ok(Look { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs })
    }
}

fn xattrs(at: At<'_>) -> Result<Xattrs, Errno> {
    let names = match at.xattr_names() {
        // a branch without extended attributes has none to give
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for name in
        names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !private::is_private(name, at.form().overlay))
    {
        // nothing if it was removed in this moment
        let shown = private::shown(name).filter(|_| at.form().overlay).unwrap_or_else(|| name.to_vec());
        found.extend(at.xattr(name)?.map(|value| (shown, value)));
    }
    found.sort();
    Ok(found)
}
