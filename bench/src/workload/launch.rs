//! Containers that do nothing: what it costs to start one.

use std::fs;
use std::io;
use std::time::Instant;

use super::system::run_in_silence;
use super::{Job, Measure, Place, Unit, Workload};
use crate::contender::{Prepared, Start};
use crate::tree::Tree;

const FAMILY: &str = "launch";

pub(super) const WORKLOADS: &[Workload] = &[
    launch("launch-tree", "start and end `true` in a directory, all namespaces new", Start::Tree, in_tree),
    launch("launch-limits", "the same with limits on memory and CPUs, which /proc tells it", Start::Limited, limited),
    launch("launch-limits-bare", "the same with --proc-view=off", Start::LimitedUntold, limited_untold),
    launch("launch-union", "start and end `true` in a union of 5 branches", Start::Union, in_union),
    launch("launch-exec", "run `true` in a container that runs", Start::Container, in_container),
    launch("launch-copy", "start and end `true` in a copy of this machine's /", Start::Copy, in_copy),
];

const fn launch(
    name: &'static str,
    about: &'static str,
    start: Start,
    run: fn(&Place<'_>) -> io::Result<Job<f64>>,
) -> Workload {
    let workload = Workload::new(name, about, Tree::Busybox, Measure::Value(Unit::Seconds, run));
    Workload { starts: Some(start), ..workload }.warm().of(FAMILY)
}

fn in_tree(place: &Place<'_>) -> io::Result<Job<f64>> {
    start(place, Start::Tree)
}

fn limited(place: &Place<'_>) -> io::Result<Job<f64>> {
    start(place, Start::Limited)
}

fn limited_untold(place: &Place<'_>) -> io::Result<Job<f64>> {
    start(place, Start::LimitedUntold)
}

fn in_union(place: &Place<'_>) -> io::Result<Job<f64>> {
    start(place, Start::Union)
}

fn in_container(place: &Place<'_>) -> io::Result<Job<f64>> {
    start(place, Start::Container)
}

fn in_copy(place: &Place<'_>) -> io::Result<Job<f64>> {
    start(place, Start::Copy)
}

/// Says how long one start takes.
fn start(place: &Place<'_>, start: Start) -> io::Result<Job<f64>> {
    let launcher = place.launcher.ok_or_else(|| io::Error::other("it starts no containers"))?;
    // Beside the mount point, so that it goes with it.
    let notes = place.root.with_file_name("notes");
    fs::create_dir(&notes)?;
    let Prepared { mut command, undo } = launcher.prepare(start, place.root, &notes)?;
    let times = place.scale.of(20, 2);
    Ok(Box::new(move || {
        // It is taken back with the job.
        let _kept = &undo;
        let start = Instant::now();
        (0..times).try_for_each(|_| run_in_silence(&mut command))?;
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }))
}
