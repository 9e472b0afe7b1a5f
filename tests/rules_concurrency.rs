//! Many threads at once, and a tree that makes sense afterwards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::snapshot::{Exactness, Kind, Snapshot};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const WORKERS: usize = 6;

/// A source of numbers that is the same in every run (xorshift; Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Three branches with 120 files, half of them below.
fn crowd() -> Option<Branches> {
    let branches = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"])?;
    for number in 0..120 {
        branches.file(format!("{}/d{}/f{number}", number % 3, number % 4), format!("file {number}"));
    }
    (0..4).for_each(|directory| drop(fs::create_dir_all(branches.at(format!("1/d{directory}")))));
    Some(branches)
}

/// One random operation on names that all workers share. Losing a race is no error; anything else is.
fn disturb(u: &Union, numbers: &mut Numbers) {
    let name = |numbers: &mut Numbers| u.path(format!("d{}/f{}", numbers.below(4), numbers.below(120)));
    let (path, other) = (name(numbers), name(numbers));
    let result = match numbers.below(10) {
        0 => fs::remove_file(&path),
        1 | 2 => fs::write(&path, "rewritten"),
        3 => fs::rename(&path, &other),
        4 => fs::hard_link(&path, &other),
        5 => File::options().append(true).open(&path).and_then(|mut file| file.write_all(b"+")),
        6 => fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)),
        7 => fs::read_dir(path.parent().unwrap()).and_then(|mut entries| entries.try_for_each(|entry| entry.map(drop))),
        8 => fs::read(&path).map(drop),
        _ => File::open(&path).and_then(|file| {
            fs::remove_file(&path)?;
            file.metadata().map(drop)
        }),
    };
    if let Err(error) = result {
        let expected = [std::io::ErrorKind::NotFound, std::io::ErrorKind::AlreadyExists];
        assert!(expected.contains(&error.kind()), "{} and {}: {error}", path.display(), other.display());
    }
}

/// Lookup, listing, numbers and link counts agree with each other, and the disk with all of them.
fn assert_consistent(u: &mut Union) {
    let tree = Snapshot::take(&u.path(""));
    let mut links: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
    for (path, entry) in tree.entries.iter().filter(|(_, entry)| entry.kind == Kind::File) {
        links.entry(entry.ino).or_default().push(path);
    }
    for (ino, paths) in &links {
        let first = &tree.entries[paths[0]];
        for path in paths {
            let entry = &tree.entries[*path];
            assert_eq!(entry.nlink, paths.len() as u64, "link count of {ino}: {paths:?}");
            assert_eq!((&entry.content, entry.mode), (&first.content, first.mode), "{ino}: {paths:?}");
        }
    }
    u.assert_no_temporaries(0);
    u.remount_and_compare();
    for (path, entry) in &tree.entries {
        assert_eq!(u.stat(path).ino(), entry.ino, "{}", path.display());
    }
}

#[test]
fn all_operations_at_once_leave_a_consistent_tree() {
    let Some(branches) = crowd() else { return };
    let mut u = branches.mount();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let u = &u;
            scope.spawn(move || {
                let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (worker as u64 + 1));
                (0..1500).for_each(|_| disturb(u, &mut numbers));
            });
        }
    });
    assert_consistent(&mut u);
}

#[test]
fn workers_in_directories_of_their_own_get_exactly_what_they_made() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for (worker, number) in (0..WORKERS).flat_map(|worker| (0..40).map(move |number| (worker, number))) {
        branches.file(format!("1/w{worker}/{number}"), format!("{worker}/{number}"));
    }
    let mut u = branches.mount();
    let expected: BTreeMap<PathBuf, String> = thread::scope(|scope| {
        let work = |worker| work_alone(&u, worker);
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    for _remounted in 0..2 {
        for worker in 0..WORKERS {
            let listed: Vec<PathBuf> =
                u.list(format!("w{worker}")).iter().map(|name| format!("w{worker}/{name}").into()).collect();
            let mine: Vec<&PathBuf> = expected.keys().filter(|path| path.starts_with(format!("w{worker}"))).collect();
            assert_eq!(listed.iter().collect::<Vec<_>>(), mine);
        }
        expected.iter().for_each(|(path, content)| assert_eq!(u.read(path), *content, "{}", path.display()));
        u.mounted.remount();
    }
}

/// Changes the files of one directory and says what must be there in the end.
fn work_alone(u: &Union, worker: usize) -> BTreeMap<PathBuf, String> {
    let path = |name: &str| PathBuf::from(format!("w{worker}/{name}"));
    let mut files: BTreeMap<PathBuf, String> =
        (0..40).map(|number| (path(&number.to_string()), format!("{worker}/{number}"))).collect();
    let mut numbers = Numbers(1 + worker as u64);
    for round in 0..400 {
        let chosen = files.keys().nth(numbers.below(files.len())).unwrap().clone();
        let fresh = path(&format!("new{}", numbers.below(30)));
        match numbers.below(4) {
            0 => {
                u.write(&fresh, format!("{round}"));
                files.insert(fresh, format!("{round}"));
            }
            1 => {
                fs::rename(u.path(&chosen), u.path(&fresh)).unwrap();
                let content = files.remove(&chosen).unwrap();
                files.insert(fresh, content);
            }
            2 => {
                File::options().append(true).open(u.path(&chosen)).unwrap().write_all(b"+").unwrap();
                files.get_mut(&chosen).unwrap().push('+');
            }
            _ if files.len() > 10 => {
                fs::remove_file(u.path(&chosen)).unwrap();
                files.remove(&chosen);
            }
            _ => assert_eq!(u.read(&chosen), files[&chosen]),
        }
    }
    files
}

#[test]
fn directories_come_and_go_under_each_others_feet() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..10 {
        branches.file(format!("1/shared/{number}/low"), "");
    }
    let mut u = branches.mount();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let u = &u;
            scope.spawn(move || {
                let mut numbers = Numbers(77 + worker as u64);
                for _ in 0..150 {
                    let directory = u.path(format!("shared/{}", numbers.below(10)));
                    // Each of these may lose against another worker; the daemon must not.
                    match numbers.below(4) {
                        0 => fs::remove_dir_all(&directory).unwrap_or_default(),
                        1 => fs::create_dir(&directory).unwrap_or_default(),
                        2 => fs::write(directory.join("f"), "x").unwrap_or_default(),
                        _ => {
                            fs::rename(&directory, u.path(format!("shared/{}", numbers.below(10)))).unwrap_or_default()
                        }
                    }
                }
            });
        }
    });
    for name in u.list("shared") {
        assert!(name.parse::<usize>().is_ok_and(|number| number < 10), "{name}");
        for inner in u.list(Path::new("shared").join(&name)) {
            assert!(inner == "f" || inner == "low", "{name}/{inner}");
        }
    }
    assert_consistent(&mut u);
}

#[test]
fn readers_never_see_half_a_copy() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..40 {
        branches.file(format!("1/{number}"), vec![b'x'; 1 << 20]);
    }
    let u = branches.mount();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _reader in 0..3 {
            scope.spawn(|| {
                let mut numbers = Numbers(5);
                while !done.load(Ordering::Relaxed) {
                    let bytes = fs::read(u.path(numbers.below(40).to_string())).unwrap();
                    assert_eq!(bytes.len(), 1 << 20);
                    assert!(bytes.iter().all(|byte| *byte == b'x'));
                }
            });
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        (0..40)
            .for_each(|number| fs::set_permissions(u.path(number.to_string()), fs::Permissions::clone(&mode)).unwrap());
        thread::sleep(Duration::from_millis(50));
        done.store(true, Ordering::Relaxed);
    });
    let (ours, low) = (Snapshot::take(&u.path("")), Snapshot::take(&u.at("1")));
    let but_mode = |tree: Snapshot| tree.without(|path| path.as_os_str().is_empty());
    let (mut ours, mut low) = (but_mode(ours), but_mode(low));
    [&mut ours, &mut low].into_iter().for_each(|tree| {
        tree.entries.remove(Path::new(""));
        tree.entries.values_mut().for_each(|entry| entry.mode = 0);
    });
    low.assert_same(&ours, Exactness::Equal, "copies");
}
