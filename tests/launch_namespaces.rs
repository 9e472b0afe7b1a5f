//! Namespaces, seen from inside and from outside: which are the container's own, and which are shared when asked.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::finish;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{Running, Tree, printed, wait_until_gone};

fn namespace(process: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).expect("read a namespace's number")
}

/// Which namespaces a container with these options shares with the host, as its own /proc says and as the host's does.
#[track_caller]
fn shared(tree: &Tree, options: &[&str]) -> Vec<&'static str> {
    const KINDS: [&str; 6] = ["ipc", "mnt", "net", "pid", "time", "uts"];
    let mut command = tree.rlaunch();
    let script =
        "for kind in ipc mnt net pid time uts; do readlink /proc/self/ns/$kind; done; echo ready; exec sleep 1000";
    let mut running = Running::begin(command.args(options).args(["sh", "-c", script]));
    let inside: Vec<String> = KINDS.map(|_| running.line()).into();
    assert_eq!(running.line(), "ready");
    let outside = running.init().to_string();
    for (kind, inside) in KINDS.iter().zip(&inside) {
        assert_eq!(namespace(&outside, kind).to_str(), Some(&**inside), "{kind}: seen from both sides");
    }
    KINDS
        .into_iter()
        .zip(&inside)
        .filter(|(kind, number)| namespace("self", kind).to_str() == Some(number))
        .map(|(kind, _)| kind)
        .collect()
}

#[test]
fn each_namespace_is_the_containers_own_or_shared_as_asked() {
    let Some(tree) = Tree::new() else { return };
    assert_eq!(shared(&tree, &[]), ["net", "time"]);
    assert_eq!(shared(&tree, &["--net=none", "--time=private"]), [""; 0]);
    assert_eq!(shared(&tree, &["--pid=host", "--net=none"]), ["pid", "time"]);
    assert_eq!(shared(&tree, &["--uts=host", "--ipc=host"]), ["ipc", "net", "time", "uts"]);
}

#[test]
fn without_a_network_there_is_the_loopback_interface_and_it_is_up() {
    let Some(tree) = Tree::new() else { return };
    let script = "ls /sys/class/net; cat /sys/class/net/lo/flags; ping -c 1 -W 2 127.0.0.1 > /dev/null && echo answers";
    let outcome = finish(tree.rlaunch().args(["--net=none", "sh", "-c", script]));
    assert_eq!(printed(outcome), "lo\n0x9\nanswers\n");
}

#[test]
fn clocks_can_be_shifted_and_only_for_the_container() {
    let Some(tree) = Tree::new() else { return };
    let uptime = |text: &str| text.split(['.', ' ']).next().unwrap().parse::<u64>().unwrap();
    let before = uptime(&fs::read_to_string("/proc/uptime").unwrap());
    let outcome = finish(tree.rlaunch().args([
        "--boottime=1000000",
        "--monotonic=-1",
        "cat",
        "/proc/uptime",
        "/proc/self/timens_offsets",
    ]));
    let output = printed(outcome);
    let after = uptime(&fs::read_to_string("/proc/uptime").unwrap());
    let inside = uptime(&output);
    assert!((before..=after).contains(&(inside - 1_000_000)), "{before} {inside} {after}");
    let offsets: Vec<_> = output.split_whitespace().skip(2).collect();
    assert_eq!(offsets, ["monotonic", "-1", "0", "boottime", "1000000", "0"]);
    let outcome = finish(tree.rlaunch().args(["--boottime=-4000000000", "true"]));
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("below zero"), "{outcome:?}");
}

#[test]
fn the_hosts_name_and_memory_are_the_same_where_they_are_shared() {
    let Some(tree) = Tree::new() else { return };
    let host = nix::unistd::gethostname().unwrap();
    let outcome = finish(tree.rlaunch().args(["--uts=host", "uname", "-n"]));
    assert_eq!(printed(outcome), format!("{}\n", host.display()));
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    fs::write(file.path(), "shared").unwrap();
    let look = |option| {
        printed(finish(tree.rlaunch().arg(option).args([
            "sh",
            "-c",
            &format!("cat {} 2> /dev/null; echo", file.path().display()),
        ])))
    };
    assert_eq!(look("--ipc=host"), "shared\n");
    assert_eq!(look("--ipc=private"), "\n");
}

#[test]
fn with_the_hosts_processes_nothing_of_the_container_stays() {
    let Some(tree) = Tree::new() else { return };
    // One that has left its parent, its session and its process group behind.
    let script = "(setsid sleep 1000 > /dev/null 2>&1 & echo $!); sleep 1000 & echo $!; echo ready; read line < /go";
    for victim in ["command", "init", "launcher"] {
        harness::sandbox::run(Command::new("mkfifo").arg(tree.path("go")));
        let mut command = tree.rlaunch();
        let mut running = Running::begin(command.args(["--pid=host", "sh", "-c", script]));
        let number = |running: &mut Running| Pid::from_raw(running.line().parse().expect("a number"));
        let left = [number(&mut running), number(&mut running)];
        assert_eq!(running.line(), "ready");
        let init = running.init();
        let status = match victim {
            "command" => {
                fs::write(tree.path("go"), "go\n").unwrap();
                Some(0)
            }
            "init" => {
                kill(init, Signal::SIGKILL).unwrap();
                Some(137)
            }
            _ => {
                kill(running.pid(), Signal::SIGKILL).unwrap();
                None
            }
        };
        assert_eq!(running.wait().0, status, "{victim}");
        wait_until_gone(&left);
        fs::remove_file(tree.path("go")).unwrap();
    }
}
