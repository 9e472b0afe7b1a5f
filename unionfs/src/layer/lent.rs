//! Hard links to what lies in a layer below. No file has a name on two branches, so a copy of it is
//! what the link becomes.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::member::{Look, Member, What};
use crate::branch::dir::Dir;
use crate::branch::stat::{Kind, Stat};
use crate::diff::on;
use crate::diff::view::View;
use crate::options::{Access, BranchSpec};
use crate::union::{Name, RawName, Resolved};

/// What layers below lend: an entry as a member, and its content if it is a file.
pub(super) struct Lent {
    pub(super) member: Member,
    pub(super) content: Option<OwnedFd>,
}

/// What a union of these layers, the topmost first, shows under a path; nothing if that is nothing or
/// a directory.
///
/// # Errors
/// Those of reading the layers.
pub(super) fn find(layers: &[PathBuf], path: &[u8]) -> Result<Option<Lent>, Errno> {
    let branches: Vec<BranchSpec> = layers.iter().map(|layer| branch(layer)).collect();
    let view = View::open_all(&branches, None).map_err(|_| Errno::IO)?;
    let mut names = path.split(|byte| *byte == b'/').map(|part| match RawName::parse(part) {
        RawName::Entry(name) => Ok(name),
        _ => Err(Errno::INVAL),
    });
    let Some(last) = names.next_back().transpose()? else { return Ok(None) };
    let mut level = view.root(0)?;
    for name in names {
        level = view.enter(&level, name?)?;
    }
    match view.look(&level, last)?.resolved {
        Resolved::Leaf(branch) => lend(on(&level, branch)?, last, path).map(Some),
        Resolved::Missing { .. } | Resolved::Dir { .. } => Ok(None),
    }
}

fn branch(path: &Path) -> BranchSpec {
    let path = path.to_owned();
    BranchSpec { path, access: Access::ReadOnly, whiteouts: true, overlay: false, init: false, nolwh: false }
}

fn lend(dir: &Dir, name: Name<'_>, path: &[u8]) -> Result<Lent, Errno> {
    let at = dir.at(name.as_bytes());
    let stat = at.stat()?;
    let mut content = None;
    let what = match stat.kind {
        Kind::File => {
            let file = dir.open_file(name.as_bytes(), OFlags::RDONLY)?;
            let size = Stat::of_file(&file)?.size;
            content = Some(file);
            What::File(size)
        }
        Kind::Symlink => What::Symlink(dir.read_link(name.as_bytes())?),
        Kind::Fifo => What::Fifo,
        Kind::Char => What::Char(stat.rdev),
        Kind::Block => What::Block(stat.rdev),
        Kind::Socket | Kind::Dir => return Err(Errno::STALE),
    };
    Ok(Lent { member: Member { path: path.to_vec(), what, look: Look::of(at, &stat)? }, content })
}
