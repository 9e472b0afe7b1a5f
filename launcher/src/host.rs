//! What is looked at on the host before a container is described: the only place that observes it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{AccessFlags, access};
use rustix::termios::isatty;

use crate::confine::{Surroundings, Umask};
use crate::failure::{Doing as _, Failure};
use crate::mount_table::{self, Shown, Submount};
use crate::network::Names;

/// Where a copy of the host has fresh file systems instead of the host's.
pub(crate) const FRESH: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// What is taken over from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The caller's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The caller's working directory; none where it is gone or out of reach.
    pub directory: Option<PathBuf>,
    /// The caller's mask of permissions.
    pub umask: Umask,
    /// Which standard streams are terminals.
    pub terminals: StandardStreams,
    /// Mounts below `/` that hold files, parents first. Looked at for a copy of the host only.
    pub submounts: Vec<Submount>,
    /// What the host says of names.
    pub names: Names,
    /// Files that programs need although they lie where the container has a fresh file system. For a copy only.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// What matters for how far the command is confined.
    pub surroundings: Surroundings,
    /// The image that was asked for.
    pub image: Option<ImageRoot>,
}

/// What a container on an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRoot {
    /// The unpacked layers, the topmost first; never empty.
    pub layers: Vec<PathBuf>,
    /// What the image is called, without where it comes from.
    pub short_name: OsString,
    /// Where it wants directories that are not part of what is written over it.
    pub volumes: Vec<PathBuf>,
}

/// One answer for each of the three standard streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandardStreams {
    /// Standard input.
    pub input: bool,
    /// Standard output.
    pub output: bool,
    /// Standard error.
    pub error: bool,
}

impl StandardStreams {
    pub(crate) fn that_are_terminals() -> Self {
        Self { input: isatty(std::io::stdin()), output: isatty(std::io::stdout()), error: isatty(std::io::stderr()) }
    }

    /// Whether the command is used by a person at a terminal.
    #[must_use]
    pub fn wants_terminal(self) -> bool {
        self.input && self.output
    }
}

/// Refuses directories as standard streams: through /proc/self/fd they would lead the command out of its root.
///
/// # Errors
/// Where one is, and where one cannot be looked at.
pub(crate) fn check_streams() -> Result<(), Failure> {
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    for (stream, name) in [(input.as_fd(), "input"), (output.as_fd(), "output"), (error.as_fd(), "error")] {
        let status = fstat(stream).doing(&format!("look at standard {name}"))?;
        if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            let failure =
                Failure::new(format!("standard {name} is a directory, which would lead out of the container"));
            return Err(failure.remedy("show it to the container by --volume"));
        }
    }
    Ok(())
}

impl Host {
    /// Looks at what every container needs.
    #[must_use]
    pub fn observe() -> Host {
        Host {
            environment: std::env::vars_os().collect(),
            // A directory that was removed, or is outside of a chroot: the container starts in its `/`.
            directory: std::env::current_dir().ok(),
            // That of whoever asked for the container, who may have done so long ago.
            umask: Umask::default(),
            terminals: StandardStreams::that_are_terminals(),
            submounts: Vec::new(),
            // A host without them knows no names, and neither does the container.
            names: Names {
                resolver: fs::read("/etc/resolv.conf").unwrap_or_default(),
                hosts: fs::read("/etc/hosts").unwrap_or_default(),
            },
            files: Vec::new(),
            surroundings: Surroundings::default(),
            image: None,
        }
    }

    /// Looks at what a copy of the host needs as well.
    ///
    /// # Errors
    /// Where the mount table cannot be read.
    pub fn observe_for_a_copy() -> Result<Host, Failure> {
        let table = fs::read("/proc/self/mountinfo").doing("read the mount table /proc/self/mountinfo")?;
        let submounts = mount_table::submounts(&mount_table::parse(&table), &FRESH).into_iter().map(as_found);
        let submounts = submounts.collect();
        Ok(Host { submounts, files: resolver_configuration().into_iter().collect(), ..Host::observe() })
    }
}

/// A single file that is mounted has no union, and what cannot be looked at is not asked again.
fn as_found(submount: Submount) -> Submount {
    match submount.shown {
        Shown::Union(_) if !submount.path.is_dir() => Submount { shown: Shown::Bound, ..submount },
        _ => submount,
    }
}

/// `/etc/resolv.conf` where it is a link into `/run`, as with systemd-resolved and resolvconf.
fn resolver_configuration() -> Option<(PathBuf, Vec<u8>)> {
    let path = Path::new("/etc/resolv.conf").canonicalize().ok()?;
    let is_covered = FRESH.iter().any(|fresh| path.starts_with(fresh));
    // A link that dangles, or a file that cannot be read, is no worse inside than it is outside.
    is_covered.then(|| fs::read(&path).ok()).flatten().map(|content| (path, content))
}

/// Resolves the directory for `--rootfs`.
///
/// # Errors
/// Where it is not a directory that can be entered.
pub(crate) fn resolve_tree(path: &Path) -> Result<PathBuf, Failure> {
    let doing = format!("use {} as the root", path.display());
    let resolved = path.canonicalize().doing(&doing)?;
    if !resolved.is_dir() {
        return Err(Failure::because(&doing, "it is not a directory"));
    }
    if resolved == Path::new("/") {
        let failure = Failure::because(&doing, "it is the root of this machine, which a container would change");
        return Err(failure.remedy("leave the option out for a copy of it, or give a bind mount of it"));
    }
    access(&resolved, AccessFlags::X_OK).doing(&doing)?;
    Ok(resolved)
}
