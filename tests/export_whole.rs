//! `runionfs export`: a layer is there whole or not at all, and nothing else is left.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, poll};
use harness::sandbox::run;

#[path = "support/exporting.rs"]
mod exporting;

use exporting::{export, export_silently};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn a_layer_is_complete_or_not_there() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let union = branches.mount();
    union.write("f", vec![7; 3 << 20]);
    let small = tmpfs(&union, "size=1m");
    fs::write(small.join("layer.tar"), "old").unwrap();
    let outcome = export(union.path(""), &small.join("layer.tar"));
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("No space left"), "{}", outcome.stderr);
    assert_eq!(fs::read(small.join("layer.tar")).unwrap(), b"old");
    assert_eq!(harness::snapshot::names(&small).unwrap(), ["layer.tar"]);
    // into the union itself, or beside the files of its top
    for place in [union.path("layer.tar"), union.at("0/layer.tar"), union.at("0/./x.tar")] {
        let outcome = export(union.path(""), &place);
        assert_eq!(outcome.status, Some(1));
        assert!(outcome.stderr.contains("lies in the union"), "{}", outcome.stderr);
        assert!(!place.exists());
    }
    // a device is written to, and stays
    let null = export(union.path(""), Path::new("/dev/null"));
    assert_eq!((null.status, &*null.stderr), (Some(0), ""));
    assert!(!fs::symlink_metadata("/dev/null").unwrap().is_file());
    let directory = export(union.path(""), &union.at("mnt/.."));
    assert_eq!(directory.status, Some(1));
    let nowhere = export(union.at("nowhere"), &union.at("layer.tar"));
    assert_eq!((nowhere.status, nowhere.stderr.lines().count()), (Some(1), 1), "{}", nowhere.stderr);
    assert!(!union.at("layer.tar").exists());
}

fn tmpfs(union: &Union, options: &str) -> std::path::PathBuf {
    let place = union.at("small");
    fs::create_dir(&place).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&place));
    place
}

#[test]
fn where_every_file_has_a_name_a_signal_leaves_none() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    branches.file("0/f", "f");
    fs::create_dir(branches.at("other")).unwrap();
    // a union has no files without a name
    let out = branches.at("other/layer.tar");
    let place = format!("{}=rw", branches.at("place").display());
    fs::create_dir(branches.at("place")).unwrap();
    let mounted = Mounted::mount(BIN, place, &branches.at("other"), &[]);
    export_silently(branches.at("0"), &out);
    assert_eq!(harness::snapshot::names(&branches.at("other")).unwrap(), ["layer.tar"]);
    // it is still at it: a file of zeros without end, nearly
    fs::File::create(branches.at("0/huge")).unwrap().set_len(1 << 40).unwrap();
    let mut child = Command::new(BIN).arg("export").arg(branches.at("0")).arg("-o").arg(&out).spawn().unwrap();
    let names = || harness::snapshot::names(&branches.at("other")).unwrap();
    let begun = poll(Duration::from_secs(20), || (names().len() == 2).then_some(()));
    assert!(begun.is_some(), "nothing is written");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(names(), ["layer.tar"]);
    drop(mounted);
}

#[test]
fn where_every_file_has_a_name_a_failure_leaves_none() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    let union = branches.mount();
    union.write("f", vec![7; 3 << 20]);
    let small = tmpfs(&union, "size=1m");
    fs::create_dir(small.join("top")).unwrap();
    fs::create_dir(union.at("other")).unwrap();
    // a union has no files without a name
    let mounted = Mounted::mount(BIN, format!("{}=rw", small.join("top").display()), &union.at("other"), &[]);
    fs::write(mounted.target().join("layer.tar"), "old").unwrap();
    let outcome = export(union.path(""), &mounted.target().join("layer.tar"));
    assert!(outcome.status == Some(1) && outcome.stderr.contains("No space left"), "{}", outcome.stderr);
    assert_eq!(harness::snapshot::names(mounted.target()).unwrap(), ["layer.tar"]);
    assert_eq!(fs::read(mounted.target().join("layer.tar")).unwrap(), b"old");
}
