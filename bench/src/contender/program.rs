//! Contenders that are programs: where they are found, and how each is told to mount.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{FUSE_OVERLAYFS, FUSE_OVERLAYFS_ROOTLESS, Stack, Storage};
use crate::installed;

/// A FUSE file system that a command mounts.
#[derive(Debug)]
pub(crate) struct Program {
    binary: PathBuf,
    dialect: Dialect,
    /// Words for `-o` beside the branches.
    options: String,
}

/// How a program is told its branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Runionfs,
    FuseOverlayfs,
    UnionfsFuse,
    Mergerfs,
}

impl Program {
    /// Ours: `$RUNIONFS`, or what lies beside the bench's own binary.
    pub(super) fn runionfs(options: &str) -> Result<Program, String> {
        let binary = installed::program("RUNIONFS", "runionfs").map_err(|error| error.to_string())?;
        // A release before an option has nothing to be measured with it.
        if let Some(name) = options.split_once('=').map(|(name, _)| name)
            && !says(&binary, &["mount", "--help"]).contains(&format!("{name}="))
        {
            return Err(format!("{} has no option {name}", binary.display()));
        }
        Ok(Program { binary, dialect: Dialect::Runionfs, options: options.to_owned() })
    }

    pub(super) fn is_runionfs(&self) -> bool {
        self.dialect == Dialect::Runionfs
    }

    /// Whether changing a file of a read-only branch works.
    pub(super) fn copies_up(&self) -> bool {
        self.dialect != Dialect::Mergerfs
    }

    /// How podman mounts by it.
    pub(super) fn storage(&self) -> Option<Storage> {
        let speaks = matches!(self.dialect, Dialect::Runionfs | Dialect::FuseOverlayfs) && self.options.is_empty();
        speaks.then(|| Storage { program: Some(self.binary.clone()), libraries: libraries_beside(&self.binary) })
    }

    /// Runs the mount command; it returns when the daemon serves.
    pub(super) fn mount(&self, stack: &Stack<'_>) -> io::Result<()> {
        // Not a pipe: a daemon that keeps it open would be waited for.
        let log = stack.work.with_file_name("log");
        let mut command = self.command(stack);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        if let Some(libraries) = libraries_beside(&self.binary) {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let status = command.status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{status}: {}", last_line(&log)))) }
    }

    fn command(&self, stack: &Stack<'_>) -> Command {
        let mut command = Command::new(&self.binary);
        if self.dialect == Dialect::Runionfs {
            command.arg("mount").arg(branches(stack, "=rw", "=ro+wh")).arg(stack.target);
            if !self.options.is_empty() {
                command.arg("-o").arg(&self.options);
            }
            return command;
        }
        command.arg("-o").arg(self.mount_options(stack));
        if self.dialect != Dialect::FuseOverlayfs {
            command.arg(branches(stack, "=RW", "=RO"));
        }
        command.arg(stack.target);
        command
    }

    fn mount_options(&self, stack: &Stack<'_>) -> OsString {
        match self.dialect {
            Dialect::FuseOverlayfs => {
                let mut options = OsString::from("lowerdir=");
                options.push(
                    stack.lower.iter().map(|branch| branch.as_os_str()).collect::<Vec<_>>().join(OsStr::new(":")),
                );
                if let Some(top) = stack.top {
                    options.push(",upperdir=");
                    options.push(top);
                    options.push(",workdir=");
                    options.push(stack.work);
                }
                options
            }
            // `ff`, the first found, so that new entries go to the writable branch.
            Dialect::Mergerfs => "allow_other,category.create=ff,minfreespace=0".into(),
            Dialect::UnionfsFuse => "cow,allow_other".into(),
            Dialect::Runionfs => OsString::from(&self.options),
        }
    }
}

fn branches(stack: &Stack<'_>, read_write: &str, read_only: &str) -> OsString {
    let top = stack.top.map(|top| (top, read_write));
    let lower = stack.lower.iter().map(|branch| (branch.as_path(), read_only));
    let with_attributes = |(branch, attributes): (&Path, &str)| {
        let mut word = branch.as_os_str().to_owned();
        word.push(attributes);
        word
    };
    top.into_iter().chain(lower).map(with_attributes).collect::<Vec<_>>().join(OsStr::new(":"))
}

/// Everybody else, found or not, in the order of the table.
pub(super) fn peers() -> Vec<(&'static str, Result<Program, String>)> {
    vec![
        (FUSE_OVERLAYFS, find("fuse-overlayfs", "version 2.", Dialect::FuseOverlayfs)),
        (FUSE_OVERLAYFS_ROOTLESS, find("fuse-overlayfs", "version 2.", Dialect::FuseOverlayfs)),
        ("fuse-overlayfs-1", find("fuse-overlayfs", "version 1.", Dialect::FuseOverlayfs)),
        ("unionfs-fuse", find("unionfs", "unionfs-fuse version", Dialect::UnionfsFuse)),
        ("mergerfs", find("mergerfs", "mergerfs version", Dialect::Mergerfs)),
    ]
}

/// Two releases of one program may be installed, so what counts is what it says of itself.
fn find(name: &str, sign: &str, dialect: Dialect) -> Result<Program, String> {
    let candidates = places().into_iter().map(|place| place.join(name)).filter(|path| path.is_file());
    for binary in candidates {
        if says(&binary, &["--version"]).contains(sign) {
            return Ok(Program { binary, dialect, options: String::new() });
        }
    }
    Err(format!("no {name} that says '{sign}' found (bench/setup installs it)"))
}

/// The folder that `bench/setup` fills, and PATH.
fn places() -> Vec<PathBuf> {
    let cache = installed::cache();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = vec![cache.join("cargo/bin"), cache.join("debian/usr/bin")];
    places.extend(std::env::split_paths(&path));
    places
}

/// What a program prints.
fn says(binary: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(binary);
    if let Some(libraries) = libraries_beside(binary) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command.args(arguments).stdin(Stdio::null()).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    )
}

/// Debian packages that are unpacked, not installed, bring their libraries along: `ROOT/lib/TRIPLE` for `ROOT/usr/bin`.
fn libraries_beside(binary: &Path) -> Option<OsString> {
    let root = binary.parent()?.strip_prefix("/").ok()?;
    let root = Path::new("/").join(root.to_str()?.strip_suffix("usr/bin").filter(|root| !root.is_empty())?);
    let triples = ["lib", "usr/lib"].into_iter().filter_map(|folder| fs::read_dir(root.join(folder)).ok()).flatten();
    let folders = triples.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    std::env::join_paths(folders).ok().filter(|libraries| !libraries.is_empty())
}

fn last_line(log: &Path) -> String {
    match fs::read_to_string(log) {
        Ok(text) => text.lines().last().unwrap_or("it says nothing").to_owned(),
        Err(error) => format!("what it says cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(dialect: Dialect, options: &str) -> Vec<String> {
        told(dialect, options, Some(Path::new("/t")))
    }

    fn told(dialect: Dialect, options: &str, top: Option<&Path>) -> Vec<String> {
        let program = Program { binary: "/bin/p".into(), dialect, options: options.to_owned() };
        let lower = ["/l/0".into(), "/l/1".into()];
        let stack = Stack {
            top,
            work: Path::new("/w"),
            lower: &lower,
            plain: Path::new("/l/0"),
            effect: super::super::Effect::Reads,
            target: Path::new("/m"),
        };
        program.command(&stack).get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_program_is_told_in_its_own_words() {
        assert_eq!(arguments(Dialect::Runionfs, ""), ["mount", "/t=rw:/l/0=ro+wh:/l/1=ro+wh", "/m"]);
        assert_eq!(arguments(Dialect::Runionfs, "threads=1")[3..], ["-o", "threads=1"]);
        assert_eq!(arguments(Dialect::FuseOverlayfs, ""), ["-o", "lowerdir=/l/0:/l/1,upperdir=/t,workdir=/w", "/m"]);
        assert_eq!(arguments(Dialect::UnionfsFuse, ""), ["-o", "cow,allow_other", "/t=RW:/l/0=RO:/l/1=RO", "/m"]);
        assert_eq!(arguments(Dialect::Mergerfs, "")[2..], ["/t=RW:/l/0=RO:/l/1=RO", "/m"]);
    }

    #[test]
    fn a_union_without_a_writable_branch_is_told_so() {
        assert_eq!(told(Dialect::Runionfs, "", None), ["mount", "/l/0=ro+wh:/l/1=ro+wh", "/m"]);
        assert_eq!(told(Dialect::FuseOverlayfs, "", None), ["-o", "lowerdir=/l/0:/l/1", "/m"]);
        assert_eq!(told(Dialect::UnionfsFuse, "", None)[2..], ["/l/0=RO:/l/1=RO", "/m"]);
    }

    #[test]
    fn installed_programs_use_the_systems_libraries() {
        assert_eq!(libraries_beside(Path::new("/usr/bin/mergerfs")), None);
    }
}
