//! The marks of a branch's directory, and its word on a name.

use std::mem::MaybeUninit;

use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;

use super::dir::Dir;
use super::overlay::Mark;
use super::stat::{Kind, Stat};
use crate::union::name::{NAME_MAX, OPAQUE, RECORD};
use crate::union::{Below, Found, Name, NameBuf, RawName, Redirect};

/// What of a branch's marks counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heed {
    /// Whiteouts and opaque marks.
    pub whiteouts: bool,
    /// The whiteout of the name that is asked for; not where it is known that there is none.
    pub beside: bool,
    /// Records of renamed directories.
    pub records: bool,
}

/// A directory's word on a name.
#[derive(Debug)]
pub struct Word {
    /// The word.
    pub found: Found,
    /// The attributes of the entry.
    pub stat: Option<Stat>,
    /// The record, where what is below lies elsewhere.
    pub redirect: Option<Redirect>,
}

impl Dir {
    /// This directory's word on a name.
    ///
    /// # Errors
    /// EIO for a record that says nothing, and those of the branch.
    pub fn word(&self, name: Name<'_>, heed: Heed) -> Result<Word, Errno> {
        let stat = self.find(name.as_bytes())?;
        let is_dir = stat.is_some_and(|stat| stat.kind == Kind::Dir);
        if let Some(entry) = stat.filter(|_| self.form.overlay) {
            let elsewhere = |redirect| Word { found: Found::Dir(Below::Elsewhere), stat, redirect: Some(redirect) };
            // a redirect may lead to where no whiteout of this directory would matter
            match self.overlay_mark(name, &entry, heed.whiteouts || heed.records)? {
                Mark::Nothing => {}
                Mark::Whiteout => return Ok(Word { found: Found::Whiteout, stat: None, redirect: None }),
                Mark::Opaque => return Ok(Word { found: Found::Dir(Below::Hidden), stat, redirect: None }),
                Mark::Redirect(redirect) if !self.has_opaque(name)? => return Ok(elsewhere(redirect)),
                Mark::Redirect(_) => {}
            }
        }
        if is_dir
            && heed.records
            && let Some(record) = self.record_of(name)?
            && !self.has_opaque(name)?
        {
            let Some(redirect) = Redirect::path(&record) else {
                tracing::error!(?name, "a directory's record of its place below is damaged");
                return Err(Errno::IO);
            };
            return Ok(Word { found: Found::Dir(Below::Elsewhere), stat, redirect: Some(redirect) });
        }
        let found = match &stat {
            Some(_) if !is_dir => Found::Leaf,
            Some(_) if heed.whiteouts && (self.has_opaque(name)? || heed.beside && self.has_whiteout(name)?) => {
                Found::Dir(Below::Hidden)
            }
            Some(_) => Found::Dir(Below::Merges),
            None if heed.beside && self.has_whiteout(name)? => Found::Whiteout,
            None => Found::Nothing,
        };
        Ok(Word { found, stat, redirect: None })
    }

    /// What the record of the directory of that name says.
    fn record_of(&self, name: Name<'_>) -> Result<Option<Vec<u8>>, Errno> {
        match self.read_link(&[name.as_bytes(), b"/", RECORD].concat()) {
            Ok(path) => Ok(Some(path)),
            // none; no link, which was not written by us; a union as a branch; replaced in this moment
            Err(Errno::NOENT | Errno::INVAL | Errno::PERM | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
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

    /// Whether no whiteouts are seen in the directory, all of which is read in one call; false if it
    /// is too large for that.
    pub fn is_seen_bare(&self) -> Result<bool, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; 16 * 1024];
        let mut reader = RawDir::new(self.open_for_reading()?, &mut buffer);
        while let Some(entry) = reader.next() {
            let is_whiteout = match RawName::parse(entry?.file_name().to_bytes()) {
                RawName::Whiteout(_) | RawName::LongWhiteout => true,
                RawName::Entry(_) | RawName::Opaque | RawName::Reserved => false,
            };
            if is_whiteout {
                return Ok(false);
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        // the rest, if there is one, would come with the next call
        Ok(reader.next().is_none())
    }

    /// Whether this directory is marked opaque.
    pub fn is_opaque(&self) -> Result<bool, Errno> {
        Ok(self.form.overlay && self.is_overlay_opaque()? || self.has_opaque_mark()?)
    }

    /// The same, by the file that says so.
    pub(super) fn has_opaque_mark(&self) -> Result<bool, Errno> {
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
        match self.has(file) {
            // the branch is a union itself, which has such names for nobody
            Err(Errno::PERM) => Ok(false),
            found => found,
        }
    }
}
