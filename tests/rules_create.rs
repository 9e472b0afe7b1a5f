//! Rules 13 to 17: which branch takes a change, and what a new entry looks like.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;

use harness::fixture::{Branches, as_user};
use harness::sandbox::run;
use harness::{Errno, ErrnoOf as _};
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::mkfifo;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn a_writable_branch_that_holds_the_entry_is_written_in_place() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "old").file("2/d/g", "old");
    let u = branches.mount();
    u.write("d/f", "new");
    fs::set_permissions(u.path("d/f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(fs::read_to_string(u.at("1/d/f")).unwrap(), "new");
    assert_eq!(fs::metadata(u.at("1/d/f")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(u.on_disk("0"), [""; 0]);
}

#[test]
fn a_new_entry_goes_to_the_topmost_writable_branch_that_has_its_parent() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.dir("1/one").dir("2/two").dir("0/both").dir("1/both");
    let u = branches.mount();
    for directory in ["one", "two", "both"] {
        u.write(format!("{directory}/f"), "x");
    }
    u.write("root", "x");
    assert_eq!(u.on_disk("1/one"), ["f"]);
    assert_eq!(u.on_disk("0/two"), ["f"], "where no writable branch has the parent, the topmost takes it");
    assert_eq!(u.on_disk("0/both"), ["f"]);
    assert_eq!(u.on_disk("0"), ["both", "root", "two"]);
    assert_eq!(u.on_disk("1"), ["both", "one"]);
}

#[test]
fn a_copy_goes_to_the_topmost_writable_branch_that_has_its_parent() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.file("2/one/f", "old").dir("1/one").file("2/two/f", "old");
    let u = branches.mount();
    u.write("one/f", "new");
    u.write("two/f", "new");
    assert_eq!(u.on_disk("1/one"), ["f"]);
    assert_eq!(u.on_disk("0/two"), ["f"]);
    assert_eq!(u.on_disk("0"), ["two"]);
}

#[test]
fn where_no_writable_branch_can_show_the_result_it_is_erofs() {
    let Some(branches) = Branches::new(BIN, &["ro+wh", "rw"]) else { return };
    branches.file("0/f", "above").whiteout("0/gone").file("1/g", "below").dir("1/d").opaque("0/o").file("1/o/x", "");
    let u = branches.mount();
    for path in ["f", "gone", "o/new"] {
        assert_eq!(fs::write(u.path(path), "x").errno(), Errno::EROFS, "{path}");
    }
    assert_eq!(fs::create_dir(u.path("gone")).errno(), Errno::EROFS);
    assert_eq!(symlink("x", u.path("gone")).errno(), Errno::EROFS);
    assert_eq!(fs::remove_file(u.path("f")).errno(), Errno::EROFS);
    assert_eq!(fs::rename(u.path("f"), u.path("f2")).errno(), Errno::EROFS);
    assert_eq!(fs::rename(u.path("g"), u.path("gone")).errno(), Errno::EROFS);
    assert_eq!(fs::hard_link(u.path("g"), u.path("gone")).errno(), Errno::EROFS);
    u.write("g", "in place");
    u.write("d/new", "seen");
    assert_eq!((u.read("g"), u.read("d/new")), ("in place".into(), "seen".into()));
    assert_eq!(u.on_disk("1/d"), ["new"]);
}

#[test]
fn a_union_without_a_writable_branch_is_erofs_for_everything() {
    let Some(branches) = Branches::new(BIN, &["ro+wh", "rr"]) else { return };
    branches.file("0/f", "f").file("1/g", "g").dir("1/d");
    let u = branches.mount();
    assert_eq!((u.read("f"), u.read("g")), ("f".into(), "g".into()));
    assert_eq!(fs::write(u.path("new"), "").errno(), Errno::EROFS);
    assert_eq!(fs::write(u.path("g"), "").errno(), Errno::EROFS);
    assert_eq!(fs::File::options().append(true).open(u.path("f")).errno(), Errno::EROFS);
    assert_eq!(fs::create_dir(u.path("e")).errno(), Errno::EROFS);
    assert_eq!(fs::remove_file(u.path("g")).errno(), Errno::EROFS);
    assert_eq!(fs::remove_dir(u.path("d")).errno(), Errno::EROFS);
    assert_eq!(fs::rename(u.path("g"), u.path("h")).errno(), Errno::EROFS);
    assert_eq!(
        fs::set_permissions(u.path("g"), std::os::unix::fs::PermissionsExt::from_mode(0o0)).errno(),
        Errno::EROFS
    );
    assert_eq!(std::os::unix::fs::chown(u.path("g"), Some(1), None).errno(), Errno::EROFS);
    let set = rustix::fs::setxattr(u.path("g"), "user.x", b"", rustix::fs::XattrFlags::empty());
    assert_eq!(set.errno(), Errno::EROFS);
}

#[test]
fn an_init_branch_takes_writes_in_place_and_nothing_else() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh+init", "ro+wh"]) else { return };
    branches.file("1/etc/hosts", "init").file("1/etc/resolv.conf", "init").file("2/etc/passwd", "image");
    branches.file("1/etc/hostname", "init").file("2/etc/hostname", "image");
    let mut u = branches.mount();
    u.write("etc/hosts", "changed");
    fs::set_permissions(u.path("etc/hosts"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(fs::read_to_string(u.at("1/etc/hosts")).unwrap(), "changed");
    assert_eq!(u.on_disk("0"), [""; 0], "nothing reached the top");
    u.write("etc/new", "x");
    u.write("etc/passwd", "x");
    fs::remove_file(u.path("etc/resolv.conf")).unwrap();
    fs::remove_file(u.path("etc/hostname")).unwrap();
    assert_eq!(u.on_disk("0/etc"), [".wh.hostname", ".wh.resolv.conf", "new", "passwd"]);
    assert_eq!(u.on_disk("1/etc"), ["hostname", "hosts", "resolv.conf"]);
    assert_eq!(u.list("etc"), ["hosts", "new", "passwd"]);
    u.write("etc/hostname", "mine");
    assert_eq!(fs::read_to_string(u.at("0/etc/hostname")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(u.at("1/etc/hostname")).unwrap(), "init");
    u.remount_and_compare();
}

#[test]
fn a_visible_name_is_eexist_wherever_it_lies() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("0/top", "").file("1/low", "").dir("2/dir").symlink("1/link", "nowhere");
    let u = branches.mount();
    for name in ["top", "low", "dir", "link"] {
        let path = u.path(name);
        assert_eq!(fs::create_dir(&path).errno(), Errno::EEXIST, "{name}");
        assert_eq!(symlink("x", &path).errno(), Errno::EEXIST, "{name}");
        assert_eq!(mkfifo(&path, Mode::S_IRWXU).errno(), Errno::EEXIST, "{name}");
        assert_eq!(fs::hard_link(u.path("top"), &path).errno(), Errno::EEXIST, "{name}");
        assert_eq!(fs::File::create_new(&path).errno(), Errno::EEXIST, "{name}");
    }
    assert_eq!(u.on_disk("0"), ["top"], "a refused creation leaves nothing");
}

#[test]
fn creating_over_a_whiteout_starts_afresh_and_takes_the_whiteout_away() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for name in ["file", "link", "fifo", "hard"] {
        branches.file(format!("1/d/{name}"), "old content").mode(format!("1/d/{name}"), 0o711);
        branches.whiteout(format!("0/d/{name}"));
    }
    branches.file("0/source", "");
    let mut u = branches.mount();
    assert_eq!(u.list("d"), [""; 0]);
    u.write("d/file", "new");
    symlink("target", u.path("d/link")).unwrap();
    mkfifo(&u.path("d/fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    fs::hard_link(u.path("source"), u.path("d/hard")).unwrap();
    assert_eq!(u.on_disk("0/d"), ["fifo", "file", "hard", "link"], "no whiteout is left");
    assert_eq!((u.read("d/file"), u.mode("d/file")), ("new".into(), 0o644));
    assert_eq!(fs::read_link(u.path("d/link")).unwrap(), Path::new("target"));
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn an_unnamed_temporary_file_is_eopnotsupp() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let u = branches.mount();
    let open = fs::File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(u.path(""));
    assert_eq!(open.errno(), Errno::EOPNOTSUPP);
}

#[test]
fn mkdir_over_what_would_merge_is_opaque_and_a_fresh_name_is_not() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("1/removed/x", "").whiteout("0/hidden").file("1/hidden/x", "");
    branches.whiteout("1/middle").file("2/middle/x", "");
    let mut u = branches.mount();
    fs::remove_file(u.path("removed/x")).unwrap();
    fs::remove_dir(u.path("removed")).unwrap();
    for name in ["removed", "hidden", "middle", "fresh"] {
        fs::create_dir(u.path(name)).unwrap();
        assert_eq!(u.list(name), [""; 0], "{name}");
    }
    u.assert_opaque("0/removed");
    u.assert_opaque("0/hidden");
    assert_eq!(u.on_disk("0/fresh"), [""; 0], "a fresh name needs no mark");
    assert_eq!(u.on_disk("0/middle"), [""; 0], "the whiteout in the middle still hides what is below");
    assert_eq!(u.on_disk("0"), ["fresh", "hidden", "middle", "removed"]);
    u.remount_and_compare();
    assert_eq!(u.list("removed"), [""; 0]);
}

#[test]
fn mkdir_in_the_place_of_a_removed_file_over_a_directory_shows_nothing_of_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("0/n", "file above").file("1/n/x", "").file("1/m", "").file("2/m/y", "");
    let mut u = branches.mount();
    for name in ["n", "m"] {
        fs::remove_file(u.path(name)).unwrap();
        fs::create_dir(u.path(name)).unwrap();
        assert_eq!(u.list(name), [""; 0], "{name}");
    }
    u.remount_and_compare();
}

#[test]
fn the_callers_umask_is_applied_and_not_the_daemons() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/low");
    let u = branches.mount();
    for (mask, number) in [(0o000, 0), (0o022, 1), (0o077, 2), (0o777, 3)] {
        umask(Mode::from_bits_truncate(mask));
        let at = |name: &str| u.path(format!("low/{name}{number}"));
        drop(fs::File::create(at("file")).unwrap());
        drop(fs::File::options().write(true).create_new(true).mode(0o4755).open(at("set-id")).unwrap());
        fs::create_dir(at("dir")).unwrap();
        mkfifo(&at("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
        mknod(&at("node"), SFlag::S_IFREG, Mode::from_bits_truncate(0o666), 0).unwrap();
        mknod(&at("device"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), nix::sys::stat::makedev(1, 3)).unwrap();
        symlink("x", at("link")).unwrap();
        let expected = [("file", 0o666), ("set-id", 0o4755), ("dir", 0o777), ("fifo", 0o666), ("node", 0o666)];
        for (name, mode) in expected.into_iter().chain([("device", 0o666)]) {
            let name = format!("low/{name}{number}");
            assert_eq!(u.mode(&name), mode & !mask, "{name} under umask {mask:03o}");
            assert_eq!(u.mode(&name), fs::symlink_metadata(u.at(format!("0/{name}"))).unwrap().mode() & 0o7777);
        }
        assert_eq!(u.mode(format!("low/link{number}")), 0o777);
    }
    umask(Mode::from_bits_truncate(0o022));
}

#[test]
fn a_new_entry_belongs_to_the_caller() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/open").mode("1/open", 0o777);
    let mut u = branches.mount();
    let directory = u.path("open");
    as_user(1234, 5678, || {
        fs::write(directory.join("f"), "mine").unwrap();
        fs::create_dir(directory.join("d")).unwrap();
        fs::write(directory.join("d/inside"), "").unwrap();
        symlink("x", directory.join("l")).unwrap();
        mkfifo(&directory.join("p"), Mode::S_IRWXU).unwrap();
    });
    for name in ["f", "d", "d/inside", "l", "p"] {
        let stat = u.stat(Path::new("open").join(name));
        assert_eq!((stat.uid(), stat.gid()), (1234, 5678), "{name}");
    }
    u.remount_and_compare();
}

#[test]
fn a_setgid_parent_gives_its_group_and_subdirectories_the_bit() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/shared").owner("1/shared", 0, 77).mode("1/shared", 0o2777);
    let u = branches.mount();
    let directory = u.path("shared");
    as_user(1234, 5678, || {
        fs::write(directory.join("f"), "").unwrap();
        fs::create_dir(directory.join("d")).unwrap();
        fs::create_dir(directory.join("d/e")).unwrap();
        symlink("x", directory.join("l")).unwrap();
    });
    for name in ["f", "d", "d/e", "l"] {
        let stat = u.stat(Path::new("shared").join(name));
        assert_eq!((stat.uid(), stat.gid()), (1234, 77), "{name}");
    }
    assert_eq!((u.mode("shared/f"), u.mode("shared/d"), u.mode("shared/d/e")), (0o644, 0o2755, 0o2755));
    assert_eq!(u.mode("shared"), 0o2777, "bringing the parent up kept its mode");
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/acl").dir("plain");
    for directory in [branches.at("1/acl"), branches.at("plain")] {
        run(std::process::Command::new("setfacl").args(["-m", "d:u:1234:rwx,d:g::rwx,d:o::---"]).arg(directory));
    }
    let u = branches.mount();
    umask(Mode::from_bits_truncate(0o077));
    for directory in [u.path("acl"), u.at("plain")] {
        fs::write(directory.join("f"), "").unwrap();
        fs::create_dir(directory.join("d")).unwrap();
        fs::create_dir(directory.join("d/e")).unwrap();
        mkfifo(&directory.join("p"), Mode::from_bits_truncate(0o666)).unwrap();
        symlink("x", directory.join("l")).unwrap();
    }
    umask(Mode::from_bits_truncate(0o022));
    for name in ["f", "d", "d/e", "p", "l"] {
        let plain = u.at("plain").join(name);
        assert_eq!(u.mode(format!("acl/{name}")), fs::symlink_metadata(&plain).unwrap().mode() & 0o7777, "{name}");
        let (ours, theirs) = (u.path("acl").join(name), plain);
        assert_eq!(harness::snapshot::xattrs(&ours).unwrap(), harness::snapshot::xattrs(&theirs).unwrap(), "{name}");
    }
    assert_eq!(u.mode("acl/f"), 0o660);
}

#[test]
fn what_a_failed_creation_began_is_gone() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/d").mode("1/d", 0o755);
    let u = branches.mount();
    let directory = u.path("d");
    as_user(1234, 5678, || {
        assert_eq!(fs::write(directory.join("f"), "").errno(), Errno::EACCES);
        assert_eq!(fs::create_dir(directory.join("e")).errno(), Errno::EACCES);
    });
    assert_eq!(fs::write(u.path("missing/f"), "").errno(), Errno::ENOENT);
    u.write("file", "");
    assert_eq!(fs::write(u.path("file/f"), "").errno(), Errno::ENOTDIR);
    assert_eq!(u.on_disk("0"), ["file"]);
    u.assert_no_temporaries(0);
}
