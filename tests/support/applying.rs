//! Layers that `runionfs apply` unpacks, or refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::sandbox::Sandbox;
use harness::snapshot::names;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

pub(crate) fn apply(layer: &Path, branch: &Path) -> Outcome {
    finish(Command::new(BIN).arg("apply").arg(layer).arg(branch))
}

#[track_caller]
pub(crate) fn assert_silent(outcome: &Outcome) {
    assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""));
}

/// A directory with nothing in it but the layer.
pub(crate) fn place(sandbox: &Sandbox, name: &str, layer: &[u8]) -> (PathBuf, PathBuf) {
    let directory = sandbox.path().join(name);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("layer"), layer).unwrap();
    (directory.join("layer"), directory.join("branch"))
}

/// Applies a layer that must be refused with one line that holds `why`, and with nothing left.
#[track_caller]
pub(crate) fn assert_refused(sandbox: &Sandbox, name: &str, layer: &[u8], why: &str) {
    let (layer, branch) = place(sandbox, name, layer);
    let outcome = apply(&layer, &branch);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{name}: {outcome:?}");
    assert!(outcome.stderr.contains(why), "{name}: {}", outcome.stderr);
    assert_eq!(names(layer.parent().unwrap()).unwrap(), ["layer"], "{name}: something is left");
}
