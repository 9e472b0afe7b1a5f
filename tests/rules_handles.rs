//! Rules 21 and 31, and what an open file can do: everyone sees one file, removed or not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::thread;

use harness::fixture::{Branches, Union};
use harness::mapping::{Mapping, Sharing};
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{FallocateFlags, XattrFlags, fallocate};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn read_write(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// All that a handle sees, from the start.
fn text(file: &File) -> String {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Files of a union by where they lie: in the top, below, and below but copied up.
fn three_places() -> Option<Union> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    branches.file("0/top", "0123456789").file("1/low", "0123456789").file("1/up", "0123456789");
    let u = branches.mount();
    fs::set_permissions(u.path("up"), fs::Permissions::from_mode(0o644)).unwrap();
    Some(u)
}

const PLACES: [&str; 3] = ["top", "low", "up"];

#[test]
fn a_removed_open_file_keeps_working() {
    let Some(mut u) = three_places() else { return };
    for name in PLACES {
        let file = read_write(&u.path(name));
        let ino = u.stat(name).ino();
        fs::remove_file(u.path(name)).unwrap();
        assert_eq!(fs::symlink_metadata(u.path(name)).errno(), Errno::ENOENT);
        assert_eq!((file.metadata().unwrap().ino(), file.metadata().unwrap().nlink()), (ino, 0), "{name}");
        assert_eq!(text(&file), "0123456789", "{name}");
        file.write_all_at(b"ab", 3).unwrap();
        file.set_len(6).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o601)).unwrap();
        std::os::unix::fs::fchown(&file, Some(7), Some(8)).unwrap();
        rustix::fs::fsetxattr(&file, "user.x", b"1", XattrFlags::empty()).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
        file.sync_all().unwrap();
        assert_eq!(text(&file), "012ab5", "{name}");
        let stat = file.metadata().unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()), (0o601, 7, 8, 0), "{name}");
        assert_eq!(rustix::fs::fgetxattr(&file, "user.x", &mut [0_u8; 4]).unwrap(), 1);
        u.write(name, "another");
        assert_eq!((text(&file), u.read(name)), ("012ab5".into(), "another".into()), "{name}");
        fs::remove_file(u.path(name)).unwrap();
    }
    assert_eq!(u.on_disk("0"), [".wh.low", ".wh.up"]);
    u.assert_no_temporaries(0);
    u.mounted.remount();
    assert_eq!(u.list(""), [""; 0]);
}

#[test]
fn a_file_that_a_rename_replaced_keeps_working() {
    let Some(u) = three_places() else { return };
    for name in PLACES {
        let (reader, writer) = (File::open(u.path(name)).unwrap(), read_write(&u.path(name)));
        u.write("new", "new");
        fs::rename(u.path("new"), u.path(name)).unwrap();
        writer.write_all_at(b"X", 0).unwrap();
        writer.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!((text(&reader), u.read(name)), ("X123456789".into(), "new".into()), "{name}");
        assert_eq!(reader.metadata().unwrap().nlink(), 0, "{name}");
        assert_eq!(u.mode(name), 0o644, "{name}: the new file is not touched");
    }
}

#[test]
fn every_handle_sees_one_file_over_copy_up() {
    let Some(mut u) = three_places() else { return };
    for name in PLACES {
        let early = File::open(u.path(name)).unwrap();
        assert_eq!(text(&early), "0123456789");
        let map = Mapping::new(&early, 10, Sharing::SharedReadOnly).unwrap();
        assert_eq!(map.read(0, 10), b"0123456789");
        let writer = read_write(&u.path(name));
        assert_eq!(text(&writer), "0123456789");
        let late = File::open(u.path(name)).unwrap();
        writer.write_all_at(b"ABC", 2).unwrap();
        for (who, handle) in [("early", &early), ("late", &late), ("writer", &writer)] {
            assert_eq!(text(handle), "01ABC56789", "{name}, {who}");
        }
        assert_eq!(map.read(0, 10), b"01ABC56789", "{name}: an early mapping");
        File::options().append(true).open(u.path(name)).unwrap().write_all(b"+").unwrap();
        writer.sync_all().unwrap();
        fs::set_permissions(u.path(name), fs::Permissions::from_mode(0o640)).unwrap();
        for handle in [&early, &late, &writer] {
            assert_eq!(
                (text(handle), handle.metadata().unwrap().mode() & 0o777),
                ("01ABC56789+".into(), 0o640),
                "{name}"
            );
        }
        u.write(name, "short");
        assert_eq!((text(&early), text(&writer)), ("short".into(), "short".into()), "{name}");
        drop((early, late, writer, map));
        assert_eq!(fs::read_to_string(u.at(format!("0/{name}"))).unwrap(), "short");
    }
    u.remount_and_compare();
    assert_eq!(u.read("low"), "short");
}

#[test]
fn open_handles_share_metadata_over_copy_up() {
    let Some(u) = three_places() else { return };
    for name in PLACES {
        let (reader, writer) = (File::open(u.path(name)).unwrap(), read_write(&u.path(name)));
        reader.set_permissions(fs::Permissions::from_mode(0o604)).unwrap();
        std::os::unix::fs::fchown(&reader, Some(3), Some(4)).unwrap();
        rustix::fs::fsetxattr(&reader, "user.y", b"y", XattrFlags::empty()).unwrap();
        writer.set_len(4).unwrap();
        let stat = u.stat(name);
        assert_eq!((stat.mode() & 0o777, stat.uid(), stat.gid(), stat.len()), (0o604, 3, 4, 4), "{name}");
        assert_eq!(text(&reader), "0123", "{name}");
        assert_eq!(reader.metadata().unwrap().ino(), stat.ino());
        assert!(fs::metadata(u.at(format!("0/{name}"))).unwrap().len() == 4);
    }
}

#[test]
fn a_shared_mapping_writes_the_file_and_never_the_branch_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", vec![b'.'; 20_000]).file("1/low", vec![b'.'; 20_000]);
    let mut u = branches.mount();
    for name in ["top", "low"] {
        let file = read_write(&u.path(name));
        let map = Mapping::new(&file, 20_000, Sharing::Shared).unwrap();
        drop(file);
        map.write(5000, b"mapped");
        assert_eq!(&u.read(name)[5000..5006], "mapped", "{name}: others see it");
        read_write(&u.path(name)).write_all_at(b"written", 9000).unwrap();
        assert_eq!(map.read(9000, 7), b"written", "{name}: it sees others");
        map.write(15_000, b"again");
        map.sync().unwrap();
        let disk = fs::read(u.at(format!("0/{name}"))).unwrap();
        assert_eq!(
            (&disk[5000..5006], &disk[9000..9007], &disk[15_000..15_005]),
            (&b"mapped"[..], &b"written"[..], &b"again"[..])
        );
        u.assert_read_only_branches_untouched();
    }
    u.remount_and_compare();
    assert_eq!(&u.read("low")[15_000..15_005], "again");
}

#[test]
fn a_mapping_outlives_the_name_and_the_descriptor() {
    let Some(u) = three_places() else { return };
    for name in PLACES {
        let file = read_write(&u.path(name));
        let map = Mapping::new(&file, 10, Sharing::Shared).unwrap();
        drop(file);
        map.write(0, b"a");
        fs::remove_file(u.path(name)).unwrap();
        map.write(1, b"b");
        map.sync().unwrap();
        assert_eq!(map.read(0, 10), b"ab23456789", "{name}");
        assert!(!u.exists(name));
    }
}

#[test]
fn a_private_mapping_changes_nothing() {
    let Some(u) = three_places() else { return };
    let file = File::open(u.path("low")).unwrap();
    let map = Mapping::new(&file, 10, Sharing::Private).unwrap();
    map.write(0, b"mine");
    assert_eq!(map.read(0, 6), b"mine45");
    drop(map);
    assert_eq!(u.read("low"), "0123456789");
    assert_eq!(u.on_disk("0"), ["top", "up"], "nothing was copied up");
}

#[test]
fn holes_and_data_are_found_on_every_branch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for path in ["0/top", "1/low"] {
        let file = File::create(branches.at(path)).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 256 << 10).unwrap();
    }
    let u = branches.mount();
    for (name, branch) in [("top", 0), ("low", 1)] {
        let (ours, theirs) = (File::open(u.path(name)).unwrap(), File::open(u.at(format!("{branch}/{name}"))).unwrap());
        for offset in [0, 1000, 256 << 10, (256 << 10) + 4096, (1 << 20) - 1] {
            for whence in [rustix::fs::SeekFrom::Data(offset), rustix::fs::SeekFrom::Hole(offset)] {
                let (found, expected) = (rustix::fs::seek(&ours, whence), rustix::fs::seek(&theirs, whence));
                assert_eq!(found, expected, "{name}: {whence:?}");
            }
        }
        assert_eq!(rustix::fs::seek(&ours, rustix::fs::SeekFrom::Data(1 << 20)).errno(), Errno::ENXIO);
    }
    assert_eq!(u.on_disk("0"), ["top"]);
}

#[test]
fn fallocate_has_its_modes() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", vec![7; 64 << 10]).file("1/low", vec![7; 64 << 10]);
    let mut u = branches.mount();
    for name in ["top", "low"] {
        let file = read_write(&u.path(name));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, 16 << 10, 16 << 10).unwrap();
        fallocate(&file, FallocateFlags::ZERO_RANGE, 40 << 10, 4 << 10).unwrap();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 64 << 10, 64 << 10).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 << 10, "{name}: the size is kept");
        let mut expected = vec![7; 64 << 10];
        expected[16 << 10..32 << 10].fill(0);
        expected[40 << 10..44 << 10].fill(0);
        assert_eq!(fs::read(u.path(name)).unwrap(), expected, "{name}");
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)), Ok(16 << 10), "{name}: it is a real hole");
        fallocate(&file, FallocateFlags::empty(), 0, 80 << 10).unwrap();
        assert_eq!(u.stat(name).len(), 80 << 10, "{name}");
        assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096).errno(), Errno::EOPNOTSUPP);
    }
    u.remount_and_compare();
}

#[test]
fn copy_file_range_copies_between_all_branches() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for (branch, from, to) in [(0, "top", "into-top"), (1, "low", "into-low")] {
        branches.file(format!("{branch}/{from}"), "0123456789").file(format!("{branch}/{to}"), "abcdefghij");
    }
    let mut u = branches.mount();
    for (from, to) in [("top", "into-low"), ("low", "into-top"), ("top", "top"), ("low", "low")] {
        let (source, target) = (File::open(u.path(from)).unwrap(), read_write(&u.path(to)));
        let (mut read, mut write) = (2, 6);
        let count = rustix::fs::copy_file_range(&source, Some(&mut read), &target, Some(&mut write), 3).unwrap();
        assert_eq!((count, read, write), (3, 5, 9), "{from} to {to}");
    }
    let contents = ["into-low", "into-top", "top", "low"].map(|name| u.read(name));
    assert_eq!(contents, ["abcdef234j", "abcdef234j", "0123452349", "0123452349"]);
    u.remount_and_compare();
}

#[test]
fn a_lock_is_held_over_copy_up_and_causes_none() {
    let Some(u) = three_places() else { return };
    for name in PLACES {
        let (holder, other) = (File::open(u.path(name)).unwrap(), File::open(u.path(name)).unwrap());
        holder.lock().unwrap();
        assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)), "{name}");
        assert_eq!(u.on_disk("0").contains(&"low".into()), name == "up", "a lock copies nothing");
        fs::write(u.path(name), "changed").unwrap();
        let late = File::open(u.path(name)).unwrap();
        assert!(matches!(late.try_lock(), Err(fs::TryLockError::WouldBlock)), "{name}: still locked after copy-up");
        holder.unlock().unwrap();
        late.try_lock().unwrap();
    }
}

#[test]
fn record_locks_exclude_each_other() {
    use nix::fcntl::{FcntlArg, fcntl};
    let Some(u) = three_places() else { return };
    for name in PLACES {
        let (first, second) = (read_write(&u.path(name)), read_write(&u.path(name)));
        let lock = |start, kind: i32| libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start,
            l_len: 2,
            l_pid: 0,
        };
        fcntl(&first, FcntlArg::F_OFD_SETLK(&lock(0, libc::F_WRLCK))).unwrap();
        assert_eq!(fcntl(&second, FcntlArg::F_OFD_SETLK(&lock(1, libc::F_RDLCK))).errno(), Errno::EAGAIN, "{name}");
        fcntl(&second, FcntlArg::F_OFD_SETLK(&lock(2, libc::F_WRLCK))).unwrap();
        fcntl(&first, FcntlArg::F_OFD_SETLK(&lock(0, libc::F_UNLCK))).unwrap();
        fcntl(&second, FcntlArg::F_OFD_SETLK(&lock(1, libc::F_RDLCK))).unwrap();
    }
}

#[test]
fn appending_writers_lose_nothing() {
    let Some(u) = three_places() else { return };
    for name in PLACES {
        thread::scope(|scope| {
            for writer in 0..8 {
                let u = &u;
                scope.spawn(move || {
                    let mut file = File::options().append(true).open(u.path(name)).unwrap();
                    (0..100).for_each(|line| file.write_all(format!("{writer}-{line:03}\n").as_bytes()).unwrap());
                });
            }
        });
        let mut lines: Vec<_> = u.read(name).lines().map(str::to_owned).collect();
        lines.sort();
        lines.dedup();
        assert_eq!((lines.len(), u.stat(name).len()), (800, 10 + 800 * 6), "{name}");
    }
}

#[test]
fn writing_beyond_the_end_leaves_zeros_between() {
    let Some(mut u) = three_places() else { return };
    for name in PLACES {
        let mut file = read_write(&u.path(name));
        file.seek(SeekFrom::Start(100_000)).unwrap();
        file.write_all(b"end").unwrap();
        file.set_len(200_000).unwrap();
        assert_eq!(file.read(&mut [0; 10]).unwrap(), 10);
        let bytes = fs::read(u.path(name)).unwrap();
        assert_eq!((bytes.len(), &bytes[..10], &bytes[100_000..100_003]), (200_000, &b"0123456789"[..], &b"end"[..]));
        assert!(bytes[10..100_000].iter().chain(&bytes[100_003..]).all(|byte| *byte == 0), "{name}");
        assert_eq!(file.read_at(&mut [0; 10], 200_000).unwrap(), 0, "{name}: end of file");
    }
    u.remount_and_compare();
}

#[test]
fn only_one_of_many_creates_exclusively() {
    let Some(u) = three_places() else { return };
    fs::remove_file(u.path("low")).unwrap();
    for name in ["fresh", "low"] {
        let winners: usize = thread::scope(|scope| {
            let create = || usize::from(File::create_new(u.path(name)).is_ok());
            let racers: Vec<_> = (0..16).map(|_| scope.spawn(create)).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(winners, 1, "{name}");
    }
}

#[test]
fn all_ways_of_opening_one_file_go_together() {
    let Some(u) = three_places() else { return };
    let open = |name: &str, way: usize| {
        let path = u.path(name);
        match way {
            0 => assert_eq!(fs::read(&path).unwrap().len(), 10),
            1 => read_write(&path).write_all_at(b"0", 0).unwrap(),
            2 => drop(File::options().append(true).open(&path).unwrap()),
            3 => {
                let map = Mapping::new(&File::open(&path).unwrap(), 10, Sharing::SharedReadOnly).unwrap();
                assert_eq!(map.read(5, 1), b"5");
            }
            4 => {
                let map = Mapping::new(&read_write(&path), 10, Sharing::Shared).unwrap();
                map.write(9, b"9");
            }
            5 => fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap(),
            6 => fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap(),
            _ => File::open(&path).unwrap().sync_all().unwrap(),
        }
    };
    thread::scope(|scope| {
        for worker in 0..6 {
            let open = &open;
            scope.spawn(move || {
                (0..400).for_each(|round| open(PLACES[(worker + round / 7) % 3], (worker * 3 + round) % 8))
            });
        }
    });
    PLACES.iter().for_each(|name| assert_eq!(u.read(name), "0123456789", "{name}"));
}

#[test]
fn a_removed_directory_that_is_open_is_empty_and_takes_nothing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/top").dir("1/low").dir("0/both").dir("1/both");
    let u = branches.mount();
    for name in ["top", "low", "both"] {
        let directory = File::open(u.path(name)).unwrap();
        fs::remove_dir(u.path(name)).unwrap();
        assert!(directory.metadata().unwrap().is_dir(), "{name}");
        let inside = Path::new("/proc/thread-self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&directory).to_string());
        assert_eq!(fs::write(inside.join("f"), "").errno(), Errno::ENOENT, "{name}");
        assert_eq!(fs::create_dir(inside.join("d")).errno(), Errno::ENOENT, "{name}");
        assert!(fs::read_dir(&inside).map_or(0, Iterator::count) == 0, "{name}");
        fs::create_dir(u.path(name)).unwrap();
        assert_ne!(u.stat(name).ino(), directory.metadata().unwrap().ino(), "{name}: another directory");
        assert_eq!(fs::write(inside.join("f"), "").errno(), Errno::ENOENT, "{name}: and the old one stays dead");
    }
}
