//! Killed at any system call of a change, a remount shows the state before or after it (rules 19, 20, 24, 25 and 30).
//! Needs ptrace(2).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/deaths.rs"]
mod deaths;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use deaths::{Act, Case, Form, append, difference, nothing, rename, try_all_in};
use harness::kill_at::{Life, kill_at};
use harness::sandbox::{self, Medium};
use harness::snapshot::{Snapshot, WORK_AREA, names};
use nix::mount::{MntFlags, umount2};
use rustix::fs::{RenameFlags, XattrFlags, setxattr};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[track_caller]
fn try_all(first: Act, cases: &[Case]) {
    try_all_in(Form::Wh, first, cases);
}

#[test]
fn creating() {
    try_all(
        nothing,
        &[
            Case {
                name: "create over a whiteout",
                things: &["0/.wh.f", "1/f"],
                change: |u| File::create_new(u.join("f")).map(drop),
            },
            Case {
                name: "create in a directory below",
                things: &["1/d/e/f"],
                change: |u| File::create_new(u.join("d/e/new")).map(drop),
            },
            Case {
                name: "symlink over a whiteout",
                things: &["0/.wh.f", "1/f"],
                change: |u| symlink("target", u.join("f")),
            },
            Case {
                name: "mkdir over a whiteout",
                things: &["0/.wh.d", "1/d/f"],
                change: |u| fs::create_dir(u.join("d")),
            },
            Case {
                name: "link of a file below",
                things: &["1/f", "1/d/"],
                change: |u| fs::hard_link(u.join("f"), u.join("d/g")),
            },
            Case {
                name: "link of a linked file below over a whiteout",
                things: &["1/f", "1/g=f", "0/.wh.h", "1/h"],
                change: |u| fs::hard_link(u.join("f"), u.join("h")),
            },
        ],
    );
}

#[test]
fn removing() {
    try_all(
        nothing,
        &[
            Case { name: "unlink of both", things: &["0/f", "1/f"], change: |u| fs::remove_file(u.join("f")) },
            Case { name: "unlink below", things: &["1/d/e/f"], change: |u| fs::remove_file(u.join("d/e/f")) },
            Case {
                name: "unlink of a linked file below",
                things: &["1/f", "1/g=f", "1/h=f"],
                change: |u| fs::remove_file(u.join("f")),
            },
            Case {
                name: "rmdir with whiteouts",
                things: &["0/d/.wh.f", "0/d/.wh.g", "1/d/f", "1/d/g"],
                change: |u| fs::remove_dir(u.join("d")),
            },
            Case { name: "rmdir below", things: &["1/d/e/"], change: |u| fs::remove_dir(u.join("d/e")) },
        ],
    );
}

#[test]
fn renaming_files() {
    try_all(
        nothing,
        &[
            Case {
                name: "rename of a file over a file",
                things: &["1/f", "1/g"],
                change: |u| fs::rename(u.join("f"), u.join("g")),
            },
            Case {
                name: "rename of a file of both over a file of both",
                things: &["0/f", "1/f", "0/g", "1/g"],
                change: |u| fs::rename(u.join("f"), u.join("g")),
            },
            Case {
                name: "rename of a file over a whiteout",
                things: &["0/f", "1/f", "0/.wh.g", "1/g"],
                change: |u| fs::rename(u.join("f"), u.join("g")),
            },
            Case {
                name: "rename of a linked file below",
                things: &["1/f", "1/g=f", "1/d/"],
                change: |u| fs::rename(u.join("f"), u.join("d/h")),
            },
            Case {
                name: "rename over a linked file below",
                things: &["0/n", "1/f", "1/g=f"],
                change: |u| fs::rename(u.join("n"), u.join("f")),
            },
            Case {
                name: "exchange of files",
                things: &["0/f", "1/f", "1/g"],
                change: |u| rename(u, "f", "g", RenameFlags::EXCHANGE),
            },
        ],
    );
}

#[test]
fn renaming_directories() {
    try_all(
        nothing,
        &[
            Case {
                name: "rename of a directory over an empty one",
                things: &["0/d/f", "0/e/.wh.x", "1/e/x"],
                change: |u| fs::rename(u.join("d"), u.join("e")),
            },
            Case {
                name: "rename of a directory over a whiteout",
                things: &["0/d/f", "0/.wh.e", "1/e/x"],
                change: |u| fs::rename(u.join("d"), u.join("e")),
            },
            Case {
                name: "rename of an opaque directory",
                things: &["0/d/f", "0/d/.wh..wh..opq", "1/d/x", "1/e/"],
                change: |u| fs::rename(u.join("d"), u.join("e/d")),
            },
            Case {
                name: "exchange of a directory and a file",
                things: &["0/d/f", "1/g"],
                change: |u| rename(u, "d", "g", RenameFlags::EXCHANGE),
            },
            Case {
                name: "exchange of directories",
                things: &["0/d/f", "0/e/.wh..wh..opq", "0/e/g", "1/e/x"],
                change: |u| rename(u, "d", "e", RenameFlags::EXCHANGE),
            },
        ],
    );
}

/// With content below: a record is written, taken along, or replaced.
const BELOW: &[&str] = &["1/d/f", "1/d/s/g", "0/d/m", "1/e/x", "0/e/.wh.x", "1/t/y", "0/n"];

#[test]
fn renaming_directories_with_content_below() {
    try_all(
        nothing,
        &[
            Case {
                name: "rename of a directory below",
                things: BELOW,
                change: |u| fs::rename(u.join("t"), u.join("u")),
            },
            Case {
                name: "rename of a merged directory",
                things: BELOW,
                change: |u| fs::rename(u.join("d"), u.join("u")),
            },
            Case { name: "over an empty one", things: BELOW, change: |u| fs::rename(u.join("d"), u.join("e")) },
            Case { name: "into a directory below", things: BELOW, change: |u| fs::rename(u.join("d"), u.join("t/d")) },
            Case {
                name: "exchange with a file",
                things: BELOW,
                change: |u| rename(u, "d", "n", RenameFlags::EXCHANGE),
            },
            Case {
                name: "exchange with another",
                things: BELOW,
                change: |u| rename(u, "d", "t", RenameFlags::EXCHANGE),
            },
            Case { name: "leaving a device", things: BELOW, change: |u| rename(u, "d", "u", RenameFlags::WHITEOUT) },
        ],
    );
}

#[test]
fn changing_what_was_renamed_with_its_content() {
    try_all(
        |u| fs::rename(u.join("d"), u.join("moved")),
        &[
            Case { name: "again", things: BELOW, change: |u| fs::rename(u.join("moved"), u.join("t/d")) },
            Case { name: "back", things: BELOW, change: |u| fs::rename(u.join("moved"), u.join("d")) },
            Case { name: "a child out of it", things: BELOW, change: |u| fs::rename(u.join("moved/s"), u.join("s")) },
            Case { name: "over an empty one", things: BELOW, change: |u| fs::rename(u.join("moved"), u.join("e")) },
            Case { name: "the old name made again", things: BELOW, change: |u| fs::create_dir(u.join("d")) },
            Case { name: "copy-up in it", things: BELOW, change: |u| append(&u.join("moved/s/g")) },
            Case { name: "removal in it", things: BELOW, change: |u| fs::remove_file(u.join("moved/f")) },
            Case {
                name: "exchange with another",
                things: BELOW,
                change: |u| rename(u, "moved", "t", RenameFlags::EXCHANGE),
            },
        ],
    );
}

#[test]
fn replacing_what_was_renamed_and_emptied() {
    try_all(
        |u| {
            fs::rename(u.join("t"), u.join("moved"))?;
            fs::remove_file(u.join("moved/y"))
        },
        &[
            Case { name: "by a directory below", things: BELOW, change: |u| fs::rename(u.join("d"), u.join("moved")) },
            Case {
                name: "by one of the top",
                things: &["1/t/y", "0/p/q"],
                change: |u| fs::rename(u.join("p"), u.join("moved")),
            },
            Case { name: "by nothing", things: BELOW, change: |u| fs::remove_dir(u.join("moved")) },
        ],
    );
}

#[test]
fn copying_up_single_files() {
    try_all(
        nothing,
        &[
            Case {
                name: "chmod",
                things: &["1/d/f"],
                change: |u| fs::set_permissions(u.join("d/f"), fs::Permissions::from_mode(0o600)),
            },
            Case { name: "chown", things: &["1/f"], change: |u| chown(u.join("f"), Some(7), Some(8)) },
            Case {
                name: "setxattr",
                things: &["1/f"],
                change: |u| Ok(setxattr(u.join("f"), "user.x", b"1", XattrFlags::empty())?),
            },
            Case { name: "write", things: &["1/d/f"], change: |u| append(&u.join("d/f")) },
            Case { name: "truncate", things: &["1/f"], change: |u| Ok(nix::unistd::truncate(&u.join("f"), 2)?) },
            Case {
                name: "open with O_TRUNC",
                things: &["1/f"],
                change: |u| File::options().write(true).truncate(true).open(u.join("f")).map(drop),
            },
            Case {
                name: "chmod of a directory",
                things: &["1/d/e/f"],
                change: |u| fs::set_permissions(u.join("d/e"), fs::Permissions::from_mode(0o700)),
            },
        ],
    );
}

#[test]
fn copying_up_linked_files() {
    const THREE: &[&str] = &["1/f", "1/g=f", "1/d/", "1/h=f"];
    try_all(
        nothing,
        &[
            Case {
                name: "chmod of a linked file",
                things: THREE,
                change: |u| fs::set_permissions(u.join("g"), fs::Permissions::from_mode(0o600)),
            },
            Case { name: "write to a linked file", things: THREE, change: |u| append(&u.join("g")) },
            Case {
                name: "truncate of a linked file",
                things: THREE,
                change: |u| Ok(nix::unistd::truncate(&u.join("g"), 2)?),
            },
        ],
    );
}

#[test]
fn changing_what_has_a_hard_link_record() {
    const THREE: &[&str] = &["1/f", "1/g=f", "1/h=f", "1/d/", "0/n"];
    try_all(
        |u| append(&u.join("g")),
        &[
            Case { name: "unlink below a record", things: THREE, change: |u| fs::remove_file(u.join("f")) },
            Case { name: "unlink of the copy", things: THREE, change: |u| fs::remove_file(u.join("g")) },
            Case { name: "rename below a record", things: THREE, change: |u| fs::rename(u.join("f"), u.join("d/f")) },
            Case { name: "rename of the copy", things: THREE, change: |u| fs::rename(u.join("g"), u.join("d/g")) },
            Case { name: "rename over it", things: THREE, change: |u| fs::rename(u.join("n"), u.join("f")) },
            Case { name: "rename over the copy", things: THREE, change: |u| fs::rename(u.join("n"), u.join("g")) },
            Case { name: "exchange", things: THREE, change: |u| rename(u, "n", "f", RenameFlags::EXCHANGE) },
            Case { name: "link", things: THREE, change: |u| fs::hard_link(u.join("h"), u.join("d/l")) },
            Case { name: "truncate", things: THREE, change: |u| Ok(nix::unistd::truncate(&u.join("h"), 2)?) },
        ],
    );
}

/// A flush is not seen, however far it comes, and is complete the next time.
#[test]
fn flushing_hard_links() {
    const THINGS: &[&str] = &["1/f", "1/g=f", "1/h=f", "1/d/", "1/p", "1/q=p", "1/r=p"];
    let first = |u: &Path| -> io::Result<()> {
        append(&u.join("g"))?;
        append(&u.join("q"))?;
        fs::remove_file(u.join("r"))?;
        fs::hard_link(u.join("g"), u.join("d/l"))
    };
    let flush = |u: &Path| harness::mount::finish(Command::new(BIN).arg("flush").arg(u));
    let Some(sandbox) = sandbox::enter_on(Medium::Tmpfs) else { return };
    let mut wrong = Vec::new();
    let mut deaths = 0;
    for at in 1.. {
        let (root, mut mounted) = deaths::mount(&sandbox, Form::Wh, &format!("flush-{at}"), THINGS);
        let target = mounted.target().to_owned();
        first(&target).unwrap();
        let before = Snapshot::take(&target);
        let Life { result, calls, cut_short } = kill_at(mounted.pid(), at, || flush(&target));
        mounted.wait_for_the_end();
        umount2(mounted.target(), MntFlags::MNT_DETACH).unwrap();
        mounted.mount_again();
        let mut lines = difference(&Snapshot::take(&target), &before);
        let again = flush(&target);
        lines.extend((again.status != Some(0)).then(|| format!("it cannot be flushed: {again:?}")));
        lines.extend(difference(&Snapshot::take(&target), &before));
        let left = names(&root.join("0").join(WORK_AREA).join("links")).unwrap();
        lines.extend((!left.is_empty()).then(|| format!("left over: {left:?}")));
        for (name, links) in [("f", 4), ("g", 4), ("h", 4), ("d/l", 4), ("p", 2), ("q", 2)] {
            let real = fs::metadata(root.join("0").join(name)).unwrap().nlink();
            lines.extend((real != links).then(|| format!("{name} has {real} links")));
        }
        if !lines.is_empty() {
            wrong.push(format!("killed at the last of {calls:?}:\n{}", lines.join("\n")));
        }
        if !cut_short {
            assert_eq!(result.status, Some(0), "{result:?}");
            // the new names are on disk before their records go, and that they went is on disk at the end
            let syncs = calls.iter().filter(|call| **call == format!("call {}", libc::SYS_syncfs)).count();
            assert!(syncs >= 2 && calls.last().is_some_and(|call| call.starts_with("call ")), "{calls:?}");
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 10, "the daemon did nothing");
    assert!(wrong.is_empty(), "{} deaths end badly\n{}", wrong.len(), wrong.join("\n\n"));
}
