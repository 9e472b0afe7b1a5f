//! The first change of a file of a read-only branch, and its removal.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::metadata::force;
use super::{Job, Measure, Place, Unit, Workload};
use crate::tree::{SMALL_FILES, Tree};

const FAMILY: &str = "copy-up";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("write-100x4k", "the first write to 100 lower files of 4 KiB", Tree::Big, write_small)
        .changes()
        .of(FAMILY),
    Workload::timed("write-64m", "the first write to a lower file of 64 MiB", Tree::Big, write_medium)
        .changes()
        .of(FAMILY),
    Workload::timed("write-1g", "the first write to a lower file of 1 GiB", Tree::Big, write_large)
        .changes()
        .of(FAMILY),
    Workload::timed("chmod-100x4k", "chmod of 100 lower files of 4 KiB", Tree::Big, chmod_small).changes().of(FAMILY),
    Workload::timed("chmod-64m", "chmod of a lower file of 64 MiB", Tree::Big, chmod_medium).changes().of(FAMILY),
    Workload::timed("chmod-1g", "chmod of a lower file of 1 GiB", Tree::Big, chmod_large).changes().of(FAMILY),
    Workload::timed("unlink-100x4k", "removal of 100 lower files of 4 KiB", Tree::Big, unlink_small)
        .changes()
        .of(FAMILY),
    Workload::timed("unlink-4k", "removal of one lower file of 4 KiB", Tree::Big, unlink_one).changes().of(FAMILY),
    Workload::timed("unlink-1g", "removal of a lower file of 1 GiB", Tree::Big, unlink_large).changes().of(FAMILY),
    Workload::new(
        "latency-idle",
        "99th percentile of statx (forced) with nothing else going on",
        Tree::Big,
        Measure::Value(Unit::Microseconds, latency_idle),
    )
    .changes()
    .of(FAMILY),
    Workload::new(
        "latency-copy-up",
        "99th percentile of statx (forced) of one file during the copy-up of another of 1 GiB",
        Tree::Big,
        Measure::Value(Unit::Microseconds, latency_during_copy_up),
    )
    .changes()
    .of(FAMILY),
];

fn small(place: &Place<'_>) -> Vec<PathBuf> {
    (0..SMALL_FILES).map(|file| place.root.join(format!("small/s{file:03}"))).collect()
}

fn each(paths: Vec<PathBuf>, act: fn(&Path) -> io::Result<()>) -> io::Result<Job<()>> {
    Ok(Box::new(move || paths.iter().try_for_each(|path| act(path))))
}

pub(super) fn write_small(place: &Place<'_>) -> io::Result<Job<()>> {
    each(small(place), append)
}

pub(super) fn write_medium(place: &Place<'_>) -> io::Result<Job<()>> {
    each(vec![place.root.join("medium")], append)
}

pub(super) fn write_large(place: &Place<'_>) -> io::Result<Job<()>> {
    each(vec![place.root.join("large")], append)
}

pub(super) fn chmod_small(place: &Place<'_>) -> io::Result<Job<()>> {
    each(small(place), chmod)
}

pub(super) fn chmod_medium(place: &Place<'_>) -> io::Result<Job<()>> {
    each(vec![place.root.join("medium")], chmod)
}

pub(super) fn chmod_large(place: &Place<'_>) -> io::Result<Job<()>> {
    each(vec![place.root.join("large")], chmod)
}

fn unlink_small(place: &Place<'_>) -> io::Result<Job<()>> {
    each(small(place), |path| fs::remove_file(path))
}

fn unlink_one(place: &Place<'_>) -> io::Result<Job<()>> {
    each(vec![place.root.join("small/s000")], |path| fs::remove_file(path))
}

fn unlink_large(place: &Place<'_>) -> io::Result<Job<()>> {
    each(vec![place.root.join("large")], |path| fs::remove_file(path))
}

fn append(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"x")
}

fn chmod(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o600))
}

fn latency_idle(place: &Place<'_>) -> io::Result<Job<f64>> {
    let watched = place.root.join("small/s000");
    let times = place.scale.of(20_000, 500);
    Ok(Box::new(move || {
        let samples = (0..times).map(|_| ask(&watched)).collect::<io::Result<Vec<f64>>>()?;
        percentile(samples)
    }))
}

fn latency_during_copy_up(place: &Place<'_>) -> io::Result<Job<f64>> {
    let watched = place.root.join("small/s000");
    let large = place.root.join("large");
    Ok(Box::new(move || {
        std::thread::scope(|scope| {
            let copy_up = scope.spawn(|| File::options().append(true).open(&large)?.write_all(b"x"));
            let mut samples = Vec::new();
            // Once at least: one that is over by then has disturbed nobody.
            loop {
                samples.push(ask(&watched)?);
                if copy_up.is_finished() {
                    break;
                }
            }
            copy_up.join().unwrap_or_else(|_| Err(io::Error::other("the thread that copies up panicked")))?;
            percentile(samples)
        })
    }))
}

/// Microseconds until the file system has answered.
fn ask(path: &Path) -> io::Result<f64> {
    let start = Instant::now();
    force(path)?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

/// The 99th percentile.
fn percentile(mut samples: Vec<f64>) -> io::Result<f64> {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() * 99).div_ceil(100);
    let sample = rank.checked_sub(1).and_then(|index| samples.get(index));
    sample.copied().ok_or_else(|| io::Error::other("nothing was asked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_leaves_out_one_in_a_hundred() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(samples).unwrap(), 198.0);
        assert_eq!(percentile(vec![5.0]).unwrap(), 5.0);
        assert!(percentile(Vec::new()).is_err());
    }
}
