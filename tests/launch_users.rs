//! Users of a container's own (`--uidmap`, `--gidmap`): as root, as root of a namespace, and as an ordinary user.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{FIRST, USER, Way, again, inside};
use nix::mount::{MsFlags, mount};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Recorded, Running, Tree, printed, sh, wait_until_gone};

/// Gives a root directory to the container's root.
fn give(tree: &Tree, user: u32) {
    sh(&format!("chown -R {user}:{user} {}", tree.path("").display()));
}

fn numbers(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[track_caller]
fn refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

const LOOK: &str = "id -u; cat /proc/self/uid_map; echo -; cat /proc/self/gid_map";

#[test]
fn the_users_of_a_container_are_others_of_the_machine() {
    let Some(tree) = Tree::new() else { return };
    give(&tree, 100_000);
    let maps = ["--uidmap=0:100000:1000", "--uidmap=5000:300000:10", "--gidmap=0:400000:10"];
    chown(tree.path(""), Some(100_000), Some(400_000)).unwrap();
    let script = format!(
        "{LOOK}; echo -; touch /new; chown 5:7 /new; stat -c %u:%g /new /etc; echo x > /dev/null; chown 999:0 /new; chown 2000 /new 2> /dev/null || echo none"
    );
    let text = printed(finish(tree.rlaunch().args(maps).args(["sh", "-c", &script])));
    let parts: Vec<&str> = text.split("-\n").collect();
    assert_eq!(numbers(parts[0]), [vec!["0"], vec!["0", "100000", "1000"], vec!["5000", "300000", "10"]]);
    assert_eq!(numbers(parts[1]), [["0", "400000", "10"]]);
    assert_eq!(parts[2], "5:7\n0:65534\nnone\n");
    let new = fs::metadata(tree.path("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (100_999, 400_000));
}

#[test]
fn they_have_a_namespace_of_their_own_with_limits_networks_and_further_commands() {
    let Some(tree) = Recorded::new() else { return };
    give(&tree, 100_000);
    let options = ["-d", "--name=mapped", "--uidmap=0:100000:1000", "--net=none", "--pids-limit=20", "--user=4"];
    assert_eq!(printed(finish(tree.rlaunch().args(options).args(["sleep", "1000"]))), "mapped\n");
    let rlaunch = |words: &[&str]| printed(finish(Command::new(RLAUNCH).args(words)));
    let text = rlaunch(&["inspect", "mapped"]);
    let number = |kind: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(&format!("\"{kind}\": "))).expect("a namespace");
        line.trim().trim_end_matches(',').rsplit(' ').next().unwrap().to_owned()
    };
    let host = fs::read_link("/proc/self/ns/user").unwrap().display().to_string();
    assert_ne!(host, format!("user:[{}]", number("user")));
    let inside =
        rlaunch(&["exec", "mapped", "sh", "-c", "readlink /proc/self/ns/user; id -u; cat /sys/class/net/lo/flags"]);
    assert_eq!(inside, format!("user:[{}]\n4\n0x9\n", number("user")));
    assert_eq!(rlaunch(&["exec", "--user=0", "mapped", "id", "-u"]), "0\n");
    rlaunch(&["rm", "--force", "mapped"]);
}

#[test]
fn root_in_there_is_nobody_outside_and_nothing_stays() {
    let Some(tree) = Tree::new() else { return };
    give(&tree, 100_000);
    let secret = tree.beside("secret");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let volume = format!("{}:/mnt", tree.beside("").display());
    let script = "cat /mnt/secret 2> /dev/null || echo closed; touch /mnt/new 2> /dev/null || echo closed
        mknod /disk b 8 0 2> /dev/null || echo closed; ls /proc/1/fd > /dev/null 2>&1 || echo closed; echo ready; sleep 1000";
    let mut command = tree.rlaunch();
    command.args(["--uidmap=0:100000:1000", "--cap-add=ALL", "--volume", &volume, "sh", "-c", script]);
    let mut running = Running::begin(&mut command);
    for _ in 0..4 {
        assert_eq!(running.line(), "closed");
    }
    assert_eq!(running.line(), "ready");
    let init = running.init();
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    assert!(status.contains("Uid:\t100000\t100000\t100000\t100000\n"), "{status}");
    assert!(status.contains("Gid:\t100000\t") && status.contains("Groups:\t \n"), "{status}");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    wait_until_gone(&[init]);
}

#[test]
fn ids_that_cannot_be_mapped_are_an_error_that_says_why() {
    let Some(tree) = Tree::new() else { return };
    let run = |options: &[&str]| finish(tree.rlaunch().args(options).arg("true"));
    refused(&run(&["--uidmap=1:100000:10"]), &["cannot use --uidmap", "needs a root"]);
    refused(&run(&["--uidmap=0:100000:10", "--gidmap=0:5:2", "--gidmap=2:6:1"]), &["cannot use --gidmap", "in common"]);
    for range in ["0:1", "0:1:0", "a:1:1", "0:4294967295:1"] {
        let outcome = run(&["--uidmap", range]);
        assert_eq!(outcome.status, Some(125), "{outcome:?}");
    }
    let copy = finish(Command::new(RLAUNCH).args(["--uidmap=0:100000:10", "true"]));
    refused(&copy, &["union", "--rootfs"]);
    fs::create_dir(tree.beside("closed")).unwrap();
    sh(&format!("mkdir {0}/root; chmod 700 {0}", tree.beside("closed").display()));
    let mut command = Command::new(RLAUNCH);
    command.arg("--rootfs").arg(tree.beside("closed/root")).args(["--uidmap=0:100000:10", "true"]);
    refused(&finish(&mut command), &["Permission denied", "modes of the directories above"]);
}

#[test]
fn root_of_a_namespace_maps_what_it_has() {
    if !again(Way::Ranges, "root_of_a_namespace_maps_what_it_has") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    // Root's place for records is that of another root.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    give(&tree, 10);
    let text = printed(finish(tree.rlaunch().args(["--uidmap=0:10:20", "sh", "-c", LOOK])));
    assert_eq!(numbers(&text), [vec!["0"], vec!["0", "10", "20"], vec!["-"], vec!["0", "10", "20"]]);
    let outcome = finish(tree.rlaunch().args(["--uidmap=0:100000:10", "true"]));
    refused(&outcome, &["cannot map the ids of the container"]);
}

#[test]
fn a_user_maps_what_the_machine_gives() {
    const THIS: &str = "a_user_maps_what_the_machine_gives";
    if !again(Way::Fusermount, THIS) {
        return;
    }
    assert_eq!(inside(), Some(Way::Fusermount));
    let tree = Tree::new().expect("it can run");
    let run = |options: &[&str], script: &str| finish(tree.rlaunch().args(options).args(["sh", "-c", script]));
    let (own, further) = (format!("--uidmap=0:{USER}:1"), format!("--uidmap=1:{}:2", FIRST + 100));
    let text = printed(run(
        &[&own, &further],
        &format!("{LOOK}; touch /new; chown 2:1 /new; chown 3 /new 2> /dev/null || echo none"),
    ));
    let map = [
        vec!["0".to_owned(), USER.to_string(), "1".to_owned()],
        vec!["1".to_owned(), (FIRST + 100).to_string(), "2".to_owned()],
    ];
    let expected = [
        vec![vec!["0".to_owned()]],
        map.to_vec(),
        vec![vec!["-".to_owned()]],
        map.to_vec(),
        vec![vec!["none".to_owned()]],
    ]
    .concat();
    assert_eq!(numbers(&text), expected);
    let new = fs::metadata(tree.path("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (FIRST + 101, FIRST + 100));
    // Own id alone, for users and groups.
    assert_eq!(printed(run(&[&own], "id -u; wc -l < /proc/self/uid_map")), "0\n1\n");
    // A union as well: its daemon is in the namespace.
    let (top, branches) =
        (tree.beside("top"), format!("{}=rw:{}=ro+wh", tree.beside("top").display(), tree.path("").display()));
    fs::create_dir(&top).unwrap();
    let mut command = Command::new(RLAUNCH);
    command.args(["--branches", &branches, &own, &further, "sh", "-c", "touch /up; chown 1 /up; stat -c %u /up"]);
    assert_eq!(printed(finish(&mut command)), "1\n");
    assert_eq!(fs::metadata(top.join("up")).unwrap().uid(), FIRST + 100);
    for (options, words) in [
        (&["--uidmap=0:0:1"][..], &["has to be the caller", "0:10001:1"][..]),
        (&[&*own, "--uidmap=1:500000:10"], &["cannot map the ids", "/etc/subuid"]),
    ] {
        let outcome = run(options, "true");
        assert_eq!(outcome.status, Some(125), "{outcome:?}");
        assert!(words.iter().all(|word| outcome.stderr.contains(word)), "{outcome:?}");
    }
    let outcome = finish(tree.rlaunch().args([&*own, &further, "true"]).env("PATH", "/usr/lib"));
    refused(&outcome, &["newuidmap", "Debian's package uidmap"]);
}
