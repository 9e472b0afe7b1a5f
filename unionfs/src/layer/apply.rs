//! How a layer becomes a branch, whole or not at all.
//!
//! The archive may be hostile. It is unpacked into a new directory beside the branch, which takes
//! the place of the branch in one rename when all is well and is removed otherwise. Each member is
//! reached from the root of that directory component by component, and the kernel follows no symbolic
//! link, so that nothing outside can be reached by any path ([`crate::branch::dir`]). Links of the layer
//! itself on such a path are followed by us, from the root of the layer, as containerd does. What the
//! layers below have under a path has no say, as with podman and docker: where they have a link and this
//! layer something below its name, it has a directory there, which takes the link's place.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::reading::{ReadError, Reader, shown};
use super::unpacking::{Unpacking, disinherit};
use crate::branch::dir::Dir;
use crate::branch::form::Form;
use crate::branch::hold;
use crate::branch::kept::Kept;
use crate::branch::rights::rights;
use crate::branch::root::RootNames;
use crate::branch::work::{self, Work, WorkError};
use crate::options::Keeping;
use crate::union::name::WORK_AREA;

/// The name of what is being unpacked, in a directory of its own.
pub const UNPACKED: &str = "layer";
/// The empty branch beside it, for a moment.
const EMPTY: &[u8] = b"empty";

/// Why a layer was not unpacked. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ApplyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}: {error}", path.display())]
    Place { path: PathBuf, error: Errno },
    #[error("{} is not empty: a layer becomes a branch of its own", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is in use by a mount", .0.display())]
    Busy(PathBuf),
    #[error("{} is a mount point or '/': give a directory in it", .0.display())]
    MountPoint(PathBuf),
    #[error("cannot unpack {}: {error}", shown(path))]
    Member { path: Vec<u8>, error: Errno },
    #[error("{} is refused: {why}", shown(path))]
    Hostile { path: Vec<u8>, why: &'static str },
    #[error("interrupted")]
    Interrupted,
}

impl ApplyError {
    /// What the kernel has said, where that is why.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            ApplyError::Place { error, .. } | ApplyError::Member { error, .. } => Some(*error),
            _ => None,
        }
    }
}

/// Unpacks a layer into a directory, which is made if it is not there and must be empty but for a
/// work area. `ends` is asked now and then whether to give up.
///
/// # Errors
/// Why it could not be unpacked in full; the directory is then as it was.
pub fn apply(input: &mut dyn Read, branch: &Path, ends: &dyn Fn() -> bool) -> Result<(), ApplyError> {
    let place = Place::find(branch)?;
    let holder = Holder::new(&place)?;
    let root = holder.dir.open_dir(UNPACKED.as_bytes()).map_err(|error| place.failed(error))?;
    members(input, Unpacking::new(root, &holder.dir, ends))?;
    holder.put(&place)
}

/// Unpacks a layer as the new directory [`UNPACKED`] in `holder`, a directory on disk that nobody else
/// uses; the caller moves it to its place and syncs it. What the kernel refuses an ordinary user,
/// such as devices, is kept as in a branch that a union writes ([`crate::branch::kept`]).
///
/// `below` is asked for the layers below, the topmost first, where a hard link leads there; nothing
/// ends the work.
///
/// # Errors
/// Why it could not be unpacked in full; what is in `holder` then is of no use.
pub fn unpack(
    input: &mut dyn Read,
    holder: &Path,
    below: &dyn Fn() -> Option<Vec<PathBuf>>,
    ends: &dyn Fn() -> bool,
) -> Result<(), ApplyError> {
    let fail = |error| ApplyError::Place { path: holder.to_owned(), error };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let holder = Dir::new(rustix::fs::open(holder, flags, Mode::empty()).map_err(fail)?, Form::default());
    prepare(&holder).map_err(fail)?;
    let root = holder.open_dir(UNPACKED.as_bytes()).and_then(keeping).map_err(fail)?;
    let again = root.reopen().map_err(fail)?;
    members(input, Unpacking::new(root, &holder, ends).over(below))?;
    leave_no_empty_area(&again).map_err(fail)
}

/// The root of a layer as one that keeps what the kernel refuses.
fn keeping(root: Dir) -> Result<Dir, Errno> {
    if rights().all {
        return Ok(root);
    }
    let Some(kept) = Kept::of(&root, &RootNames::of(&root)?, true, Keeping::Refused, None)? else { return Ok(root) };
    root.make_dir(WORK_AREA, 0o700)?;
    kept.set_area(&root.open_dir(WORK_AREA)?)?;
    Ok(root.with_form(Form { kept: Some(kept), ..Form::default() }))
}

/// Removes the work area again, if nothing had to be kept in it.
fn leave_no_empty_area(root: &Dir) -> Result<(), Errno> {
    match root.keeping_times(|| root.remove_dir(WORK_AREA)) {
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        result => result,
    }
}

fn members(input: &mut dyn Read, mut unpacking: Unpacking<'_>) -> Result<(), ApplyError> {
    let mut reader = Reader::new(Box::new(input));
    while let Some(member) = reader.next()? {
        unpacking.member(&member, &mut reader)?;
    }
    unpacking.finish();
    Ok(())
}

/// Makes the empty layer in the directory where it is unpacked.
fn prepare(holder: &Dir) -> Result<(), Errno> {
    disinherit(holder.at(b""))?;
    holder.make_dir(UNPACKED.as_bytes(), 0o755)?;
    // a group may have been inherited, too, with its bit
    holder.at(UNPACKED.as_bytes()).chmod(0o755)
}

/// Where the branch is to be.
struct Place {
    path: PathBuf,
    parent: Dir,
    name: Vec<u8>,
    /// The work area of the directory that is there, which nobody else can use meanwhile.
    work: Option<Work>,
    /// The lock of that directory, if it has no work area.
    _claim: Option<OwnedFd>,
}

impl Place {
    fn find(path: &Path) -> Result<Place, ApplyError> {
        let fail = |error| ApplyError::Place { path: path.to_owned(), error };
        let io = |error: std::io::Error| fail(error.raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error));
        // a symbolic link to the branch stays
        let path = match path.canonicalize() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::path::absolute(path).map_err(io)?,
            other => other.map_err(io)?,
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(ApplyError::MountPoint(path));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(fail)?;
        let parent = Dir::new(parent, Form::default());
        let name = name.as_bytes().to_vec();
        let (work, claim) = match parent.open_dir(&name) {
            Ok(dir) => Place::look_into(&dir, &path)?,
            Err(Errno::NOENT) => (None, None),
            Err(Errno::XDEV) => return Err(ApplyError::MountPoint(path)),
            Err(error) => return Err(fail(error)),
        };
        Ok(Place { path, parent, name, work, _claim: claim })
    }

    /// Refuses a directory with something in it but a work area, which is locked.
    fn look_into(dir: &Dir, path: &Path) -> Result<(Option<Work>, Option<OwnedFd>), ApplyError> {
        let fail = |error| ApplyError::Place { path: path.to_owned(), error };
        let entries = dir.entries().map_err(fail)?;
        if entries.iter().any(|entry| *entry.name != *WORK_AREA) {
            return Err(ApplyError::NotEmpty(path.to_owned()));
        }
        let used = |error| match error {
            WorkError::Busy(_) => ApplyError::Busy(path.to_owned()),
            WorkError::Volatile => ApplyError::NotEmpty(path.to_owned()),
            WorkError::Errno(error) => fail(error),
        };
        match entries.is_empty() {
            // its mount may have the work area in another place
            true => Ok((None, hold::claim(dir, &hold::ask_nobody).map_err(used)?)),
            false => Ok((Some(Work::open(dir, dir, &hold::ask_nobody).map_err(used)?), None)),
        }
    }

    fn failed(&self, error: Errno) -> ApplyError {
        ApplyError::Place { path: self.path.clone(), error }
    }
}

/// The directory beside the branch in which it is unpacked; removed when dropped.
struct Holder<'a> {
    parent: &'a Dir,
    name: Vec<u8>,
    dir: Dir,
}

impl<'a> Holder<'a> {
    fn new(place: &'a Place) -> Result<Holder<'a>, ApplyError> {
        let make = |name: &[u8]| -> Result<Dir, Errno> {
            place.parent.make_dir(name, 0o700)?;
            let dir = place.parent.open_dir(name)?;
            prepare(&dir)?;
            Ok(dir)
        };
        for attempt in 0_u32.. {
            // left over by a process of the same number that was killed
            let name = format!(".runionfs-apply-{}-{attempt}", std::process::id()).into_bytes();
            match make(&name) {
                Err(Errno::EXIST) => {}
                made => {
                    let dir = made.map_err(|error| place.failed(error))?;
                    return Ok(Holder { parent: &place.parent, name, dir });
                }
            }
        }
        Err(place.failed(Errno::EXIST))
    }

    /// What was unpacked takes the place of the branch.
    fn put(&self, place: &Place) -> Result<(), ApplyError> {
        // a crash must not leave the name of a branch whose files are empty
        let sync = self.dir.open_for_reading().and_then(rustix::fs::syncfs);
        sync.map_err(|error| place.failed(error))?;
        // a directory with a work area is exchanged, and goes with the holder
        let flags = if place.work.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        let put = match self.dir.rename(UNPACKED.as_bytes(), &place.parent, &place.name, flags) {
            Err(Errno::INVAL) if flags == RenameFlags::EXCHANGE => self.put_in_turn(place),
            put => put,
        };
        put.map_err(|error| match error {
            Errno::BUSY | Errno::XDEV => ApplyError::MountPoint(place.path.clone()),
            Errno::NOTEMPTY | Errno::EXIST => ApplyError::NotEmpty(place.path.clone()),
            error => place.failed(error),
        })
    }

    /// The same where names cannot be exchanged: before Linux 3.15, and on some file systems. A crash in the middle leaves
    /// the branch away, which was empty.
    fn put_in_turn(&self, place: &Place) -> Result<(), Errno> {
        place.parent.rename(&place.name, &self.dir, EMPTY, RenameFlags::NOREPLACE)?;
        let put = self.dir.rename(UNPACKED.as_bytes(), &place.parent, &place.name, RenameFlags::NOREPLACE);
        if put.is_err() {
            self.dir.rename(EMPTY, &place.parent, &place.name, RenameFlags::NOREPLACE)?;
        }
        put
    }
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        let removed = work::clear(&self.dir).and_then(|()| self.parent.remove_dir(&self.name));
        if let Err(errno) = removed {
            tracing::warn!("cannot remove {}: {errno}", String::from_utf8_lossy(&self.name));
        }
    }
}
