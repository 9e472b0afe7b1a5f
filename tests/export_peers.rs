//! What others make of an exported layer: umoci and podman unpack it to what the union shows.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mount::finish;
use harness::sandbox::{self, run};
use harness::snapshot::{Exactness, Snapshot};
use rustix::fs::XattrFlags;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[track_caller]
fn export(union: impl AsRef<OsStr>, to: &Path) {
    let outcome = finish(Command::new(BIN).arg("export").arg(union).arg("-o").arg(to));
    assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""));
}

/// A union with one of everything that a layer says, over two branches.
fn versatile(branches: Branches) -> Union {
    branches.file("2/etc/passwd", "root").file("2/etc/old", "").file("2/usr/lib/a", "a").file("2/usr/lib/b", "b");
    branches.file("2/dir/x/y", "y").file("2/replaced/by/file", "").file("2/file", "becomes a directory");
    branches.file("1/etc/passwd", "root user").whiteout("1/usr/lib/b").file("1/usr/lib/c", "c").opaque("1/dir");
    branches.file("1/dir/z", "z").symlink("1/link", "etc/passwd");
    for branch in ["1", "2"] {
        run(Command::new("find").arg(branches.at(branch)).args([
            "-exec",
            "touch",
            "-h",
            "-d",
            "@1000000000",
            "{}",
            "+",
        ]));
    }
    let union = branches.mount();
    union.write("etc/passwd", "changed");
    fs::remove_file(union.path("etc/old")).unwrap();
    fs::rename(union.path("usr/lib"), union.path("usr/lib64")).unwrap();
    fs::remove_dir_all(union.path("replaced")).unwrap();
    union.write("replaced", "a file");
    fs::remove_file(union.path("file")).unwrap();
    fs::create_dir(union.path("file")).unwrap();
    union.write("file/inside", "");
    fs::hard_link(union.path("replaced"), union.path("etc/linked")).unwrap();
    fs::remove_dir_all(union.path("dir")).unwrap();
    fs::create_dir(union.path("dir")).unwrap();
    fs::set_permissions(union.path("dir"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    rustix::fs::lsetxattr(union.path("etc/passwd"), "user.a", b"\x01\0", XattrFlags::empty()).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::lsetxattr(union.path("replaced"), "security.capability", capability, XattrFlags::empty()).unwrap();
    std::os::unix::fs::lchown(union.path("file/inside"), Some(1000), Some(3_000_000)).unwrap();
    union
}

/// Each branch of a union as a layer, the lowest first.
fn layers(union: &Union) -> Vec<std::path::PathBuf> {
    ["2", "1", "0"]
        .iter()
        .map(|index| {
            let layer = union.at(format!("{index}.tar"));
            let branches = if *index == "0" { union.branches().string() } else { union.at(index).into_os_string() };
            export(branches, &layer);
            layer
        })
        .collect()
}

/// Whether programs are there; where one is not, the test is skipped.
fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| Command::new(program).arg("--version").output().is_err());
    if let Some(program) = missing {
        sandbox::skip(&format!("it needs {program} (see tests/setup)"));
    }
    missing.is_none()
}

#[test]
fn umoci_unpacks_the_layers_to_what_the_union_shows() {
    if !have(&["umoci"]) {
        return;
    }
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    let union = versatile(branches);
    let (image, bundle) = (union.at("image"), union.at("bundle"));
    let tagged = || [image.as_os_str(), OsStr::new(":tag")].concat_os();
    run(Command::new("umoci").arg("init").arg("--layout").arg(&image));
    run(Command::new("umoci").arg("new").arg("--image").arg(tagged()));
    for layer in layers(&union) {
        run(Command::new("umoci").args(["raw", "add-layer", "--image"]).arg(tagged()).arg(layer));
    }
    run(Command::new("umoci").args(["unpack", "--image"]).arg(tagged()).arg(&bundle));
    compare(&union, &bundle.join("rootfs"), "umoci");
}

#[test]
fn podman_reads_the_layers_as_what_the_union_shows() {
    if !have(&["podman", "umoci"]) {
        return;
    }
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    let union = versatile(branches);
    let image = union.at("image");
    let tagged = || [image.as_os_str(), OsStr::new(":tag")].concat_os();
    run(Command::new("umoci").arg("init").arg("--layout").arg(&image));
    run(Command::new("umoci").arg("new").arg("--image").arg(tagged()));
    for layer in layers(&union) {
        run(Command::new("umoci").args(["raw", "add-layer", "--image"]).arg(tagged()).arg(layer));
    }
    let podman = |arguments: &[&OsStr]| {
        let mut command = Command::new("podman");
        command.current_dir(union.at(""));
        for (option, place) in [("--root", "storage"), ("--runroot", "run")] {
            command.arg(option).arg(union.at(place));
        }
        let output = command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]).args(arguments).output();
        let output = output.expect("start podman");
        assert!(output.status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // it makes a name of the path, which must be in lower case then
    let id = podman(&["pull".as_ref(), "-q".as_ref(), "oci:image:tag".as_ref()]);
    let rootfs = podman(&["image".as_ref(), "mount".as_ref(), id.as_ref()]);
    compare(&union, Path::new(&rootfs), "podman");
    podman(&["image".as_ref(), "umount".as_ref(), id.as_ref()]);
}

/// Compares what others made of the layers with the union.
#[track_caller]
fn compare(union: &Union, rootfs: &Path, who: &str) {
    let ours = Snapshot::take(union.mounted.target());
    let mut theirs = Snapshot::take(rootfs);
    // podman makes the mount points of its own in the root
    theirs.entries.get_mut(Path::new("")).unwrap().mtime = ours.entries[Path::new("")].mtime;
    ours.assert_same(&theirs, Exactness::Equal, &format!("{who} sees another tree"));
}

/// Paths and text in one string.
trait ConcatOs {
    fn concat_os(&self) -> OsString;
}

impl ConcatOs for [&OsStr] {
    fn concat_os(&self) -> OsString {
        self.iter().fold(OsString::new(), |mut text, part| {
            text.push(part);
            text
        })
    }
}
