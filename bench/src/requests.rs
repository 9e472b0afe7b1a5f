//! What the kernel asked a daemon for during a workload.
//!
//! The kernel's own trace event counts, so every FUSE file system is counted alike, whether it keeps statistics or not.
//! Counting costs time, so it is done in the round that does not count.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

/// How often which request was sent.
pub(crate) type Requests = BTreeMap<String, u64>;

const TRACING: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/fuse/fuse_request_send";
/// For each CPU; some 50 bytes for a request.
const BUFFER_KIB: &str = "32768";

/// A trace instance of our own, so that nobody else's tracing is disturbed.
#[derive(Debug)]
pub(crate) struct Counter {
    instance: PathBuf,
    /// Whether this one has made the instance, and takes it away.
    owned: bool,
}

impl Counter {
    /// `key` tells runs at the same time apart; a run that was killed leaves its instance to the next with the same key.
    ///
    /// # Errors
    /// Where the kernel has no such event (it came with Linux 6.10), or no tracing at all.
    pub(crate) fn open(key: u64) -> io::Result<Counter> {
        if !Path::new(TRACING).join("events").exists() {
            mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>)?;
        }
        let instance = instance(key);
        match fs::create_dir(&instance) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        let counter = Counter { instance, owned: true };
        counter.set(&format!("{EVENT}/enable"), "0")?;
        counter.set("buffer_size_kb", BUFFER_KIB)?;
        Ok(counter)
    }

    /// Uses what another process has opened with this key.
    pub(crate) fn join(key: u64) -> io::Result<Counter> {
        let counter = Counter { instance: instance(key), owned: false };
        counter.set(&format!("{EVENT}/enable"), "0")?;
        Ok(counter)
    }

    /// Counts from now on.
    pub(crate) fn start(&self, connection: u64) -> io::Result<Counting<'_>> {
        self.set("trace", "")?;
        self.set(&format!("{EVENT}/filter"), &format!("connection == {connection}"))?;
        self.set(&format!("{EVENT}/enable"), "1")?;
        Ok(Counting { counter: self })
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.instance.join(name), value)
    }

    /// Events that found the buffer full are not in the trace, so it is not a count.
    fn is_complete(&self) -> io::Result<bool> {
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            if !stats.lines().any(|line| line == "overrun: 0") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if self.owned {
            // What cannot be removed is used again by the next run.
            fs::remove_dir(&self.instance).unwrap_or_default();
        }
    }
}

fn instance(key: u64) -> PathBuf {
    Path::new(TRACING).join(format!("instances/runionfs-bench-{key}"))
}

/// A count that is going on.
#[derive(Debug)]
pub(crate) struct Counting<'a> {
    counter: &'a Counter,
}

impl Counting<'_> {
    /// What was counted until now; `None` where there were too many to count.
    pub(crate) fn finish(self) -> io::Result<Option<Requests>> {
        self.counter.set(&format!("{EVENT}/enable"), "0")?;
        if !self.counter.is_complete()? {
            return Ok(None);
        }
        count(BufReader::new(File::open(self.counter.instance.join("trace"))?)).map(Some)
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        // The next count begins with an empty trace, so the worst is some time lost.
        self.counter.set(&format!("{EVENT}/enable"), "0").unwrap_or_default();
    }
}

/// Lines as `ls-12 [000] ...1. 7218.3: fuse_request_send: connection 43 req 4 opcode 3 (FUSE_GETATTR) len 56`.
fn count(trace: impl BufRead) -> io::Result<Requests> {
    let mut requests = Requests::new();
    for line in trace.lines() {
        let line = line?;
        let Some((_, event)) = line.split_once(": fuse_request_send: ") else { continue };
        let name = event.split_once('(').and_then(|(_, name)| Some(name.split_once(')')?.0));
        let name = name.unwrap_or("unknown").trim_start_matches("FUSE_");
        *requests.entry(name.to_owned()).or_default() += 1;
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_a_trace_are_counted_by_name() {
        let trace = "# tracer: nop\n#\n\
            ls-1 [000] ...1. 72.1: fuse_request_send: connection 43 req 4 opcode 3 (FUSE_GETATTR) len 56\n\
            a (b)-2 [001] ...1. 72.2: fuse_request_send: connection 43 req 6 opcode 1 (FUSE_LOOKUP) len 48\n\
            ls-1 [000] ...1. 72.3: fuse_request_send: connection 43 req 8 opcode 3 (FUSE_GETATTR) len 56\n";
        let expected = [("GETATTR", 2), ("LOOKUP", 1)];
        assert_eq!(count(trace.as_bytes()).unwrap(), expected.map(|(name, count)| (name.to_owned(), count)).into());
    }
}
