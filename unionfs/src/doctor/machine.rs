//! What unions and containers use of the machine besides FUSE.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};

use super::users::find_program;
use super::{Row, State};
use crate::sys;

const GROUP: &str = "containers";
/// Few enough for a union to close directories again and again.
const FEW_DESCRIPTORS: u64 = 4096;

pub(super) fn rows() -> Vec<Row> {
    vec![kernel(), calls(), overlay(), descriptors(), cgroups(), delegation(), pasta()]
}

fn kernel() -> Row {
    let name = rustix::system::uname();
    let found = format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy());
    Row::new("machine", "Linux", State::Yes).found(found).gives("what stands below")
}

/// The calls that have something slower, or less, in their place.
fn calls() -> Row {
    let missing: Vec<&str> = sys::CALLS.iter().filter(|call| !call.is_there()).map(|call| call.name()).collect();
    Row::new("machine", "system calls", State::of(missing.is_empty()))
        .found(if missing.is_empty() { String::new() } else { format!("without {}", missing.join(", ")) })
        .gives("the shortest way for each operation")
        .or("nothing: older calls do it, more slowly; or use a newer kernel, or a seccomp filter that knows them")
}

fn overlay() -> Row {
    let listed = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let there = listed.lines().any(|line| line.split_whitespace().next_back() == Some("overlay"));
    Row::new("machine", "overlayfs", State::of(there))
        .gives("the kernel's own unions, for others; nothing here needs it")
        .or("nothing, or modprobe overlay")
}

fn descriptors() -> Row {
    let most = getrlimit(Resource::Nofile).maximum;
    let found = most.map_or_else(|| "no limit".to_owned(), |most| format!("{most} at most"));
    Row::new("machine", "open files", State::of(most.is_none_or(|most| most >= FEW_DESCRIPTORS)))
        .found(found)
        .gives("directories stay open, for speed")
        .or("raise the hard limit: ulimit -Hn 20000, or LimitNOFILE= of the service")
}

/// Where control groups of either version are mounted.
fn mounted(kind: &str) -> Option<PathBuf> {
    let table = crate::mount::table::read().unwrap_or_default();
    table.into_iter().find(|mount| mount.fs_type == kind).map(|mount| mount.target)
}

fn cgroups() -> Row {
    let (first, second) = (mounted("cgroup"), mounted("cgroup2"));
    let found = match (first.is_some(), second.is_some()) {
        (true, true) => "v1 and v2",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "not mounted",
    };
    Row::new(GROUP, "control groups", State::of(first.or(second).is_some()))
        .found(found)
        .gives("limits, pause, statistics")
        .or("mount -t cgroup2 none /sys/fs/cgroup")
}

/// Whether this process may make control groups where it is.
fn delegation() -> Row {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let below = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let place = mounted("cgroup2").map(|root| root.join(below));
    let is_own = |place: &Path| rustix::fs::access(place, Access::WRITE_OK).is_ok();
    let legacy = || mounted("cgroup").is_some_and(|place| is_own(&place));
    let there = place.is_some_and(|place| is_own(&place)) || legacy();
    Row::new(GROUP, "own control groups", State::of(there))
        .gives("limits for containers of this user")
        .or("start it by systemd-run --user --scope -p Delegate=yes, or as root")
}

fn pasta() -> Row {
    let found = find_program("pasta");
    let row = Row::new(GROUP, "pasta", State::of(found.is_some()))
        .gives("a network of its own, with a way out (--net=pasta)");
    row.found(found.map_or_else(|| "not installed".to_owned(), |path| path.display().to_string()))
        .or("install the package passt")
}
