//! `runionfs export`: the top as a layer, read by others over the same branches below.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, finish};
use harness::old_kernel::pretended;
use harness::ops::{Caller, acts};
use harness::sandbox::{self, Medium, run};
use harness::snapshot::{Exactness, Kind, Snapshot};
use harness::tree::layouts;
use harness::trial::{Ground, fail, number, try_many};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

#[path = "support/exporting.rs"]
mod exporting;

use exporting::{export, export_silently};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Unpacks an archive as a layer is unpacked into a branch of its own.
#[track_caller]
fn untar(layer: &Path, into: &Path) {
    fs::create_dir(into).unwrap();
    let options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"];
    run(Command::new("tar").arg("-C").arg(into).args(options).arg(layer));
}

/// The members of an archive as tar lists them.
fn members(layer: &Path) -> Vec<String> {
    let outcome = finish(Command::new("tar").arg("--quoting-style=escape").arg("-tf").arg(layer));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    outcome.stdout.lines().map(str::to_owned).collect()
}

/// The top of a union goes away and comes back from its layer: the union is the same.
#[track_caller]
fn assert_comes_back(mut union: Union, what: &str) {
    let before = Snapshot::take(union.mounted.target());
    let layer = union.at("layer.tar");
    export_silently(union.mounted.target(), &layer);
    union.mounted.umount();
    fs::rename(union.at("0"), union.at("former")).unwrap();
    untar(&layer, &union.at("0"));
    union.mounted.mount_again();
    before.assert_same(&Snapshot::take(union.mounted.target()), Exactness::Equal, what);
}

#[test]
fn a_top_that_was_exported_and_unpacked_by_tar_gives_the_same_union() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    let trials = Cell::new(0);
    let values = (layouts(), prop::collection::vec(acts(), 0..60));
    try_many(number("RUNIONFS_EXPORT_CASES", 50), &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let ground = Ground::new(sandbox.path(), &trials.get().to_string(), &layout).expect("write the branches");
        let acts = ground.rehearse(&acts).expect("rehearse");
        let mut mounted = ground.mount(BIN);
        let mut caller = Caller::new(mounted.target());
        for act in &acts {
            let (Ok(_) | Err(_)) = caller.act(act);
        }
        caller.close_all();
        let layer = ground.at("layer.tar");
        // sockets are left out, with a note each
        let outcome = export(mounted.target(), &layer);
        if outcome.status != Some(0) {
            return fail(format!("export says {}", outcome.stderr));
        }
        let check = finish(Command::new(BIN).arg("check").arg(mounted.target()));
        let before = without_sockets(Snapshot::take(mounted.target()));
        mounted.umount();
        let (applied, again) = (ground.at("applied"), ground.at("again.tar"));
        let apply = finish(Command::new(BIN).arg("apply").arg(&layer).arg(&applied));
        // the top may have been empty, and an empty directory is no union unless one says so
        let once_more = export(format!("{}=rw", applied.display()), &again);
        for (outcome, what) in [(check, "check"), (apply, "apply"), (once_more, "the second export")] {
            if outcome.status != Some(0) {
                return fail(format!("{what} says {}{}", outcome.stdout, outcome.stderr));
            }
        }
        if fs::read(&layer).expect("read a layer") != fs::read(&again).expect("read a layer") {
            return fail("a layer that was unpacked and exported is another one");
        }
        fs::rename(ground.at("0"), ground.at("former")).expect("put the top away");
        untar(&layer, &ground.at("0"));
        mounted.mount_again();
        let mut after = without_sockets(Snapshot::take(mounted.target()));
        // of what is written out of a branch below, names that are no part of it stay there, as another file
        for (path, entry) in &mut after.entries {
            let is_written_out = is_there(&ground.at("0").join(path)) && !is_there(&ground.at("former").join(path));
            if let Some(before) = before.entries.get(path).filter(|before| is_written_out && before.nlink > entry.nlink)
            {
                entry.nlink = before.nlink;
            }
        }
        let lines = before.difference(&after, Exactness::Equal);
        if lines.is_empty() { Ok(()) } else { fail(format!("the layer is another top:\n{}", lines.join("\n"))) }
    });
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn without_sockets(tree: Snapshot) -> Snapshot {
    let sockets: Vec<_> =
        tree.entries.iter().filter(|(_, entry)| entry.kind == Kind::Socket).map(|(path, _)| path.clone()).collect();
    tree.without(|path| sockets.iter().any(|socket| socket == path))
}

#[test]
fn everything_an_entry_has_is_in_the_layer() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/below", "below").dir("1/d/e").file("1/d/e/f", "f");
    let union = branches.mount();
    union.write("file", "content");
    fs::hard_link(union.path("file"), union.path("another")).unwrap();
    symlink("nowhere", union.path("link")).unwrap();
    fs::hard_link(union.path("link"), union.path("link2")).unwrap();
    symlink("x/".repeat(100), union.path("long-link")).unwrap();
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("large", FileType::BlockDevice, rustix::fs::makedev(4_095, 1_048_575)),
    ] {
        rustix::fs::mknodat(CWD, union.path(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    std::os::unix::fs::lchown(union.path("null"), Some(3_000_000_000), Some(2_097_152)).unwrap();
    rustix::fs::lsetxattr(union.path("file"), "user.with=and%", b"\0\n=", XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(union.path("file"), "trusted.t", b"t", XattrFlags::empty()).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::lsetxattr(union.path("file"), "security.capability", capability, XattrFlags::empty()).unwrap();
    if pretended().heeds_acls() {
        run(Command::new("setfacl").args(["-m", "u:1000:rw,g:1001:r"]).arg(union.path("file")));
        run(Command::new("setfacl").args(["-m", "u:1000:rwx", "-d", "-m", "g:1001:r"]).arg(union.path("d")));
    }
    fs::create_dir_all(union.path("long".repeat(50)).join("name".repeat(60))).unwrap();
    union.write(Path::new(&"long".repeat(50)).join("name".repeat(60)).join("f"), "deep");
    union.write("holes", "");
    fs::File::options().write(true).open(union.path("holes")).unwrap().set_len(3 << 20).unwrap();
    for (name, time) in [("past", "-12.25"), ("future", "9999999999.5")] {
        union.write(name, "");
        run(Command::new("touch").args(["-m", "-d", &format!("@{time}")]).arg(union.path(name)));
    }
    fs::remove_file(union.path("below")).unwrap();
    fs::remove_dir_all(union.path("d/e")).unwrap();
    fs::create_dir(union.path("d/e")).unwrap();
    assert_comes_back(union, "an attribute is lost");
}

#[test]
fn the_layer_holds_marks_and_no_bookkeeping_and_is_sorted() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for name in ["gone", "d/gone", "d/kept", "o/below"] {
        branches.file(format!("1/{name}"), "");
    }
    branches.dir("0/.wh..wh.plnk").file("0/.wh..wh.aufs", "").dir("0/.wh..wh.orph");
    branches.file("0/d/.wh..wh.kept.12ab", "").file("0/#early", "").file("0/a-b", "").file("0/a/b", "");
    let union = branches.mount();
    fs::remove_file(union.path("gone")).unwrap();
    fs::remove_file(union.path("d/gone")).unwrap();
    fs::remove_dir_all(union.path("o")).unwrap();
    fs::create_dir(union.path("o")).unwrap();
    union.write("o/new", "");
    let layer = union.at("layer.tar");
    export_silently(union.path(""), &layer);
    let expected =
        ["./", ".wh.gone", "#early", "a/", "a/b", "a-b", "d/", "d/.wh.gone", "o/", "o/.wh..wh..opq", "o/new"];
    assert_eq!(members(&layer), expected);
    // to standard output, and from the branches alone, the same bytes
    let bytes = fs::read(&layer).unwrap();
    let piped = Command::new(BIN).arg("export").arg(union.path("")).output().unwrap();
    assert!(piped.status.success() && piped.stdout == bytes);
    let alone = Command::new(BIN).arg("export").arg(union.at("0")).output().unwrap();
    assert!(alone.status.success() && alone.stdout == bytes);
}

#[test]
fn an_entry_beside_its_whiteout_is_written_without_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/below", "").file("1/f", "").file("0/f", "new").file("0/d/top", "");
    branches.whiteout("0/d").whiteout("0/f").whiteout("0/d/useless");
    let union = branches.mount();
    let layer = union.at("layer.tar");
    export_silently(union.branches().string(), &layer);
    assert_eq!(members(&layer), ["./", "d/", "d/.wh..wh..opq", "d/top", "f"]);
    assert_comes_back(union, "what the whiteouts hid has come back");
}

#[test]
fn a_long_name_is_hidden_by_a_whiteout_with_its_whole_name() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let long = "n".repeat(255);
    branches.file(format!("1/{long}"), "");
    let mut union = branches.mount();
    fs::remove_file(union.path(&long)).unwrap();
    let layer = union.at("layer.tar");
    export_silently(union.path(""), &layer);
    assert_eq!(members(&layer), ["./".to_owned(), format!(".wh.{long}")]);
    union.mounted.umount();
    fs::remove_dir_all(union.at("0")).unwrap();
    let outcome = finish(Command::new(BIN).arg("apply").arg(&layer).arg(union.at("0")));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    union.mounted.mount_again();
    assert!(!union.exists(&long));
}

#[test]
fn a_renamed_directory_is_written_out_in_full() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/d/deep/one", "one").file("2/d/two", "two").file("1/d/three", "three").whiteout("1/d/two");
    branches.file("2/d/gone", "").file("2/other/x", "x");
    branches.hard_link("2/d/deep/one", "2/d/deep/same");
    let union = branches.mount();
    fs::remove_file(union.path("d/gone")).unwrap();
    fs::rename(union.path("d"), union.path("moved")).unwrap();
    union.write("moved/new", "new");
    fs::rename(union.path("moved/deep"), union.path("other/deep")).unwrap();
    // a branch alone does not say what is in it
    let layer = union.at("layer.tar");
    let alone = export(union.at("0"), &layer);
    assert_eq!(alone.status, Some(1));
    assert!(alone.stderr.contains("give all branches") && alone.stderr.lines().count() == 1, "{}", alone.stderr);
    assert!(!layer.exists());
    export_silently(union.branches().string(), &layer);
    let expected = [
        "./",
        ".wh.d",
        "moved/",
        "moved/.wh..wh..opq",
        "moved/new",
        "moved/three",
        "other/",
        "other/deep/",
        "other/deep/.wh..wh..opq",
        "other/deep/one",
        "other/deep/same",
    ];
    assert_eq!(members(&layer), expected);
    assert_comes_back(union, "a renamed directory is another");
}

#[test]
fn names_of_a_hard_link_that_still_stand_below_are_written_too() {
    for mounted in [true, false] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        branches.file("1/a", "old").file("1/d/x", "").hard_link("1/a", "1/d/b").hard_link("1/a", "1/d/gone");
        let mut union = branches.mount();
        union.write("a", "new");
        fs::remove_file(union.path("d/gone")).unwrap();
        let layer = union.at("layer.tar");
        if !mounted {
            union.mounted.umount();
            let alone = export(union.at("0"), &layer);
            assert!(alone.status == Some(1) && alone.stderr.contains("give all branches"), "{alone:?}");
            export_silently(union.branches().string(), &layer);
            union.mounted.mount_again();
        } else {
            export_silently(union.path(""), &layer);
        }
        assert_eq!(members(&layer), ["./", "a", "d/", "d/.wh.gone", "d/b"]);
        assert_eq!((union.stat("a").nlink(), union.read("d/b")), (2, "new".to_owned()));
        assert_comes_back(union, "hard links are torn apart");
    }
}

#[test]
fn the_mode_of_the_file_is_the_callers_affair() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    branches.file("0/f", "");
    for (mask, mode) in [("022", 0o644), ("077", 0o600)] {
        let layer = branches.at(format!("{mask}.tar"));
        let command = format!("umask {mask}; exec {BIN} export {} -o {}", branches.at("0").display(), layer.display());
        let outcome = finish(Command::new("sh").args(["-c", &command]));
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
        assert_eq!(fs::metadata(&layer).unwrap().mode() & 0o7777, mode);
    }
}

#[test]
fn what_is_an_init_branchs_own_is_left_out() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh+init", "ro+wh"]) else { return };
    branches.file("1/etc/hosts", "hosts").file("1/etc/gone", "").dir("1/dev/pts");
    branches.file("2/etc/passwd", "root").file("2/etc/hosts", "image").file("2/usr/x", "");
    let union = branches.mount();
    let layer = union.at("layer.tar");
    let replace = |name: &str| {
        union.write("usr/new", name);
        fs::rename(union.path("usr/new"), union.path(name)).unwrap();
    };
    replace("etc/hosts");
    fs::remove_file(union.path("etc/gone")).unwrap();
    fs::create_dir(union.path("dev/pts/1")).unwrap();
    fs::remove_dir(union.path("dev/pts/1")).unwrap();
    export_silently(union.path(""), &layer);
    assert_eq!(members(&layer), ["./", "usr/"]);
    replace("etc/passwd");
    export_silently(union.path(""), &layer);
    assert_eq!(members(&layer), ["./", "etc/", "etc/passwd", "usr/"]);
}

#[test]
fn a_socket_is_left_out_and_what_it_hid_stays_hidden() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/name", "below");
    let union = branches.mount();
    fs::remove_file(union.path("d/name")).unwrap();
    rustix::fs::mknodat(CWD, union.path("d/name"), FileType::Socket, Mode::empty(), 0).unwrap();
    let layer = union.at("layer.tar");
    let outcome = export(union.path(""), &layer);
    assert_eq!(outcome.status, Some(0));
    assert_eq!(outcome.stderr, "runionfs: d/name is left out: it is a socket, which layers do not have\n");
    assert_eq!(members(&layer), ["./", "d/", "d/.wh.name"]);
}

#[test]
fn two_exports_are_the_same_bytes_and_no_time_is_later_than_the_epoch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let union = branches.mount();
    for name in ["a", "b", "d/c"] {
        fs::create_dir_all(union.path(name).parent().unwrap()).unwrap();
        union.write(name, name);
    }
    run(Command::new("touch").args(["-m", "-d", "@1000.5"]).arg(union.path("b")));
    let at = |name: &str, epoch: &str| {
        let layer = union.at(name);
        let mut command = Command::new(BIN);
        let outcome =
            finish(command.arg("export").arg(union.path("")).arg("-o").arg(&layer).env("SOURCE_DATE_EPOCH", epoch));
        (outcome, layer)
    };
    let (_, first) = at("first.tar", "2000");
    let (_, second) = at("second.tar", "2000");
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    untar(&first, &union.at("unpacked"));
    let time = |name: &str| {
        let about = fs::symlink_metadata(union.at("unpacked").join(name)).unwrap();
        (about.mtime(), about.mtime_nsec())
    };
    assert_eq!([time(""), time("a"), time("b"), time("d/c")], [(2000, 0), (2000, 0), (1000, 500_000_000), (2000, 0)]);
    let (refused, layer) = at("third.tar", "yesterday");
    assert_eq!((refused.status, layer.exists()), (Some(1), false));
    assert_eq!(refused.stderr, "runionfs: SOURCE_DATE_EPOCH=yesterday: it is no number of seconds\n");
}

/// The kernel gathers writes where it cannot write to the branch by itself.
#[test]
fn what_was_written_to_a_file_that_is_still_open_is_in_the_layer() {
    let Some(branches) = Branches::on(Medium::Disk, BIN, &["rw", "ro+wh"]) else { return };
    let u = branches.mount_with(&["passthrough=off"]);
    let content = vec![7; 64 << 20];
    let mut file = File::create(u.path("open")).unwrap();
    file.write_all(&content).unwrap();
    export_silently(u.path(""), &u.at("layer.tar"));
    untar(&u.at("layer.tar"), &u.at("unpacked"));
    assert!(fs::read(u.at("unpacked/open")).unwrap() == content, "the layer lacks some of what was written");
    file.write_all(b"more").unwrap();
    drop(file);
    assert_eq!(fs::metadata(u.at("0/open")).unwrap().len(), content.len() as u64 + 4);
}

#[test]
fn a_terminal_is_refused() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    branches.file("0/f", "");
    // script(1) runs it on a terminal of its own
    let command = format!("{BIN} export {}", branches.at("0").display());
    let outcome = finish(Command::new("script").args(["-qec", &command, "/dev/null"]));
    assert_eq!(outcome.status, Some(1));
    assert_eq!(
        outcome.stdout.trim_end(),
        "runionfs: a layer is no text for a terminal: give a file with -o, or a pipe"
    );
}

#[test]
fn a_top_in_the_form_of_overlayfs_becomes_a_layer() {
    let Some(branches) = Branches::new(BIN, &["ro+ovl", "ro+wh"]) else { return };
    branches
        .file("1/gone", "")
        .file("1/d/below", "")
        .file("1/old/inside", "x")
        .file("1/old/too", "")
        .file("1/kept", "");
    branches.file("0/d/top", "").dir("0/moved").file("0/moved/new", "");
    for hidden in ["0/gone", "0/old", "0/moved/too"] {
        rustix::fs::mknodat(CWD, branches.at(hidden), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }
    let mark = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(branches.at(path), format!("trusted.overlay.{name}"), value, XattrFlags::empty())
            .unwrap();
    };
    mark("0/d", "opaque", b"y");
    mark("0/moved", "redirect", b"/old");
    mark("0/d/top", "origin", b"");
    let layer = branches.at("layer.tar");
    let alone = export(format!("{}=ro+ovl", branches.at("0").display()), &layer);
    assert!(alone.status == Some(1) && alone.stderr.contains("give all branches"), "{alone:?}");
    export_silently(branches.string(), &layer);
    let expected = ["./", ".wh.gone", ".wh.old", "d/", "d/.wh..wh..opq", "d/top", "moved/", "moved/.wh..wh..opq"];
    assert_eq!(members(&layer), [&expected[..], &["moved/inside", "moved/new"]].concat());
    untar(&layer, &branches.at("layer"));
    let beside = format!("{}=ro+wh:{}=ro+wh", branches.at("layer").display(), branches.at("1").display());
    fs::create_dir(branches.at("beside")).unwrap();
    let beside = Mounted::mount(BIN, beside, &branches.at("beside"), &[]);
    let union = branches.mount();
    let (ours, theirs) = (Snapshot::take(union.mounted.target()), Snapshot::take(beside.target()));
    ours.assert_same(&theirs, Exactness::Equal, "the layer is another top");
}

#[test]
fn attributes_that_were_kept_for_an_ordinary_user_are_written_as_what_they_stand_for() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    branches.file("0/f", "f").file("0/null", "").dir("0/d").file("0/real", "");
    for (path, kept) in
        [("0", "0:0:0755:dir"), ("0/f", "7:8:4711:file"), ("0/null", "0:5:0666:char1:3"), ("0/d", "9:10:1777:dir")]
    {
        let name = "user.containers.override_stat";
        rustix::fs::lsetxattr(branches.at(path), name, kept.as_bytes(), XattrFlags::empty()).unwrap();
        branches.owner(path, 1000, 1000);
    }
    let layer = branches.at("layer.tar");
    export_silently(branches.at("0"), &layer);
    untar(&layer, &branches.at("unpacked"));
    let tree = Snapshot::take(&branches.at("unpacked"));
    let seen = |path: &str| {
        let entry = &tree.entries[Path::new(path)];
        assert!(entry.xattrs.is_empty(), "{path}: {:?}", entry.xattrs);
        (entry.kind, entry.uid, entry.gid, entry.mode, entry.rdev)
    };
    assert_eq!(seen(""), (Kind::Directory, 0, 0, 0o755, 0));
    assert_eq!(seen("f"), (Kind::File, 7, 8, 0o4711, 0));
    assert_eq!(seen("null"), (Kind::Character, 0, 5, 0o666, rustix::fs::makedev(1, 3)));
    assert_eq!(seen("d"), (Kind::Directory, 9, 10, 0o1777, 0));
    assert_eq!(seen("real"), (Kind::File, 0, 0, 0o644, 0));
}

#[test]
fn a_branch_that_is_mounted_elsewhere_is_not_needed() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/x", "x");
    let layer = branches.at("layer.tar");
    // nobody has to be able to write there
    let string = branches.string();
    let mounted = Mounted::mount(BIN, &string, &branches.at("mnt"), &[]);
    export_silently(&string, &layer);
    assert_eq!(members(&layer), ["./", "x"]);
    drop(mounted);
}

#[test]
fn an_empty_directory_alone_is_no_union() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    let (mount_point, layer) = (branches.at("mnt"), branches.at("layer.tar"));
    let outcome = export(&mount_point, &layer);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("is no mounted union, and empty"), "{outcome:?}");
    assert!(!layer.exists());
    // said so, it is a branch
    export_silently(format!("{}=rw", mount_point.display()), &layer);
}
