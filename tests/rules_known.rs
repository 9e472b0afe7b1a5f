//! What the daemon remembers of directories and objects follows every change that it makes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union, as_user};
use harness::sandbox::{self, run};
use harness::snapshot::xattrs;
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{RenameFlags, XattrFlags, lgetxattr, lremovexattr, lsetxattr, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Makes a file, a directory, a link and a fifo in a directory, and tells group, mode and attributes
/// of each.
fn made_in(dir: &Path, round: &str) -> Vec<(u32, u32, usize)> {
    let [file, sub, link, fifo] = ["f", "d", "l", "p"].map(|kind| dir.join(format!("{kind}{round}")));
    File::create(&file).unwrap();
    fs::create_dir(&sub).unwrap();
    symlink("f", &link).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let tell = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        (stat.gid(), stat.mode(), xattrs(path).unwrap().len())
    };
    [file, sub, link, fifo].iter().map(|path| tell(path)).collect()
}

#[test]
fn new_entries_inherit_what_their_directory_has_now() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/top").dir("1/low").dir("0/both").dir("1/both").dir("plain");
    let mut u = branches.mount();
    fs::create_dir(u.path("made")).unwrap();
    let steps: [&[&str]; 9] = [
        &["chmod", "0777"],
        &["chgrp", "77"],
        &["chmod", "2777"],
        &["chgrp", "78"],
        &["setfacl", "-d", "-m", "u:1234:rwx"],
        &["setfacl", "-d", "-m", "g:99:r"],
        &["chmod", "0777"],
        &["setfacl", "-k"],
        &["chgrp", "0"],
    ];
    for (round, step) in steps.iter().enumerate() {
        let change = |dir: &Path| run(Command::new(step[0]).args(&step[1..]).arg(dir));
        let plain = u.at("plain");
        change(&plain);
        ["top", "low", "both", "made"].iter().for_each(|name| change(&u.path(name)));
        for uid in [0, 1234] {
            let round = format!("{round}-{uid}");
            let make = |dir: &Path| as_user(uid, uid, || made_in(dir, &round));
            let expected = make(&plain);
            for name in ["top", "low", "both", "made"] {
                assert_eq!(make(&u.path(name)), expected, "{name} after {step:?}");
            }
        }
    }
    u.remount_and_compare();
}

/// Makes and removes files, until nobody asks for whiteouts by name any more.
fn fill(u: &Union, dir: &str) {
    for number in 0..8 {
        u.write(format!("{dir}/fill{number}"), "");
    }
    for number in 0..8 {
        fs::remove_file(u.path(format!("{dir}/fill{number}"))).unwrap();
    }
}

#[test]
fn a_whiteout_that_comes_is_seen_by_what_is_made_over_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/d").file("1/d/file", "below").file("1/d/dir/in", "below").file("1/d/old/in", "below");
    branches.file("1/d/moved", "below").file("1/d/link", "below").file("1/d/node", "below");
    let mut u = branches.mount();
    fill(&u, "d");
    for name in ["file", "moved", "link", "node"] {
        fs::remove_file(u.path(format!("d/{name}"))).unwrap();
        u.assert_whiteout(format!("0/d/{name}"));
    }
    for name in ["dir", "old"] {
        fs::remove_file(u.path(format!("d/{name}/in"))).unwrap();
        fs::remove_dir(u.path(format!("d/{name}"))).unwrap();
    }
    // each is made over its whiteout, which goes
    u.write("d/file", "new");
    fs::create_dir(u.path("d/dir")).unwrap();
    u.assert_opaque("0/d/dir");
    fs::create_dir(u.path("d/fresh")).unwrap();
    fs::rename(u.path("d/fresh"), u.path("d/old")).unwrap();
    u.write("d/other", "moved");
    fs::rename(u.path("d/other"), u.path("d/moved")).unwrap();
    fs::hard_link(u.path("d/file"), u.path("d/link")).unwrap();
    symlink("file", u.path("d/node")).unwrap();
    assert_eq!(u.on_disk("0/d"), ["dir", "file", "link", "moved", "node", "old"]);
    assert_eq!((u.list("d/dir"), u.list("d/old")), (vec![], vec![]));
    u.remount_and_compare();
    assert_eq!((u.read("d/link"), u.read("d/moved")), ("new".into(), "moved".into()));
    // and what hides them again comes back
    fill(&u, "d");
    for name in ["file", "moved", "link", "node"] {
        fs::remove_file(u.path(format!("d/{name}"))).unwrap();
        u.assert_whiteout(format!("0/d/{name}"));
    }
    fs::remove_dir(u.path("d/dir")).unwrap();
    u.assert_whiteout("0/d/dir");
    u.remount_and_compare();
    assert_eq!(u.list("d"), ["old"]);
}

#[test]
fn whiteouts_of_a_branch_that_is_gone_go_with_what_is_made() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/d").whiteout("0/d/file").whiteout("0/d/dir").whiteout("0/d/link");
    let mut u = branches.mount();
    u.write("d/file", "new");
    fs::create_dir(u.path("d/dir")).unwrap();
    fs::hard_link(u.path("d/file"), u.path("d/link")).unwrap();
    assert_eq!(u.on_disk("0/d"), ["dir", "file", "link"]);
    u.assert_opaque("0/d/dir");
    u.remount_and_compare();
}

#[test]
fn a_name_that_is_there_is_refused_and_kept() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let mut u = branches.mount();
    fs::create_dir(u.path("d")).unwrap();
    fill(&u, "d");
    u.write("d/file", "content");
    fs::create_dir(u.path("d/dir")).unwrap();
    for name in ["d/file", "d/dir"] {
        let path = u.path(name);
        assert_eq!(File::options().write(true).create_new(true).open(&path).errno(), Errno::EEXIST);
        assert_eq!(fs::create_dir(&path).errno(), Errno::EEXIST);
        assert_eq!(symlink("x", &path).errno(), Errno::EEXIST);
        assert_eq!(fs::hard_link(u.path("d/file"), &path).errno(), Errno::EEXIST);
    }
    assert_eq!(fs::remove_dir(u.path("d")).errno(), Errno::ENOTEMPTY);
    assert_eq!((u.read("d/file"), u.list("d")), ("content".into(), vec!["dir".to_owned(), "file".to_owned()]));
    u.remount_and_compare();
}

#[test]
fn attributes_that_come_and_go_are_seen() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "").file("1/low", "").file("1/one", "").hard_link("1/one", "1/two");
    let mut u = branches.mount();
    u.write("new", "");
    let none = BTreeMap::new();
    // VFS_CAP_REVISION_2 with CAP_NET_RAW
    let capability = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, other) in [("top", "top"), ("low", "low"), ("one", "two"), ("new", "new")] {
        let (path, other) = (u.path(name), u.path(other));
        for (attribute, value) in
            [("user.a", &b"1"[..]), ("trusted.a", b"2"), ("security.capability", &capability), ("user.a", b"3")]
        {
            // asked often enough that it is known
            for _ in 0..3 {
                assert_eq!(xattrs(&other).unwrap(), none, "{name}");
                assert_eq!(lgetxattr(&other, attribute, &mut [0_u8; 99]).errno(), Errno::ENODATA, "{name}");
            }
            lsetxattr(&path, attribute, value, XattrFlags::CREATE).unwrap();
            assert_eq!(xattrs(&other).unwrap(), BTreeMap::from([(attribute.into(), value.to_vec())]), "{name}");
            lremovexattr(&path, attribute).unwrap();
        }
        run(Command::new("setfacl").args(["-m", "u:1234:r"]).arg(&path));
        assert!(xattrs(&other).unwrap().contains_key(OsStr::new("system.posix_acl_access")), "{name}");
        run(Command::new("setfacl").arg("-b").arg(&path));
        assert_eq!(xattrs(&other).unwrap(), none, "{name}");
    }
    u.remount_and_compare();
}

#[test]
fn labels_are_said_to_be_unknown_only_where_nobody_brings_any() {
    const LABEL: &str = "security.selinux";
    let ask = |path: &Path| lgetxattr(path, LABEL, &mut [0_u8; 99]);
    if Path::new("/sys/fs/selinux").exists() {
        return sandbox::skip("the kernel gives every file a label");
    }
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low", "").file("1/labelled", "").file("0/top", "");
    let labelled = lsetxattr(branches.at("1/labelled"), LABEL, b"label", XattrFlags::empty());
    labelled.expect("a file system for tests has labels");
    let mut u = branches.mount();
    // as of a file system without labels, so that programs ask no more
    for _ in 0..2 {
        assert_eq!(ask(&u.path("low")).errno(), Errno::EOPNOTSUPP);
    }
    u.write("new", "");
    assert_eq!(ask(&u.path("new")).errno(), Errno::EOPNOTSUPP);
    // what a branch brings along is shown, and from then on others are without one
    assert_eq!(ask(&u.path("labelled")).unwrap(), 5);
    assert_eq!(xattrs(&u.path("labelled")).unwrap().len(), 1);
    for name in ["low", "new", "top"] {
        assert_eq!(ask(&u.path(name)).errno(), Errno::ENODATA, "{name}");
    }
    u.remount_and_compare();
    lsetxattr(u.path("top"), LABEL, b"other", XattrFlags::empty()).unwrap();
    assert_eq!(ask(&u.path("new")).errno(), Errno::ENODATA);
    assert_eq!(ask(&u.path("top")).unwrap(), 5);
}

#[test]
fn names_of_a_directory_may_be_exchanged_and_its_whiteouts_stay_known() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/a", "below a").file("1/d/b", "below b");
    let mut u = branches.mount();
    u.write("d/a", "a");
    u.write("d/b", "b");
    fill(&u, "d");
    let [a, b] = ["d/a", "d/b"].map(|name| u.path(name));
    renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((u.read("d/a"), u.read("d/b")), ("b".into(), "a".into()));
    fs::rename(&a, u.path("d/c")).unwrap();
    u.assert_whiteout("0/d/a");
    u.write("d/a", "again");
    chown(&a, Some(3), Some(4)).unwrap();
    assert_eq!(u.on_disk("0/d"), ["a", "b", "c"]);
    u.remount_and_compare();
}
