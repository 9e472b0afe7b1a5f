//! What a container uses, and may use, while it runs: it is stopped and goes on, its use is printed, its limits change.

use std::io::{IsTerminal as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::unistd::Pid;
use serde::Serialize;
use unionfs::fuse::texts::FRESH;

use super::table::{aligned, runs};
use super::{find, running};
use crate::cgroup::Cgroups;
use crate::cgroup::limits::Limits;
use crate::cgroup::options::LimitOptions;
use crate::cgroup::statistics::Statistics;
use crate::failure::{Doing as _, Failure};
use crate::state::{self, Record};

/// Over which time use is measured.
const PERIOD: Duration = Duration::from_secs(1);
/// Clears a terminal, and goes to its first line; see console_codes(4).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Limits that are to change.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct UpdateOptions {
    /// The limits.
    #[command(flatten)]
    limits: LimitOptions,
    /// The container
    name: String,
}

/// How use is printed.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StatsOptions {
    /// As JSON, once
    #[arg(long)]
    json: bool,
    /// Once, and not again each second; so it is where the output is no terminal
    #[arg(long)]
    no_stream: bool,
    /// The containers; all that run without one
    names: Vec<String>,
}

/// The control groups of a container that runs.
pub(crate) fn cgroups(record: &Record) -> Result<Cgroups, Failure> {
    let (init, _open) = running(record)?;
    Cgroups::of(Pid::from_raw(init.pid), &record.id)
}

pub(super) fn pause(record: &Record) -> Result<u8, Failure> {
    let cgroups = cgroups(record)?;
    if cgroups.is_frozen() {
        return Err(Failure::new(format!("the container {} is paused already", record.name)));
    }
    cgroups.freeze()?;
    Ok(0)
}

pub(super) fn resume(record: &Record) -> Result<u8, Failure> {
    let cgroups = cgroups(record)?;
    if !cgroups.is_frozen() {
        return Err(Failure::new(format!("the container {} is not paused", record.name)));
    }
    cgroups.thaw()?;
    Ok(0)
}

pub(super) fn update(options: UpdateOptions) -> Result<u8, Failure> {
    let record = find(&options.name)?;
    if options.limits.cgroup_parent.is_some() || options.limits.best_effort_limits {
        return Err(Failure::new("--cgroup-parent and --best-effort-limits are for the start of a container"));
    }
    let limits = Limits::new(options.limits)?;
    if !limits.is_some() {
        return Err(Failure::new("no limit was given").remedy("name what is to change, as in --memory 1g"));
    }
    cgroups(&record)?.update(&limits)?;
    // What its /proc was just about to tell is old now: whoever looks when this has ended sees the new limits.
    thread::sleep(FRESH);
    Ok(0)
}

pub(super) fn stats(options: &StatsOptions) -> Result<u8, Failure> {
    let live = std::io::stdout().is_terminal() && !options.no_stream && !options.json;
    loop {
        let uses = measure(&options.names)?;
        let text = match (options.json, live) {
            (true, _) => json(&uses)?,
            (false, true) => format!("{CLEAR}{}", table(&uses)),
            (false, false) => table(&uses),
        };
        std::io::stdout().write_all(text.as_bytes()).doing("print")?;
        if !live || uses.is_empty() {
            return Ok(0);
        }
    }
}

/// What a container used in the last period.
#[derive(Debug, Serialize)]
struct Use {
    name: String,
    /// Of one processor; nothing where the machine does not count.
    cpu_percent: Option<f64>,
    #[serde(flatten)]
    now: Statistics,
}

/// Containers that end meanwhile are left out.
fn measure(names: &[String]) -> Result<Vec<Use>, Failure> {
    let records = match names {
        [] => state::all()?,
        names => names.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    let mut watched = Vec::new();
    for record in records {
        match cgroups(&record) {
            Ok(cgroups) => watched.push((record, cgroups)),
            // Only who was named is missed.
            Err(failure) if !names.is_empty() => return Err(failure),
            Err(_) => {}
        }
    }
    if watched.is_empty() {
        return Ok(Vec::new());
    }
    let begin = Instant::now();
    let before: Vec<_> = watched.iter().map(|(_, cgroups)| cgroups.statistics()).collect();
    thread::sleep(PERIOD);
    let mut uses = Vec::new();
    for ((record, cgroups), before) in watched.iter().zip(&before) {
        if runs(record)? {
            let now = cgroups.statistics();
            let cpu_percent = percent(before, &now, begin.elapsed());
            uses.push(Use { name: record.name.clone(), cpu_percent, now });
        }
    }
    Ok(uses)
}

fn percent(before: &Statistics, now: &Statistics, elapsed: Duration) -> Option<f64> {
    let used = now.cpu_microseconds?.saturating_sub(before.cpu_microseconds?);
    Some(Duration::from_micros(used).as_secs_f64() / elapsed.as_secs_f64() * 100.0)
}

fn json(uses: &[Use]) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(uses).map_err(std::io::Error::from);
    Ok(text.doing("print what containers use")? + "\n")
}

fn table(uses: &[Use]) -> String {
    let mut lines = vec![["NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN"].map(str::to_owned)];
    let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), bytes_in_words);
    for Use { name, cpu_percent, now } in uses {
        lines.push([
            name.clone(),
            cpu_percent.map_or("-".to_owned(), |percent| format!("{percent:.1}%")),
            size(now.memory),
            size(now.memory_limit),
            now.pids.map_or("-".to_owned(), |pids| pids.to_string()),
            size(now.bytes_read),
            size(now.bytes_written),
        ]);
    }
    aligned(&lines)
}

/// With a unit of which there is at least one.
fn bytes_in_words(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_that_fits() {
        for (bytes, words) in
            [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1536, "1.5KiB"), (64 << 20, "64.0MiB"), (3 << 40, "3.0TiB")]
        {
            assert_eq!(bytes_in_words(bytes), words);
        }
    }

    #[test]
    fn use_is_what_came_in_the_period() {
        let at = |cpu| Statistics { cpu_microseconds: cpu, ..Statistics::default() };
        assert_eq!(percent(&at(Some(1_000_000)), &at(Some(1_500_000)), Duration::from_secs(2)), Some(25.0));
        assert_eq!(percent(&at(None), &at(Some(1)), PERIOD), None);
    }

    #[test]
    fn what_is_not_counted_is_a_dash() {
        let now = Statistics { memory: Some(5 << 20), pids: Some(3), ..Statistics::default() };
        let text = table(&[Use { name: "web".into(), cpu_percent: Some(12.34), now }]);
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["web", "12.3%", "5.0MiB", "-", "3", "-", "-"]);
    }
}
