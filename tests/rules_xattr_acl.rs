//! Rules 8, 29 and 35: extended attributes, ACLs, and the bits that a write takes away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, as_user};
use harness::sandbox::run;
use harness::snapshot::xattrs;
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{XattrFlags, lgetxattr, lremovexattr, lsetxattr};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn attributes_are_set_read_listed_and_removed_on_every_branch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "").file("1/low", "").dir("1/dir").symlink("1/link", "low");
    for path in ["0/top", "1/low", "1/dir"] {
        lsetxattr(branches.at(path), "user.old", b"old", XattrFlags::empty()).unwrap();
    }
    lsetxattr(branches.at("1/link"), "trusted.old", b"old", XattrFlags::empty()).unwrap();
    let mut u = branches.mount();
    for (name, space) in [("top", "user"), ("low", "user"), ("dir", "user"), ("link", "trusted")] {
        let path = u.path(name);
        let [old, new] = ["old", "new"].map(|attribute| format!("{space}.{attribute}"));
        assert_eq!(lsetxattr(&path, &old, b"", XattrFlags::CREATE).errno(), Errno::EEXIST, "{name}");
        assert_eq!(lsetxattr(&path, &new, b"", XattrFlags::REPLACE).errno(), Errno::ENODATA, "{name}");
        assert_eq!(lremovexattr(&path, &new).errno(), Errno::ENODATA, "{name}");
        lsetxattr(&path, &new, b"value\0\xff", XattrFlags::CREATE).unwrap();
        lsetxattr(&path, &old, b"changed", XattrFlags::REPLACE).unwrap();
        assert_eq!(lgetxattr(&path, &new, &mut [0_u8; 3]).errno(), Errno::ERANGE, "{name}");
        assert_eq!(rustix::fs::lgetxattr_query(&path, &new).unwrap(), 7, "{name}");
        let expected = [(new.clone().into(), b"value\0\xff".to_vec()), (old.clone().into(), b"changed".to_vec())];
        assert_eq!(xattrs(&path).unwrap(), BTreeMap::from(expected), "{name}");
        lremovexattr(&path, &old).unwrap();
        assert_eq!(lgetxattr(&path, &old, &mut [0_u8; 99]).errno(), Errno::ENODATA, "{name}");
        assert_eq!(xattrs(&u.at(format!("0/{name}"))).unwrap().len(), 1, "{name} on disk");
    }
    u.remount_and_compare();
}

#[test]
fn names_and_values_are_bytes() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "");
    let name = OsStr::from_bytes(b"user.\xff\xfe\x01");
    let mut u = branches.mount();
    lsetxattr(u.path("f"), name, b"\0\x80", XattrFlags::empty()).unwrap();
    lsetxattr(u.path("f"), "user.empty", b"", XattrFlags::empty()).unwrap();
    lsetxattr(u.path("f"), "user.large", &[7; 3000], XattrFlags::empty()).unwrap();
    assert_eq!(xattrs(&u.path("f")).unwrap()[name], b"\0\x80");
    u.remount_and_compare();
    assert_eq!(xattrs(&u.path("f")).unwrap().len(), 3);
}

#[test]
fn an_acl_below_is_enforced_before_and_after_copy_up() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/granted", "content").mode("1/granted", 0o600).file("1/denied", "content").mode("1/denied", 0o666);
    run(Command::new("setfacl").args(["-m", "u:1234:rw"]).arg(branches.at("1/granted")));
    run(Command::new("setfacl").args(["-m", "u:1234:---"]).arg(branches.at("1/denied")));
    let mut u = branches.mount();
    let [granted, denied] = ["granted", "denied"].map(|name| u.path(name));
    for round in 0..3 {
        as_user(1234, 5678, || {
            assert_eq!(fs::read(&granted).unwrap(), b"content", "{round}");
            assert_eq!(fs::read(&denied).errno(), Errno::EACCES, "{round}");
            assert_eq!(File::options().append(true).open(&denied).errno(), Errno::EACCES, "{round}");
        });
        as_user(4321, 5678, || assert_eq!(fs::read(&granted).errno(), Errno::EACCES, "{round}"));
        match round {
            0 => [&granted, &denied].iter().for_each(|path| chown(path, Some(9), Some(9)).unwrap()),
            _ => u.remount_and_compare(),
        }
    }
    as_user(1234, 5678, || fs::write(&granted, "written").unwrap());
    assert_eq!(u.read("granted"), "written");
}

#[test]
fn acl_and_mode_are_two_views_of_one_thing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "").file("1/low", "").file("plain", "").dir("1/dir").dir("plain-dir");
    let mut u = branches.mount();
    let steps: [&[&str]; 5] = [
        &["setfacl", "-m", "u:1234:rwx,g:77:r-x"],
        &["chmod", "0640"],
        &["setfacl", "-m", "m::rwx"],
        &["setfacl", "-x", "u:1234"],
        &["setfacl", "-b"],
    ];
    for step in steps {
        for (ours, plain) in [("top", "plain"), ("low", "plain"), ("dir", "plain-dir")] {
            let (ours, plain) = (u.path(ours), u.at(plain));
            [&ours, &plain].iter().for_each(|path| run(Command::new(step[0]).args(&step[1..]).arg(path)));
            let mode = |path: &Path| fs::metadata(path).unwrap().mode();
            assert_eq!(mode(&ours), mode(&plain), "{} after {step:?}", ours.display());
            assert_eq!(xattrs(&ours).unwrap(), xattrs(&plain).unwrap(), "{} after {step:?}", ours.display());
        }
    }
    u.remount_and_compare();
}

#[test]
fn an_acl_that_says_no_more_than_a_mode_becomes_the_mode() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low", "").file("plain", "");
    let u = branches.mount();
    for path in [u.path("low"), u.at("plain")] {
        run(Command::new("setfacl").args(["--set", "u::rwx,g::r-x,o::---"]).arg(&path));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o750);
        assert_eq!(xattrs(&path).unwrap(), BTreeMap::new(), "{}", path.display());
    }
}

/// Something that a caller without privileges does to a file that it may write.
type Action = fn(&Path);

const STRIPPING: &[(&str, Action)] = &[
    ("write", |path| File::options().append(true).open(path).unwrap().write_all(b"x").unwrap()),
    ("truncate", |path| nix::unistd::truncate(path, 1).unwrap()),
    ("open with O_TRUNC", |path| drop(File::create(path).unwrap())),
    ("fallocate", |path| {
        let file = File::options().write(true).open(path).unwrap();
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 100).unwrap();
    }),
];

#[test]
fn a_change_by_an_unprivileged_caller_clears_set_id_bits() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let modes = [0o4777, 0o2777, 0o6777, 0o2767, 0o6766, 0o777];
    for (number, mode) in STRIPPING.iter().enumerate().flat_map(|(number, _)| modes.map(|mode| (number, mode))) {
        for place in ["0/top", "1/low", "1/up", "plain"] {
            let path = format!("{place}/{number}-{mode:o}");
            branches.file(&path, "content").owner(&path, 9, 9).mode(&path, mode);
        }
    }
    let mut u = branches.mount();
    for entry in u.list("up") {
        chown(u.path("up").join(&entry), Some(9), Some(9)).unwrap();
        let mode = u32::from_str_radix(entry.split_once('-').unwrap().1, 8).unwrap();
        fs::set_permissions(u.path("up").join(&entry), fs::Permissions::from_mode(mode)).unwrap();
    }
    let expected = |u: &harness::fixture::Union, entry: &str| fs::metadata(u.at("plain").join(entry)).unwrap().mode();
    let entries: Vec<String> = u.list("top");
    for entry in &entries {
        let (what, action) = STRIPPING[entry[..1].parse::<usize>().unwrap()];
        for path in [u.at("plain"), u.path("top"), u.path("low"), u.path("up")].map(|place| place.join(entry)) {
            as_user(1234, 5678, || action(&path));
            let mode = fs::metadata(&path).unwrap().mode();
            assert_eq!(mode, expected(&u, entry), "{what}: {} has {mode:o}", path.display());
        }
        for place in ["top", "low", "up"] {
            let disk = fs::metadata(u.at("0").join(place).join(entry)).unwrap().mode();
            assert_eq!(disk, expected(&u, entry), "{what}: {place}/{entry} has {disk:o} on disk");
        }
    }
    u.remount_and_compare();
}

#[test]
fn chown_clears_set_id_bits_and_capabilities() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for path in ["0/top", "1/low", "plain"] {
        branches.file(path, "content").owner(path, 9, 9).mode(path, 0o6755);
        lsetxattr(branches.at(path), "security.capability", &capability, XattrFlags::empty()).unwrap();
    }
    let mut u = branches.mount();
    for path in [u.at("plain"), u.path("top"), u.path("low")] {
        chown(&path, Some(10), Some(10)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755, "{}", path.display());
        assert_eq!(xattrs(&path).unwrap(), BTreeMap::new(), "{}", path.display());
    }
    u.remount_and_compare();
}

#[test]
fn a_write_clears_capabilities_even_for_root() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for path in ["0/top", "1/low", "plain"] {
        branches.file(path, "content").mode(path, 0o4755);
        lsetxattr(branches.at(path), "security.capability", &capability, XattrFlags::empty()).unwrap();
    }
    let mut u = branches.mount();
    for path in [u.at("plain"), u.path("top"), u.path("low")] {
        File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert_eq!(xattrs(&path).unwrap(), BTreeMap::new(), "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4755, "{}: root keeps the bit", path.display());
    }
    u.remount_and_compare();
}

#[test]
fn a_stripped_program_no_longer_gives_its_owners_rights() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for path in ["0/top", "1/low"] {
        branches.file(path, fs::read("/usr/bin/id").unwrap()).mode(path, 0o4777);
    }
    let u = branches.mount();
    for name in ["top", "low"] {
        let path = u.path(name);
        let effective = || {
            let script = "exec setpriv --reuid 1234 --regid 5678 --clear-groups \"$0\" -u";
            let output = Command::new("sh").args(["-c", script]).arg(&path).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(effective(), "0", "{name}: the bit works while it is there");
        as_user(1234, 5678, || File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap());
        assert_eq!(u.mode(name), 0o777, "{name}");
        assert_eq!(effective(), "1234", "{name}: the kernel has forgotten the bit, too");
    }
}

#[test]
fn set_id_bits_that_appear_under_an_open_file_are_cleared_by_a_write() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for path in ["0/top", "1/low"] {
        branches.file(path, "content").mode(path, 0o777);
    }
    let mut u = branches.mount();
    for name in ["top", "low"] {
        let path = u.path(name);
        let handles =
            as_user(1234, 5678, || [File::open(&path), File::options().append(true).open(&path)].map(Result::unwrap));
        let strips = |what: &str, write: &(dyn Fn() + Sync)| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
            assert_eq!(u.mode(name), 0o6777, "{name}");
            as_user(1234, 5678, write);
            let disk = fs::metadata(u.at("0").join(name)).unwrap().mode() & 0o7777;
            assert_eq!((u.mode(name), disk), (0o777, 0o777), "{name}: {what}");
        };
        strips("a handle opened before", &|| (&handles[1]).write_all(b"1").unwrap());
        strips("a handle opened after", &|| File::options().append(true).open(&path).unwrap().write_all(b"2").unwrap());
        strips("truncation by the handle", &|| handles[1].set_len(8).unwrap());
        strips("truncation by name", &|| nix::unistd::truncate(&path, 9).unwrap());
        drop(handles);
        assert_eq!(fs::read(&path).unwrap(), b"content1\0");
    }
    u.remount_and_compare();
}

#[test]
fn the_owner_alone_may_change_what_is_the_owners() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/mine", "").owner("1/mine", 1234, 5678).file("1/theirs", "").mode("1/theirs", 0o666);
    let u = branches.mount();
    let [mine, theirs] = ["mine", "theirs"].map(|name| u.path(name));
    as_user(1234, 5678, || {
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o611)).unwrap();
        lsetxattr(&mine, "user.x", b"", XattrFlags::empty()).unwrap();
        assert_eq!(fs::set_permissions(&theirs, fs::Permissions::from_mode(0o611)).errno(), Errno::EPERM);
        assert_eq!(chown(&mine, Some(1), None).errno(), Errno::EPERM);
        let long_ago = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let file = File::open(&theirs).unwrap();
        assert_eq!(file.set_times(long_ago).errno(), Errno::EPERM);
    });
    assert_eq!(u.mode("mine"), 0o611);
    assert_eq!(u.on_disk("0"), ["mine"], "what is refused brings nothing up");
}

/// The kernel asks for an ACL whenever somebody who is not the owner wants something.
#[test]
fn a_branch_without_acls_is_used_by_others_than_the_owner() {
    let Some(sandbox) = harness::sandbox::enter() else { return };
    std::fs::create_dir(sandbox.path().join("0")).expect("mkdir");
    let ramfs = sandbox.path().join("0");
    harness::sandbox::run(std::process::Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&ramfs));
    let union = Branches::inside(sandbox, BIN, &["rw"]).mount();
    union.write("file", "read by all");
    std::fs::set_permissions(union.path("file"), std::os::unix::fs::PermissionsExt::from_mode(0o664)).expect("chmod");
    let (file, root) = (union.path("file"), union.path(""));
    as_user(1_000, 1_000, || {
        assert_eq!(std::fs::read(&file).expect("read"), b"read by all");
        assert_eq!(std::fs::read_dir(&root).expect("list").count(), 1);
    });
}
