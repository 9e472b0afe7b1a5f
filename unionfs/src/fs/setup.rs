//! Opening a union: every branch is checked before anything is changed, and what is wrong is said
//! in one line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::Union;
use super::content::Taker;
use super::copy_data::Ways;
use super::dirs::{DirCache, Held, Purge, Unasked, room_for_files};
use super::index::Indexes;
use super::io::Data;
use super::known::{Changes, LABEL, Labels};
use super::names::Renames;
use super::places::{Places, Relation};
use super::readdir::Listings;
use super::records::Records;
use super::tally::CopyUps;
use crate::branch::dir::Dir;
use crate::branch::form::Form;
use crate::branch::hold::{Ask, ask_nobody};
use crate::branch::leftovers;
use crate::branch::overlay;
use crate::branch::root::RootNames;
use crate::branch::work::{Work, WorkError};
use crate::branch::{self, Branch, FileSystem, Forbids, Root};
use crate::handle::Handles;
use crate::identity::Numbers;
use crate::inode::{Birth, Inodes, Place, ROOT, Stack};
use crate::links;
use crate::options::{Access, BranchSpec, Options};
use crate::union::{Below, BranchIndex, Cut, Found, Resolved, resolve};

/// Why a union cannot be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SetupError {
    #[error("no branch is given: name at least one, as in /top=rw:/base=ro+wh")]
    NoBranches,
    #[error("{0} branches are given, and {max} is the most", max = u16::MAX)]
    TooMany(usize),
    #[error("branch {}: {}", .0.display(), text(.1))]
    Open(PathBuf, Errno),
    #[error("branch {} is given twice", .0.display())]
    Doubled(PathBuf),
    #[error("branch {} lies inside branch {}, which is writable: branches must not overlap", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    #[error("branch {} is on a read-only file system: give it as ro", .0.display())]
    ReadOnly(PathBuf),
    #[error("branch {} is a union itself, or its file system takes no names that begin with .wh.: it cannot be writable", .0.display())]
    Nested(PathBuf),
    #[error("branch {} is in use by another mount{}", .0.display(), said(.1.as_deref()))]
    Busy(PathBuf, Option<String>),
    #[error("branch {} was left by a volatile mount that did not end well: its content cannot be trusted; remove {}/.wh..wh.runionfs/volatile to use it all the same", .0.display(), .1.display())]
    Volatile(PathBuf, PathBuf),
    #[error("branch {} cannot be written in the form of overlayfs: its file system lacks what that takes: {}", .0.display(), text(.1))]
    OverlayForm(PathBuf, Errno),
    #[error("branch {} was written with whiteout=overlay: give that option, or what is hidden would show", .0.display())]
    WrittenAsOverlay(PathBuf),
    #[error("branch {} holds files without data, such as {} (overlayfs with metacopy=on): they would read as zeros", .0.display(), .1.display())]
    Metacopy(PathBuf, PathBuf),
    #[error("workdir {} must be on the same mount as the topmost writable branch {}: {}", .0.display(), .1.display(), text(.2))]
    Workdir(PathBuf, PathBuf, Errno),
    #[error("workdir {} lies inside branch {}, which is writable, so that it could be moved away: give a directory beside it", .0.display(), .1.display())]
    WorkdirInside(PathBuf, PathBuf),
    #[error("workdir is given, but no branch is writable")]
    WorkdirUnused,
    #[error("cannot make an empty directory to show in the place of branches that lie inside others: {}", text(.0))]
    Empty(Errno),
}

fn text(errno: &Errno) -> String {
    std::io::Error::from_raw_os_error(errno.raw_os_error())
        .to_string()
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}

/// What the holder of a branch says of itself.
fn said(said: Option<&str>) -> String {
    said.map(|said| format!(", {said}")).unwrap_or_default()
}

impl Union {
    /// Opens the branches.
    ///
    /// # Errors
    /// What is wrong with them, in one line; nothing was changed then, but work areas may have
    /// been made.
    pub fn open(branches: &[BranchSpec], options: &Options) -> Result<Arc<Union>, SetupError> {
        Union::open_asking(branches, options, &ask_nobody)
    }

    /// The same, and a mount that holds a branch is asked to [give way](Union::give_way).
    ///
    /// # Errors
    /// As [`Union::open`].
    pub fn open_asking(branches: &[BranchSpec], options: &Options, ask: Ask<'_>) -> Result<Arc<Union>, SetupError> {
        let count = u16::try_from(branches.len()).map_err(|_| SetupError::TooMany(branches.len()))?;
        if branches.is_empty() {
            return Err(SetupError::NoBranches);
        }
        let places = check_places(branches, options.workdir.as_deref())?;
        let (opened, labelled) = open_all(branches, options, places, ask)?;
        let nested = opened.iter().any(|branch| !branch.covered.is_empty());
        let empty = match empty_dir(&opened) {
            Err(errno) if nested => return Err(SetupError::Empty(errno)),
            empty => empty.ok().map(Arc::new),
        };
        let numbers = Numbers::default();
        let dirs = DirCache::new(count);
        let held = Held::new();
        let listings = Listings::new();
        let indexes = Indexes::new();
        let purge = Purge {
            dirs: Arc::clone(&dirs),
            held: Arc::clone(&held),
            listings: Arc::clone(&listings),
            indexes: Arc::clone(&indexes),
        };
        let inodes = Inodes::new(Box::new(purge));
        let top = opened[0].root.stat().map_err(|errno| SetupError::Open(branches[0].path.clone(), errno))?;
        let labels = Labels::default();
        if labelled {
            labels.note();
        }
        for branch in &opened {
            // gives each device its place in the order of branches
            numbers.device(branch.device);
        }
        let stack = root_stack(&opened)?;
        let writable = (0..).map(BranchIndex).zip(&opened).filter(|(_, branch)| branch.work.is_some());
        let writable = writable.map(|(index, _)| index).collect();
        let birth = Birth { ino: ROOT, kind: top.kind, place: Place::Stack(Arc::new(stack)), real: top.id };
        let root = inodes.look_up(birth).map_err(|_| SetupError::Open(branches[0].path.clone(), Errno::IO))?;
        let root_inode = Arc::clone(root.inode());
        // the kernel never forgets the root
        root.hand_over();
        let on_disk = |branch: &Branch| branch.spec.init || branch.work.as_ref().is_some_and(Work::is_on_disk);
        let data = Data::of(&opened, options)
            .map_err(|(branch, errno)| SetupError::Open(branches[branch].path.clone(), errno))?;
        Ok(Arc::new(Union {
            waits_for_disk: !options.volatile && opened.iter().any(on_disk),
            branches: opened,
            specs: branches.to_vec(),
            options: options.clone(),
            numbers,
            inodes,
            root: root_inode,
            handles: Handles::new(room_for_files()),
            dirs,
            held,
            listings,
            indexes,
            writable,
            tree: RwLock::new(()),
            renames: Renames::default(),
            empty,
            records: Records::default(),
            ways: Ways::default(),
            copy_ups: CopyUps::default(),
            changes: Changes::default(),
            labels,
            data,
            gives_way: AtomicBool::new(false),
            unasked: Unasked::new(),
            on_stale: OnceLock::new(),
            taker: Taker::default(),
        }))
    }
}

/// The branches of the root: all, down to the first whose root is opaque.
fn root_stack(branches: &[Branch]) -> Result<Stack, SetupError> {
    let roots = (0..)
        .map(BranchIndex)
        .zip(branches)
        .map(|(index, branch)| Ok((index, Found::Dir(if branch.opaque { Below::Hidden } else { Below::Merges }))));
    let Resolved::Dir { stack, cut } = resolve(roots)? else { return Err(SetupError::NoBranches) };
    let last = stack.last().copied().unwrap_or(BranchIndex(0));
    let lowest_seen = cut.and_then(Cut::lowest_seen).unwrap_or(last);
    Ok(Stack { branches: SmallVec::from_vec(stack), lowest_seen, redirect: None })
}

/// Refuses branches that are missing, doubled, or inside a writable one, where no work area may be either
/// (rule 40).
fn check_places(branches: &[BranchSpec], workdir: Option<&Path>) -> Result<Places, SetupError> {
    let path = |branch: usize| branches[branch].path.clone();
    let places = Places::of(branches.iter().map(|spec| &*spec.path), workdir)
        .map_err(|(branch, errno)| SetupError::Open(path(branch), errno))?;
    for inner in 0..branches.len() {
        for (outer, relation) in places.around(inner) {
            match relation {
                Relation::Same => return Err(SetupError::Doubled(path(outer))),
                Relation::Inside if branches[outer].access == Access::ReadWrite => {
                    return Err(SetupError::Overlap(path(inner), path(outer)));
                }
                Relation::Inside => {}
            }
        }
    }
    let mut around = places.around_workdir().into_iter().filter(|(_, relation)| *relation == Relation::Inside);
    let writable = around.find(|(outer, _)| branches[*outer].access == Access::ReadWrite);
    match writable.zip(workdir) {
        Some(((outer, _), workdir)) => Err(SetupError::WorkdirInside(workdir.to_owned(), path(outer))),
        None => Ok(places),
    }
}

/// Opens the branches; with them comes whether there are security labels.
fn open_all(
    branches: &[BranchSpec],
    options: &Options,
    mut places: Places,
    ask: Ask<'_>,
) -> Result<(Vec<Branch>, bool), SetupError> {
    let mut workdir = options.workdir.as_deref();
    if workdir.is_some() && !branches.iter().any(|spec| spec.access == Access::ReadWrite) {
        return Err(SetupError::WorkdirUnused);
    }
    let mut opened = Vec::with_capacity(branches.len());
    let mut labelled = false;
    let covered = places.covered();
    for (at, (spec, covered)) in branches.iter().zip(covered).enumerate() {
        let fail = |errno| SetupError::Open(spec.path.clone(), errno);
        let writable = spec.access == Access::ReadWrite;
        let form = branch::form_of(spec);
        let forbids = match (writable || spec.init, options.noatime) {
            (false, _) => Forbids::Changes,
            (true, true) => Forbids::AccessTimes,
            (true, false) => Forbids::Nothing,
        };
        let ((root, own_mount), area) = match workdir.take_if(|_| writable) {
            Some(workdir) => open_with_workdir(&spec.path, workdir, forbids, form)?,
            None => {
                let plain = places.take(at).map_or_else(|| branch::open_place(&spec.path), Ok).map_err(fail)?;
                (branch::cut_off_held(plain, forbids, form), None)
            }
        };
        let file_system = FileSystem::of(&root).map_err(fail)?;
        let device = root.stat().map_err(fail)?.id.dev;
        let names = RootNames::of(&root).map_err(fail)?;
        labelled |= names.has_one_of(&[LABEL]);
        check_form(&root, spec, &names, file_system)?;
        warn_of_leftovers(&spec.path, &root).map_err(fail)?;
        let root = branch::with_kept(root, &names, writable || spec.init, options.keeping, None).map_err(fail)?;
        let area = area.map(|area| area.with_form(root.form()));
        let area = area.as_ref().zip(options.workdir.as_deref());
        let work = if writable { Some(open_work(&spec.path, &root, area, ask)?) } else { None };
        // below the last branch a redirect leads nowhere, and one that is read-only stays where it is
        let leads_nowhere = form.overlay && !writable && at + 1 == branches.len();
        let records = !leads_nowhere && branch::has_records(&root).map_err(fail)?;
        let honours_whiteouts = spec.whiteouts || spec.overlay || writable;
        let opaque = honours_whiteouts && root.is_opaque_root(&names).map_err(fail)?;
        opened.push(Branch {
            opaque,
            spec: spec.clone(),
            root: Arc::new(root),
            work,
            own_mount,
            covered,
            honest_listing: file_system.has_honest_listing(),
            exact_listing: file_system.has_exact_listing(),
            device,
            records: AtomicBool::new(records),
        });
    }
    Ok((opened, labelled))
}

/// Refuses a layer of overlayfs whose files are seen to have their data elsewhere, and a branch that
/// would be written in two forms.
fn check_form(root: &Dir, spec: &BranchSpec, names: &RootNames, system: FileSystem) -> Result<(), SetupError> {
    if !root.form().overlay {
        return match spec.access == Access::ReadWrite && overlay::is_written(names) {
            true => Err(SetupError::WrittenAsOverlay(spec.path.clone())),
            false => Ok(()),
        };
    }
    match root.find_metacopy_of(names, system) {
        Ok(None) => Ok(()),
        Ok(Some(file)) => Err(SetupError::Metacopy(spec.path.clone(), OsString::from_vec(file).into())),
        Err(errno) => Err(SetupError::Open(spec.path.clone(), errno)),
    }
}

/// Says what of a branch that AuFS wrote is not seen.
fn warn_of_leftovers(path: &Path, root: &Dir) -> Result<(), Errno> {
    for leftover in leftovers::losses(root)? {
        let name = String::from_utf8_lossy(leftover.name());
        tracing::warn!("{}/{name}: {leftover}", path.display());
    }
    Ok(())
}

fn open_with_workdir(
    path: &Path,
    workdir: &Path,
    forbids: Forbids,
    form: Form,
) -> Result<(Root, Option<Dir>), SetupError> {
    let fail = |errno| SetupError::Workdir(workdir.to_owned(), path.to_owned(), errno);
    let (root, area) = branch::open_root_and_workdir(path, workdir, forbids, form).map_err(fail)?;
    Ok((root, Some(area)))
}

fn open_work(path: &Path, root: &Dir, workdir: Option<(&Dir, &Path)>, ask: Ask<'_>) -> Result<Work, SetupError> {
    let (area, place) = workdir.unwrap_or((root, path));
    let fail = |errno| SetupError::Open(path.to_owned(), errno);
    if branch::is_read_only(root).map_err(fail)? {
        return Err(SetupError::ReadOnly(path.to_owned()));
    }
    let work = Work::open(root, area, ask).map_err(|error| match error {
        WorkError::Busy(said) => SetupError::Busy(path.to_owned(), said),
        WorkError::Volatile => SetupError::Volatile(path.to_owned(), place.to_owned()),
        WorkError::Errno(Errno::PERM) => SetupError::Nested(path.to_owned()),
        WorkError::Errno(errno) => fail(errno),
    })?;
    links::load(&work).map_err(fail)?;
    if let Some(kept) = root.form().kept {
        kept.set_area(work.area()).map_err(fail)?;
    }
    if root.form().overlay {
        let tried = work.try_overlay().and_then(|()| root.set_overlay_written());
        tried.map_err(|errno| SetupError::OverlayForm(path.to_owned(), errno))?;
    }
    Ok(work)
}

/// A directory that is empty for ever, for it has no name any more. Made in a work area, or where
/// temporary files go.
fn empty_dir(opened: &[Branch]) -> Result<Dir, Errno> {
    if let Some(work) = opened.iter().find_map(|branch| branch.work.as_ref()) {
        let name = work.temporary_name();
        work.temporary().make_dir(&name, 0o700)?;
        let dir = work.temporary().open_dir(&name);
        work.temporary().remove_dir(&name)?;
        return dir;
    }
    let fail = |error: std::io::Error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    let path = std::env::temp_dir().join(format!(".runionfs-empty-{}", std::process::id()));
    std::fs::create_dir(&path).map_err(fail)?;
    let dir = branch::open_root(&path, true, Form::default());
    std::fs::remove_dir(&path).map_err(fail)?;
    dir
}
