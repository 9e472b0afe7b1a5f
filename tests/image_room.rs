//! A disk that runs full: it is said which one, and what to do; nothing half-made stays, and removing something works.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::mount::{Outcome, finish};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, Running, sh};
use registry::Registry;

/// The store as a file system of this many MiB, with `base:1` in it.
fn small(images: &Images, mebibytes: u32) {
    fs::create_dir_all(STORE).unwrap();
    let options = format!("size={mebibytes}m,mode=700");
    mount(Some("tmpfs"), STORE, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    images.docker("base", r#"{"Cmd":["sh"]}"#, &[images.base()]);
    images.print(&["import", "base"]);
}

/// A file of so many MiB that cannot be compressed.
fn noise(path: &Path, mebibytes: usize) {
    sh(&format!("head -c {} /dev/urandom > {}", mebibytes << 20, path.display()));
}

#[track_caller]
fn told(outcome: &Outcome, doing: &str, remedy: &str) {
    let expected = format!("rlaunch: {doing}: No space left on device ({remedy})\n");
    assert_eq!((outcome.status, &*outcome.stderr), (Some(125), &*expected), "{outcome:?}");
}

/// What to do where the store has no room.
fn make_room() -> String {
    format!("make room on the disk of {STORE}: rlaunch image rm and rlaunch image gc remove what is not needed")
}

#[test]
fn an_import_says_that_the_disk_is_full_and_what_to_do() {
    let Some(images) = Images::new() else { return };
    small(&images, 24);
    let before = images.held();
    let directory = images.tree.beside("large");
    fs::create_dir(&directory).unwrap();
    noise(&directory.join("noise"), 16);
    sh(&format!("cd {}; tar cf large.tar -C large .; gzip -k large.tar", images.tree.beside("").display()));
    // A blob and what is unpacked of it: neither has room beside the other. Where even the blob has none, nor has the rest.
    for source in ["large", "large.tar", "large.tar.gz"] {
        let doing = format!("cannot import {source}: cannot write layer 1");
        told(&images.image(&["import", "--name", "large:1", source]), &doing, &make_room());
        assert_eq!(images.held(), before, "{source}");
    }
    noise(&directory.join("more"), 16);
    sh(&format!("cd {}; tar cf large.tar -C large .", images.tree.beside("").display()));
    let script = format!("exec {RLAUNCH} image import --name large:1 - < large.tar");
    let outcome = finish(Command::new("sh").args(["-c", &script]).current_dir(images.tree.beside("")));
    told(&outcome, "cannot keep what comes on standard input", &make_room());
    assert_eq!(images.held(), before);
    assert_eq!(images.run(&["base:1", "echo", "whole"]), "whole\n");
}

#[test]
fn a_commit_says_so_and_the_container_goes_on() {
    let Some(images) = Images::new() else { return };
    small(&images, 24);
    let before = images.held();
    let write = "head -c 12m /dev/urandom > /noise; echo ready; read line; exec wc -c /noise";
    let mut command = Command::new(RLAUNCH);
    command.args(["run", "--name", "full", "--rm", "--image", "base:1", "sh", "-c", write]);
    let running = Running::start(command.stdin(Stdio::piped()));
    let outcome = images.image(&["commit", "full", "full:1"]);
    told(&outcome, "cannot commit full: cannot write layer 1", &make_room());
    assert_eq!(images.held(), before);
    assert_eq!(running.wait(), (Some(0), "12582912 /noise\n".to_owned()));
}

#[test]
fn a_build_says_so_by_its_line() {
    let Some(images) = Images::new() else { return };
    small(&images, 24);
    let before = images.held();
    let context = images.tree.beside("context");
    fs::create_dir(&context).unwrap();
    noise(&context.join("noise"), 12);
    let build = |text: &str| {
        fs::write(context.join("Dockerfile"), text).unwrap();
        images.image(&["build", "-t", "full", "context"])
    };
    let layer = build("FROM base:1\nCOPY noise /noise\n");
    let doing = "context/Dockerfile:2: COPY noise /noise: cannot write layer 1";
    told(&layer, doing, &make_room());
    let file = build("FROM base:1\nCOPY noise /a\nCOPY noise /b\n");
    assert!(file.stderr.contains("context/Dockerfile:2: COPY noise /a: cannot write layer 1: No space"), "{file:?}");
    sh(&format!("cd {}; cp noise more; tar cf many.tar noise more; mv many.tar noise; rm more", context.display()));
    let archive = build("FROM base:1\nADD noise /a/\nCOPY noise /b\n");
    assert!(archive.stderr.contains("No space left on device (make room on the disk of"), "{archive:?}");
    let command = build("FROM base:1\nRUN head -c 40m /dev/zero > /big\n");
    assert_eq!(command.status, Some(1), "{command:?}");
    assert!(command.stderr.contains(&format!("written: the disk of {STORE}/tmp/")), "{command:?}");
    assert_eq!(images.held(), before);
}

#[test]
fn an_export_and_a_pull_say_so() {
    let Some(images) = Images::new() else { return };
    let Some(registry) = Registry::start(&images.tree.beside("registry"), "", "") else { return };
    small(&images, 48);
    let tree = images.tree.beside("large");
    fs::create_dir(&tree).unwrap();
    noise(&tree.join("noise"), 12);
    images.print(&["import", "--name", "large:1", "large"]);
    let disk = images.tree.beside("disk");
    fs::create_dir(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
    for (form, name) in [("oci", "disk/layout"), ("oci-archive", "disk/file"), ("docker-archive", "disk/file")] {
        let outcome = images.image(&["export", "--format", form, "-o", name, "large:1"]);
        let remedy = "make room there, or write it to another disk with -o";
        told(&outcome, &format!("cannot export large:1 to {name}"), remedy);
        assert_eq!(fs::read_dir(&disk).unwrap().count(), 0, "{form}");
    }
    umount2(&disk, MntFlags::MNT_DETACH).unwrap();
    let name = format!("{}/large:1", registry.host);
    images.print(&["push", "large:1", &name]);
    umount2(STORE, MntFlags::MNT_DETACH).unwrap();
    mount(Some("tmpfs"), STORE, Some("tmpfs"), MsFlags::empty(), Some("size=16m,mode=700")).unwrap();
    let doing = format!("cannot pull {name}: cannot write layer 1");
    told(&images.image(&["pull", &name]), &doing, &make_room());
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}

/// On the way in, as a blob that is kept plain, and unpacked.
#[test]
fn holes_and_rows_of_zeros_take_no_room() {
    const LENGTH: u64 = 200 << 20;
    let Some(images) = Images::new() else { return };
    small(&images, 24);
    let context = images.tree.beside("context");
    fs::create_dir_all(context.join("d")).unwrap();
    sh(&format!(
        "cd {}/d; truncate -s {LENGTH} hole; printf end | dd of=hole bs=1 seek=100000000 conv=notrunc status=none",
        context.display()
    ));
    images.print(&["import", "--name", "tree:1", "context/d"]);
    sh(&format!("cd {}; tar cf zeros.tar -C context d; zstd -q zeros.tar", images.tree.beside("").display()));
    images.print(&["import", "--name", "zeros:1", "zeros.tar.zst"]);
    fs::write(context.join("Dockerfile"), format!("FROM base:1\nCOPY d /d\nRUN truncate -s {LENGTH} /e\n")).unwrap();
    let built = images.image(&["build", "-t", "built:1", "context"]);
    assert_eq!((built.status, &*built.stderr), (Some(0), ""), "{built:?}");
    let script = format!("truncate -s {LENGTH} /f");
    let options = ["run", "--name", "holes", "--image", "built:1", "sh", "-c", &script];
    assert_eq!(finish(Command::new(RLAUNCH).args(options)).status, Some(0));
    images.print(&["commit", "holes", "kept:1"]);
    let sum = |path: &Path| images::sha256(path);
    let expected = sum(&context.join("d/hole"));
    let look = "stat -c '%s %n' /d/hole /e /f; sha256sum < /d/hole";
    let seen = images.run(&["kept:1", "sh", "-c", look]);
    assert_eq!(seen, format!("{LENGTH} /d/hole\n{LENGTH} /e\n{LENGTH} /f\n{expected}  -\n"));
    // What leaves the store is whole again.
    let file = images.tree.beside("out.tar");
    let outcome = images.image(&["export", "--format", "docker-archive", "-o", file.to_str().unwrap(), "kept:1"]);
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(fs::metadata(&file).unwrap().len() > 3 * LENGTH);
    assert_eq!(finish(Command::new(RLAUNCH).args(["rm", "holes"])).status, Some(0));
}

/// Whoever makes room must not need some.
#[test]
fn an_image_can_be_removed_where_the_disk_is_full() {
    let Some(images) = Images::new() else { return };
    small(&images, 16);
    images.print(&["tag", "base:1", "other:1"]);
    sh(&format!("cat /dev/zero > {STORE}/filled 2>/dev/null || true"));
    let tagged = images.image(&["tag", "base:1", "third:1"]);
    assert!(tagged.status == Some(125) && tagged.stderr.contains(&make_room()), "{tagged:?}");
    images.print(&["rm", "other:1"]);
    images.print(&["rm", "base:1"]);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
    // From then on there is room, and some of it is kept for the next time.
    fs::remove_file(Path::new(STORE).join("filled")).unwrap();
    images.print(&["import", "base"]);
    images.print(&["gc"]);
    sh(&format!("cat /dev/zero > {STORE}/filled 2>/dev/null || true"));
    images.print(&["rm", "base:1"]);
}
