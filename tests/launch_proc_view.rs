//! What `/proc` tells a container of the machine: its limits.
//!
//! Root can look into a container's files from outside by `/proc/PID/root`; so do most of these tests.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::mount::{finish, is_alive, poll};
use harness::rootless::{Way, again};
use harness::sandbox;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/limits_view.rs"]
mod limits_view;
#[path = "support/tools.rs"]
mod tools;

use cgroups::{Group, Version, root_of};
use launch::{PATIENCE, RLAUNCH, Recorded, Running, Tree, mounts, printed, wait_until_gone};
use limits_view::{FILES, SHOW_CPUS, cpus, has_memory, inside, limited, machine_total, number_of, print, read, server};

#[test]
fn the_memory_is_what_it_may_use() {
    let Some(tree) = Tree::new() else { return };
    let Some(()) = has_memory() else { return };
    let script = "cat /proc/meminfo; cat /proc/swaps";
    let text = print(&tree, &["--memory", "100m", "--memory-swap", "100m"], script);
    let total = number_of(&text, "MemTotal");
    let (free, available) = (number_of(&text, "MemFree"), number_of(&text, "MemAvailable"));
    assert_eq!(total, 102_400, "{text}");
    assert!(free > 50_000 && free <= available && available <= total, "{text}");
    assert_eq!((number_of(&text, "SwapTotal"), number_of(&text, "SwapFree")), (0, 0), "{text}");
    assert_eq!(text.lines().last().map(|line| line.starts_with("Filename")), Some(true), "{text}");
}

#[test]
fn the_tools_of_procps_tell_it() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let Some(()) = has_memory() else { return };
    for tool in ["free", "top", "vmstat", "uptime", "ps"] {
        if tools::find(tool).is_none() {
            return;
        }
    }
    let script = "free -k; echo; top -bn1 | head -5; echo; vmstat; echo; uptime; echo; ps -o etimes= -p 1; getconf _NPROCESSORS_ONLN";
    let text = printed(finish(Command::new(RLAUNCH).args(["--memory", "100m", "--cpus", "1", "sh", "-c", script])));
    let parts: Vec<&str> = text.split("\n\n").collect();
    let [free, top, .., vmstat, uptime, last] = parts[..] else { panic!("{text}") };
    let words = |line: &str, start: &str| -> Vec<String> {
        let line = line.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start} in {line}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(words(free, "Mem:")[1], "102400", "{text}");
    assert_eq!(words(free, "Swap:").len(), 4, "{text}");
    assert!(top.contains("100.0 total") && top.contains("up 0 min"), "{text}");
    let numbers: Vec<u64> =
        vmstat.lines().last().into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
    assert_eq!(numbers.len(), 17, "{text}");
    // free memory in KiB; user, system, idle, waiting and stolen time in percent
    assert!(numbers[3] <= 102_400 && (98..=102).contains(&numbers[12..].iter().sum::<u64>()), "{text}");
    assert!(uptime.contains("up 0 min"), "{text}");
    let [age, cpus] = last.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(age.parse::<u64>().is_ok_and(|age| age < 100), "{text}");
    assert_eq!(cpus, "1", "{text}");
}

#[test]
fn cpus_are_as_many_as_it_has_time_for() {
    let Some(tree) = Tree::new() else { return };
    if root_of("cpu", "cpu").is_none() {
        return sandbox::skip("cpu is not mounted");
    }
    let machine = fs::read_to_string("/sys/devices/system/cpu/online").expect("read the list").trim().to_owned();
    let all = print(&tree, &["--proc-view=off"], SHOW_CPUS);
    let all = cpus(&all).0;
    for (options, count, has_cpuset) in [
        (&["--cpus", "1.5"][..], 2, true),
        (&["--cpus", "1"], 1, true),
        (&["--cpus", "0.1", "--no-cpu-pin"], 1, false),
        (&["--cpu-quota", "50000"], 1, false),
        (&["--cpuset-cpus", "0"], 1, true),
        (&["--cpu-shares", "512"], all, true),
    ] {
        let text = print(&tree, options, SHOW_CPUS);
        let (cpuinfo, stat, online) = cpus(&text);
        let expected = count.min(all);
        assert_eq!((cpuinfo, stat), (expected, expected), "{options:?}: {text}");
        if expected == all {
            assert_eq!(online, machine, "{options:?}");
        }
        if expected == 1 {
            assert!(online.parse::<usize>().is_ok(), "{options:?}: {online}");
        }
        if has_cpuset && root_of("cpuset", "cpuset").is_some() {
            assert!(text.contains(&format!("nproc {expected}\n")), "{options:?}: {text}");
        }
    }
}

#[test]
fn values_move_with_use() {
    let Some(tree) = Tree::new() else { return };
    let Some(running) = limited(&tree, &[]) else { return };
    let before = read(&running, "/proc/meminfo");
    let mut file = File::create(inside(&running, "/dev/shm/file")).expect("create a file");
    // It is charged to who writes.
    let group = Group::of(running.init(), "memory", "memory").expect("it is mounted");
    let script = "dd if=/dev/zero of=\"$1\" bs=1M count=30 2>/dev/null";
    join(&group, Command::new("sh").args(["-c", script, "sh"]).arg(inside(&running, "/dev/shm/file")));
    file.flush().expect("flush");
    let has_moved = || {
        let after = read(&running, "/proc/meminfo");
        let less = |key| number_of(&before, key).saturating_sub(number_of(&after, key));
        let more = |key| number_of(&after, key).saturating_sub(number_of(&before, key));
        (less("MemFree") > 28_000 && less("MemAvailable") > 28_000 && more("Shmem") > 28_000).then_some(())
    };
    poll(PATIENCE, has_moved).expect("memory that is used is not free");
    let busy = Running::start(tree.rlaunch().args(["--memory", "50m", "sh", "-c", "echo ready; while :; do :; done"]));
    let is_busy = || {
        let stat = read(&busy, "/proc/stat");
        let first: Vec<u64> =
            stat.lines().next()?.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let load = read(&busy, "/proc/loadavg");
        (first.first()? + first.get(2)? >= 20 && load.contains(" 2/")).then_some(())
    };
    poll(PATIENCE, is_busy).expect("it is busy");
}

/// As top(1), vmstat(8) and `free -s` do.
#[test]
fn who_keeps_a_file_open_and_begins_anew_is_told_of_this_moment() {
    let Some(tree) = Tree::new() else { return };
    let Some(()) = has_memory() else { return };
    let busy = Running::start(tree.rlaunch().args(["--memory", "50m", "sh", "-c", "echo ready; while :; do :; done"]));
    let mut file = File::open(inside(&busy, "/proc/stat")).expect("open it");
    let mut first = || {
        file.rewind().expect("go back to its beginning");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read it");
        text.lines().next().expect("a line").to_owned()
    };
    let before = first();
    poll(PATIENCE, || (first() != before).then_some(())).expect("the text is that of now");
}

/// Runs a command in a cgroup for memory.
fn join(group: &Group, command: &mut Command) {
    let procs = group.path.join("cgroup.procs");
    let script = format!("echo $$ > {} && exec \"$@\"", procs.display());
    let mut outer = Command::new("sh");
    outer.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    sandbox::run(&mut outer);
}

#[test]
fn a_change_of_limits_is_seen_at_once_and_by_exec() {
    let Some(tree) = Tree::new() else { return };
    let own = format!("view-{}", std::process::id());
    let Some(running) = limited(&tree, &["--name", &own, "--rm"]) else { return };
    let total = |text: &str| number_of(text, "MemTotal");
    assert_eq!(total(&read(&running, "/proc/meminfo")), 102_400);
    printed(finish(Command::new(RLAUNCH).args(["update", "--memory", "200m", "--cpu-quota", "50000", &own])));
    assert_eq!(total(&read(&running, "/proc/meminfo")), 204_800);
    let text = printed(finish(Command::new(RLAUNCH).args([
        "exec",
        &own,
        "sh",
        "-c",
        &format!("cat /proc/meminfo; {SHOW_CPUS}"),
    ])));
    assert_eq!((total(&text), cpus(&text).0, cpus(&text).1), (204_800, 1, 1), "{text}");
}

#[test]
fn a_container_that_is_kept_sees_its_limits_when_it_is_started_again() {
    let Some(tree) = Recorded::new() else { return };
    let Some(()) = has_memory() else { return };
    let script = "grep MemTotal /proc/meminfo; test $(cut -d. -f1 /proc/uptime) -lt 100 && echo young";
    let mut first = tree.rlaunch();
    first.args(["--name", "kept", "--memory", "64m", "sh", "-c", script]);
    let expected = "MemTotal:          65536 kB\nyoung\n";
    assert_eq!(printed(finish(&mut first)), expected);
    assert_eq!(printed(finish(Command::new(RLAUNCH).args(["start", "--attach", "kept"]))), expected);
    printed(finish(Command::new(RLAUNCH).args(["rm", "kept"])));
}

#[test]
fn the_limit_of_a_cgroup_around_it_counts() {
    let Some(tree) = Tree::new() else { return };
    let Some((version, root)) = root_of("memory", "memory") else { return sandbox::skip("memory is not mounted") };
    let parent = format!("rlaunch-test-{}", std::process::id());
    let path = root.join(&parent);
    let _removed = Removed(path.clone());
    fs::create_dir(&path).expect("make a cgroup");
    let limit = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => {
            fs::write(root.join("cgroup.subtree_control"), "+memory").expect("pass memory on");
            fs::write(path.join("cgroup.subtree_control"), "+memory").expect("pass memory on");
            "memory.max"
        }
    };
    fs::write(path.join(limit), (50 << 20).to_string()).expect("set a limit");
    let meminfo = print(&tree, &["--cgroup-parent", &parent, "--memory", "100m"], "cat /proc/meminfo");
    assert_eq!(number_of(&meminfo, "MemTotal"), 51_200, "{meminfo}");
}

/// A cgroup that goes with the test.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let is_gone = poll(PATIENCE, || fs::remove_dir(&self.0).ok());
        assert!(std::thread::panicking() || is_gone.is_some(), "{} stays", self.0.display());
    }
}

#[test]
fn it_is_as_old_as_it_is() {
    let Some(tree) = Tree::new() else { return };
    let script = "cat /proc/uptime; grep btime /proc/stat; date +%s; cut -d' ' -f22 /proc/1/stat";
    let text = print(&tree, &["--proc-view=on"], script);
    let numbers: Vec<f64> =
        text.lines().filter_map(|line| line.trim_start_matches("btime ").split(' ').next()?.parse().ok()).collect();
    let [uptime, boot, now, start] = numbers[..] else { panic!("{text}") };
    assert!(uptime < 100.0, "{text}");
    if Path::new("/proc/self/timens_offsets").exists() {
        // What ps(1) makes of them.
        assert!((boot + uptime - now).abs() <= 3.0, "{text}");
        assert!(start / 100.0 <= uptime + 0.1, "{text}");
    }
    // Clocks that were asked for are told as they are, and so is the machine's where its processes are shown.
    let machine = fs::read_to_string("/proc/uptime").expect("read uptime");
    let machine: f64 = machine.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    for (options, least) in [(&["--boottime", "10000"][..], machine + 9_999.0), (&["--pid", "host"], machine)] {
        let text = print(&tree, &[&["--proc-view=on"], options].concat(), "cut -d' ' -f1 /proc/uptime");
        assert!(text.trim().parse::<f64>().expect("a number") >= least, "{options:?}: {text}");
    }
}

#[test]
fn it_is_shown_where_it_is_wanted() {
    let Some(tree) = Tree::new() else { return };
    let Some(()) = has_memory() else { return };
    let script = "cat /proc/meminfo; grep -c /proc/meminfo /proc/mounts; true";
    let look = |options: &[&str]| {
        let text = print(&tree, options, script);
        (number_of(&text, "MemTotal"), text.lines().last().map(str::to_owned).unwrap_or_default())
    };
    let machine = machine_total();
    for (options, expected) in [
        (&[][..], (machine, "0")),
        (&["--pids-limit", "100"], (machine, "0")),
        (&["--memory", "100m", "--proc-view=off"], (machine, "0")),
        (&["--proc-view"], (machine, "1")),
        (&["--proc-view=on"], (machine, "1")),
        (&["--memory", "100m"], (102_400, "1")),
        (&["--memory", "100m", "--proc-view=auto"], (102_400, "1")),
        (&["--memory", "100m", "--proc-view=static"], (102_400, "1")),
    ] {
        let (total, mounts) = look(options);
        assert_eq!((total, &*mounts), expected, "{options:?}");
    }
    let outcome = finish(tree.rlaunch().args(["--proc-view=maybe", "true"]));
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
}

#[test]
fn without_fuse_there_are_plain_files() {
    let Some(tree) = Tree::new() else { return };
    let Some(()) = has_memory() else { return };
    launch::sh("mount --bind /dev/null /dev/fuse");
    let script = "grep MemTotal /proc/meminfo; grep ' /proc/meminfo ' /proc/mounts; echo x > /proc/meminfo";
    let outcome = finish(tree.rlaunch().args(["--memory", "100m", "sh", "-c", script]));
    let words: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words[..5], ["MemTotal:", "102400", "kB", "tmpfs", "/proc/meminfo"], "{outcome:?}");
    assert!(outcome.stdout.contains("ro,nosuid,nodev,noexec"), "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    let outcome = finish(tree.rlaunch().args(["--proc-view=on", "true"]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    assert!(outcome.stderr.contains("--proc-view=static"), "{outcome:?}");
}

#[test]
fn a_reader_gets_one_moment_however_it_reads() {
    let Some(tree) = Tree::new() else { return };
    let Some(running) = limited(&tree, &[]) else { return };
    for path in FILES {
        let file = File::open(inside(&running, path)).unwrap_or_else(|error| panic!("open {path}: {error}"));
        let mut piece = [0; 7];
        let length = file.read_at(&mut piece, 0).expect("read the beginning");
        let mut pieces = piece[..length].to_vec();
        // While others are told of later moments.
        assert!(!fs::read(inside(&running, path)).expect("read it").is_empty() || path == "/proc/diskstats");
        let mut whole = vec![0; 1 << 20];
        let rest = file.read_at(&mut whole, length as u64).expect("read all the rest at once");
        whole.truncate(rest);
        whole.splice(..0, pieces.clone());
        while let length @ 1.. = file.read_at(&mut piece, pieces.len() as u64).expect("read a piece") {
            pieces.extend_from_slice(&piece[..length]);
        }
        assert_eq!(String::from_utf8_lossy(&pieces), String::from_utf8_lossy(&whole), "{path}");
        let length = whole.len();
        for offset in [length as u64, 1 << 40, i64::MAX as u64 - 4096] {
            assert_eq!(file.read_at(&mut piece, offset).expect("read behind the end"), 0, "{path} at {offset}");
        }
        let mut direct =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(inside(&running, path)).expect("O_DIRECT");
        let mut text = String::new();
        direct.read_to_string(&mut text).expect("read with O_DIRECT");
        assert_eq!(text.is_empty(), whole.is_empty(), "{path}");
        // sendfile(2), as busybox's cat does.
        let sent = finish(Command::new("busybox").arg("cat").arg(inside(&running, path))).stdout;
        assert_eq!(sent.lines().count(), text.lines().count(), "{path}");
    }
}

#[test]
fn whatever_is_asked_of_a_file_its_server_goes_on() {
    let Some(tree) = Tree::new() else { return };
    let Some(running) = limited(&tree, &[]) else { return };
    let Some(python) = tools::find("python3") else { return };
    let script = "import fcntl, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
def tried(what):
    try: return what()
    except OSError as error: return os.strerror(error.errno)
print(tried(lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)))
print(mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)[:9].decode())
print(os.pread(fd, 1 << 30, 0)[:9].decode())
for what in (lambda: fcntl.ioctl(fd, 0x1234), lambda: os.setxattr(fd, 'user.x', b'1'), lambda: os.listxattr(fd),
             lambda: os.utime(fd), lambda: os.lseek(fd, 0, os.SEEK_DATA), lambda: os.fsync(fd), lambda: os.fstatvfs(fd),
             lambda: os.open(sys.argv[1], os.O_RDWR), lambda: os.truncate(sys.argv[1], 0)): tried(what)";
    let outcome = finish(Command::new(python).args(["-c", script]).arg(inside(&running, "/proc/meminfo")));
    assert_eq!(printed(outcome), "No such device\nMemTotal:\nMemTotal:\n");
    assert_eq!(number_of(&read(&running, "/proc/meminfo"), "MemTotal"), 102_400);
    assert!(is_alive(server(&running)));
}

#[test]
fn nobody_in_it_can_change_it_or_look_behind() {
    let Some(tree) = Tree::new() else { return };
    let Some(()) = has_memory() else { return };
    let script = "for file in /proc/meminfo /proc/stat /sys/devices/system/cpu/online; do
            (echo x > $file) 2>/dev/null && echo written; chmod 666 $file 2>/dev/null && echo changed
            rm -f $file 2>/dev/null && echo removed; umount $file 2>/dev/null && echo unmounted
            umount -l $file 2>/dev/null && echo unmounted; mount --bind /etc $file 2>/dev/null && echo mounted
            mv $file /tmp 2>/dev/null && echo moved; ln $file /hard 2>/dev/null && echo linked
        done; ls /proc/fs | grep -x meminfo; grep -c ' /proc/fs ' /proc/mounts; grep -c fuse.rlaunch /proc/mounts
        ls -ld /proc/meminfo | cut -d' ' -f1; stat -f -c %T /proc/meminfo; grep MemTotal /proc/meminfo";
    // /proc/fs is one of the paths that nobody may write.
    let text = print(&tree, &["--memory", "100m", "--cap-add", "DAC_OVERRIDE"], script);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["1", "9", "-r--r--r--"], "{text}");
    assert_eq!(lines.last(), Some(&"MemTotal:         102400 kB"), "{text}");
}

#[test]
fn thousands_of_open_files_and_a_busy_reader_hurt_nobody() {
    let Some(tree) = Tree::new() else { return };
    let Some(running) = limited(&tree, &[]) else { return };
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit").0;
    let count = usize::try_from(limit).expect("a number").saturating_sub(200).min(4_000);
    let files: Vec<File> = (0..count)
        .map(|number| File::open(inside(&running, FILES[number % FILES.len()])).expect("open one more"))
        .collect();
    for (file, path) in files.iter().zip(FILES.iter().cycle()) {
        let mut byte = [0];
        let length = file.read_at(&mut byte, 0).expect("read one of many");
        assert!(length == 1 || *path == "/proc/diskstats", "{path}");
    }
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server(&running))).expect("read its status");
        number_of(&status, "VmRSS")
    };
    assert!(resident() < 64 << 10, "{} KiB", resident());
    drop(files);
    assert_eq!(number_of(&read(&running, "/proc/meminfo"), "MemTotal"), 102_400);
}

#[test]
fn when_its_server_dies_readers_get_an_error_and_the_container_lives() {
    let Some(tree) = Tree::new() else { return };
    let Some(running) = limited(&tree, &[]) else { return };
    let open = File::open(inside(&running, "/proc/meminfo")).expect("open it");
    kill(server(&running), Signal::SIGKILL).expect("kill the server");
    let is_refused = || {
        let error = fs::read(inside(&running, "/proc/meminfo")).err()?.raw_os_error()?;
        [libc::ENOTCONN, libc::ECONNABORTED].contains(&error).then_some(())
    };
    poll(PATIENCE, is_refused).expect("reads fail");
    let error = open.read_at(&mut [0; 16], 0).expect_err("it has no server").raw_os_error();
    assert!([Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&error), "{error:?}");
    assert!(is_alive(running.init()), "the container goes on");
}

#[test]
fn its_server_may_nothing_and_is_not_in_the_container() {
    let Some(tree) = Tree::new() else { return };
    let Some(running) = limited(&tree, &[]) else { return };
    let server = server(&running);
    // It serves only once it has given up everything.
    read(&running, "/proc/meminfo");
    let status = fs::read_to_string(format!("/proc/{server}/status")).expect("read its status");
    for line in
        ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"]
    {
        assert!(status.lines().any(|own| own == line), "{line}: {status}");
    }
    let group = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read its cgroups");
    assert_eq!(group(server), group(running.pid()));
    let namespace = |pid: Pid, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("read a namespace");
    for kind in ["mnt", "pid"] {
        assert_ne!(namespace(server, kind), namespace(running.init(), kind), "{kind}");
    }
    let descriptors = fs::read_dir(format!("/proc/{server}/fd")).expect("list its descriptors").flatten();
    let others: Vec<PathBuf> = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(
        others.iter().all(|path| ["/dev/null", "/dev/fuse"].iter().any(|own| path == Path::new(own))),
        "{others:?}"
    );
}

#[test]
fn nothing_is_left_of_it() {
    let Some(tree) = Tree::new() else { return };
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
        let before = mounts();
        let Some(running) = limited(&tree, &[]) else { return };
        assert_eq!(mounts(), before, "the machine does not see it");
        let processes = [server(&running), running.init()];
        let device = fs::metadata(inside(&running, "/proc/meminfo")).expect("look at it").dev();
        let connection = PathBuf::from(format!("/sys/fs/fuse/connections/{}", nix::sys::stat::minor(device)));
        match signal {
            Some(signal) => running.signal(signal),
            None => kill(running.init(), Signal::SIGKILL).expect("kill the container"),
        }
        drop(running.wait());
        wait_until_gone(&processes);
        poll(PATIENCE, || (!connection.exists()).then_some(())).expect("the connection goes, too");
    }
}

#[test]
fn an_ordinary_user_has_it_too() {
    if !again(Way::Fusermount, "an_ordinary_user_has_it_too") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let script = "grep -c fuse.rlaunch /proc/mounts; cut -d. -f1 /proc/uptime; cat /proc/meminfo | head -1";
    let outcome = finish(tree.rlaunch().args(["--proc-view=on", "sh", "-c", script]));
    let words: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(words[0] == "9" && words[1].parse::<u64>().is_ok_and(|age| age < 100), "{outcome:?}");
    assert_eq!(words[3], machine_total().to_string(), "{outcome:?}");
}

/// What lxcfs tells a process in the same cgroups, in a private mount namespace.
struct Lxcfs {
    child: std::process::Child,
    place: PathBuf,
}

impl Lxcfs {
    fn start(place: PathBuf) -> Option<Lxcfs> {
        let program = tools::find("lxcfs")?;
        fs::create_dir(&place).expect("make a mount point");
        let mut command = Command::new(program);
        command.arg("-f").arg("--pidfile").arg(place.with_extension("pid")).arg(&place);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let lxcfs = Lxcfs { child: child.expect("start lxcfs"), place };
        poll(PATIENCE, || lxcfs.place.join("proc/meminfo").exists().then_some(())).expect("lxcfs serves");
        Some(lxcfs)
    }
}

impl Drop for Lxcfs {
    fn drop(&mut self) {
        drop(self.child.kill().and_then(|()| self.child.wait()));
        // It has ended, so nobody else takes this away; the namespace goes with the test at the latest.
        sandbox::unmount(&self.place, nix::mount::MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

#[test]
fn lxcfs_says_the_same_of_the_same_cgroups() {
    // lxcfs makes directories in /run.
    let Some(tree) = Recorded::new() else { return };
    let Some(running) = limited(&tree, &["--cpuset-cpus", "0"]) else { return };
    let Some(lxcfs) = Lxcfs::start(tree.beside("lxcfs")) else { return };
    // A process of the machine's, for lxcfs goes by the cgroups of the first process in the reader's pid namespace.
    let membership = fs::read_to_string(format!("/proc/{}/cgroup", running.init())).expect("read its cgroups");
    let joins: String = ["memory", "cpuset", "cpu", "cpuacct"]
        .into_iter()
        .filter_map(|controller| Group::of(running.init(), controller, controller))
        .map(|group| format!("echo $$ > {}/cgroup.procs; ", group.path.display()))
        .collect();
    let theirs = |path: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{joins} exec cat {}", lxcfs.place.join(path).display())]);
        printed(finish(&mut command))
    };
    let (own, other) = (read(&running, "/proc/meminfo"), theirs("proc/meminfo"));
    for key in ["MemTotal", "SwapTotal"] {
        assert_eq!(number_of(&own, key), number_of(&other, key), "{key}: {own}{other}{membership}");
    }
    // The reader itself is in there with lxcfs.
    for key in ["MemFree", "Cached"] {
        assert!(number_of(&own, key).abs_diff(number_of(&other, key)) < 8_192, "{key}: {own}{other}");
    }
    let count = |cpuinfo: &str| cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    assert_eq!(count(&read(&running, "/proc/cpuinfo")), count(&theirs("proc/cpuinfo")));
    let count = |stat: &str| stat.lines().filter(|line| line.starts_with("cpu")).count();
    assert_eq!(count(&read(&running, "/proc/stat")), count(&theirs("proc/stat")));
    let online = "sys/devices/system/cpu/online";
    assert_eq!(read(&running, "/sys/devices/system/cpu/online"), theirs(online));
}
