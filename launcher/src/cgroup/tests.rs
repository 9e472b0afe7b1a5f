//! Cgroups of this machine, with a process in them.

use std::process::{Child, Command, Stdio};

use super::cpu::Bandwidth;
use super::devices::{DeviceAccess, DeviceKind};
use super::memory::MemoryAndSwap;
use super::*;

/// A process that goes with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Sleeper {
        Sleeper(Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait().map(drop)).unwrap();
    }
}

/// `None` where the test is skipped.
fn cgroups(limits: &Limits, union: bool) -> Option<(Cgroups, String)> {
    if !nix::unistd::geteuid().is_root() {
        harness::sandbox::skip("cgroups are made by root");
        return None;
    }
    let id = unused_name();
    Some((Cgroups::create(limits, &id, union, Counting::Everything).unwrap(), id))
}

#[test]
fn a_container_is_stopped_goes_on_and_is_killed_and_its_daemon_is_not() {
    let Some((cgroups, id)) = cgroups(&Limits::default(), true) else { return };
    let (mut member, mut daemon) = (Sleeper::start(), Sleeper::start());
    cgroups.admit(member.pid()).unwrap();
    cgroups.admit_daemon(daemon.pid()).unwrap();
    assert_eq!(cgroups.paths().is_empty(), cgroups.hierarchies.is_empty());
    cgroups.freeze().unwrap();
    assert!(cgroups.is_frozen());
    // Another process sees the same.
    let opened = Cgroups::of(member.pid(), &id).unwrap();
    assert!(opened.is_frozen());
    opened.thaw().unwrap();
    assert!(!cgroups.is_frozen());
    cgroups.freeze().unwrap();
    // Who is stopped is killed as well.
    opened.kill().unwrap();
    assert!(!member.0.wait().unwrap().success());
    assert_eq!(daemon.0.try_wait().unwrap(), None);
}

#[test]
fn the_freezer_of_v1_stops_and_kills() {
    let mounted = detect::observe().unwrap();
    let Some(freezer) = mounted.into_iter().find(|mounted| mounted.controllers.contains(&Controller::Freezer)) else {
        return;
    };
    let wanted = Wanted { parent: None, id: &unused_name(), union: false, has_limits: false };
    let Ok(hierarchy) = Hierarchy::create(&freezer, &wanted) else {
        return harness::sandbox::skip("cgroups are made by root");
    };
    let mut member = Sleeper::start();
    hierarchy.container().admit(member.pid()).unwrap();
    freezer::freeze(hierarchy.container(), Version::V1).unwrap();
    assert_eq!(freezer::is_frozen(hierarchy.container(), Version::V1), Ok(true));
    freezer::thaw(hierarchy.container(), Version::V1).unwrap();
    assert_eq!(member.0.try_wait().unwrap(), None);
    freezer::freeze(hierarchy.container(), Version::V1).unwrap();
    freezer::kill(hierarchy.container(), Version::V1).unwrap();
    assert!(!member.0.wait().unwrap().success());
    hierarchy.remove().unwrap();
    assert!(!hierarchy.common().path().exists());
}

#[test]
fn limits_change_in_both_directions_while_the_container_runs() {
    const MIB: u64 = 1 << 20;
    let limits = |memory: u64, swap: u64, quota: u64, period: u64| Limits {
        memory: Some(memory * MIB),
        swap: Some(MemoryAndSwap::Bytes(swap * MIB)),
        bandwidth: Some(("--cpu-quota", Bandwidth { quota: Some(quota), period })),
        pids: Some(quota / 1000),
        ..Limits::default()
    };
    let Some((cgroups, _)) = cgroups(&limits(64, 64, 20_000, 100_000), true) else { return };
    let member = Sleeper::start();
    cgroups.admit(member.pid()).unwrap();
    for (memory, swap, quota, period) in
        [(128, 200, 50_000, 100_000), (32, 32, 1_000, 5_000), (64, 70, 900_000, 1_000_000), (16, 1000, 2_000, 2_000)]
    {
        cgroups.update(&limits(memory, swap, quota, period)).unwrap();
        let statistics = cgroups.statistics();
        assert_eq!(statistics.memory_limit, Some(memory * MIB));
        assert_eq!(statistics.pids_limit, Some(quota / 1000));
        let cpu = cgroups.hierarchy(Controller::Cpu).expect("a hierarchy with the cpu controller").common();
        let (read_quota, read_period) = match cgroups.version(Controller::Cpu) {
            Version::V1 => (cpu.number("cpu.cfs_quota_us").unwrap(), cpu.number("cpu.cfs_period_us").unwrap()),
            Version::V2 => {
                let text = cpu.read("cpu.max").unwrap();
                let (quota, period) = text.trim().split_once(' ').unwrap();
                (quota.parse().unwrap(), period.parse().unwrap())
            }
        };
        assert_eq!((read_quota, read_period), (quota, period));
    }
}

#[test]
fn what_is_used_is_counted() {
    let Some((cgroups, _)) = cgroups(&Limits::default(), false) else { return };
    let member = Sleeper::start();
    cgroups.admit(member.pid()).unwrap();
    let statistics = cgroups.statistics();
    assert_eq!((statistics.pids, statistics.pids_limit, statistics.memory_limit), (Some(1), None, None));
    assert_eq!(statistics.memory_kills, Some(0));
    assert!(statistics.cpu_microseconds.is_some() && statistics.bytes_read.is_some(), "{statistics:?}");
    assert_eq!(cgroups.memory_report(), None);
}

#[test]
fn a_device_more_is_on_the_list() {
    let Some((mut cgroups, _)) = cgroups(&Limits::default(), false) else { return };
    let fuse = DeviceRule {
        kind: DeviceKind::Character,
        major: Some(10),
        minor: Some(229),
        access: DeviceAccess { read: true, write: true, make: false },
    };
    cgroups.allow(&fuse).unwrap();
    let Some(hierarchy) = cgroups.hierarchy(Controller::Devices) else { return };
    let list = hierarchy.container().read("devices.list").unwrap();
    assert!(list.contains("c 10:229 rw\n") && list.contains("c 1:3 rwm\n") && !list.contains("a *:*"), "{list}");
}

#[test]
fn a_name_is_used_once_and_free_again_afterwards() {
    let Some((first, id)) = cgroups(&Limits { pids: Some(5), ..Limits::default() }, false) else { return };
    let second = Cgroups::create(&Limits { pids: Some(5), ..Limits::default() }, &id, false, Counting::Everything);
    let failure = second.map(drop).unwrap_err().to_string();
    assert!(failure.contains("a container of this one runs"), "{failure}");
    let paths = first.paths();
    assert!(paths.values().all(|path| path.exists()));
    drop(first);
    assert!(paths.values().all(|path| !path.exists()));
    drop(Cgroups::create(&Limits { pids: Some(5), ..Limits::default() }, &id, true, Counting::Everything).unwrap());
    assert!(paths.values().all(|path| !path.exists()));
}

#[test]
fn what_a_killed_launcher_left_is_removed_and_what_is_used_stays() {
    let Some((used, _)) = cgroups(&Limits::default(), true) else { return };
    let parent = |path: &PathBuf| path.ancestors().find(|path| path.ends_with(hierarchy::PARENT)).map(Path::to_owned);
    let parents: Vec<PathBuf> = used.paths().values().filter_map(parent).collect();
    assert!(!parents.is_empty());
    let name = unused_name();
    for parent in &parents {
        // another test may be starting a container, and remove what is half made here
        while std::fs::create_dir_all(parent.join(&name).join("fuse/x")).is_err() {
            assert!(parent.exists());
        }
    }
    let other = Cgroups::create(&Limits::default(), &unused_name(), false, Counting::Everything).unwrap();
    assert!(parents.iter().all(|parent| !parent.join(&name).exists()));
    assert!(used.paths().values().chain(other.paths().values()).all(|path| path.exists()));
}

#[test]
fn whoever_is_left_is_killed_before_the_cgroup_goes() {
    let Some((cgroups, _)) = cgroups(&Limits::default(), false) else { return };
    let mut member = Sleeper::start();
    cgroups.admit(member.pid()).unwrap();
    let paths = cgroups.paths();
    drop(cgroups);
    assert!(!member.0.wait().unwrap().success());
    assert!(paths.values().all(|path| !path.exists()));
}
