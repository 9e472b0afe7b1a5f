//! Statistics as people read them.

use unionfs::control::{BranchSpace, Statistics};
use unionfs::fs::Cache;
use unionfs::fuse::Operation;

use super::super::printable;

/// A paragraph on one mount. Whatever a daemon says, which may be another user's, moves no cursor.
pub(super) fn write(mount: &Statistics) -> Vec<u8> {
    let path = String::from_utf8_lossy(mount.mountpoint.as_bytes());
    (printable(&path) + &rest(mount)).into_bytes()
}

fn rest(mount: &Statistics) -> String {
    let tally = &mount.tally;
    let head =
        format!(": pid {}, mounted for {}\n", mount.pid, time(mount.uptime_milliseconds.saturating_mul(1_000_000)));
    let mut lines = vec![format!(
        "  {:<16} {:>10} {:>8} {:>10} {:>10} {:>10}",
        "operation", "requests", "errors", "mean", "p50 <=", "p99 <="
    )];
    lines.extend(mount.operations.iter().map(operation));
    let (read, written) = (size(mount.read_bytes), size(mount.written_bytes));
    lines.push(format!("  through the daemon: {read} read, {written} written"));
    lines.push(format!(
        "  copied up: {} files, {}, in {}; {} failed",
        tally.copy_ups,
        size(tally.copy_up_bytes),
        time(tally.copy_up_nanoseconds),
        tally.copy_up_failures
    ));
    lines.extend(tally.caches.iter().map(cache));
    lines.push(format!("  open files: {}; inodes known to the kernel: {}", tally.open_files, tally.inodes));
    lines.extend(mount.branches.iter().enumerate().map(|(index, space)| branch(index, space)));
    head + &lines.join("\n") + "\n"
}

fn operation(operation: &Operation) -> String {
    let mean = operation.nanoseconds.checked_div(operation.answered()).map_or("-".into(), time);
    let percentile = |percent| match operation.percentile(percent) {
        Some(nanoseconds) => time(nanoseconds),
        None if operation.answered() > 0 => "longer".into(),
        None => "-".into(),
    };
    format!(
        "  {:<16} {:>10} {:>8} {mean:>10} {:>10} {:>10}",
        printable(&operation.name),
        operation.requests,
        operation.errors,
        percentile(50),
        percentile(99)
    )
}

fn cache(cache: &Cache) -> String {
    let asked = cache.hits.saturating_add(cache.misses);
    let share =
        cache.hits.saturating_mul(100).checked_div(asked).map_or(String::new(), |share| format!(" ({share} %)"));
    format!("  {}: {} kept; at hand {} of {asked} times{share}", printable(&cache.name), cache.entries, cache.hits)
}

fn branch(index: usize, told: &BranchSpace) -> String {
    let name = printable(&String::from_utf8_lossy(told.branch.as_bytes()));
    let space = match (&told.space, &told.error) {
        (Some(space), _) => format!("{} of {} available", size(space.available), size(space.size)),
        (None, Some(error)) => printable(error),
        (None, None) => "unknown".into(),
    };
    format!("  br{index} {name}: {space}")
}

/// A time, to two or three digits.
fn time(nanoseconds: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("ns", 1e3), ("us", 1e3), ("ms", 1e3), ("s", 120.0)];
    let mut value = nanoseconds as f64;
    for (unit, many) in UNITS {
        if value < many {
            return format!("{value:.*} {unit}", usize::from(value < 10.0 && unit != "ns"));
        }
        value /= if unit == "s" { 60.0 } else { many };
    }
    if value < 120.0 { format!("{value:.0} min") } else { format!("{:.0} h", value / 60.0) }
}

/// A size, to two or three digits.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return format!("{value:.*} {unit}", usize::from(value < 10.0 && unit != "B"));
        }
        value /= 1024.0;
    }
    format!("{value:.0} PiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        let times = [0, 999, 1024, 16_384, 2_500_000, 90_000_000_000, 600_000_000_000, 20_000_000_000_000];
        assert_eq!(times.map(time), ["0 ns", "999 ns", "1.0 us", "16 us", "2.5 ms", "90 s", "10 min", "6 h"]);
        assert_eq!([0, 1023, 1536, 52 << 20, 3 << 40].map(size), ["0 B", "1023 B", "1.5 KiB", "52 MiB", "3.0 TiB"]);
    }
}
