//! Defects between features that work alone, one test each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mount::{Outcome, finish};
use harness::rootless::{self, give};
use harness::sandbox;
use harness::snapshot::{Exactness, Snapshot};
use rustix::fs::{CWD, RenameFlags, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn runionfs<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Outcome {
    finish(Command::new(BIN).args(words))
}

/// The members of a layer as `tar -tv` shows them, with numbers for owners.
#[track_caller]
fn members(layer: &Path) -> Vec<String> {
    let list = finish(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(layer));
    assert_eq!(list.status, Some(0), "{list:?}");
    list.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_is_kept_in_another_place_is_exported_too() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro"]);
    branches.file("1/file", "x").symlink("1/link", "file").dir("work");
    lchown(branches.at("1/link"), Some(11), Some(12)).unwrap();
    for name in ["0", "work", "mnt"] {
        give(&branches.at(name));
    }
    let workdir = branches.at("work");
    let list = branches.string();
    let mut union = branches.mount_with(&[&format!("workdir={}", workdir.display())]);
    fs::rename(union.path("link"), union.path("my-link")).unwrap();
    lchown(union.path("file"), Some(13), Some(14)).unwrap();
    union.mounted.umount();
    // of a file of another owner, whose access time the user cannot keep
    union.accept_read_only_branches();
    let layer = union.at("layer.tar");
    let words = [OsStr::new("export"), &list, "--workdir".as_ref(), workdir.as_ref(), "-o".as_ref(), layer.as_ref()];
    let exported = runionfs(words);
    assert_eq!(exported.status, Some(0), "{exported:?}");
    for (start, end) in [("-rw-r--r-- 13/14 ", "file"), ("lrwxrwxrwx 11/12 ", "my-link -> file")] {
        let members = members(&layer);
        assert!(members.iter().any(|line| line.starts_with(start) && line.ends_with(end)), "{start}: {members:#?}");
    }
}

#[test]
fn a_branch_that_lies_in_a_mount_is_exported_and_not_the_mount() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/host/secret", "x").file("1/host/inner/file", "y");
    let union = branches.mount();
    union.write("new", "z");
    let layer = union.at("layer.tar");
    let words =
        [OsStr::new("export"), union.path("host/inner").as_ref(), "-o".as_ref(), layer.as_ref()].map(OsStr::to_owned);
    let exported = runionfs(words);
    assert_eq!(exported.status, Some(0), "{exported:?}");
    let names: Vec<_> = members(&layer).iter().filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect();
    assert_eq!(names, ["./", "file"]);
    let path = union.path("host").display().to_string();
    assert_eq!(runionfs(["check", &path]).status, Some(0));
    // the mount is exported wherever it is bound, and a directory of it stays one
    for (bound, expected) in [(union.path(""), 2), (union.path("host"), 4)] {
        let place = union.at("bound");
        fs::create_dir(&place).unwrap();
        sandbox::run(Command::new("mount").arg("--bind").arg(&bound).arg(&place));
        let exported = runionfs(["export".as_ref(), place.as_os_str(), "-o".as_ref(), layer.as_ref()]);
        assert_eq!(exported.status, Some(0), "{exported:?}");
        assert_eq!(members(&layer).len(), expected, "{:#?}", members(&layer));
        sandbox::run(Command::new("umount").arg(&place));
        fs::remove_dir(&place).unwrap();
    }
}

/// A top in the form of overlayfs with hard links to join, where one name was removed with its directory and another
/// one by itself. The union, and its mount options.
fn written_as_overlay(branches: Branches) -> (Union, String) {
    branches.dir("1/dir").file("1/file", "x").hard_link("1/file", "1/name").hard_link("1/file", "1/dir/hidden");
    branches.file("1/dir/gone", "y").file("1/gone", "z").dir("work");
    let option = format!("whiteout=overlay,workdir={}", branches.at("work").display());
    let union = branches.mount_with(&[&option]);
    fs::remove_dir_all(union.path("dir")).unwrap();
    fs::remove_file(union.path("gone")).unwrap();
    fs::create_dir(union.path("dir")).unwrap();
    fs::write(union.path("dir/new"), "new").unwrap();
    fs::write(union.path("file"), "changed").unwrap();
    (union, option)
}

#[test]
fn flush_of_branches_heeds_the_form_in_which_they_are_written() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let list = branches.string();
    let (mut union, option) = written_as_overlay(branches);
    union.mounted.umount();
    let flushed = runionfs(["flush".as_ref(), "-o".as_ref(), option.as_ref(), &*list]);
    assert_eq!(flushed.status, Some(0), "{flushed:?}");
    assert_eq!(union.on_disk("0"), ["dir", "file", "gone", "name"]);
    assert_eq!(union.on_disk("0/dir"), ["new"]);
    union.mounted.mount_again();
    assert_eq!(union.list(""), ["dir", "file", "name"]);
}

#[test]
fn a_top_in_the_form_of_overlayfs_is_never_taken_for_a_plain_one() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let (plain, target, work) = (branches.string(), branches.at("mnt"), branches.at("work"));
    let (top, layer) = (branches.at("0"), branches.at("layer.tar"));
    let (mut union, _) = written_as_overlay(branches);
    let before = Snapshot::take(&target);
    union.mounted.umount();
    let left = Snapshot::take(&top);
    let (work, output) = ([OsStr::new("--workdir"), work.as_ref()], [OsStr::new("-o"), layer.as_ref()]);
    let refused: [Vec<&OsStr>; 6] = [
        vec!["mount".as_ref(), &plain, target.as_ref()],
        vec!["flush".as_ref(), &plain],
        vec!["diff".as_ref(), &plain],
        vec!["check".as_ref(), &plain],
        [vec!["export".as_ref(), &*plain], work.to_vec(), output.to_vec()].concat(),
        [vec!["export".as_ref(), top.as_ref()], output.to_vec()].concat(),
    ];
    for words in refused {
        let outcome = runionfs(&words);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{words:?}: {outcome:?}");
        assert!(outcome.stderr.contains("whiteout=overlay") && outcome.stderr.lines().count() == 1, "{outcome:?}");
    }
    assert!(!layer.exists());
    left.assert_same(&Snapshot::take(&top), Exactness::Equal, "a refused command changed the top");
    // as it is said, it is read right, and as the mount says it
    let list = plain.to_str().unwrap().replacen("=rw", "=rw+ovl", 1);
    let exported = runionfs([&["export".as_ref(), OsStr::new(&list)], &work[..], &output[..]].concat());
    assert_eq!(exported.status, Some(0), "{exported:?}");
    let members = members(&layer);
    let names: Vec<_> = members.iter().filter_map(|line| line.split(' ').nth(5)).collect();
    assert_eq!(names, ["./", ".wh.gone", "dir/", "dir/.wh..wh..opq", "dir/new", "file", "name"]);
    assert_eq!(runionfs(["diff", &list]).stdout.lines().filter(|line| line.starts_with('D')).count(), 3);
    union.mounted.mount_again();
    before.assert_same(&Snapshot::take(&target), Exactness::Equal, "after an export");
}

#[test]
fn a_top_serves_one_mount_wherever_the_work_area_lies() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/file", "x").dir("work").dir("other").dir("second");
    let (list, layer) = (branches.string(), branches.at("layer.tar"));
    let option = format!("workdir={}", branches.at("work").display());
    let mut union = branches.mount_with(&[&option]);
    let exported = runionfs(["export".as_ref(), union.at("1").as_os_str(), "-o".as_ref(), layer.as_ref()]);
    assert_eq!(exported.status, Some(0), "{exported:?}");
    let other = format!("workdir={}", union.at("other").display());
    let (second, top) = (union.at("second"), union.at("0"));
    let refused: [&[&OsStr]; 4] = [
        &["mount".as_ref(), "-o".as_ref(), other.as_ref(), &list, second.as_ref()],
        &["mount".as_ref(), &list, second.as_ref()],
        &["flush".as_ref(), &list],
        &["apply".as_ref(), layer.as_ref(), top.as_ref()],
    ];
    // each waits for a while whether the mount ends
    let outcomes = std::thread::scope(|scope| {
        let started = refused.map(|words| scope.spawn(move || runionfs(words)));
        started.map(|command| command.join().unwrap())
    });
    for (words, outcome) in refused.iter().zip(outcomes) {
        assert_eq!(outcome.status, Some(1), "{words:?}: {outcome:?}");
        assert!(outcome.stderr.contains("in use by"), "{words:?}: {outcome:?}");
    }
    union.write("new", "y");
    assert_eq!(union.on_disk("0"), ["new"]);
    union.mounted.umount();
    fs::remove_file(union.at("0/new")).unwrap();
    let applied = runionfs(["apply".as_ref(), layer.as_os_str(), top.as_ref()]);
    assert_eq!(applied.status, Some(0), "{applied:?}");
    union.mounted.mount_again();
}

#[test]
fn what_a_volatile_mount_left_at_its_crash_is_not_exported() {
    for workdir in [false, true] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
        branches.file("1/file", "x").dir("work");
        let (list, work, layer) = (branches.string(), branches.at("work"), branches.at("layer.tar"));
        let option = format!("workdir={}", work.display());
        let mut words: Vec<&OsStr> = vec!["export".as_ref(), &list, "-o".as_ref(), layer.as_ref()];
        let mut options = vec!["volatile"];
        if workdir {
            words.extend([OsStr::new("--workdir"), work.as_ref()]);
            options.push(&option);
        }
        let mut union = branches.mount_with(&options);
        union.write("new", "y");
        assert_eq!(runionfs(&words).status, Some(0), "while the mount lives");
        fs::remove_file(&layer).unwrap();
        union.mounted.kill9();
        union.mounted.detach();
        let refused = runionfs(&words);
        assert_eq!((refused.status, layer.exists()), (Some(1), false), "{refused:?}");
        // the file that it names is the one to remove
        let (_, rest) = refused.stderr.split_once("remove ").expect("what to do");
        let named = Path::new(rest.split_whitespace().next().unwrap());
        assert_eq!(named.starts_with(&work), workdir, "{refused:?}");
        fs::remove_file(named).unwrap();
        assert_eq!(runionfs(&words).status, Some(0));
        union.mounted.mount_again();
    }
}

#[test]
fn names_that_went_on_another_writable_branch_are_not_counted() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro"]) else { return };
    branches
        .dir("1/d")
        .dir("2/d")
        .file("2/d/file", "x")
        .hard_link("2/d/file", "2/d/gone")
        .hard_link("2/d/file", "2/top");
    let mut union = branches.mount();
    // that is noted on branch 1, where the directory is, and the copy goes to branch 0
    fs::remove_file(union.path("d/gone")).unwrap();
    assert_eq!(union.stat("top").nlink(), 2);
    fs::write(union.path("top"), "changed").unwrap();
    for round in ["at first", "after a remount"] {
        assert_eq!([union.stat("top").nlink(), union.stat("d/file").nlink()], [2, 2], "{round}");
        union.remount_and_compare();
    }
    assert_eq!(union.mounted.flush().status, Some(0));
    assert_eq!([union.stat("top").nlink(), union.stat("d/file").nlink()], [2, 2], "when flushed");
}

#[test]
fn a_name_of_a_hard_linked_file_that_was_copied_to_the_top_is_renamed_there() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro"]) else { return };
    branches
        .dir("1/d")
        .dir("2/d")
        .file("2/d/file", "x")
        .hard_link("2/d/file", "2/d/other")
        .hard_link("2/d/file", "2/top");
    let mut union = branches.mount();
    fs::write(union.path("top"), "changed").unwrap();
    fs::rename(union.path("d/file"), union.path("d/new")).expect("the branch of the copy carries it");
    fs::write(union.path("d/plain"), "plain").unwrap();
    renameat_with(CWD, union.path("d/plain"), CWD, union.path("d/other"), RenameFlags::EXCHANGE)
        .expect("and exchanges");
    assert_eq!(union.read("d/other"), "plain");
    for name in ["top", "d/new", "d/plain"] {
        assert_eq!((union.read(name).as_str(), union.stat(name).nlink()), ("changed", 3), "{name}");
    }
    union.remount_and_compare();
}

#[test]
fn what_root_records_in_the_top_of_a_user_the_user_reads() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro"]);
    branches.dir("1/d").file("1/file", "x").hard_link("1/file", "1/d/name").hard_link("1/file", "1/gone");
    for name in ["0", "mnt"] {
        give(&branches.at(name));
    }
    let (list, target) = (branches.string(), branches.at("mnt"));
    let mut union = branches.mount();
    union.mounted.umount();
    let mounted = runionfs(["mount".as_ref(), &*list, target.as_ref()]);
    assert_eq!(mounted.status, Some(0), "{mounted:?}");
    union.write("file", "root's");
    fs::remove_file(union.path("gone")).unwrap();
    assert_eq!(runionfs(["umount".as_ref(), target.as_os_str()]).status, Some(0));
    union.mounted.mount_again();
    for name in ["file", "d/name"] {
        assert_eq!((union.read(name).as_str(), union.stat(name).nlink()), ("root's", 2), "{name}");
    }
    union.accept_read_only_branches();
}

#[test]
fn a_workdir_that_could_be_moved_through_the_mount_is_refused() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.dir("0/work/deep").dir("1/work");
    let (list, target) = (branches.string(), branches.at("mnt"));
    let mount = |workdir: &str| {
        let option = format!("workdir={}", branches.at(workdir).display());
        runionfs(["mount".as_ref(), "-o".as_ref(), option.as_ref(), &*list, target.as_os_str()])
    };
    for workdir in ["0/work", "0/work/deep"] {
        let outcome = mount(workdir);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
        assert!(outcome.stderr.contains("lies inside branch"), "{outcome:?}");
        assert!(fs::read_dir(branches.at("0/work/deep")).unwrap().next().is_none(), "something was left behind");
    }
    // the root itself is where it lies without the option
    let outcome = mount("0");
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert_eq!(runionfs(["umount".as_ref(), target.as_os_str()]).status, Some(0));
}
