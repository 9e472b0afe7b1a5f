//! Killed at any system call of a change to a top that is written in the form of overlayfs, a remount shows the state
//! before or after it. Needs ptrace(2).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/deaths.rs"]
mod deaths;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use deaths::{Act, Case, Form, append, nothing, rename, try_all_in};
use rustix::fs::RenameFlags;

#[track_caller]
fn try_all(first: Act, cases: &[Case]) {
    try_all_in(Form::Overlay, first, cases);
}

#[test]
fn creating_over_whiteouts() {
    const THINGS: &[&str] = &["0/.wh.f", "1/f", "0/.wh.d", "1/d/x", "0/n", "1/g"];
    try_all(
        nothing,
        &[
            Case { name: "create", things: THINGS, change: |u| File::create_new(u.join("f")).map(drop) },
            Case { name: "mkdir", things: THINGS, change: |u| fs::create_dir(u.join("d")) },
            Case { name: "symlink", things: THINGS, change: |u| symlink("target", u.join("f")) },
            Case { name: "link", things: THINGS, change: |u| fs::hard_link(u.join("n"), u.join("f")) },
            Case { name: "link of a file below", things: THINGS, change: |u| fs::hard_link(u.join("g"), u.join("f")) },
        ],
    );
}

#[test]
fn removing() {
    const THINGS: &[&str] = &["0/f", "1/f", "1/g", "1/p/q/f", "0/d/.wh.x", "1/d/x", "1/e/", "0/t"];
    try_all(
        nothing,
        &[
            Case { name: "unlink of both", things: THINGS, change: |u| fs::remove_file(u.join("f")) },
            Case { name: "unlink below", things: THINGS, change: |u| fs::remove_file(u.join("g")) },
            Case { name: "unlink far below", things: THINGS, change: |u| fs::remove_file(u.join("p/q/f")) },
            Case { name: "unlink in the top", things: THINGS, change: |u| fs::remove_file(u.join("t")) },
            Case { name: "rmdir with whiteouts", things: THINGS, change: |u| fs::remove_dir(u.join("d")) },
            Case { name: "rmdir below", things: THINGS, change: |u| fs::remove_dir(u.join("e")) },
            Case {
                name: "unlink of a linked file below",
                things: &["1/f", "1/g=f", "1/h=f"],
                change: |u| fs::remove_file(u.join("f")),
            },
        ],
    );
}

#[test]
fn renaming_files() {
    const THINGS: &[&str] = &["0/f", "1/f", "1/g", "0/.wh.h", "1/h", "0/n", "0/b", "1/b"];
    try_all(
        nothing,
        &[
            Case { name: "over a file", things: THINGS, change: |u| fs::rename(u.join("f"), u.join("b")) },
            Case { name: "of a file below", things: THINGS, change: |u| fs::rename(u.join("g"), u.join("b")) },
            Case { name: "over a whiteout", things: THINGS, change: |u| fs::rename(u.join("f"), u.join("h")) },
            Case { name: "in the top", things: THINGS, change: |u| fs::rename(u.join("n"), u.join("m")) },
            Case { name: "exchange", things: THINGS, change: |u| rename(u, "f", "g", RenameFlags::EXCHANGE) },
        ],
    );
}

#[test]
fn renaming_directories() {
    const THINGS: &[&str] =
        &["0/d/f", "0/e/.wh.x", "1/e/x", "0/.wh.w", "1/w/x", "0/o/g", "0/o/.wh..wh..opq", "1/o/x", "1/t/y", "1/k"];
    try_all(
        nothing,
        &[
            Case { name: "over an empty one", things: THINGS, change: |u| fs::rename(u.join("d"), u.join("e")) },
            Case { name: "over a whiteout", things: THINGS, change: |u| fs::rename(u.join("d"), u.join("w")) },
            Case { name: "opaque over empty", things: THINGS, change: |u| fs::rename(u.join("o"), u.join("e")) },
            Case { name: "opaque over a whiteout", things: THINGS, change: |u| fs::rename(u.join("o"), u.join("w")) },
            Case { name: "into one below", things: THINGS, change: |u| fs::rename(u.join("o"), u.join("t/o")) },
            Case { name: "to a new name", things: THINGS, change: |u| fs::rename(u.join("d"), u.join("new")) },
            Case { name: "exchange", things: THINGS, change: |u| rename(u, "d", "o", RenameFlags::EXCHANGE) },
            Case {
                name: "exchange with a file below",
                things: THINGS,
                change: |u| rename(u, "o", "k", RenameFlags::EXCHANGE),
            },
        ],
    );
}

#[test]
fn copying_up() {
    const THINGS: &[&str] = &["1/d/e/f", "1/g", "1/h=g", "1/i=g"];
    try_all(
        nothing,
        &[
            Case { name: "write", things: THINGS, change: |u| append(&u.join("d/e/f")) },
            Case { name: "write to a linked file", things: THINGS, change: |u| append(&u.join("h")) },
            Case {
                name: "chmod of a directory",
                things: THINGS,
                change: |u| fs::set_permissions(u.join("d/e"), fs::Permissions::from_mode(0o700)),
            },
        ],
    );
}

/// Files `.wh.` that an earlier mount in the other form left.
#[test]
fn changing_what_has_marks_of_the_other_form() {
    fn leave(union: &Path) -> std::io::Result<()> {
        // behind the mount's back, and not looked at before
        let top = union.parent().unwrap().join("0");
        for name in ["f", "d", "e"] {
            File::create_new(top.join(format!(".wh.{name}")))?;
        }
        fs::create_dir(top.join("e"))
    }
    const THINGS: &[&str] = &["1/f", "1/d/x", "1/e/y", "0/n", "0/p/q"];
    try_all(
        leave,
        &[
            Case { name: "create", things: THINGS, change: |u| File::create_new(u.join("f")).map(drop) },
            Case { name: "mkdir", things: THINGS, change: |u| fs::create_dir(u.join("d")) },
            Case { name: "rename", things: THINGS, change: |u| fs::rename(u.join("n"), u.join("f")) },
            Case { name: "rename of a directory", things: THINGS, change: |u| fs::rename(u.join("p"), u.join("d")) },
            Case { name: "over an empty one", things: THINGS, change: |u| fs::rename(u.join("p"), u.join("e")) },
            Case { name: "rmdir", things: THINGS, change: |u| fs::remove_dir(u.join("e")) },
        ],
    );
}
