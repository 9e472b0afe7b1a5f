//! What of `/proc` and `/sys` is hidden, and what cannot be written: docker's lists.

use std::fs;
use std::path::{Path, PathBuf};

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that nobody may write.
pub(crate) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const CPUS: &str = "/sys/devices/system/cpu";

/// Paths that are hidden. How often each CPU was throttled tells what others do with it (GHSA-6fw5-f8r9-fgfm).
pub(crate) fn masked() -> Vec<PathBuf> {
    let throttle = |cpu: &Path| cpu.join("thermal_throttle");
    let mut paths: Vec<PathBuf> = MASKED.iter().map(PathBuf::from).collect();
    if throttle(&Path::new(CPUS).join("cpu0")).exists() {
        // A machine without /sys has nothing to hide there.
        let cpus = fs::read_dir(CPUS).into_iter().flatten().flatten().map(|entry| throttle(&entry.path()));
        paths.extend(cpus.filter(|path| path.exists()));
    }
    paths
}
