//! Who is measured. A contender knows how to mount, and nothing of what is then done there; or how to start containers.

mod launcher;
mod overlay;
mod program;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use crate::mounted::Mounted;
use crate::options::Options;

pub(crate) use launcher::{BWRAP, CRUN, Launcher, Prepared, RLAUNCH, Start, UMOCI, UNSHARE};
pub(crate) use program::Program;

/// The name of the contender that ratios are taken to first.
pub(crate) const OVERLAY: &str = "overlay";
/// The name of the contender that ratios are taken to second.
pub(crate) const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// The name of ours as it is used.
pub(crate) const RUNIONFS: &str = "runionfs";
/// Ours as it is on kernels and for users without passthrough.
pub(crate) const NO_PASSTHROUGH: &str = "runionfs-no-passthrough";
/// Ours, mounted by root of a user namespace.
pub(crate) const ROOTLESS: &str = "runionfs-rootless";
/// The second peer in the same way.
pub(crate) const FUSE_OVERLAYFS_ROOTLESS: &str = "fuse-overlayfs-rootless";

/// The mount option that turns passthrough off.
const PASSTHROUGH_OFF: &str = "passthrough=off";

/// What one mount is made of.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    /// The writable branch, empty; a union without one cannot be written.
    pub(crate) top: Option<&'a Path>,
    /// Overlayfs's work folder, on the file system of the top.
    pub(crate) work: &'a Path,
    /// The read-only branches, top first.
    pub(crate) lower: &'a [PathBuf],
    /// The read-only branches as one plain directory.
    pub(crate) plain: &'a Path,
    /// What will be done there.
    pub(crate) effect: Effect,
    /// Where to mount.
    pub(crate) target: &'a Path,
}

/// What a workload does to the tree that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It only reads.
    Reads,
    /// It adds entries of its own, and needs nothing of the lower tree.
    Creates,
    /// It changes the lower tree's entries, or writes among them.
    Changes,
}

/// What podman's storage is told of who mounts.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    /// Its `mount_program`; the kernel's overlayfs needs none.
    pub(crate) program: Option<PathBuf>,
    /// Where the libraries of that are, if not where the system has them.
    pub(crate) libraries: Option<OsString>,
}

/// Somebody to measure.
#[derive(Debug)]
pub(crate) struct Contender {
    /// What it is called in the table.
    pub(crate) name: String,
    /// Whether everything is done as root of a user namespace.
    pub(crate) rootless: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Native,
    Overlay,
    Program(Program),
    Launcher(Launcher),
}

/// Who is there and who is not.
#[derive(Debug)]
pub(crate) struct Contenders {
    /// In the order of the table.
    pub(crate) present: Vec<Contender>,
    /// Names with the reason.
    pub(crate) missing: Vec<(String, String)>,
}

impl Contender {
    /// Whether this is one of ours.
    pub(crate) fn is_runionfs(&self) -> bool {
        matches!(&self.kind, Kind::Program(program) if program.is_runionfs())
    }

    /// Whether it can do such work at all. mergerfs has no copy-up, so it cannot change what lies below.
    pub(crate) fn can(&self, effect: Effect) -> bool {
        match &self.kind {
            Kind::Program(program) => effect != Effect::Changes || program.copies_up(),
            _ => true,
        }
    }

    /// What must be in the top before the mount: a plain directory has no branches, so it gets a copy of what it is
    /// going to change.
    pub(crate) fn fill_top(&self, stack: &Stack<'_>) -> io::Result<()> {
        let Some(top) = stack.top.filter(|_| matches!(self.kind, Kind::Native) && stack.effect == Effect::Changes)
        else {
            return Ok(());
        };
        let copied = Command::new("cp").arg("-a").arg(stack.plain.join(".")).arg(top).status()?;
        if copied.success() { Ok(()) } else { Err(io::Error::other("cannot copy the lower tree")) }
    }

    /// How it starts containers; nothing for those that mount.
    pub(crate) fn launcher(&self) -> Option<&Launcher> {
        match &self.kind {
            Kind::Launcher(launcher) => Some(launcher),
            Kind::Native | Kind::Overlay | Kind::Program(_) => None,
        }
    }

    /// How podman mounts by it; nothing for those that it cannot mount by, and for those that are told more than it
    /// would tell them.
    pub(crate) fn storage(&self) -> Option<Storage> {
        match &self.kind {
            Kind::Overlay => Some(Storage { program: None, libraries: None }),
            Kind::Program(program) if !self.rootless => program.storage(),
            Kind::Native | Kind::Program(_) | Kind::Launcher(_) => None,
        }
    }

    /// Whether a process of its own serves it.
    pub(crate) fn has_daemon(&self) -> bool {
        matches!(self.kind, Kind::Program(_))
    }

    /// Mounts the stack; says how long it took until the root of the mount answered.
    pub(crate) fn mount(&self, stack: &Stack<'_>) -> io::Result<(Mounted, Duration)> {
        let before = crate::mounted::children();
        let start = Instant::now();
        let answer = self.attach(stack).and_then(|()| stack.target.metadata());
        let elapsed = start.elapsed();
        // Whatever a mount that failed has left is taken away, too.
        let mounted = Mounted::adopt(stack.target, &before)?;
        answer?;
        Ok((mounted, elapsed))
    }

    fn attach(&self, stack: &Stack<'_>) -> io::Result<()> {
        match &self.kind {
            Kind::Native | Kind::Launcher(_) => {
                let source = stack.top.filter(|_| stack.effect != Effect::Reads).unwrap_or(stack.plain);
                Ok(mount(Some(source), stack.target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
            }
            Kind::Overlay => overlay::mount(stack),
            Kind::Program(program) => program.mount(stack),
        }
    }
}

/// A name, and how to mount it or why it is not there.
type Candidate = (String, Result<Kind, String>);

/// Who is measured in a quick run where nobody is named: ours, and what shows that a workload itself works.
const QUICK: &[&str] = &[OVERLAY, RUNIONFS, NO_PASSTHROUGH, ROOTLESS, RLAUNCH, BWRAP, CRUN, UNSHARE, UMOCI];

/// Those that mount in a user namespace.
const IN_A_USER_NAMESPACE: &[&str] = &[ROOTLESS, FUSE_OVERLAYFS_ROOTLESS];

/// Looks for everybody that is asked for.
pub(crate) fn find(options: &Options) -> Result<Contenders, String> {
    let mut present = Vec::new();
    let mut missing = Vec::new();
    for (name, kind) in all(options)? {
        match kind {
            Ok(kind) => present.push(Contender { rootless: IN_A_USER_NAMESPACE.contains(&&*name), name, kind }),
            Err(reason) => missing.push((name, reason)),
        }
    }
    if present.iter().any(Contender::is_runionfs) {
        return Ok(Contenders { present, missing });
    }
    let reasons: Vec<String> = missing.into_iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    let remedy = "run 'cargo build --release -p unionfs' first, or name it in $RUNIONFS";
    Err(format!("there is no runionfs to measure ({}): {remedy}", reasons.join("; ")))
}

/// The one of this name.
pub(crate) fn named(options: &Options, name: &str) -> Result<Contender, String> {
    let found = find(options)?.present.into_iter().find(|contender| contender.name == name);
    found.ok_or_else(|| format!("{name} is missing"))
}

fn all(options: &Options) -> Result<Vec<Candidate>, String> {
    let mut all = vec![("native".to_owned(), Ok(Kind::Native)), (OVERLAY.to_owned(), overlay_in_kernel())];
    for (name, words) in [(RUNIONFS, ""), (NO_PASSTHROUGH, PASSTHROUGH_OFF), (ROOTLESS, "")] {
        all.push((name.to_owned(), Program::runionfs(words).map(Kind::Program)));
    }
    for (name, program) in program::peers() {
        all.push((name.to_owned(), program.map(Kind::Program)));
    }
    for (name, launcher) in launcher::all() {
        all.push((name.to_owned(), launcher.map(Kind::Launcher)));
    }
    let quick = || QUICK.iter().copied().map(str::to_owned).collect();
    let against = options.against.clone().or_else(|| options.quick.then(quick));
    let mut chosen = choose(all, against.as_deref())?;
    for variant in &options.variant {
        let (name, words) = variant.split_once('=').ok_or(format!("--variant {variant}: NAME=OPTIONS is needed"))?;
        chosen.push((name.to_owned(), Program::runionfs(words).map(Kind::Program)));
    }
    Ok(chosen)
}

/// Keeps those that were asked for, and runionfs where none of ours was.
fn choose(mut all: Vec<Candidate>, against: Option<&[String]>) -> Result<Vec<Candidate>, String> {
    let Some(against) = against else { return Ok(all) };
    if let Some(unknown) = against.iter().find(|wanted| !all.iter().any(|(name, _)| name == *wanted)) {
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("--against {unknown}: there are {}", names.join(", ")));
    }
    let none_of_ours = !against.iter().any(|name| name.starts_with(RUNIONFS));
    all.retain(|(name, _)| against.contains(name) || none_of_ours && name == RUNIONFS);
    Ok(all)
}

fn overlay_in_kernel() -> Result<Kind, String> {
    // Where it is a module that is not loaded yet, this loads it; else the list tells.
    let loaded = Command::new("modprobe").arg("overlay").stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = loaded || known.lines().any(|line| line.ends_with("\toverlay"));
    if found { Ok(Kind::Overlay) } else { Err("the kernel has no overlayfs".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Candidate> {
        vec![
            ("native".to_owned(), Ok(Kind::Native)),
            ("overlay".to_owned(), Ok(Kind::Overlay)),
            ("runionfs".to_owned(), Err("not built".to_owned())),
            ("runionfs-rootless".to_owned(), Err("not built".to_owned())),
            ("mergerfs".to_owned(), Err("not found".to_owned())),
        ]
    }

    fn names(chosen: &[Candidate]) -> Vec<&str> {
        chosen.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn only_those_asked_for_are_measured() {
        let wanted = ["mergerfs".to_owned(), "runionfs-rootless".to_owned()];
        assert_eq!(names(&choose(some(), Some(&wanted)).unwrap()), ["runionfs-rootless", "mergerfs"]);
        assert_eq!(names(&choose(some(), None).unwrap()), names(&some()));
    }

    #[test]
    fn ours_is_measured_where_none_of_ours_is_named() {
        let wanted = ["mergerfs".to_owned(), "overlay".to_owned()];
        assert_eq!(names(&choose(some(), Some(&wanted)).unwrap()), ["overlay", "runionfs", "mergerfs"]);
    }

    #[test]
    fn an_unknown_contender_is_refused_by_name() {
        let refused = choose(some(), Some(&["aufs".to_owned()])).unwrap_err();
        assert_eq!(refused, "--against aufs: there are native, overlay, runionfs, runionfs-rootless, mergerfs");
    }
}
