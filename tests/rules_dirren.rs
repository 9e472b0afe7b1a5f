//! Rules 23 and 25: directories with content below are renamed in one step, and what that leaves on the disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use harness::fixture::{Branches, Union};
use harness::sandbox::Medium;
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{CWD, RenameFlags, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const RECORD: &str = ".wh..wh.redirect";
const RECORDS: &str = ".wh..wh.redirects";

fn rename(u: &Union, from: &str, to: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, u.path(from), CWD, u.path(to), flags)
}

#[track_caller]
fn mv(u: &Union, from: &str, to: &str) {
    rename(u, from, to, RenameFlags::empty()).unwrap_or_else(|errno| panic!("mv {from} {to}: {errno}"));
}

/// What the record of a directory of a branch says.
#[track_caller]
fn record(u: &Union, path: &str) -> PathBuf {
    fs::read_link(u.at(path).join(RECORD)).unwrap_or_else(|error| panic!("the record of {path}: {error}"))
}

/// The names on disk, but for the marker that there are records.
fn on_disk(u: &Union, path: &str) -> Vec<String> {
    u.on_disk(path).into_iter().filter(|name| name != RECORDS).collect()
}

#[test]
fn a_directory_with_content_below_is_renamed_without_copying() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("1/lib/python3/os.py", "os").file("2/lib/python3/deep/er/re.py", "re").mode("1/lib/python3", 0o750);
    branches.file("0/merged/y", "y").file("1/merged/z", "z").whiteout("0/merged/w").file("1/merged/w", "w");
    let mut u = branches.mount();
    let numbers = [u.stat("lib/python3").ino(), u.stat("lib/python3/deep/er/re.py").ino()];
    mv(&u, "lib/python3", "lib/python3x");
    mv(&u, "merged", "moved");
    assert_eq!((u.list("lib"), u.mode("lib/python3x")), (vec!["python3x".into()], 0o750));
    assert_eq!((u.read("lib/python3x/os.py"), u.read("lib/python3x/deep/er/re.py")), ("os".into(), "re".into()));
    assert_eq!(u.list("moved"), ["y", "z"]);
    assert_eq!([u.stat("lib/python3x").ino(), u.stat("lib/python3x/deep/er/re.py").ino()], numbers);
    assert_eq!(on_disk(&u, "0/lib"), [".wh.python3", "python3x"]);
    assert_eq!(on_disk(&u, "0/lib/python3x"), [RECORD], "nothing is copied");
    assert_eq!(record(&u, "0/lib/python3x"), PathBuf::from("lib/python3"));
    u.remount_and_compare();
    assert_eq!([u.stat("lib/python3x").ino(), u.stat("lib/python3x/deep/er/re.py").ino()], numbers, "remount");
    mv(&u, "lib/python3x", "lib/python3");
    assert_eq!(u.read("lib/python3/deep/er/re.py"), "re");
    assert_eq!(on_disk(&u, "0/lib"), ["python3"], "there and back again");
    u.remount_and_compare();
}

#[test]
fn with_dirren_off_it_is_exdev_and_mv_copies() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low/sub/x", "x").mode("1/low", 0o750).file("0/merged/y", "y").file("1/merged/z", "z");
    branches.file("0/f", "");
    let mut u = branches.mount_with(&["dirren=off"]);
    for directory in ["low", "merged"] {
        assert_eq!(fs::rename(u.path(directory), u.path("moved")).errno(), Errno::EXDEV, "{directory}");
        assert_eq!(rename(&u, "f", directory, RenameFlags::EXCHANGE).errno(), Errno::EXDEV, "{directory}");
        assert_eq!(rename(&u, directory, "f", RenameFlags::EXCHANGE).errno(), Errno::EXDEV, "{directory}");
    }
    assert_eq!(on_disk(&u, "0"), ["f", "merged"]);
    harness::sandbox::run(Command::new("mv").arg(u.path("low")).arg(u.path("moved")));
    assert_eq!((u.read("moved/sub/x"), u.mode("moved")), ("x".into(), 0o750));
    assert!(!u.exists("low"));
    u.remount_and_compare();
}

#[test]
fn a_moved_directory_moves_on_and_its_children_move_out_of_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a/f", "f").file("1/a/b/g", "g").file("1/a/b/c/h", "h").dir("1/z");
    let mut u = branches.mount();
    mv(&u, "a", "q");
    mv(&u, "q", "z/r");
    assert_eq!(record(&u, "0/z/r"), PathBuf::from("a"), "a further move keeps the record");
    mv(&u, "z/r/b", "z/b");
    assert_eq!(record(&u, "0/z/b"), PathBuf::from("a/b"), "a child has its own, from its parent's");
    mv(&u, "z/b/c", "z/r/d");
    assert_eq!(record(&u, "0/z/r/d"), PathBuf::from("a/b/c"));
    fs::remove_file(u.path("z/r/f")).unwrap();
    u.write("z/b/g", "changed");
    assert_eq!((u.list("z/r"), u.list("z/b"), u.read("z/r/d/h")), (vec!["d".into()], vec!["g".into()], "h".into()));
    u.remount_and_compare();
    assert_eq!(u.read("z/b/g"), "changed");
    fs::remove_dir_all(u.path("z")).unwrap();
    assert_eq!((u.list(""), on_disk(&u, "0")), (vec![], vec![".wh.a".into(), ".wh.z".into()]));
    u.remount_and_compare();
}

#[test]
fn a_record_is_found_through_the_records_of_branches_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh", "ro+wh"]) else { return };
    // branch 1 moved a to b, branch 2 moved c to a
    branches.file("3/c/f", "f").file("3/c/s/g", "g").whiteout("2/c").dir("2/a").whiteout("1/a").file("1/b/h", "h");
    for (branch, path, place) in [("2", "a", "c"), ("1", "b", "a")] {
        branches.file(format!("{branch}/{RECORDS}"), "");
        symlink(place, branches.at(format!("{branch}/{path}/{RECORD}"))).unwrap();
    }
    let mut u = branches.mount();
    assert_eq!((u.list(""), u.list("b")), (vec!["b".into()], vec!["f".into(), "h".into(), "s".into()]));
    mv(&u, "b", "e");
    mv(&u, "e/s", "t");
    assert_eq!((record(&u, "0/e"), record(&u, "0/t")), (PathBuf::from("b"), PathBuf::from("b/s")));
    assert_eq!((u.list("e"), u.read("t/g")), (vec!["f".into(), "h".into()], "g".into()));
    u.remount_and_compare();
}

#[test]
fn the_old_name_is_free_for_something_else() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a/f", "old").file("1/b/x", "x");
    let mut u = branches.mount();
    mv(&u, "a", "c");
    fs::create_dir(u.path("a")).unwrap();
    assert_eq!(u.list("a"), [""; 0]);
    u.write("a/f", "new");
    mv(&u, "b", "a/b");
    u.remount_and_compare();
    assert_eq!((u.read("a/f"), u.read("c/f"), u.read("a/b/x")), ("new".into(), "old".into(), "x".into()));
    mv(&u, "a", "d");
    u.write("a", "a file");
    assert_eq!((u.list("d"), u.read("a")), (vec!["b".into(), "f".into()], "a file".into()));
    u.remount_and_compare();
}

#[test]
fn an_empty_target_is_replaced_whatever_made_it_empty() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low/x", "x").file("1/emptied/y", "y").file("1/source/z", "z").file("1/source2/z2", "z2");
    branches.file("1/moved/v", "v");
    let mut u = branches.mount();
    fs::remove_file(u.path("emptied/y")).unwrap();
    mv(&u, "source", "emptied");
    assert_eq!(u.list("emptied"), ["z"]);
    // one that was moved, and then emptied
    mv(&u, "moved", "target");
    fs::remove_file(u.path("target/v")).unwrap();
    assert_eq!(fs::rename(u.path("target"), u.path("low")).errno(), Errno::ENOTEMPTY);
    mv(&u, "source2", "target");
    assert_eq!(
        (u.list("target"), u.list("")),
        (vec!["z2".into()], vec!["emptied".into(), "low".into(), "target".into()])
    );
    assert_eq!(on_disk(&u, "0/target"), [RECORD]);
    u.remount_and_compare();
}

#[test]
fn exchange_takes_directories_with_content_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low/x", "x").file("0/merged/y", "y").file("1/merged/z", "z").file("0/f", "f").dir("0/pure");
    let mut u = branches.mount();
    let exchange = |u: &Union, a, b| rename(u, a, b, RenameFlags::EXCHANGE).unwrap();
    exchange(&u, "low", "merged");
    assert_eq!((u.list("low"), u.list("merged")), (vec!["y".into(), "z".into()], vec!["x".into()]));
    u.remount_and_compare();
    exchange(&u, "f", "low");
    assert_eq!((u.list("f"), u.read("low")), (vec!["y".into(), "z".into()], "f".into()));
    exchange(&u, "merged", "pure");
    assert_eq!((u.list("pure"), u.list("merged")), (vec!["x".into()], vec![]));
    u.remount_and_compare();
    rename(&u, "pure", "elsewhere", RenameFlags::WHITEOUT).unwrap();
    assert!(u.stat("pure").file_type().is_char_device());
    assert_eq!(u.list("elsewhere"), ["x"]);
    assert_eq!(rename(&u, "elsewhere", "f", RenameFlags::NOREPLACE).errno(), Errno::EEXIST);
    u.remount_and_compare();
}

#[test]
fn an_opaque_mark_beats_a_record_and_a_whiteout_beside_it_does_not() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/there/f", "f").file("2/a/by-name", "");
    for (name, opaque) in [("a", false), ("b", true)] {
        branches.dir(format!("1/{name}")).whiteout(format!("1/{name}")).file(format!("1/{RECORDS}"), "");
        symlink("there", branches.at(format!("1/{name}/{RECORD}"))).unwrap();
        if opaque {
            branches.opaque(format!("1/{name}"));
        }
    }
    let u = branches.mount();
    assert_eq!((u.list("a"), u.list("b"), u.read("a/f")), (vec!["f".into()], vec![], "f".into()));
}

#[test]
fn on_a_plain_read_only_branch_a_record_does_nothing_and_is_not_shown() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro", "ro+wh"]) else { return };
    branches.file("2/there/f", "").file("2/a/g", "").dir("1/a").file(format!("1/{RECORDS}"), "");
    symlink("there", branches.at(format!("1/a/{RECORD}"))).unwrap();
    let u = branches.mount();
    assert_eq!((u.list("a"), u.list("")), (vec!["g".into()], vec!["a".into(), "there".into()]));
    assert_eq!(fs::symlink_metadata(u.path(format!("a/{RECORD}"))).errno(), Errno::EPERM);
}

#[test]
fn a_record_that_says_nothing_is_an_error_of_that_directory_only() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/a/f", "f").dir("1/bad").file("1/good/g", "g").file("2/lost/x", "x").dir("1/lost");
    branches.file(format!("1/{RECORDS}"), "");
    symlink("../../etc", branches.at(format!("1/bad/{RECORD}"))).unwrap();
    symlink("is/not/there", branches.at(format!("1/lost/{RECORD}"))).unwrap();
    let u = branches.mount();
    assert_eq!(fs::read_dir(u.path("bad")).errno(), Errno::EIO, "what is below is not known");
    assert_eq!(u.list("lost"), [""; 0], "nothing lies at that place");
    assert_eq!((u.list(""), u.read("good/g")), (["a", "bad", "good", "lost"].map(String::from).to_vec(), "g".into()));
}

#[test]
fn handles_and_working_directories_follow_and_changes_go_to_the_new_place() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a/f", "first").file("1/a/s/g", "g");
    let u = branches.mount();
    let mut reader = File::open(u.path("a/f")).unwrap();
    let mut writer = fs::OpenOptions::new().append(true).open(u.path("a/s/g")).unwrap();
    let directory = File::open(u.path("a/s")).unwrap();
    mv(&u, "a", "b");
    mv(&u, "b/s", "t");
    writer.write_all(b"+").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), u.read("t/g").as_str()), ("first", "g+"));
    rustix::fs::openat(&directory, "new", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, 0o644.into())
        .unwrap();
    assert_eq!(
        (u.list("t"), u.on_disk("0/t")),
        (vec!["g".into(), "new".into()], vec![RECORD.into(), "g".into(), "new".into()])
    );
}

#[test]
fn with_two_writable_branches_each_change_is_seen() {
    for access in [["rw", "rw", "ro+wh"], ["ro+wh", "rw", "rw"], ["rw", "ro+wh", "rw"]] {
        let Some(branches) = Branches::new(BIN, &access) else { return };
        branches.file("1/a/one", "1").file("2/a/two", "2").file("2/a/s/three", "3").dir("0/z").file("2/a/s/u/v", "");
        let mut u = branches.mount();
        mv(&u, "a", "b");
        u.write("b/new", "n");
        u.write("b/s/three", "3+");
        mv(&u, "b/s", "z/s");
        u.write("z/s/four", "4");
        fs::create_dir(u.path("z/s/d")).unwrap();
        fs::rename(u.path("z/s/three"), u.path("z/s/d/3")).unwrap();
        mv(&u, "z/s/u", "b/u");
        fs::hard_link(u.path("b/one"), u.path("z/link")).unwrap();
        assert_eq!(
            (u.list("b"), u.list("z")),
            (["new", "one", "two", "u"].map(String::from).to_vec(), ["link", "s"].map(String::from).to_vec()),
            "{access:?}"
        );
        assert_eq!((u.list("z/s"), u.read("z/s/d/3")), (vec!["d".into(), "four".into()], "3+".into()), "{access:?}");
        u.remount_and_compare();
        fs::remove_dir_all(u.path("b")).unwrap();
        if access[0] == "rw" {
            fs::remove_dir_all(u.path("z")).unwrap();
            assert_eq!(u.list(""), [""; 0], "{access:?}");
        }
        u.remount_and_compare();
    }
}

#[test]
fn a_path_too_long_for_a_record_is_exdev() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw"]) else { return };
    let long = "d".repeat(250);
    // made step by step: the whole path is longer than the kernel takes
    for branch in ["0", "1"] {
        let mut at = File::open(branches.at(branch)).unwrap();
        for _ in 0..18 {
            rustix::fs::mkdirat(&at, &*long, 0o755.into()).unwrap();
            at = File::from(rustix::fs::openat(&at, &*long, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap());
        }
        rustix::fs::mkdirat(&at, "leaf", 0o755.into()).unwrap();
    }
    let u = branches.mount();
    let mut at = File::open(u.path("")).unwrap();
    for depth in 0..18 {
        if depth == 15 {
            renameat_with(&at, &*long, &at, "short", RenameFlags::empty()).unwrap();
            renameat_with(&at, "short", &at, &*long, RenameFlags::empty()).unwrap();
        }
        at = File::from(rustix::fs::openat(&at, &*long, rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap());
    }
    assert_eq!(renameat_with(&at, "leaf", &at, "moved", RenameFlags::empty()).errno(), Errno::EXDEV);
    assert_eq!(renameat_with(&at, "leaf", &at, "leaf2", RenameFlags::EXCHANGE).errno(), Errno::ENOENT);
}

#[test]
fn everybody_finds_the_files_while_the_directory_is_renamed_back_and_forth() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..20 {
        branches.file(format!("1/a/s/{number}"), number.to_string());
    }
    let u = branches.mount();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                mv(&u, "a", "b");
                mv(&u, "b", "a");
            }
            done.store(true, Ordering::Release);
        });
        for worker in 0..3 {
            let (u, done) = (&u, &done);
            scope.spawn(move || {
                // by a directory that moves along
                let directory = ["a", "b"].iter().cycle().find_map(|name| File::open(u.path(name)).ok()).unwrap();
                let mut round = worker;
                while !done.load(Ordering::Acquire) {
                    round = (round + 7) % 20;
                    let path = format!("s/{round}");
                    let file = rustix::fs::openat(&directory, &*path, rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
                    let mut text = String::new();
                    File::from(file).read_to_string(&mut text).unwrap();
                    assert_eq!(text, round.to_string());
                }
            });
        }
    });
    assert_eq!(u.list("a/s").len(), 20);
}

#[test]
fn without_an_inode_left_nothing_changes() {
    let Some(sandbox) = harness::sandbox::enter() else { return };
    drop(sandbox.small_ext4("0", 8, &["-N", "24"]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("1/a/f", "f").file("1/b/g", "g");
    let mut u = branches.mount();
    let mut fillers = 0;
    while fs::write(u.path(format!("filler{fillers}")), "").is_ok() {
        fillers += 1;
    }
    // at each number of free inodes, a rename fails at another step
    for free in 0..6 {
        let renamed = fs::rename(u.path("a"), u.path("moved"));
        if renamed.is_ok() {
            assert!(free > 0);
            assert_eq!(u.read("moved/f"), "f");
            break;
        }
        assert_eq!(renamed.errno(), Errno::ENOSPC);
        assert_eq!((u.exists("moved"), u.read("a/f"), u.read("b/g")), (false, "f".into(), "g".into()), "{free} free");
        fs::remove_file(u.path(format!("filler{free}"))).unwrap();
    }
    assert!(u.exists("moved"), "there was room at last");
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn layers_whose_records_lead_on_and_on_are_eloop() {
    let access: Vec<&str> = std::iter::once("rw").chain(std::iter::repeat_n("ro+wh", 24)).collect();
    let Some(branches) = Branches::new(BIN, &access) else { return };
    // each directory of each layer says that it lies at the end of a path of such directories
    for branch in 1..access.len() {
        branches.dir(format!("{branch}/a/a/a/a/a/a")).file(format!("{branch}/{RECORDS}"), "");
        for depth in 1..=6 {
            symlink("a/a/a/a/a/a", branches.at(format!("{branch}/{}{RECORD}", "a/".repeat(depth)))).unwrap();
        }
    }
    let u = branches.mount();
    assert_eq!(fs::symlink_metadata(u.path("a")).errno(), Errno::ELOOP);
    u.write("other", "works");
    assert_eq!(u.list(""), ["a", "other"]);
}
