//! Many containers at once, and processes of ours that are killed at any moment: nothing of them stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use harness::disk::{Disk, Format, unmount};
use harness::mount::{finish, poll};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::test_runner::{RngAlgorithm, TestRng};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Recorded, mounts, printed, processes_with};

/// How many containers there are at a time.
const AT_ONCE: usize = 8;

/// Numbers that look random and are the same in each run; xorshift64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A word in the arguments of all processes of a test.
fn mark(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// One of the kinds of containers: over a tree, over branches, over the host.
fn container(tree: &Recorded, number: usize, options: &[&str], script: &str, mark: &str) -> Command {
    let mut command = Command::new(RLAUNCH);
    let root = tree.path("").display().to_string();
    match number % 4 {
        0 | 1 => command.arg("--rootfs").arg(&root),
        2 => {
            let top = tree.beside(&format!("top{number}"));
            fs::create_dir_all(&top).expect("make a top");
            command.arg("--branches").arg(format!("{}=rw:{root}=ro+wh", top.display()))
        }
        _ => command.arg("--no-submounts"),
    };
    command.args(options).args(["sh", "-c", script, mark]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Cgroups of containers of which the name begins so.
fn cgroups(prefix: &str) -> Vec<PathBuf> {
    let table = mounts();
    let roots = table.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let all = roots.flat_map(|root| fs::read_dir(PathBuf::from(root).join("rlaunch")).into_iter().flatten().flatten());
    all.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()))
        .map(|entry| entry.path())
        .collect()
}

#[track_caller]
fn nothing_is_left(tree: &Recorded, before: &str, mark: &str) {
    let gone = poll(PATIENCE, || processes_with(mark).is_empty().then_some(()));
    assert!(gone.is_some(), "processes: {:?}", processes_with(mark));
    // What a crash left goes with the next start.
    assert_eq!(finish(tree.rlaunch().arg("true")).status, Some(0));
    tree.assert_empty();
    assert_eq!(cgroups(mark), Vec::<PathBuf>::new());
    assert_eq!(mounts(), before);
}

#[test]
fn a_hundred_containers_leave_nothing() {
    let Some(tree) = Recorded::new() else { return };
    let mark = mark("hundred");
    let before = mounts();
    for round in 0..13 {
        let start = |slot: usize| {
            let number = round * AT_ONCE + slot;
            let name = format!("--name={mark}-{number}");
            // Writing makes the union's daemon work; some are in the background, and awaited below.
            let options: &[&str] = if slot == 5 { &["--rm", "-d", &name] } else { &["--rm", &name] };
            container(&tree, number, options, "echo x > /etc/written && cat /etc/written", &mark).spawn()
        };
        let running: Vec<Child> = (0..AT_ONCE).map(|slot| start(slot).expect("start rlaunch")).collect();
        for (slot, mut child) in running.into_iter().enumerate() {
            let status = poll(PATIENCE, || child.try_wait().expect("wait for rlaunch")).expect("it ends");
            assert_eq!(status.code(), Some(0), "round {round}, slot {slot}");
        }
    }
    nothing_is_left(&tree, &before, &mark);
}

/// The launcher, and what it has made so far.
fn processes_of(launcher: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
    [launcher].into_iter().chain(children).collect()
}

#[test]
fn whoever_is_killed_at_any_moment_leaves_nothing_for_long() {
    let Some(tree) = Recorded::new() else { return };
    let mark = mark("killed");
    let before = mounts();
    let mut chance = Chance(0x5eed_0006);
    for number in 0..48 {
        let name = format!("--name={mark}-{number}");
        let mut child = container(&tree, number, &["--rm", &name], "while :; do echo x > /etc/w; done", &mark)
            .stderr(Stdio::null())
            .spawn()
            .expect("start rlaunch");
        let launcher = Pid::from_raw(child.id().cast_signed());
        sleep(Duration::from_micros(chance.below(40_000)));
        let processes = processes_of(launcher);
        let victim = processes[chance.below(processes.len() as u64) as usize];
        // Only the launcher is surely there still, for nobody has waited for it.
        match kill(victim, Signal::SIGKILL) {
            Err(nix::errno::Errno::ESRCH) if victim != launcher => {}
            result => result.expect("kill a process of ours"),
        }
        let ended = poll(PATIENCE, || child.try_wait().expect("wait for rlaunch"));
        assert!(ended.is_some(), "container {number} does not end without {victim}, one of {processes:?}");
    }
    nothing_is_left(&tree, &before, &mark);
}

#[test]
fn what_is_kept_survives_whoever_is_killed() {
    let Some(tree) = Recorded::new() else { return };
    let mark = mark("kept");
    let before = mounts();
    let mut chance = Chance(0x5eed_0007);
    // A copy of the host, which has files of its own.
    let script = "date >> /etc/lines; sync /etc/lines; sleep 1000";
    let name = format!("--name={mark}");
    assert_eq!(finish(&mut container(&tree, 3, &["-d", &name], script, &mark)).status, Some(0));
    let lines = PathBuf::from(format!("/var/lib/rlaunch/containers/{mark}/files/top/etc/lines"));
    assert!(poll(PATIENCE, || lines.exists().then_some(())).is_some());
    for round in 0..10 {
        let processes = processes_with(&mark);
        if !processes.is_empty() {
            let victim = processes[chance.below(processes.len() as u64) as usize];
            // One that has ended meanwhile needs no signal.
            kill(victim, Signal::SIGKILL)
                .or_else(|errno| if errno == nix::errno::Errno::ESRCH { Ok(()) } else { Err(errno) })
                .expect("kill a process of ours");
        }
        sleep(Duration::from_micros(chance.below(20_000)));
        let started = poll(PATIENCE, || {
            let outcome = finish(Command::new(RLAUNCH).args(["start", &mark]));
            // What was killed takes a moment to end, or it was somebody whom the container outlives.
            (outcome.status == Some(0) || outcome.stderr.contains("runs already")).then_some(())
        });
        assert!(started.is_some(), "round {round}");
    }
    assert!(lines.exists());
    finish(Command::new(RLAUNCH).args(["rm", "--force", &mark]));
    nothing_is_left(&tree, &before, &mark);
}

/// Names reach a disk before contents for which nobody has waited; ext4 makes an exception for such files.
#[test]
fn what_is_kept_is_known_after_a_power_cut() {
    let Some(tree) = Recorded::new() else { return };
    let mut disk = Disk::new(&tree.beside("disk"), Format::Xfs);
    let put = |root: &Path| {
        let stays = root.join("lib");
        mount(Some(&stays), "/var/lib", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind a directory");
    };
    fs::create_dir(disk.root().join("lib")).expect("make a directory");
    put(&disk.root());
    assert_eq!(finish(tree.rlaunch().args(["--name=kept", "sh", "-c", "exit 3"])).status, Some(3));
    fs::File::create(disk.root().join("last")).and_then(|last| last.sync_all()).expect("write the journal");
    let moment = disk.position();
    unmount(Path::new("/var/lib"));
    disk.stop();
    let (image, root) = (tree.beside("cut.img"), tree.beside("cut"));
    fs::create_dir(&root).expect("make a mount point");
    disk.cut(moment, &image, &mut TestRng::from_seed(RngAlgorithm::ChaCha, &[0; 32]));
    disk.mount_cut(&image, &root);
    put(&root);
    let rlaunch = |words: &[&str]| printed(finish(Command::new(RLAUNCH).args(words)));
    assert!(rlaunch(&["ps"]).contains("ended (3)"), "{}", rlaunch(&["ps"]));
    rlaunch(&["rm", "kept"]);
    unmount(Path::new("/var/lib"));
    unmount(&root);
}
