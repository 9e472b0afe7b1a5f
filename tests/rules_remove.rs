//! Rules 18 to 22: what removing leaves on disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::thread;

use harness::fixture::{Branches, as_user};
use harness::sandbox;
use harness::snapshot::{Exactness, Snapshot};
use harness::{Errno, ErrnoOf as _};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn unlink_hides_the_file_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "below").symlink("1/d/l", "f").file("1/f", "below");
    let mut u = branches.mount();
    for path in ["d/f", "d/l", "f"] {
        fs::remove_file(u.path(path)).unwrap();
        assert_eq!(fs::symlink_metadata(u.path(path)).errno(), Errno::ENOENT);
        u.assert_whiteout(format!("0/{path}"));
    }
    assert_eq!(u.on_disk("0"), [".wh.f", "d"]);
    assert_eq!(u.on_disk("0/d"), [".wh.f", ".wh.l"], "the file itself was not copied up");
    u.remount_and_compare();
    assert_eq!(u.list("d"), [""; 0]);
}

#[test]
fn unlink_of_a_copied_up_file_hides_the_one_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "below").file("0/g", "top").file("1/g", "below");
    let mut u = branches.mount();
    u.write("f", "changed");
    fs::remove_file(u.path("f")).unwrap();
    fs::remove_file(u.path("g")).unwrap();
    assert_eq!(u.on_disk("0"), [".wh.f", ".wh.g"]);
    u.mounted.remount();
    assert_eq!(u.list(""), [""; 0]);
}

#[test]
fn nothing_below_means_no_whiteout() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("1/merged/other", "").dir("0/merged").file("0/merged/old", "");
    branches.file("0/above", "").whiteout("1/above").file("2/above", "");
    branches.file("0/in/sub/f", "").file("1/in", "a file ends the stack").file("2/in/sub/f", "");
    let u = branches.mount();
    for name in ["a", "b", "c"] {
        u.write(format!("merged/{name}"), "temporary");
        fs::remove_file(u.path(format!("merged/{name}"))).unwrap();
    }
    fs::create_dir(u.path("merged/dir")).unwrap();
    fs::remove_dir(u.path("merged/dir")).unwrap();
    fs::remove_file(u.path("merged/old")).unwrap();
    assert_eq!(u.on_disk("0/merged"), [""; 0]);
    fs::remove_file(u.path("above")).unwrap();
    assert!(!u.on_disk("0").contains(&".wh.above".into()), "what a middle branch hides needs no second whiteout");
    fs::remove_file(u.path("in/sub/f")).unwrap();
    assert_eq!(u.on_disk("0/in/sub"), [""; 0]);
}

#[test]
fn an_opaque_directory_never_gets_whiteouts() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.opaque("0/d").file("0/d/f", "").file("1/d/f", "").file("0/d/sub/g", "").file("1/d/sub/g", "");
    let mut u = branches.mount();
    for _remounted in 0..2 {
        u.write("d/f", "");
        u.write("d/sub/g", "");
        fs::remove_file(u.path("d/f")).unwrap();
        fs::remove_file(u.path("d/sub/g")).unwrap();
        assert_eq!(u.on_disk("0/d"), [".wh..wh..opq", "sub"]);
        assert_eq!(u.on_disk("0/d/sub"), [""; 0]);
        u.mounted.remount();
    }
}

#[test]
fn removing_brings_up_the_parents_only_exactly_as_they_are() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches
        .file("1/a/b/c/f", "x")
        .mode("1/a", 0o1777)
        .owner("1/a/b", 5, 6)
        .mode("1/a/b", 0o2770)
        .mode("1/a/b/c", 0o700);
    let u = branches.mount();
    let before = [u.stat("a"), u.stat("a/b")].map(|stat| (stat.mtime(), stat.mtime_nsec()));
    fs::remove_file(u.path("a/b/c/f")).unwrap();
    assert_eq!(u.on_disk("0/a/b/c"), [".wh.f"]);
    assert_eq!((u.mode("a"), u.mode("a/b"), u.mode("a/b/c")), (0o1777, 0o2770, 0o700));
    assert_eq!((u.stat("a/b").uid(), u.stat("a/b").gid()), (5, 6));
    let after = [u.stat("a"), u.stat("a/b")].map(|stat| (stat.mtime(), stat.mtime_nsec()));
    assert_eq!(before, after, "only the directory that lost a name has changed");
}

#[test]
fn removing_a_large_file_needs_no_room() {
    let Some(sandbox) = sandbox::enter() else { return };
    drop(sandbox.small_ext4("0", 8, &[]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("1/large", vec![7; 64 << 20]).file("1/d/large", vec![7; 64 << 20]);
    let u = branches.mount();
    fs::remove_file(u.path("large")).unwrap();
    fs::remove_file(u.path("d/large")).unwrap();
    fs::remove_dir(u.path("d")).unwrap();
    assert_eq!(u.list(""), [""; 0]);
    u.assert_no_temporaries(0);
}

#[test]
fn removing_moves_the_times_of_the_parent() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for (directory, branch) in [("low", 1), ("top", 0)] {
        branches.file(format!("{branch}/{directory}/f"), "").dir(format!("{branch}/{directory}/d"));
        let long_ago = filetime(1_000_000_000);
        fs::File::open(branches.at(format!("{branch}/{directory}"))).unwrap().set_times(long_ago).unwrap();
    }
    let u = branches.mount();
    for directory in ["low", "top"] {
        assert_eq!(u.stat(directory).mtime(), 1_000_000_000);
        fs::remove_file(u.path(directory).join("f")).unwrap();
        let after_unlink = u.stat(directory);
        assert!(after_unlink.mtime() > 1_000_000_000, "unlink in {directory}");
        fs::remove_dir(u.path(directory).join("d")).unwrap();
        let after_rmdir = u.stat(directory);
        let time = |stat: &fs::Metadata| (stat.mtime(), stat.mtime_nsec());
        assert!(time(&after_rmdir) > time(&after_unlink), "rmdir in {directory}");
    }
}

fn filetime(seconds: u64) -> fs::FileTimes {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    fs::FileTimes::new().set_modified(time).set_accessed(time)
}

#[test]
fn rmdir_wants_the_merged_directory_empty() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.dir("0/d").file("2/d/deep", "").dir("1/d").dir("1/empty").dir("0/both").dir("1/both");
    let mut u = branches.mount();
    assert_eq!(fs::remove_dir(u.path("d")).errno(), Errno::ENOTEMPTY);
    fs::remove_file(u.path("d/deep")).unwrap();
    assert_eq!(u.on_disk("0/d"), [".wh.deep"]);
    for name in ["d", "empty", "both"] {
        fs::remove_dir(u.path(name)).unwrap();
        u.assert_whiteout(format!("0/{name}"));
    }
    assert_eq!(u.on_disk("0"), [".wh.both", ".wh.d", ".wh.empty"], "leftover whiteouts went with the directory");
    u.assert_no_temporaries(0);
    u.mounted.remount();
    assert_eq!(u.list(""), [""; 0]);
}

#[test]
fn rmdir_of_a_directory_of_the_top_alone_leaves_nothing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/d").opaque("0/o").dir("0/o").file("1/o/x", "");
    let u = branches.mount();
    fs::remove_dir(u.path("d")).unwrap();
    assert_eq!(u.on_disk("0"), ["o"]);
    fs::remove_dir(u.path("o")).unwrap();
    u.assert_whiteout("0/o");
    assert_eq!(u.on_disk("0"), [".wh.o"]);
    u.assert_no_temporaries(0);
}

#[test]
fn wrong_types_and_missing_names_have_their_errno() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "").file("1/low", "").dir("1/dir").file("1/gone", "").whiteout("0/gone");
    let u = branches.mount();
    for file in ["top", "low"] {
        assert_eq!(fs::remove_dir(u.path(file)).errno(), Errno::ENOTDIR, "{file}");
    }
    assert_eq!(fs::remove_file(u.path("dir")).errno(), Errno::EISDIR);
    for name in ["gone", "never"] {
        assert_eq!(fs::remove_file(u.path(name)).errno(), Errno::ENOENT, "{name}");
        assert_eq!(fs::remove_dir(u.path(name)).errno(), Errno::ENOENT, "{name}");
    }
    assert_eq!(fs::remove_dir(u.path("")).errno(), Errno::EBUSY, "the root stays");
    assert_eq!(u.on_disk("0"), [".wh.gone", "top"]);
}

#[test]
fn the_sticky_bit_below_protects_others_files() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/tmp/theirs", "").owner("1/tmp/theirs", 1, 1).file("1/tmp/mine", "").owner(
        "1/tmp/mine",
        1234,
        5678,
    );
    branches.mode("1/tmp", 0o1777);
    let u = branches.mount();
    let directory = u.path("tmp");
    as_user(1234, 5678, || {
        assert_eq!(fs::remove_file(directory.join("theirs")).errno(), Errno::EPERM);
        fs::remove_file(directory.join("mine")).unwrap();
        assert_eq!(fs::remove_file(directory.join("theirs")).errno(), Errno::EPERM, "after the parent came up, too");
    });
    assert_eq!(u.list("tmp"), ["theirs"]);
}

#[test]
fn a_tree_below_is_removed_and_made_again_empty() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    for number in 0..60 {
        branches.file(format!("{}/opt/{}/{number}", 1 + number % 2, number % 7), "old");
    }
    let mut u = branches.mount();
    fs::remove_dir_all(u.path("opt")).unwrap();
    assert_eq!(u.on_disk("0"), [".wh.opt"]);
    fs::create_dir(u.path("opt")).unwrap();
    u.write("opt/z", "z");
    fs::create_dir(u.path("opt/3")).unwrap();
    for _remounted in 0..2 {
        assert_eq!(u.list("opt"), ["3", "z"]);
        assert_eq!(u.list("opt/3"), [""; 0]);
        u.mounted.remount();
    }
    u.assert_opaque("0/opt");
    u.assert_no_temporaries(0);
}

#[test]
fn removing_and_making_a_name_in_turn_never_shows_the_old_one() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/n", "old").file("1/m/old", "");
    let mut u = branches.mount();
    for round in 0..5 {
        fs::remove_file(u.path("n")).unwrap();
        fs::create_dir(u.path("n")).unwrap();
        fs::remove_dir(u.path("n")).unwrap();
        u.write("n", format!("{round}"));
        if round > 0 {
            fs::remove_file(u.path("m")).unwrap();
        } else {
            fs::remove_dir_all(u.path("m")).unwrap();
        }
        fs::create_dir(u.path("m")).unwrap();
        assert_eq!(u.list("m"), [""; 0]);
        fs::remove_dir(u.path("m")).unwrap();
        u.write("m", "a file");
        u.remount_and_compare();
    }
    assert_eq!((u.read("n"), u.read("m")), ("4".into(), "a file".into()));
}

#[test]
fn one_of_many_removers_wins() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..50 {
        branches.file(format!("{}/d/{number}", number % 2), "");
    }
    let u = branches.mount();
    let winners: usize = thread::scope(|scope| {
        let remover = || (0..50).filter(|number| fs::remove_file(u.path(format!("d/{number}"))).is_ok()).count();
        let removers: Vec<_> = (0..8).map(|_| scope.spawn(remover)).collect();
        removers.into_iter().map(|remover| remover.join().unwrap()).sum()
    });
    assert_eq!(winners, 50);
    assert_eq!(u.list("d"), [""; 0]);
    assert_eq!(u.on_disk("0/d").len(), 25, "a whiteout for what lies below, nothing for the rest");
}

#[test]
fn a_removal_that_is_refused_changes_nothing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "").file("0/e/f", "").file("1/e/f", "").mode("1/d", 0o755);
    let u = branches.mount();
    let before = Snapshot::take(&u.path(""));
    let paths = [u.path("d/f"), u.path("e/f")];
    as_user(1234, 5678, || {
        for path in &paths {
            assert_eq!(fs::remove_file(path).errno(), Errno::EACCES);
        }
    });
    assert_eq!(u.on_disk("0"), ["e"]);
    before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "a refused removal");
    fs::set_permissions(u.path("e"), fs::Permissions::from_mode(0o777)).unwrap();
    as_user(1234, 5678, || fs::remove_file(&paths[1]).unwrap());
}
