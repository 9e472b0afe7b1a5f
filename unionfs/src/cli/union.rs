//! The union that a command is asked about: a mounted one, or a list of branches.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use unionfs::branch::work;
use unionfs::control::client::{self, Client, ClientError};
use unionfs::fs::{Flushed, Union};
use unionfs::mount::table;
use unionfs::options::{Access, BranchSpec, Options, branches};

use super::Failure;

/// What was given, and its branches.
pub(super) struct Asked {
    mount: Option<table::Entry>,
    branches: Vec<BranchSpec>,
    workdir: Option<PathBuf>,
}

impl Asked {
    /// A mount, whose daemon says what its branches are, or a list of branches.
    pub(super) fn find(given: &OsStr, workdir: Option<&OsStr>) -> Result<Asked, Failure> {
        match client::find(Path::new(given)) {
            Ok(mount) => {
                let status = Client::connect(&mount)?.show()?;
                let list: Vec<OsString> = status.branches.into_iter().map(OsString::from).collect();
                let words = status.options.into_iter().map(OsString::from);
                let workdir = words.filter_map(|word| word.as_bytes().strip_prefix(b"workdir=").map(to_path)).next();
                Ok(Asked { mount: Some(mount), branches: branches::parse(&list.join(":".as_ref()))?, workdir })
            }
            Err(ClientError::NotAMount(_) | ClientError::Path { .. }) => {
                Ok(Asked { mount: None, branches: branches::parse(given)?, workdir: workdir.map(PathBuf::from) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The branches, top first.
    pub(super) fn branches(&self) -> &[BranchSpec] {
        &self.branches
    }

    /// Where the work area of the topmost writable branch lies, if not in it.
    pub(super) fn workdir(&self) -> Option<&Path> {
        self.workdir.as_deref()
    }

    /// Makes hard-link records real hard links, and writes what the kernel still holds of a mount.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        let flushed = match &self.mount {
            Some(mount) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let synced = rustix::fs::open(&mount.target, flags, Mode::empty()).and_then(rustix::fs::syncfs);
                synced.map_err(|error| format!("cannot sync {}: {error}", mount.target.display()))?;
                Client::connect(mount)?.flush()?
            }
            None => self.flush_branches()?,
        };
        match flushed.pending {
            0 => Ok(()),
            count => Err(format!("{count} hard-linked files have names below that could not be brought up").into()),
        }
    }

    /// The same for branches that are not mounted, where there is something to flush.
    fn flush_branches(&self) -> Result<Flushed, Failure> {
        let Some(top) = self.branches.first().filter(|top| top.access == Access::ReadWrite) else {
            return Ok(Flushed::default());
        };
        let place = self.workdir.as_ref().unwrap_or(&top.path);
        if !work::has_links(place).map_err(|error| format!("{}: {error}", place.display()))? {
            return Ok(Flushed::default());
        }
        if self.branches.len() == 1 {
            let top = top.path.display();
            return Err(format!("{top} has hard links to names in the branches below: give all branches").into());
        }
        let options = Options { workdir: self.workdir.clone(), ..Options::default() };
        let union = Union::open(&self.branches, &options)?;
        Ok(union.flush_links().map_err(|error| format!("cannot flush hard links: {error}"))?)
    }

    /// The device number of the mount, as `st_dev`.
    pub(super) fn device(&self) -> Option<u64> {
        self.mount.as_ref().map(|mount| rustix::fs::makedev(mount.device.major, mount.device.minor))
    }
}

fn to_path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}
