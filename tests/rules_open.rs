//! How files are opened in a union that nobody writes, and how writes are gathered in one that the kernel is given no
//! files of.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use harness::fixture::{Branches, Union};
use harness::mount::finish;
use harness::sandbox::{Medium, skip};
use harness::{Errno, ErrnoOf as _};
use rustix::fs::SeekFrom;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn has(u: &Union, line: &str) -> bool {
    let outcome = finish(Command::new(BIN).arg("show").arg(u.mounted.target()));
    outcome.stdout.lines().any(|shown| shown == line)
}

fn read_only(options: &[&str]) -> Option<Union> {
    let branches = Branches::new(BIN, &["ro+wh", "ro+wh"])?;
    branches
        .file("0/f", "above")
        .file("1/f", "below")
        .file("1/d/g", "0123456789")
        .file("1/sh", fs::read("/bin/sh").unwrap());
    branches.mode("1/sh", 0o755);
    Some(branches.mount_with(options))
}

#[test]
fn nobody_is_asked_for_an_open_where_nothing_is_written() {
    let Some(u) = read_only(&["open=auto", "share=auto"]) else { return };
    assert!(has(&u, "feature no_open"));
    assert_eq!((u.read("f"), u.read("d/g")), ("above".into(), "0123456789".into()));
    let alone = u.without_daemon(|| {
        for _ in 0..3 {
            assert_eq!(fs::read(u.path("f")).unwrap(), b"above");
            let mut bytes = [0; 3];
            File::open(u.path("d/g")).unwrap().read_exact_at(&mut bytes, 4).unwrap();
            assert_eq!(&bytes, b"456");
        }
    });
    assert!(alone, "the daemon was asked for what the kernel has");
}

#[test]
fn all_that_a_reader_does_works_without_a_handle() {
    let Some(u) = read_only(&["open=none"]) else { return };
    let file = File::open(u.path("d/g")).unwrap();
    file.sync_all().unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap(), 0);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap(), 10);
    assert_eq!(file.metadata().unwrap().len(), 10);
    assert_eq!(Command::new(u.path("sh")).args(["-c", "exit 7"]).status().unwrap().code(), Some(7));
    for open in
        [OpenOptions::new().write(true), OpenOptions::new().append(true), OpenOptions::new().write(true).create(true)]
    {
        assert_eq!(open.open(u.path("f")).errno(), Errno::EROFS);
    }
    assert_eq!(fs::set_permissions(u.path("f"), fs::Permissions::from_mode(0o600)).errno(), Errno::EROFS);
}

#[test]
fn there_is_room_for_more_files_than_are_kept_open() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["ro", "ro"]) else { return };
    for number in 0..2500 {
        branches.file(format!("{}/d/{number}", number % 2), number.to_string());
    }
    let u = branches.mount();
    for number in (0..2500).chain((0..2500).rev().step_by(3)) {
        assert_eq!(u.read(format!("d/{number}")), number.to_string());
    }
    let open = fs::read_dir(format!("/proc/{}/fd", u.mounted.pid())).unwrap().count();
    assert!(open < 1400, "{open} descriptors");
}

#[test]
fn opens_are_asked_for_where_it_is_said() {
    let Some(u) = read_only(&["open=message", "share=off"]) else { return };
    assert!(!has(&u, "feature no_open") && !has(&u, "feature passthrough"));
    assert!(has(&u, "option open=message") && has(&u, "option share=off"));
    assert_eq!(u.read("f"), "above");
    assert_eq!(OpenOptions::new().write(true).open(u.path("f")).errno(), Errno::EROFS);
}

#[test]
fn the_kernel_reads_files_by_itself_where_mounts_share_them() {
    let Some(u) = read_only(&["share=on", "passthrough=auto"]) else { return };
    if !has(&u, "feature passthrough") {
        return skip("the kernel takes no files: it is older than 6.9, or this is not root of the machine");
    }
    assert!(!has(&u, "feature no_open"));
    let file = File::open(u.path("d/g")).unwrap();
    let alone = u.without_daemon(|| {
        let mut bytes = [0; 10];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"0123456789");
    });
    assert!(alone, "it was read through the daemon");
}

/// A union whose writes are gathered.
fn gathering(medium: Medium) -> Option<Union> {
    let branches = Branches::on(medium, BIN, &["rw", "ro+wh"])?;
    branches.file("0/top", "0123456789").file("1/low", "0123456789").file("1/large", vec![7; 4 << 20]);
    let u = branches.mount_with(&["passthrough=off", "writeback=auto"]);
    assert!(has(&u, "feature writeback_cache"));
    Some(u)
}

#[test]
fn writes_are_gathered_and_reach_the_branch_when_the_file_is_closed() {
    let Some(mut u) = gathering(Medium::Disk) else { return };
    for name in ["top", "low"] {
        let file = OpenOptions::new().read(true).write(true).open(u.path(name)).unwrap();
        // the first one asks for what the kernel does not know yet
        file.write_all_at(b"0", 0).unwrap();
        let alone = u.without_daemon(|| (0..1000).for_each(|at| file.write_all_at(b"x", at).unwrap()));
        assert!(alone, "{name}: every write was a request");
        let shown = file.metadata().unwrap();
        assert_eq!(shown.len(), 1000);
        drop(file);
        let disk = fs::metadata(u.at("0").join(name)).unwrap();
        assert_eq!((disk.len(), disk.mtime(), disk.mtime_nsec()), (1000, shown.mtime(), shown.mtime_nsec()), "{name}");
    }
    u.remount_and_compare();
}

#[test]
fn commands_that_read_branches_see_what_was_gathered() {
    let Some(u) = gathering(Medium::Disk) else { return };
    let file = OpenOptions::new().write(true).open(u.path("top")).unwrap();
    for (number, command) in ["diff", "flush"].into_iter().enumerate() {
        file.write_all_at(command.as_bytes(), 4096 * (number as u64 + 1)).unwrap();
        let outcome = finish(Command::new(BIN).arg(command).arg(u.mounted.target()));
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        assert!(fs::read(u.at("0/top")).unwrap().ends_with(command.as_bytes()), "{command}");
    }
}

#[test]
fn removing_and_moving_a_file_below_copies_no_data_for_its_times() {
    let Some(u) = gathering(Medium::Disk) else { return };
    let file = File::open(u.path("large")).unwrap();
    fs::remove_file(u.path("large")).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    assert_eq!(u.on_disk("0"), [".wh.large", "top"]);
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().nlink()), (4 << 20, 0));
    u.assert_no_temporaries(0);
}

#[test]
fn a_full_disk_is_told_to_the_writer() {
    let Some(sandbox) = harness::sandbox::enter() else { return };
    assert!(sandbox.small_ext4("0", 8, &[]).is_dir());
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("1/low", "0123456789").file("1/large", vec![7; 16 << 20]);
    let u = branches.mount_with(&["passthrough=off"]);
    // room enough for the writes, but not for the copy that they need
    let file = OpenOptions::new().write(true).open(u.path("large")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(file.sync_all().errno(), Errno::ENOSPC);
    drop(file);
    assert_eq!(fs::metadata(u.path("large")).unwrap().len(), 16 << 20);
    let file = OpenOptions::new().write(true).open(u.path("low")).unwrap();
    let written = (0..16).try_for_each(|mebibyte| file.write_all_at(&vec![1; 1 << 20], mebibyte << 20));
    assert_eq!(written.and_then(|()| file.sync_all()).errno(), Errno::ENOSPC);
    u.assert_no_temporaries(0);
}

/// Files below, with sizes around those of a page and of what comes with an open.
fn small_files() -> Option<(Union, Vec<usize>)> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    let sizes = vec![0, 1, 4095, 4096, 4097, 20_000, 32 << 10, (32 << 10) + 1, 100_000];
    for size in &sizes {
        branches.file(format!("1/{size}"), pattern(*size));
    }
    Some((branches.mount(), sizes))
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7 + at) as u8).collect()
}

#[test]
fn small_files_of_lower_branches_come_with_their_open() {
    let Some((u, sizes)) = small_files() else { return };
    for size in sizes {
        let before = u.mounted.requests("READ");
        assert!(fs::read(u.path(size.to_string())).unwrap() == pattern(size), "{size}");
        let asked = u.mounted.requests("READ") - before;
        assert_eq!(asked == 0, size <= 32 << 10, "{size}: {asked} requests");
    }
}

/// What comes with an open must never be older than what somebody else has just written, through a handle or by name.
#[test]
fn content_that_comes_with_an_open_is_never_older_than_a_change() {
    const FILES: usize = 200;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let size = |file: usize| 1 + file * 41 % 9_000;
    for file in 0..FILES {
        branches.file(format!("1/{file}"), vec![b'o'; size(file)]);
    }
    let u = branches.mount();
    for file in 0..FILES {
        let path = u.path(file.to_string());
        // neither is the first one always
        let gate = Barrier::new(2);
        let changed: Vec<u8> = match file % 3 {
            0 => vec![b'o'; size(file) / 2],
            1 => vec![b'n'; size(file)],
            _ => [vec![b'o'; size(file)], vec![b'n'; 5_000]].concat(),
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.wait();
                match file % 3 {
                    0 => nix::unistd::truncate(&path, size(file) as i64 / 2).unwrap(),
                    1 => fs::write(&path, &changed).unwrap(),
                    _ => {
                        let open = OpenOptions::new().append(true).open(&path).unwrap();
                        open.write_all_at(&[b'n'; 5_000], size(file) as u64).unwrap();
                    }
                }
                assert!(fs::read(&path).unwrap() == changed, "{file}: what was written a moment ago");
            });
            gate.wait();
            fs::read(&path).unwrap();
        });
        assert!(fs::read(&path).unwrap() == changed, "{file}");
        assert_eq!(fs::metadata(&path).unwrap().len(), changed.len() as u64, "{file}");
    }
}
