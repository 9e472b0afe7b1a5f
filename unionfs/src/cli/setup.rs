//! `runionfs setup podman`: podman and buildah mount their images and containers by this program.
//!
//! They read it in the `storage.conf` of containers/storage (containers-storage.conf(5)), which they read whole from one
//! place: what another place says does not count any more. So a new file begins as a copy of the distribution's.

mod storage_conf;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::{Failure, PodmanArgs, complain, print, printable};

const SYSTEM: &str = "/etc/containers/storage.conf";
const DISTRIBUTION: &str = "/usr/share/containers/storage.conf";
/// Says which file podman reads, whoever it is.
const VARIABLE: &str = "CONTAINERS_STORAGE_CONF";

/// What a store has at its root where podman used it by another driver than `overlay`.
const OTHER_DRIVERS: &[&str] = &["aufs", "btrfs", "vfs", "zfs"];

pub(super) fn podman(args: &PodmanArgs) -> Result<(), Failure> {
    let who = Who::of(args)?;
    let path = who.file()?;
    let before = read(&path)?;
    let from = before.clone().unwrap_or(who.first_text()?);
    let failed = |error: storage_conf::ConfError| format!("{}: {error}", path.display());
    let after = match args.remove {
        true => before.as_deref().map(storage_conf::without).transpose().map_err(failed)?.flatten(),
        false => Some(storage_conf::with(&from, &program(args)?).map_err(failed)?),
    };
    // what was written by us alone goes as a whole
    let after = after.filter(|text| !args.remove || *text != who.first_text().unwrap_or_default());
    if args.dry_run {
        return print(storage_conf::difference(&path, before.as_deref(), after.as_deref()).as_bytes());
    }
    if after == before {
        let so = if args.remove { "names no mount program that was set up" } else { "says so already" };
        return print((printable(&format!("{} {so}: nothing is changed", path.display())) + "\n").as_bytes());
    }
    match &after {
        Some(text) => write(&path, text).map_err(|error| who.refused(&path, &error))?,
        None => fs::remove_file(&path).map_err(|error| who.refused(&path, &error))?,
    }
    warn(who, after.as_deref().or(before.as_deref()).unwrap_or_default(), args.remove);
    tell(&path, after.as_deref(), args)
}

/// Whose podman it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    /// One who has a file of his own.
    User,
}

impl Who {
    fn of(args: &PodmanArgs) -> Result<Who, Failure> {
        match args.rootless {
            true if geteuid().is_root() && is_initial() => {
                complain("--rootless is for podman of another user than root: run it as that user");
                Err(Failure::Said(2))
            }
            true => Ok(Who::User),
            false => Ok(Who::Root),
        }
    }

    /// The file that this podman reads.
    fn file(self) -> Result<PathBuf, Failure> {
        let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = match (named, self) {
            (Some(path), _) => path,
            (None, Who::Root) => SYSTEM.into(),
            (None, Who::User) => home("XDG_CONFIG_HOME", ".config")?.join("containers/storage.conf"),
        };
        // the file itself is replaced, not a link that leads to it
        Ok(path.canonicalize().or_else(|_| std::path::absolute(&path))?)
    }

    /// What a file says that is not there yet.
    fn first_text(self) -> Result<String, Failure> {
        Ok(match (read(DISTRIBUTION.as_ref())?, self) {
            (Some(text), Who::Root) => text,
            (None, Who::Root) => storage_conf::OF_ROOT.into(),
            (_, Who::User) => storage_conf::OF_USERS.into(),
        })
    }

    /// Where images lie, if the file does not say so.
    fn store(self) -> Result<PathBuf, Failure> {
        match self {
            Who::Root => Ok("/var/lib/containers/storage".into()),
            Who::User => Ok(home("XDG_DATA_HOME", ".local/share")?.join("containers/storage")),
        }
    }

    fn refused(self, path: &Path, error: &io::Error) -> String {
        let remedy = match (error.kind(), self) {
            (io::ErrorKind::PermissionDenied, Who::Root) if !geteuid().is_root() => {
                " (run it as root, or say --rootless for podman of this user)"
            }
            _ => "",
        };
        format!("cannot write {}: {error}{remedy}", path.display())
    }
}

/// A directory of the user's (XDG Base Directory Specification).
fn home(variable: &str, below_home: &str) -> Result<PathBuf, Failure> {
    let named = |name| std::env::var_os(name).filter(|path| Path::new(path).is_absolute()).map(PathBuf::from);
    let found = named(variable).or_else(|| Some(named("HOME")?.join(below_home)));
    found.ok_or_else(|| "HOME is not set, so that it is not known where storage.conf lies".into())
}

/// Whether this is no namespace of a user, in which root is somebody else (user_namespaces(7)).
fn is_initial() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The program that is named to podman: the one that runs, if no other is given.
fn program(args: &PodmanArgs) -> Result<String, Failure> {
    let path = match &args.program {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?,
    };
    let usable = |about: fs::Metadata| about.is_file() && about.permissions().mode() & 0o111 != 0;
    if !path.metadata().is_ok_and(usable) {
        return Err(format!("{} is no program: name one with --program", path.display()).into());
    }
    path.into_os_string().into_string().map_err(|path: OsString| {
        format!("{} is not UTF-8, which storage.conf has to be: name another path with --program", path.display())
            .into()
    })
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display()).into()),
    }
}

/// Replaces the file as a whole, with the owner and the mode that it had.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!(".storage.conf.runionfs-{}", std::process::id()));
    let done = fill(&temporary, path, text).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        // it is not there where it could not be made
        drop(fs::remove_file(&temporary));
    }
    done.and_then(|()| File::open(dir)?.sync_all())
}

fn fill(temporary: &Path, like: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    let mode = match fs::metadata(like) {
        Ok(about) => {
            fchown(&file, Some(about.uid()), Some(about.gid()))?;
            about.permissions().mode() & 0o777
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0o644,
        Err(error) => return Err(error),
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Says what was done, and how it is undone.
fn tell(path: &Path, text: Option<&str>, args: &PodmanArgs) -> Result<(), Failure> {
    let rootless = if args.rootless { " --rootless" } else { "" };
    let path = path.display();
    let done = match (text.map(storage_conf::program_of), args.remove) {
        (None, _) => format!("{path} is removed: it said nothing else"),
        (Some(None), _) => format!("{path} names no mount program any more"),
        (Some(Some(program)), true) => format!("{path} names {program} again, as before"),
        (Some(Some(program)), false) => {
            format!(
                "{path}: podman and buildah mount by {program} from the next mount on\n\
                 undo: runionfs setup podman{rootless} --remove"
            )
        }
    };
    print((done.lines().map(printable).collect::<Vec<_>>().join("\n") + "\n").as_bytes())
}

/// Tells what may surprise of images that are there, and what would be better.
fn warn(who: Who, text: &str, removed: bool) {
    let named = storage_conf::store_of(text, who == Who::User).map(PathBuf::from);
    let Some(store) = named.or_else(|| who.store().ok()) else { return };
    let has = |name: &str| store.join(name).is_dir();
    if removed {
        if has("overlay") {
            complain(&format!(
                "warning: layers in {} that were written meanwhile hide files by names that only a mount program \
                 understands: podman finds them and uses fuse-overlayfs, if that is installed, and 'podman system \
                 reset' begins anew",
                store.display()
            ));
        }
        return;
    }
    if let Some(other) = OTHER_DRIVERS.iter().find(|driver| has(&format!("{driver}-images"))) {
        complain(&format!(
            "warning: {} was used with the driver {other}, too, whose images are not seen by the driver overlay",
            store.display()
        ));
    }
    if has_overlay(who) {
        complain(
            "note: the kernel's own overlayfs can be used here and is faster; a mount program is for what it lacks",
        );
    }
}

/// Whether the kernel mounts overlayfs for this user: for others than root from Linux 5.13 on.
fn has_overlay(who: Who) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    known && (who == Who::Root || version >= (5, 13))
}
