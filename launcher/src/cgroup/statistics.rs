//! What a container has used, and uses now.

use serde::Serialize;

use super::detect::{Controller, Version};
use super::directory::{Directory, number_of};

/// Numbers of one moment. What the machine does not count is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// CPU time so far, in microseconds.
    pub cpu_microseconds: Option<u64>,
    /// For how many periods it had to wait because its CPU time was used up.
    pub throttled_periods: Option<u64>,
    /// Memory in bytes, without page cache that could be given back at once.
    pub memory: Option<u64>,
    /// The limit on memory in bytes; none without one.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The limit on them; none without one.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices so far.
    pub bytes_read: Option<u64>,
    /// Bytes written to block devices so far.
    pub bytes_written: Option<u64>,
    /// Processes killed because the memory was used up.
    pub memory_kills: Option<u64>,
}

/// v1 writes this much, in bytes, for no limit.
pub(crate) const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;

impl Statistics {
    /// Takes over what one cgroup knows by a controller.
    pub(crate) fn read(&mut self, controller: Controller, directory: &Directory, version: Version) {
        match (controller, version) {
            (Controller::Cpu, _) => {
                self.throttled_periods = directory.number_of("cpu.stat", "nr_throttled");
            }
            (Controller::CpuAccounting, Version::V1) => {
                self.cpu_microseconds = directory.number("cpuacct.usage").map(|nanoseconds| nanoseconds / 1000);
            }
            (Controller::Memory, _) => self.read_memory(directory, version),
            (Controller::Pids, _) => {
                self.pids = directory.number("pids.current");
                self.pids_limit = directory.number("pids.max");
            }
            (Controller::Io, _) => self.read_io(directory, version),
            _ => {}
        }
    }

    /// On v2 every cgroup counts CPU time, whether it has the controller or not.
    pub(crate) fn read_cpu_time_of_v2(&mut self, directory: &Directory) {
        self.cpu_microseconds = self.cpu_microseconds.or_else(|| directory.number_of("cpu.stat", "usage_usec"));
    }

    fn read_memory(&mut self, directory: &Directory, version: Version) {
        let (usage, limit, cache) = match version {
            Version::V1 => ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
            Version::V2 => ("memory.current", "memory.max", "inactive_file"),
        };
        let cache = directory.number_of("memory.stat", cache).unwrap_or(0);
        self.memory = directory.number(usage).map(|usage| usage.saturating_sub(cache));
        self.memory_limit = directory.number(limit).filter(|limit| *limit < UNLIMITED);
        self.memory_kills = Some(super::memory::kills(directory, version));
    }

    fn read_io(&mut self, directory: &Directory, version: Version) {
        let text = match version {
            Version::V1 => directory
                .read("blkio.throttle.io_service_bytes_recursive")
                .or_else(|_| directory.read("blkio.throttle.io_service_bytes")),
            Version::V2 => directory.read("io.stat"),
        };
        let Ok(text) = text else { return };
        let (read, written) = match version {
            Version::V1 => (sum_of_v1(&text, "Read"), sum_of_v1(&text, "Write")),
            Version::V2 => (sum_of_v2(&text, "rbytes="), sum_of_v2(&text, "wbytes=")),
        };
        (self.bytes_read, self.bytes_written) = (Some(read), Some(written));
    }
}

/// Lines as `8:0 Read 4096`, one for each disk.
fn sum_of_v1(text: &str, kind: &str) -> u64 {
    let without_disk = text.lines().filter_map(|line| number_of(line.split_once(' ')?.1, kind));
    without_disk.fold(0, u64::saturating_add)
}

/// Lines as `8:0 rbytes=4096 wbytes=0 …`, one for each disk.
fn sum_of_v2(text: &str, key: &str) -> u64 {
    let numbers = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse().ok());
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(controller: Controller, version: Version, files: &[(&str, &str)]) -> Statistics {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(place.path().join(name), text).unwrap();
        }
        let mut statistics = Statistics::default();
        statistics.read(controller, &Directory::open(place.path()).unwrap(), version);
        statistics
    }

    #[test]
    fn memory_is_counted_without_idle_cache() {
        let v1 = [
            ("memory.usage_in_bytes", "10000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 4000\n"),
            ("memory.oom_control", "oom_kill 2\n"),
        ];
        let expected = Statistics { memory: Some(6000), memory_kills: Some(2), ..Statistics::default() };
        assert_eq!(read(Controller::Memory, Version::V1, &v1), expected);
        let v2 = [("memory.current", "100\n"), ("memory.max", "4096\n"), ("memory.stat", "inactive_file 200\n")];
        let expected =
            Statistics { memory: Some(0), memory_limit: Some(4096), memory_kills: Some(0), ..Statistics::default() };
        assert_eq!(read(Controller::Memory, Version::V2, &v2), expected);
    }

    #[test]
    fn bytes_of_all_disks_are_added() {
        let v1 = [(
            "blkio.throttle.io_service_bytes",
            "8:0 Read 100\n8:0 Write 7\n8:0 Total 107\n8:16 Read 1\n8:16 Write 0\nTotal 108\n",
        )];
        let expected = Statistics { bytes_read: Some(101), bytes_written: Some(7), ..Statistics::default() };
        assert_eq!(read(Controller::Io, Version::V1, &v1), expected);
        let v2 = [("io.stat", "8:0 rbytes=100 wbytes=7 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=0\n")];
        assert_eq!(read(Controller::Io, Version::V2, &v2), expected);
    }

    #[test]
    fn processor_time_is_in_microseconds() {
        let v1 = read(Controller::CpuAccounting, Version::V1, &[("cpuacct.usage", "1234567\n")]);
        assert_eq!(v1.cpu_microseconds, Some(1234));
        let throttled = read(Controller::Cpu, Version::V2, &[("cpu.stat", "usage_usec 5\nnr_throttled 3\n")]);
        assert_eq!(throttled.throttled_periods, Some(3));
        let pids = read(Controller::Pids, Version::V2, &[("pids.current", "4\n"), ("pids.max", "max\n")]);
        assert_eq!((pids.pids, pids.pids_limit), (Some(4), None));
    }
}
