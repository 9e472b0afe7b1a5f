//! `/proc/stat` and `/proc/uptime`: time, and what it was used for.

use std::str::FromStr;

use super::cpus::Cpus;
use super::group::Groups;
use super::load::Tasks;
use super::past::Counters;
use crate::cgroup::detect::Version;

/// A time since the start, in hundredths of a second. The unit of /proc/stat is the same on every machine that we run on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Uptime(u64);

impl FromStr for Uptime {
    type Err = std::num::ParseIntError;

    /// As /proc/uptime begins.
    fn from_str(text: &str) -> Result<Uptime, Self::Err> {
        let first = text.split_whitespace().next().unwrap_or_default();
        let (seconds, hundredths) = first.split_once('.').unwrap_or((first, "00"));
        let (seconds, hundredths) = (seconds.parse::<u64>()?, format!("{hundredths:.2}").parse::<u64>()?);
        Ok(Uptime(seconds.saturating_mul(100).saturating_add(hundredths)))
    }
}

impl Uptime {
    pub(super) fn since(self, start: Uptime) -> Uptime {
        Uptime(self.0.saturating_sub(start.0))
    }

    /// Without the fraction of a second.
    pub(super) fn whole(self) -> Uptime {
        Uptime(self.whole_seconds() * 100)
    }

    pub(super) fn whole_seconds(self) -> u64 {
        self.0 / 100
    }

    pub(super) fn seconds(self) -> f64 {
        self.0 as f64 / 100.0
    }
}

const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Time on a CPU, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Time {
    user: u64,
    system: u64,
}

impl Time {
    fn plus(self, other: Time) -> Time {
        Time { user: self.user.saturating_add(other.user), system: self.system.saturating_add(other.system) }
    }

    fn divided_by(self, count: u64) -> Time {
        Time { user: self.user / count, system: self.system / count }
    }
}

/// CPU time that the container has used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// By CPU, where that is counted.
    on: Vec<(usize, Time)>,
    /// Wherever it was.
    anywhere: Time,
    is_known: bool,
}

impl Usage {
    pub(super) fn observe(groups: &Groups) -> Usage {
        let Some(group) = &groups.accounting else { return Usage::default() };
        if let Some(text) = group.read("cpuacct.usage_all") {
            let on = text.lines().filter_map(of_cpu).collect();
            return Usage { on, is_known: true, ..Usage::default() };
        }
        let time = |name, user, system, unit: u64| {
            let part = |key| Some(group.number_of(name, key)?.saturating_mul(unit));
            Some(Time { user: part(user)?, system: part(system)? })
        };
        let anywhere = match group.version {
            Version::V1 => time("cpuacct.stat", "user", "system", NANOSECONDS_PER_TICK),
            Version::V2 => time("cpu.stat", "user_usec", "system_usec", 1000),
        };
        Usage { on: Vec::new(), anywhere: anywhere.unwrap_or_default(), is_known: anywhere.is_some() }
    }

    /// In seconds.
    pub(super) fn seconds(&self) -> f64 {
        let sum = self.on.iter().fold(self.anywhere, |sum, (_, time)| sum.plus(*time));
        sum.user.saturating_add(sum.system) as f64 / 1e9
    }

    /// What each of the CPUs that are shown has done: time on others is all of theirs.
    fn spread_over(&self, cpus: &Cpus) -> impl Fn(usize) -> Time {
        let is_its_own = |number: usize| !cpus.is_less_than_used && cpus.shows(number);
        let elsewhere = self.on.iter().filter(|(number, _)| !is_its_own(*number));
        let elsewhere = elsewhere.fold(self.anywhere, |sum, (_, time)| sum.plus(*time));
        let share = elsewhere.divided_by(cpus.count().max(1) as u64);
        let own: Vec<_> = self.on.iter().filter(|(number, _)| is_its_own(*number)).copied().collect();
        move |number| own.iter().find(|(cpu, _)| *cpu == number).map_or(share, |(_, time)| time.plus(share))
    }
}

/// A line of `cpuacct.usage_all`: the number of the CPU, and nanoseconds.
fn of_cpu(line: &str) -> Option<(usize, Time)> {
    let mut words = line.split_whitespace();
    let number = words.next()?.parse().ok()?;
    Some((number, Time { user: words.next()?.parse().ok()?, system: words.next()?.parse().ok()? }))
}

/// What `/proc/stat` tells of time.
pub(super) struct Times<'a> {
    pub(super) cpus: &'a Cpus,
    pub(super) usage: &'a Usage,
    pub(super) age: Uptime,
    /// So much later than the machine's, in seconds, is the boot from which the start times of processes count.
    pub(super) later: u64,
}

/// `/proc/stat`. Its CPUs began with the container, and were idle when they did nothing for it; what else happens is counted
/// for all of the machine, since then.
pub(super) fn stat(machine: &str, times: &Times<'_>, counters: &Counters, tasks: Option<Tasks>) -> String {
    let Times { cpus, usage, age, .. } = *times;
    let (mut sum, mut lines) = (Vec::new(), String::new());
    let time_on = usage.spread_over(cpus);
    for line in machine.lines() {
        let Some((name, rest)) = line.split_once(' ') else { continue };
        match name.strip_prefix("cpu").map(str::parse::<usize>) {
            Some(Err(_)) => {}
            Some(Ok(number)) if cpus.shows(number) => {
                let fields = if usage.is_known { fields(time_on(number), age) } else { numbers(rest) };
                lines.push_str(&print(name, &fields));
                add(&mut sum, &fields);
            }
            Some(Ok(_)) => {}
            None => lines.push_str(&other(line, times.later, counters, tasks)),
        }
    }
    // Two spaces, as the kernel has it.
    print("cpu ", &sum) + &lines
}

/// user, nice, system and idle; nobody counts the others.
fn fields(time: Time, age: Uptime) -> Vec<u64> {
    let (user, system) = (time.user / NANOSECONDS_PER_TICK, time.system / NANOSECONDS_PER_TICK);
    let idle = age.0.saturating_sub(user).saturating_sub(system);
    vec![user, 0, system, idle, 0, 0, 0, 0, 0, 0]
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn add(sum: &mut Vec<u64>, fields: &[u64]) {
    sum.resize(sum.len().max(fields.len()), 0);
    sum.iter_mut().zip(fields).for_each(|(sum, field)| *sum = sum.saturating_add(*field));
}

fn print(name: &str, fields: &[u64]) -> String {
    let fields: String = fields.iter().map(|field| format!(" {field}")).collect();
    format!("{name}{fields}\n")
}

fn other(line: &str, later: u64, counters: &Counters, tasks: Option<Tasks>) -> String {
    let own = match (line.split_once(' '), tasks) {
        (Some(("procs_running", _)), Some(tasks)) => Some(format!("procs_running {}\n", tasks.running_with_asker())),
        (Some(("procs_blocked", _)), Some(tasks)) => Some(format!("procs_blocked {}\n", tasks.blocked)),
        (Some(("btime", boot)), _) => {
            boot.parse::<u64>().ok().map(|boot| format!("btime {}\n", boot.saturating_add(later)))
        }
        _ => counters.since(line),
    };
    own.unwrap_or_else(|| format!("{line}\n"))
}

/// `/proc/uptime`: the container's age, and how long its CPUs had nothing to do for it.
pub(super) fn uptime(age: Uptime, cpus: usize, usage: &Usage) -> String {
    let idle = (age.seconds() * cpus as f64 - usage.seconds()).max(0.0);
    format!("{:.2} {idle:.2}\n", age.seconds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_hundredths() {
        for (text, expected) in [("12.34 56.78\n", 1234), ("0.05 1", 5), ("7 8", 700), ("3.999", 399)] {
            assert_eq!(text.parse(), Ok(Uptime(expected)), "{text}");
        }
        for text in ["", "x", "-1.00", "."] {
            assert!(text.parse::<Uptime>().is_err(), "{text:?}");
        }
        assert_eq!(Uptime(5).since(Uptime(7)), Uptime(0));
    }
}
