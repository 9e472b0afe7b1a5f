//! What is known of the time before: how the machine's counters stood when the container was started, and the load so far.

use std::collections::HashMap;

use super::load::Load;

/// For one container.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(super) load: Load,
    pub(super) counters: Counters,
}

/// Numbers that only grow, by the name at the beginning of their line.
#[derive(Debug, Default)]
pub(super) struct Counters(HashMap<String, Vec<u64>>);

/// The first number alone tells enough: which device has interrupted how often is hidden in /proc/interrupts, too.
const WITH_ONE_NUMBER: &str = "intr";

impl Counters {
    /// Takes them from `/proc/stat` and `/proc/vmstat`.
    pub(super) fn observe(stat: &str, vmstat: &str) -> Counters {
        let is_counter = |name: &str| matches!(name, "intr" | "ctxt" | "processes" | "softirq");
        let of_stat = stat.lines().filter_map(split).filter(|(name, _)| is_counter(name));
        let of_vmstat = vmstat.lines().filter_map(split).filter(|(name, _)| !name.starts_with("nr_"));
        Counters(of_stat.chain(of_vmstat).map(|(name, numbers)| (name.to_owned(), numbers)).collect())
    }

    /// A line with what has happened since; nothing where it does not count.
    pub(super) fn since(&self, line: &str) -> Option<String> {
        let (name, numbers) = split(line)?;
        let before = self.0.get(name)?;
        let since = numbers.iter().zip(before.iter().chain(std::iter::repeat(&0)));
        let since: String = since.map(|(now, before)| format!(" {}", now.saturating_sub(*before))).collect();
        Some(format!("{name}{since}\n"))
    }
}

fn split(line: &str) -> Option<(&str, Vec<u64>)> {
    let (name, rest) = line.split_once(' ')?;
    let most = if name == WITH_ONE_NUMBER { 1 } else { usize::MAX };
    let numbers = rest.split_whitespace().take(most).map(str::parse).collect::<Result<_, _>>();
    Some((name, numbers.ok()?))
}
