//! `rlaunch diff` says what a container has written, whether it runs or has ended, and says the same as the layer of a
//! commit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{Way, again};
use harness::sandbox::run;

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, Recorded, Running, Tree, printed};

fn rlaunch(words: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).args(words))
}

#[track_caller]
fn diff(container: &str) -> String {
    printed(rlaunch(&["diff", container]))
}

/// A container that runs.
#[track_caller]
fn start(words: &[&str], script: &str) -> Running {
    let script = format!("{script}; echo ready; exec sleep 1000");
    Running::start(Command::new(RLAUNCH).args(words).args(["sh", "-ec", &script]))
}

fn base() -> Option<Images> {
    let images = Images::new()?;
    let second = images.layer(&[
        ("srv/keep", "keep"),
        ("srv/gone", "gone"),
        ("srv/tree/x", "x"),
        ("srv/tree/y", "y"),
        ("srv/full/one", ""),
        ("etc/hosts", "of the image"),
    ]);
    images.docker("base", r#"{"Cmd":["sh"]}"#, &[images.base(), second]);
    images.print(&["import", "base"]);
    Some(images)
}

/// Something of each kind; what is the container's own is changed, too.
const CHANGES: &str = "echo new > /srv/new; rm /srv/gone; echo more >> /srv/keep; mv /srv/tree /srv/moved
    rm -r /srv/full; mkdir /srv/full; ln /srv/new /srv/linked; mkdir -p /a/b; ln -s x '/a/with blank'; mknod /a/fifo p
    echo 1.2.3.4 other >> /etc/hosts; sed -i s/x/y/ /etc/resolv.conf; chmod 700 /etc/hostname; echo v > /volume/deep/v
    echo t > /tmp/t";
const EXPECTED: &str = "A /a\nA /a/b\nA /a/fifo\nA /a/with blank\nC /srv\nC /srv/full\nD /srv/full/one\nD /srv/gone\nC /srv/keep\n\
    A /srv/linked\nA /srv/moved\nA /srv/moved/x\nA /srv/moved/y\nA /srv/new\nD /srv/tree\n";

#[test]
fn what_a_container_has_written_is_told_while_it_runs_and_afterwards() {
    let Some(images) = base() else { return };
    let volume = format!("{}:/volume/deep", images.tree.beside("volume").display());
    fs::create_dir(images.tree.beside("volume")).unwrap();
    let words = ["--name", "work", "-v", &volume, "--tmpfs", "/tmp", "--image", "base:1"];
    let running = start(&words, CHANGES);
    assert_eq!(diff("work"), EXPECTED);
    assert_eq!(rlaunch(&["stop", "-t", "0", "work"]).status, Some(0));
    drop(running);
    assert_eq!(diff("work"), EXPECTED);
    printed(rlaunch(&["commit", "work", "made"]));
    assert_eq!(in_layer(&images, "made"), told(EXPECTED));
    assert_eq!(rlaunch(&["rm", "work"]).status, Some(0));
}

/// What a list of changes says is new or changed, and what is deleted.
fn told(changes: &str) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let of = |kinds: &str| {
        let lines = changes.lines().filter(|line| kinds.contains(&line[..1]));
        lines.map(|line| PathBuf::from(&line[2..])).collect()
    };
    (of("AC"), of("D"))
}

/// What the topmost layer of an image holds, and what it hides; all that was in an opaque directory.
fn in_layer(images: &Images, image: &str) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let details = images.print(&["inspect", image]);
    let layers: Vec<_> = details.lines().filter_map(|line| line.trim().strip_prefix("\"sha256:")).collect();
    let layer = |digest: &str| Path::new(STORE).join("layers").join(digest.trim_matches(['"', ','])).join("layer");
    let (top, below) = (layer(layers[layers.len() - 1]), layer(layers[layers.len() - 2]));
    let (mut entries, mut hidden) = (BTreeSet::new(), BTreeSet::new());
    for path in printed(finish(Command::new("find").arg(&top).args(["-mindepth", "1"]))).lines() {
        let path = Path::new("/").join(Path::new(path).strip_prefix(&top).unwrap());
        let (around, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        match name.strip_prefix(".wh.") {
            Some(".wh..opq") => {
                let same = fs::read_dir(below.join(around.strip_prefix("/").unwrap())).into_iter().flatten();
                hidden.extend(same.map(|entry| around.join(entry.unwrap().file_name())));
            }
            Some(name) => drop(hidden.insert(around.join(name))),
            None => drop(entries.insert(path)),
        }
    }
    (entries, hidden)
}

#[test]
fn what_lies_on_branches_in_memory_or_in_a_directory_is_told_as_well() {
    let Some(images) = base() else { return };
    let beside = |name: &str| images.tree.beside(name).display().to_string();
    fs::create_dir(beside("top")).unwrap();
    let branches = format!("{}=rw:{}=ro+wh", beside("top"), images.tree.path("").display());
    let script = "echo x > /x; rm /etc/passwd";
    let kept = beside("kept");
    for (name, words, stays) in [
        ("branches", &["--branches", &branches][..], true),
        ("memory", &["--tmpfs-top", "--image", "base:1"], false),
        ("kept", &["--keep", &kept, "--image", "base:1"], true),
    ] {
        let running = start(&[&["--name", name], words].concat(), script);
        let expected = "C /etc\nD /etc/passwd\nA /x\n";
        assert_eq!(diff(name), expected, "{name}");
        assert_eq!(rlaunch(&["stop", "-t", "0", name]).status, Some(0));
        drop(running);
        match stays {
            true => assert_eq!(diff(name), expected, "{name}"),
            false => {
                let gone = rlaunch(&["diff", name]);
                assert!(gone.status == Some(125) && gone.stderr.contains("is not there any more"), "{gone:?}");
            }
        }
        assert_eq!(rlaunch(&["rm", name]).status, Some(0));
    }
}

#[test]
fn a_copy_of_the_host_tells_what_it_has_written_everywhere() {
    let Some(tree) = Recorded::new() else { return };
    let place = tree.beside("work");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("old"), "").unwrap();
    let at = place.display();
    let script = format!("echo x > {at}/new; rm {at}/old; echo x > /etc/of-a-test");
    let running = start(&["--name", "copy"], &script);
    let expected = [format!("A {at}/new\n"), format!("D {at}/old\n"), "A /etc/of-a-test\n".into()];
    let check = || {
        let found = diff("copy");
        assert!(expected.iter().all(|line| found.contains(line)), "{found}");
        let mut sorted: Vec<_> = found.lines().map(|line| &line[2..]).collect();
        sorted.sort_unstable();
        assert_eq!(sorted, found.lines().map(|line| &line[2..]).collect::<Vec<_>>());
    };
    check();
    assert_eq!(rlaunch(&["stop", "-t", "0", "copy"]).status, Some(0));
    drop(running);
    check();
    let refused = rlaunch(&["commit", "copy", "x"]);
    assert!(refused.status == Some(125) && refused.stderr.contains("it is a copy of this machine"), "{refused:?}");
    assert_eq!(rlaunch(&["rm", "copy"]).status, Some(0));
}

#[test]
fn an_ordinary_user_is_told_the_same() {
    if !again(Way::Fusermount, "an_ordinary_user_is_told_the_same") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    run(Command::new("tar").arg("-C").arg(tree.path("")).arg("-cf").arg(tree.beside("base.tar")).arg("."));
    let command = |way: Option<&str>, words: &[&str]| {
        let mut command = Command::new(RLAUNCH);
        command.args(words).current_dir(tree.beside("")).env("XDG_DATA_HOME", tree.beside("data"));
        command.env("XDG_RUNTIME_DIR", tree.beside(""));
        if let Some(path) = way {
            command.env("PATH", path);
        }
        command
    };
    for (name, way) in [("ranges", None), ("alone", Some("/usr/lib"))] {
        // Who is alone is told that.
        let print = |words: &[&str]| {
            let outcome = finish(&mut command(way, words));
            assert_eq!(outcome.status, Some(0), "{words:?}: {outcome:?}");
            outcome.stdout
        };
        drop(fs::remove_dir_all(tree.beside("data")));
        print(&["image", "import", "base.tar", "--name", "base"]);
        let script = "echo x > /x; mkdir -m 700 /own; echo y > /own/y; echo ready; exec sleep 1000";
        let running = Running::start(&mut command(way, &["--name", name, "--image", "base", "sh", "-ec", script]));
        let expected = "A /own\nA /own/y\nA /x\n";
        assert_eq!(print(&["diff", name]), expected);
        print(&["commit", "--no-pause", name, "running"]);
        // Whether a user has a cgroup by which a container could be stopped is the machine's affair.
        let paused = finish(&mut command(way, &["commit", name, "paused"]));
        let is_told = paused.status == Some(125) && paused.stderr.contains("or say --no-pause");
        assert!(paused.status == Some(0) || is_told, "{paused:?}");
        assert!(!paused.stderr.contains("may still be paused"), "{paused:?}");
        print(&["stop", "-t", "0", name]);
        drop(running);
        assert_eq!(print(&["diff", name]), expected);
        print(&["commit", name, "ended"]);
        for image in ["running", "ended"] {
            assert_eq!(print(&["run", "--image", image, "cat", "/own/y"]), "y\n");
        }
        print(&["rm", name]);
    }
}

#[test]
fn who_has_no_union_says_so() {
    let Some(tree) = Recorded::new() else { return };
    let running = start(&["--name", "tree", "--rootfs", tree.path("").to_str().unwrap()], "true");
    let refused = rlaunch(&["diff", "tree"]);
    assert!(refused.status == Some(125) && refused.stderr.contains("has no union"), "{refused:?}");
    let missing = rlaunch(&["diff", "nobody"]);
    assert!(missing.status == Some(125) && missing.stderr.contains("there is no container nobody"), "{missing:?}");
    drop(running);
    assert_eq!(rlaunch(&["rm", "-f", "tree"]).status, Some(0));
}
