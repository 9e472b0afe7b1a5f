//! Rules 1 to 9: which entry a name means.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;

use harness::fixture::Branches;
use harness::mount::Mounted;
use harness::{Errno, ErrnoOf as _};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn a_whiteout_name_is_eperm_whether_it_exists_or_not() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro"]) else { return };
    branches.file("1/f", "").whiteout("1/g").whiteout("2/h").opaque("2/dir");
    let u = branches.mount();
    for name in
        [".wh.f", ".wh.g", ".wh.h", ".wh.nothing", ".wh.", ".wh..wh..opq", ".wh..wh.runionfs", "dir/.wh..wh..opq"]
    {
        assert_eq!(fs::symlink_metadata(u.path(name)).errno(), Errno::EPERM, "{name}");
    }
}

#[test]
fn names_that_only_look_like_whiteouts_are_ordinary() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/.whatever", "1").file("1/.wh", "2").file("1/x.wh.y", "3");
    let u = branches.mount();
    assert_eq!(u.list(""), [".wh", ".whatever", "x.wh.y"]);
    fs::remove_file(u.path(".wh")).unwrap();
    u.assert_whiteout("0/.wh");
    assert_eq!(u.list(""), [".whatever", "x.wh.y"]);
}

#[test]
fn names_of_255_bytes_are_made_found_and_removed() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let (old, new) = ("o".repeat(255), "n".repeat(255));
    branches.file(format!("1/{old}"), "below");
    let u = branches.mount();
    assert_eq!(nix::sys::statvfs::statvfs(&u.path("")).unwrap().name_max(), 255);
    u.write(&new, "top");
    assert_eq!(u.list(""), [new.clone(), old.clone()]);
    assert_eq!((u.read(&old), u.read(&new)), ("below".into(), "top".into()));
    fs::remove_file(u.path(&new)).unwrap();
    assert_eq!(u.on_disk("0"), [""; 0], "nothing below needs hiding");
    assert_eq!(fs::symlink_metadata(u.path("n".repeat(256))).errno(), Errno::ENAMETOOLONG);
    assert_eq!(fs::write(u.path("n".repeat(256)), "").errno(), Errno::ENAMETOOLONG);
}

#[test]
fn a_name_too_long_for_a_whiteout_is_hidden_by_a_file_that_holds_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for length in 250..=255 {
        branches.file(format!("1/d/{}", "x".repeat(length)), "below");
    }
    let mut u = branches.mount();
    for length in 250..=255 {
        fs::remove_file(u.path("d").join("x".repeat(length))).unwrap();
    }
    assert_eq!(u.list("d"), [""; 0]);
    let (long, short): (Vec<_>, Vec<_>) =
        u.on_disk("0/d").into_iter().partition(|name| name.starts_with(".wh..wh.long."));
    assert_eq!(short, [format!(".wh.{}", "x".repeat(250)), format!(".wh.{}", "x".repeat(251))]);
    let mut hidden: Vec<_> = long.iter().map(|name| fs::read_to_string(u.at("0/d").join(name)).unwrap()).collect();
    hidden.sort();
    assert_eq!(hidden, (252..=255).map(|length| "x".repeat(length)).collect::<Vec<_>>());
    u.mounted.remount();
    assert_eq!(u.list("d"), [""; 0]);

    let name = Path::new("d").join("x".repeat(255));
    u.write(&name, "again");
    u.mounted.remount();
    assert_eq!(u.read(&name), "again");
    fs::remove_file(u.path(&name)).unwrap();
    u.mounted.remount();
    assert!(!u.exists(&name));
    fs::remove_dir(u.path("d")).unwrap();
    assert!(!u.exists("d"));
    u.assert_whiteout("0/d");
}

#[test]
fn an_opaque_directory_hides_everything_below_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh", "ro+wh"]) else { return };
    branches.file("0/d/top", "").file("1/d/one", "").file("2/d/two", "").file("3/d/three", "");
    branches.opaque("2/d").file("2/d/sub/x", "").file("3/d/sub/y", "").file("3/other", "");
    let mut u = branches.mount();
    assert_eq!(u.list("d"), ["one", "sub", "top", "two"]);
    assert_eq!(u.list("d/sub"), ["x"], "an opaque ancestor ends the stack of what lies in it");
    assert!(!u.exists("d/three"));
    assert!(u.exists("other"));
    fs::remove_file(u.path("d/one")).unwrap();
    fs::rename(u.path("d/top"), u.path("d/moved")).unwrap();
    assert_eq!(u.list("d"), ["moved", "sub", "two"], "changes in the directory do not lift the mark");
    assert!(!u.exists("d/three"));
    u.remount_and_compare();
}

#[test]
fn on_a_plain_read_only_branch_whiteouts_and_opaque_marks_hide_nothing() {
    for access in ["ro", "rr"] {
        let Some(branches) = Branches::new(BIN, &["rw", access, "ro+wh"]) else { return };
        branches.whiteout("1/f").file("2/f", "seen").opaque("1/d").file("1/d/a", "").file("2/d/b", "");
        let u = branches.mount();
        assert_eq!(u.read("f"), "seen", "{access}");
        assert_eq!(u.list("d"), ["a", "b"], "{access}");
        assert_eq!(u.list(""), ["d", "f"], "whiteouts are not listed either ({access})");
        assert_eq!(fs::symlink_metadata(u.path(".wh.f")).errno(), Errno::EPERM);
    }
}

#[test]
fn a_whiteout_hides_the_name_below_and_not_above() {
    for access in ["ro+wh", "rr+wh"] {
        let Some(branches) = Branches::new(BIN, &["rw", access, "ro+wh"]) else { return };
        branches.file("2/f", "below").whiteout("1/f");
        branches.file("0/g", "above").whiteout("1/g").file("2/g", "below");
        branches.dir("2/d/e").whiteout("1/d");
        let u = branches.mount();
        assert_eq!(u.list(""), ["g"], "{access}");
        assert_eq!(fs::symlink_metadata(u.path("f")).errno(), Errno::ENOENT);
        assert_eq!(u.read("g"), "above");
        assert_eq!(fs::symlink_metadata(u.path("d/e")).errno(), Errno::ENOENT);
    }
}

#[test]
fn an_entry_beats_the_whiteout_of_its_own_branch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("0/f", "top").whiteout("0/f").file("1/f", "below");
    branches.file("1/g", "one").whiteout("1/g").file("2/g", "two");
    branches.file("1/d/a", "").whiteout("1/d").file("2/d/b", "");
    let mut u = branches.mount();
    assert_eq!((u.read("f"), u.read("g")), ("top".into(), "one".into()));
    assert_eq!(u.list("d"), ["a"], "the whiteout still hides the directory below");
    assert_eq!(u.list(""), ["d", "f", "g"]);
    u.remount_and_compare();
    fs::remove_file(u.path("f")).unwrap();
    u.mounted.remount();
    assert_eq!(u.list(""), ["d", "g"]);
}

#[test]
fn the_topmost_entry_fixes_the_type() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("0/fd", "file").file("1/fd/x", "").file("2/fd/y", "");
    branches.file("0/dfd/top", "").file("1/dfd", "file").file("2/dfd/below", "");
    branches.symlink("0/l", "fd").file("1/l", "file");
    branches.file("1/ld/x", "").symlink("2/ld", "/");
    let mut u = branches.mount();
    assert_eq!(u.read("fd"), "file", "a file above hides directories below");
    assert_eq!(fs::symlink_metadata(u.path("fd/x")).errno(), Errno::ENOTDIR);
    assert_eq!(u.list("dfd"), ["top"], "a file between two directories ends the stack");
    assert_eq!(fs::read_link(u.path("l")).unwrap(), Path::new("fd"));
    assert_eq!(u.list("ld"), ["x"]);
    assert_eq!(u.list(""), ["dfd", "fd", "l", "ld"]);
    u.remount_and_compare();
}

#[test]
fn directories_merge_down_to_the_first_whiteout_of_the_directory() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh", "ro+wh"]) else { return };
    branches.file("0/d/zero", "").file("1/d/one", "").whiteout("2/d").file("3/d/three", "");
    branches.file("0/e/zero", "").file("1/e/one", "").file("2/e/two", "").whiteout("1/e/two").file("3/e/two", "");
    let mut u = branches.mount();
    assert_eq!(u.list("d"), ["one", "zero"], "regression: the directory above did not stop the merge at a whiteout");
    assert!(!u.exists("d/three"));
    assert_eq!(u.list("e"), ["one", "zero"]);
    u.remount_and_compare();
}

#[test]
fn attributes_come_from_the_topmost_entry() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.dir("1/d").mode("1/d", 0o2750).owner("1/d", 11, 12).mode("1/d", 0o2750);
    branches.file("2/d/x", "").mode("2/d", 0o777).owner("2/d", 21, 22);
    branches.symlink("1/l", "above").symlink("2/l", "below");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(branches.at("1/d"), "user.a", b"above", flags).unwrap();
    rustix::fs::setxattr(branches.at("2/d"), "user.a", b"below", flags).unwrap();
    rustix::fs::setxattr(branches.at("2/d"), "user.b", b"below", flags).unwrap();
    lchown(branches.at("1/l"), Some(5), Some(6)).unwrap();
    let u = branches.mount();
    assert_eq!((u.mode("d"), u.stat("d").uid(), u.stat("d").gid()), (0o2750, 11, 12));
    let xattrs = harness::snapshot::xattrs(&u.path("d")).unwrap();
    assert_eq!(xattrs.into_iter().collect::<Vec<_>>(), [("user.a".into(), b"above".to_vec())]);
    assert_eq!(fs::read_link(u.path("l")).unwrap(), Path::new("above"));
    assert_eq!((u.stat("l").uid(), u.stat("l").gid()), (5, 6));
}

#[test]
fn an_error_of_a_branch_is_never_taken_for_not_there() {
    // A branch that fails: a union whose daemon was killed answers everything with an error.
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "content").dir("inner");
    let mut inner = Mounted::mount(BIN, branches.at("1"), &branches.at("inner"), &[]);
    let string = format!("{}=rw:{}=ro+wh", branches.at("0").display(), branches.at("inner").display());
    let outer = Mounted::mount(BIN, string, &branches.at("mnt"), &[]);
    assert_eq!(fs::read_to_string(outer.target().join("d/f")).unwrap(), "content");
    inner.kill9();
    for name in ["never-looked-at", "d/never-looked-at"] {
        let errno = fs::symlink_metadata(outer.target().join(name)).errno();
        assert_ne!(errno, Errno::ENOENT, "a failing branch hides nothing and proves nothing ({name})");
    }
    let errno = fs::write(outer.target().join("d/new"), "").errno();
    assert_ne!(errno, Errno::ENOENT);
    assert!(fs::read_dir(outer.target()).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).is_err());
}

/// Direct changes are not looked for by default, so they show who is asked: a branch only for names that it lists.
#[test]
fn branches_are_asked_only_for_names_that_they_list() {
    for (options, seen) in [(&[][..], false), (&["udba=reval"][..], true)] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh", "ro+wh", "ro+wh"]) else { return };
        for branch in 1..5 {
            branches.file(format!("{branch}/d/in{branch}"), branch.to_string());
        }
        let mut u = branches.mount_with(options);
        assert!(!u.exists("d/missing") && !u.exists("missing"));
        u.write("d/made", "made");
        fs::create_dir(u.path("d/new")).unwrap();
        for path in ["3/d/direct", "0/d/direct2", "0/d/new/direct", "4/direct"] {
            fs::write(u.at(path), "direct").unwrap();
        }
        for path in ["d/direct", "d/direct2", "d/new/direct", "direct"] {
            assert_eq!(u.exists(path), seen, "{path} {options:?}");
        }
        for branch in 1..5 {
            assert_eq!(u.read(format!("d/in{branch}")), branch.to_string());
        }
        assert_eq!(u.read("d/made"), "made");
        // what is made later is known, on whatever branch
        u.write("d/direct3", "later");
        fs::rename(u.path("d/in4"), u.path("d/new/moved")).unwrap();
        u.write("d/in4", "again");
        assert_eq!(
            (u.read("d/new/moved"), u.read("d/in4"), u.read("d/direct3")),
            ("4".into(), "again".into(), "later".into())
        );
        u.accept_read_only_branches();
    }
}
