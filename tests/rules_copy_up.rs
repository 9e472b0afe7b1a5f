//! Rules 27 to 30: what brings an entry up, and that everything of it comes along.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::sandbox::{Medium, run};
use harness::snapshot::{Entry, Exactness, Snapshot};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Timespec, Timestamps, XattrFlags, utimensat};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Something done to a file of the union.
type Action = fn(&Union, &Path);

fn append(path: &Path) -> fs::File {
    fs::File::options().append(true).open(path).unwrap()
}

#[test]
fn every_change_brings_the_file_up() {
    let changes: &[(&str, Action)] = &[
        ("write", |_, path| append(path).write_all(b"x").unwrap()),
        ("open with O_TRUNC", |_, path| drop(fs::File::create(path).unwrap())),
        ("truncate", |_, path| nix::unistd::truncate(path, 2).unwrap()),
        ("ftruncate", |_, path| append(path).set_len(2).unwrap()),
        ("fallocate", |_, path| {
            rustix::fs::fallocate(append(path), FallocateFlags::empty(), 0, 100).unwrap();
        }),
        ("copy_file_range into", |u, path| {
            let (from, to) =
                (fs::File::open(u.path("source")).unwrap(), fs::File::options().write(true).open(path).unwrap());
            assert_eq!(rustix::fs::copy_file_range(&from, None, &to, None, 3).unwrap(), 3);
        }),
        ("chmod", |_, path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap()),
        ("chown", |_, path| std::os::unix::fs::chown(path, Some(9), Some(9)).unwrap()),
        ("utimens", |_, path| append_times(path)),
        ("setxattr", |_, path| rustix::fs::setxattr(path, "user.new", b"1", XattrFlags::empty()).unwrap()),
        ("removexattr", |_, path| rustix::fs::removexattr(path, "user.old").unwrap()),
        ("setfacl", |_, path| run(Command::new("setfacl").args(["-m", "u:1234:rwx"]).arg(path))),
        ("link", |u, path| fs::hard_link(path, u.path("link")).unwrap()),
        ("rename", |u, path| fs::rename(path, u.path("d/renamed")).unwrap()),
    ];
    for (name, change) in changes {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        branches.file("1/d/f", "content").file("1/source", "abc");
        rustix::fs::setxattr(branches.at("1/d/f"), "user.old", b"1", XattrFlags::empty()).unwrap();
        let mut u = branches.mount();
        change(&u, &u.path("d/f"));
        assert!(u.on_disk("0/d").iter().any(|entry| !entry.starts_with(".wh.")), "{name} brings it up");
        u.assert_no_temporaries(0);
        u.remount_and_compare();
    }
}

fn append_times(path: &Path) {
    let time = Timespec { tv_sec: 1_234_567_890, tv_nsec: 123_456_789 };
    utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty()).unwrap();
}

#[test]
fn reading_never_brings_anything_up() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches
        .file("1/d/f", "content")
        .symlink("1/d/l", "f")
        .file("1/d/script", "#!/bin/sh\nexit 3\n")
        .mode("1/d/script", 0o755);
    let u = branches.mount();
    let mut file = fs::File::open(u.path("d/f")).unwrap();
    file.read_to_end(&mut Vec::new()).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.sync_all().unwrap();
    file.lock().unwrap();
    drop(file);
    assert_eq!(fs::read_link(u.path("d/l")).unwrap(), Path::new("f"));
    harness::snapshot::xattrs(&u.path("d/f")).unwrap();
    nix::unistd::access(&u.path("d/f"), nix::unistd::AccessFlags::W_OK).unwrap();
    assert_eq!(Command::new(u.path("d/script")).status().unwrap().code(), Some(3));
    u.list("d").iter().for_each(|name| drop(u.stat(Path::new("d").join(name))));
    let path = fs::File::options().read(true).custom_flags(libc::O_PATH).open(u.path("d/f")).unwrap();
    path.metadata().unwrap();
    assert_eq!(u.on_disk("0"), [""; 0]);
    u.assert_read_only_branches_untouched();
}

#[test]
fn parents_come_up_first_with_everything_they_have() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let modes = [("1/a", 0o1777), ("1/a/b", 0o2770), ("1/a/b/c", 0o700), ("1/a/b/c/d", 0o3711), ("1/a/b/c/d/e", 0o0)];
    branches.file("1/a/b/c/d/e/f", "x");
    for (number, (path, mode)) in (10..).zip(modes) {
        branches.owner(path, number, number + 1).mode(path, mode);
        rustix::fs::setxattr(branches.at(path), "user.number", &[number as u8], XattrFlags::empty()).unwrap();
    }
    run(Command::new("setfacl").args(["-m", "u:1234:rwx,d:u:4321:r-x"]).arg(branches.at("1/a/b")));
    for (path, _) in modes.iter().rev() {
        append_times(&branches.at(path));
    }
    let mut u = branches.mount();
    let before = Snapshot::take(&u.path(""));
    append(&u.path("a/b/c/d/e/f")).write_all(b"y").unwrap();
    let (after, disk) = (Snapshot::take(&u.path("")), Snapshot::take(&u.at("0")).without_work_area());
    let without_file = |tree: Snapshot| tree.without(|path| path.ends_with("f"));
    let before = without_file(before);
    before.assert_same(&without_file(after), Exactness::Equal, "copy-up changed a parent");
    let but_root = |tree: Snapshot| tree.entries.into_iter().filter(|(path, _)| !path.as_os_str().is_empty());
    let expected: BTreeMap<_, Entry> = but_root(before).collect();
    let found: BTreeMap<_, Entry> = but_root(without_file(disk)).collect();
    Snapshot { entries: expected }.assert_same(&Snapshot { entries: found }, Exactness::Equal, "on disk");
    u.remount_and_compare();
}

#[test]
fn a_file_comes_up_with_everything_it_has() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", vec![5; 300_000]).owner("1/d/f", 12, 34).mode("1/d/f", 0o6751);
    let path = branches.at("1/d/f");
    for (name, value) in [("user.a", &b"1"[..]), ("trusted.b", b"\0\xff"), ("user.empty", b"")] {
        rustix::fs::setxattr(&path, name, value, XattrFlags::empty()).unwrap();
    }
    rustix::fs::setxattr(&path, &b"user.\xff\xfe"[..], b"no UTF-8", XattrFlags::empty()).unwrap();
    run(Command::new("setfacl").args(["-m", "u:1234:r--"]).arg(&path));
    append_times(&path);
    append_times(&branches.at("1/d"));
    let mut u = branches.mount();
    let before = Snapshot::take(&u.path(""));
    // A chmod to the mode that it has: everything else must stay as it is.
    fs::set_permissions(u.path("d/f"), u.stat("d/f").permissions()).unwrap();
    assert_eq!(u.on_disk("0/d"), ["f"]);
    before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "copy-up lost something");
    assert_eq!(u.stat("d/f").atime(), 1_234_567_890, "atime comes along");
    u.remount_and_compare();
    before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "a remount lost something");
}

#[test]
fn capabilities_survive_copy_up() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    // VFS_CAP_REVISION_2, effective, cap_net_raw: see capabilities(7) and linux/capability.h.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    branches.file("1/ping", "x").owner("1/ping", 7, 7).mode("1/ping", 0o755);
    rustix::fs::setxattr(branches.at("1/ping"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    let mut u = branches.mount();
    rustix::fs::setxattr(u.path("ping"), "user.x", b"", XattrFlags::empty()).unwrap();
    u.mounted.remount();
    assert_eq!(harness::snapshot::xattrs(&u.path("ping")).unwrap()[OsStr::new("security.capability")], &capability);
    assert_eq!((u.stat("ping").uid(), u.stat("ping").gid()), (7, 7));
}

#[test]
fn symlinks_devices_fifos_and_sockets_come_up_with_their_attributes() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let make = |name: &str, kind, device| {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
        nix::sys::stat::mknod(&branches.at(format!("1/{name}")), kind, mode, device).unwrap();
    };
    use nix::sys::stat::{SFlag, makedev};
    make("fifo", SFlag::S_IFIFO, 0);
    make("socket", SFlag::S_IFSOCK, 0);
    make("char", SFlag::S_IFCHR, makedev(1, 7));
    make("block", SFlag::S_IFBLK, makedev(259, 300_000));
    symlink("x".repeat(3000), branches.at("1/link")).unwrap();
    let names = ["fifo", "socket", "char", "block", "link"];
    let time = Timespec { tv_sec: 1_000_000_007, tv_nsec: 987_654_321 };
    let times = Timestamps { last_access: time, last_modification: time };
    for name in names {
        rustix::fs::lsetxattr(branches.at(format!("1/{name}")), "trusted.t", name.as_bytes(), XattrFlags::empty())
            .unwrap();
        utimensat(CWD, branches.at(format!("1/{name}")), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let mut u = branches.mount();
    let before = Snapshot::take(&u.path(""));
    for name in names {
        // A chown to the owner that it has: everything else must stay as it is.
        std::os::unix::fs::lchown(u.path(name), Some(0), Some(0)).unwrap();
    }
    assert_eq!(u.on_disk("0").len(), 5);
    before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "copy-up lost something");
    u.remount_and_compare();
}

#[test]
fn holes_stay_holes() {
    let Some(sandbox) = harness::sandbox::enter() else { return };
    // A top that has no room for a hole made of zeros.
    drop(sandbox.small_ext4("0", 8, &[]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    let file = fs::File::create(branches.at("1/sparse")).unwrap();
    file.set_len(256 << 20).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"middle", 100 << 20).unwrap();
    fs::File::create(branches.at("1/empty-but-long")).unwrap().set_len(512 << 20).unwrap();
    let u = branches.mount();
    for name in ["sparse", "empty-but-long"] {
        fs::set_permissions(u.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        let (top, low) =
            (fs::metadata(u.at(format!("0/{name}"))).unwrap(), fs::metadata(u.at(format!("1/{name}"))).unwrap());
        assert_eq!(top.len(), low.len());
        assert!(top.blocks() <= low.blocks() + 16, "{name}: {} blocks became {}", low.blocks(), top.blocks());
        assert_eq!(u.stat(name).blocks(), top.blocks());
    }
    let mut bytes = [0; 6];
    fs::File::open(u.path("sparse")).unwrap().read_exact_at(&mut bytes, 100 << 20).unwrap();
    assert_eq!(&bytes, b"middle");
}

#[test]
fn truncation_copies_only_what_survives() {
    let Some(sandbox) = harness::sandbox::enter() else { return };
    drop(sandbox.small_ext4("0", 8, &[]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    for name in ["trunc", "truncate", "ftruncate", "create"] {
        branches.file(format!("1/{name}"), vec![b'x'; 32 << 20]);
    }
    let u = branches.mount();
    drop(fs::File::options().write(true).truncate(true).open(u.path("trunc")).unwrap());
    nix::unistd::truncate(&u.path("truncate"), 1000).unwrap();
    fs::File::create(u.path("create")).unwrap().write_all(b"new").unwrap();
    assert_eq!(u.stat("trunc").len(), 0);
    assert_eq!(u.read("truncate"), "x".repeat(1000));
    assert_eq!(u.read("create"), "new");
    u.assert_no_temporaries(0);
}

#[test]
fn the_parents_times_are_restored() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "x").file("0/e/old", "").file("1/e/f", "x");
    append_times(&branches.at("1/d"));
    append_times(&branches.at("0/e"));
    let u = branches.mount();
    append(&u.path("d/f")).write_all(b"y").unwrap();
    append(&u.path("e/f")).write_all(b"y").unwrap();
    for directory in ["d", "e"] {
        assert_eq!(
            (u.stat(directory).mtime(), u.stat(directory).mtime_nsec()),
            (1_234_567_890, 123_456_789),
            "{directory}"
        );
    }
}

#[test]
fn many_triggers_copy_once() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", vec![b'.'; 32 << 20]);
    let u = branches.mount();
    thread::scope(|scope| {
        for writer in 0..16_u8 {
            let u = &u;
            scope.spawn(move || {
                let file = fs::File::options().write(true).open(u.path("f")).unwrap();
                file.write_all_at(&[b'a' + writer], u64::from(writer) << 20).unwrap();
            });
        }
    });
    // Two copies would have lost the writes of the one that came second.
    let bytes = fs::read(u.path("f")).unwrap();
    let written: Vec<u8> = (0..16).map(|writer| bytes[writer << 20]).collect();
    assert_eq!(written, (b'a'..=b'p').collect::<Vec<_>>());
    assert_eq!(bytes.iter().filter(|byte| **byte == b'.').count(), (32 << 20) - 16);
    assert_eq!(bytes, fs::read(u.at("0/f")).unwrap());
    u.assert_no_temporaries(0);
}

#[test]
fn a_long_copy_stalls_nobody_else() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    // More copies than event loops, in the directory in which others work.
    for large in ["large0", "large1", "large2", "large3"] {
        branches.file(format!("1/d/{large}"), vec![1; 128 << 20]);
    }
    for number in 0..500 {
        branches.file(format!("1/d/{number}"), "small");
    }
    let u = branches.mount_with(&["threads=2"]);
    let copy = |number| {
        fs::set_permissions(u.path(format!("d/large{number}")), fs::Permissions::from_mode(0o600)).unwrap();
    };
    let during = thread::scope(|scope| {
        let copiers: Vec<_> = (0..4).map(|number| scope.spawn(move || copy(number))).collect();
        let copying = || (u.prepared(0) > 1).then_some(());
        harness::mount::poll(Duration::from_secs(30), || {
            copying().or_else(|| copiers.iter().any(thread::ScopedJoinHandle::is_finished).then_some(()))
        });
        let read_while_all_copy = |number: &u32| {
            // Each of these is looked up, opened and read by requests of its own: nothing was seen before.
            assert_eq!(u.read(format!("d/{number}")), "small");
            !copiers.iter().any(thread::ScopedJoinHandle::is_finished)
        };
        (0..500).take_while(read_while_all_copy).count()
    });
    assert!(during > 5, "{during} files could be read while others were copied");
    for number in 0..4 {
        assert_eq!(fs::metadata(u.at(format!("0/d/large{number}"))).unwrap().len(), 128 << 20);
    }
    u.assert_no_temporaries(0);
}

#[test]
fn a_file_that_changes_its_name_while_it_is_copied_is_torn_in_no_way() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..24 {
        branches.file(format!("1/{number}"), vec![b'x'; 4 << 20]);
    }
    let mut u = branches.mount();
    for number in 0..24 {
        let path = u.path(number.to_string());
        thread::scope(|scope| {
            scope.spawn(|| {
                // It may be gone already; what was opened in time must be whole.
                let Ok(file) = File::options().read(true).write(true).open(&path) else { return };
                file.write_all_at(b"y", 0).unwrap();
                assert_eq!(file.metadata().unwrap().len(), 4 << 20);
            });
            scope.spawn(|| match number % 3 {
                0 => fs::remove_file(&path).unwrap(),
                1 => fs::rename(&path, u.path(format!("moved{number}"))).unwrap(),
                _ => nix::unistd::truncate(&path, 4 << 20).unwrap(),
            });
        });
    }
    let expected = |number: usize| match number % 3 {
        0 => None,
        1 => Some(format!("moved{number}")),
        _ => Some(number.to_string()),
    };
    let mut names: Vec<String> = (0..24).filter_map(expected).collect();
    names.sort();
    assert_eq!(u.list(""), names);
    for name in names {
        let bytes = fs::read(u.path(&name)).unwrap();
        assert_eq!((bytes.len(), bytes[1..].iter().all(|byte| *byte == b'x')), (4 << 20, true), "{name}");
    }
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn a_copy_that_a_crash_cuts_off_is_cleaned_up() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/large", vec![b'x'; 256 << 20]);
    let mut u = branches.mount();
    let path = u.path("d/large");
    let copier = thread::spawn(move || fs::set_permissions(path, fs::Permissions::from_mode(0o600)));
    let begun =
        harness::mount::poll(Duration::from_secs(30), || (u.prepared(0) > 0 || copier.is_finished()).then_some(()));
    assert!(begun.is_some());
    u.mounted.kill9();
    let finished = copier.join().unwrap().is_ok();
    run(Command::new("umount").arg("-l").arg(u.path("")));
    u.mounted.mount_again();
    u.assert_no_temporaries(0);
    assert_eq!((u.mode("d/large"), u.stat("d/large").len()), (if finished { 0o600 } else { 0o644 }, 256 << 20));
    u.remount_and_compare();
}
