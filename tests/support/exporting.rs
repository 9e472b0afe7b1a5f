//! `runionfs export` as tests call it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish};

use super::BIN;

pub(crate) fn export(union: impl AsRef<OsStr>, to: &Path) -> Outcome {
    finish(Command::new(BIN).arg("export").arg(union).arg("-o").arg(to))
}

#[track_caller]
pub(crate) fn export_silently(union: impl AsRef<OsStr>, to: &Path) {
    let outcome = export(union, to);
    assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""));
}
