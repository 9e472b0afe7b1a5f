//! What the kernel asked a daemon for during a workload.
//!
//! The kernel's own trace event counts, so every FUSE file system is counted alike, whether it keeps statistics or not.
//! Counting costs time, so it is done in the round that does not count.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};

/// How often which request was sent.
pub(crate) type Requests = BTreeMap<String, u64>;

const TRACING: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/fuse/fuse_request_send";

/// A trace instance of our own, so that nobody else's tracing is disturbed.
#[derive(Debug)]
pub(crate) struct Counter {
    event: PathBuf,
    names: BTreeMap<u64, String>,
}

impl Counter {
    /// `None` where the kernel has no such event (before 6.10, or without tracing).
    pub(crate) fn open() -> Option<Counter> {
        if !PathBuf::from(TRACING).join("events").exists() {
            mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>).ok()?;
        }
        let format = fs::read_to_string(PathBuf::from(TRACING).join(EVENT).join("format")).ok()?;
        let instance = PathBuf::from(TRACING).join("instances/runionfs-bench");
        match fs::create_dir(&instance) {
            // Left by a run that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.ok()?,
        }
        Some(Counter { event: instance.join(EVENT), names: names(&format) })
    }

    /// Counts from now on.
    pub(crate) fn start(&self, connection: u64) -> io::Result<Counting<'_>> {
        let trigger = format!("hist:keys=opcode if connection == {connection}");
        fs::write(self.event.join("trigger"), &trigger)?;
        Ok(Counting { counter: self, trigger })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(instance) = self.event.ancestors().nth(3) {
            // What cannot be removed is used again by the next run.
            fs::remove_dir(instance).unwrap_or_default();
        }
    }
}

/// A count that is going on.
#[derive(Debug)]
pub(crate) struct Counting<'a> {
    counter: &'a Counter,
    trigger: String,
}

impl Counting<'_> {
    /// What was counted until now.
    pub(crate) fn finish(self) -> io::Result<Requests> {
        let text = fs::read_to_string(self.counter.event.join("hist"))?;
        Ok(parse(&text, &self.counter.names))
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        // It fails only when it is gone already.
        fs::write(self.counter.event.join("trigger"), format!("!{}", self.trigger)).unwrap_or_default();
    }
}

/// The names are in the event's own description: `{1, "FUSE_LOOKUP"}, {2, "FUSE_FORGET"}, …`.
fn names(format: &str) -> BTreeMap<u64, String> {
    let pairs = format.split('{').skip(1).filter_map(|pair| pair.split_once('}')?.0.split_once(','));
    pairs
        .filter_map(|(number, name)| {
            let name = name.trim().trim_matches('"').trim_start_matches("FUSE_");
            Some((number.trim().parse().ok()?, name.to_owned()))
        })
        .collect()
}

/// Lines as `{ opcode:          1 } hitcount:       5000`.
fn parse(histogram: &str, names: &BTreeMap<u64, String>) -> Requests {
    let lines = histogram.lines().filter_map(|line| {
        let (key, count) = line.trim().strip_prefix("{ opcode:")?.split_once('}')?;
        let opcode: u64 = key.trim().parse().ok()?;
        let count = count.trim().strip_prefix("hitcount:")?.trim().parse().ok()?;
        Some((names.get(&opcode).cloned().unwrap_or_else(|| opcode.to_string()), count))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_becomes_names_and_counts() {
        let names =
            names("print fmt: \"%u\", __print_symbolic(REC->opcode, {1, \"FUSE_LOOKUP\"}, { 3, \"FUSE_GETATTR\"})");
        let text = "# event histogram\n#\n\n{ opcode:          3 } hitcount:          2\n\
                    { opcode:          1 } hitcount:       5000\n{ opcode: 99 } hitcount: 1\n\nTotals:\n    Hits: 5003\n";
        let expected = [("LOOKUP", 5000), ("GETATTR", 2), ("99", 1)];
        assert_eq!(parse(text, &names), expected.map(|(name, count)| (name.to_owned(), count)).into());
    }
}
