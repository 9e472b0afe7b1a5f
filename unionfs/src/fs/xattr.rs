//! Extended attributes and ACLs. Those that are marks of branches do not show.

use std::borrow::Cow;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::copy_data::Keep;
use super::known::{LABEL, is_asked_often};
use super::{Caller, Union};
use crate::acl;
use crate::branch::private;
use crate::branch::stat::{Kind, Stat};
use crate::inode::Inode;

fn is_acl(attribute: &[u8]) -> bool {
    attribute == acl::ACCESS || attribute == acl::DEFAULT
}

impl Union {
    /// Whether a branch is in the form of overlayfs; then its attributes are nobody else's.
    fn has_overlay_form(&self) -> bool {
        self.branches.iter().any(|branch| branch.root.form().overlay)
    }

    /// The mode that a kernel is told which ignores ACLs: who has one must not get more by that.
    pub(super) fn safe_mode(&self, inode: &Arc<Inode>, stat: &Stat) -> u32 {
        if stat.mode & 0o77 == 0 || stat.kind == Kind::Symlink || self.lacks(inode, acl::ACCESS) {
            return stat.mode;
        }
        match self.read_of(inode, |at| at.xattr(acl::ACCESS)) {
            Ok(Some(value)) => acl::safe_mode(&value, stat.mode),
            Ok(None) | Err(Errno::OPNOTSUPP) => stat.mode,
            // what cannot be told is not given
            Err(_) => stat.mode & !0o77,
        }
    }

    /// Refuses ACLs where the kernel does not heed them.
    fn check_heeded(&self, attribute: &[u8]) -> Result<(), Errno> {
        if is_acl(attribute) && self.kernel_ignores_acls() { Err(Errno::OPNOTSUPP) } else { Ok(()) }
    }

    /// What an attribute is called in the branches; nothing if nobody has it.
    fn stored<'a>(&self, attribute: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if private::is_of_overlay(attribute) && self.has_overlay_form() {
            return private::escaped(attribute).map(Cow::Owned);
        }
        (!private::is_private(attribute, false)).then_some(Cow::Borrowed(attribute))
    }

    /// Refuses an attribute that is a mark of a branch, or could be mistaken for one.
    fn check_settable(&self, attribute: &[u8]) -> Result<(), Errno> {
        match self.stored(attribute) {
            Some(Cow::Borrowed(_)) => Ok(()),
            _ => Err(Errno::PERM),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP where the branch has none.
    pub fn get_xattr(&self, ino: u64, attribute: &[u8]) -> Result<Vec<u8>, Errno> {
        self.check_heeded(attribute)?;
        let stored = self.stored(attribute).ok_or(Errno::NODATA)?;
        let inode = self.inode(ino)?;
        if self.lacks(&inode, &stored) || is_asked_often(&stored) && self.is_not_listed(&inode, &stored)? {
            return Err(self.absence(&stored));
        }
        match self.read_of(&inode, |at| at.xattr(&stored)) {
            // the kernel asks at every check of rights of who is not the owner, and takes any other
            // answer for a failure of the check
            Err(Errno::OPNOTSUPP) if is_acl(attribute) => Err(Errno::NODATA),
            value => Ok(self.shown_value(attribute, value?.ok_or(Errno::NODATA)?)),
        }
    }

    /// Whether a listing of the attributes, which tells of several at once, is without this one.
    fn is_not_listed(&self, inode: &Arc<Inode>, attribute: &[u8]) -> Result<bool, Errno> {
        match self.names_of(inode) {
            // the attribute is asked for itself, then, and may be answered for
            Err(Errno::OPNOTSUPP) => Ok(false),
            names => {
                names?;
                Ok(self.lacks(inode, attribute))
            }
        }
    }

    /// How is told that an object does not have an attribute. A file system without labels says that
    /// it has none at all, so that programs do not ask for that of each file.
    fn absence(&self, attribute: &[u8]) -> Errno {
        if attribute == LABEL && self.labels.are_unknown() { Errno::OPNOTSUPP } else { Errno::NODATA }
    }

    /// The names of the attributes in the branch, which are remembered as far as they tell what is not
    /// there.
    fn names_of(&self, inode: &Arc<Inode>) -> Result<Vec<u8>, Errno> {
        let before = self.changes.count();
        let names = self.read_of(inode, |at| at.xattr_names())?;
        self.note_names(inode, &names, before);
        Ok(names)
    }

    /// The names of the extended attributes, each with a zero byte after it.
    ///
    /// # Errors
    /// EOPNOTSUPP where the branch has none.
    pub fn list_xattr(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let inode = self.inode(ino)?;
        if self.lists_nothing(&inode) {
            return Ok(Vec::new());
        }
        let names = self.names_of(&inode)?;
        let overlay = self.has_overlay_form();
        let names = names.split_inclusive(|byte| *byte == 0);
        let heeded = names.filter(|name| self.check_heeded(name.strip_suffix(b"\0").unwrap_or(name)).is_ok());
        let shown = heeded.filter_map(|name| match private::shown(name) {
            Some(shown) if overlay => Some(Cow::Owned(shown)),
            _ => (!private::is_private(name, overlay)).then_some(Cow::Borrowed(name)),
        });
        Ok(shown.flat_map(Cow::into_owned).collect())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// EPERM for those that are marks of a branch, EEXIST and ENODATA by `flags`, EROFS, those of a
    /// copy-up and of the branch.
    pub fn set_xattr(&self, ino: u64, attribute: &[u8], value: &[u8], flags: u32, caller: Caller) -> Result<(), Errno> {
        self.check_heeded(attribute)?;
        self.check_settable(attribute)?;
        let value = self.kept_value(attribute, value)?;
        let flags = XattrFlags::from_bits_retain(flags);
        let inode = self.inode(ino)?;
        self.check_guard(&inode)?;
        self.check_xattr(&inode, attribute, flags)?;
        self.make_changeable(&inode, Keep::All)?;
        let place = self.hold_to_change(&inode)?;
        place.at().set_xattr(attribute, &value, flags)?;
        self.note_change(&inode);
        if attribute == LABEL {
            self.labels.note();
        }
        if attribute == acl::ACCESS {
            self.drop_set_gid(&place, caller)?;
            self.tell_stale(ino);
        }
        Ok(())
    }

    /// Refuses before a copy-up what the branch would refuse after it.
    fn check_xattr(&self, inode: &Arc<Inode>, attribute: &[u8], flags: XattrFlags) -> Result<(), Errno> {
        if flags.is_empty() {
            return Ok(());
        }
        let present = self.whereabouts(inode)?.at().xattr(attribute)?.is_some();
        match present {
            true if flags.contains(XattrFlags::CREATE) => Err(Errno::EXIST),
            false if flags.contains(XattrFlags::REPLACE) => Err(Errno::NODATA),
            _ => Ok(()),
        }
    }

    /// Setting an ACL is like chmod: it takes the setgid bit away from a file of a group that the
    /// caller is not in.
    fn drop_set_gid(&self, place: &super::names::Where, caller: Caller) -> Result<(), Errno> {
        let stat = place.at().stat()?;
        if stat.mode & 0o2000 == 0 || caller.may_set_id() || self.is_in_group(caller, stat.gid) {
            return Ok(());
        }
        place.at().chmod(stat.mode & !0o2000)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// ENODATA, EPERM for what a union in this one keeps, EROFS, those of a copy-up and of the
    /// branch.
    pub fn remove_xattr(&self, ino: u64, attribute: &[u8]) -> Result<(), Errno> {
        self.check_heeded(attribute)?;
        let stored = self.stored(attribute).ok_or(Errno::NODATA)?;
        let inode = self.inode(ino)?;
        self.check_guard(&inode)?;
        if self.lacks(&inode, &stored) || self.whereabouts(&inode)?.at().xattr(&stored)?.is_none() {
            // an ACL that is not there is as good as removed, see posix_acl_xattr_set in the kernel
            return if is_acl(attribute) { Ok(()) } else { Err(Errno::NODATA) };
        }
        self.check_settable(attribute)?;
        self.make_changeable(&inode, Keep::All)?;
        self.hold_to_change(&inode)?.at().remove_xattr(attribute)?;
        self.note_change(&inode);
        if attribute == acl::ACCESS {
            self.tell_stale(ino);
        }
        Ok(())
    }
}
