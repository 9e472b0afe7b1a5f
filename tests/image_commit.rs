//! A container's changes become an image: the top alone, and the same bytes each time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, Running, printed};

/// A store with an image of two layers, `base:1`.
fn base() -> Option<Images> {
    let images = Images::new()?;
    let second =
        images.layer(&[("srv/keep", "keep"), ("srv/gone", "gone"), ("srv/tree/x", "x"), ("srv/linked", "one")]);
    images.docker("base", r#"{"Cmd":["cat","/srv/new"],"Env":["A=1"]}"#, &[images.base(), second]);
    images.print(&["import", "base"]);
    Some(images)
}

fn rlaunch(words: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).args(words).env("SOURCE_DATE_EPOCH", "1700000000"))
}

/// Runs a script in a container `work` that stays.
#[track_caller]
fn work(images: &Images, script: &str) {
    let volume = format!("{}:/volume", images.tree.beside("volume").display());
    fs::create_dir_all(images.tree.beside("volume")).unwrap();
    let outcome = rlaunch(&["--name", "work", "-v", &volume, "--image", "base:1", "sh", "-ec", script]);
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
}

#[test]
fn what_was_written_is_in_the_image_and_what_is_the_containers_own_is_not() {
    let Some(images) = base() else { return };
    let script =
        "echo new > /srv/new; rm /srv/gone; mv /srv/tree /srv/moved; ln /srv/linked /srv/second; chmod 600 /srv/keep
        echo 1.2.3.4 other >> /etc/hosts; sed -i s/x/y/ /etc/resolv.conf; echo v > /volume/v";
    work(&images, script);
    let id = printed(rlaunch(&["commit", "-m", "by a test", "-a", "Me", "work", "made:1"]));
    let look = "cat /srv/new /srv/moved/x /srv/second; test -e /srv/gone || echo none; test -e /volume/v || echo empty; stat -c '%a %h' /srv/keep /srv/linked";
    assert_eq!(images.run(&["made:1", "sh", "-c", look]), "new\nxonenone\nempty\n600 1\n644 2\n");
    assert_eq!(images.run(&["made:1"]), "new\n");
    // The layer holds nothing of the container's own.
    let details = images.print(&["inspect", "made:1"]);
    let layer = details.lines().rev().find_map(|line| line.trim().strip_prefix("\"Path\": \"")).unwrap();
    let layer = Path::new(layer.split('"').next().unwrap());
    assert!(layer.join("srv/.wh.gone").exists() && !layer.join("etc").exists() && !layer.join("volume").exists());
    assert!(id.starts_with("sha256:") && details.contains(id.trim()));
    let history = images.print(&["history", "made:1"]);
    assert!(history.lines().nth(1).unwrap().contains("2023-11-14T22:13:20Z"), "{history}");
    let steps: Vec<_> = history.lines().skip(1).collect();
    assert!(steps[0].contains("rlaunch commit") && steps[0].contains("by a test"), "{history}");
    // A layer of which nobody has told anything is not taken for another one.
    assert!(steps.len() == 3 && steps[1].contains("unknown") && steps[2].contains("by hand"), "{history}");
    // Once more is the same image; and the container goes on.
    assert_eq!(printed(rlaunch(&["commit", "-m", "by a test", "-a", "Me", "work", "again:1"])), id);
    assert_eq!(rlaunch(&["start", "--attach", "work"]).status, Some(1), "/srv/gone is gone already");
    // Three layers are shared.
    assert_eq!(fs::read_dir(Path::new(STORE).join("layers")).unwrap().count(), 3);
    assert_eq!(rlaunch(&["rm", "work"]).status, Some(0));
}

#[test]
fn a_change_is_how_the_image_is_run() {
    let Some(images) = base() else { return };
    work(&images, "mkdir /srv/here");
    let changes =
        ["-c", "CMD [\"sh\", \"-c\", \"pwd; echo $A $B\"]", "--change", "ENV A=2 B=\"x y\"", "-c", "WORKDIR /srv/here"];
    printed(rlaunch(&[&["commit"][..], &changes, &["work", "changed"]].concat()));
    assert_eq!(images.run(&["changed"]), "/srv/here\n2 x y\n");
    let wrong = rlaunch(&["commit", "-c", "RUN make", "work"]);
    assert!(wrong.status == Some(125) && wrong.stderr.contains("RUN cannot be changed"), "{wrong:?}");
    assert_eq!(rlaunch(&["rm", "work"]).status, Some(0));
}

#[test]
fn what_cannot_become_an_image_says_why() {
    let Some(images) = base() else { return };
    let missing = rlaunch(&["commit", "nobody", "x"]);
    assert!(missing.status == Some(125) && missing.stderr.contains("there is no container nobody"), "{missing:?}");
    let tree = images.tree.path("").display().to_string();
    assert_eq!(rlaunch(&["--name", "tree", "--rootfs", &tree, "true"]).status, Some(0));
    let tree = rlaunch(&["commit", "tree", "x"]);
    assert!(tree.status == Some(125) && tree.stderr.contains("is not on an image"), "{tree:?}");
    let mut command = Command::new(RLAUNCH);
    let running = Running::start(command.args([
        "--name",
        "runs",
        "--image",
        "base:1",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]));
    let runs = rlaunch(&["commit", "runs", "x"]);
    assert!(runs.status == Some(125) && runs.stderr.contains("it runs (rlaunch stop runs first)"), "{runs:?}");
    // The image of a container that has ended may go; then there is nothing to make one of.
    assert_eq!(rlaunch(&["stop", "-t", "0", "runs"]).status, Some(0));
    drop(running);
    images.print(&["rm", "base:1"]);
    let gone = rlaunch(&["commit", "runs", "x"]);
    assert!(gone.status == Some(125) && gone.stderr.contains("the image of the container runs is gone"), "{gone:?}");
    for name in ["runs", "tree"] {
        assert_eq!(rlaunch(&["rm", name]).status, Some(0));
    }
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}
