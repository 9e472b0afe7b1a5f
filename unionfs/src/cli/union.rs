//! The union that a command is asked about: a mounted one, or a list of branches.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use unionfs::branch::form::Form;
use unionfs::branch::{self, work};
use unionfs::control::client::{self, Client, ClientError};
use unionfs::fs::{Flushed, SetupError, Union};
use unionfs::mount::table;
use unionfs::options::{Access, BranchSpec, Options, Whiteout, branches};

use super::Failure;

/// What was given, and its branches.
pub(super) struct Asked {
    mount: Option<table::Entry>,
    branches: Vec<BranchSpec>,
    options: Options,
}

/// What a path is that stands alone, and where nothing is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alone {
    /// A branch. So is a directory in a mount: it could be a branch, and would else be taken for all of
    /// the mount.
    IsBranch,
    /// A mistake: what is below it is not said.
    IsNoUnion,
}

/// The options of branches that are mounted with this `workdir=`, or with none.
pub(super) fn of_workdir(workdir: Option<&OsStr>) -> Options {
    Options { workdir: workdir.map(PathBuf::from), ..Options::default() }
}

impl Asked {
    /// A mount, whose daemon says what its branches are, or a list of branches, with the options that
    /// they are mounted with.
    pub(super) fn find(given: &OsStr, options: Options, alone: Alone) -> Result<Asked, Failure> {
        let path = Path::new(given);
        match client::find(path) {
            Ok(mount) if alone == Alone::IsBranch && !is_root(&mount, path)? => Asked::of_branches(given, options),
            Ok(mount) => Asked::of_mount(mount),
            Err(ClientError::NotAMount(_)) if alone == Alone::IsBranch && !is_list(given) && is_empty(path)? => {
                Err(nothing_there(path))
            }
            Err(error) if alone == Alone::IsNoUnion && !is_list(given) => Err(error.into()),
            Err(ClientError::NotAMount(_) | ClientError::Path { .. }) => Asked::of_branches(given, options),
            Err(error) => Err(error.into()),
        }
    }

    fn of_mount(mount: table::Entry) -> Result<Asked, Failure> {
        let status = Client::connect(&mount)?.show()?;
        let list: Vec<OsString> = status.branches.into_iter().map(OsString::from).collect();
        let words = status.options.into_iter().map(OsString::from);
        let workdir = words.filter_map(|word| word.as_bytes().strip_prefix(b"workdir=").map(to_path)).next();
        let options = Options { workdir, ..Options::default() };
        Ok(Asked { mount: Some(mount), branches: branches::parse(&list.join(":".as_ref()))?, options })
    }

    fn of_branches(given: &OsStr, options: Options) -> Result<Asked, Failure> {
        let mut branches = branches::parse(given)?;
        // the list of a mount has +ovl where the option says so, and is understood here as it is
        if options.whiteout == Whiteout::Overlay {
            branches = branches::settle(branches, options.whiteout)?;
        }
        Ok(Asked { mount: None, branches, options })
    }

    /// The branches, top first.
    pub(super) fn branches(&self) -> &[BranchSpec] {
        &self.branches
    }

    /// Where the work area of the topmost writable branch lies, if not in it.
    pub(super) fn workdir(&self) -> Option<&Path> {
        self.options.workdir.as_deref()
    }

    /// Makes hard-link records real hard links: the daemon of the mount does it, or this process.
    pub(super) fn flush_links(&self) -> Result<Flushed, Failure> {
        match &self.mount {
            Some(mount) => Ok(Client::connect(mount)?.flush()?),
            None => {
                let union = Union::open(&self.branches, &self.options)?;
                Ok(union.flush_links().map_err(|errno| format!("cannot flush: {}", std::io::Error::from(errno)))?)
            }
        }
    }

    /// Makes the top stand alone before it is read: hard-link records become real hard links, and what
    /// the kernel still holds of a mount is written.
    pub(super) fn settle(&self) -> Result<(), Failure> {
        match &self.mount {
            Some(_) => self.write_out()?,
            None if !self.has_links()? => return Ok(()),
            None => {}
        }
        match self.flush_links()?.pending {
            0 => Ok(()),
            count => Err(format!("{count} hard-linked files have names below that could not be brought up").into()),
        }
    }

    /// Writes what the kernel still holds of a mount to the branches.
    pub(super) fn write_out(&self) -> Result<(), Failure> {
        let Some(mount) = &self.mount else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let synced = rustix::fs::open(&mount.target, flags, Mode::empty()).and_then(rustix::fs::syncfs);
        synced.map_err(|error| format!("cannot sync {}: {error}", mount.target.display()).into())
    }

    /// Whether there is something to flush in branches that are not mounted; refuses what nobody can
    /// trust.
    fn has_links(&self) -> Result<bool, Failure> {
        let Some(top) = self.branches.first().filter(|top| top.access == Access::ReadWrite) else {
            return Ok(false);
        };
        let place = self.workdir().unwrap_or(&top.path);
        let failed = |error| format!("{}: {error}", place.display());
        if work::is_left_volatile(place).map_err(failed)? {
            return Err(SetupError::Volatile(top.path.clone(), place.to_owned()).into());
        }
        let has_links = work::has_links(place).map_err(failed)?;
        if has_links && self.branches.len() == 1 {
            let top = top.path.display();
            return Err(format!("{top} has hard links to names in the branches below: give all branches").into());
        }
        Ok(has_links)
    }

    /// The device number of the mount, as `st_dev`.
    pub(super) fn device(&self) -> Option<u64> {
        self.mount.as_ref().map(|mount| rustix::fs::makedev(mount.device.major, mount.device.minor))
    }
}

/// Whether a path leads to the root of a mount, and to no directory in it, which may be bound elsewhere.
fn is_root(mount: &table::Entry, path: &Path) -> std::io::Result<bool> {
    Ok(mount.root == Path::new("/") && path.canonicalize()? == mount.target)
}

/// Whether a directory holds nothing at all. One that was the top of a mount holds its work area.
fn is_empty(path: &Path) -> std::io::Result<bool> {
    Ok(path.is_dir() && branch::open_root(path, true, Form::default())?.entries()?.is_empty())
}

/// The likely mistake: the union is not mounted any more.
fn nothing_there(path: &Path) -> Failure {
    let path = path.display();
    format!("{path} is no mounted union, and empty (say {path}=rw if it is an empty branch that is meant)").into()
}

/// Whether it can be nothing but a list of branches.
fn is_list(given: &OsStr) -> bool {
    given.as_bytes().iter().any(|byte| matches!(byte, b':' | b'='))
}

fn to_path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}
