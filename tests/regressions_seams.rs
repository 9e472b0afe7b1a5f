//! Defects between features that work alone, one test each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::lchown;
use std::path::Path;
use std::process::Command;

use harness::fixture::Branches;
use harness::mount::{Outcome, finish};
use harness::rootless::{self, give};
use harness::sandbox;

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
    let layer = union.at("layer.tar");
    let words =
        [OsStr::new("export"), union.path("host/inner").as_ref(), "-o".as_ref(), layer.as_ref()].map(OsStr::to_owned);
    let exported = runionfs(words);
    assert_eq!(exported.status, Some(0), "{exported:?}");
    let names: Vec<_> = members(&layer).iter().filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect();
    assert_eq!(names, ["./", "file"]);
    let path = union.path("host").display().to_string();
    assert_eq!(runionfs(["check", &path]).status, Some(0));
}
