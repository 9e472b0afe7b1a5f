//! A listing holds exactly what a lookup finds: each name once, with its type and inode number; and a listing that is
//! being read stays what it was, whatever is removed meanwhile.
//!
//! `RUNIONFS_READDIR_CASES` sets how many random unions are listed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::ops::{Caller, acts};
use harness::rootless::{self, Way};
use harness::sandbox::{self, Medium};
use harness::tree::{NAMES, layouts};
use harness::trial::{Ground, fail, number, try_many};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");
/// Sizes of the caller's buffer: for one entry, for a few, for all.
const BUFFERS: [usize; 3] = [280, 1_024, 32_768];

/// One record of getdents64(2).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    name: String,
    kind: FileType,
    number: u64,
    next: u64,
}

fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .expect("open a directory")
}

/// The next records that fit the buffer.
fn read_some(dir: &OwnedFd, buffer: usize) -> Vec<Record> {
    let mut space = vec![MaybeUninit::<u8>::uninit(); buffer];
    let mut raw = RawDir::new(dir, &mut space);
    let mut records = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.expect("getdents64");
        records.push(Record {
            name: entry.file_name().to_str().expect("ASCII names").to_owned(),
            kind: entry.file_type(),
            number: entry.ino(),
            next: entry.next_entry_cookie(),
        });
        if raw.is_buffer_empty() {
            break;
        }
    }
    records
}

fn read_on(dir: &OwnedFd, buffer: usize) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let some = read_some(dir, buffer);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn seek(dir: &OwnedFd, to: u64) {
    rustix::fs::seek(dir, SeekFrom::Start(to)).expect("seekdir");
}

/// Lists a directory and looks every name up.
fn check(dir: &Path, buffer: usize) -> TestCaseResult {
    let handle = open_dir(dir);
    let records = read_on(&handle, buffer);
    let mut listed = BTreeSet::new();
    for record in &records {
        if !listed.insert(record.name.clone()) {
            return fail(format!("{} lists {:?} twice", dir.display(), record.name));
        }
        let path =
            if record.name == ".." { dir.parent().expect("a parent").to_owned() } else { dir.join(&record.name) };
        let stat = match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => return fail(format!("{} is listed, but stat says {errno:?}", path.display())),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if record.kind != kind {
            return fail(format!("{} is {kind:?}, but listed as {:?}", path.display(), record.kind));
        }
        // the parent of the root is on another file system
        if record.number != stat.st_ino && record.name != ".." || record.number == 0 {
            return fail(format!("{}: d_ino {}, st_ino {}", path.display(), record.number, stat.st_ino));
        }
    }
    for name in NAMES {
        let found = rustix::fs::statat(CWD, dir.join(name), AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok() != listed.contains(name) {
            return fail(format!(
                "{} lists {listed:?}, but {name} is {:?}",
                dir.display(),
                found.map(|stat| stat.st_ino)
            ));
        }
    }
    if !listed.contains(".") || !listed.contains("..") || listed.iter().any(|name| name.starts_with(".wh.")) {
        return fail(format!("{} lists {listed:?}", dir.display()));
    }
    check_offsets(&handle, &records)
}

/// Every offset leads to the record after it, in any order.
fn check_offsets(handle: &OwnedFd, records: &[Record]) -> TestCaseResult {
    for at in (0..records.len()).rev() {
        seek(handle, records[at].next);
        let rest = read_on(handle, 4_096);
        if rest != records[at + 1..] {
            return fail(format!("after seekdir to {:?}: {rest:?}\nand not {:?}", records[at], &records[at + 1..]));
        }
    }
    Ok(())
}

fn directories(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while let Some(dir) = found.get(at) {
        let entries = fs::read_dir(dir).expect("list a directory").map(|entry| entry.expect("an entry"));
        let inner = entries.filter(|entry| entry.file_type().expect("a type").is_dir()).map(|entry| entry.path());
        let inner: Vec<_> = inner.collect();
        found.extend(inner);
        at += 1;
    }
    found
}

#[test]
fn a_listing_holds_exactly_what_a_lookup_finds() {
    holds(number("RUNIONFS_READDIR_CASES", 100));
}

#[test]
fn a_listing_holds_exactly_what_a_lookup_finds_for_an_ordinary_user() {
    if rootless::again(Way::OneId, "a_listing_holds_exactly_what_a_lookup_finds_for_an_ordinary_user") {
        holds(number("RUNIONFS_READDIR_ROOTLESS_CASES", 25));
    }
}

fn holds(cases: u32) {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    let trials = Cell::new(0);
    let values = (layouts(), prop::collection::vec(acts(), 0..60));
    try_many(cases, &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let ground = Ground::new(sandbox.path(), &trials.get().to_string(), &layout).expect("write the branches");
        let acts = ground.rehearse(&acts).expect("rehearse");
        let mut mounted = ground.mount(BINARY);
        let mut caller = Caller::new(mounted.target());
        for step in acts.chunks(20) {
            for act in step {
                let (Ok(_) | Err(_)) = caller.act(act);
            }
            for dir in directories(mounted.target()) {
                BUFFERS.into_iter().try_for_each(|buffer| check(&dir, buffer))?;
            }
        }
        caller.close_all();
        mounted.remount();
        directories(mounted.target()).into_iter().try_for_each(|dir| check(&dir, BUFFERS[0]))
    });
}

/// The ways in which a directory is made of branches.
const SHAPES: [&[&str]; 3] = [&["0"], &["1"], &["0", "1"]];
const ENTRIES: usize = 3_000;

fn large_directory(parent: &Path, shape: &[&str]) -> harness::mount::Mounted {
    directory(parent, shape, ENTRIES)
}

/// A union with a directory `d` of entries that are spread over the branches of a shape.
fn directory(parent: &Path, shape: &[&str], entries: usize) -> harness::mount::Mounted {
    for branch in ["0", "1", "mnt"] {
        fs::create_dir_all(parent.join(branch)).expect("make a branch");
    }
    for branch in shape {
        fs::create_dir(parent.join(branch).join("d")).expect("make the directory");
    }
    for entry in 0..entries {
        let branch = shape[entry % shape.len()];
        fs::write(parent.join(branch).join(format!("d/{entry}")), "").expect("write an entry");
    }
    let branches = format!("{}=rw:{}=ro+wh", parent.join("0").display(), parent.join("1").display());
    harness::mount::Mounted::mount(BINARY, branches, &parent.join("mnt"), &[])
}

fn all_entries() -> BTreeSet<String> {
    (0..ENTRIES).map(|entry| entry.to_string()).collect()
}

fn without_dots(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.name.clone()).filter(|name| name != "." && name != "..").collect()
}

#[test]
fn reading_and_unlinking_in_turn_meets_every_entry_once() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(300)) else { return };
    for (number, shape) in SHAPES.iter().enumerate() {
        let parent = sandbox.path().join(number.to_string());
        let mounted = large_directory(&parent, shape);
        let dir = mounted.target().join("d");
        let handle = open_dir(&dir);
        let mut met = BTreeSet::new();
        loop {
            let names = read_some(&handle, 1_024);
            if names.is_empty() {
                break;
            }
            for name in without_dots(&names) {
                fs::remove_file(dir.join(&name)).unwrap_or_else(|error| panic!("{shape:?}: unlink {name}: {error}"));
                assert!(met.insert(name.clone()), "{shape:?}: {name} is listed twice");
            }
        }
        assert_eq!(met, all_entries(), "{shape:?}");
        drop(handle);
        assert_eq!(without_dots(&read_on(&open_dir(&dir), 32_768)), Vec::<String>::new(), "{shape:?}");
        fs::remove_dir(&dir).expect("an emptied directory can be removed");
    }
}

#[test]
fn an_offset_leads_to_the_same_entry_after_others_are_removed() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(300)) else { return };
    for (number, shape) in SHAPES.iter().enumerate() {
        let parent = sandbox.path().join(number.to_string());
        let mounted = large_directory(&parent, shape);
        let dir = mounted.target().join("d");
        let handle = open_dir(&dir);
        let records = read_on(&handle, 2_048);
        assert_eq!(without_dots(&records).into_iter().collect::<BTreeSet<_>>(), all_entries(), "{shape:?}");
        let (gone, kept) = records.split_at(ENTRIES / 2);
        for name in without_dots(gone).iter().step_by(2) {
            fs::remove_file(dir.join(name)).expect("unlink");
        }
        let last = gone.last().expect("half of the entries");
        seek(&handle, last.next);
        assert_eq!(without_dots(&read_on(&handle, 512)), without_dots(kept), "{shape:?}");
        seek(&handle, 0);
        let again: BTreeMap<String, u64> =
            read_on(&handle, 32_768).into_iter().map(|record| (record.name, record.number)).collect();
        for name in without_dots(&records) {
            let stat = rustix::fs::statat(CWD, dir.join(&name), AtFlags::SYMLINK_NOFOLLOW);
            let number = stat.map(|stat| stat.st_ino);
            assert_eq!(again.get(&name).copied().ok_or(Errno::NOENT), number, "{shape:?}: {name} after rewinddir");
        }
    }
}

/// What others do in a directory while it is read: a name goes or comes, and somebody lists it whole, so that the
/// kernel keeps another listing than the one the reader began with.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    Remove(usize),
    Add(usize),
    List,
    /// Removes the name that the reader met last: its offset is that of no entry any more.
    RemoveLast,
}

fn disturbances() -> impl Strategy<Value = Vec<Disturbance>> {
    let one = prop_oneof![
        4 => (0..DISTURBED).prop_map(Disturbance::Remove),
        3 => (0..DISTURBED).prop_map(Disturbance::Add),
        2 => Just(Disturbance::List),
        1 => Just(Disturbance::RemoveLast),
    ];
    prop::collection::vec(one, 1..40)
}

/// So many entries are there when reading begins; those that come have higher numbers.
const DISTURBED: usize = 400;

#[test]
fn a_reader_meets_every_name_that_stays_once_whoever_else_reads_and_changes_the_directory() {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(600)) else { return };
    let trials = Cell::new(0);
    let values = (0..SHAPES.len(), prop::sample::select(vec![280_usize, 700, 4_096]), disturbances(), any::<bool>());
    try_many(number("RUNIONFS_READDIR_CASES", 100) / 2, &values, |(shape, buffer, disturbances, warm)| {
        trials.set(trials.get() + 1);
        let parent = sandbox.path().join(format!("disturbed{}", trials.get()));
        let mounted = directory(&parent, SHAPES[shape], DISTURBED);
        let dir = mounted.target().join("d");
        if warm {
            // the reader is served by the kernel
            read_on(&open_dir(&dir), 32_768);
        }
        let handle = open_dir(&dir);
        let (mut stayed, mut met) = ((0..DISTURBED).map(|n| n.to_string()).collect::<BTreeSet<_>>(), Vec::new());
        for disturbance in disturbances.into_iter().cycle() {
            let names = without_dots(&read_some(&handle, buffer));
            if names.is_empty() && met.len() > 1 {
                break;
            }
            met.extend(names);
            let remove = |name: &str| drop(fs::remove_file(dir.join(name)));
            match disturbance {
                Disturbance::Remove(number) => {
                    remove(&number.to_string());
                    stayed.remove(&number.to_string());
                }
                Disturbance::Add(number) => fs::write(dir.join(format!("new{number}")), "").expect("add a name"),
                Disturbance::List => drop(read_on(&open_dir(&dir), 32_768)),
                Disturbance::RemoveLast => {
                    if let Some(last) = met.last() {
                        remove(last);
                        stayed.remove(last);
                    }
                }
            }
        }
        drop((handle, mounted));
        fs::remove_dir_all(&parent).expect("remove the branches");
        let mut once = BTreeSet::new();
        if let Some(twice) = met.iter().find(|name| !once.insert(*name)) {
            return fail(format!("{twice} was met twice"));
        }
        match stayed.iter().find(|name| !once.contains(name)) {
            Some(missed) => fail(format!("{missed} stayed and was not met")),
            None => Ok(()),
        }
    });
}
