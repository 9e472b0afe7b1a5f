//! Limits that an ordinary user sets, in a cgroup that root has delegated: who may write to its `cgroup.procs`,
//! `cgroup.subtree_control` and `cgroup.threads` can make others below it; see cgroups(7), "Cgroups delegation".

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::mount::{Outcome, finish, poll};
use harness::rootless::{USER, Way, again, inside};

use crate::cgroups::Group;
use crate::launch::{PATIENCE, RLAUNCH, Recorded, Running, Tree, name, printed};
use crate::v2::{LEAF, ROOT, Subtree, own};

const ALL: &str = "+cpu +cpuset +io +memory +pids";
const STAY: &str = "echo ready; while :; do sleep 0.05; done";

/// Runs the test of this name again as an ordinary user in a cgroup with these controllers. The tree in that run.
#[track_caller]
fn as_user(test: &str, controllers: &str) -> Option<Tree> {
    let subtree = inside().is_none().then(|| {
        let subtree = Subtree::enter("user", controllers);
        subtree.give(USER);
        subtree
    });
    let is_inside = again(Way::Fusermount, &format!("delegated::{test}"));
    drop(subtree);
    is_inside.then(|| Tree::new().expect("it can run"))
}

/// The cgroup that was delegated.
fn delegated() -> PathBuf {
    let own = own();
    if own.ends_with(LEAF) { own.parent().expect("it is below the delegated one").to_owned() } else { own }
}

fn with(tree: &Tree, options: &[&str], script: &str) -> Command {
    let mut command = tree.rlaunch();
    command.args(options).args(["sh", "-c", script]);
    command
}

#[track_caller]
fn group_of(running: &Running) -> Group {
    Group::of(running.init(), "", "memory").expect("it is in a cgroup of v2")
}

#[track_caller]
fn refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn every_limit_of_a_user_is_in_its_file() {
    let Some(tree) = as_user("every_limit_of_a_user_is_in_its_file", ALL) else { return };
    let options = [
        ["--cpus", "0.5"],
        ["--cpu-shares", "2"],
        ["--cpuset-cpus", "1"],
        ["--memory", "64m"],
        ["--memory-swap", "96m"],
        ["--pids-limit", "30"],
    ];
    let delegated = delegated();
    // The second one starts where the first has moved everybody to.
    let both = [(); 2].map(|()| Running::start(&mut with(&tree, &options.concat(), STAY)));
    for group in both.iter().map(group_of) {
        assert_eq!(group.path.parent(), Some(&*delegated.join("rlaunch")));
        for (file, expected) in [
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "1"),
            ("cpuset.cpus", "1"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("pids.max", "30"),
        ] {
            assert_eq!(group.read(file, file), expected, "{file}");
        }
    }
    for running in both {
        running.signal(nix::sys::signal::Signal::SIGTERM);
        running.wait();
    }
    assert!(!delegated.join("rlaunch").exists());
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn a_user_is_told_who_was_killed_and_nobody_gets_more_processes() {
    let Some(tree) = as_user("a_user_is_told_who_was_killed_and_nobody_gets_more_processes", ALL) else { return };
    let outcome = finish(&mut with(&tree, &["-m", "32m"], "exec tail -n 1 /dev/zero"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(137), ""), "{outcome:?}");
    let told = "1 process of the container killed because its memory was used up: 32 MiB";
    assert!(outcome.stderr.contains(told), "{outcome:?}");
    let many = "i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i + 1)); done; echo all";
    let outcome = finish(&mut with(&tree, &["--pids-limit", "20"], many));
    assert!(outcome.stdout.is_empty() && outcome.stderr.contains("can't fork"), "{outcome:?}");
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn a_busy_loop_of_a_user_gets_a_fifth_of_a_cpu() {
    let Some(tree) = as_user("a_busy_loop_of_a_user_gets_a_fifth_of_a_cpu", ALL) else { return };
    let running = Running::start(&mut with(&tree, &["--cpus", "0.2"], "echo ready; while :; do :; done"));
    let group = group_of(&running);
    assert_eq!(group.read("", "cpu.max"), "20000 100000");
    let used = || Duration::from_micros(group.number_of("cpu.stat", "usage_usec"));
    let throttled = || group.number_of("cpu.stat", "nr_throttled");
    let (start, used_before, throttled_before) = (Instant::now(), used(), throttled());
    // Until it has been stopped a few times, however much else this machine has to do.
    let enough = || (throttled() >= throttled_before + 10 && start.elapsed() >= Duration::from_secs(2)).then_some(());
    assert!(poll(PATIENCE, enough).is_some(), "it was stopped {} times only", throttled() - throttled_before);
    let times = u32::try_from(throttled() - throttled_before).unwrap();
    let (used, wall) = (used() - used_before, start.elapsed());
    // What is read may be a period older or newer than the clock.
    let periods = u32::try_from(wall.as_millis() / 100).unwrap() + 2;
    assert!(used <= Duration::from_millis(22) * periods, "{used:?} in {wall:?}");
    assert!(used >= Duration::from_millis(18) * (times - 1), "{used:?} in {wall:?}, stopped {times} times");
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn a_users_container_is_entered_paused_counted_changed_and_stopped() {
    let test = "a_users_container_is_entered_paused_counted_changed_and_stopped";
    let Some(tree) = as_user(test, ALL) else { return };
    let tree = Recorded(tree);
    // What is kept of it belongs to the user as well.
    let home = tree.beside("data");
    let rlaunch = |arguments: &[&str]| finish(Command::new(RLAUNCH).args(arguments).env("XDG_DATA_HOME", &home));
    let options = ["-d", "--name", "mine", "-m", "64m", "--pids-limit", "20"];
    assert_eq!(printed(finish(with(&tree, &options, STAY).env("XDG_DATA_HOME", &home))), "mine\n");
    let record: serde_json::Value = serde_json::from_str(&printed(rlaunch(&["inspect", "mine"]))).expect("JSON");
    let group = delegated().join("rlaunch").join(record["id"].as_str().expect("an id"));
    let file = |name: &str| fs::read_to_string(group.join(name)).expect("read a file of the cgroup").trim().to_owned();
    assert_eq!(printed(rlaunch(&["exec", "mine", "cat", "/proc/self/cgroup"])), "0::/\n");
    let cgroup = printed(rlaunch(&["exec", "mine", "cat", "/sys/fs/cgroup/memory.max"]));
    assert_eq!(cgroup, "67108864\n");
    assert_eq!(printed(rlaunch(&["pause", "mine"])), "");
    assert!(file("cgroup.events").contains("frozen 1"));
    assert_eq!(printed(rlaunch(&["resume", "mine"])), "");
    assert!(file("cgroup.events").contains("frozen 0"));
    let stats: serde_json::Value = serde_json::from_str(&printed(rlaunch(&["stats", "--json", "mine"]))).expect("JSON");
    assert_eq!((&stats[0]["memory_limit"], &stats[0]["pids_limit"]), (&(64 << 20).into(), &20.into()), "{stats}");
    assert!(stats[0]["memory"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    assert_eq!(printed(rlaunch(&["update", "--memory", "96m", "--cpus", "0.5", "mine"])), "");
    assert_eq!((&*file("memory.max"), &*file("cpu.max"), &*file("pids.max")), ("100663296", "50000 100000", "20"));
    assert_eq!(printed(rlaunch(&["stop", "--time=1", "mine"])), "");
    assert_eq!(printed(rlaunch(&["rm", "mine"])), "");
    assert!(!group.exists());
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn the_daemon_of_a_users_union_is_bounded_too() {
    let Some(tree) = as_user("the_daemon_of_a_users_union_is_bounded_too", ALL) else { return };
    let mut command = Command::new(RLAUNCH);
    let script = format!("dd if=/dev/zero of=big bs=1M count=80 2> /dev/null; {STAY}");
    command.args(["-m", "48m", "--cpus", "0.9", "sh", "-c", &script]).current_dir(tree.beside(""));
    let running = Running::start(&mut command);
    let (container, daemon) = (group_of(&running), Group::of(running.daemon(), "", "memory").expect("it is on v2"));
    assert_eq!(
        (container.path.file_name(), daemon.path.file_name()),
        (Some("container".as_ref()), Some("fuse".as_ref()))
    );
    assert_eq!(container.parent().path, daemon.parent().path);
    assert!(container.path.starts_with(delegated().join("rlaunch")));
    for group in [&container, &daemon] {
        assert!(group.number("", "memory.current") <= group.number("", "memory.max"));
        assert!(group.number("", "memory.max") <= 64 << 20, "{group:?}");
    }
    assert_eq!(container.parent().read("", "cpu.max"), "90000 100000");
    assert_eq!(name(running.daemon()), "rlaunch: union");
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn what_was_not_delegated_is_an_error_that_says_how() {
    let Some(tree) = as_user("what_was_not_delegated_is_an_error_that_says_how", "+pids") else { return };
    let outcome = finish(&mut with(&tree, &["--memory", "64m"], "echo started"));
    let place = delegated();
    let place = place.to_str().expect("in ASCII");
    refused(&outcome, &["--memory", place, "was not given the memory controller", "+memory", "Delegate=cpu"]);
    let best = ["--best-effort-limits", "--memory", "64m", "--pids-limit", "20"];
    let outcome = finish(&mut with(&tree, &best, "cat /sys/fs/cgroup/pids.max"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "20\n"), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("going on without it").count(), 1, "{outcome:?}");
    // Without a limit, nobody is moved and nobody is asked.
    assert_eq!(tree.print("echo started"), "started\n");
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn a_user_without_a_cgroup_has_containers_and_no_limits() {
    let test = "delegated::a_user_without_a_cgroup_has_containers_and_no_limits";
    let subtree = inside().is_none().then(|| Subtree::enter("nobodys", ALL));
    let is_inside = again(Way::Fusermount, test);
    drop(subtree);
    if !is_inside {
        return;
    }
    let tree = Tree::new().expect("it can run");
    assert_eq!(tree.print("echo started"), "started\n");
    let outcome = finish(&mut with(&tree, &["--memory", "64m"], "echo started"));
    refused(&outcome, &["cannot apply --memory", "systemd-run --user --scope -p Delegate=yes"]);
    assert!(own().starts_with(Path::new(ROOT).join("test-nobodys")), "it was not moved");
}
