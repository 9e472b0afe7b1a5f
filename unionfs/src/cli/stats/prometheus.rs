//! The text format that Prometheus scrapes, version 0.0.4: families one after another, each with its help and type, and
//! in it the samples of all mounts.

use std::fmt::{Display, Write as _};

use unionfs::control::{Statistics, Text};
use unionfs::fs::{Cache, Space};
use unionfs::fuse::{BUCKETS, Operation, longest_of};

type Labels<'a> = Vec<(&'static str, String)>;

/// Puts a family of samples together.
struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn begin(text: &'a mut String, name: &'static str, kind: &str, help: &str) -> Family<'a> {
        text.extend([&*format!("# HELP {name} {help}\n"), &*format!("# TYPE {name} {kind}\n")]);
        Family { text, name }
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, String)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        // a String takes what it is given
        writeln!(self.text, "{}{suffix}{{{}}} {value}", self.name, labels.join(",")).unwrap_or_default();
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    // what a daemon of another user says moves no cursor
    value.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn shown(text: &Text) -> String {
    String::from_utf8_lossy(text.as_bytes()).into_owned()
}

/// What all mounts tell.
pub(super) fn write(mounts: &[Statistics]) -> String {
    let mut text = String::new();
    let mounts = &seen(mounts);
    about_mounts(&mut text, mounts);
    about_operations(&mut text, mounts);
    about_copy_ups(&mut text, mounts);
    about_caches(&mut text, mounts);
    about_branches(&mut text, mounts);
    text
}

/// Without those that another is mounted over, which comes later: a sample that is told twice spoils the whole scrape.
fn seen(mounts: &[Statistics]) -> Vec<Statistics> {
    let name = |mount: &Statistics| shown(&mount.mountpoint);
    let is_seen = |at: usize| mounts[at + 1..].iter().all(|later| name(later) != name(&mounts[at]));
    (0..mounts.len()).filter(|at| is_seen(*at)).map(|at| mounts[at].clone()).collect()
}

fn of_mount(mount: &Statistics) -> Labels<'_> {
    vec![("mountpoint", shown(&mount.mountpoint))]
}

/// A family with one sample for each mount.
fn plain<T: Display>(
    text: &mut String,
    mounts: &[Statistics],
    (name, kind, help): (&'static str, &str, &str),
    value: impl Fn(&Statistics) -> T,
) {
    let mut family = Family::begin(text, name, kind, help);
    for mount in mounts {
        family.sample("", &of_mount(mount), value(mount));
    }
}

fn about_mounts(text: &mut String, mounts: &[Statistics]) {
    let mut family = Family::begin(text, "runionfs_info", "gauge", "A mounted union and its daemon.");
    for mount in mounts {
        let more = [("pid", mount.pid.to_string()), ("version", mount.version.clone())];
        family.sample("", &[of_mount(mount), more.into()].concat(), 1);
    }
    let uptime = ("runionfs_uptime_seconds", "gauge", "How long the union has been mounted.");
    plain(text, mounts, uptime, |mount| mount.uptime_milliseconds as f64 / 1000.0);
    let open = ("runionfs_open_files", "gauge", "Files that the daemon has open for callers.");
    plain(text, mounts, open, |mount| mount.tally.open_files);
    let inodes = ("runionfs_inodes", "gauge", "Inodes that the kernel knows.");
    plain(text, mounts, inodes, |mount| mount.tally.inodes);
    let read = ("runionfs_read_bytes_total", "counter", "Bytes read through the daemon.");
    plain(text, mounts, read, |mount| mount.read_bytes);
    let written = ("runionfs_written_bytes_total", "counter", "Bytes written through the daemon.");
    plain(text, mounts, written, |mount| mount.written_bytes);
}

fn about_operations(text: &mut String, mounts: &[Statistics]) {
    let each = |mount| operations_of(mount);
    let help = "Requests of the kernel, by operation.";
    let mut family = Family::begin(text, "runionfs_requests_total", "counter", help);
    for (labels, operation) in mounts.iter().flat_map(each) {
        family.sample("", &labels, operation.requests);
    }
    let help = "Requests that were answered with an error.";
    let mut family = Family::begin(text, "runionfs_request_errors_total", "counter", help);
    for (labels, operation) in mounts.iter().flat_map(each) {
        family.sample("", &labels, operation.errors);
    }
    let help = "Time from when a request was taken until it was answered.";
    let mut family = Family::begin(text, "runionfs_request_duration_seconds", "histogram", help);
    for (labels, operation) in mounts.iter().flat_map(each).filter(|(_, operation)| operation.answered() > 0) {
        histogram(&mut family, &labels, operation);
    }
}

fn operations_of(mount: &Statistics) -> impl Iterator<Item = (Labels<'_>, &Operation)> {
    let labels = |operation: &Operation| [of_mount(mount), vec![("operation", operation.name.clone())]].concat();
    mount.operations.iter().map(move |operation| (labels(operation), operation))
}

fn histogram(family: &mut Family<'_>, labels: &Labels<'_>, operation: &Operation) {
    let mut sum = 0u64;
    for (bucket, count) in operation.buckets.iter().take(BUCKETS).enumerate() {
        sum = sum.saturating_add(*count);
        let bound = longest_of(bucket).map_or("+Inf".to_owned(), |longest| (longest as f64 / 1e9).to_string());
        family.sample("_bucket", &[labels.clone(), vec![("le", bound)]].concat(), sum);
    }
    family.sample("_sum", labels, operation.nanoseconds as f64 / 1e9);
    family.sample("_count", labels, sum);
}

fn about_copy_ups(text: &mut String, mounts: &[Statistics]) {
    let files = ("runionfs_copy_ups_total", "counter", "Files copied up to a writable branch.");
    plain(text, mounts, files, |mount| mount.tally.copy_ups);
    let bytes = ("runionfs_copy_up_bytes_total", "counter", "Bytes of the files that were copied up.");
    plain(text, mounts, bytes, |mount| mount.tally.copy_up_bytes);
    let time = ("runionfs_copy_up_seconds_total", "counter", "Time that copy-ups took.");
    plain(text, mounts, time, |mount| mount.tally.copy_up_nanoseconds as f64 / 1e9);
    let failures = ("runionfs_copy_up_failures_total", "counter", "Files that could not be copied up.");
    plain(text, mounts, failures, |mount| mount.tally.copy_up_failures);
}

/// A family: its name, its help, and what it tells of each thing.
type Telling<T> = (&'static str, &'static str, fn(&T) -> u64);

fn about_caches(text: &mut String, mounts: &[Statistics]) {
    let families: [Telling<Cache>; 3] = [
        ("runionfs_cache_hits_total", "How often what was looked for was at hand.", |cache| cache.hits),
        ("runionfs_cache_misses_total", "How often it was not.", |cache| cache.misses),
        ("runionfs_cache_entries", "How much is at hand.", |cache| cache.entries),
    ];
    for (name, help, value) in families {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let mut family = Family::begin(text, name, kind, help);
        for mount in mounts {
            for cache in &mount.tally.caches {
                let labels = [of_mount(mount), vec![("cache", cache.name.clone())]].concat();
                family.sample("", &labels, value(cache));
            }
        }
    }
}

fn about_branches(text: &mut String, mounts: &[Statistics]) {
    let families: [Telling<Space>; 5] = [
        ("runionfs_branch_size_bytes", "Size of the file system of a branch.", |space| space.size),
        ("runionfs_branch_free_bytes", "Bytes on it that are not used.", |space| space.free),
        ("runionfs_branch_available_bytes", "Bytes on it for those without privilege.", |space| space.available),
        ("runionfs_branch_inodes", "Inodes that it can have.", |space| space.inodes),
        ("runionfs_branch_inodes_free", "Inodes that are not used.", |space| space.inodes_free),
    ];
    for (name, help, value) in families {
        let mut family = Family::begin(text, name, "gauge", help);
        for mount in mounts {
            for (index, branch) in mount.branches.iter().enumerate() {
                let Some(space) = &branch.space else { continue };
                let more = vec![("branch", index.to_string()), ("spec", shown(&branch.branch))];
                family.sample("", &[of_mount(mount), more].concat(), value(space));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_hold_whatever_a_path_does() {
        let mut text = String::new();
        let mut family = Family::begin(&mut text, "a_total", "counter", "What.");
        family.sample("", &[("path", "/a\"b\\c\nd".to_owned())], 7);
        assert_eq!(text, "# HELP a_total What.\n# TYPE a_total counter\na_total{path=\"/a\\\"b\\\\c\\nd\"} 7\n");
    }
}
