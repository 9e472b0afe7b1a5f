//! Which CPUs a container sees: `/proc/cpuinfo` and `/sys/devices/system/cpu/online`.
//!
//! It is as on a machine whose other CPUs are switched off: those that are left keep their numbers, which are the ones that
//! sched_setaffinity(2) takes.

use super::group::{Group, Groups};
use crate::cgroup::cpuset::CpuList;
use crate::cgroup::detect::Version;

/// The CPUs that are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cpus {
    shown: Option<CpuList>,
    /// Whether it may run on others as well, though not on more at a time.
    pub(super) is_less_than_used: bool,
}

impl Cpus {
    /// Those of the machine that are online, that its cpuset has, and no more than its time is enough for.
    pub(super) fn observe(online: &str, groups: &Groups) -> Cpus {
        let online: Option<CpuList> = online.parse().ok();
        let cpuset = groups.cpuset.as_ref().and_then(cpuset);
        let usable = online.and_then(|online| match cpuset {
            Some(cpuset) => online.and(&cpuset).or(Some(online)),
            None => Some(online),
        });
        let most = groups.cpu.as_ref().and_then(whole_cpus);
        let shown = usable.as_ref().map(|usable| most.map_or_else(|| usable.clone(), |most| usable.first(most)));
        Cpus { is_less_than_used: shown != usable, shown }
    }

    pub(super) fn count(&self) -> usize {
        self.shown.as_ref().map_or(1, CpuList::count)
    }

    /// All are, where it is not known which there are.
    pub(super) fn shows(&self, number: usize) -> bool {
        self.shown.as_ref().is_none_or(|shown| shown.contains(number))
    }

    pub(super) fn online(&self) -> String {
        self.shown.as_ref().map_or_else(String::new, |shown| format!("{shown}\n"))
    }

    /// The blocks of the CPUs that are shown, and what belongs to none.
    pub(super) fn cpuinfo(&self, machine: &str) -> String {
        let is_shown = |block: &&str| processor(block).is_none_or(|number| self.shows(number));
        machine.split_inclusive("\n\n").filter(is_shown).collect()
    }
}

fn processor(block: &str) -> Option<usize> {
    let line = block.lines().find(|line| line.starts_with("processor"))?;
    line.split_once(':')?.1.trim().parse().ok()
}

fn cpuset(group: &Group) -> Option<CpuList> {
    let files = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"];
    files.into_iter().find_map(|file| group.read(file)?.parse().ok())
}

/// How many CPUs the time is enough for, rounded up; nothing where it is not limited.
fn whole_cpus(group: &Group) -> Option<usize> {
    let quota = |(quota, period): (Option<u64>, Option<u64>)| {
        let cpus = quota?.div_ceil(period.filter(|period| *period > 0)?);
        usize::try_from(cpus.max(1)).ok()
    };
    let number = |text: Option<String>| text?.trim().parse().ok();
    match group.version {
        Version::V1 => {
            let quotas = group.all("cpu.cfs_quota_us").map(number);
            quotas.zip(group.all("cpu.cfs_period_us").map(number)).filter_map(quota).min()
        }
        Version::V2 => {
            let both = |text: Option<String>| {
                let text = text?;
                let mut words = text.split_whitespace().map(|word| word.parse().ok());
                quota((words.next()?, words.next()?))
            };
            group.all("cpu.max").filter_map(both).min()
        }
    }
}
