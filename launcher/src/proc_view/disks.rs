//! `/proc/diskstats`: what the container has read and written.

use super::group::Groups;
use super::past::Counters;
use crate::cgroup::detect::Version;

/// What one disk has done for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// `MAJOR:MINOR`.
    number: String,
    reads: u64,
    writes: u64,
    discards: u64,
    bytes_read: u64,
    bytes_written: u64,
    bytes_discarded: u64,
}

const SECTOR: u64 = 512;

/// Nothing where that is not counted.
pub(super) fn observe(groups: &Groups) -> Option<Vec<Disk>> {
    let group = groups.io.as_ref()?;
    let mut disks = Vec::new();
    match group.version {
        Version::V2 => group.read("io.stat")?.lines().for_each(|line| add_line_of_v2(&mut disks, line)),
        Version::V1 => {
            let read = |name: &str| group.read(&format!("{name}_recursive")).or_else(|| group.read(name));
            let bytes = read("blkio.throttle.io_service_bytes")?;
            bytes.lines().for_each(|line| add_line_of_v1(&mut disks, line, true));
            let operations = read("blkio.throttle.io_serviced").unwrap_or_default();
            operations.lines().for_each(|line| add_line_of_v1(&mut disks, line, false));
        }
    }
    Some(disks)
}

fn disk<'a>(disks: &'a mut Vec<Disk>, number: &str) -> &'a mut Disk {
    let place = disks.iter().position(|disk| disk.number == number).unwrap_or_else(|| {
        disks.push(Disk { number: number.to_owned(), ..Disk::default() });
        disks.len() - 1
    });
    &mut disks[place]
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn add_line_of_v2(disks: &mut Vec<Disk>, line: &str) {
    let Some((number, rest)) = line.split_once(' ') else { return };
    let disk = disk(disks, number);
    for (key, value) in rest.split_whitespace().filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => disk.bytes_read = value,
            "wbytes" => disk.bytes_written = value,
            "dbytes" => disk.bytes_discarded = value,
            "rios" => disk.reads = value,
            "wios" => disk.writes = value,
            "dios" => disk.discards = value,
            _ => {}
        }
    }
}

/// `8:0 Read 4096`.
fn add_line_of_v1(disks: &mut Vec<Disk>, line: &str, is_bytes: bool) {
    let mut words = line.split_whitespace();
    let (Some(number), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else { return };
    let Ok(value) = value.parse() else { return };
    let disk = disk(disks, number);
    match (kind, is_bytes) {
        ("Read", true) => disk.bytes_read = value,
        ("Write", true) => disk.bytes_written = value,
        ("Discard", true) => disk.bytes_discarded = value,
        ("Read", false) => disk.reads = value,
        ("Write", false) => disk.writes = value,
        ("Discard", false) => disk.discards = value,
        _ => {}
    }
}

/// The lines of the disks that it has used, in the machine's order and with its names; how long it took is not counted.
pub(super) fn diskstats(machine: &str, disks: &[Disk]) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [major, minor, name, values @ ..] = words.as_slice() else { return None };
        let disk = disks.iter().find(|disk| disk.number.split_once(':') == Some((major, minor)))?;
        let own = [
            [disk.reads, 0, disk.bytes_read / SECTOR, 0],
            [disk.writes, 0, disk.bytes_written / SECTOR, 0],
            [0, 0, 0, disk.discards],
            [0, disk.bytes_discarded / SECTOR, 0, 0],
        ];
        // As many as this kernel has: first three beside reads and writes, then those of discards, then those of flushes.
        let own: String =
            own.as_flattened().iter().chain([&0]).take(values.len()).map(|value| format!(" {value}")).collect();
        Some(format!("{major:>4} {minor:>7} {name}{own}\n"))
    };
    machine.lines().filter_map(line).collect()
}

/// `/proc/vmstat`: what the container has read and written, in KiB; what else happens is counted for all of the machine, since
/// the container's start.
pub(super) fn vmstat(machine: &str, disks: &Option<Vec<Disk>>, counters: &Counters) -> String {
    let sum = |bytes: fn(&Disk) -> u64| {
        let disks = disks.as_ref()?;
        Some(disks.iter().map(bytes).fold(0, u64::saturating_add) / 1024)
    };
    let own = |line: &str| {
        let value = match line.split_once(' ')?.0 {
            "pgpgin" => sum(|disk| disk.bytes_read).map(|sum| format!("pgpgin {sum}\n")),
            "pgpgout" => sum(|disk| disk.bytes_written).map(|sum| format!("pgpgout {sum}\n")),
            _ => None,
        };
        value.or_else(|| counters.since(line))
    };
    machine.lines().map(|line| own(line).unwrap_or_else(|| format!("{line}\n"))).collect()
}
