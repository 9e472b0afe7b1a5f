//! A container's changes become an image: the top alone, and the same bytes each time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::mount::{Mounted, Outcome, finish};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, Running, printed, wait_until_changed, wait_until_still};

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

/// A container that writes the same number to one file after the other, all the time; the numbers of two files differ by
/// one at most, as long as nobody writes while they are read.
#[track_caller]
fn counting(images: &Images, words: &[&str]) -> (Running, std::path::PathBuf) {
    let volume = images.tree.beside("seen");
    fs::create_dir_all(&volume).unwrap();
    let script = "mkdir /n; head -c 20000000 /dev/urandom > /n/large; echo ready; i=1
        while :; do for f in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do echo $i > /n/$f; done; echo $i > /seen/count; i=$((i+1)); done";
    let mut command = Command::new(RLAUNCH);
    let running = Running::start(
        command
            .args(["--rm", "--name", "counts", "-v", &format!("{}:/seen", volume.display())])
            .args(words)
            .args(["--image", "base:1", "sh", "-c", script]),
    );
    wait_until_changed(&volume.join("count"));
    (running, volume.join("count"))
}

const NUMBERS: &str = "cd /n; for f in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do echo $(cat $f); done";

/// Whether the numbers in the files are those of one moment: all before some point are one more than all after it. One
/// file may be empty there.
fn is_one_moment(numbers: &str) -> bool {
    let numbers: Vec<Option<u64>> = numbers.lines().map(|line| line.parse().ok()).collect();
    let newest = numbers.iter().flatten().max().copied();
    let turn = numbers.iter().position(|number| *number != newest).unwrap_or(numbers.len());
    let rest = numbers[turn..].strip_prefix(&[None]).unwrap_or(&numbers[turn..]);
    let before = if turn == 0 { newest } else { newest.map(|newest| newest - 1) };
    numbers.len() == 16 && rest.iter().all(|number| *number == before)
}

#[test]
fn a_container_that_runs_stands_still_for_its_commit_and_goes_on() {
    let Some(images) = base() else { return };
    for (words, image) in [(&[][..], "disk"), (&["--tmpfs-top"], "memory")] {
        let (running, count) = counting(&images, words);
        for round in 0..3 {
            let image = format!("{image}:{round}");
            printed(rlaunch(&["commit", "counts", &image]));
            wait_until_changed(&count);
            let numbers = images.run(&[&image, "sh", "-c", NUMBERS]);
            assert!(is_one_moment(&numbers), "{image}: {numbers}");
        }
        drop(running);
        wait_until_still(&count);
    }
}

#[test]
fn one_that_is_not_to_stand_still_goes_on_meanwhile() {
    let Some(images) = base() else { return };
    let script = "head -c 20000000 /dev/urandom > /large; echo ready; while :; do echo line >> /log; done";
    let mut command = Command::new(RLAUNCH);
    command.args(["--rm", "--name", "logs", "--image", "base:1", "sh", "-c", script]);
    let running = Running::start(&mut command);
    for flag in ["--no-pause", "--pause=false", "--pause=true"] {
        printed(rlaunch(&["commit", flag, "logs", "logs"]));
        let lines = images.run(&["logs", "sh", "-c", "uniq -c /log"]);
        assert!(lines.trim().ends_with("line") && lines.lines().count() == 1, "{flag}: {lines}");
    }
    drop(running);
}

#[test]
fn whatever_becomes_of_who_commits_the_container_goes_on_and_the_store_is_whole() {
    let Some(images) = base() else { return };
    let (running, count) = counting(&images, &[]);
    let mut interrupted = 0;
    for step in 0..12_u64 {
        let mut command = Command::new(RLAUNCH);
        command.args(["commit", "counts", "killed:1"]).stdout(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 11));
        let signal = [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM][usize::try_from(step).unwrap() % 3];
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        interrupted += usize::from(!child.wait().unwrap().success());
        wait_until_changed(&count);
        // Whatever the list has is whole, and nothing else is left but layers that nobody names.
        if images.print(&["ls"]).contains("killed:1") {
            assert!(is_one_moment(&images.run(&["killed:1", "sh", "-c", NUMBERS])));
            images.print(&["rm", "killed:1"]);
        }
        images.print(&["gc"]);
        assert_eq!(fs::read_dir(Path::new(STORE).join("tmp")).unwrap().count(), 0, "after {step}");
        assert_eq!(fs::read_dir(Path::new(STORE).join("layers")).unwrap().count(), 2, "after {step}");
    }
    assert!(interrupted > 3, "hardly anything was interrupted");
    drop(running);
    wait_until_still(&count);
}

#[test]
fn a_container_that_its_user_has_paused_stays_so() {
    let Some(images) = base() else { return };
    let (running, count) = counting(&images, &[]);
    printed(rlaunch(&["pause", "counts"]));
    printed(rlaunch(&["commit", "counts", "paused"]));
    assert!(printed(rlaunch(&["ps"])).lines().any(|line| line.starts_with("counts ") && line.contains(" paused ")));
    printed(rlaunch(&["resume", "counts"]));
    wait_until_changed(&count);
    assert!(is_one_moment(&images.run(&["paused", "sh", "-c", NUMBERS])));
    drop(running);
    wait_until_still(&count);
}

#[test]
fn what_is_open_or_only_noted_is_in_the_image() {
    let Some(images) = base() else { return };
    // The second name of a file below is found when all is written out.
    let linked = images.tree.path("srv");
    fs::create_dir(&linked).unwrap();
    fs::write(linked.join("one"), "old").unwrap();
    fs::create_dir(linked.join("deep")).unwrap();
    fs::hard_link(linked.join("one"), linked.join("deep/two")).unwrap();
    images.docker("linked", r#"{"Cmd":["sh"]}"#, &[images.base()]);
    images.print(&["import", "linked"]);
    let script = "exec 3> /open; echo begun >&3; echo new > /srv/one; mv /srv/deep /moved; echo ready; exec sleep 1000";
    let mut command = Command::new(RLAUNCH);
    command.args(["--rm", "--name", "open", "--image", "linked:1", "sh", "-ec", script]);
    let running = Running::start(&mut command);
    printed(rlaunch(&["commit", "open", "noted"]));
    assert_eq!(images.run(&["noted", "sh", "-c", "cat /open /srv/one /moved/two; ls /srv"]), "begun\nnew\nnew\none\n");
    assert_eq!(images.run(&["noted", "stat", "-c", "%h", "/moved/two"]), "2\n");
    drop(running);
}

#[test]
fn the_branches_of_a_container_become_the_layers_of_its_image() {
    let Some(images) = base() else { return };
    let beside = |name: &str| images.tree.beside(name);
    for name in ["top", "second", "mounted"] {
        fs::create_dir(beside(name)).unwrap();
    }
    fs::write(beside("second/of-second"), "2").unwrap();
    fs::write(beside("second/.wh.home"), "").unwrap();
    fs::create_dir(images.tree.path("home")).unwrap();
    let branches = ["top=rw", "second=ro+wh", "tree=ro+wh"].map(|name| beside(name).display().to_string()).join(":");
    let script = "echo new > /new; rm /etc/passwd; mkdir -p /srv/x; echo ready; exec sleep 1000";
    let check = |image: &str| {
        let look = "cat /new /of-second; ls -d /srv/x /etc/passwd /home 2>/dev/null";
        assert_eq!(images.run(&[image, "sh", "-c", &format!("{look}; true")]), "new\n2/srv/x\n", "{image}");
        let details = images.print(&["inspect", image]);
        assert_eq!(details.lines().filter(|line| line.trim().starts_with("\"sha256:")).count(), 3, "{details}");
        let history = images.print(&["history", image]);
        assert!(history.lines().nth(2).unwrap().contains(beside("second").to_str().unwrap()), "{history}");
    };
    let mut command = Command::new(RLAUNCH);
    let running = Running::start(command.args(["--name", "branches", "--branches", &branches, "sh", "-ec", script]));
    printed(rlaunch(&["commit", "-c", "CMD [\"cat\", \"/new\"]", "branches", "running"]));
    check("running");
    assert_eq!(images.run(&["running"]), "new\n");
    assert_eq!(rlaunch(&["stop", "-t", "0", "branches"]).status, Some(0));
    drop(running);
    printed(rlaunch(&["commit", "branches", "ended"]));
    check("ended");
    assert_eq!(rlaunch(&["rm", "branches"]).status, Some(0));
    // What is mounted already has a daemon of its own, which is asked.
    let top = beside("other-top");
    fs::create_dir(&top).unwrap();
    let branches = branches.replace(beside("top").to_str().unwrap(), top.to_str().unwrap());
    let mounted = Mounted::mount(Path::new(RLAUNCH).with_file_name("runionfs"), &branches, &beside("mounted"), &[]);
    let mut command = Command::new(RLAUNCH);
    command.args(["--rm", "--name", "mounted", "--rootfs"]).arg(mounted.target()).args(["sh", "-ec", script]);
    let running = Running::start(&mut command);
    printed(rlaunch(&["commit", "mounted", "mounted"]));
    check("mounted");
    assert!(printed(rlaunch(&["diff", "mounted"])).contains("A /new\n"));
    drop(running);
}

#[test]
fn what_cannot_become_an_image_says_why() {
    let Some(images) = base() else { return };
    let missing = rlaunch(&["commit", "nobody", "x"]);
    assert!(missing.status == Some(125) && missing.stderr.contains("there is no container nobody"), "{missing:?}");
    let tree = images.tree.path("").display().to_string();
    assert_eq!(rlaunch(&["--name", "tree", "--rootfs", &tree, "true"]).status, Some(0));
    let tree = rlaunch(&["commit", "tree", "x"]);
    assert!(tree.status == Some(125) && tree.stderr.contains("has no union"), "{tree:?}");
    for words in [&["--tmpfs-top", "--name", "memory"][..], &["--name", "ends"]] {
        assert_eq!(rlaunch(&[words, &["--image", "base:1", "true"]].concat()).status, Some(0));
    }
    let memory = rlaunch(&["commit", "memory", "x"]);
    assert!(memory.status == Some(125) && memory.stderr.contains("is not there any more"), "{memory:?}");
    // The image of a container that has ended may go; then there is nothing to make one of.
    images.print(&["rm", "base:1"]);
    let gone = rlaunch(&["commit", "ends", "x"]);
    assert!(gone.status == Some(125) && gone.stderr.contains("the image of the container ends is gone"), "{gone:?}");
    for name in ["ends", "memory", "tree"] {
        assert_eq!(rlaunch(&["rm", name]).status, Some(0));
    }
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}
