//! Defects between features that work alone, one test each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use harness::fixture::Branches;
use harness::mount::{Outcome, finish};

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
