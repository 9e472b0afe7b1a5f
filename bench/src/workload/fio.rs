//! Data, by fio. The jobs are the files in `bench/fio`.

use std::fs::File;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Job, Measure, Place, Unit, Workload};
use crate::tree::{self, Tree};

const FAMILY: &str = "fio";

const SEQREAD: &str = include_str!("../../fio/seqread.fio");
const RANDREAD: &str = include_str!("../../fio/randread.fio");
const MMAPREAD: &str = include_str!("../../fio/mmapread.fio");
const SEQWRITE: &str = include_str!("../../fio/seqwrite.fio");
const SEQWRITE_SMALL: &str = include_str!("../../fio/seqwrite-4k.fio");
const RANDWRITE: &str = include_str!("../../fio/randwrite.fio");
const MMAPWRITE: &str = include_str!("../../fio/mmapwrite.fio");
const FSYNC: &str = include_str!("../../fio/fsync.fio");

pub(super) const WORKLOADS: &[Workload] = &[
    read("fio-seqread-cold", "read 500 MiB once, 1 MiB at a time, not in any cache", |place| once(place, SEQREAD))
        .evicted(),
    read("fio-seqread", "read 500 MiB, 1 MiB at a time, cached", |place| cached(place, SEQREAD, 1)).warm(),
    read("fio-seqread-4", "the same by 4 processes", |place| cached(place, SEQREAD, 4)).warm(),
    read("fio-randread-cold", "read 4 KiB anywhere in 500 MiB, not in any cache", |place| again(place, RANDREAD, 1))
        .evicted(),
    read("fio-randread", "read 4 KiB anywhere in 500 MiB, cached", |place| cached(place, RANDREAD, 1)).warm(),
    read("fio-randread-4", "the same by 4 processes", |place| cached(place, RANDREAD, 4)).warm(),
    read("fio-mmapread-cold", "read anywhere through a mapping, not in any cache", |place| again(place, MMAPREAD, 1))
        .evicted(),
    read("fio-mmapread", "read anywhere through a mapping, cached", |place| cached(place, MMAPREAD, 1)).warm(),
    read("fio-mmapread-4", "the same by 4 processes", |place| cached(place, MMAPREAD, 4)).warm(),
    write("fio-seqwrite", "write a new file, 1 MiB at a time", |place| again(place, SEQWRITE, 1)),
    write("fio-seqwrite-4", "the same by 4 processes, a file each", |place| again(place, SEQWRITE, 4)),
    write("fio-seqwrite-4k", "write a new file, 4 KiB at a time", |place| again(place, SEQWRITE_SMALL, 1)),
    write("fio-randwrite", "write 4 KiB anywhere in a file of the top", |place| again(place, RANDWRITE, 1)),
    write("fio-randwrite-4", "the same by 4 processes, a file each", |place| again(place, RANDWRITE, 4)),
    write("fio-mmapwrite", "write through a mapping of a file of the top", |place| again(place, MMAPWRITE, 1)),
    write("fio-mmapwrite-4", "the same by 4 processes, a file each", |place| again(place, MMAPWRITE, 4)),
    write("fio-fsync", "write 4 KiB and fsync, again and again", |place| again(place, FSYNC, 1)),
    write("fio-fsync-4", "the same by 4 processes, a file each", |place| again(place, FSYNC, 4)),
];

const fn read(name: &'static str, about: &'static str, run: fn(&Place<'_>) -> io::Result<Job<f64>>) -> Workload {
    Workload::new(name, about, Tree::Data, Measure::Value(Unit::MebibytesPerSecond, run)).of(FAMILY)
}

const fn write(name: &'static str, about: &'static str, run: fn(&Place<'_>) -> io::Result<Job<f64>>) -> Workload {
    Workload::new(name, about, Tree::Empty, Measure::Value(Unit::MebibytesPerSecond, run)).creates().of(FAMILY)
}

/// Until the file is read through.
fn once(place: &Place<'_>, job: &'static str) -> io::Result<Job<f64>> {
    bandwidth(place, job, 1, &[])
}

/// For a while.
fn again(place: &Place<'_>, job: &'static str, processes: usize) -> io::Result<Job<f64>> {
    let seconds = if place.scale.of(1, 0) == 1 { "--runtime=1s" } else { "--runtime=50ms" };
    bandwidth(place, job, processes, &["--time_based", seconds])
}

/// For a while, of a file that was read through before: what is read here and there for a second is not all of it.
fn cached(place: &Place<'_>, job: &'static str, processes: usize) -> io::Result<Job<f64>> {
    io::copy(&mut File::open(place.root.join("data"))?, &mut io::sink())?;
    again(place, job, processes)
}

fn bandwidth(
    place: &Place<'_>,
    job: &'static str,
    processes: usize,
    arguments: &[&'static str],
) -> io::Result<Job<f64>> {
    // fio's own default drops its file from the page cache first, which drops that of overlayfs but not the one below a
    // FUSE file system: the comparison would be between a disk and memory.
    let mut command = Command::new("fio");
    command.args(["--invalidate=0", "--output-format=json", "--directory"]).arg(place.root);
    command.args(arguments).arg("-").env("SIZE", tree::data_size(place.scale).to_string());
    command.env("SCRATCH", place.scale.of(128 << 20, 8 << 20).to_string()).env("JOBS", processes.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(Box::new(move || {
        let mut child = command.spawn().map_err(|error| io::Error::other(format!("fio cannot be started: {error}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(job.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("fio: {}", complaint.lines().next().unwrap_or("it says nothing"))));
        }
        total(&output.stdout)
    }))
}

/// MiB/s of all processes together. fio may print warnings before the JSON text.
fn total(output: &[u8]) -> io::Result<f64> {
    let start = output.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let report: Value = serde_json::from_slice(&output[start..])?;
    let jobs = report["jobs"].as_array().map_or(&[][..], Vec::as_slice);
    let bytes: f64 = jobs
        .iter()
        .flat_map(|job| [&job["read"]["bw_bytes"], &job["write"]["bw_bytes"]])
        .filter_map(Value::as_f64)
        .sum();
    if bytes > 0.0 { Ok(bytes / f64::from(1 << 20)) } else { Err(io::Error::other("fio has measured nothing")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bandwidth_is_that_of_all_processes() {
        let output = br#"fio: a warning
            {"jobs": [{"read": {"bw_bytes": 1048576}, "write": {"bw_bytes": 0}},
                      {"read": {"bw_bytes": 2097152}, "write": {"bw_bytes": 0}}]}"#;
        assert_eq!(total(output).unwrap(), 3.0);
    }

    #[test]
    fn no_bandwidth_at_all_is_an_error() {
        assert!(total(br#"{"jobs": []}"#).is_err());
        assert!(total(b"fio: failed").is_err());
    }
}
