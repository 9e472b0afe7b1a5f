//! The reference model: a plain directory that is filled with the merged tree and is told to do the same.
//!
//! A union differs from it in what no user is promised: inode numbers, link counts of directories, access and change
//! times. The numbers must still be *some* one-to-one naming of the same objects, and stay it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::snapshot::{Entry, Kind, Snapshot};

/// A modification time before this was set by somebody, one after it came from the clock.
const CLOCK: i64 = 1_500_000_000;

/// Which times are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Those of everything.
    All,
    /// Not those of directories: more than one branch is written, and one directory's time tells of its branch only.
    NotDirectories,
    /// None: a kernel that gathers writes tells the time of one after it.
    None,
}

/// An object of the plain directory. Numbers are given out again, so the time of birth belongs to it.
pub(crate) type Object = (u64, i64, u32);

/// Which number of the union names which object of the plain directory, as far as it was seen.
#[derive(Debug, Default)]
pub struct Naming {
    numbers: HashMap<Object, u64>,
}

/// What differs between the union and the plain directory, one line each.
#[must_use]
pub fn difference(union: &Snapshot, plain: &Snapshot, clock: Clock) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, expected) in &plain.entries {
        match union.entries.get(path) {
            None => lines.push(format!("{}: {:?} is missing", shown(path), expected.kind)),
            Some(found) => {
                let times = match clock {
                    Clock::All => true,
                    Clock::NotDirectories => expected.kind != Kind::Directory,
                    Clock::None => false,
                };
                lines.extend(entry_difference(found, expected, times).map(|text| format!("{}: {text}", shown(path))));
            }
        }
    }
    let extra = union.entries.iter().filter(|(path, _)| !plain.entries.contains_key(*path));
    lines.extend(extra.map(|(path, entry)| format!("{}: {:?} should not be there", shown(path), entry.kind)));
    lines
}

fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() { "(root)".to_owned() } else { path.display().to_string() }
}

fn entry_difference(found: &Entry, expected: &Entry, times: bool) -> impl Iterator<Item = String> + use<> {
    let mut lines = Vec::new();
    let mut compare = |what: &str, found: String, expected: String| {
        if found != expected {
            lines.push(format!("{what} is {found} and not {expected}"));
        }
    };
    let permissions = |entry: &Entry| format!("{:04o} {}:{}", entry.mode, entry.uid, entry.gid);
    compare("kind", format!("{:?}", found.kind), format!("{:?}", expected.kind));
    compare("mode and owner", permissions(found), permissions(expected));
    compare("size", found.size.to_string(), expected.size.to_string());
    compare("content", format!("{:?}", found.content), format!("{:?}", expected.content));
    compare("link target", format!("{:?}", found.target), format!("{:?}", expected.target));
    compare("device", found.rdev.to_string(), expected.rdev.to_string());
    compare("xattrs", format!("{:?}", found.xattrs), format!("{:?}", expected.xattrs));
    if expected.kind != Kind::Directory {
        compare("link count", found.nlink.to_string(), expected.nlink.to_string());
    }
    // the kernel itself moves the time of a fifo that is written to, but not under FUSE, where it never asks for it
    let written_fifo = expected.kind == Kind::Fifo && expected.mtime.0 > CLOCK;
    let from_the_clock = found.mtime.0 > CLOCK && expected.mtime.0 > CLOCK;
    if times && !from_the_clock && !written_fifo {
        compare("mtime", format!("{:?}", found.mtime), format!("{:?}", expected.mtime));
    }
    lines.into_iter()
}

impl Naming {
    /// Looks at the numbers of a union that shows the same tree as the plain directory at `root`, and says where they
    /// are not the ones seen before, or where hard links are torn or different objects fused.
    ///
    /// # Panics
    /// When the plain directory cannot be read.
    pub fn check(&mut self, union: &Snapshot, plain: &Snapshot, root: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let mut now: HashMap<Object, u64> = HashMap::new();
        let mut owners: HashMap<u64, (Object, &PathBuf)> = HashMap::new();
        for path in plain.entries.keys() {
            let Some(number) = union.entries.get(path).map(|entry| entry.ino) else { continue };
            let object = object(&root.join(path));
            if number <= 1 && !path.as_os_str().is_empty() {
                lines.push(format!("{}: st_ino {number} is reserved", shown(path)));
            }
            if let Some(before) = self.numbers.get(&object).filter(|before| **before != number) {
                lines.push(format!("{}: st_ino was {before} and is {number}", shown(path)));
            }
            if let Some(other) = now.insert(object, number).filter(|other| *other != number) {
                lines.push(format!("{}: hard links have the numbers {other} and {number}", shown(path)));
            }
            let (owner, first) = *owners.entry(number).or_insert((object, path));
            if owner != object {
                lines.push(format!("{} and {}: two objects have the number {number}", shown(first), shown(path)));
            }
        }
        self.numbers = now;
        lines
    }
}

pub(crate) fn object(path: &Path) -> Object {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted).expect("look at the plain directory");
    (stat.stx_ino, stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use proptest::prelude::*;

    use super::{Clock, Naming, difference};
    use crate::ops::{Caller, Present, acts_and_remounts};
    use crate::snapshot::Snapshot;
    use crate::tree::{layouts, write_merged};
    use crate::trial::{fail, try_many};
    use crate::{sandbox, trial};

    /// Whatever differs here would be blamed on the union.
    #[test]
    fn two_plain_directories_agree() {
        let Some(sandbox) = sandbox::enter() else { return };
        let trials = Cell::new(0);
        let values = (layouts(), prop::collection::vec(acts_and_remounts(), 0..100));
        try_many(trial::number("RUNIONFS_MODEL_CASES", 100), &values, |(layout, acts)| {
            trials.set(trials.get() + 1);
            let root = |which: &str| sandbox.path().join(format!("{}-{which}", trials.get()));
            let roots = ["one", "other"].map(root);
            for root in &roots {
                let elsewhere = root.with_extension("elsewhere");
                fs::create_dir(&elsewhere).expect("make a directory");
                write_merged(&layout.world(), root, &elsewhere).expect("write the merged tree");
            }
            let [mut one, mut other] = roots.each_ref().map(|root| Caller::new(root));
            let mut naming = Naming::default();
            for act in &acts {
                let act = &Present::of(&roots[0]).resolve(act);
                prop_assert_eq!(one.act(act), other.act(act), "{:?}", act);
            }
            let [seen, expected] = roots.each_ref().map(|root| Snapshot::take(root));
            let mut lines = difference(&seen, &expected, Clock::All);
            lines.extend(naming.check(&seen, &expected, &roots[1]));
            if lines.is_empty() { Ok(()) } else { fail(lines.join("\n")) }
        });
    }
}
