//! `runionfs check`: what is wrong in the bookkeeping of branches, and what the mount says of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use harness::fixture::Branches;
use harness::mount::{Outcome, finish};
use harness::snapshot::{Exactness, Snapshot};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Breaks something.
type Breaking<T> = fn(&T);

/// Where something is found, how it is made, and what is said of it.
type Fault<T> = (&'static str, Breaking<T>, &'static str);

fn check(union: impl AsRef<OsStr>, options: &[&str]) -> Outcome {
    finish(Command::new(BIN).arg("check").args(options).arg(union))
}

/// Checks branches in which there is just this to find: a line that begins with a path in the sandbox and holds `what`.
#[track_caller]
fn assert_finds(branches: &Branches, path: &str, what: &str) {
    let before = Snapshot::take(&branches.at(""));
    let outcome = check(branches.string(), &[]);
    before.assert_same(&Snapshot::take(&branches.at("")), Exactness::Untouched, "a check changed something");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let is_note = what.starts_with("note: ");
    let (note, what) = if is_note { ("note: ", &what[6..]) } else { ("", what) };
    let start = format!("{note}{}: ", branches.at(path).display());
    assert!(lines.len() == 1 && lines[0].starts_with(&start) && lines[0].contains(what), "{path}: {lines:#?}");
    assert_eq!((outcome.status, &*outcome.stderr), (Some(i32::from(!is_note)), ""));
    let quiet = check(branches.string(), &["-q"]);
    assert_eq!((quiet.status, quiet.stdout.is_empty()), (Some(i32::from(!is_note)), is_note));
}

#[track_caller]
fn assert_finds_nothing(union: impl AsRef<OsStr>) {
    let outcome = check(union, &[]);
    assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""));
}

#[test]
fn a_branch_that_is_or_was_used_has_nothing_wrong() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let long = "n".repeat(253);
    branches.file("1/d/f", "").file("1/d/g", "").file("1/gone", "").file("1/x", "x").hard_link("1/x", "1/d/y");
    branches.file(format!("1/{long}"), "").file("0/.wh..wh.aufs", "").dir("0/.wh..wh.plnk").dir("0/.wh..wh.orph");
    let mut union = branches.mount();
    fs::remove_file(union.path("gone")).unwrap();
    fs::remove_file(union.path(&long)).unwrap();
    union.write("x", "changed");
    fs::rename(union.path("d"), union.path("moved")).unwrap();
    fs::rename(union.path("moved/f"), union.path("f")).unwrap();
    assert_finds_nothing(union.path(""));
    union.mounted.umount();
    assert_finds_nothing(union.branches().string());
    assert_finds_nothing(union.at("0"));
}

#[test]
fn wrong_marks_are_found() {
    let table: &[Fault<Branches>] = &[
        (
            "0/.wh.a",
            |b| {
                b.dir("0/.wh.a");
            },
            "a mark is a regular file",
        ),
        ("0/d/.wh..wh..opq", |b| symlink_to(b, "0/d/.wh..wh..opq", "x"), "a mark is a regular file"),
        (
            "0/.wh..wh.long.00",
            |b| {
                b.file("0/.wh..wh.long.00", "name");
            },
            "hides nothing",
        ),
        (
            "0/.wh.a",
            |b| {
                b.file("0/a", "").whiteout("0/a");
            },
            "note: beside its name",
        ),
        (
            "0/d/.wh.a",
            |b| {
                b.opaque("0/d").whiteout("0/d/a");
            },
            "note: in an opaque directory",
        ),
        (
            "0/d/.wh..wh.x.12ab",
            |b| {
                b.file("0/d/.wh..wh.x.12ab", "");
            },
            "note: kept for marks",
        ),
        (
            "0/d/.wh..wh.runionfs",
            |b| {
                b.dir("0/d/.wh..wh.runionfs");
            },
            "note: kept for marks",
        ),
    ];
    for (path, make, what) in table {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        make(&branches);
        assert_finds(&branches, path, what);
    }
}

fn symlink_to(branches: &Branches, path: &str, target: &str) {
    branches.dir(Path::new(path).parent().unwrap());
    symlink(target, branches.at(path)).unwrap();
}

#[test]
fn records_of_renamed_directories_are_followed() {
    let table: &[(Breaking<Branches>, &str)] = &[
        (|b| symlink_to(b, "0/moved/.wh..wh.redirect", "nowhere"), "no directory 'nowhere'"),
        (|b| symlink_to(b, "0/moved/.wh..wh.redirect", "file"), "no directory 'file'"),
        (|b| symlink_to(b, "0/moved/.wh..wh.redirect", "/d"), "no place of a directory"),
        (|b| symlink_to(b, "0/moved/.wh..wh.redirect", "d/../.."), "no place of a directory"),
        (
            |b| {
                b.file("0/moved/.wh..wh.redirect", "d");
            },
            "symbolic link",
        ),
        (
            |b| {
                symlink_to(b, "0/moved/.wh..wh.redirect", "d");
                fs::remove_file(b.at("0/.wh..wh.redirects")).unwrap();
            },
            "does not count",
        ),
    ];
    for (make, what) in table {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
        branches.file("2/d/f", "").file("1/file", "").file("2/file/f", "").file("0/.wh..wh.redirects", "");
        make(&branches);
        assert_finds(&branches, "0/moved/.wh..wh.redirect", what);
    }
}

#[test]
fn faults_of_a_work_area_are_found() {
    let table: &[Fault<Path>] = &[
        ("numbers", |area| fs::write(area.join("numbers"), "no table at all").unwrap(), "some numbers change"),
        ("volatile", |area| fs::write(area.join("volatile"), "").unwrap(), "cannot be trusted"),
        ("tmp", |area| fs::write(area.join("tmp/17"), "").unwrap(), "note: 1 temporary entries"),
        ("links/0000000000000011.o", |area| write(area, "0000000000000011.o", "short"), "cannot be read"),
        ("links/0000000000000011", |area| write(area, "0000000000000011", ""), "note: without a record"),
        ("links/0000000000000011", |area| fs::create_dir(area.join("links/0000000000000011")).unwrap(), "a hard link"),
        ("links/x.o", |area| write(area, "x.o", ""), "no record"),
    ];
    for (name, make, what) in table {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        let mut union = branches.mount();
        union.mounted.umount();
        make(&union.at("0/.wh..wh.runionfs"));
        assert_finds(union.branches(), &format!("0/.wh..wh.runionfs/{name}"), what);
    }
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    branches.file("0/.wh..wh.runionfs", "");
    assert_finds(&branches, "0/.wh..wh.runionfs", "should be a directory");
}

fn write(area: &Path, name: &str, content: &str) {
    fs::write(area.join("links").join(name), content).unwrap();
}

#[test]
fn a_work_area_elsewhere_is_checked_there() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    fs::create_dir(branches.at("work")).unwrap();
    let workdir = format!("workdir={}", branches.at("work").display());
    let union = branches.mount_with(&[&workdir]);
    assert_finds_nothing(union.path(""));
    fs::write(union.at("work/.wh..wh.runionfs/links/x"), "").unwrap();
    let outcome = check(union.path(""), &[]);
    assert_eq!(outcome.status, Some(1));
    assert!(outcome.stdout.contains("/work/.wh..wh.runionfs/links/x: it is no record"), "{}", outcome.stdout);
}

#[test]
fn what_aufs_left_is_named_by_the_mount_by_check_and_by_export() {
    let table: &[(&str, &str)] = &[(".wh..wh.plnk/11.12", "auplink"), (".wh..wh.hino", "AuFS renamed")];
    for (file, what) in table {
        for branch in ["0", "1"] {
            let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
            branches.file(format!("{branch}/{file}"), "");
            let name = format!("{branch}/{}", file.split('/').next().unwrap());
            assert_finds(&branches, &name, what);
            let target = branches.at("mnt");
            let mount = finish(Command::new(BIN).arg("mount").arg(branches.string()).arg(&target));
            assert_eq!((mount.status, mount.stderr.lines().count()), (Some(0), 1), "{mount:?}");
            assert!(mount.stderr.contains(&name) && mount.stderr.contains(what), "{}", mount.stderr);
            assert!(harness::snapshot::names(&target).unwrap().is_empty());
            let umount = finish(Command::new(BIN).arg("umount").arg(&target));
            assert_eq!((umount.status, &*umount.stderr), (Some(0), ""));
            let export = finish(Command::new(BIN).arg("export").arg(branches.at(branch)).args(["-o", "/dev/null"]));
            assert_eq!((export.status, export.stderr.lines().count()), (Some(0), 1), "{export:?}");
            assert!(export.stderr.contains(what), "{}", export.stderr);
        }
    }
    // one in a renamed directory, which only a look at the whole tree finds; removed files, which nobody misses
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("0/d/.wh..wh..dr.1", "");
    assert_finds(&branches, "0/d/.wh..wh..dr.1", "AuFS renamed");
    fs::remove_file(branches.at("0/d/.wh..wh..dr.1")).unwrap();
    branches.file("0/.wh..wh.orph/x", "");
    assert_finds(&branches, "0/.wh..wh.orph", "note: can be removed");
}

#[test]
fn what_cannot_be_checked_is_said_in_one_line() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    let nowhere = check(branches.at("nowhere"), &[]);
    assert_eq!((nowhere.status, nowhere.stderr.lines().count()), (Some(1), 1), "{nowhere:?}");
    assert_eq!(finish(Command::new(BIN).arg("check")).status, Some(2));
    // a name with an end of line in it is still one line
    branches.dir("0/a\nb");
    branches.dir("0/a\nb/.wh.x");
    let outcome = check(branches.string(), &[]);
    assert_eq!((outcome.status, outcome.stdout.lines().count()), (Some(1), 1), "{outcome:?}");
}
