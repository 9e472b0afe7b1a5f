//! Images: what it costs to take one in.

use std::fs;
use std::io;

use super::system::run_in_silence;
use super::{Job, Measure, Place, Workload};
use crate::contender::{Prepared, Start};
use crate::tree::Tree;

pub(super) const WORKLOADS: &[Workload] = &[Workload {
    starts: Some(Start::Import),
    ..Workload::new(
        "image-import",
        "take in an image of a Debian, one layer of gzip, verified and unpacked",
        Tree::Debian,
        Measure::Time(import),
    )
    .of("image")
}];

fn import(place: &Place<'_>) -> io::Result<Job<()>> {
    let launcher = place.launcher.ok_or_else(|| io::Error::other("it takes in no images"))?;
    // Beside the mount point, so that it goes with it.
    let notes = place.root.with_file_name("notes");
    fs::create_dir(&notes)?;
    // A part of it is enough to see whether that works.
    let root = if place.scale.of(1, 0) == 1 { place.root.to_owned() } else { place.root.join("etc") };
    let Prepared { mut command, undo } = launcher.prepare(Start::Import, &root, &notes)?;
    Ok(Box::new(move || {
        // It is taken back with the job.
        let _kept = &undo;
        run_in_silence(&mut command)
    }))
}
