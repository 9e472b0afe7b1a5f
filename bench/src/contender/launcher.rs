//! Programs that start containers: where they are found, and how each is told what to run.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::installed;

/// Ours.
pub(crate) const RLAUNCH: &str = "rlaunch";
/// The name of the one that the start of a container is compared with.
pub(crate) const BWRAP: &str = "bwrap";
/// A container runtime.
pub(crate) const CRUN: &str = "crun";
/// What the namespaces themselves cost.
pub(crate) const UNSHARE: &str = "unshare";
/// What takes images in, after skopeo, and starts nothing.
pub(crate) const UMOCI: &str = "umoci";

/// An image of the directory `$1`.
const LAYOUT: &str = "
tar -C \"$1\" -cf root.tar .
umoci init --layout layout
umoci new --image layout:1
umoci raw add-layer --image layout:1 root.tar
rm root.tar
sync -f .
";
/// By rlaunch, which is `$1`, into a store of its own.
const IMPORT: &str = "
mkdir -p store /var/lib/rlaunch
mount --bind store /var/lib/rlaunch
exec \"$1\" image import --quiet --name bench layout
";
/// By skopeo, which verifies the blobs, and by umoci, which is `$1`.
const COPY_AND_UNPACK: &str = "
skopeo copy --quiet oci:layout:1 oci:copy:1
exec \"$1\" unpack --image copy:1 bundle
";

/// The name of the container in which more commands are run.
const NAME: &str = "runionfs-bench";
/// For a container that has limits.
const LIMITS: [&str; 6] = ["--net", "none", "--memory", "100m", "--cpus", "1"];
/// What it runs itself.
const STAY: [&str; 2] = ["sleep", "1000"];

/// What a container is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// `true` in a directory.
    Tree,
    /// `true` in a directory, with limits on memory and CPUs.
    Limited,
    /// The same where nothing tells it of them.
    LimitedUntold,
    /// `true` in a union of five branches, the lowest of which is that directory.
    Union,
    /// `true` in a container that runs.
    Container,
    /// `true` in a throw-away copy of this machine.
    Copy,
    /// Nothing: an image of that directory, one layer of gzip in an OCI image layout, is taken in and unpacked.
    Import,
}

/// A program that starts containers, or takes in images to start them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launcher {
    binary: PathBuf,
    dialect: Dialect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Rlaunch,
    Bubblewrap,
    Crun,
    Unshare,
    Umoci,
}

/// A command that starts a container, and what is to be done once it has been measured.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) command: Command,
    pub(crate) undo: Vec<Undo>,
}

/// Something that is taken back when it is dropped.
#[derive(Debug)]
pub(crate) enum Undo {
    /// A container is ended by this command.
    End(Command),
    /// What is mounted at the first path is moved back to the second.
    MoveBack(PathBuf, PathBuf),
}

impl Drop for Undo {
    fn drop(&mut self) {
        let result = match self {
            Undo::End(command) => succeed(command),
            Undo::MoveBack(from, to) => move_mount(from, to),
        };
        if let Err(error) = result {
            eprintln!("bench: a launcher's cell leaves something behind: {error}");
        }
    }
}

/// Everybody, found or not, in the order of the table.
pub(super) fn all() -> Vec<(&'static str, Result<Launcher, String>)> {
    let ours = installed::program("RLAUNCH", "rlaunch").map_err(|error| error.to_string());
    vec![
        (RLAUNCH, ours.map(|binary| Launcher { binary, dialect: Dialect::Rlaunch })),
        (BWRAP, find("bwrap", Dialect::Bubblewrap)),
        (CRUN, find("crun", Dialect::Crun)),
        (UNSHARE, find("unshare", Dialect::Unshare)),
        (UMOCI, find("umoci", Dialect::Umoci)),
    ]
}

fn find(name: &str, dialect: Dialect) -> Result<Launcher, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|binary| binary.is_file());
    found.map(|binary| Launcher { binary, dialect }).ok_or_else(|| "bench/setup has not installed it".to_owned())
}

impl Launcher {
    /// Whether it can do that at all.
    pub(crate) fn can(&self, start: Start) -> bool {
        match (self.dialect, start) {
            (Dialect::Rlaunch, _) | (Dialect::Umoci, Start::Import) | (Dialect::Crun, Start::Container) => true,
            (Dialect::Bubblewrap | Dialect::Crun | Dialect::Unshare, start) => start == Start::Tree,
            (Dialect::Umoci, _) => false,
        }
    }

    /// The command, and what has to be there for it. `notes` is an empty folder.
    pub(crate) fn prepare(&self, start: Start, root: &Path, notes: &Path) -> io::Result<Prepared> {
        if self.dialect == Dialect::Crun {
            return self.prepare_crun(start, root, notes);
        }
        if start == Start::Import {
            return self.prepare_import(root, notes);
        }
        let (mut command, mut undo) = (self.command(), Vec::new());
        match (self.dialect, start) {
            (Dialect::Rlaunch, Start::Union) => command.args(["--net", "none", "--branches"]).arg(union(root, notes)?),
            (Dialect::Rlaunch, Start::Limited) => command.args(LIMITS).arg("--rootfs").arg(root),
            (Dialect::Rlaunch, Start::LimitedUntold) => {
                command.args(LIMITS).args(["--proc-view=off", "--rootfs"]).arg(root)
            }
            (Dialect::Rlaunch, Start::Copy) => command.args(["--no-submounts", "--"]),
            (Dialect::Rlaunch, Start::Container) => {
                let mut running = self.command();
                running.args(["--detach", "--rm", "--name", NAME, "--rootfs"]).arg(root);
                succeed(running.args(STAY))?;
                let mut end = self.command();
                end.args(["rm", "--force", NAME]);
                undo.push(Undo::End(end));
                command.args(["exec", NAME])
            }
            (Dialect::Bubblewrap, _) => {
                command.args(["--unshare-all", "--bind"]).arg(root).args(["/", "--proc", "/proc", "--dev", "/dev"])
            }
            (Dialect::Unshare, _) => {
                let namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork"];
                command.args(namespaces).arg("--root").arg(root)
            }
            (Dialect::Rlaunch | Dialect::Crun | Dialect::Umoci, _) => {
                command.args(["--net", "none", "--rootfs"]).arg(root)
            }
        };
        command.arg("true");
        Ok(Prepared { command, undo })
    }

    /// What it does is written in a file.
    fn prepare_crun(&self, start: Start, root: &Path, notes: &Path) -> io::Result<Prepared> {
        let crun = || {
            let mut command = self.command();
            command.arg("--cgroup-manager=cgroupfs").arg("--root").arg(notes.join("state"));
            command
        };
        let mut undo: Vec<Undo> = hide_unified(&notes.join("unified"))?.into_iter().collect();
        let mut command = crun();
        if start == Start::Container {
            self.describe(root, notes, &STAY)?;
            succeed(crun().args(["run", "--detach", "--bundle"]).arg(notes).arg(NAME))?;
            let mut end = crun();
            end.args(["delete", "--force", NAME]);
            undo.insert(0, Undo::End(end));
            command.args(["exec", NAME, "true"]);
        } else {
            self.describe(root, notes, &["true"])?;
            command.args(["run", "--bundle"]).arg(notes).arg(NAME);
        }
        Ok(Prepared { command, undo })
    }

    /// Both read the same layout, and end with the blobs and the unpacked layer on the disk that `notes` is on.
    fn prepare_import(&self, root: &Path, notes: &Path) -> io::Result<Prepared> {
        succeed(Command::new("sh").args(["-euc", LAYOUT, "sh"]).arg(root).current_dir(notes))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc"]);
        command.arg(if self.dialect == Dialect::Rlaunch { IMPORT } else { COPY_AND_UNPACK });
        command.arg("sh").arg(&self.binary).current_dir(notes).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Prepared { command, undo: Vec::new() })
    }

    /// Its own default description, but for the root and the command.
    fn describe(&self, root: &Path, notes: &Path, command: &[&str]) -> io::Result<()> {
        let file = notes.join("config.json");
        succeed(self.command().arg("spec").current_dir(notes))?;
        let mut description: Value = serde_json::from_slice(&fs::read(&file)?)?;
        description["root"] = json!({ "path": root });
        description["process"]["args"] = json!(command);
        description["process"]["terminal"] = json!(false);
        fs::write(&file, description.to_string())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// `DIR=rw:DIR=ro+wh:…`: an empty top, three empty branches, and the root.
fn union(root: &Path, notes: &Path) -> io::Result<OsString> {
    let mut branches = OsString::new();
    for (name, access) in [("top", "=rw:"), ("a", "=ro+wh:"), ("b", "=ro+wh:"), ("c", "=ro+wh:")] {
        let branch = notes.join(name);
        fs::create_dir(&branch)?;
        branches.push(branch);
        branches.push(access);
    }
    branches.push(root);
    branches.push("=ro+wh");
    Ok(branches)
}

/// crun refuses a machine that has both forms of cgroups: while it is measured, v2 is mounted elsewhere in our namespace.
fn hide_unified(place: &Path) -> io::Result<Option<Undo>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    if !table.lines().any(|line| line.contains(" - cgroup ")) {
        return Ok(None);
    }
    let unified = table.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let Some(unified) = unified.map(PathBuf::from) else { return Ok(None) };
    fs::create_dir(place)?;
    move_mount(&unified, place)?;
    Ok(Some(Undo::MoveBack(place.to_owned(), unified)))
}

fn move_mount(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)?)
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
