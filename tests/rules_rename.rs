//! Rules 23 to 26: what a rename leaves behind, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use harness::fixture::{Branches, Union};
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{CWD, RenameFlags, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn rename(u: &Union, from: &str, to: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, u.path(from), CWD, u.path(to), flags)
}

#[test]
fn a_file_below_is_brought_up_and_its_old_name_hidden() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a/f", "content").mode("1/a/f", 0o640).owner("1/a/f", 3, 4).dir("1/b").symlink("1/a/l", "to");
    let mut u = branches.mount();
    let (ino, mtime) = (u.stat("a/f").ino(), u.stat("a/f").mtime_nsec());
    fs::rename(u.path("a/f"), u.path("b/g")).unwrap();
    fs::rename(u.path("a/l"), u.path("b/l")).unwrap();
    assert_eq!(u.read("b/g"), "content");
    let stat = u.stat("b/g");
    assert_eq!((u.mode("b/g"), stat.uid(), stat.gid()), (0o640, 3, 4));
    assert_eq!((stat.ino(), stat.mtime_nsec()), (ino, mtime), "the object is the same");
    assert_eq!(fs::read_link(u.path("b/l")).unwrap(), Path::new("to"));
    assert_eq!(
        (u.on_disk("0/a"), u.on_disk("0/b")),
        (vec![".wh.f".into(), ".wh.l".into()], vec!["g".into(), "l".into()])
    );
    u.assert_whiteout("0/a/f");
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn a_file_of_the_top_leaves_a_whiteout_only_where_something_lies_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/over", "top").file("1/over", "below").file("0/alone", "top");
    let mut u = branches.mount();
    fs::rename(u.path("over"), u.path("over2")).unwrap();
    fs::rename(u.path("alone"), u.path("alone2")).unwrap();
    assert_eq!(u.on_disk("0"), [".wh.over", "alone2", "over2"]);
    u.remount_and_compare();
    fs::rename(u.path("over2"), u.path("over")).unwrap();
    assert_eq!(u.on_disk("0"), ["alone2", "over"], "the whiteout of the target is dropped");
    u.remount_and_compare();
}

#[test]
fn a_target_below_is_replaced_without_a_whiteout() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/new", "new").file("1/target", "old").file("1/low", "low").file("1/target2", "old");
    let mut u = branches.mount();
    fs::rename(u.path("new"), u.path("target")).unwrap();
    fs::rename(u.path("low"), u.path("target2")).unwrap();
    assert_eq!((u.read("target"), u.read("target2")), ("new".into(), "low".into()));
    assert_eq!(u.on_disk("0"), [".wh.low", "target", "target2"]);
    u.remount_and_compare();
}

#[test]
fn a_name_that_was_renamed_over_stays_gone() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/old", "below").file("1/f", "below").file("1/g", "below");
    let mut u = branches.mount();
    // The three ways in which a remembered hint instead of a question brings a name back.
    fs::rename(u.path("old"), u.path("new")).unwrap();
    u.write("x", "x");
    fs::rename(u.path("x"), u.path("old")).unwrap();
    fs::rename(u.path("old"), u.path("y")).unwrap();
    fs::remove_file(u.path("f")).unwrap();
    u.write("f", "fresh");
    fs::rename(u.path("f"), u.path("f2")).unwrap();
    u.write("t", "t");
    fs::rename(u.path("t"), u.path("g")).unwrap();
    fs::rename(u.path("g"), u.path("g2")).unwrap();
    for _remounted in 0..2 {
        assert_eq!(u.list(""), ["f2", "g2", "new", "y"]);
        assert_eq!(fs::symlink_metadata(u.path("old")).errno(), Errno::ENOENT);
        u.mounted.remount();
    }
    assert_eq!(u.read("new"), "below");
}

#[test]
fn an_editor_saves_by_rename_again_and_again() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/etc/config", "0").file("1/etc/backup~", "old backup");
    let mut u = branches.mount();
    for round in 1..6 {
        u.write("etc/.config.swp", format!("{round}"));
        fs::rename(u.path("etc/config"), u.path("etc/backup~")).unwrap();
        fs::rename(u.path("etc/.config.swp"), u.path("etc/config")).unwrap();
        assert_eq!((u.read("etc/config"), u.read("etc/backup~")), (round.to_string(), (round - 1).to_string()));
        u.remount_and_compare();
    }
    assert_eq!(u.on_disk("0/etc"), ["backup~", "config"]);
}

#[test]
fn noreplace_sees_every_branch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/f", "f").file("1/low", "low").file("1/hidden", "").whiteout("0/hidden");
    let u = branches.mount();
    assert_eq!(rename(&u, "f", "low", RenameFlags::NOREPLACE).errno(), Errno::EEXIST);
    assert_eq!(rename(&u, "low", "f", RenameFlags::NOREPLACE).errno(), Errno::EEXIST);
    assert_eq!(u.on_disk("0"), [".wh.hidden", "f"], "a refused rename changes nothing");
    rename(&u, "f", "hidden", RenameFlags::NOREPLACE).unwrap();
    assert_eq!((u.list(""), u.read("hidden")), (vec!["hidden".into(), "low".into()], "f".into()));
}

#[test]
fn an_exchange_takes_both_from_wherever_they_are() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "top").file("1/low", "low").file("1/low2", "low2");
    branches.file("0/dir/x", "x").symlink("1/link", "to");
    let mut u = branches.mount();
    rename(&u, "top", "low", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((u.read("top"), u.read("low")), ("low".into(), "top".into()));
    rename(&u, "low2", "link", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((u.read("link"), fs::read_link(u.path("low2")).unwrap()), ("low2".into(), PathBuf::from("to")));
    rename(&u, "dir", "link", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((u.read("dir"), u.list("link")), ("low2".into(), vec!["x".into()]));
    u.remount_and_compare();
    assert_eq!(rename(&u, "top", "missing", RenameFlags::EXCHANGE).errno(), Errno::ENOENT);
    assert_eq!(rename(&u, "missing", "top", RenameFlags::EXCHANGE).errno(), Errno::ENOENT);
    fs::remove_file(u.path("low")).unwrap();
    fs::remove_file(u.path("top")).unwrap();
    u.mounted.remount();
    assert_eq!(u.list(""), ["dir", "link", "low2"], "both names stay gone");
}

#[test]
fn exchanged_directories_do_not_merge_with_what_lies_below_their_new_name() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/a/mine", "").file("0/b", "file").file("1/b/below", "").file("0/fresh/x", "").file("0/other/y", "");
    let mut u = branches.mount();
    rename(&u, "a", "b", RenameFlags::EXCHANGE).unwrap();
    rename(&u, "fresh", "other", RenameFlags::EXCHANGE).unwrap();
    for _remounted in 0..2 {
        assert_eq!((u.list("b"), u.read("a")), (vec!["mine".into()], "file".into()));
        assert_eq!((u.list("fresh"), u.list("other")), (vec!["y".into()], vec!["x".into()]));
        u.mounted.remount();
    }
    assert_eq!(u.on_disk("0/fresh"), ["y"], "no mark where nothing lies below");
}

#[test]
fn rename_whiteout_leaves_a_device_and_mknod_makes_one() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low", "low").file("0/top", "top");
    let mut u = branches.mount();
    for name in ["low", "top"] {
        rename(&u, name, &format!("{name}2"), RenameFlags::WHITEOUT).unwrap();
        assert_eq!(u.read(format!("{name}2")), name);
        assert!(u.stat(name).file_type().is_char_device(), "{name}: an ordinary entry, that is shown");
        assert_eq!(u.stat(name).rdev(), 0);
    }
    nix::sys::stat::mknod(&u.path("made"), nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR, 0).unwrap();
    assert_eq!(u.stat("made").rdev(), 0);
    u.remount_and_compare();
    assert_eq!(u.list(""), ["low", "low2", "made", "top", "top2"]);
}

#[test]
fn unknown_flags_are_einval() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/f", "").file("0/g", "");
    let u = branches.mount();
    let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    for flags in [RenameFlags::from_bits_retain(8), RenameFlags::from_bits_retain(1 << 30), both] {
        assert_eq!(rename(&u, "f", "g", flags).errno(), Errno::EINVAL, "{flags:?}");
    }
}

#[test]
fn names_of_one_inode_are_left_alone() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/a", "x").hard_link("0/a", "0/b").file("1/c", "y").hard_link("1/c", "1/d");
    let u = branches.mount();
    fs::rename(u.path("a"), u.path("b")).unwrap();
    fs::rename(u.path("c"), u.path("d")).unwrap();
    fs::rename(u.path("c"), u.path("c")).unwrap();
    assert_eq!(u.list(""), ["a", "b", "c", "d"], "POSIX: both names remain");
}

#[test]
fn a_directory_of_the_top_alone_is_renamed_and_opaque_only_where_it_must_be() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/a/x", "x").file("0/b/y", "y").file("0/c/z", "z");
    branches.dir("1/target").file("1/was/old", "").file("1/file", "");
    let mut u = branches.mount();
    let ino = u.stat("a").ino();
    fs::rename(u.path("a"), u.path("fresh")).unwrap();
    assert_eq!(u.on_disk("0/fresh"), ["x"], "nothing below: no mark");
    assert_eq!(u.stat("fresh").ino(), ino);
    fs::rename(u.path("b"), u.path("target")).unwrap();
    assert_eq!(u.list("target"), ["y"]);
    fs::remove_dir_all(u.path("was")).unwrap();
    fs::rename(u.path("c"), u.path("was")).unwrap();
    u.assert_opaque("0/was");
    assert_eq!(u.list("was"), ["z"]);
    assert_eq!(u.on_disk("0"), ["fresh", "target", "was"]);
    u.assert_no_temporaries(0);
    u.remount_and_compare();
    assert_eq!((u.list("was"), u.list("target")), (vec!["z".into()], vec!["y".into()]));
}

#[test]
fn a_target_directory_must_be_logically_empty() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/a").file("1/full/x", "").file("1/emptied/x", "").dir("0/d/sub").file("0/f", "");
    branches.file("1/partly/x", "").dir("0/partly");
    let mut u = branches.mount();
    for target in ["full", "partly"] {
        assert_eq!(fs::rename(u.path("a"), u.path(target)).errno(), Errno::ENOTEMPTY, "{target}");
    }
    assert_eq!(fs::rename(u.path("d"), u.path("d/sub/e")).errno(), Errno::EINVAL);
    assert_eq!(fs::rename(u.path("a"), u.path("f")).errno(), Errno::ENOTDIR);
    assert_eq!(fs::rename(u.path("f"), u.path("a")).errno(), Errno::EISDIR);
    assert_eq!(fs::rename(u.path("f"), u.path("full")).errno(), Errno::EISDIR);
    assert_eq!((u.list("full"), u.list("partly")), (vec!["x".into()], vec!["x".into()]), "refusals lost no whiteout");
    fs::remove_file(u.path("emptied/x")).unwrap();
    fs::rename(u.path("a"), u.path("emptied")).unwrap();
    assert_eq!(u.list("emptied"), [""; 0]);
    u.assert_opaque("0/emptied");
    u.assert_no_temporaries(0);
    u.remount_and_compare();
    assert_eq!(u.list("emptied"), [""; 0]);
}

#[test]
fn a_renamed_directory_takes_its_whiteouts_along() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.opaque("0/d").file("0/d/x", "x").file("1/d/y", "y").file("0/d/sub/deep", "deep");
    let mut u = branches.mount();
    fs::rename(u.path("d"), u.path("e")).unwrap();
    for _remounted in 0..2 {
        assert_eq!((u.list(""), u.list("e")), (vec!["e".into()], vec!["sub".into(), "x".into()]));
        assert_eq!(u.read("e/sub/deep"), "deep");
        u.mounted.remount();
    }
    u.assert_whiteout("0/d");
}

#[test]
fn an_entry_beside_its_own_whiteout_is_moved_replaced_and_removed() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for name in ["d", "e", "r"] {
        branches.whiteout(format!("0/{name}")).file(format!("0/{name}/top"), "").file(format!("1/{name}/low"), "");
    }
    branches
        .whiteout("0/f")
        .file("0/f", "top")
        .file("1/f", "low")
        .dir("0/empty")
        .dir("1/target")
        .whiteout("0/target")
        .dir("0/target");
    branches.file("1/target/low", "").file("1/place/low", "").whiteout("0/place");
    let mut u = branches.mount();
    fs::rename(u.path("d"), u.path("moved")).unwrap();
    fs::rename(u.path("e"), u.path("place")).unwrap();
    fs::rename(u.path("empty"), u.path("target")).unwrap();
    fs::rename(u.path("f"), u.path("f2")).unwrap();
    fs::remove_dir_all(u.path("r")).unwrap();
    for _remounted in 0..2 {
        assert_eq!(u.list(""), ["f2", "moved", "place", "target"]);
        assert_eq!(
            (u.list("moved"), u.list("place"), u.list("target")),
            (vec!["top".into()], vec!["top".into()], vec![])
        );
        assert_eq!(u.read("f2"), "top");
        u.mounted.remount();
    }
}

#[test]
fn open_handles_and_working_directories_follow_a_rename() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low", "low").file("0/d/f", "f");
    let u = branches.mount();
    let (low, f) =
        (fs::File::open(u.path("low")).unwrap(), fs::File::options().append(true).open(u.path("d/f")).unwrap());
    fs::rename(u.path("low"), u.path("low2")).unwrap();
    fs::rename(u.path("d"), u.path("e")).unwrap();
    std::io::Write::write_all(&mut &f, b" more").unwrap();
    assert_eq!(u.read("e/f"), "f more");
    assert_eq!(low.metadata().unwrap().ino(), u.stat("low2").ino());
    low.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(u.mode("low2"), 0o600);
    u.write("low2", "changed");
    assert_eq!(std::io::read_to_string(&low).unwrap(), "changed");
}

#[test]
fn between_two_writable_branches_the_result_is_seen() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.file("1/a/f", "one").file("0/b/g", "zero").file("2/c/h", "two").dir("1/c").file("1/b/x", "hidden?");
    let mut u = branches.mount();
    fs::rename(u.path("a/f"), u.path("b/f")).unwrap();
    fs::rename(u.path("b/g"), u.path("a/g")).unwrap();
    fs::rename(u.path("c/h"), u.path("b/x")).unwrap();
    for _remounted in 0..2 {
        assert_eq!((u.read("b/f"), u.read("a/g"), u.read("b/x")), ("one".into(), "zero".into(), "two".into()));
        assert_eq!((u.list("a"), u.list("b"), u.list("c")), (vec!["g".into()], vec!["f".into(), "x".into()], vec![]));
        u.mounted.remount();
    }
}

#[test]
fn a_name_that_is_renamed_over_by_many_is_always_there() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/n", "0");
    let u = branches.mount();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let u = &u;
                scope.spawn(move || {
                    for round in 0..150 {
                        u.write(format!("d/tmp{writer}"), format!("{writer}-{round}"));
                        fs::rename(u.path(format!("d/tmp{writer}")), u.path("d/n")).unwrap();
                    }
                })
            })
            .collect();
        let mut reads = 0;
        while writers.iter().any(|writer| !writer.is_finished()) || reads < 50 {
            let text = u.read("d/n");
            assert!(text == "0" || text.contains('-'), "a reader saw {text:?}");
            reads += 1;
        }
    });
    assert_eq!(u.list("d"), ["n"]);
    assert_eq!(u.on_disk("0/d"), ["n"]);
    u.assert_no_temporaries(0);
}
