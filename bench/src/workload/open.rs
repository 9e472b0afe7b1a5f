//! Opening files, and reading small ones.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::{Job, Place, Workload};
use crate::tree::{self, Tree};

const FAMILY: &str = "open";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("open-close", "open and close 10,000 files", Tree::Files, open_close).warm().of(FAMILY),
    Workload::timed("open-close-4", "the same by 4 threads", Tree::Files, open_close_by_four).warm().of(FAMILY),
    Workload::timed("open-read-cold", "open, read and close 10,000 files of 4 KiB, fresh mount", Tree::Files, read_all)
        .of(FAMILY),
    Workload::timed("open-read-cold-4", "the same by 4 threads", Tree::Files, read_all_by_four).of(FAMILY),
    Workload::timed("open-read", "open, read and close 10,000 files of 4 KiB again", Tree::Files, read_all)
        .warm()
        .of(FAMILY),
    Workload::timed("open-read-4", "the same by 4 threads", Tree::Files, read_all_by_four).warm().of(FAMILY),
    Workload::timed(
        "ro-open-close",
        "open and close 10,000 files in a union without a writable branch",
        Tree::Files,
        open_close,
    )
    .read_only()
    .warm()
    .of(FAMILY),
    Workload::timed("ro-open-read", "open, read and close 10,000 files of 4 KiB there", Tree::Files, read_all)
        .read_only()
        .warm()
        .of(FAMILY),
    Workload::timed("ro-open-read-4", "the same by 4 threads", Tree::Files, read_all_by_four)
        .read_only()
        .warm()
        .of(FAMILY),
];

fn open_close(place: &Place<'_>) -> io::Result<Job<()>> {
    each(place, 1, |path| File::open(path).map(drop))
}

fn open_close_by_four(place: &Place<'_>) -> io::Result<Job<()>> {
    each(place, 4, |path| File::open(path).map(drop))
}

fn read_all(place: &Place<'_>) -> io::Result<Job<()>> {
    each(place, 1, read)
}

fn read_all_by_four(place: &Place<'_>) -> io::Result<Job<()>> {
    each(place, 4, read)
}

fn read(path: &PathBuf) -> io::Result<()> {
    match fs::read(path)?.len() {
        4096 => Ok(()),
        length => Err(io::Error::other(format!("a file of 4096 bytes has {length}"))),
    }
}

/// Does it to every file, each thread to its share.
fn each(place: &Place<'_>, threads: usize, act: fn(&PathBuf) -> io::Result<()>) -> io::Result<Job<()>> {
    let names = tree::file_names(place.scale).into_iter().take(10_000);
    let paths: Vec<PathBuf> = names.map(|name| place.root.join(name)).collect();
    Ok(Box::new(move || by_threads(&paths, threads, act)))
}

fn by_threads(paths: &[PathBuf], threads: usize, act: fn(&PathBuf) -> io::Result<()>) -> io::Result<()> {
    if threads == 1 {
        return paths.iter().try_for_each(act);
    }
    std::thread::scope(|scope| {
        let shares = paths.chunks(paths.len().div_ceil(threads));
        let running: Vec<_> = shares.map(|share| scope.spawn(move || share.iter().try_for_each(act))).collect();
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the workload panicked")))
        })
    })
}
