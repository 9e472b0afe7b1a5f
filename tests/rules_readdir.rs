//! Rules 10 to 12: what a directory lists.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::sandbox::Medium;
use nix::sys::signal::{Signal, kill};
use rustix::fs::{Dir, FileType, Mode, OFlags};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Three branches with every case of hiding, each name in each of them.
fn all_cases() -> Option<Branches> {
    let branches = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"])?;
    // What a branch holds for a name: nothing, a file, a directory, a whiteout, an opaque directory.
    for case in 0..125_usize {
        for (branch, kind) in [case / 25, case / 5 % 5, case % 5].into_iter().enumerate() {
            let path = format!("{branch}/d/n{case:03}");
            match kind {
                1 => branches.file(path, ""),
                2 => branches.file(format!("{path}/in{branch}"), ""),
                3 => branches.dir(format!("{branch}/d")).whiteout(path),
                4 => branches.opaque(&path).file(format!("{path}/in{branch}"), ""),
                _ => &branches,
            };
        }
    }
    Some(branches)
}

/// What rules 3 to 7 say of a case: the kind, and for a directory the names in it.
fn expected(case: usize) -> Option<Vec<String>> {
    let mut inside: Option<Vec<String>> = None;
    for (branch, kind) in [case / 25, case / 5 % 5, case % 5].into_iter().enumerate() {
        match kind {
            0 => {}
            1 if inside.is_none() => return Some(Vec::new()),
            1 | 3 => break,
            _ => inside.get_or_insert_default().push(format!("in{branch}")),
        }
        if kind == 4 {
            break;
        }
    }
    inside
}

#[test]
fn readdir_lists_exactly_what_lookup_finds_in_all_125_cases() {
    let Some(branches) = all_cases() else { return };
    let mut u = branches.mount();
    for round in ["listed first", "looked up first"] {
        if round == "looked up first" {
            u.mounted.remount();
            (0..125).for_each(|case| assert_eq!(u.exists(format!("d/n{case:03}")), expected(case).is_some()));
        }
        let names: Vec<String> =
            (0..125).filter(|case| expected(*case).is_some()).map(|case| format!("n{case:03}")).collect();
        assert_eq!(u.list("d"), names, "{round}");
        for case in 0..125 {
            let path = format!("d/n{case:03}");
            assert_eq!(u.exists(&path), expected(case).is_some(), "{path}, {round}");
            if let Some(inside) = expected(case) {
                let is_dir = u.stat(&path).is_dir();
                assert_eq!(is_dir, !inside.is_empty(), "{path}, {round}");
                assert!(!is_dir || u.list(&path) == inside, "{path}, {round}: {:?}", u.list(&path));
            }
        }
    }
}

/// The entries of a directory as getdents reports them.
fn entries(path: &Path) -> Vec<(String, FileType, u64)> {
    let entries = Dir::new(open_dir(path)).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.file_type(), e.ino())).collect()
}

fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn all_types(branches: &Branches, branch: usize, prefix: &str) {
    let at = |name: &str| branches.at(format!("{branch}/d/{prefix}-{name}"));
    branches.file(format!("{branch}/d/{prefix}-file"), "").dir(format!("{branch}/d/{prefix}-dir"));
    branches.symlink(format!("{branch}/d/{prefix}-link"), "nowhere");
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    for (name, kind) in [("char", nix::sys::stat::SFlag::S_IFCHR), ("block", nix::sys::stat::SFlag::S_IFBLK)] {
        let device = nix::sys::stat::makedev(1, 7);
        nix::sys::stat::mknod(&at(name), kind, nix::sys::stat::Mode::S_IRWXU, device).unwrap();
    }
}

#[test]
fn type_and_inode_number_in_a_listing_are_those_of_stat() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    all_types(&branches, 0, "top");
    all_types(&branches, 1, "low");
    branches.dir("0/d/low-dir").dir("1/pure");
    let u = branches.mount();
    for _before_and_after_lookup in 0..2 {
        let found = entries(&u.path("d"));
        assert_eq!(found.len(), 2 + 14);
        for (name, kind, ino) in found.iter().filter(|(name, ..)| name != "..") {
            let stat = u.stat(Path::new("d").join(name));
            assert_eq!(*kind, FileType::from_raw_mode(stat.mode()), "{name}");
            assert_eq!(*ino, stat.ino(), "{name}");
        }
        let dotdot = found.iter().find(|(name, ..)| name == "..").unwrap();
        assert_eq!(dotdot.2, u.stat("").ino());
    }
    let names: BTreeSet<_> = entries(&u.path("pure")).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, BTreeSet::from([".".to_owned(), "..".to_owned()]), "dot and dot-dot are listed, once");
}

/// A directory of many names, merged or of one branch.
fn many(merged: bool, count: usize) -> Option<Union> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    branches.dir("0/d").dir("1");
    for number in 0..count {
        let branch = if merged { number % 2 } else { 0 };
        branches.file(format!("{branch}/d/{number:05}"), "");
    }
    Some(branches.mount())
}

#[test]
fn reading_and_removing_neither_skips_nor_repeats() {
    for merged in [false, true] {
        let Some(u) = many(merged, 1500) else { return };
        let mut seen = BTreeMap::new();
        for entry in fs::read_dir(u.path("d")).unwrap() {
            let name = entry.unwrap().file_name();
            *seen.entry(name.clone()).or_insert(0) += 1;
            fs::remove_file(u.path("d").join(name)).unwrap();
        }
        assert_eq!(seen.len(), 1500, "merged: {merged}");
        assert!(seen.values().all(|times| *times == 1));
        assert_eq!(u.list("d"), [""; 0]);
        fs::remove_dir(u.path("d")).unwrap();
    }
}

#[test]
fn reading_and_adding_ends() {
    for merged in [false, true] {
        let Some(u) = many(merged, 500) else { return };
        let mut seen = BTreeSet::new();
        for (number, entry) in fs::read_dir(u.path("d")).unwrap().enumerate() {
            assert!(seen.insert(entry.unwrap().file_name()), "a name came twice (merged: {merged})");
            if number < 2000 {
                u.write(format!("d/new-{number}"), "");
            }
        }
        let old = (0..500).filter(|number| seen.contains(std::ffi::OsStr::new(&format!("{number:05}")))).count();
        assert_eq!(old, 500, "every name that was there all the time is seen (merged: {merged})");
    }
}

#[test]
fn a_rewound_listing_is_new() {
    for merged in [false, true] {
        let Some(u) = many(merged, 10) else { return };
        let mut directory = Dir::new(open_dir(&u.path("d"))).unwrap();
        assert_eq!(directory.by_ref().count(), 12);
        u.write("d/new", "");
        fs::remove_file(u.path("d/00003")).unwrap();
        directory.rewind();
        let names: Vec<_> = directory.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        assert!(names.contains(&"new".into()) && !names.contains(&"00003".into()), "merged: {merged}");
    }
}

#[test]
fn offsets_can_be_returned_to() {
    for merged in [false, true] {
        let Some(u) = many(merged, 300) else { return };
        let descriptor = open_dir(&u.path("d"));
        let mut buffer = Vec::with_capacity(2048);
        let mut raw = rustix::fs::RawDir::new(&descriptor, buffer.spare_capacity_mut());
        let mut all = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry.unwrap();
            all.push((entry.file_name().to_owned(), entry.next_entry_cookie()));
        }
        assert_eq!(all.len(), 302);
        for at in [0, 1, 150, 250] {
            rustix::fs::seek(&descriptor, rustix::fs::SeekFrom::Start(all[at].1)).unwrap();
            let mut buffer = Vec::with_capacity(2048);
            let mut raw = rustix::fs::RawDir::new(&descriptor, buffer.spare_capacity_mut());
            let next = raw.next().unwrap().unwrap().file_name().to_owned();
            assert_eq!(next, all[at + 1].0, "after entry {at} (merged: {merged})");
        }
    }
}

#[test]
fn attributes_of_a_listing_are_those_of_now() {
    for merged in [false, true] {
        let Some(u) = many(merged, 200) else { return };
        let open = fs::read_dir(u.path("d")).unwrap();
        for number in 0..200 {
            u.write(format!("d/{number:05}"), "x".repeat(100));
        }
        for entry in open {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!(metadata.len(), 100, "{:?} (merged: {merged})", entry.file_name());
            assert_eq!(entry.ino(), metadata.ino());
        }
    }
}

#[test]
fn a_large_directory_is_listed_whole() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/large");
    for number in 0..8_000 {
        fs::write(branches.at(format!("1/large/{number:05}")), "").unwrap();
    }
    let u = branches.mount();
    let expected: Vec<String> = (0..8_000).map(|number| format!("{number:05}")).collect();
    assert_eq!(u.list("large"), expected, "one branch");
    fs::remove_file(u.path("large/07777")).unwrap();
    u.write("large/new", "");
    let mut expected: Vec<String> = expected.into_iter().filter(|name| name != "07777").collect();
    expected.push("new".into());
    assert_eq!(u.list("large"), expected, "merged");
}

#[test]
fn many_readers_of_one_directory_see_the_same() {
    let Some(u) = many(true, 2000) else { return };
    let lists: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(|| u.list("d"))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert!(lists.iter().all(|list| list.len() == 2000 && *list == lists[0]));
}

/// A listing that nothing has changed costs no request: it can be read while the daemon is stopped.
#[test]
fn the_kernel_keeps_a_listing_until_something_changes() {
    let Some(u) = many(true, 300) else { return };
    let dir = u.path("d");
    let (names, numbers) = (u.list("d"), entries(&dir));
    assert_eq!(names.len(), 300);
    kill(u.mounted.pid(), Signal::SIGSTOP).unwrap();
    let (sender, listed) = mpsc::channel();
    let reader = thread::spawn({
        let dir = dir.clone();
        move || sender.send(entries(&dir)).unwrap()
    });
    let stopped = listed.recv_timeout(Duration::from_secs(20));
    kill(u.mounted.pid(), Signal::SIGCONT).unwrap();
    reader.join().unwrap();
    assert_eq!(stopped, Ok(numbers), "it was asked for again");
    u.write("d/new", "");
    assert!(u.list("d").contains(&"new".to_owned()));
    fs::remove_file(u.path("d/00007")).unwrap();
    fs::rename(u.path("d/00008"), u.path("d/renamed")).unwrap();
    let now = u.list("d");
    assert!(!now.contains(&"00007".to_owned()) && !now.contains(&"00008".to_owned()), "{now:?}");
    assert!(now.contains(&"renamed".to_owned()) && now.len() == 300, "{now:?}");
}

/// A task that has looked at no file gets the attributes of directories only, so that `find` does not wait for the
/// others; one that has gets all of them, so that `ls -lR` need not ask for each.
#[test]
fn attributes_come_with_a_listing_for_who_looks_at_them() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    // few enough for one request of any kernel
    for number in 0..8 {
        for dir in ["a", "b", "c"] {
            branches.dir(format!("1/{dir}/dir{number}")).file(format!("1/{dir}/file{number}"), "content");
        }
    }
    let u = branches.mount();
    // the kernel knows the task that lists by its number
    let look_at = |dir: &str, kind: &str| {
        let seen = (0..8).filter(|number| u.stat(format!("{dir}/{kind}{number}")).is_dir() == (kind == "dir"));
        assert_eq!(seen.count(), 8);
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(u.list("a").len(), 16);
            let listed = u.mounted.requests("LOOKUP");
            look_at("a", "dir");
            assert_eq!(u.mounted.requests("LOOKUP"), listed, "directories came with attributes");
            look_at("a", "file");
            assert_eq!(u.mounted.requests("LOOKUP"), listed + 8, "files came without");
            assert_eq!(u.list("b").len(), 16);
            let listed = u.mounted.requests("LOOKUP");
            look_at("b", "dir");
            look_at("b", "file");
            assert_eq!(u.mounted.requests("LOOKUP"), listed, "all came with attributes");
        });
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(u.list("c").len(), 16);
            let listed = u.mounted.requests("LOOKUP");
            look_at("c", "file");
            assert_eq!(u.mounted.requests("LOOKUP"), listed + 8, "another task has not looked at files yet");
        });
    });
}

#[test]
fn with_reval_a_listing_is_always_new() {
    for merged in [false, true] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        branches.file("0/d/a", "");
        if merged {
            branches.file("1/d/b", "");
        }
        let u = branches.mount_with(&["udba=reval"]);
        let before = u.list("d");
        fs::write(u.at("0/d/direct"), "").unwrap();
        fs::remove_file(u.at("0/d/a")).unwrap();
        let now = u.list("d");
        assert!(before.contains(&"a".to_owned()) && !now.contains(&"a".to_owned()), "{now:?}");
        assert!(now.contains(&"direct".to_owned()), "{now:?}");
    }
}

/// Larger than what is kept of one directory.
#[test]
fn a_huge_directory_is_listed_whole_and_can_be_emptied_while_it_is_read() {
    const COUNT: usize = 270_000;
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/huge").dir("1/huge");
    for number in 0..COUNT {
        fs::write(branches.at(format!("0/huge/{number}")), "").unwrap();
    }
    let u = branches.mount();
    let (mut seen, mut removed) = (vec![0_u8; COUNT], 0);
    for (turn, entry) in fs::read_dir(u.path("huge")).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        seen[name.parse::<usize>().unwrap()] += 1;
        if turn % 20_000 == 0 {
            fs::remove_file(u.path("huge").join(name)).unwrap();
            removed += 1;
        }
    }
    assert!(seen.iter().all(|times| *times == 1), "each name is met once");
    assert_eq!(fs::read_dir(u.path("huge")).unwrap().count(), COUNT - removed);
}

/// Who changed the working directory to one that is gone, or holds it open, may read it all the same.
#[test]
fn a_directory_that_was_removed_while_it_was_read_ends() {
    for merged in [false, true] {
        let Some(u) = many(merged, 600) else { return };
        let descriptor = open_dir(&u.path("d"));
        let mut directory = Dir::new(descriptor).unwrap();
        for _ in 0..5 {
            directory.next().unwrap().unwrap();
        }
        fs::remove_dir_all(u.path("d")).unwrap();
        assert!(directory.all(|entry| entry.is_ok()));
        directory.rewind();
        let names: Vec<_> = directory.map(|entry| entry.unwrap().file_name().to_owned()).collect();
        assert!(names.iter().all(|name| matches!(name.to_bytes(), b"." | b"..")), "{names:?}");
        // what comes after it under its name is another directory
        fs::create_dir(u.path("d")).unwrap();
        u.write("d/new", "");
        assert_eq!(u.list("d"), ["new"]);
    }
}

/// The kernel keeps the number of `..` with the rest of a listing.
#[test]
fn a_moved_directory_lists_the_directory_above_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/from/top/f", "").file("1/from/low/f", "").file("0/to/other/f", "");
    let u = branches.mount();
    let above = |path: &str| {
        let found = entries(&u.path(path));
        found.into_iter().find(|(name, ..)| name == "..").unwrap().2
    };
    for path in ["from/top", "from/low", "to/other"] {
        above(path);
    }
    fs::rename(u.path("from/low"), u.path("to/low")).unwrap();
    let (from, to) = (u.path("from/top"), u.path("to/other"));
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    for (path, parent) in [("to/low", "to"), ("to/other", "to"), ("from/top", "from")] {
        assert_eq!(above(path), u.stat(parent).ino(), "{path}");
        assert_eq!(u.list(path), ["f"]);
    }
}
