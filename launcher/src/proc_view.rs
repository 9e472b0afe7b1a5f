//! What a container sees of the machine in `/proc` and `/sys`: as much as it may use.
//!
//! Programs count CPUs and memory to decide how much of both they take. So where a container has a limit on one, the files
//! that tell it are laid over by others that tell the limit. They are a small FUSE file system of its own (`server`), in
//! which a text is made when somebody begins to read it, from the machine's text and from what the container's cgroups say at that
//! moment. Who asks does not matter: there is one such file system for one container, and its cgroups are known.
//!
//! Where FUSE is not to be had they are plain files that tell the moment of the start.
//!
//! | File | Question |
//! |---|---|
//! | `group` | where a value of the container stands, and those of the cgroups around it |
//! | `memory` | `/proc/meminfo`, `/proc/swaps` |
//! | `cpus` | `/proc/cpuinfo`, `/sys/devices/system/cpu/online` |
//! | `stat` | `/proc/stat`, `/proc/uptime` |
//! | `load` | `/proc/loadavg` |
//! | `disks` | `/proc/diskstats`, and what `/proc/vmstat` tells of disks |
//! | `past` | what is known of the time before |
//! | `server` | the process that serves them |

mod cpus;
mod disks;
pub(crate) mod group;
mod load;
mod memory;
mod past;
pub(crate) mod server;
mod stat;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nix::errno::Errno;

use self::cpus::Cpus;
use self::group::Groups;
use self::memory::Memory;
use self::past::{Counters, Past};
use self::stat::{Uptime, Usage};
use crate::cgroup::Cgroups;
use crate::confine::Capabilities;
use crate::failure::{Doing as _, Failure};
use crate::namespace::{ClockOffsets, Share};
use crate::spec::Spec;

/// When a container's `/proc` tells what it may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Wish {
    /// Where it has a limit on memory or CPUs; by plain files where there is no FUSE.
    #[default]
    Auto,
    /// Always; a start without FUSE fails.
    On,
    /// Always, as of the moment of the start.
    Static,
    /// Never.
    Off,
}

impl Wish {
    /// Whether values are needed that nobody limits.
    pub(crate) fn wants_everything(self) -> bool {
        matches!(self, Wish::On | Wish::Static)
    }
}

/// A file that tells what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum File {
    Meminfo,
    Swaps,
    Cpuinfo,
    Online,
    Stat,
    Uptime,
    Loadavg,
    Diskstats,
    Vmstat,
}

impl File {
    /// All of them.
    const ALL: [File; 9] = [
        File::Meminfo,
        File::Swaps,
        File::Cpuinfo,
        File::Online,
        File::Stat,
        File::Uptime,
        File::Loadavg,
        File::Diskstats,
        File::Vmstat,
    ];

    /// Where it is, on the machine and in the container.
    pub(crate) fn path(self) -> &'static str {
        match self {
            File::Meminfo => "/proc/meminfo",
            File::Swaps => "/proc/swaps",
            File::Cpuinfo => "/proc/cpuinfo",
            File::Online => "/sys/devices/system/cpu/online",
            File::Stat => "/proc/stat",
            File::Uptime => "/proc/uptime",
            File::Loadavg => "/proc/loadavg",
            File::Diskstats => "/proc/diskstats",
            File::Vmstat => "/proc/vmstat",
        }
    }

    /// What it is called where it is served.
    pub(crate) fn name(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }
}

/// What a container is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcView {
    /// The files.
    pub(crate) files: Vec<File>,
    /// Whether they are served.
    pub(crate) way: Way,
    /// The clocks that the container gets so that it is as old as it is.
    pub(crate) clocks: Option<ClockOffsets>,
    /// Where what they tell comes from.
    pub(crate) sources: Sources,
}

/// How the files get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By FUSE, or not at all.
    Served,
    /// By FUSE if that works.
    ServedIfPossible,
    /// As they are at the start.
    Static,
}

impl ProcView {
    /// Decides it, once the container's cgroups are there.
    ///
    /// # Errors
    /// Where the machine's own /proc cannot be read.
    pub(crate) fn decide(wish: Wish, spec: &Spec, cgroups: &Cgroups) -> Result<Option<ProcView>, Failure> {
        let way = match wish {
            Wish::Off => return Ok(None),
            Wish::Auto if !spec.limits.are_on_memory_or_cpus() => return Ok(None),
            Wish::Auto => Way::ServedIfPossible,
            Wish::On => Way::Served,
            Wish::Static => Way::Static,
        };
        let age = Age::of(spec).doing("look at this process")?;
        let files = File::ALL.into_iter().filter(|file| *file != File::Uptime || age != Age::AsMachine).collect();
        let sources = Sources::new(Path::new("/"), Groups::of(cgroups), age).doing("read /proc/uptime")?;
        let clocks = (age == Age::ByClocks).then(|| sources.clocks()).transpose().doing("look at the clocks")?;
        Ok(Some(ProcView { files, way, clocks, sources }))
    }

    /// Whether it is served, and if so whether it has to be.
    pub(crate) fn is_served(&self) -> Option<bool> {
        match self.way {
            Way::Served => Some(true),
            Way::ServedIfPossible => Some(false),
            Way::Static => None,
        }
    }

    /// One for tests of what is done with it.
    #[cfg(test)]
    pub(crate) fn example(way: Way) -> ProcView {
        let (machine, groups) = (PathBuf::from("/"), Groups::default());
        let sources = Sources { machine, groups, age: Age::ByClocks, started: Uptime::default() };
        let clocks = Some(ClockOffsets { monotonic: 0, boottime: -1000 });
        ProcView { files: vec![File::Meminfo], way, clocks, sources }
    }

    /// All files and their texts of this moment.
    pub(crate) fn texts(&self) -> Vec<(File, Vec<u8>)> {
        let mut past = self.sources.past();
        // What cannot be read has no text that could be shown instead.
        let text = |file: &File| Some((*file, self.sources.text(*file, &mut past)?));
        self.files.iter().filter_map(text).collect()
    }
}

/// How the container knows how old it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// It has clocks that begin with it, so that also the start times of its processes, as ps(1) shows them, are right.
    ByClocks,
    /// By /proc/uptime alone: before Linux 5.6, and where nobody may set clocks.
    Told,
    /// Not at all: it was given other clocks, or sees all processes of the machine.
    AsMachine,
}

impl Age {
    fn of(spec: &Spec) -> Result<Age, Errno> {
        if spec.namespaces.clocks().is_some() || spec.namespaces.pid == Share::Host {
            return Ok(Age::AsMachine);
        }
        // Root of a user namespace that is made with the container may do that in it.
        let may_set =
            spec.id_maps.is_some() || Capabilities::of_this_process()?.contains(Capabilities::named("SYS_TIME"));
        Ok(if may_set && Path::new(CLOCKS).exists() { Age::ByClocks } else { Age::Told })
    }
}

/// The offsets of this process's clocks to those of the machine; see time_namespaces(7).
const CLOCKS: &str = "/proc/self/timens_offsets";

/// Where values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sources {
    /// The root directory of the machine.
    machine: PathBuf,
    groups: Groups,
    age: Age,
    /// How long the machine had been up when the container was started.
    started: Uptime,
}

impl Sources {
    /// For a container that is started now.
    fn new(machine: &Path, groups: Groups, age: Age) -> std::io::Result<Sources> {
        let mut sources = Sources { machine: machine.to_owned(), groups, age, started: Uptime::default() };
        let started = sources.uptime().ok_or(std::io::ErrorKind::InvalidData)?;
        sources.started = if age == Age::Told { started } else { started.whole() };
        Ok(sources)
    }

    /// Clocks that begin with the container.
    fn clocks(&self) -> std::io::Result<ClockOffsets> {
        // They count from the machine's, whatever ours are.
        let own = fs::read_to_string(CLOCKS)?;
        let offset = |name| {
            let line = own.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        let passed = i64::try_from(self.started.whole_seconds()).unwrap_or(0);
        let (monotonic, boottime) = (offset("monotonic").unwrap_or(0), offset("boottime").unwrap_or(0) - passed);
        Ok(ClockOffsets { monotonic, boottime })
    }

    /// How things are before anything has happened.
    pub(crate) fn past(&self) -> Past {
        let text = |file| self.read(file).unwrap_or_default();
        Past { counters: Counters::observe(&text(File::Stat), &text(File::Vmstat)), ..Past::default() }
    }

    /// What a file is to tell now; nothing where the machine has none.
    pub(crate) fn text(&self, file: File, past: &mut Past) -> Option<Vec<u8>> {
        let machine = self.read(file)?;
        let text = match file {
            File::Meminfo => self.memory().map(|memory| memory::meminfo(&machine, &memory)),
            File::Swaps => {
                let meminfo = self.read(File::Meminfo)?;
                self.memory().map(|memory| memory::swaps(&machine, &meminfo, &memory))
            }
            File::Cpuinfo => Some(self.cpus().cpuinfo(&machine)),
            File::Online => Some(self.cpus().online()),
            File::Stat => Some(self.stat(&machine, past)),
            File::Uptime => Some(stat::uptime(self.age(), self.cpus().count(), &self.usage())),
            File::Loadavg => self.loadavg(past),
            File::Diskstats => disks::observe(&self.groups).map(|disks| disks::diskstats(&machine, &disks)),
            File::Vmstat => Some(disks::vmstat(&machine, &disks::observe(&self.groups), &past.counters)),
        };
        Some(text.unwrap_or(machine).into_bytes())
    }

    fn stat(&self, machine: &str, past: &mut Past) -> String {
        let times = stat::Times {
            cpus: &self.cpus(),
            usage: &self.usage(),
            age: self.age(),
            later: if self.age == Age::ByClocks { self.started.whole_seconds() } else { 0 },
        };
        let tasks = self.tasks(past);
        stat::stat(machine, &times, &past.counters, tasks)
    }

    fn loadavg(&self, past: &mut Past) -> Option<String> {
        self.tasks(past)?;
        Some(past.load.loadavg(self.age(), &self.usage()))
    }

    fn read(&self, file: File) -> Option<String> {
        let path = self.machine.join(file.path().trim_start_matches('/'));
        Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
    }

    fn uptime(&self) -> Option<Uptime> {
        self.read(File::Uptime)?.parse().ok()
    }

    /// How old the container is.
    fn age(&self) -> Uptime {
        self.uptime().unwrap_or_default().since(self.started)
    }

    fn memory(&self) -> Option<Memory> {
        Memory::observe(self.groups.memory.as_ref()?)
    }

    fn cpus(&self) -> Cpus {
        Cpus::observe(&self.read(File::Online).unwrap_or_default(), &self.groups)
    }

    fn usage(&self) -> Usage {
        Usage::observe(&self.groups)
    }

    fn tasks(&self, past: &mut Past) -> Option<load::Tasks> {
        past.load.observe(&self.machine, self.groups.tasks.as_ref()?)
    }
}
