//! `/proc/meminfo` and `/proc/swaps`.

use super::group::Group;
use crate::cgroup::detect::Version;
use crate::cgroup::directory::number_of;
use crate::cgroup::statistics::UNLIMITED;

/// What a container may use of the memory, and has used; in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// The lowest limit on it.
    limit: u64,
    /// What is left, below the limit that leaves least.
    free: u64,
    /// The lowest limit on swap beside it, if there is one.
    swap_limit: Option<u64>,
    swap_used: u64,
    /// By the name that v2 has for it.
    parts: Parts,
}

/// What the memory is used for: the fields of memory.stat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Parts(Vec<(String, u64)>);

impl Parts {
    fn parse(text: &str, version: Version) -> Parts {
        let part = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            let name = match version {
                Version::V1 => name_on_v2(name.strip_prefix("total_")?),
                Version::V2 => name,
            };
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Parts(text.lines().filter_map(part).collect())
    }

    /// Zero where it is not counted.
    fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(own, _)| own == name).map_or(0, |(_, value)| *value)
    }

    fn sum(&self, names: &[&str]) -> u64 {
        names.iter().fold(0, |sum: u64, name| sum.saturating_add(self.get(name)))
    }
}

fn name_on_v2(name: &str) -> &str {
    match name {
        "cache" => "file",
        "rss" => "anon",
        "mapped_file" => "file_mapped",
        "dirty" => "file_dirty",
        "writeback" => "file_writeback",
        "rss_huge" => "anon_thp",
        other => other,
    }
}

/// One cgroup.
struct Level {
    limit: Option<u64>,
    usage: u64,
    /// On swap alone.
    swap_limit: Option<u64>,
}

impl Memory {
    /// Nothing where there is no limit: then the machine's memory is the container's.
    pub(super) fn observe(group: &Group) -> Option<Memory> {
        let levels = match group.version {
            Version::V1 => levels_of_v1(group),
            Version::V2 => levels_of_v2(group),
        };
        let limit = levels.iter().filter_map(|level| level.limit).min()?;
        let free = levels.iter().filter_map(|level| Some(level.limit?.saturating_sub(level.usage))).min()?;
        let parts = Parts::parse(&group.read("memory.stat").unwrap_or_default(), group.version);
        let swap_used = match group.version {
            Version::V1 => parts.get("swap"),
            Version::V2 => group.number("memory.swap.current").unwrap_or(0),
        };
        let swap_limit = levels.iter().filter_map(|level| level.swap_limit).min();
        Some(Memory { limit, free, swap_limit, swap_used, parts })
    }
}

fn numbers(group: &Group, name: &str) -> Vec<Option<u64>> {
    let number = |text: Option<String>| text?.trim().parse().ok().filter(|number| *number < UNLIMITED);
    group.all(name).map(number).collect()
}

/// v1 limits memory and swap together.
fn levels_of_v1(group: &Group) -> Vec<Level> {
    let limits = numbers(group, "memory.limit_in_bytes");
    let (usage, both) = (numbers(group, "memory.usage_in_bytes"), numbers(group, "memory.memsw.limit_in_bytes"));
    let level = |((limit, usage), both): ((Option<u64>, Option<u64>), Option<u64>)| Level {
        limit,
        usage: usage.unwrap_or(0),
        swap_limit: both.map(|both: u64| both.saturating_sub(limit.unwrap_or(0))),
    };
    limits.into_iter().zip(usage).zip(both).map(level).collect()
}

fn levels_of_v2(group: &Group) -> Vec<Level> {
    let limits = numbers(group, "memory.max");
    let (usage, swap) = (numbers(group, "memory.current"), numbers(group, "memory.swap.max"));
    let level = |((limit, usage), swap_limit): ((Option<u64>, Option<u64>), Option<u64>)| Level {
        limit,
        usage: usage.unwrap_or(0),
        swap_limit,
    };
    limits.into_iter().zip(usage).zip(swap).map(level).collect()
}

/// Swap as it is shown; in bytes.
struct Swap {
    total: u64,
    free: u64,
}

fn swap(meminfo: &str, memory: &Memory) -> Swap {
    let machine = |key| number_of(meminfo, key).unwrap_or(0).saturating_mul(1024);
    let total = machine("SwapTotal:").min(memory.swap_limit.unwrap_or(u64::MAX));
    Swap { total, free: total.saturating_sub(memory.swap_used).min(machine("SwapFree:")) }
}

/// `/proc/meminfo`. What the kernel does not count for a cgroup is the machine's.
pub(super) fn meminfo(machine: &str, memory: &Memory) -> String {
    let own = |line: &str| {
        let (name, _) = line.split_once(':')?;
        let bytes = value(name, machine, memory)?;
        Some(format!("{:<16}{:>8} kB\n", format!("{name}:"), bytes / 1024))
    };
    machine.lines().map(|line| own(line).unwrap_or_else(|| format!("{line}\n"))).collect()
}

fn value(name: &str, machine: &str, memory: &Memory) -> Option<u64> {
    let of_machine = |key| number_of(machine, key).map_or(u64::MAX, |number| number.saturating_mul(1024));
    let total = memory.limit.min(of_machine("MemTotal:"));
    let free = memory.free.min(total);
    let parts = &memory.parts;
    Some(match name {
        "MemTotal" => total,
        "MemFree" => free,
        "MemAvailable" => {
            let reclaimable = parts.sum(&["active_file", "inactive_file", "slab_reclaimable"]);
            // More than the machine has is of no use to it.
            free.saturating_add(reclaimable).min(total).min(of_machine("MemAvailable:"))
        }
        "SwapTotal" => swap(machine, memory).total,
        "SwapFree" => swap(machine, memory).free,
        "Buffers" | "ShmemPmdMapped" | "FilePmdMapped" => 0,
        "Cached" => parts.get("file"),
        "SwapCached" => parts.get("swapcached"),
        "Active" => parts.sum(&["active_anon", "active_file"]),
        "Inactive" => parts.sum(&["inactive_anon", "inactive_file"]),
        "Active(anon)" => parts.get("active_anon"),
        "Inactive(anon)" => parts.get("inactive_anon"),
        "Active(file)" => parts.get("active_file"),
        "Inactive(file)" => parts.get("inactive_file"),
        "Unevictable" | "Mlocked" => parts.get("unevictable"),
        "Zswap" => parts.get("zswap"),
        "Zswapped" => parts.get("zswapped"),
        "Dirty" => parts.get("file_dirty"),
        "Writeback" => parts.get("file_writeback"),
        "AnonPages" => parts.get("anon"),
        "Mapped" => parts.get("file_mapped"),
        "Shmem" => parts.get("shmem"),
        "Slab" => parts.sum(&["slab_reclaimable", "slab_unreclaimable"]),
        "KReclaimable" | "SReclaimable" => parts.get("slab_reclaimable"),
        "SUnreclaim" => parts.get("slab_unreclaimable"),
        "KernelStack" => parts.get("kernel_stack"),
        "PageTables" => parts.get("pagetables"),
        "SecPageTables" => parts.get("sec_pagetables"),
        "Percpu" => parts.get("percpu"),
        "AnonHugePages" => parts.get("anon_thp"),
        "ShmemHugePages" => parts.get("shmem_thp"),
        "FileHugePages" => parts.get("file_thp"),
        _ => return None,
    })
}

/// `/proc/swaps`: one of no place, as big as what may be used.
pub(super) fn swaps(machine: &str, meminfo: &str, memory: &Memory) -> String {
    let Swap { total, free } = swap(meminfo, memory);
    let head = machine.lines().next().unwrap_or_default();
    match total / 1024 {
        0 => format!("{head}\n"),
        size => format!("{head}\n{:<40}{:<16}{size}\t{}\t0\n", "none", "virtual", (total - free) / 1024),
    }
}
