//! The marks of a branch's directory, and its word on a name.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::Dir;
use super::stat::{Kind, Stat};
use crate::union::name::{NAME_MAX, OPAQUE};
use crate::union::{Below, Found, Name, NameBuf};

impl Dir {
    /// This directory's word on a name, and the attributes of the entry. Marks are looked at only
    /// where they count.
    pub fn word(&self, name: Name<'_>, marks: bool) -> Result<(Found, Option<Stat>), Errno> {
        let stat = self.find(name.as_bytes())?;
        let found = match &stat {
            Some(stat) if stat.kind != Kind::Dir => Found::Leaf,
            Some(_) if marks && (self.has_opaque(name)? || self.has_whiteout(name)?) => Found::Dir(Below::Hidden),
            Some(_) => Found::Dir(Below::Merges),
            None if marks && self.has_whiteout(name)? => Found::Whiteout,
            None => Found::Nothing,
        };
        Ok((found, stat))
    }

    /// Whether there is a whiteout of a name.
    pub fn has_whiteout(&self, name: Name<'_>) -> Result<bool, Errno> {
        let whiteout = name.whiteout();
        if whiteout.content.is_empty() {
            return self.has_mark(&whiteout.file);
        }
        Ok(self.long_name(&whiteout.file)?.is_some_and(|hidden| hidden.as_name() == name))
    }

    /// The name that the whiteout of a long name hides; nothing if the file is gone or is none.
    pub fn long_name(&self, whiteout: &[u8]) -> Result<Option<NameBuf>, Errno> {
        let file = match self.open_file(whiteout, OFlags::RDONLY) {
            // what is no regular file was not written by us
            Err(Errno::NOENT | Errno::NAMETOOLONG | Errno::PERM | Errno::STALE) => return Ok(None),
            file => file?,
        };
        let mut content = [0; NAME_MAX + 1];
        let length = rustix::io::pread(file, &mut content, 0)?;
        // planted under another name, it would hide something in listings only
        let name = Name::new(&content[..length]).ok().filter(|name| name.whiteout().file == whiteout);
        Ok(name.map(Name::to_owned))
    }

    /// Whether this directory is marked opaque.
    pub fn is_opaque(&self) -> Result<bool, Errno> {
        self.has_mark(OPAQUE)
    }

    /// Whether the directory of that name is marked opaque.
    fn has_opaque(&self, name: Name<'_>) -> Result<bool, Errno> {
        match self.has_mark(&[name.as_bytes(), b"/", OPAQUE].concat()) {
            // replaced by something else in this moment
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(false),
            found => found,
        }
    }

    fn has_mark(&self, file: &[u8]) -> Result<bool, Errno> {
        match self.find(file) {
            // the branch is a union itself, which has such names for nobody
            Err(Errno::PERM) => Ok(false),
            found => Ok(found?.is_some()),
        }
    }
}
