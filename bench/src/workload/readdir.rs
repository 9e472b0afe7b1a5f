//! Directories: walked by the programs that everybody uses, and one very large one.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use super::{Job, Place, Workload};
use crate::tree::project::run;
use crate::tree::{self, Tree};

const FAMILY: &str = "readdir";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("find-cold", "find over 22,000 entries, fresh mount", Tree::Files, find).of(FAMILY),
    Workload::timed("find-warm", "the same again", Tree::Files, find).warm().of(FAMILY),
    Workload::timed("du-cold", "du over 22,000 entries, fresh mount", Tree::Files, du).of(FAMILY),
    Workload::timed("du-warm", "the same again", Tree::Files, du).warm().of(FAMILY),
    Workload::timed("ls-cold", "ls -lR over 22,000 entries, fresh mount", Tree::Files, ls).of(FAMILY),
    Workload::timed("ls-warm", "the same again", Tree::Files, ls).warm().of(FAMILY),
    Workload::timed("readdir-cold", "names of a directory of 50,000, fresh mount", Tree::Wide, wide).of(FAMILY),
    Workload::timed("readdir-warm", "the same again", Tree::Wide, wide).warm().of(FAMILY),
];

fn find(place: &Place<'_>) -> io::Result<Job<()>> {
    program(place, "find", &[])
}

fn du(place: &Place<'_>) -> io::Result<Job<()>> {
    program(place, "du", &["-s"])
}

fn ls(place: &Place<'_>) -> io::Result<Job<()>> {
    program(place, "ls", &["-lR"])
}

/// A program that is told a directory and prints what it finds.
pub(super) fn program(place: &Place<'_>, name: &'static str, arguments: &'static [&str]) -> io::Result<Job<()>> {
    let root = place.root.to_owned();
    Ok(Box::new(move || run(Command::new(name).args(arguments).arg(&root).stdout(Stdio::null()))))
}

fn wide(place: &Place<'_>) -> io::Result<Job<()>> {
    let directory = place.root.join("wide");
    let expected = tree::wide_count(place.scale);
    Ok(Box::new(move || {
        let mut count = 0;
        for entry in fs::read_dir(&directory)? {
            entry?;
            count += 1;
        }
        if count == expected { Ok(()) } else { Err(io::Error::other(format!("{count} names, not {expected}"))) }
    }))
}
