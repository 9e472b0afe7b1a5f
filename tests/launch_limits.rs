//! What a container may use: the files of its cgroups as they are seen from outside, and what comes of them.
//!
//! Everything holds on v1, on v2 and where they are mounted beside each other; each test looks where the controller is.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::mount::{Outcome, finish, poll};
use harness::sandbox;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use cgroups::{Group, Version, container_of, left_of, root_of};
use launch::{PATIENCE, RLAUNCH, Running, Tree, mounts, printed, wait_until_gone};

/// Prints `ready` and stays.
const STAY: &str = "echo ready; while :; do sleep 0.05; done";

fn with(tree: &Tree, options: &[&str], script: &str) -> Command {
    let mut command = tree.rlaunch();
    command.args(options).args(["sh", "-c", script]);
    command
}

/// The first process of a container.
fn init_of(running: &Running) -> Pid {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).expect("read its pid namespace");
    let is_init = |pid: &Pid| namespace(&pid.to_string()) != namespace("self");
    running.children().into_iter().find(is_init).expect("the container's first process")
}

#[track_caller]
fn refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

/// Options, what the controller is called on v1 and v2, and what is in which file on v1 and v2.
type Row<'a> = (&'a [&'a str], [&'a str; 2], [(&'a str, &'a str); 2]);

const ROWS: [Row<'static>; 13] = [
    (&["--cpus", "0.2"], ["cpu", "cpu"], [("cpu.cfs_quota_us", "20000"), ("cpu.max", "20000 100000")]),
    (&["--cpus=1.5"], ["cpu", "cpu"], [("cpu.cfs_period_us", "100000"), ("cpu.max", "150000 100000")]),
    (
        &["--cpu-period", "50000", "--cpu-quota", "10000"],
        ["cpu", "cpu"],
        [("cpu.cfs_quota_us", "10000"), ("cpu.max", "10000 50000")],
    ),
    (&["--cpu-period", "50000"], ["cpu", "cpu"], [("cpu.cfs_period_us", "50000"), ("cpu.max", "max 50000")]),
    (&["--cpu-shares", "2"], ["cpu", "cpu"], [("cpu.shares", "2"), ("cpu.weight", "1")]),
    (&["--cpuset-cpus", "0"], ["cpuset", "cpuset"], [("cpuset.cpus", "0"), ("cpuset.cpus", "0")]),
    (&["--cpuset-mems", "0"], ["cpuset", "cpuset"], [("cpuset.mems", "0"), ("cpuset.mems", "0")]),
    (&["--memory", "64m"], ["memory", "memory"], [("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")]),
    (&["-m", "0.5g"], ["memory", "memory"], [("memory.limit_in_bytes", "536870912"), ("memory.max", "536870912")]),
    (
        &["-m", "64m", "--memory-swap", "64m"],
        ["memory", "memory"],
        [("memory.memsw.limit_in_bytes", "67108864"), ("memory.swap.max", "0")],
    ),
    (
        &["-m", "64m", "--memory-swap", "96m"],
        ["memory", "memory"],
        [("memory.memsw.limit_in_bytes", "100663296"), ("memory.swap.max", "33554432")],
    ),
    (&["--pids-limit", "30"], ["pids", "pids"], [("pids.max", "30"), ("pids.max", "30")]),
    (&["--pids-limit", "30", "-m", "64m"], ["pids", "pids"], [("pids.max", "30"), ("pids.max", "30")]),
];

#[test]
fn every_limit_is_in_its_file() {
    let Some(tree) = Tree::new() else { return };
    for (options, [v1, v2], files) in ROWS {
        if root_of(v1, v2).is_none() {
            sandbox::skip(&format!("{v1} is not mounted"));
            continue;
        }
        let running = Running::start(&mut with(&tree, options, STAY));
        let group = Group::of(init_of(&running), v1, v2).expect("it is mounted");
        let (file, expected) = files[usize::from(group.version == Version::V2)];
        if file.contains("memsw") && !group.path.join(file).exists() {
            // A kernel that does not count swap.
            continue;
        }
        assert_eq!(group.read(file, file), expected, "{options:?}");
    }
}

#[test]
fn a_container_sees_its_own_cgroups_and_cannot_change_them() {
    let Some(tree) = Tree::new() else { return };
    let script = "cat /proc/self/cgroup; echo --; find /sys/fs/cgroup -name pids.max -exec cat {} \\;; echo --
        find /sys/fs/cgroup -name cgroup.procs | while read file; do echo $$ > $file && echo written; done 2>/dev/null
        for directory in $(find /sys/fs/cgroup -type d); do mkdir $directory/x && echo made; done 2>/dev/null; true";
    let output = printed(finish(&mut with(&tree, &["--pids-limit", "77"], script)));
    let [membership, limit, changes] = output.split("--\n").collect::<Vec<_>>()[..] else { panic!("{output}") };
    assert!(membership.lines().all(|line| !line.contains("rlaunch")), "{membership}");
    assert_eq!((limit, changes), ("77\n", ""));
    let running = Running::start(&mut with(&tree, &[], STAY));
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
    assert_ne!(namespace(&init_of(&running).to_string()), namespace("self"));
}

#[test]
fn a_busy_loop_gets_no_more_time_than_it_may() {
    let Some(tree) = Tree::new() else { return };
    for options in [&["--cpus", "0.2"][..], &["--cpu-period", "100000", "--cpu-quota", "20000"]] {
        let running = Running::start(&mut with(&tree, options, "echo ready; while :; do :; done"));
        let Some(group) = Group::of(init_of(&running), "cpu", "cpu") else {
            return sandbox::skip("the cpu controller is not mounted");
        };
        let accounting = Group::of(init_of(&running), "cpuacct", "cpu").expect("it is where cpu is");
        let used = || match accounting.version {
            Version::V1 => Duration::from_nanos(accounting.number("cpuacct.usage", "")),
            Version::V2 => Duration::from_micros(accounting.number_of("cpu.stat", "usage_usec")),
        };
        let throttled = || group.number_of("cpu.stat", "nr_throttled");
        let (start, used_before, throttled_before) = (Instant::now(), used(), throttled());
        // Until it has been stopped a few times, however much else this machine has to do.
        let enough =
            || (throttled() >= throttled_before + 4 && start.elapsed() >= Duration::from_secs(2)).then_some(());
        assert!(poll(PATIENCE, enough).is_some(), "it was stopped {} times only", throttled() - throttled_before);
        let times = u32::try_from(throttled() - throttled_before).unwrap();
        let (used, wall) = (used() - used_before, start.elapsed());
        // It took its 20 ms in each period in which it was stopped, and no more in any other. What is read may be a
        // period older or newer than the clock.
        let periods = u32::try_from(wall.as_millis() / 100).unwrap() + 2;
        assert!(used <= Duration::from_millis(22) * periods, "{used:?} in {wall:?}");
        assert!(used >= Duration::from_millis(18) * (times - 1), "{used:?} in {wall:?}, stopped {times} times");
    }
}

#[test]
fn programs_that_count_cpus_count_those_that_they_can_use() {
    let Some(tree) = Tree::new() else { return };
    if root_of("cpuset", "cpuset").is_none() {
        return sandbox::skip("the cpuset controller is not mounted");
    }
    let all = tree.print("nproc");
    for (options, expected) in [
        (&["--cpus", "0.2"][..], "1\n"),
        (&["--cpus", "0.2", "--no-cpu-pin"], &*all),
        (&["--cpus", "1000"], &*all),
        (&["--cpu-quota", "20000"], &*all),
        (&["--cpuset-cpus", "0"], "1\n"),
        (&["--cpuset-cpus", "0", "--cpus", "1.5"], "1\n"),
    ] {
        assert_eq!(printed(finish(&mut with(&tree, options, "nproc"))), expected, "{options:?}");
    }
}

#[test]
fn who_takes_too_much_memory_is_killed_and_it_is_told() {
    let Some(tree) = Tree::new() else { return };
    if root_of("memory", "memory").is_none() {
        return sandbox::skip("the memory controller is not mounted");
    }
    // tail keeps the last line, and there is only one.
    let hungry = "exec tail -n 1 /dev/zero";
    let outcome = finish(&mut with(&tree, &["-m", "32m", "--memory-swap", "32m"], hungry));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(137), ""), "{outcome:?}");
    assert!(
        outcome.stderr.contains("1 process of the container killed because its memory was used up: 32 MiB"),
        "{outcome:?}"
    );
    // One that is killed below a command that goes on is told as well; and nobody who stays below the limit is.
    let outcome =
        finish(&mut with(&tree, &["-m", "32m", "--memory-swap", "32m"], "(exec tail -n 1 /dev/zero); echo $?"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "137\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("1 process of the container killed"), "{outcome:?}");
    printed(finish(&mut with(&tree, &["-m", "32m"], "head -c 8m /dev/zero | tail -n 1 > /dev/null")));
}

fn children_of(process: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).expect("read its children");
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect()
}

/// The hierarchies in which a process is in a container's cgroup.
fn hierarchies_of(process: Pid) -> Vec<String> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).expect("read its cgroups");
    let names = groups.lines().filter_map(|line| line.split_once(":/rlaunch/"));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// Each hierarchy of v1 makes a start longer, so only who is going to be asked for has a cgroup in all.
#[test]
fn a_container_without_a_name_or_limits_is_counted_by_few_hierarchies_of_v1() {
    let Some(tree) = Tree::new() else { return };
    let Some((Version::V1, _)) = root_of("memory", "memory") else {
        return sandbox::skip("the memory controller is not in a hierarchy of v1");
    };
    let name = format!("counted-{}", std::process::id());
    let start = |options: &[&str]| Running::start(&mut with(&tree, options, STAY));
    let (anonymous, named, limited) = (start(&[]), start(&["--rm", "--name", &name]), start(&["--pids-limit", "99"]));
    let [few, all, also_all] = [&anonymous, &named, &limited].map(|running| hierarchies_of(init_of(running)));
    assert_eq!(all, also_all);
    assert!(all.iter().any(|name| name.contains("memory")), "{all:?}");
    let is_needed = |name: &&String| name.ends_with(':') || name.contains("devices") || name.contains("freezer");
    assert_eq!(few, all.iter().filter(is_needed).cloned().collect::<Vec<_>>());
    let mut update = Command::new(RLAUNCH);
    refused(
        &finish(update.args(["update", "--memory", "64m", &container_of(init_of(&anonymous))])),
        &["the container has no cgroup in", "start it with a name"],
    );
    printed(finish(Command::new(RLAUNCH).args(["update", "--memory", "64m", &name])));
}

/// Before Linux 5.7, and in containers that filter clone3(2).
#[test]
fn who_cannot_be_started_in_a_cgroup_is_moved_there() {
    let Some(tree) = Tree::new() else { return };
    let Some(strace) = tools::find("strace") else { return };
    let usual = Running::start(&mut with(&tree, &[], STAY));
    let expected = hierarchies_of(init_of(&usual));
    assert!(!expected.is_empty());
    let mut command = Command::new(strace);
    command.args(["-f", "-qq", "-o/dev/null", "-e", "trace=clone3", "-e", "inject=clone3:error=ENOSYS", RLAUNCH]);
    let running = Running::start(command.arg("--rootfs").arg(tree.path("")).args(["sh", "-c", STAY]));
    let [launcher] = running.children()[..] else { panic!("{:?}", running.children()) };
    let [init] = children_of(launcher)[..] else { panic!("{:?}", children_of(launcher)) };
    let found = hierarchies_of(init);
    // Before strace, which would let go of it.
    nix::sys::signal::kill(launcher, Signal::SIGKILL).expect("end the launcher");
    assert_eq!(found, expected);
}

#[test]
fn no_more_processes_than_allowed() {
    let Some(tree) = Tree::new() else { return };
    if root_of("pids", "pids").is_none() {
        return sandbox::skip("the pids controller is not mounted");
    }
    // One is our init, and one the shell.
    let script = "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i + 1)); done; echo all";
    let outcome = finish(&mut with(&tree, &["--pids-limit", "20"], script));
    assert!(outcome.status != Some(0) && outcome.stdout.is_empty(), "{outcome:?}");
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
    let eighteen = "i=0; while [ $i -lt 18 ]; do sleep 60 & i=$((i + 1)); done; echo all";
    assert_eq!(printed(finish(&mut with(&tree, &["--pids-limit", "20"], eighteen))), "all\n");
}

/// The path of the disk on which a directory lies.
fn disk_of(path: PathBuf) -> Option<PathBuf> {
    let number = fs::metadata(path).expect("it is there").dev();
    let number = format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let uevent = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(PathBuf::from("/dev").join(name)).filter(|path| path.exists())
}

#[test]
fn disks_are_no_faster_than_allowed() {
    let Some(tree) = Tree::new() else { return };
    let Some(disk) = disk_of(tree.path("")) else {
        return sandbox::skip("the tests do not lie on a disk");
    };
    if root_of("blkio", "io").is_none() {
        return sandbox::skip("the io controller is not mounted");
    }
    let rates = ["--device-read-bps", "--device-write-bps", "--device-read-iops", "--device-write-iops"];
    let values: Vec<String> = ["7m", "1m", "1000", "2000"].map(|rate| format!("{}:{rate}", disk.display())).into();
    let options: Vec<&str> = rates.into_iter().zip(&values).flat_map(|(option, value)| [option, value]).collect();
    let running = Running::start(&mut with(&tree, &options, STAY));
    let group = Group::of(init_of(&running), "blkio", "io").expect("it is mounted");
    for (v1, v2, number) in [
        ("blkio.throttle.read_bps_device", "rbps", 7 << 20),
        ("blkio.throttle.write_bps_device", "wbps", 1 << 20),
        ("blkio.throttle.read_iops_device", "riops", 1000),
        ("blkio.throttle.write_iops_device", "wiops", 2000),
    ] {
        let text = group.read(v1, "io.max");
        let expected = if group.version == Version::V1 { format!(" {number}") } else { format!(" {v2}={number}") };
        assert!(text.contains(&expected), "{v1} {v2}: {text}");
    }
    drop(running);
    // 4 MiB at 1 MiB in a second; the kernel lets a part of a second go ahead.
    let start = Instant::now();
    let script = "dd if=/dev/zero of=/file bs=256k count=16 oflag=direct 2>/dev/null";
    assert_eq!(finish(&mut with(&tree, &options[2..4], script)).status, Some(0));
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(2), "{elapsed:?}");
}

#[test]
fn a_share_of_the_disks_is_set_where_the_kernel_has_shares() {
    let Some(tree) = Tree::new() else { return };
    let outcome = finish(&mut with(&tree, &["--blkio-weight", "500"], "echo started"));
    match root_of("blkio", "io") {
        None => refused(&outcome, &["cannot apply --blkio-weight", "--best-effort-limits"]),
        Some(_) if outcome.status == Some(125) => refused(&outcome, &["this kernel has no", "weight"]),
        Some(_) => {
            assert_eq!(printed(outcome), "started\n");
            let running = Running::start(&mut with(&tree, &["--blkio-weight", "500"], STAY));
            let group = Group::of(init_of(&running), "blkio", "io").expect("it is mounted");
            let files = ["blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"];
            let file = files.into_iter().find(|file| group.path.join(file).exists()).expect("one of them");
            let text = group.read(file, file);
            assert!(text.contains("500") || text.contains("4950"), "{file}: {text}");
        }
    }
}

#[test]
fn packets_get_their_class_or_it_is_refused() {
    let Some(tree) = Tree::new() else { return };
    let options = ["--net-class", "10:1"];
    if root_of("net_cls", "").is_none() {
        let outcome = finish(&mut with(&tree, &options, "echo started"));
        refused(
            &outcome,
            &["cannot apply --net-class", "net_cls controller of cgroup v1 is not mounted", "mount -t cgroup"],
        );
        // In the test's own mount namespace.
        let place = tree.beside("net_cls");
        fs::create_dir(&place).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "cgroup", "-o", "net_cls", "cgroup"]).arg(&place).output().unwrap();
        if !mounted.status.success() {
            // This kernel has none, and what is left to test was.
            return;
        }
    }
    let running = Running::start(&mut with(&tree, &options, STAY));
    let group = Group::of(init_of(&running), "net_cls", "").expect("it is mounted");
    assert_eq!(group.number("net_cls.classid", ""), 0x10_0001);
}

#[test]
fn what_cannot_be_limited_is_an_error_or_a_warning() {
    let Some(tree) = Tree::new() else { return };
    let run = |options: &[&str]| finish(&mut with(&tree, options, "echo started"));
    for (options, words) in [
        (&["--cpuset-cpus", "4000"][..], &["cannot apply --cpuset-cpus", "name some that are there"][..]),
        (&["--device-read-bps", "/dev/null:1m"], &["/dev/null (--device-read-bps)", "not a block device"]),
        (&["--device-write-iops", "/dev/nothing:1"], &["/dev/nothing (--device-write-iops)", "No such file"]),
        (&["--memory", "1k"], &["--memory is too little"]),
        (&["--memory", "64m", "--memory-swap", "32m"], &["--memory-swap is less than --memory"]),
        (&["--memory-swap", "64m"], &["--memory"]),
        (&["--cpus", "1", "--cpu-quota", "20000"], &["--cpus", "--cpu-quota"]),
        (&["--cpus=-1"], &["--cpus"]),
        (&["--pids-limit", "0"], &["--pids-limit"]),
        (&["--cpu-shares", "1"], &["--cpu-shares"]),
        (&["--blkio-weight", "9"], &["--blkio-weight"]),
        (&["--cgroup-parent", "/a/../.."], &["--cgroup-parent", "leads upwards"]),
        (&["--no-cpu-pin"], &["--cpus"]),
    ] {
        refused(&run(options), words);
    }
    let outcome = run(&["--best-effort-limits", "--cpuset-cpus", "4000"]);
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "started\n"), "{outcome:?}");
    assert!(outcome.stderr.starts_with("rlaunch: warning: cannot apply --cpuset-cpus"), "{outcome:?}");
    assert!(outcome.stderr.ends_with("going on without it\n"), "{outcome:?}");
}

#[test]
fn a_parent_can_be_chosen_and_what_was_there_stays() {
    let Some(tree) = Tree::new() else { return };
    let Some((_, root)) = root_of("pids", "pids") else { return sandbox::skip("the pids controller is not mounted") };
    let name = format!("rlaunch-test-{}", std::process::id());
    let parent = format!("/{name}/inner");
    fs::create_dir(root.join(&name)).unwrap();
    let running = Running::start(&mut with(&tree, &["--cgroup-parent", &parent, "--pids-limit", "9"], STAY));
    let group = Group::of(init_of(&running), "pids", "pids").expect("it is mounted");
    let (inside, limit) =
        (group.path.starts_with(root.join(&name).join("inner")), group.number("pids.max", "pids.max"));
    running.signal(Signal::SIGTERM);
    running.wait();
    let inner_is_there = root.join(&name).join("inner").exists();
    fs::remove_dir(root.join(&name)).expect("it is there, and empty");
    assert!((inside, limit, inner_is_there) == (true, 9, false), "{group:?} {limit} {inner_is_there}");
}

#[test]
fn a_device_that_nobody_gave_cannot_be_opened() {
    let Some(tree) = Tree::new() else { return };
    let Some(disk) = disk_of(tree.path("")) else { return sandbox::skip("the tests do not lie on a disk") };
    let number = fs::metadata(&disk).unwrap().rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let script = format!(
        "mknod /disk b {major} {minor} || exit 9; mknod /fuse c 10 229 || exit 9
         head -c 1 /disk; head -c 1 /fuse; echo x > /fuse
         for device in null zero full random urandom; do head -c 1 /dev/$device > /dev/null || echo $device; done"
    );
    let outcome = finish(&mut with(&tree, &[], &script));
    assert_ne!(outcome.status, Some(9), "docker lets containers make nodes, and so do we: {outcome:?}");
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 3, "{outcome:?}");
}

/// The union's daemon of a container.
fn daemon_of(running: &Running) -> Pid {
    running.children().into_iter().find(|pid| *pid != init_of(running)).expect("the union's daemon")
}

#[test]
fn the_unions_daemon_shares_the_cpu_and_has_a_bound_of_its_own() {
    let Some(sandbox) = sandbox::enter() else { return };
    let mut command = Command::new(RLAUNCH);
    let script = format!("dd if=/dev/zero of=big bs=1M count=72 2> /dev/null; {STAY}");
    command.args(["-m", "64m", "--cpus", "0.9", "--pids-limit", "50", "sh", "-c", &script]).current_dir(sandbox.path());
    let running = Running::start(&mut command);
    let (init, daemon) = (init_of(&running), daemon_of(&running));
    let groups = |v1, v2| Some((Group::of(init, v1, v2)?, Group::of(daemon, v1, v2)?));
    let Some((container, own)) = groups("memory", "memory") else {
        return sandbox::skip("the memory controller is not mounted");
    };
    assert_eq!((container.path.file_name(), own.path.file_name()), (Some("container".as_ref()), Some("fuse".as_ref())));
    assert_eq!(container.parent().path, own.parent().path);
    for group in [&container, &own] {
        assert_eq!(group.number("memory.limit_in_bytes", "memory.max"), 64 << 20);
        assert!(group.number("memory.usage_in_bytes", "memory.current") <= 64 << 20);
    }
    if let Some((container, own)) = groups("cpu", "cpu") {
        assert_eq!(container.parent().path, own.parent().path);
        assert!(container.parent().read("cpu.cfs_quota_us", "cpu.max").starts_with("90000"));
    }
    if let Some((container, own)) = groups("cpuset", "cpuset") {
        let effective = |group: &Group| group.read("cpuset.effective_cpus", "cpuset.cpus.effective");
        assert_eq!(effective(&container), effective(&own));
    }
    if let Some((container, own)) = groups("pids", "pids") {
        assert_eq!(container.number("pids.max", "pids.max"), 50);
        assert_eq!(own.read("pids.max", "pids.max"), "max");
    }
    let name = container_of(init);
    running.signal(Signal::SIGTERM);
    running.wait();
    assert_eq!(left_of(&[name]), Vec::<PathBuf>::new());
}

#[test]
fn nothing_is_left_however_a_container_ends() {
    let Some(tree) = Tree::new() else { return };
    let mut names = Vec::new();
    for (signal, status) in [(Signal::SIGTERM, Some(143)), (Signal::SIGKILL, None)] {
        let running = Running::start(&mut with(&tree, &["-m", "64m"], STAY));
        let init = init_of(&running);
        names.push(container_of(init));
        running.signal(signal);
        assert_eq!(running.wait().0, status);
        wait_until_gone(&[init]);
    }
    // The one that was killed is cleaned up after by the next, which fails here in one way or another.
    for (options, command, status) in [
        (&["--cpuset-cpus", "4000"][..], "true", 125),
        (&[], "/no/such/command", 127),
        (&["--pids-limit", "1"], "true", 125),
    ] {
        let outcome = finish(tree.rlaunch().args(options).arg(command));
        assert_eq!(outcome.status, Some(status), "{outcome:?}");
    }
    assert_eq!(left_of(&names), Vec::<PathBuf>::new());
}

#[test]
fn many_at_a_time_do_not_get_in_each_others_way() {
    let Some(tree) = Tree::new() else { return };
    let run = || {
        for _ in 0..4 {
            let script = "cat /proc/self/cgroup; sleep 0.1";
            let output = with(&tree, &["--pids-limit", "20"], script).output().expect("start rlaunch");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    };
    std::thread::scope(|scope| (0..6).map(|_| scope.spawn(run)).for_each(drop));
}

/// Covers /sys/fs/cgroup in the test's own mount namespace by an empty directory with a mount of each of these.
fn only_these_hierarchies(hierarchies: &[&str]) {
    let parts = hierarchies.iter().map(|name| format!("mkdir {name}; mount -t cgroup -o {name} cgroup {name}\n"));
    launch::sh(&format!("mount -t tmpfs tmpfs /sys/fs/cgroup; cd /sys/fs/cgroup\n{}", parts.collect::<String>()));
}

#[test]
fn without_cgroups_there_are_containers_and_no_limits() {
    let Some(tree) = Tree::new() else { return };
    only_these_hierarchies(&[]);
    assert_eq!(tree.print("echo started"), "started\n");
    let outcome = finish(&mut with(&tree, &["--memory", "64m"], "echo started"));
    refused(&outcome, &["cannot apply --memory", "no mounted control group hierarchy has the memory controller"]);
    let outcome = finish(&mut with(&tree, &["--best-effort-limits", "--memory", "64m", "--cpus", "1"], "echo started"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "started\n"), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("going on without it").count(), 2, "{outcome:?}");
}

#[test]
fn cgroups_that_are_mounted_read_only_give_no_limits() {
    let Some(tree) = Tree::new() else { return };
    let read_only =
        "grep -o '/sys/fs/cgroup[^ ]*' /proc/self/mounts | while read m; do mount -o remount,bind,ro $m; done";
    launch::sh(read_only);
    assert_eq!(tree.print("echo started"), "started\n");
    let outcome = finish(&mut with(&tree, &["--memory", "64m"], "echo started"));
    refused(&outcome, &["cannot apply --memory", "Read-only file system", "mount it writable"]);
}

#[test]
fn v1_alone_serves_as_well() {
    let Some(tree) = Tree::new() else { return };
    if !matches!(root_of("memory", "memory"), Some((Version::V1, _))) {
        // There is no v1 on this machine.
        return;
    }
    only_these_hierarchies(&["memory", "cpu", "freezer"]);
    let script = "cd /sys/fs/cgroup; ls; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us freezer/freezer.state";
    let output = printed(finish(&mut with(&tree, &["-m", "64m", "--cpus", "0.5"], script)));
    assert_eq!(output, "cpu\nfreezer\nmemory\n67108864\n50000\nTHAWED\n");
    assert!(mounts().contains(" /sys/fs/cgroup/freezer "));
}
