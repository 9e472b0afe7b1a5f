//! `runionfs show` and `runionfs diff`: what is said of a mount.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::process::Command;

use harness::fixture::Branches;
use harness::mount::{Mounted, Outcome, finish};
use harness::sandbox;
use nix::mount::{MsFlags, mount};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn show(target: impl AsRef<OsStr>) -> Outcome {
    finish(Command::new(BIN).arg("show").arg(target))
}

fn diff(union: impl AsRef<OsStr>) -> Vec<String> {
    let outcome = finish(Command::new(BIN).arg("diff").arg(union));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    outcome.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn show_tells_the_branches_as_aufs_does() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh+init", "rr"]) else { return };
    let at = |index: &str| branches.at(index).display().to_string();
    let expected =
        [format!("br0 {}=rw", at("0")), format!("br1 {}=ro+wh+init", at("1")), format!("br2 {}=rr", at("2"))];
    let union = branches.mount_with(&["udba=reval,threads=3"]);
    let outcome = show(union.path(""));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..3], expected);
    for line in [
        format!("mountpoint {}", union.mounted.target().display()),
        format!("pid {}", union.mounted.pid()),
        "option udba=reval".into(),
        "option threads=3".into(),
        "feature threads=3".into(),
    ] {
        assert!(lines.contains(&&*line), "no {line:?} in {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("feature protocol=7.")), "{lines:#?}");
}

#[test]
fn show_counts_the_requests_of_the_kernel() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let union = branches.mount();
    let before = union.mounted.requests("LOOKUP");
    for name in ["a", "b", "c"] {
        assert!(!union.path(name).exists());
        // remembered by the kernel
        assert!(!union.path(name).exists());
    }
    assert_eq!(union.mounted.requests("LOOKUP") - before, 3);
}

#[test]
fn show_tells_json_in_one_line_whatever_the_names() {
    let Some(sandbox) = sandbox::enter() else { return };
    let top = sandbox.path().join(OsStr::from_bytes(b"t\xff\""));
    let mnt = sandbox.path().join("mnt");
    fs::create_dir(&top).unwrap();
    fs::create_dir(&mnt).unwrap();
    // the harness reads the table of mounts as text
    let mounted = Mounted::mount(BIN, &top, &mnt, &["fsname=odd"]);
    let outcome = finish(Command::new(BIN).arg("show").arg("--json").arg(&mnt));
    assert_eq!((outcome.status, outcome.stdout.lines().count()), (Some(0), 1), "{outcome:?}");
    let bytes: Vec<String> = [top.as_os_str().as_bytes(), b"=rw"].concat().iter().map(u8::to_string).collect();
    assert!(outcome.stdout.contains(&format!("\"branches\":[[{}]]", bytes.join(","))), "{}", outcome.stdout);
    assert!(outcome.stdout.contains(&format!("\"pid\":{},", mounted.pid())), "{}", outcome.stdout);
}

/// The control socket of a mount by root.
fn socket(mounted: &Mounted) -> PathBuf {
    format!("/run/runionfs/0:{}.sock", mounted.entry().unwrap().minor).into()
}

#[test]
fn the_control_socket_is_its_owners_alone_and_goes_with_the_mount() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let mut union = branches.mount();
    let socket = socket(&union.mounted);
    let about = fs::symlink_metadata(&socket).unwrap();
    assert!(about.file_type().is_socket());
    assert_eq!((about.mode() & 0o7777, about.uid()), (0o600, 0));
    assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
    union.mounted.umount();
    assert!(!socket.exists());
}

#[test]
fn show_says_when_the_daemon_is_gone_or_has_no_socket() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let target = branches.file("1/f", "low").at("mnt");
    // in this mount namespace only
    mount(Some("none"), "/run", Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
    let mut union = branches.mount();
    assert_eq!(union.read("f"), "low", "the mount works all the same");
    let outcome = show(&target);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("has no control socket that can be reached (/run/runionfs/"), "{outcome:?}");
    union.mounted.umount();
    nix::mount::umount2("/run", nix::mount::MntFlags::MNT_DETACH).unwrap();
    union.mounted.mount_again();
    union.mounted.kill9();
    let outcome = show(&target);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("it is gone"), "{outcome:?}");
}

#[test]
fn diff_tells_what_was_done_in_the_union() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh+init", "ro+wh"]) else { return };
    branches.file("1/etc/hosts", "init").file("2/etc/hosts", "image").file("2/etc/passwd", "p").dir("2/var/empty");
    for path in ["2/d/a", "2/d/b", "2/d/sub/x", "2/gone/x", "2/f", "2/kept/f"] {
        branches.file(path, "low");
    }
    let string = branches.string();
    let mut union = branches.mount();
    assert_eq!(diff(union.path("")), [""; 0]);
    union.write("etc/hosts", "mine");
    union.write("etc/passwd", "changed");
    fs::remove_dir_all(union.path("d")).unwrap();
    fs::create_dir(union.path("d")).unwrap();
    union.write("d/b", "again");
    union.write("d/new", "new");
    fs::remove_dir_all(union.path("gone")).unwrap();
    fs::remove_file(union.path("f")).unwrap();
    union.write("kept/f", "in place");
    fs::set_permissions(union.path("var/empty"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::create_dir(union.path("brief")).unwrap();
    fs::remove_dir(union.path("brief")).unwrap();
    let expected = [
        "C /d",
        "D /d/a",
        "C /d/b",
        "A /d/new",
        "D /d/sub",
        "C /etc",
        "C /etc/passwd",
        "D /f",
        "D /gone",
        "C /kept",
        "C /kept/f",
        "C /var",
        "C /var/empty",
    ];
    assert_eq!(diff(union.path("")), expected);
    assert_eq!(diff(&string), expected, "by the branches, mounted");
    union.mounted.umount();
    assert_eq!(diff(&string), expected, "by the branches, unmounted");
    union.mounted.mount_again();
}

#[test]
fn diff_tells_names_as_they_are() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let union = branches.mount();
    fs::write(union.path(OsStr::from_bytes(b"\xff\xfe")), "").unwrap();
    let output = Command::new(BIN).args([OsString::from("diff"), union.path("").into()]).output().unwrap();
    assert_eq!(output.stdout, b"A /\xff\xfe\n");
}
