//! The limits of one container, decided.

use std::path::{Component, PathBuf};

use super::cpu::Bandwidth;
use super::cpuset::CpuList;
use super::detect::Version;
use super::io::{DiskRate, Kind};
use super::memory::MemoryAndSwap;
use super::network::NetworkClass;
use super::options::LimitOptions;
use super::setting::Setting;
use super::{cpu, cpuset, io, memory, network, pids};
use crate::cgroup::detect::Controller;
use crate::failure::Failure;
use crate::options::DEFAULT_TOP_SIZE;

/// What a container may use, and where its cgroups are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time, and the option that asked for it.
    pub bandwidth: Option<(&'static str, Bandwidth)>,
    /// The share of CPU time, as v1 counts it.
    pub cpu_shares: Option<u64>,
    /// The CPUs that were asked for.
    pub cpuset_cpus: Option<CpuList>,
    /// How many CPUs it is to see, so that programs which count them come to the right number.
    pub visible_cpus: Option<usize>,
    /// Which CPUs these are; chosen when it is known which there are.
    pub pinned: Option<CpuList>,
    /// The memory nodes that were asked for.
    pub cpuset_mems: Option<CpuList>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Memory and swap.
    pub swap: Option<MemoryAndSwap>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The share of the disks' time, as v1 counts it.
    pub io_weight: Option<u16>,
    /// Rates of disks.
    pub disk_rates: Vec<DiskRate>,
    /// Bytes that its union may keep in memory, which are none of the daemon's own and cannot be given back.
    pub kept_in_memory: u64,
    /// The class of its packets.
    pub net_class: Option<NetworkClass>,
    /// The cgroup around it, relative to each hierarchy's root.
    pub parent: Option<PathBuf>,
    /// A limit that cannot be set is a warning.
    pub is_best_effort: bool,
}

impl Limits {
    /// Decides what the options leave open, and looks for the disks.
    ///
    /// # Errors
    /// Where options contradict each other, or a disk is not there.
    pub fn new(options: LimitOptions) -> Result<Limits, Failure> {
        let of_options = Bandwidth::of_options(options.cpu_period, options.cpu_quota);
        let option = if options.cpu_quota.is_some() { "--cpu-quota" } else { "--cpu-period" };
        let limits = Limits {
            bandwidth: options.cpus.map(|cpus| ("--cpus", cpus)).or(of_options.map(|given| (option, given))),
            cpu_shares: options.cpu_shares,
            cpuset_cpus: options.cpuset_cpus,
            visible_cpus: options.cpus.filter(|_| !options.no_cpu_pin).and_then(Bandwidth::whole_cpus),
            pinned: None,
            cpuset_mems: options.cpuset_mems,
            memory: options.memory,
            swap: options.memory_swap.filter(|swap| *swap != MemoryAndSwap::Bytes(0)),
            pids: options.pids_limit,
            io_weight: options.blkio_weight,
            disk_rates: [
                (Kind::BytesRead, &options.device_read_bps),
                (Kind::BytesWritten, &options.device_write_bps),
                (Kind::Reads, &options.device_read_iops),
                (Kind::Writes, &options.device_write_iops),
            ]
            .into_iter()
            .flat_map(|(kind, rates)| rates.iter().map(move |rate| rate.resolve(kind)))
            .collect::<Result<_, _>>()?,
            kept_in_memory: 0,
            net_class: options.net_class,
            parent: options.cgroup_parent.map(relative).transpose()?,
            is_best_effort: options.best_effort_limits,
        };
        limits.check()?;
        Ok(limits)
    }

    /// Decides how much is kept of what the container writes, if that is kept in memory: what was asked for or, where
    /// nothing was, no more than the container may use itself.
    pub(crate) fn keep_in_memory(&mut self, size: String) -> String {
        let Some(memory) = self.memory else { return size };
        let bytes = memory::top_size(&size);
        self.kept_in_memory = if size == DEFAULT_TOP_SIZE { bytes.min(memory) } else { bytes };
        self.kept_in_memory.to_string()
    }

    fn check(&self) -> Result<(), Failure> {
        const LEAST_MEMORY: u64 = 4 << 20;
        let Some(memory) = self.memory else { return Ok(()) };
        if memory < LEAST_MEMORY {
            return Err(Failure::new("--memory is too little to start anything").remedy("give it 4m or more"));
        }
        match self.swap {
            Some(MemoryAndSwap::Bytes(total)) if total < memory => {
                let remedy = "it counts both together; the same value means no swap";
                Err(Failure::new("--memory-swap is less than --memory").remedy(remedy))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is any. CPUs that are only to be seen come with CPU time.
    pub(crate) fn is_some(&self) -> bool {
        !self.settings(|_| Version::V2).is_empty()
    }

    /// Whether programs that look at the machine to decide how much they take would take too much.
    pub(crate) fn are_on_memory_or_cpus(&self) -> bool {
        self.memory.is_some() || self.bandwidth.is_some() || self.cpuset_cpus.is_some() || self.visible_cpus.is_some()
    }

    /// Those that set what was asked for.
    pub(crate) fn controllers(&self) -> Vec<Controller> {
        self.settings(|_| Version::V2).iter().map(|setting| setting.controller).collect()
    }

    /// All that is to be written for what was asked, in order.
    pub(crate) fn settings(&self, version: impl Fn(Controller) -> Version) -> Vec<Setting> {
        let mut settings = cpu::settings(self, version(Controller::Cpu));
        settings.extend(cpuset::settings(self, version(Controller::Cpuset)));
        settings.extend(memory::settings(self, version(Controller::Memory)));
        settings.extend(pids::settings(self));
        settings.extend(io::settings(self, version(Controller::Io)));
        settings.extend(network::settings(self));
        settings
    }
}

/// A path below the roots of the hierarchies, and nowhere else.
fn relative(path: PathBuf) -> Result<PathBuf, Failure> {
    let name = |component| match component {
        Component::Normal(name) => Some(Ok(name)),
        Component::RootDir | Component::CurDir => None,
        Component::ParentDir | Component::Prefix(_) => Some(Err(())),
    };
    let names: Result<PathBuf, ()> = path.components().filter_map(name).collect();
    names.map_err(|()| {
        Failure::new(format!("--cgroup-parent {} leads upwards", path.display()))
            .remedy("give the path from the root of the hierarchy, without ..")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(options: LimitOptions) -> Result<Limits, String> {
        Limits::new(options).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_number_of_cpus_is_also_what_is_seen() {
        let cpus = cpu::parse_cpus("1.5").ok();
        let some = limits(LimitOptions { cpus, ..Default::default() }).unwrap();
        assert_eq!((some.visible_cpus, some.bandwidth.unwrap().0), (Some(2), "--cpus"));
        let unpinned = limits(LimitOptions { cpus, no_cpu_pin: true, ..Default::default() }).unwrap();
        assert_eq!(unpinned.visible_cpus, None);
        let quota = limits(LimitOptions { cpu_quota: Some(20_000), ..Default::default() }).unwrap();
        assert_eq!(quota.visible_cpus, None);
        assert_eq!(quota.bandwidth, Some(("--cpu-quota", Bandwidth { quota: Some(20_000), period: 100_000 })));
    }

    #[test]
    fn parents_are_taken_from_the_roots() {
        for (path, expected) in [("/a/b", "a/b"), ("a/./b/", "a/b"), ("/", ""), ("a//b", "a/b")] {
            let parent =
                limits(LimitOptions { cgroup_parent: Some(path.into()), ..Default::default() }).unwrap().parent;
            assert_eq!(parent, Some(PathBuf::from(expected)), "{path}");
        }
        for path in ["..", "/a/../../b", "a/.."] {
            assert!(limits(LimitOptions { cgroup_parent: Some(path.into()), ..Default::default() }).is_err(), "{path}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let memory = Some(64 << 20);
        let with = |swap| limits(LimitOptions { memory, memory_swap: Some(swap), ..Default::default() });
        assert!(with(MemoryAndSwap::Bytes(63 << 20)).unwrap_err().contains("less than --memory"));
        assert_eq!(with(MemoryAndSwap::Bytes(64 << 20)).unwrap().swap, Some(MemoryAndSwap::Bytes(64 << 20)));
        assert_eq!(with(MemoryAndSwap::Bytes(0)).unwrap().swap, None);
        assert!(limits(LimitOptions { memory: Some(1000), ..Default::default() }).is_err());
    }
}
