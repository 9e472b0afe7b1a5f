//! One branch: a directory of the union's stack, opened so that nothing else of the machine's
//! mount table shows in it.

pub mod ancestry;
pub mod at;
pub(crate) mod descent;
pub mod dir;
pub mod form;
pub mod guard;
pub mod hold;
mod keep;
pub mod kept;
pub mod leftovers;
pub mod marks;
pub mod overlay;
pub mod private;
pub mod rights;
pub mod root;
pub mod stat;
pub(crate) mod table;
pub mod unplaced;
pub mod work;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::options::{Access, BranchSpec, Keeping};
use crate::union::name::RECORDS;
use dir::Dir;
use form::Form;
use kept::Kept;
use marks::Heed;
use root::RootNames;
use stat::Kind;
use work::Work;

/// An open branch.
#[derive(Debug)]
pub struct Branch {
    /// What the user said of it.
    pub spec: BranchSpec,
    /// Its root.
    pub root: Arc<Dir>,
    /// The work area, if names may be written to the branch.
    pub work: Option<Work>,
    /// The mount that holds the branch alone; nothing where there is none, or where it is read-only anyway.
    pub own_mount: Option<OwnMount>,
    /// Device and inode of directories in this branch that are other branches: shown empty.
    pub covered: Vec<(u64, u64)>,
    /// Whether a listing tells the inode numbers that stat tells, all of one device.
    pub honest_listing: bool,
    /// Whether no name is found that a listing does not tell.
    pub exact_listing: bool,
    /// The device of its root.
    pub device: u64,
    /// Whether its root hid what is below it when it was opened.
    pub opaque: bool,
    /// Whether there may be records of renamed directories, or redirects of overlayfs.
    pub records: AtomicBool,
}

/// File systems (by `f_type`, statfs(2)) whose listings tell the same inode numbers as stat, for
/// one device: ext2 to ext4, xfs, tmpfs, squashfs, erofs, f2fs. On others (overlayfs, FUSE, btrfs
/// with its subvolumes) each entry is asked.
const HONEST: [u32; 6] = [0xEF53, 0x5846_5342, 0x0102_1994, 0x7371_7368, 0xE0F5_E1E2, 0xF2F5_2010];

/// Others that find no name but those that they list, spelled like that: btrfs, overlayfs. Not so
/// file systems that fold cases, that mount when a name is looked up, or that have hidden names
/// (`.zfs`, `.snapshot`, /proc).
const EXACT: [u32; 2] = [0x9123_683E, 0x794C_7630];

/// squashfs and erofs.
const MADE_WHOLE: [u32; 2] = [0x7371_7368, 0xE0F5_E1E2];

/// The form of a branch that is given like this.
pub fn form_of(spec: &BranchSpec) -> Form {
    Form { overlay: spec.overlay, ..Form::default() }
}

/// Whether there may be records of renamed directories in a branch, or redirects of overlayfs.
pub fn has_records(root: &Dir) -> Result<bool, Errno> {
    match root.find(RECORDS) {
        _ if root.form().overlay => Ok(true),
        // a union, which has such names for nobody
        Err(Errno::PERM) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// What is known of a file system by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem(u32);

impl FileSystem {
    /// That of an open directory.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn of(dir: &Dir) -> Result<FileSystem, Errno> {
        Ok(FileSystem(rustix::fs::fstatfs(dir)?.f_type as u32))
    }

    /// Whether a listing tells the inode numbers that stat tells, all of one device.
    pub fn has_honest_listing(self) -> bool {
        HONEST.contains(&self.0)
    }

    /// Whether no name is found that is not listed, but where a directory folds cases.
    pub fn has_exact_listing(self) -> bool {
        HONEST.contains(&self.0) || EXACT.contains(&self.0)
    }

    /// Whether it is made as a whole by a tool, so that no root tells what overlayfs did below it.
    pub fn is_made_whole(self) -> bool {
        MADE_WHOLE.contains(&self.0)
    }
}

/// File systems (by `f_type`) whose files may be those of another below them: overlayfs, FUSE,
/// eCryptfs.
const STACKED: [u32; 3] = [0x794C_7630, 0x6573_5546, 0xF15F];

/// Whether a directory may lie on a file system that is stacked on another.
pub fn is_stacked(dir: &Dir) -> Result<bool, Errno> {
    let magic = rustix::fs::fstatfs(dir)?.f_type as u32;
    Ok(STACKED.contains(&magic))
}

impl Branch {
    /// Whether whiteouts and opaque marks count here.
    pub fn honours_whiteouts(&self) -> bool {
        self.spec.whiteouts || self.spec.overlay || self.writable()
    }

    /// Whether names may be written here.
    pub fn writable(&self) -> bool {
        self.spec.access == Access::ReadWrite
    }

    /// What of the marks here counts; whiteouts only where `hiding` can matter.
    pub fn heed(&self, hiding: bool) -> Heed {
        let whiteouts = self.honours_whiteouts();
        let whiteouts_here = whiteouts && hiding;
        let records = whiteouts && self.records.load(Ordering::Acquire);
        Heed { whiteouts: whiteouts_here, beside: whiteouts_here, records }
    }

    /// Says on the disk that there may be records here from now on.
    ///
    /// # Errors
    /// Those of making a file.
    pub fn begin_records(&self) -> Result<(), Errno> {
        if self.records.load(Ordering::Acquire) {
            return Ok(());
        }
        let made = self.root.keeping_times(|| self.root.make_node(RECORDS, Kind::File, 0o444, 0));
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.records.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether an entry that lies here is changed in its place, not copied up.
    pub fn in_place(&self) -> bool {
        self.writable() || self.spec.init
    }
}

/// Opens the directory of a branch, cut off from the mount table: a mount of its own that holds
/// the one file system, without the mounts below it (rule 40), read-only for read-only branches
/// so that not even an access time changes.
///
/// Where the kernel has no open_tree(2) or does not allow it, the directory itself is opened;
/// mounts below it are then refused one by one (see [`Dir::open_dir`]).
pub fn open_root(path: &Path, read_only: bool, form: Form) -> Result<Dir, Errno> {
    // the path is opened first: open_tree(2) alone does not mind a file
    Ok(cut_off(open_place(path)?, if read_only { Forbids::Changes } else { Forbids::Nothing }, form))
}

/// Opens the directory of a branch as it lies in the mount table.
///
/// # Errors
/// Those of open(2).
pub fn open_place(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What the mount of a branch's own forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbids {
    /// Nothing.
    Nothing,
    /// That reading a file changes its access time, also where the kernel reads it itself.
    AccessTimes,
    /// Every change, access times included.
    Changes,
}

/// A mount of a branch's own, in no mount table.
#[derive(Debug)]
pub struct OwnMount(OwnedFd);

impl OwnMount {
    /// Keeps everything in it from being changed, by whatever way it was opened, or allows it again.
    ///
    /// # Errors
    /// EBUSY while a file in it is open for writing; ENOSYS before Linux 5.12.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), Errno> {
        crate::sys::set_read_only(self.0.as_fd(), read_only)
    }
}

/// A root, and the mount of its own that it is in.
pub type Root = (Dir, Option<OwnMount>);

/// The second half of [`open_root`].
pub fn cut_off(plain: OwnedFd, forbids: Forbids, form: Form) -> Dir {
    cut_off_held(plain, forbids, form).0
}

/// The same, and the mount that was made for it.
pub fn cut_off_held(plain: OwnedFd, forbids: Forbids, form: Form) -> Root {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = match rustix::mount::open_tree(&plain, c"", flags) {
        Ok(clone) => clone,
        Err(errno) => {
            tracing::debug!(%errno, "cloning the mount of a branch");
            return (Dir::new(plain, form), None);
        }
    };
    if forbids != Forbids::Nothing
        && let Err(errno) = crate::sys::forbid_access_times(clone.as_fd(), forbids == Forbids::Changes)
    {
        tracing::debug!(%errno, ?forbids, "setting up the mount of a branch");
    }
    let held = if forbids == Forbids::Changes { None } else { clone.try_clone().ok() };
    (Dir::new(clone, form), held.map(OwnMount))
}

/// Opens a writable branch's root and the directory of its work area from **one** clone of their
/// common ancestor, for a rename between two clones is EXDEV.
///
/// # Errors
/// EXDEV if they do not lie on the same mount.
pub fn open_root_and_workdir(root: &Path, workdir: &Path, forbids: Forbids, form: Form) -> Result<(Root, Dir), Errno> {
    let (root, workdir) = (canonical(root)?, canonical(workdir)?);
    let ancestor: PathBuf =
        root.components().zip(workdir.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let (base, own_mount) = cut_off_held(open_place(&ancestor)?, forbids, form);
    let open = |path: &Path| -> Result<Dir, Errno> {
        let below = path.strip_prefix(&ancestor).map_err(|_| Errno::INVAL)?;
        let dir = below
            .components()
            .try_fold(base.reopen()?, |dir, component| dir.open_dir(component.as_os_str().as_encoded_bytes()))?;
        let direct = rustix::fs::stat(path)?;
        let id = dir.stat()?.id;
        // in the clone a mount below the ancestor does not show
        if (id.dev, id.ino) != (direct.st_dev, direct.st_ino) {
            return Err(Errno::XDEV);
        }
        Ok(dir)
    };
    let (root, workdir) = (open(&root)?, open(&workdir)?);
    Ok(((root, own_mount), workdir))
}

/// The root of a branch, of which these attributes are told, with what is kept in it; `written` says whether refused
/// ones may come to be, and `keeping` what else does. The work area of one that is only read lies in
/// `workdir`, or at the root.
///
/// # Errors
/// Those of reading an extended attribute.
pub fn with_kept(
    root: Dir,
    names: &RootNames,
    written: bool,
    keeping: Keeping,
    workdir: Option<&Dir>,
) -> Result<Dir, Errno> {
    let kept = Kept::of(&root, names, written, keeping, workdir)?;
    let form = Form { kept, ..root.form() };
    Ok(root.with_form(form))
}

fn canonical(path: &Path) -> Result<PathBuf, Errno> {
    std::fs::canonicalize(path).map_err(|error| errno_of(&error))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Whether the file system of a directory takes writes.
pub fn is_read_only(dir: &Dir) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatvfs(dir)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}
