//! The entry of fuse-overlayfs: `fuse-overlayfs -o lowerdir=…,upperdir=…,workdir=… DIR`, as podman, buildah,
//! containerd's snapshotter and mount(8) call it.
//!
//! What these callers rely on differs from `runionfs mount`: an option that is not known is told of and
//! ignored, a mount may be laid on itself, and the table of mounts shows the name that it always showed.
//! `runionfs mount` takes the same words, strictly.

mod arguments;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use unionfs::branch::overlay::is_written_by_others;
use unionfs::mount::{given_device, remount, table};
use unionfs::options::overlay::is_overlay;
use unionfs::options::words::WordsError;
use unionfs::options::{Access, BranchSpec, Options, Overlay, Whiteout};

use super::mount::{NO_SOURCE, Request};
use super::notify::Manager;
use super::{Failure, MountArgs, complain, log, mount, print};
use arguments::Asked;

/// The name that says which vocabulary is spoken, and what the table of mounts shows then.
const NAME: &str = "fuse-overlayfs";

/// Names of mount(8)'s helpers for it.
const HELPERS: &[&str] = &["mount.fuse-overlayfs", "mount.fuse.fuse-overlayfs"];

/// What scripts look for, in the form in which fuse-overlayfs tells it: what this is no worse than.
const EQUIVALENT: &str = "2.0.0";

/// Where SELinux is at work.
const SELINUX: &str = "/sys/fs/selinux/enforce";

const HELP: &str = "\
usage: fuse-overlayfs [-f] [-d] -o lowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR][,OPTION]... [SOURCE] MOUNTPOINT

    -h   --help            print help
    -V   --version         print version
    -d   --debug           foreground, and tell more
    -f                     foreground operation
    -o   OPTION[,OPTION]...

    lowerdir=DIR[:DIR]...  what lies below, the uppermost first; \\: is a colon in a path, \\, a comma
    upperdir=DIR           what takes the changes; without it nothing can be changed
    workdir=DIR            an empty directory on the same file system as upperdir
    whiteout=wh|overlay    how whiteouts are written: as .wh. files, or as overlayfs does
                           (default: as upperdir has them; wh where it has none)
    uidmapping=KEPT:SHOWN:COUNT[:...], gidmapping=
                           show the owner KEPT of the directories as SHOWN, and so on for COUNT ids
    squash_to_root, squash_to_uid=UID, squash_to_gid=GID
                           show all files as of one owner
    xattr_permissions=2    keep owner, mode and type in the attribute user.containers.override_stat
    xattr_permissions=1    the same in security.fuseoverlayfs.override_stat, which only root can write
    volatile, fsync=0      never wait for the disk
    threaded=0             one thread
    timeout=SECONDS        below 60: look for changes that are made to the directories themselves
    fsname=, subtype=      what /proc/mounts shows
    ro, noexec, nosuid, nodev, noatime, allow_other and what else mount(8) knows

Unknown options are told of and ignored. This is runionfs; see runionfs(8) for the rest.
";

/// Whether the words of a command line are meant for this entry: by the name it is called by, or because
/// lower directories are given where a subcommand would stand.
pub(super) fn is_meant(words: &[OsString]) -> bool {
    let Some((name, rest)) = words.split_first() else { return false };
    named(name).is_some() || arguments::begins_without_command(rest) && arguments::options(rest).any(is_overlay)
}

/// Whether mount(8) calls, so that its exit statuses are due.
pub(super) fn is_helper(name: &OsStr) -> bool {
    named(name).is_some_and(|name| name != NAME)
}

fn named(name: &OsStr) -> Option<&'static str> {
    let name = Path::new(name).file_name()?;
    HELPERS.iter().chain([&NAME]).copied().find(|known| name == *known)
}

/// Does it; for mount(8), `-f` is not to mount at all.
pub(super) fn run(words: &[OsString], for_mount: bool) -> Result<(), Failure> {
    let (name, rest) = words.split_first().ok_or_else(|| Failure::Usage("no name".into()))?;
    match arguments::read(rest)? {
        Asked::Help => print(HELP.as_bytes()),
        Asked::Version => print(version().as_bytes()),
        Asked::Mount(line) => start(line, named(name).is_some(), for_mount),
    }
}

fn version() -> String {
    format!("{NAME}: version {EQUIVALENT}\nrunionfs {}\n", env!("CARGO_PKG_VERSION"))
}

fn start(line: arguments::Line, as_fuse_overlayfs: bool, for_mount: bool) -> Result<(), Failure> {
    let overlay = read(&line.options)?;
    let fake = for_mount && line.foreground && !line.debug;
    let foreground = line.foreground || overlay.debug;
    log::start(&log::LogArgs::verbose(if line.debug || overlay.debug { 2 } else { 0 }))?;
    if !overlay.unknown.is_empty() {
        complain(&format!("unknown and ignored: {}", overlay.unknown.join(", ")));
    }
    if overlay.words.remount && fake {
        return Ok(());
    }
    if overlay.words.remount {
        return Ok(remount(line.target.as_ref(), overlay.flags())?);
    }
    overlay.check()?;
    let request = request(overlay, line.target, as_fuse_overlayfs)?;
    if fake { Ok(()) } else { mount::carry_out(&request, foreground) }
}

fn read(options: &[OsString]) -> Result<Overlay, Failure> {
    let mut overlay = Overlay::default();
    options.iter().try_for_each(|argument| overlay.add(argument))?;
    Ok(overlay)
}

/// Whether `runionfs mount` is given its branches in the words of overlayfs.
pub(super) fn is_given(args: &MountArgs) -> bool {
    args.options.iter().any(|argument| is_overlay(argument))
}

/// `runionfs mount -o lowerdir=…`: the same union, by a command that refuses what it does not know, and that does not
/// lay a union on itself.
pub(super) fn from_command(args: &MountArgs) -> Result<(), Failure> {
    let overlay = read(&args.options)?;
    let (source, target) = args.second.as_ref().map_or((None, &args.first), |target| (Some(&args.first), target));
    if let Some(unknown) = overlay.unknown.first().filter(|_| !args.sloppy) {
        return Err(WordsError::Unknown(unknown.clone()).into());
    }
    if overlay.words.remount {
        return if args.fake { Ok(()) } else { Ok(remount(target.as_ref(), overlay.flags())?) };
    }
    let stands_for_nothing = |source: &OsString| source == "overlay" || NO_SOURCE.iter().any(|none| source == none);
    if !source.is_none_or(stands_for_nothing) {
        return Err(Failure::Usage("branches stand before the mount point, and lowerdir= is given, too".into()));
    }
    overlay.check()?;
    let foreground = args.foreground || overlay.debug;
    let manager = Manager::of_this_process();
    let request = Request { stacks: false, log: args.log.place(), manager, ..request(overlay, target.clone(), false)? };
    if args.fake { Ok(()) } else { mount::carry_out(&request, foreground) }
}

fn request(overlay: Overlay, target: OsString, as_fuse_overlayfs: bool) -> Result<Request, Failure> {
    let upper = overlay.upper.as_deref().map(std::path::absolute).transpose()?;
    let whiteout = match (overlay.whiteout, &upper) {
        (Some(whiteout), _) => whiteout,
        (None, Some(upper)) => form_of(upper)?,
        (None, None) => Whiteout::default(),
    };
    let shown = |given: Option<OsString>| given.or_else(|| as_fuse_overlayfs.then(|| NAME.into()));
    let options = overlay.options(whiteout);
    let options = Options {
        workdir: options.workdir.filter(|_| upper.is_some()).map(std::path::absolute).transpose()?,
        fsname: shown(options.fsname),
        subtype: shown(options.subtype),
        ..options
    };
    let mut lower = once_each(&overlay.lower)?;
    if !options.ids.is_plain() {
        lower = mapped_once(lower)?;
    }
    let lower = lower.into_iter().map(below);
    let branches = upper.map(|upper| on_top(upper, whiteout)).into_iter().chain(lower).collect();
    Ok(Request {
        branches,
        device: given_device(target.as_ref())?,
        target: target.into(),
        options,
        flags: overlay.flags(),
        allow_other: overlay.words.allow_other || geteuid().is_root(),
        // without SELinux the kernel takes none
        labels: overlay.labels.into_iter().filter(|_| Path::new(SELINUX).exists()).collect(),
        stacks: true,
        log: log::Place::default(),
        manager: Manager::default(),
    })
}

/// How an upper directory is written on: as it was, so that whoever wrote it can read it again.
fn form_of(upper: &Path) -> Result<Whiteout, Failure> {
    let written = is_written_by_others(upper).map_err(|error| format!("upperdir {}: {error}", upper.display()))?;
    Ok(if written { Whiteout::Overlay } else { Whiteout::Wh })
}

/// The directories without those that were named above already: a directory adds nothing to itself.
fn once_each(given: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut seen = HashSet::new();
    let mut kept = Vec::with_capacity(given.len());
    for path in given {
        let about = std::fs::metadata(path).map_err(|error| format!("lowerdir {}: {error}", path.display()))?;
        if seen.insert((about.dev(), about.ino())) {
            kept.push(std::path::absolute(path)?);
        }
    }
    Ok(kept)
}

/// The directories with owners as they are kept. containers/storage before version 1.44 gives a mapping for
/// what it has mapped already, by mounts.
fn mapped_once(lower: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let table = table::read().map_err(|error| format!("cannot read the table of mounts: {error}"))?;
    Ok(lower.into_iter().map(|path| table::without_id_map(&table, &path).unwrap_or(path)).collect())
}

fn on_top(path: PathBuf, whiteout: Whiteout) -> BranchSpec {
    let overlay = whiteout == Whiteout::Overlay;
    BranchSpec { path, access: Access::ReadWrite, whiteouts: false, overlay, init: false, nolwh: false }
}

fn below(path: PathBuf) -> BranchSpec {
    BranchSpec { path, access: Access::ReadOnly, whiteouts: true, overlay: true, init: false, nolwh: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(line: &str) -> bool {
        is_meant(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_name_or_the_lower_directories_say_what_is_meant() {
        for line in [
            "fuse-overlayfs",
            "/usr/bin/fuse-overlayfs -o lowerdir=/a /m",
            "/sbin/mount.fuse-overlayfs overlay /m -o lowerdir=/a",
            "runionfs -o lowerdir=/a /m",
            "runionfs -o lowerdir=/a",
            "runionfs -f -oro,lowerdir=/a /m",
            "runionfs overlay /m -o rw -o ro,lowerdir=/a",
            "mount.fuse.runionfs overlay /m -o lowerdir=/a,dev,suid",
        ] {
            assert!(meant(line), "{line}");
        }
        for line in [
            "runionfs",
            "runionfs --help",
            "runionfs mount -o lowerdir=/a /m",
            "runionfs show lowerdir=/a",
            "runionfs /a=rw:/b /m -o fsname=lowerdir",
            "runionfs none /m -o br=/lowerdir=ro",
        ] {
            assert!(!meant(line), "{line}");
        }
    }
}
