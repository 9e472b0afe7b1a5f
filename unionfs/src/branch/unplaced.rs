//! An entry that is prepared in a work area and has no place in the union yet.
//!
//! A regular file has no name at all until then, where the file system can do that (O_TMPFILE): it
//! comes to its place by one new entry of a directory, and a crash leaves nothing. What lasts after
//! a crash must not differ for it. The journal of ext4 or xfs keeps the content of a file that was
//! synchronised before it got a name; btrfs does not for what has no link (`btrfs_log_inode_parent`
//! in the kernel), so on file systems that are not known to, it has a temporary name.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::at::At;
use super::dir::Dir;
use super::form::Form;
use super::kept::Kept;
use super::work::Work;
use crate::proc;

/// A prepared entry. Dropping it removes it, unless it was put in its place.
#[derive(Debug)]
pub struct Unplaced<'a> {
    work: &'a Work,
    /// Nothing if it has no name, or has its place.
    name: Option<Vec<u8>>,
    /// Of a regular file.
    file: Option<OwnedFd>,
}

impl<'a> Unplaced<'a> {
    /// An empty regular file, open for reading and writing. `bits` are its mode where nobody else
    /// can reach it yet, else only the owner may.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn file(work: &'a Work, bits: u32) -> Result<Unplaced<'a>, Errno> {
        if work.takes_nameless() {
            let file = nameless(work.temporary(), bits)?;
            return Ok(Unplaced { work, name: None, file: Some(file) });
        }
        let name = work.temporary_name();
        let file = work.temporary().create_file(&name, 0o600)?;
        Ok(Unplaced { work, name: Some(name), file: Some(file) })
    }

    /// What `make` makes under a name in the work area's directory of temporary entries.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn entry(work: &'a Work, make: impl FnOnce(&Dir, &[u8]) -> Result<(), Errno>) -> Result<Unplaced<'a>, Errno> {
        let name = work.temporary_name();
        let entry = Unplaced { work, name: Some(name.clone()), file: None };
        make(work.temporary(), &name)?;
        Ok(entry)
    }

    /// The work area.
    pub fn work(&self) -> &'a Work {
        self.work
    }

    /// The open file, of a regular file.
    pub fn open(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Its attributes.
    pub fn at(&self) -> At<'_> {
        let form: Form = self.work.temporary().form();
        match (&self.file, &self.name) {
            (Some(file), _) => At::open(file.as_fd(), form),
            (None, Some(name)) => self.work.temporary().at(name),
            // it has its place, and nobody asks any more
            (None, None) => self.work.temporary().at(b""),
        }
    }

    /// Gives it a name that nothing has, and goes on preparing.
    ///
    /// # Errors
    /// EEXIST, and those of linkat(2).
    pub fn link(&self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        match (&self.name, &self.file) {
            (Some(temporary), _) => self.work.temporary().link(temporary, dir, name),
            (None, Some(file)) => link_nameless(file, dir, name),
            (None, None) => Err(Errno::NOENT),
        }
    }

    /// Puts it in its place, under a name that nothing has.
    ///
    /// # Errors
    /// EEXIST, and those of linkat(2) and renameat2(2).
    pub fn place(&mut self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        let Some(temporary) = &self.name else { return self.link(dir, name) };
        self.work.temporary().rename(temporary, dir, name, RenameFlags::NOREPLACE)?;
        self.name = None;
        Ok(())
    }

    /// The open file alone, without a temporary name.
    pub fn into_open(mut self) -> Option<OwnedFd> {
        self.file.take()
    }
}

impl Drop for Unplaced<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.work.discard(name);
        }
    }
}

/// Makes a file without a name on the file system of a directory.
fn nameless(dir: &Dir, bits: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    // what is kept of a file is settled when it has an owner
    let bits = if dir.form().kept.is_some_and(Kept::writes) { 0o600 } else { bits & 0o777 };
    let file = rustix::fs::openat(dir, c".", flags, Mode::from_raw_mode(bits))?;
    At::open(file.as_fd(), dir.form()).forget_kept()?;
    Ok(file)
}

fn link_nameless(file: &OwnedFd, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::linkat(file, c"", dir, name, AtFlags::EMPTY_PATH) {
        // not for everybody before kernel 6.10, see linkat(2)
        Err(Errno::NOENT) => {
            let path = proc::path(&format!("self/fd/{}", file.as_raw_fd()));
            rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        linked => linked,
    }
}

/// Whether files without a name can be made in a directory, and be given one.
pub(super) fn can_be_nameless(temporary: &Dir, name: &[u8]) -> bool {
    let tried = nameless(temporary, 0o600).and_then(|file| link_nameless(&file, temporary, name));
    match tried.and_then(|()| temporary.unlink(name)) {
        Ok(()) => true,
        Err(errno) => {
            tracing::debug!(%errno, "files get temporary names");
            false
        }
    }
}
