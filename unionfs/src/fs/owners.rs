//! Owners as they are shown, where the mount maps them to others. Within the union all is as it is kept in
//! the branches; only what comes from the kernel and goes to it is mapped, in extended attributes, too.

use std::borrow::Cow;

use rustix::io::Errno;

use super::attr::Change;
use super::{Caller, Union};
use crate::acl;
use crate::branch::stat::Stat;
use crate::options::ids::Ids;

const CAPABILITY: &[u8] = b"security.capability";
/// Length of `vfs_cap_data` without the id of the root whose capabilities they are.
const OF_ROOT: usize = 20;
const REVISION: u32 = 0xFF00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

impl Union {
    /// User and group that are shown.
    pub(super) fn shown_owner(&self, stat: &Stat) -> (u32, u32) {
        let ids = &self.options.ids;
        (ids.users.shown(stat.uid), ids.groups.shown(stat.gid))
    }

    /// A change with the owner that is kept.
    ///
    /// # Errors
    /// EOVERFLOW for one that nothing is kept as, as with idmapped mounts.
    pub(super) fn kept_owner(&self, change: Change) -> Result<Change, Errno> {
        let ids = &self.options.ids;
        let kept = |ids: &Ids, id: Option<u32>| id.map(|id| ids.kept(id).ok_or(Errno::OVERFLOW)).transpose();
        Ok(Change { uid: kept(&ids.users, change.uid)?, gid: kept(&ids.groups, change.gid)?, ..change })
    }

    /// User and group that a new entry of this caller's is kept with.
    pub(super) fn kept_maker(&self, caller: Caller) -> (u32, u32) {
        let ids = &self.options.ids;
        (ids.users.kept_of_maker(caller.uid), ids.groups.kept_of_maker(caller.gid))
    }

    /// Whether a caller is in a group of a branch.
    pub(super) fn is_in_group(&self, caller: Caller, kept: u32) -> bool {
        caller.is_in_group(self.options.ids.groups.shown(kept))
    }

    /// The value of an extended attribute with the ids that are shown.
    pub(super) fn shown_value(&self, attribute: &[u8], value: Vec<u8>) -> Vec<u8> {
        let ids = &self.options.ids;
        if ids.is_plain() {
            return value;
        }
        let (user, group) = (|id| Some(ids.users.shown(id)), |id| Some(ids.groups.shown(id)));
        match attribute {
            acl::ACCESS | acl::DEFAULT => acl::mapped(&value, user, group).unwrap_or(value),
            CAPABILITY => of_other_root(&value, user).unwrap_or(value),
            _ => value,
        }
    }

    /// The value of an extended attribute with the ids that are kept.
    ///
    /// # Errors
    /// EOVERFLOW for ids that nothing is kept as.
    pub(super) fn kept_value<'a>(&self, attribute: &[u8], value: &'a [u8]) -> Result<Cow<'a, [u8]>, Errno> {
        let ids = &self.options.ids;
        if ids.is_plain() {
            return Ok(value.into());
        }
        let (user, group) = (|id| ids.users.kept(id), |id| ids.groups.kept(id));
        let kept = match attribute {
            acl::ACCESS | acl::DEFAULT => acl::mapped(value, user, group),
            // what the machine's root sets has no root of its own, and is meant for whoever is root there
            CAPABILITY if revision(value) == Some(REVISION_2) => return Ok(value.into()),
            CAPABILITY => of_other_root(value, user),
            _ => return Ok(value.into()),
        };
        kept.map(Cow::Owned).ok_or(Errno::OVERFLOW)
    }
}

fn word(value: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?))
}

fn revision(capability: &[u8]) -> Option<u32> {
    Some(word(capability, 0)? & REVISION)
}

/// File capabilities (capabilities(7)) that count for what the id of their root is mapped to. Nothing if they
/// are none, or that id is not mapped.
fn of_other_root(capability: &[u8], map: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
    let root = match (revision(capability)?, capability.len()) {
        (REVISION_2, OF_ROOT) => 0,
        (REVISION_3, length) if length == OF_ROOT + 4 => word(capability, OF_ROOT)?,
        _ => return None,
    };
    let root = map(root)?;
    let revision = if root == 0 { REVISION_2 } else { REVISION_3 };
    let mut mapped = capability[..OF_ROOT].to_vec();
    mapped[..4].copy_from_slice(&(word(capability, 0)? & !REVISION | revision).to_le_bytes());
    if root != 0 {
        mapped.extend(root.to_le_bytes());
    }
    Some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_follow_their_root() {
        let of_root = [&0x0200_0001_u32.to_le_bytes()[..], &[7; 16]].concat();
        let of_other = [&0x0300_0001_u32.to_le_bytes()[..], &[7; 16], &200_000_u32.to_le_bytes()].concat();
        assert_eq!(of_other_root(&of_root, |id| Some(id + 200_000)), Some(of_other.clone()));
        assert_eq!(of_other_root(&of_other, |id| id.checked_sub(200_000)), Some(of_root.clone()));
        assert_eq!(of_other_root(&of_other, |_| None), None);
        for no_capability in [&b""[..], &of_root[..19], &of_other[..23], &[9; 20]] {
            assert_eq!(of_other_root(no_capability, Some), None);
        }
    }
}
