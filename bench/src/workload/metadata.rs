//! Looking at files: found, not found, known to the kernel or not.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{Job, Place, Workload};
use crate::tree::{self, Scale, Tree};

const FAMILY: &str = "metadata";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("stat-cold", "stat 20,000 files in 200 directories, fresh mount", Tree::Files, stat_files)
        .of(FAMILY),
    Workload::timed("stat-warm", "the same again, 5 times", Tree::Files, stat_files_again).warm().of(FAMILY),
    Workload::timed("miss-unique", "stat 20,000 names that are not there, each once", Tree::Files, unique_misses)
        .of(FAMILY),
    Workload::timed("miss-repeated", "stat 2,000 names that are not there, 50 times", Tree::Files, repeated_misses)
        .warm()
        .of(FAMILY),
    Workload::timed("readlink-cold", "read 2,000 symbolic links, fresh mount", Tree::Files, read_links).of(FAMILY),
    Workload::timed("readlink-warm", "the same again, 10 times", Tree::Files, read_links_again).warm().of(FAMILY),
    Workload::timed("round-trip", "50,000 times statx with AT_STATX_FORCE_SYNC of one file", Tree::Files, forced)
        .warm()
        .of(FAMILY),
];

fn stat_files(place: &Place<'_>) -> io::Result<Job<()>> {
    stats(place.root, tree::file_names(place.scale), 1)
}

fn stat_files_again(place: &Place<'_>) -> io::Result<Job<()>> {
    stats(place.root, tree::file_names(place.scale), 5)
}

/// A job that looks at each of these files so many times. Its names are made beforehand: making them would be timed.
pub(super) fn stats(root: &Path, names: Vec<PathBuf>, times: usize) -> io::Result<Job<()>> {
    let paths: Vec<PathBuf> = names.into_iter().map(|name| root.join(name)).collect();
    Ok(Box::new(move || {
        for _ in 0..times {
            for path in &paths {
                // What a file is must have been answered, not only that it is there.
                if fs::symlink_metadata(path)?.ino() == 0 {
                    return Err(io::Error::other("a file without a number"));
                }
            }
        }
        Ok(())
    }))
}

fn unique_misses(place: &Place<'_>) -> io::Result<Job<()>> {
    misses(place.root, 200, tree::file_names(place.scale).len(), 1)
}

fn repeated_misses(place: &Place<'_>) -> io::Result<Job<()>> {
    misses(place.root, 200, place.scale.of(2000, 200), place.scale.of(50, 5))
}

/// A job that asks for names which are not there, spread over the directories of the tree.
pub(super) fn misses(root: &Path, directories: usize, count: usize, times: usize) -> io::Result<Job<()>> {
    // A missing directory would make it one miss for all names in it.
    let directories = if count < 5000 { directories.min(10) } else { directories };
    let name = |index: usize| format!("d{:03}/missing{index:05}", index % directories);
    let paths: Vec<PathBuf> = (0..count).map(|index| root.join(name(index))).collect();
    Ok(Box::new(move || {
        for _ in 0..times {
            for path in &paths {
                expect_missing(path)?;
            }
        }
        Ok(())
    }))
}

fn expect_missing(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("a name is there that must not be")),
    }
}

fn read_links(place: &Place<'_>) -> io::Result<Job<()>> {
    links(place, 1)
}

fn read_links_again(place: &Place<'_>) -> io::Result<Job<()>> {
    links(place, 10)
}

fn links(place: &Place<'_>, times: usize) -> io::Result<Job<()>> {
    let paths: Vec<PathBuf> = tree::link_names(place.scale).into_iter().map(|name| place.root.join(name)).collect();
    Ok(Box::new(move || {
        for _ in 0..times {
            for path in &paths {
                fs::read_link(path)?;
            }
        }
        Ok(())
    }))
}

fn forced(place: &Place<'_>) -> io::Result<Job<()>> {
    let path = place.root.join(first_file(place.scale));
    let times = place.scale.of(50_000, 500);
    Ok(Box::new(move || (0..times).try_for_each(|_| force(&path))))
}

/// Asks the file system, whatever the kernel remembers.
pub(super) fn force(path: &Path) -> io::Result<()> {
    statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(())
}

fn first_file(scale: Scale) -> PathBuf {
    tree::file_names(scale).swap_remove(0)
}
