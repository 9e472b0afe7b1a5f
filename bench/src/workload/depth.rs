//! The same 5,000 files in 1, 5, 50 and 500 branches, and how long it takes to mount so many.

use std::io;

use super::metadata::{misses, stats};
use super::readdir::program;
use super::{Job, Measure, Place, Workload};
use crate::tree::{self, Tree};

const FAMILY: &str = "depth";

pub(super) const WORKLOADS: &[Workload] = &[
    stat("depth-stat-1", "stat 5,000 files in 1 branch, fresh mount", 1),
    stat("depth-stat-5", "the same in 5 branches", 5),
    stat("depth-stat-50", "the same in 50 branches", 50),
    stat("depth-stat-500", "the same in 500 branches", 500),
    miss("depth-miss-1", "stat 5,000 names that are not there in 1 branch", 1),
    miss("depth-miss-5", "the same in 5 branches", 5),
    miss("depth-miss-50", "the same in 50 branches", 50),
    miss("depth-miss-500", "the same in 500 branches", 500),
    find("depth-find-1", "find over 5,000 files in 1 branch, fresh mount", 1),
    find("depth-find-5", "the same in 5 branches", 5),
    find("depth-find-50", "the same in 50 branches", 50),
    find("depth-find-500", "the same in 500 branches", 500),
    mount("mount-1", "mount a writable branch over 1, and ask for the root", 1),
    mount("mount-50", "the same over 50", 50),
    mount("mount-500", "the same over 500", 500),
];

const fn stat(name: &'static str, about: &'static str, branches: usize) -> Workload {
    Workload::timed(name, about, Tree::Layers(branches), stat_files).of(FAMILY)
}

const fn miss(name: &'static str, about: &'static str, branches: usize) -> Workload {
    Workload::timed(name, about, Tree::Layers(branches), unique_misses).of(FAMILY)
}

const fn find(name: &'static str, about: &'static str, branches: usize) -> Workload {
    Workload::timed(name, about, Tree::Layers(branches), find_all).of(FAMILY)
}

const fn mount(name: &'static str, about: &'static str, branches: usize) -> Workload {
    Workload::new(name, about, Tree::Layers(branches), Measure::MountTime).of(FAMILY)
}

fn stat_files(place: &Place<'_>) -> io::Result<Job<()>> {
    stats(place.root, tree::layer_names(place.scale), 1)
}

fn unique_misses(place: &Place<'_>) -> io::Result<Job<()>> {
    misses(place.root, place.scale.of(50, 3), tree::layer_names(place.scale).len(), 1)
}

fn find_all(place: &Place<'_>) -> io::Result<Job<()>> {
    program(place, "find", &[])
}
