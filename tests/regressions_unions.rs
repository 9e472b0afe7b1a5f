//! One test for each defect C1 to C30 that was found in other union file systems: none of them may ever be ours. The
//! numbers are those of the survey; what each is about stands in the name.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use harness::fixture::{Branches, Union};
use harness::mount::Mounted;
use harness::sandbox::{self, run};
use harness::snapshot::{WORK_AREA, xattrs};
use harness::user_namespace::UserNamespace;
use harness::{Errno, ErrnoOf as _};
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags, utimensat};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Where the ids of a user namespace begin outside of it.
const FIRST_ID: u32 = 100_000;

/// A writable top over one read-only branch with whiteouts.
fn two() -> Option<Branches> {
    Branches::new(BIN, &["rw", "ro+wh"])
}

/// As `two`, with one branch more.
fn three() -> Option<Branches> {
    Branches::new(BIN, &["rw", "ro+wh", "ro+wh"])
}

fn read_write(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn text(file: &File) -> String {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn regression_c01_writes_never_reach_the_lower_branch() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "lower");
    let u = branches.mount();
    let reader = File::open(u.path("f")).unwrap();
    assert_eq!(text(&reader), "lower");
    let writer = read_write(&u.path("f"));
    writer.write_all_at(b"UPPER", 0).unwrap();
    writer.sync_all().unwrap();
    assert_eq!(fs::read_to_string(u.at("0/f")).unwrap(), "UPPER");
    u.assert_read_only_branches_untouched();
}

#[test]
fn regression_c02_ones_own_writes_never_disappear_behind_an_older_handle() {
    let Some(branches) = two() else { return };
    branches.file("1/f", vec![b'o'; 64 << 10]);
    let u = branches.mount();
    let (reader, writer) = (File::open(u.path("f")).unwrap(), read_write(&u.path("f")));
    writer.write_all_at(&[b'n'; 100], 5000).unwrap();
    writer.sync_all().unwrap();
    // 3: pages as well, so that they are read again, through the older handle.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let expected = |text: String| text[5000..5100] == "n".repeat(100) && text.len() == 64 << 10;
    assert!(expected(text(&reader)));
    assert!(expected(text(&writer)) && expected(u.read("f")));
}

#[test]
fn regression_c03_directories_that_are_copied_up_keep_their_mode() {
    let Some(branches) = two() else { return };
    let modes = [0o700, 0o2770, 0o1777, 0o2777, 0o0, 0o555];
    for mode in modes {
        branches.file(format!("1/{mode:o}/f"), "").mode(format!("1/{mode:o}"), mode);
    }
    let mut u = branches.mount();
    for mode in modes {
        u.write(format!("{mode:o}/new"), "");
        assert_eq!(u.mode(format!("{mode:o}")), mode, "{mode:o}");
        assert_eq!(fs::metadata(u.at(format!("0/{mode:o}"))).unwrap().mode() & 0o7777, mode, "{mode:o} on disk");
    }
    u.remount_and_compare();
}

#[test]
fn regression_c04_the_umask_of_the_caller_counts() {
    let Some(branches) = two() else { return };
    let u = branches.mount();
    for (mask, file, directory) in [(0o077, 0o600, 0o700), (0o000, 0o666, 0o777), (0o027, 0o640, 0o750)] {
        umask(Mode::from_bits_truncate(mask));
        u.write(format!("f{mask:o}"), "");
        fs::create_dir(u.path(format!("d{mask:o}"))).unwrap();
        mknod(&u.path(format!("n{mask:o}")), SFlag::S_IFREG, Mode::from_bits_truncate(0o666), 0).unwrap();
        umask(Mode::from_bits_truncate(0o022));
        let modes = ["f", "d", "n"].map(|kind| u.mode(format!("{kind}{mask:o}")));
        assert_eq!(modes, [file, directory, file], "umask {mask:03o}");
    }
}

#[test]
fn regression_c05_removed_names_do_not_come_back_by_renames() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "lower").file("1/g", "lower");
    let mut u = branches.mount();
    fs::remove_file(u.path("f")).unwrap();
    u.write("f", "new");
    fs::rename(u.path("f"), u.path("f2")).unwrap();
    u.write("t", "new");
    fs::rename(u.path("t"), u.path("g")).unwrap();
    fs::rename(u.path("g"), u.path("g2")).unwrap();
    for _remounted in 0..2 {
        assert_eq!(u.list(""), ["f2", "g2"]);
        assert!(!u.exists("f") && !u.exists("g"));
        u.mounted.remount();
    }
}

#[test]
fn regression_c06_an_unlinked_open_file_can_be_statted_truncated_and_changed() {
    let Some(branches) = two() else { return };
    branches.file("1/low", "content");
    let u = branches.mount();
    u.write("top", "content");
    for name in ["low", "top"] {
        let file = read_write(&u.path(name));
        fs::remove_file(u.path(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 7, "{name}");
        file.set_len(3).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!((text(&file), file.metadata().unwrap().mode() & 0o777), ("con".into(), 0o600), "{name}");
    }
}

#[test]
fn regression_c07_unlink_copies_nothing() {
    let Some(sandbox) = sandbox::enter() else { return };
    drop(sandbox.small_ext4("0", 8, &[]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("1/large", vec![1; 32 << 20]);
    let u = branches.mount();
    let used = || nix::sys::statvfs::statvfs(&u.at("0")).unwrap().blocks_free();
    let before = used();
    let open = File::open(u.path("large")).unwrap();
    fs::remove_file(u.path("large")).unwrap();
    assert!(before - used() < 1024, "an open file is not copied either");
    assert_eq!(open.metadata().unwrap().len(), 32 << 20);
    assert_eq!(u.on_disk("0"), [".wh.large"]);
}

#[test]
fn regression_c08_rmdir_leaves_nothing_that_disturbs_a_later_mount() {
    let Some(branches) = two() else { return };
    for number in 0..6 {
        branches.file(format!("1/d{number}/f"), "");
    }
    let mut u = branches.mount();
    for number in 0..6 {
        fs::remove_file(u.path(format!("d{number}/f"))).unwrap();
        fs::remove_dir(u.path(format!("d{number}"))).unwrap();
        u.assert_no_temporaries(0);
        u.mounted.remount();
        u.write("f", "");
        fs::remove_file(u.path("f")).unwrap();
        fs::create_dir(u.path(format!("d{number}"))).unwrap();
        assert_eq!(u.list(format!("d{number}")), [""; 0]);
    }
    u.remount_and_compare();
}

#[test]
fn regression_c09_files_of_the_top_alone_leave_no_whiteouts() {
    let Some(branches) = two() else { return };
    branches.file("1/d/low", "").file("0/d/top", "");
    let u = branches.mount();
    for name in ["a", "b", "c"] {
        u.write(format!("d/{name}"), "temporary");
        fs::rename(u.path(format!("d/{name}")), u.path("d/z")).unwrap();
        fs::remove_file(u.path("d/z")).unwrap();
    }
    assert_eq!(u.on_disk("0/d"), ["top"]);
}

#[test]
fn regression_c10_opaque_directories_stay_free_of_whiteouts_and_can_be_moved() {
    let Some(branches) = two() else { return };
    branches.file("1/d/f", "").file("1/d/sub/f", "");
    let mut u = branches.mount();
    fs::remove_dir_all(u.path("d")).unwrap();
    fs::create_dir(u.path("d")).unwrap();
    fs::create_dir(u.path("d/sub")).unwrap();
    u.mounted.remount();
    u.write("d/f", "");
    u.write("d/sub/f", "");
    fs::remove_file(u.path("d/f")).unwrap();
    fs::remove_file(u.path("d/sub/f")).unwrap();
    assert_eq!((u.on_disk("0/d"), u.on_disk("0/d/sub")), (vec![".wh..wh..opq".into(), "sub".into()], vec![]));
    u.mounted.remount();
    fs::rename(u.path("d/sub"), u.path("d/moved")).unwrap();
    fs::rename(u.path("d"), u.path("e")).unwrap();
    u.mounted.remount();
    assert_eq!((u.list(""), u.list("e")), (vec!["e".into()], vec!["moved".into()]));
}

#[test]
fn regression_c11_a_whiteout_in_a_middle_branch_stops_the_merge() {
    let Some(branches) = three() else { return };
    branches.file("0/d/top", "").whiteout("1/d").file("2/d/lowest", "");
    let u = branches.mount();
    assert_eq!(u.list("d"), ["top"]);
    assert!(!u.exists("d/lowest"));
}

#[test]
fn regression_c12_an_opaque_mark_in_the_middle_survives_changes_in_the_directory() {
    let Some(branches) = three() else { return };
    branches.opaque("1/d").file("1/d/a", "").file("1/d/b", "").file("2/d/hidden", "");
    let u = branches.mount();
    fs::remove_file(u.path("d/a")).unwrap();
    fs::rename(u.path("d/b"), u.path("d/c")).unwrap();
    assert_eq!(fs::read(u.path("d/hidden")).errno(), Errno::ENOENT);
    assert_eq!(u.list("d"), ["c"]);
}

#[test]
fn regression_c13_hard_links_below_stay_one_file_after_a_remount() {
    for writer in ["a", "b", "c"] {
        let Some(branches) = two() else { return };
        branches.file("1/a", "old").hard_link("1/a", "1/b").hard_link("1/a", "1/c");
        let mut u = branches.mount();
        u.write(writer, "new");
        for _remounted in 0..2 {
            assert_eq!(["a", "b", "c"].map(|name| u.read(name)), ["new"; 3], "written through {writer}");
            assert_eq!(["a", "b", "c"].map(|name| u.stat(name).nlink()), [3; 3]);
            u.mounted.remount();
        }
    }
}

#[test]
fn regression_c14_different_files_are_never_fused() {
    let Some(branches) = two() else { return };
    branches.file("1/a", "low").hard_link("1/a", "1/b").file("0/a", "top");
    let mut u = branches.mount();
    for _remounted in 0..2 {
        assert_eq!((u.read("a"), u.read("b")), ("top".into(), "low".into()));
        assert_ne!(u.stat("a").ino(), u.stat("b").ino());
        u.mounted.remount();
    }
    u.write("b", "changed");
    assert_eq!((u.read("a"), u.read("b")), ("top".into(), "changed".into()));
}

#[test]
fn regression_c15_inode_numbers_survive_copy_up_and_remount() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "").dir("1/d").symlink("1/l", "f");
    let mut u = branches.mount();
    let numbers = |u: &Union| ["f", "d", "l"].map(|name| u.stat(name).ino());
    let before = numbers(&u);
    u.mounted.remount();
    assert_eq!(numbers(&u), before, "before a copy-up");
    u.write("f", "changed");
    fs::set_permissions(u.path("d"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::lchown(u.path("l"), Some(1), Some(1)).unwrap();
    assert_eq!(numbers(&u), before);
    for _remounted in 0..2 {
        u.mounted.remount();
        assert_eq!(numbers(&u), before, "after a copy-up");
    }
}

#[test]
fn regression_c16_readdir_sends_attributes_of_now() {
    let Some(branches) = two() else { return };
    branches.file("1/d/f", "12").file("0/d/g", "12");
    let u = branches.mount();
    let open = fs::read_dir(u.path("d")).unwrap();
    for name in ["f", "g"] {
        File::options().append(true).open(u.path("d").join(name)).unwrap().write_all(&[b'x'; 100]).unwrap();
    }
    let sizes: Vec<u64> = open.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes, [102, 102]);
    assert_eq!((u.stat("d/f").len(), u.stat("d/g").len()), (102, 102));
}

#[test]
fn regression_c17_nobody_forges_a_whiteout() {
    let Some(branches) = two() else { return };
    branches.file("1/x", "content");
    let mut u = branches.mount();
    assert_eq!(fs::write(u.path(".wh.x"), "").errno(), Errno::EPERM);
    assert_eq!(fs::create_dir(u.path(".wh.x")).errno(), Errno::EPERM);
    u.write("f", "");
    assert_eq!(fs::rename(u.path("f"), u.path(".wh.x")).errno(), Errno::EPERM);
    assert_eq!(fs::hard_link(u.path("f"), u.path(".wh.x")).errno(), Errno::EPERM);
    u.mounted.remount();
    assert_eq!(u.read("x"), "content");
}

#[test]
fn regression_c18_an_exchange_with_a_target_below_works() {
    let Some(branches) = two() else { return };
    branches.file("1/low", "low").file("0/top", "top");
    let mut u = branches.mount();
    rustix::fs::renameat_with(CWD, u.path("top"), CWD, u.path("low"), RenameFlags::EXCHANGE).unwrap();
    for _remounted in 0..2 {
        assert_eq!((u.read("top"), u.read("low")), ("low".into(), "top".into()));
        u.mounted.remount();
    }
}

#[test]
fn regression_c19_owners_are_told_by_every_reply_as_they_are_from_within_a_user_namespace() {
    let Some(branches) = two() else { return };
    branches.dir("0/top").mode("0/top", 0o777).dir("1/low").mode("1/low", 0o777);
    branches.file("1/low/file", "").owner("1/low/file", FIRST_ID, FIRST_ID);
    let mut u = branches.mount();
    let namespace = UserNamespace::new(FIRST_ID);
    // what each reply says is cached for ever, so it is what stat says just after
    let made = "cd $0 && : >f && mkdir d && ln -s x s && mkfifo p && ln f l && stat -c '%n %u:%g' f d s p l";
    for (directory, id) in [("top", 0), ("top/d", 33), ("low", 0)] {
        let at = u.path(directory);
        fs::set_permissions(&at, fs::Permissions::from_mode(0o777)).unwrap();
        let said = namespace.run(id, &["sh", "-c", made, at.to_str().unwrap()]);
        assert_eq!(said, ["f", "d", "s", "p", "l"].map(|name| format!("{name} {id}:{id}\n")).concat(), "{directory}");
    }
    let linked = namespace
        .run(0, &["sh", "-c", "cd $0 && ln file link && stat -c %u:%g link file", u.path("low").to_str().unwrap()]);
    assert_eq!(linked, "0:0\n0:0\n");
    for _remounted in 0..2 {
        for (directory, id) in [("top", FIRST_ID), ("top/d", FIRST_ID + 33), ("low", FIRST_ID)] {
            for name in ["f", "s", "p", "l"] {
                let stat = u.stat(Path::new(directory).join(name));
                assert_eq!((stat.uid(), stat.gid()), (id, id), "{directory}/{name}");
            }
        }
        u.mounted.remount();
    }
}

#[test]
fn regression_c20_a_copy_up_without_room_leaves_nothing() {
    let Some(sandbox) = sandbox::enter() else { return };
    drop(sandbox.small_ext4("0", 8, &[]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("1/large", vec![1; 32 << 20]);
    let u = branches.mount();
    let free = || nix::sys::statvfs::statvfs(&u.at("0")).unwrap().blocks_free();
    let before = free();
    assert_eq!(fs::set_permissions(u.path("large"), fs::Permissions::from_mode(0o600)).errno(), Errno::ENOSPC);
    u.assert_no_temporaries(0);
    assert!(before - free() < 64, "room is given back: {before} free blocks became {}", free());
    assert_eq!((u.stat("large").len(), u.mode("large")), (32 << 20, 0o644));
}

#[test]
fn regression_c21_symlinks_and_devices_keep_times_and_attributes_over_copy_up() {
    let Some(branches) = two() else { return };
    symlink("x", branches.at("1/l")).unwrap();
    mknod(&branches.at("1/n"), SFlag::S_IFCHR, Mode::S_IRUSR, nix::sys::stat::makedev(1, 3)).unwrap();
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    for name in ["l", "n"] {
        rustix::fs::lsetxattr(branches.at("1").join(name), "trusted.t", b"t", XattrFlags::empty()).unwrap();
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, branches.at("1").join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let u = branches.mount();
    for name in ["l", "n"] {
        std::os::unix::fs::lchown(u.path(name), Some(7), Some(7)).unwrap();
        let stat = fs::symlink_metadata(u.at("0").join(name)).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec(), stat.uid()), (1_000_000_000, 5, 7), "{name}");
        assert_eq!(xattrs(&u.path(name)).unwrap().len(), 1, "{name}");
    }
}

#[test]
fn regression_c22_sparse_files_stay_sparse() {
    let Some(branches) = two() else { return };
    let file = File::create(branches.at("1/sparse")).unwrap();
    file.set_len(200 << 20).unwrap();
    file.write_all_at(b"x", 100 << 20).unwrap();
    let u = branches.mount();
    File::options().append(true).open(u.path("sparse")).unwrap().write_all(b"y").unwrap();
    let stat = fs::metadata(u.at("0/sparse")).unwrap();
    assert_eq!(stat.len(), (200 << 20) + 1);
    assert!(stat.blocks() < 1024, "{} blocks", stat.blocks());
}

#[test]
fn regression_c23_new_subdirectories_inherit_both_acls() {
    let Some(branches) = two() else { return };
    branches.dir("1/d").dir("plain");
    for directory in [branches.at("1/d"), branches.at("plain")] {
        run(std::process::Command::new("setfacl").args(["-m", "d:u:1234:rwx,u:1234:rwx"]).arg(directory));
    }
    let u = branches.mount();
    for directory in [u.path("d"), u.at("plain")] {
        fs::create_dir(directory.join("sub")).unwrap();
    }
    assert_eq!(xattrs(&u.path("d/sub")).unwrap(), xattrs(&u.at("plain/sub")).unwrap());
    assert_eq!(xattrs(&u.path("d/sub")).unwrap().len(), 2);
}

#[test]
fn regression_c24_a_rename_is_whole_after_a_crash() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "content").file("1/g", "other");
    let mut u = branches.mount();
    fs::rename(u.path("f"), u.path("g")).unwrap();
    fs::write(u.path("h"), "new").unwrap();
    u.mounted.kill9();
    run(std::process::Command::new("umount").arg("-l").arg(u.path("")));
    u.mounted.mount_again();
    assert_eq!((u.list(""), u.read("g"), u.read("h")), (vec!["g".into(), "h".into()], "content".into(), "new".into()));
}

#[test]
fn regression_c25_a_refused_rename_takes_no_whiteouts_away() {
    let Some(branches) = two() else { return };
    branches.file("1/target/a", "").file("1/target/b", "").whiteout("0/target/a").dir("0/source").file("1/low/x", "");
    let mut u = branches.mount_with(&["dirren=off"]);
    assert_eq!(fs::rename(u.path("source"), u.path("target")).errno(), Errno::ENOTEMPTY);
    fs::remove_file(u.path("target/b")).unwrap();
    assert_eq!(fs::rename(u.path("low"), u.path("target")).errno(), Errno::EXDEV);
    for _remounted in 0..2 {
        assert_eq!(u.list("target"), [""; 0]);
        u.mounted.remount();
    }
    assert_eq!(u.on_disk("0/target"), [".wh.a", ".wh.b"]);
}

#[test]
fn regression_c26_a_directory_that_appeared_in_the_top_is_not_replaced() {
    let Some(branches) = two() else { return };
    branches.file("1/d/f", "low");
    let u = branches.mount();
    assert_eq!(u.read("d/f"), "low");
    fs::create_dir(u.at("0/d")).unwrap();
    fs::write(u.at("0/d/mine"), "mine").unwrap();
    // Whether the copy-up works in spite of the direct change is free; what it finds must survive.
    fs::write(u.path("d/f"), "changed").unwrap_or_default();
    assert_eq!(fs::read_to_string(u.at("0/d/mine")).unwrap(), "mine");
    u.assert_read_only_branches_untouched();
}

#[test]
fn regression_c27_directories_with_equal_numbers_stay_apart() {
    let Some(sandbox) = sandbox::enter() else { return };
    drop(sandbox.small_ext4("1", 8, &[]));
    drop(sandbox.small_ext4("2", 8, &[]));
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh", "ro+wh"]);
    branches.file("1/one/a", "a").file("2/two/b", "b");
    let number = |path: &str| fs::metadata(branches.at(path)).unwrap().ino();
    assert_eq!(number("1/one"), number("2/two"), "what this test is about");
    let u = branches.mount();
    assert_eq!((u.list("one"), u.list("two")), (vec!["a".into()], vec!["b".into()]));
    assert_ne!(u.stat("one").ino(), u.stat("two").ino());
    assert_ne!(u.stat("one/a").ino(), u.stat("two/b").ino());
}

#[test]
fn regression_c28_a_number_does_not_flip_between_calls() {
    let Some(branches) = two() else { return };
    branches.dir("1/d");
    let u = branches.mount();
    for round in 0..50 {
        let path = u.path(format!("d/{round}"));
        fs::write(&path, "").unwrap();
        let numbers = || {
            let listed = fs::read_dir(u.path("d")).unwrap().map(Result::unwrap);
            let entry = listed.into_iter().find(|entry| entry.path() == path).unwrap();
            [fs::metadata(&path).unwrap().ino(), File::open(&path).unwrap().metadata().unwrap().ino(), entry.ino()]
        };
        let before = numbers();
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!((numbers(), before[1], before[2]), (before, before[0], before[0]), "{round}");
        if round % 2 == 0 {
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn regression_c29_a_writable_branch_serves_one_mount() {
    let Some(branches) = two() else { return };
    branches.dir("second");
    let (string, second) = (branches.string(), branches.at("second"));
    let u = branches.mount();
    let outcome = Mounted::try_mount(BIN, string, &second, &[]).expect_err("the branch is in use");
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    u.write("f", "the first goes on");
    assert!(u.at("0").join(WORK_AREA).is_dir());
}

#[test]
fn regression_c30_attribute_names_that_are_no_text_come_along() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "");
    rustix::fs::setxattr(branches.at("1/f"), &b"user.\xff"[..], b"1", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(branches.at("1/f"), "trusted.t", b"2", XattrFlags::empty()).unwrap();
    let u = branches.mount();
    let before = xattrs(&u.path("f")).unwrap();
    assert_eq!(before.len(), 2);
    fs::set_permissions(u.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!((xattrs(&u.path("f")).unwrap(), xattrs(&u.at("0/f")).unwrap()), (before.clone(), before));
}
