//! What it costs to have looked at much.

use std::fs::File;
use std::io;

use super::metadata::stats;
use super::{Job, Measure, Place, Workload};
use crate::tree::{self, Tree};

const FAMILY: &str = "memory";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::new(
        "rss-72k",
        "the daemon's memory after 72,000 files were looked at",
        Tree::Crowd,
        Measure::DaemonMemory(some),
    )
    .of(FAMILY),
    Workload::new("rss-200k", "the same after 200,000 files", Tree::Crowd, Measure::DaemonMemory(all)).of(FAMILY),
    Workload::new(
        "page-cache",
        "page cache that 4 mounts take which read the same file of 500 MiB",
        Tree::Data,
        Measure::PageCache(4, read_data),
    )
    .evicted()
    .of(FAMILY),
];

fn some(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut names = tree::crowd_names(place.scale);
    names.truncate(72_000);
    stats(place.root, names, 1)
}

fn all(place: &Place<'_>) -> io::Result<Job<()>> {
    stats(place.root, tree::crowd_names(place.scale), 1)
}

fn read_data(place: &Place<'_>) -> io::Result<Job<()>> {
    let path = place.root.join("data");
    Ok(Box::new(move || {
        io::copy(&mut File::open(&path)?, &mut io::sink())?;
        Ok(())
    }))
}
