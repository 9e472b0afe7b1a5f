//! POSIX ACLs as the extended attributes that hold them (`linux/posix_acl_xattr.h`).

/// The ACL that decides who may use an entry.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The ACL that new entries of a directory inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new entry inherits from its directory's default ACL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The mode bits, which the caller's umask does not touch.
    pub mode: u32,
    /// The access ACL; nothing if the mode says it all.
    pub access: Option<Vec<u8>>,
}

/// The access ACL and mode of an entry that is created with `mode` under a default ACL, as
/// acl(5), "Object creation and default ACLs". Nothing if the value is not an ACL.
pub fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (head, entries) = default.split_at_checked(HEAD)?;
    if u32::from_le_bytes(head.try_into().ok()?) != VERSION || entries.len() % ENTRY != 0 {
        return None;
    }
    let mut access = default.to_vec();
    let mut mode = mode;
    let tag_at = |acl: &[u8], at: usize| u16::from_le_bytes([acl[at], acl[at + 1]]);
    let places = (HEAD..default.len()).step_by(ENTRY);
    let has_mask = places.clone().any(|at| tag_at(default, at) == MASK);
    let mut minimal = true;
    for at in places {
        let shift = match tag_at(&access, at) {
            USER_OBJ => 6,
            OTHER => 0,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            GROUP_OBJ => continue,
            USER | GROUP => {
                minimal = false;
                continue;
            }
            _ => return None,
        };
        // the entry allows no more than the mode asks for, and the mode no more than the entry
        let allowed = u32::from(u16::from_le_bytes([access[at + 2], access[at + 3]])) & (mode >> shift) & 7;
        access[at + 2..at + 4].copy_from_slice(&(allowed as u16).to_le_bytes());
        mode = mode & !(7 << shift) | allowed << shift;
    }
    Some(Inherited { mode, access: (!minimal || has_mask).then_some(access) })
}

/// An ACL as text, short form with numbers (acl(5)): `user::rw-,user:1000:r--,…`. Nothing if the
/// value is not an ACL.
pub fn to_text(value: &[u8]) -> Option<String> {
    let (head, entries) = value.split_at_checked(HEAD)?;
    if u32::from_le_bytes(head.try_into().ok()?) != VERSION || entries.len() % ENTRY != 0 {
        return None;
    }
    let words: Option<Vec<String>> = entries.chunks_exact(ENTRY).map(entry_to_text).collect();
    Some(words?.join(","))
}

fn entry_to_text(entry: &[u8]) -> Option<String> {
    let tag = u16::from_le_bytes(entry.get(..2)?.try_into().ok()?);
    let rights = u16::from_le_bytes(entry.get(2..4)?.try_into().ok()?);
    let id = u32::from_le_bytes(entry.get(4..8)?.try_into().ok()?);
    let who = match tag {
        USER_OBJ => "user:".to_owned(),
        USER => format!("user:{id}"),
        GROUP_OBJ => "group:".to_owned(),
        GROUP => format!("group:{id}"),
        MASK => "mask:".to_owned(),
        OTHER => "other:".to_owned(),
        _ => return None,
    };
    let right = |bit: u16, letter: char| if rights & bit == 0 { '-' } else { letter };
    Some(format!("{who}:{}{}{}", right(4, 'r'), right(2, 'w'), right(1, 'x')))
}

/// Where the entries of an ACL begin; nothing if the value is not one.
fn places(acl: &[u8]) -> Option<impl Iterator<Item = usize> + use<>> {
    let (head, entries) = acl.split_at_checked(HEAD)?;
    let version = u32::from_le_bytes(head.try_into().ok()?);
    (version == VERSION && entries.len() % ENTRY == 0).then(|| (HEAD..acl.len()).step_by(ENTRY))
}

fn tag(acl: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([acl[at], acl[at + 1]])
}

/// Where the permissions of an entry are in the mode: those of the group are the mask's, if the ACL
/// has one.
fn shift(tag: u16, has_mask: bool) -> Option<u32> {
    match tag {
        USER_OBJ => Some(6),
        MASK => Some(3),
        GROUP_OBJ if !has_mask => Some(3),
        OTHER => Some(0),
        _ => None,
    }
}

/// The permission bits that go with an access ACL; nothing if the value is not one.
pub fn mode_of(acl: &[u8]) -> Option<u32> {
    let has_mask = places(acl)?.any(|at| tag(acl, at) == MASK);
    let bits = |at: usize| Some(u32::from(acl[at + 2] & 7) << shift(tag(acl, at), has_mask)?);
    Some(places(acl)?.filter_map(bits).fold(0, |mode, bits| mode | bits))
}

/// A mode that gives nobody more than an access ACL does, for kernels that look at the mode only: the group and all others
/// get what nobody among them is refused by an entry of their own. As it is if the value is not an ACL.
pub fn safe_mode(acl: &[u8], mode: u32) -> u32 {
    let Some(places) = places(acl) else { return mode };
    let entries: Vec<(u16, u32)> = places.map(|at| (tag(acl, at), u32::from(acl[at + 2] & 7))).collect();
    let least = |wanted: &[u16]| {
        let allowed = entries.iter().filter(|(tag, _)| wanted.contains(tag)).map(|(_, bits)| *bits);
        allowed.fold(7, |all, bits| all & bits)
    };
    // who is named is neither of the group nor one of the others; the mask is for all who are named
    let is_named = entries.iter().any(|(tag, _)| matches!(*tag, USER | GROUP));
    let others = if is_named { least(&[USER, GROUP, MASK]) } else { 7 };
    mode & (!0o77 | least(&[GROUP_OBJ, USER, MASK]) << 3 | others)
}

/// An access ACL as chmod(2) changes it.
pub fn with_mode(acl: &[u8], mode: u32) -> Vec<u8> {
    let mut changed = acl.to_vec();
    let Some(places) = places(acl) else { return changed };
    let places: Vec<usize> = places.collect();
    let has_mask = places.iter().any(|at| tag(acl, *at) == MASK);
    for at in places {
        if let Some(shift) = shift(tag(acl, at), has_mask) {
            changed[at + 2] = (mode >> shift & 7) as u8;
        }
    }
    changed
}

/// An ACL with other ids; nothing if the value is not one, or has an id that is not mapped.
pub fn mapped(acl: &[u8], user: impl Fn(u32) -> Option<u32>, group: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
    let mut mapped = acl.to_vec();
    for at in places(acl)? {
        let id = u32::from_le_bytes(acl[at + 4..at + ENTRY].try_into().ok()?);
        let id = match tag(acl, at) {
            USER => user(id)?,
            GROUP => group(id)?,
            _ => id,
        };
        mapped[at + 4..at + ENTRY].copy_from_slice(&id.to_le_bytes());
    }
    Some(mapped)
}

/// An ACL without the users and groups that our user namespace does not know.
pub fn of_known(acl: &[u8]) -> Vec<u8> {
    let Some(places) = places(acl) else { return acl.to_vec() };
    let unknown = |at: usize| matches!(tag(acl, at), USER | GROUP) && acl[at + 4..at + ENTRY] == u32::MAX.to_le_bytes();
    let known = places.filter(|at| !unknown(*at));
    known.fold(acl[..HEAD].to_vec(), |mut kept, at| {
        kept.extend_from_slice(&acl[at..at + ENTRY]);
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_minimal_default_acl_only_shapes_the_mode() {
        let none = u32::MAX;
        let default = acl(&[(USER_OBJ, 7, none), (GROUP_OBJ, 5, none), (OTHER, 0, none)]);
        assert_eq!(inherit(&default, 0o666), Some(Inherited { mode: 0o640, access: None }));
        assert_eq!(inherit(&default, 0o2777), Some(Inherited { mode: 0o2750, access: None }));
    }

    #[test]
    fn without_acls_the_mode_gives_nobody_more() {
        let none = u32::MAX;
        let safe = |entries: &[(u16, u16, u32)], mode| safe_mode(&acl(entries), mode);
        let (owner, other) = ((USER_OBJ, 7, none), (OTHER, 5, none));
        // the group has less than the mask, which is what the mode shows
        assert_eq!(safe(&[owner, (GROUP_OBJ, 0, none), (MASK, 7, none), other], 0o4775), 0o4705);
        // a user is refused what all others may, and may be of the group
        assert_eq!(safe(&[owner, (USER, 0, 5), (GROUP_OBJ, 7, none), (MASK, 7, none), other], 0o775), 0o700);
        // a group is refused what others may; who is in both has what the other group has
        assert_eq!(safe(&[owner, (GROUP_OBJ, 7, none), (GROUP, 4, 5), (MASK, 7, none), other], 0o775), 0o774);
        assert_eq!(safe(&[owner, (USER, 7, 5), (GROUP_OBJ, 7, none), (MASK, 4, none), other], 0o745), 0o744);
        assert_eq!(safe(&[owner, (GROUP_OBJ, 5, none), other], 0o755), 0o755);
        assert_eq!(safe_mode(b"none", 0o777), 0o777);
    }

    #[test]
    fn the_mask_takes_the_group_bits_of_the_mode() {
        let none = u32::MAX;
        let of = |user, group, mask, other| {
            acl(&[
                (USER_OBJ, user, none),
                (USER, 7, 33),
                (GROUP_OBJ, group, none),
                (MASK, mask, none),
                (OTHER, other, none),
            ])
        };
        let inherited = inherit(&of(7, 5, 7, 5), 0o640).expect("it is an ACL");
        assert_eq!(inherited.mode, 0o640);
        assert_eq!(inherited.access, Some(of(6, 5, 4, 0)));
    }

    #[test]
    fn ids_of_an_acl_are_mapped_and_those_of_the_owner_are_none() {
        let none = u32::MAX;
        let of = |user, group| acl(&[(USER_OBJ, 6, none), (USER, 7, user), (GROUP, 1, group), (OTHER, 0, none)]);
        assert_eq!(mapped(&of(33, 5), |id| id.checked_add(100), |id| id.checked_sub(5)), Some(of(133, 0)));
        assert_eq!(mapped(&of(33, 4), Some, |id| id.checked_sub(5)), None);
    }

    #[test]
    fn garbage_is_no_acl() {
        for bytes in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0\x01"] {
            assert_eq!(inherit(bytes, 0o666), None);
            assert_eq!(mode_of(bytes), None);
            assert_eq!(with_mode(bytes, 0o777), bytes);
            assert_eq!(of_known(bytes), bytes);
        }
    }

    #[test]
    fn an_acl_and_a_mode_tell_the_same() {
        let none = u32::MAX;
        let plain = acl(&[(USER_OBJ, 6, none), (GROUP_OBJ, 4, none), (OTHER, 1, none)]);
        assert_eq!(mode_of(&plain), Some(0o641));
        let masked = |user, mask, other| {
            acl(&[
                (USER_OBJ, user, none),
                (USER, 7, 33),
                (GROUP_OBJ, 5, none),
                (MASK, mask, none),
                (OTHER, other, none),
            ])
        };
        assert_eq!(mode_of(&masked(6, 4, 0)), Some(0o640));
        assert_eq!(with_mode(&masked(6, 4, 0), 0o4731), masked(7, 3, 1));
    }

    #[test]
    fn users_that_are_not_known_are_left_out_of_an_acl() {
        let none = u32::MAX;
        let of = |users: &[(u16, u16, u32)]| {
            let rest = [(GROUP_OBJ, 5, none), (MASK, 7, none), (OTHER, 0, none)];
            acl(&[&[(USER_OBJ, 6, none)], users, &rest].concat())
        };
        assert_eq!(of_known(&of(&[(USER, 7, 33), (USER, 6, none), (GROUP, 1, none)])), of(&[(USER, 7, 33)]));
    }
}
