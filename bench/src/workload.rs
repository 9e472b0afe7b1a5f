//! What is measured. A workload is a function of a path; it knows nothing of what is mounted there.
//!
//! It comes in two parts. The function prepares (makes the list of names, creates what is to be removed) and returns
//! the *job*, and only the job is timed. A *cold* workload prepares without looking at the path, so that the job is the
//! first to use a fresh mount; the branches below are warm. A *warm* one runs its job once before the clock starts.

mod build;
mod copy_up;
mod create;
mod depth;
mod fio;
mod image;
mod launch;
mod memory;
mod metadata;
mod open;
mod readdir;
mod real;
mod reflink;
mod system;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::contender::{Contender, Effect, Launcher, Start, Storage};
use crate::medium::Medium;
use crate::statistics::Better;
use crate::tree::{Scale, Tree};

/// The timed part of a workload.
pub(crate) type Job<T> = Box<dyn FnMut() -> io::Result<T>>;

/// Where a workload works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The mount point.
    pub(crate) root: &'a Path,
    /// A plain folder beside it to read from, as [`Workload::assets`] says.
    pub(crate) assets: &'a Path,
    /// How much to do.
    pub(crate) scale: Scale,
    /// Who starts containers, where that is what is measured.
    pub(crate) launcher: Option<&'a Launcher>,
    /// How podman mounts by it, where that is what is measured.
    pub(crate) storage: Option<&'a Storage>,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Workload {
    /// What it is called, its family excluded.
    pub(crate) name: &'static str,
    /// The file it comes from.
    pub(crate) family: &'static str,
    /// What it does, in one line.
    pub(crate) about: &'static str,
    /// What lies in the branches below.
    pub(crate) tree: Tree,
    /// What it reads from outside the mount.
    pub(crate) assets: Tree,
    /// Where the branches lie.
    pub(crate) medium: Medium,
    /// What it does to the tree.
    pub(crate) effect: Effect,
    /// Whether it is done in a union without a writable branch.
    pub(crate) read_only: bool,
    /// Whether it starts containers: then it is for launchers, and for nobody else.
    pub(crate) starts: Option<Start>,
    /// Whether podman mounts: then it is for those that it can mount by.
    pub(crate) builds: bool,
    /// Whether the job is run once before it is measured.
    pub(crate) warm: bool,
    /// Whether the lower files are dropped from the page cache first.
    pub(crate) evict: bool,
    /// How it is measured.
    pub(crate) measure: Measure,
}

/// What the number of a row is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Measure {
    /// The time that the job takes, in seconds.
    Time(fn(&Place<'_>) -> io::Result<Job<()>>),
    /// What the job says.
    Value(Unit, fn(&Place<'_>) -> io::Result<Job<f64>>),
    /// The time from the mount command to the first answer.
    MountTime,
    /// The resident memory of the daemon after the job.
    DaemonMemory(fn(&Place<'_>) -> io::Result<Job<()>>),
    /// By how much the page cache has grown after the job was done in this many mounts of the same branches.
    PageCache(usize, fn(&Place<'_>) -> io::Result<Job<()>>),
}

/// What the numbers of a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Time.
    Seconds,
    /// Latency.
    Microseconds,
    /// Bandwidth.
    MebibytesPerSecond,
    /// Memory.
    Mebibytes,
}

impl Unit {
    /// Which end is good.
    pub(crate) fn better(self) -> Better {
        if self == Unit::MebibytesPerSecond { Better::Higher } else { Better::Lower }
    }
}

impl Workload {
    const fn new(name: &'static str, about: &'static str, tree: Tree, measure: Measure) -> Workload {
        Workload {
            name,
            family: "",
            about,
            tree,
            assets: Tree::Empty,
            medium: Medium::Usual,
            effect: Effect::Reads,
            read_only: false,
            starts: None,
            builds: false,
            warm: false,
            evict: false,
            measure,
        }
    }

    const fn timed(
        name: &'static str,
        about: &'static str,
        tree: Tree,
        run: fn(&Place<'_>) -> io::Result<Job<()>>,
    ) -> Workload {
        Workload::new(name, about, tree, Measure::Time(run))
    }

    const fn builds(self) -> Workload {
        Workload { builds: true, ..self }
    }

    const fn warm(self) -> Workload {
        Workload { warm: true, ..self }
    }

    const fn evicted(self) -> Workload {
        Workload { evict: true, ..self }
    }

    const fn read_only(self) -> Workload {
        Workload { read_only: true, ..self }
    }

    const fn lies_on(self, medium: Medium) -> Workload {
        Workload { medium, ..self }
    }

    const fn creates(self) -> Workload {
        Workload { effect: Effect::Creates, ..self }
    }

    const fn changes(self) -> Workload {
        Workload { effect: Effect::Changes, ..self }
    }

    const fn reads_from(self, assets: Tree) -> Workload {
        Workload { assets, ..self }
    }

    const fn of(self, family: &'static str) -> Workload {
        Workload { family, ..self }
    }

    /// The read-only branches to stack, top first. Without a writable branch overlayfs wants two at least, so there
    /// everybody gets an empty one more.
    pub(crate) fn branches(&self, trees: &Path) -> Vec<PathBuf> {
        let mut branches = self.tree.branches(trees);
        if self.read_only {
            branches.extend(Tree::Empty.branches(trees));
        }
        branches
    }

    /// What its numbers count.
    pub(crate) fn unit(&self) -> Unit {
        match self.measure {
            Measure::Time(_) | Measure::MountTime => Unit::Seconds,
            Measure::Value(unit, _) => unit,
            Measure::DaemonMemory(_) | Measure::PageCache(..) => Unit::Mebibytes,
        }
    }

    /// Whether this contender can do it at all.
    pub(crate) fn suits(&self, contender: &Contender) -> bool {
        if self.starts.is_some() || contender.launcher().is_some() {
            return self.starts.zip(contender.launcher()).is_some_and(|(start, launcher)| launcher.can(start));
        }
        if self.builds {
            return contender.storage().is_some();
        }
        let needs_daemon = matches!(self.measure, Measure::DaemonMemory(_));
        contender.can(self.effect) && (contender.has_daemon() || !needs_daemon)
    }

    /// `exists` tells that a workload has exactly this name: then it is not the beginning of others.
    fn matches(&self, wanted: &str, exists: bool) -> bool {
        if exists { self.name == wanted } else { self.family == wanted || self.name.starts_with(wanted) }
    }
}

/// Every workload, in the order of the table.
const FAMILIES: &[&[Workload]] = &[
    metadata::WORKLOADS,
    readdir::WORKLOADS,
    open::WORKLOADS,
    create::WORKLOADS,
    copy_up::WORKLOADS,
    reflink::WORKLOADS,
    depth::WORKLOADS,
    real::WORKLOADS,
    system::WORKLOADS,
    launch::WORKLOADS,
    image::WORKLOADS,
    build::WORKLOADS,
    fio::WORKLOADS,
    memory::WORKLOADS,
];

/// The workloads that are asked for; all where nothing is.
pub(crate) fn select(only: &[String]) -> Result<Vec<&'static Workload>, String> {
    let all = || FAMILIES.iter().copied().flatten();
    let mut chosen = HashSet::new();
    for wanted in only {
        let exists = all().any(|workload| workload.name == wanted);
        let found: Vec<&str> =
            all().filter(|workload| workload.matches(wanted, exists)).map(|workload| workload.name).collect();
        if found.is_empty() {
            return Err(format!("--only {wanted}: there is no such workload or family (see --list)"));
        }
        chosen.extend(found);
    }
    Ok(all().filter(|workload| only.is_empty() || chosen.contains(workload.name)).collect())
}

/// Names and what they do, by family.
pub(crate) fn list(workloads: &[&Workload]) -> String {
    let mut text = String::new();
    let mut family = "";
    for workload in workloads {
        if workload.family != family {
            family = workload.family;
            writeln!(text, "{family}").unwrap_or_default();
        }
        writeln!(text, "  {:<24} {}", workload.name, workload.about).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let all = select(&[]).unwrap();
        let names: HashSet<&str> = all.iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn a_workload_is_chosen_by_family_name_or_beginning() {
        let names = |wanted: &str| -> Vec<&str> {
            select(&[wanted.to_owned()]).unwrap().iter().map(|workload| workload.name).collect()
        };
        assert_eq!(names("stat-cold"), ["stat-cold"]);
        assert_eq!(names("stat"), ["stat-cold", "stat-warm"]);
        assert_eq!(names("open-read"), ["open-read"]);
        assert!(names("readdir").contains(&"find-warm"));
        assert!(select(&["nonsense".to_owned()]).is_err());
    }

    #[test]
    fn what_is_measured_warm_can_be_done_twice() {
        for workload in select(&[]).unwrap() {
            assert!(!(workload.warm && workload.evict), "{}: warm and evicted", workload.name);
        }
    }
}
