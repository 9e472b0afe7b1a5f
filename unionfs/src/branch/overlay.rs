//! Marks as overlayfs and fuse-overlayfs write them (`Documentation/filesystems/overlayfs.rst`), on
//! branches that are given as such a layer.
//!
//! A character device 0:0 is a whiteout. The attribute `opaque` of a directory says `y` where it
//! hides what is below, and `x` where empty regular files in it that have the attribute `whiteout`
//! are whiteouts; `redirect` says where what is below it lies. `metacopy` marks a file whose data lies elsewhere.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::FileSystem;
use super::at::At;
use super::dir::{Dir, RawEntry, ReadEntry};
use super::form::Form;
use super::root::RootNames;
use super::stat::{Kind, Stat};
use crate::union::{Name, RawName, Redirect};

/// By `userxattr` and fuse-overlayfs, where `trusted.` is not allowed.
const OPAQUE: [&[u8]; 3] = [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];
const WHITEOUT: [&[u8]; 2] = [b"trusted.overlay.whiteout", b"user.overlay.whiteout"];
const REDIRECT: [&[u8]; 2] = [b"trusted.overlay.redirect", b"user.overlay.redirect"];
/// On the root of a layer of overlayfs to which something below it was copied up (`ovl_set_impure`).
const IMPURE: [&[u8]; 2] = [b"trusted.overlay.impure", b"user.overlay.impure"];
const METACOPY: [&[u8]; 2] = [b"trusted.overlay.metacopy", b"user.overlay.metacopy"];
/// On the root of a branch that is written in this form. Who forgets that would see what is hidden, and
/// write marks among these that overlayfs does not know. overlayfs shows nobody what is called so.
const WRITTEN: [&[u8]; 2] = [b"trusted.overlay.runionfs", b"user.overlay.runionfs"];
/// So many entries are looked at for `metacopy` when a branch is opened.
const LOOKED_AT: usize = 200;

/// Whether a branch is written in this form, whose root has these attributes.
pub fn is_written(names: &RootNames) -> bool {
    names.has_one_of(&WRITTEN)
}

/// What an entry is in this form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// What it looks like.
    Nothing,
    /// A whiteout of its own name.
    Whiteout,
    /// A directory that hides what is below.
    Opaque,
    /// A directory that was renamed with what is below.
    Redirect(Redirect),
}

/// What the attributes of a directory say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Says {
    /// It hides what is below.
    opaque: bool,
    /// Empty files in it may be whiteouts.
    whiteouts: bool,
    /// What is below lies there.
    redirect: Option<Vec<u8>>,
}

/// Whether an entry is a whiteout by its type.
fn is_device(stat: &Stat) -> bool {
    stat.kind == Kind::Char && stat.rdev == 0
}

/// The names of the attributes; none where there are none, or nothing by now.
fn attributes(at: At<'_>) -> Result<Vec<u8>, Errno> {
    match at.xattr_names() {
        Err(Errno::OPNOTSUPP | Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
        names => names,
    }
}

fn has_one_of(at: At<'_>, wanted: &[&[u8]]) -> Result<bool, Errno> {
    Ok(attributes(at)?.split(|byte| *byte == 0).any(|name| wanted.contains(&name)))
}

fn says(at: At<'_>) -> Result<Says, Errno> {
    let mut says = Says::default();
    for name in attributes(at)?.split(|byte| *byte == 0) {
        if REDIRECT.contains(&name) {
            says.redirect = at.xattr(name)?;
        }
        if OPAQUE.contains(&name) {
            match at.xattr(name)?.as_deref() {
                Some(b"y") => says.opaque = true,
                Some(b"x") => says.whiteouts = true,
                _ => {}
            }
        }
    }
    Ok(says)
}

impl Says {
    fn mark(self, name: Name<'_>) -> Result<Mark, Errno> {
        match self.redirect {
            _ if self.opaque => Ok(Mark::Opaque),
            None => Ok(Mark::Nothing),
            Some(redirect) => Redirect::overlay(&redirect).map(Mark::Redirect).ok_or_else(|| {
                tracing::error!(?name, "a directory's redirect attribute is damaged");
                Errno::IO
            }),
        }
    }
}

/// Whether a directory that takes changes holds marks of overlayfs, or was written in this form: all of it
/// is looked at, for a single whiteout that is not seen would bring back what it hides.
///
/// # Errors
/// Those of reading the branch.
pub fn is_written_by_others(path: &Path) -> Result<bool, Errno> {
    let root = super::open_root(path, true, Form { overlay: true, kept: None })?;
    if root.is_overlay_written()? {
        return Ok(true);
    }
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let opened = match root.open_path(&path) {
            // a mount point, which is not looked behind
            Err(Errno::XDEV) => continue,
            opened => opened?,
        };
        let dir = opened.as_ref().unwrap_or(&root);
        let says = says(dir.at(b""))?;
        if says.opaque || says.whiteouts || says.redirect.is_some() {
            return Ok(true);
        }
        for entry in dir.entries()? {
            match (entry.kind, RawName::parse(&entry.name)) {
                (Kind::Char, RawName::Entry(name)) if dir.is_overlay_whiteout(name)? => return Ok(true),
                (Kind::Dir, RawName::Entry(name)) => pending.push([&path[..], name.as_bytes(), b"/"].concat()),
                _ => {}
            }
        }
    }
    Ok(false)
}

impl Dir {
    /// What an entry is. What a directory does to those below is asked only where it matters.
    ///
    /// # Errors
    /// EIO for a redirect that says nothing, and those of the branch.
    pub(super) fn overlay_mark(&self, name: Name<'_>, stat: &Stat, below_matters: bool) -> Result<Mark, Errno> {
        let at = self.at(name.as_bytes());
        Ok(match stat.kind {
            _ if is_device(stat) => Mark::Whiteout,
            Kind::Dir if below_matters => says(at)?.mark(name)?,
            Kind::File if stat.size == 0 && has_one_of(at, &WHITEOUT)? && self.has_whiteout_attributes()? => {
                Mark::Whiteout
            }
            _ => Mark::Nothing,
        })
    }

    /// Whether empty files in this directory may be whiteouts.
    pub fn has_whiteout_attributes(&self) -> Result<bool, Errno> {
        Ok(self.form.overlay && says(self.at(b""))?.whiteouts)
    }

    /// What an entry of a listing means. `attributes` is what [`Dir::has_whiteout_attributes`] says.
    pub fn meaning<'a>(&self, entry: ReadEntry<'a>, attributes: bool) -> Result<RawName<'a>, Errno> {
        let meaning = RawName::parse(entry.name);
        let may_hide = self.form.overlay && (entry.kind == Kind::Char || attributes && entry.kind == Kind::File);
        let RawName::Entry(name) = meaning else { return Ok(meaning) };
        if may_hide && self.is_overlay_whiteout(name)? { Ok(RawName::Whiteout(name)) } else { Ok(meaning) }
    }

    /// Whether what stands under a name is a whiteout in the form of overlayfs.
    pub fn is_overlay_whiteout(&self, name: Name<'_>) -> Result<bool, Errno> {
        if !self.form.overlay {
            return Ok(false);
        }
        let Some(stat) = self.find(name.as_bytes())? else { return Ok(false) };
        Ok(self.overlay_mark(name, &stat, false)? == Mark::Whiteout)
    }

    /// Whether the root with these attributes hides what is below.
    ///
    /// # Errors
    /// Those of reading the branch.
    pub fn is_opaque_root(&self, names: &RootNames) -> Result<bool, Errno> {
        let may_be = self.form.overlay && names.has_one_of(&OPAQUE);
        Ok(may_be && self.is_overlay_opaque()? || self.has_opaque_mark()?)
    }

    /// Whether the directory itself is marked opaque.
    pub(super) fn is_overlay_opaque(&self) -> Result<bool, Errno> {
        Ok(says(self.at(b""))?.opaque)
    }

    /// Makes the directory opaque; false if it was.
    ///
    /// # Errors
    /// EXDEV for a directory whose attribute says that it holds whiteouts: it cannot say both.
    pub fn set_overlay_opaque(&self) -> Result<bool, Errno> {
        let says = says(self.at(b""))?;
        if says.whiteouts {
            return Err(Errno::XDEV);
        }
        if says.opaque {
            return Ok(false);
        }
        let [trusted, user, _] = OPAQUE;
        let set = |name: &[u8]| self.at(b"").set_xattr(name, b"y", XattrFlags::empty());
        match set(trusted) {
            // overlayfs is mounted with userxattr by who may not set it
            Err(Errno::PERM) => set(user),
            result => result,
        }
        .map(|()| true)
    }

    /// Says at the root of a branch that it is written in this form from now on.
    ///
    /// # Errors
    /// Those of setting an extended attribute.
    pub fn set_overlay_written(&self) -> Result<(), Errno> {
        if self.is_overlay_written()? {
            return Ok(());
        }
        let [trusted, user] = WRITTEN;
        let set = |name: &[u8]| self.at(b"").set_xattr(name, b"y", XattrFlags::empty());
        match set(trusted) {
            Err(Errno::PERM) => set(user),
            result => result,
        }
    }

    /// Whether the branch with this root is written in this form.
    ///
    /// # Errors
    /// Those of reading extended attributes.
    pub fn is_overlay_written(&self) -> Result<bool, Errno> {
        Ok(is_written(&RootNames::of(self)?))
    }

    /// Takes the mark of [`Dir::set_overlay_opaque`] away.
    pub fn unset_overlay_opaque(&self) -> Result<(), Errno> {
        OPAQUE.iter().try_for_each(|name| match self.at(b"").remove_xattr(name) {
            Err(Errno::NODATA | Errno::PERM) => Ok(()),
            result => result,
        })
    }

    /// Makes a whiteout.
    pub fn make_overlay_whiteout(&self, name: &[u8]) -> Result<(), Errno> {
        self.make_node(name, Kind::Char, 0, 0)
    }

    /// Refuses an open file whose data lies on another branch: it would read as zeros.
    pub(super) fn check_has_data(&self, file: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !self.form.overlay || !has_one_of(At::open(file.as_fd(), self.form), &METACOPY)? {
            return Ok(());
        }
        if !SAID.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "{} and maybe others cannot be read: their data lies elsewhere (overlayfs with metacopy=on), which is \
                 not supported",
                String::from_utf8_lossy(name)
            );
        }
        Err(Errno::IO)
    }

    /// The same as [`Dir::find_metacopy`] for the root with these attributes, of a branch of this file system.
    /// Where nothing was copied up there is no such file, and to look for one in each of hundreds of branches
    /// takes long. One that is overlooked is EIO when it is opened.
    ///
    /// # Errors
    /// Those of reading the branch.
    pub fn find_metacopy_of(&self, names: &RootNames, system: FileSystem) -> Result<Option<Vec<u8>>, Errno> {
        if names.has_one_of(&IMPURE) || system.is_made_whole() { self.find_metacopy() } else { Ok(None) }
    }

    /// A file with metadata only among the first entries of the branch whose root this is, nearest
    /// first: where overlayfs makes such files, they are rarely alone.
    pub fn find_metacopy(&self) -> Result<Option<Vec<u8>>, Errno> {
        let mut pending = std::collections::VecDeque::from([Vec::new()]);
        let mut left = LOOKED_AT;
        while let Some(path) = pending.pop_front() {
            let opened = match self.open_path(&path) {
                // a mount point, which is not looked behind
                Err(Errno::XDEV) => continue,
                opened => opened?,
            };
            let dir = opened.as_ref().unwrap_or(self);
            let mut entries = Vec::new();
            // of a large directory the first entries are enough
            dir.read_some(dir.open_for_reading()?.as_fd(), |entry| entries.push(RawEntry::from(entry)))?;
            for entry in entries.iter().filter(|entry| !matches!(&*entry.name, b"." | b"..")) {
                let Some(rest) = left.checked_sub(1) else { return Ok(None) };
                left = rest;
                let below = [&path[..], &entry.name[..]].concat();
                match entry.kind {
                    Kind::File if has_one_of(dir.at(&entry.name), &METACOPY)? => return Ok(Some(below)),
                    Kind::Dir => pending.push_back([&below[..], b"/"].concat()),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    /// A directory below, by its path with a slash after each name; nothing for this one.
    fn open_path(&self, path: &[u8]) -> Result<Option<Dir>, Errno> {
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.try_fold(None, |at: Option<Dir>, name| at.as_ref().unwrap_or(self).open_dir(name).map(Some))
    }
}
