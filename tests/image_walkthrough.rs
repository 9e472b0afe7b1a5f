//! The whole way of layers in one test: a union of directories, an image of such layers, a container with a branch of its
//! own between top and image, its changes as a new layer, and that layer on its way to a registry and back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Mounted, finish, poll};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tools.rs"]
mod tools;

use images::Images;
use launch::{PATIENCE, RLAUNCH, printed};
use registry::Registry;

/// What `rlaunch` prints.
#[track_caller]
fn rlaunch(words: &[&str]) -> String {
    printed(finish(Command::new(RLAUNCH).args(words)))
}

/// The digests of an image's layers, the lowest first.
fn layers(images: &Images, image: &str) -> Vec<String> {
    let details = images.print(&["inspect", image]);
    let lines = details.lines().filter_map(|line| line.trim().strip_prefix("\"sha256:"));
    lines.map(|line| line.trim_matches(['"', ',']).to_owned()).collect()
}

#[test]
fn from_two_directories_to_a_registry_and_back() {
    let Some(images) = Images::new() else { return };
    let Some(registry) = Registry::start(&images.tree.beside("registry"), "", "") else { return };
    let beside = |name: &str| images.tree.beside(name);
    for (path, content) in [("A/a", "a of A"), ("A/x", "x of A"), ("B/b", "b of B"), ("B/x", "x of B")] {
        fs::create_dir_all(beside(path).parent().unwrap()).unwrap();
        fs::write(beside(path), content).unwrap();
    }
    a_union_of_both(&beside);
    // The same two as layers of an image.
    let [a, b] = ["A", "B"].map(|name| images.archive(&beside(name)));
    images.docker("walk", r#"{"Cmd":["cat","/x"]}"#, &[images.base(), b, a]);
    images.print(&["import", "walk"]);
    assert_eq!(images.run(&["walk:1"]), "x of A");
    let made = a_container_and_its_commit(&images, &beside);
    // To the registry, and from there into a store that has nothing any more.
    let remote = format!("{}/team/made:1", registry.host);
    images.print(&["push", "made:1", &remote]);
    images.print(&["rm", "walk:1", "made:1"]);
    assert_eq!(images.held(), [] as [PathBuf; 0]);
    images.print(&["pull", &remote]);
    assert_eq!(layers(&images, &remote), made);
    assert_eq!(images.run(&[&remote, "cat", "/made"]), "made\n");
}

/// What is removed of the lower one is marked in the top, and stays where it is.
fn a_union_of_both(beside: &impl Fn(&str) -> PathBuf) {
    for name in ["top", "union"] {
        fs::create_dir(beside(name)).unwrap();
    }
    let branches = ["top=rw", "A=ro+wh", "B=ro+wh"].map(|name| beside(name).display().to_string()).join(":");
    let mut union = Mounted::mount(Path::new(RLAUNCH).with_file_name("runionfs"), branches, &beside("union"), &[]);
    let shown = |name: &str| fs::read_to_string(beside("union").join(name)).unwrap();
    assert_eq!([shown("a"), shown("b"), shown("x")], ["a of A", "b of B", "x of A"]);
    fs::remove_file(beside("union/b")).unwrap();
    assert!(!beside("union/b").exists() && beside("B/b").exists());
    assert!(fs::symlink_metadata(beside("top/.wh.b")).unwrap().is_file());
    union.umount();
}

/// The layers of the image that a container became.
fn a_container_and_its_commit(images: &Images, beside: &impl Fn(&str) -> PathBuf) -> Vec<String> {
    fs::create_dir(beside("volume")).unwrap();
    let volume = format!("{}:/shared", beside("volume").display());
    let script =
        "echo made > /made; rm /b; echo 10.9.9.9 other >> /etc/hosts; echo inside > /shared/inside; exec sleep 1000";
    assert_eq!(
        rlaunch(&["run", "-d", "--name", "walk", "-v", &volume, "--image", "walk:1", "sh", "-c", script]),
        "walk\n"
    );
    // A volume is one directory on both sides.
    let inside = poll(PATIENCE, || fs::read_to_string(beside("volume/inside")).ok().filter(|text| !text.is_empty()));
    assert_eq!(inside.as_deref(), Some("inside\n"));
    fs::write(beside("volume/outside"), "outside").unwrap();
    assert_eq!(rlaunch(&["exec", "walk", "cat", "/shared/outside", "/a"]), "outsidea of A");
    assert_eq!(
        rlaunch(&["exec", "walk", "sh", "-c", "echo more > /by-exec; cat /etc/hosts | tail -n 1"]),
        "10.9.9.9 other\n"
    );
    what_is_its_own_lies_between();
    let changes = rlaunch(&["diff", "walk"]);
    assert_eq!(changes, "D /b\nA /by-exec\nA /made\n");
    rlaunch(&["commit", "-m", "as it is", "walk", "made:1"]);
    rlaunch(&["stop", "-t", "0", "walk"]);
    rlaunch(&["rm", "walk"]);
    // The new image has what was made, and nothing of what was the container's own.
    let look = "cat /made /by-exec /a; test -e /b || echo ' none'; test -e /shared || echo none; grep -c 10.9.9.9 /etc/hosts; true";
    assert_eq!(images.run(&["made:1", "sh", "-c", look]), "made\nmore\na of A none\nnone\n0\n");
    let (before, after) = (layers(images, "walk:1"), layers(images, "made:1"));
    assert_eq!((before.len(), after.len()), (3, 4));
    assert_eq!(after[..3], before);
    after
}

/// The branch between top and image has the container's own files, and what was written to them.
fn what_is_its_own_lies_between() {
    let details = rlaunch(&["inspect", "walk"]);
    let branches: Vec<&str> = details
        .lines()
        .map(|line| line.trim().trim_matches(['"', ',']))
        .filter(|word| word.starts_with('/') && (word.ends_with("=rw") || word.contains("=ro+wh")))
        .collect();
    assert!(branches.len() == 5 && branches[0].ends_with("=rw") && branches[1].ends_with("=ro+wh+init"), "{details}");
    let at = |branch: &str, path: &str| Path::new(branch.rsplit_once('=').unwrap().0).join(path);
    assert!(fs::read_to_string(at(branches[1], "etc/hosts")).unwrap().contains("10.9.9.9 other"));
    assert!(
        !at(branches[0], "etc").exists() && !at(branches[0], "shared").exists() && at(branches[0], ".wh.b").exists()
    );
}
