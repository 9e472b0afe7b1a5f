//! Containers with limits, and what their `/proc` tells.

use std::fs;
use std::path::PathBuf;

use harness::mount::{finish, poll};
use harness::sandbox;
use nix::unistd::Pid;

use crate::cgroups::root_of;
use crate::launch::{PATIENCE, Running, Tree, name, printed};

/// Prints `ready` and stays.
pub(crate) const STAY: &str = "echo ready; while :; do sleep 0.05; done";
/// The files that are laid over the kernel's.
pub(crate) const FILES: [&str; 9] = [
    "/proc/meminfo",
    "/proc/swaps",
    "/proc/cpuinfo",
    "/sys/devices/system/cpu/online",
    "/proc/stat",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/diskstats",
    "/proc/vmstat",
];

/// A container that stays, with a limit on memory; `None` where the test is skipped.
pub(crate) fn limited(tree: &Tree, options: &[&str]) -> Option<Running> {
    has_memory()?;
    let options = [&["--proc-view=on", "--memory", "100m"], options].concat();
    Some(Running::start(tree.rlaunch().args(options).args(["sh", "-c", STAY])))
}

pub(crate) fn has_memory() -> Option<()> {
    let is_there = root_of("memory", "memory").is_some();
    if !is_there {
        sandbox::skip("memory is not mounted");
    }
    is_there.then_some(())
}

#[track_caller]
pub(crate) fn print(tree: &Tree, options: &[&str], script: &str) -> String {
    printed(finish(tree.rlaunch().args(options).args(["sh", "-c", script])))
}

/// A file of a container, seen from outside.
pub(crate) fn inside(running: &Running, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", running.init()))
}

#[track_caller]
pub(crate) fn read(running: &Running, path: &str) -> String {
    fs::read_to_string(inside(running, path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The number beside a key of /proc/meminfo, in KiB.
#[track_caller]
pub(crate) fn number_of(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let word = line.and_then(|line| line.split_whitespace().next()).unwrap_or_else(|| panic!("no {key} in {meminfo}"));
    word.parse().expect("a number")
}

/// How many CPUs the files tell of: cpuinfo, stat, and online as a list.
#[track_caller]
pub(crate) fn cpus(text: &str) -> (usize, usize, String) {
    let count = |is_one: &dyn Fn(&str) -> bool| text.lines().filter(|line| is_one(line)).count();
    let of_stat = |line: &str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let online = text.lines().find_map(|line| line.strip_prefix("online ")).expect("a list");
    (count(&|line| line.starts_with("processor\t:")), count(&of_stat), online.to_owned())
}

pub(crate) const SHOW_CPUS: &str =
    "cat /proc/cpuinfo /proc/stat; echo online $(cat /sys/devices/system/cpu/online); echo nproc $(nproc)";

/// The process that serves a container's files.
#[track_caller]
pub(crate) fn server(running: &Running) -> Pid {
    let is_server = || running.children().into_iter().find(|pid| name(*pid) == "rlaunch: proc");
    poll(PATIENCE, is_server).expect("a process that serves its /proc")
}

pub(crate) fn machine_total() -> u64 {
    number_of(&fs::read_to_string("/proc/meminfo").expect("read meminfo"), "MemTotal")
}
