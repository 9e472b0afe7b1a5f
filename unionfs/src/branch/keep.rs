//! How attributes are kept that the kernel refuses an ordinary user, and shown again.
//!
//! What the kernel grants is real, so that a branch written with ranges of ids looks the same to
//! everybody. Of the rest the whole owner, mode and type are kept ([`Override`]), and the real mode
//! is the one kept as far as it can be, with the owner's own rights added where nobody but the mode
//! gives them (see [`Rights::opens_all`](super::rights::Rights)), and without set-id bits then: they
//! would be those of another user. Whatever changes an entry with an override changes the override,
//! in one system call, after which the real mode follows; an attribute that says what is real goes, and
//! a row stays, for it would go from the disk by itself.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::at::At;
use super::kept::{FORMER, Kept, Override, PREFIX};
use super::rights::rights;
use super::stat::{Kind, Stat};
use crate::acl;

const SECURITY: &[u8] = b"security.";
const CAPABILITY: &[u8] = b"security.capability";
const SET_ID: u32 = 0o6000;

impl At<'_> {
    /// What is shown of an entry, from what is real.
    pub(super) fn shown(self, real: Stat) -> Result<Stat, Errno> {
        match self.kept(&real)? {
            Some(kept) => Ok(kept.over(real)),
            None => Ok(self.with_known_ids(real)),
        }
    }

    /// Ids that our user namespace does not know are shown as root's.
    pub(super) fn with_known_ids(self, real: Stat) -> Stat {
        let is_known = || self.is_owner_known(real.kind);
        Stat { uid: rights().user(real.uid, is_known), gid: rights().group(real.gid, is_known), ..real }
    }

    /// Whether the owner of an entry is an id of our namespace: only then is leaving the access time
    /// alone our right, as root of the namespace (open(2), O_NOATIME).
    fn is_owner_known(self, kind: Kind) -> bool {
        use rustix::fs::OFlags;
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !carries(kind) {
            return false;
        }
        let path = self.path();
        let flags = if self.is_descriptor() { flags.difference(OFlags::NOFOLLOW) } else { flags };
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).is_ok()
    }

    /// What was kept of an entry.
    pub(super) fn kept(self, real: &Stat) -> Result<Option<Override>, Errno> {
        let Some(kept) = self.form.kept else { return Ok(None) };
        if kept.is_marked() && carries(real.kind) {
            let text = match self.override_text(kept) {
                // who may not read the entry does not learn more of it
                Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => None,
                text => text?,
            };
            if let Some(found) = text.as_deref().and_then(Override::parse) {
                return Ok(Some(found));
            }
        }
        kept.row(real.id)
    }

    fn override_text(self, kept: Kept) -> Result<Option<Vec<u8>>, Errno> {
        match self.real_xattr(kept.attribute())? {
            None if kept.has_former_names() => self.real_xattr(FORMER),
            text => Ok(text),
        }
    }

    /// The type that a regular file stands for.
    pub(super) fn stands_for(self) -> Result<Kind, Errno> {
        let Some(kept) = self.form.kept.filter(|kept| kept.is_marked() || kept.has_rows()) else {
            return Ok(Kind::File);
        };
        if kept.has_rows() {
            return Ok(self.stat()?.kind);
        }
        match self.override_text(kept) {
            Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => Ok(Kind::File),
            text => {
                let found = text?.as_deref().and_then(Override::parse);
                Ok(found.and_then(|found| found.stands_for(Kind::File)).unwrap_or(Kind::File))
            }
        }
    }

    pub(super) fn chown_or_keep(self, kept: Kept, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let real = self.real_stat()?;
        let over = self.kept(&real)?;
        if over.is_none() && !(kept.keeps_owners() && carries(real.kind)) {
            match self.real_chown(uid, gid) {
                Err(Errno::PERM | Errno::INVAL) if kept.writes() => {}
                // a later look could not tell it from an owner that is not known
                Ok(()) if kept.writes() && !carries(real.kind) && rights().is_ambiguous(uid, gid) => {}
                result => return result,
            }
        }
        let now = over.unwrap_or_else(|| Override::of(&self.with_known_ids(real)));
        let mode = if real.kind == Kind::Dir { now.mode } else { without_set_id(now.mode) };
        let wanted = Override { uid: uid.unwrap_or(now.uid), gid: gid.unwrap_or(now.gid), mode, ..now };
        self.drop_capability()?;
        self.settle(kept, &real, wanted)
    }

    pub(super) fn chmod_or_keep(self, kept: Kept, bits: u32) -> Result<(), Errno> {
        let real = self.real_stat()?;
        if let Some(now) = self.kept(&real)? {
            return self.settle(kept, &real, Override { mode: bits, ..now });
        }
        let wanted = || Override { mode: bits, ..Override::of(&self.with_known_ids(real)) };
        if kept.writes() && rights().real_mode(real.kind, bits) != bits {
            return self.settle(kept, &real, wanted());
        }
        match self.real_chmod(bits) {
            Err(Errno::PERM) if kept.writes() => self.settle(kept, &real, wanted()),
            // the kernel takes the bit away from those who are not in the group, and says nothing
            Ok(()) if kept.writes() && bits & 0o2000 != 0 && self.real_stat()?.mode != bits => {
                self.settle(kept, &real, wanted())
            }
            result => result,
        }
    }

    /// Makes an entry show what is wanted: really, where the kernel grants it, else by an override.
    pub(super) fn settle(self, kept: Kept, real: &Stat, wanted: Override) -> Result<(), Errno> {
        let may_be_real = wanted.stands_for(real.kind).is_none()
            && (!kept.keeps_owners() || !carries(real.kind) || self.owner_is_real(real, &wanted));
        // while there is an override, nobody sees what is real
        if may_be_real && self.kept(real)?.is_some() && self.make_real(real, &wanted)? {
            return self.drop_override(kept, real, &wanted);
        }
        self.keep(kept, real, &wanted)?;
        let mode = rights().real_mode(real.kind, wanted.mode);
        let mode = if self.owner_is_real(real, &wanted) { mode } else { mode & !SET_ID };
        if real.kind == Kind::Symlink || real.mode == mode {
            return Ok(());
        }
        match self.real_chmod(mode) {
            // not ours; the override says it all
            Err(Errno::PERM) => Ok(()),
            result => result,
        }
    }

    /// Tries to make owner and mode real. Whether they are.
    fn make_real(self, real: &Stat, wanted: &Override) -> Result<bool, Errno> {
        if !carries(real.kind) && rights().is_ambiguous(Some(wanted.uid), Some(wanted.gid)) {
            return Ok(false);
        }
        if rights().real_mode(real.kind, wanted.mode) != wanted.mode && real.kind != Kind::Symlink {
            return Ok(false);
        }
        if !self.owner_is_real(real, wanted) {
            match self.real_chown(Some(wanted.uid), Some(wanted.gid)) {
                Err(Errno::PERM | Errno::INVAL) => return Ok(false),
                result => result?,
            }
        }
        if real.kind == Kind::Symlink {
            return Ok(true);
        }
        match self.real_chmod(wanted.mode) {
            Err(Errno::PERM) => Ok(false),
            Err(errno) => Err(errno),
            Ok(()) => Ok(self.real_stat()?.mode == wanted.mode),
        }
    }

    fn owner_is_real(self, real: &Stat, wanted: &Override) -> bool {
        let known = self.with_known_ids(*real);
        (real.uid, real.gid) == (wanted.uid, wanted.gid) && (known.uid, known.gid) == (real.uid, real.gid)
    }

    /// Writes an override, in one system call.
    pub(super) fn keep(self, kept: Kept, real: &Stat, wanted: &Override) -> Result<(), Errno> {
        let carries = carries(real.kind);
        if carries && kept.mark()? {
            match self.real_set_xattr(kept.attribute(), wanted.print().as_bytes(), XattrFlags::empty()) {
                // from now on a row does not count
                Ok(()) => return kept.update_row(real.id, *wanted),
                Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM | Errno::NOSPC | Errno::TOOBIG) => {}
                Err(errno) => return Err(errno),
            }
        }
        kept.set_row(real.id, *wanted)?;
        // an attribute would count more than the row
        match carries.then(|| self.real_xattr(kept.attribute())) {
            Some(Ok(Some(_))) => {
                kept.sync()?;
                self.real_remove_xattr(kept.attribute())
            }
            _ => Ok(()),
        }
    }

    /// What was kept of an entry is real.
    fn drop_override(self, kept: Kept, real: &Stat, wanted: &Override) -> Result<(), Errno> {
        // the attribute counts more, so it goes last
        kept.update_row(real.id, *wanted)?;
        if !carries(real.kind) {
            return Ok(());
        }
        match self.real_remove_xattr(kept.attribute()) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    fn drop_own(self, attribute: &[u8]) -> Result<(), Errno> {
        match self.real_remove_xattr(attribute) {
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => Ok(()),
            result => result,
        }
    }

    pub(super) fn xattr_or_kept(self, kept: Kept, attribute: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let value = match self.real_xattr(attribute)? {
            None if attribute.starts_with(SECURITY) && kept.is_marked() => {
                // what cannot carry the attribute has none
                match self.real_xattr(&stand_in(attribute)) {
                    Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => None,
                    value => value?,
                }
            }
            value => value,
        };
        match (value, attribute) {
            (Some(value), acl::ACCESS) => {
                let over = self.kept(&self.real_stat()?)?;
                Ok(Some(over.map_or(value.clone(), |over| acl::with_mode(&value, over.mode))))
            }
            (value, _) => Ok(value),
        }
    }

    pub(super) fn set_xattr_or_keep(
        self,
        kept: Kept,
        attribute: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        if attribute == acl::ACCESS {
            return self.set_acl(kept, value, flags);
        }
        match self.real_set_xattr(attribute, value, flags) {
            Err(Errno::PERM) if kept.writes() && attribute.starts_with(SECURITY) && kept.mark()? => {
                self.real_set_xattr(&stand_in(attribute), value, flags)
            }
            result => result,
        }
    }

    /// An access ACL has the permission bits in it, and setting it sets them.
    fn set_acl(self, kept: Kept, value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
        let real = self.real_stat()?;
        let over = self.kept(&real)?;
        let now = over.unwrap_or_else(|| Override::of(&self.with_known_ids(real)));
        let Some(bits) = acl::mode_of(value) else { return self.real_set_xattr(acl::ACCESS, value, flags) };
        let wanted = Override { mode: now.mode & 0o7000 | bits, ..now };
        let possible = rights().real_mode(real.kind, wanted.mode);
        if over.is_none() && (!kept.writes() || possible == wanted.mode) {
            return self.real_set_xattr(acl::ACCESS, value, flags);
        }
        self.keep(kept, &real, &wanted)?;
        self.real_set_xattr(acl::ACCESS, &acl::with_mode(value, possible), flags)
    }

    pub(super) fn remove_xattr_or_kept(self, kept: Kept, attribute: &[u8]) -> Result<(), Errno> {
        match self.real_remove_xattr(attribute) {
            Err(Errno::NODATA | Errno::PERM) if attribute.starts_with(SECURITY) && kept.is_marked() => {
                self.real_remove_xattr(&stand_in(attribute))
            }
            result => result,
        }
    }

    /// File capabilities end with a change of content or owner. Those that were kept do not go by
    /// themselves.
    pub fn drop_capability(self) -> Result<(), Errno> {
        match self.form.kept {
            Some(kept) if kept.is_marked() => self.drop_own(&stand_in(CAPABILITY)),
            _ => Ok(()),
        }
    }

    /// Takes over one extended attribute of another entry.
    pub(super) fn take_xattr(self, attribute: &[u8], value: Vec<u8>) -> Result<(), Errno> {
        let is_acl = attribute == acl::ACCESS || attribute == acl::DEFAULT;
        // users whom the namespace does not know come out as -1, and are nobody's callers here
        let value = if is_acl { acl::of_known(&value) } else { value };
        match self.set_xattr(attribute, &value, XattrFlags::empty()) {
            // a label that the kernel gives what has no room for another
            Err(Errno::PERM) if self.form.kept.is_some_and(Kept::writes) && attribute.starts_with(SECURITY) => {
                tracing::debug!(attribute = %attribute.escape_ascii(), "not ours to set on a copy");
                Ok(())
            }
            result => result,
        }
    }

    /// Makes what was just made of a file one that stands for a fifo, socket or device.
    pub(super) fn become_placeholder(self, kept: Kept, kind: Kind, bits: u32, rdev: u64) -> Result<(), Errno> {
        let real = self.real_stat()?;
        let shown = self.with_known_ids(real);
        let wanted = Override { mode: bits & 0o7777, kind: Some(kind), rdev, ..Override::of(&shown) };
        self.settle(kept, &real, wanted)
    }

    /// What was just made has the inode number of something that is gone, of which something may
    /// have been kept. Where entries have a time of birth, that tells.
    pub(super) fn forget_kept(self) -> Result<(), Errno> {
        let Some(kept) = self.form.kept.filter(|kept| kept.has_rows()) else { return Ok(()) };
        let real = self.real_stat()?;
        if real.id.birth == 0 { kept.drop_row(real.id) } else { Ok(()) }
    }
}

/// Whether entries of this type can have extended attributes of users, and be opened.
fn carries(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Dir)
}

/// What a change of owner leaves of a file's mode, see setattr_should_drop_suidgid in the kernel.
fn without_set_id(mode: u32) -> u32 {
    let setgid = if mode & 0o10 == 0 { mode & 0o2000 } else { 0 };
    mode & !SET_ID | setgid
}

/// The attribute that stands for one that is refused.
fn stand_in(attribute: &[u8]) -> Vec<u8> {
    [PREFIX, attribute].concat()
}

/// The names as they are shown: what stands for another under the name of that, overrides not.
pub(super) fn shown_names(names: &[u8]) -> Vec<u8> {
    let all = || names.split_inclusive(|byte| *byte == 0);
    let mut shown = Vec::with_capacity(names.len());
    for name in all() {
        match name.strip_prefix(PREFIX) {
            None => shown.extend_from_slice(name),
            Some(real) if real.starts_with(SECURITY) && !all().any(|other| other == real) => {
                shown.extend_from_slice(real);
            }
            Some(_) => {}
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_show_what_they_stand_for() {
        let shown = shown_names(
            b"user.a\0user.containers.override_stat\0user.containers.override_security.capability\0trusted.b\0",
        );
        assert_eq!(shown, b"user.a\0security.capability\0trusted.b\0");
        let both = shown_names(b"security.capability\0user.containers.override_security.capability\0");
        assert_eq!(both, b"security.capability\0");
        assert_eq!(shown_names(b""), b"");
    }

    #[test]
    fn a_change_of_owner_takes_set_id_bits_as_the_kernel_does() {
        for (mode, left) in [(0o4755, 0o755), (0o2755, 0o755), (0o2745, 0o2745), (0o6711, 0o711), (0o1777, 0o1777)] {
            assert_eq!(without_set_id(mode), left, "{mode:o}");
        }
    }
}
