//! Root in a container takes all it can get of disk, memory, descriptors, names and processes: the host goes on, and so do
//! other containers.
//!
//! `RLAUNCH_NAMES` is how many names the container makes and asks for, 20,000 without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::mount::{Outcome, finish, poll};
use harness::rootless::{Way, again};
use harness::sandbox::{self, Sandbox};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use cgroups::{Group, container_of, left_of};
use launch::{PATIENCE, RLAUNCH, Recorded, Running, Tree, printed, wait_until_gone};

/// Many descriptors and names, quickly. `hoard open COUNT DIRECTORY`: files that stay open; `hoard ask COUNT DIRECTORY`:
/// names that are not there; `hoard make COUNT DIRECTORY`: files; `hoard dig DEPTH DIRECTORY`: one directory in the other; `hoard fork`: processes, for ever.
const HOARD: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int count, char **words) {
    long number = strtol(words[2], 0, 10), done = 0;
    char name[64];
    struct stat found;
    if (count < 4 || (mkdir(words[3], 0700) < 0 && errno != EEXIST) || chdir(words[3]) < 0)
        return 1;
    if (!strcmp(words[1], "fork")) {
        puts("ready");
        fflush(stdout);
        for (;;) fork();
    }
    for (errno = 0; done < number; done++) {
        snprintf(name, sizeof name, "%ld", done);
        int result = -1;
        if (!strcmp(words[1], "open")) result = open(name, O_RDWR | O_CREAT, 0600);
        if (!strcmp(words[1], "ask")) result = stat(name, &found) < 0 && errno == ENOENT ? 0 : -1;
        if (!strcmp(words[1], "make")) result = close(open(name, O_RDWR | O_CREAT, 0600));
        if (!strcmp(words[1], "dig")) result = mkdir("d", 0) < 0 ? -1 : chdir("d");
        if (result < 0) break;
    }
    printf("%ld %d\n", done, done < number ? errno : 0);
    fflush(stdout);
    if (!strcmp(words[1], "open")) pause();
    return 0;
}
"#;

/// Builds the program beside the test's files, where a copy of the host shows it.
fn hoard(directory: &Path) -> Option<PathBuf> {
    let compiler = tools::find("gcc")?;
    let (source, program) = (directory.join("hoard.c"), directory.join("hoard"));
    fs::write(&source, HOARD).expect("write hoard.c");
    let outcome = finish(Command::new(compiler).args(["-static", "-O1", "-o"]).arg(&program).arg(&source));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    Some(program)
}

/// A copy of the host that starts in the test's directory.
fn copy(sandbox: &Sandbox, options: &[&str]) -> Command {
    let mut command = Command::new(RLAUNCH);
    command.args(options).current_dir(sandbox.path());
    command
}

fn kibibytes(pid: Pid, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().expect("a number")
}

fn descriptors(pid: Pid) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("list its descriptors").count() as u64
}

/// Fills what takes the changes, makes room again and uses it.
const FILL: &str =
    "head -c 100m /dev/zero > big; echo $?; echo more > more; rm -f big more; echo small > file; cat file";

#[track_caller]
fn told_where_to_put_it(outcome: &Outcome) {
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "1\nsmall\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
}

#[test]
fn a_disk_that_is_full_harms_the_container_only_and_is_told() {
    let Some(sandbox) = sandbox::enter() else { return };
    let disk = sandbox.small_ext4("disk", 32, &[]);
    let keep = disk.join("keep");
    let run = |script: &str| {
        let mut command = copy(&sandbox, &["--keep", keep.to_str().unwrap(), "sh", "-c", script]);
        finish(&mut command)
    };
    told_where_to_put_it(&run(FILL));
    let full = run("head -c 100m /dev/zero > big");
    assert_eq!(full.status, Some(1), "{full:?}");
    assert!(full.stderr.contains("rlaunch: warning: there was no space left"), "{full:?}");
    assert!(full.stderr.contains("--keep DIR or TMPDIR"), "{full:?}");
    // It can be gone on from, and made room in.
    assert_eq!(printed(run("rm big; echo room > file; cat file")), "room\n");
}

#[test]
fn memory_that_is_full_harms_the_container_only() {
    let Some(sandbox) = sandbox::enter() else { return };
    told_where_to_put_it(&finish(&mut copy(&sandbox, &["--tmpfs-top=8m", "sh", "-c", FILL])));
}

#[test]
fn what_an_ordinary_user_fills_harms_the_container_only() {
    if !again(Way::Fusermount, "what_an_ordinary_user_fills_harms_the_container_only") {
        return;
    }
    let sandbox = sandbox::enter().expect("it can run");
    told_where_to_put_it(&finish(&mut copy(&sandbox, &["--tmpfs-top=8m", "sh", "-c", FILL])));
    let full = finish(&mut copy(&sandbox, &["--tmpfs-top=8m", "sh", "-c", "head -c 100m /dev/zero > big"]));
    assert!(full.stderr.contains("--tmpfs-top=SIZE"), "{full:?}");
}

#[test]
fn open_files_are_bounded_and_others_have_theirs() {
    let Some(sandbox) = sandbox::enter() else { return };
    let Some(program) = hoard(sandbox.path()) else { return };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Together more than the daemon may have open; and each process has a limit of its own.
    let each = most.min(20_000) - 100;
    let script = format!(
        "ulimit -n {most}; for i in 1 2 3; do {} open {each} hoard$i & all=\"$all $!\"; done; read line; kill $all
        wait; echo gone; for i in 1 2 3; do echo $i > hoard$i/new; cat hoard$i/new; done",
        program.display()
    );
    let (input, mut go_on) = std::io::pipe().unwrap();
    let mut command = copy(&sandbox, &["sh", "-c", &script]);
    let mut running = Running::begin_with(&mut command, input);
    let numbers = |line: String| -> (u64, i32) {
        let (count, errno) = line.split_once(' ').expect("two numbers");
        (count.parse().expect("a number"), errno.parse().expect("a number"))
    };
    let opened: Vec<(u64, i32)> = (0..3).map(|_| numbers(running.line())).collect();
    let all: u64 = opened.iter().map(|(count, _)| count).sum();
    let daemon = running.daemon();
    assert!(all > 5_000, "{opened:?}");
    assert!(descriptors(daemon) <= most, "{opened:?}");
    // Whoever gets no more is told so, by a number that means this.
    assert!(opened.iter().all(|(_, errno)| [0, nix::libc::ENFILE, nix::libc::EMFILE].contains(errno)), "{opened:?}");
    assert!(kibibytes(daemon, "VmHWM") < 100_000 + all * 2, "{} KiB for {all} files", kibibytes(daemon, "VmHWM"));
    // Another container has a daemon of its own, and the host its files.
    assert_eq!(printed(finish(&mut copy(&sandbox, &["sh", "-c", "echo x > other; cat other"]))), "x\n");
    // With the ones who hold them, all comes back.
    std::io::Write::write_all(&mut go_on, b"go on\n").unwrap();
    assert_eq!(["gone", "1", "2", "3"].map(|_| running.line()), ["gone", "1", "2", "3"]);
    let back = poll(PATIENCE, || (descriptors(daemon) < 1_000).then_some(()));
    assert!(back.is_some(), "{} are left", descriptors(daemon));
    assert_eq!(running.wait(), (Some(0), String::new()));
}

#[test]
fn names_cost_no_more_than_the_kernel_remembers() {
    let Some(sandbox) = sandbox::enter() else { return };
    let Some(program) = hoard(sandbox.path()) else { return };
    let count = std::env::var("RLAUNCH_NAMES").map_or(20_000, |number| number.parse::<u64>().expect("a number"));
    let program = program.display();
    let script =
        format!("echo ready; {program} ask {count} asked; {program} make {count} made; rm -r made; echo end; read x");
    let (input, go_on) = std::io::pipe().unwrap();
    let mut running = Running::begin_with(&mut copy(&sandbox, &["sh", "-c", &script]), input);
    assert_eq!(running.line(), "ready");
    let before = kibibytes(running.daemon(), "VmHWM");
    assert_eq!(running.line(), format!("{count} 0"));
    let asked = kibibytes(running.daemon(), "VmHWM");
    // What is not there is remembered by the kernel alone.
    assert!(asked - before < 4_000, "{before} KiB, then {asked}");
    assert_eq!(running.line(), format!("{count} 0"));
    let made = kibibytes(running.daemon(), "VmHWM");
    assert!(made - asked < 8_000 + count / 2, "{asked} KiB, then {made}");
    assert_eq!(running.line(), "end");
    // What was removed is not kept.
    let rest = kibibytes(running.daemon(), "VmRSS");
    assert!(rest < asked + 8_000 + count / 8, "{asked} KiB before, {rest} after");
    drop(go_on);
    running.wait();
}

#[test]
fn a_container_that_only_forks_is_stopped_as_any_other() {
    let Some(tree) = Recorded::new() else { return };
    let Some(program) = hoard(&tree.path("bin")) else { return };
    let mut command = tree.rlaunch();
    command.args(["--name", "bomb", "--pids-limit=40"]).arg(program.strip_prefix(tree.path("bin")).unwrap());
    command.args(["fork", "0", "/"]);
    let running = Running::start(&mut command);
    let init = running.init();
    let Some(group) = Group::of(init, "pids", "pids") else {
        return sandbox::skip("the pids controller is not mounted");
    };
    let refused = poll(PATIENCE, || (group.number_of("pids.events", "max") > 0).then_some(()));
    assert!(refused.is_some(), "it never came to its limit");
    assert!(group.number("pids.current", "pids.current") <= 40);
    let name = container_of(init);
    let outcome = finish(Command::new(RLAUNCH).args(["stop", "--time=1", "bomb"]));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(matches!(running.wait().0, Some(143 | 137)));
    wait_until_gone(&[init]);
    assert_eq!(left_of(&[name]), Vec::<PathBuf>::new());
}

/// CAP_SYS_ADMIN lets it mount the control groups writable, and so make some of its own.
#[test]
fn control_groups_that_a_container_makes_go_with_it() {
    let Some(tree) = Tree::new() else { return };
    let script = "for dir in /sys/fs/cgroup /sys/fs/cgroup/*/; do mount -o remount,rw,bind $dir; mkdir -p $dir/a/b/c $dir/d; done
        for dir in /sys/fs/cgroup/*/a/b /sys/fs/cgroup/a/b; do echo 0 > $dir/cgroup.procs; done
        echo ready; exec sleep 1000";
    let mut command = tree.rlaunch();
    command.args(["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--pids-limit=50", "sh", "-c", script]);
    let running = Running::start(command.stderr(Stdio::null()));
    let name = container_of(running.init());
    let Some(group) = Group::of(running.init(), "pids", "pids") else {
        return sandbox::skip("the pids controller is not mounted");
    };
    assert!(group.path.join("a/b/c").exists() || group.path.join("d").exists(), "{}", group.path.display());
    running.signal(Signal::SIGTERM);
    running.wait();
    assert_eq!(left_of(&[name]), Vec::<PathBuf>::new());
}

#[test]
fn a_container_that_covers_its_proc_is_looked_after_as_any_other() {
    let Some(tree) = Recorded::new() else { return };
    let script = "mount -t tmpfs none /proc; mkdir -p /proc/self/ns /proc/self/fd /proc/1
        trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = tree.rlaunch();
    command.args(["--name", "blind", "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "sh", "-c", script]);
    let running = Running::start(&mut command);
    let rlaunch = |words: &[&str]| finish(Command::new(RLAUNCH).args(words));
    assert_eq!(printed(rlaunch(&["exec", "blind", "sh", "-c", "ls /proc; echo in"])), "1\nself\nin\n");
    assert!(printed(rlaunch(&["top", "blind"])).contains("sleep"));
    assert!(printed(rlaunch(&["inspect", "blind"])).contains("\"blind\""));
    let stopped = rlaunch(&["stop", "blind"]);
    assert_eq!(stopped.status, Some(0), "{stopped:?}");
    assert_eq!(running.wait().0, Some(5));
}

/// What it has written goes with it, however it was made.
#[test]
fn whatever_a_container_has_made_is_removed() {
    let Some(sandbox) = sandbox::enter() else { return };
    let Some(program) = hoard(sandbox.path()) else { return };
    fs::write(sandbox.path().join("precious"), "of the host").unwrap();
    let script = format!(
        "{1} dig 3000 deep; mkdir closed; echo x > closed/file; chmod 0 closed/file closed
        ln -s {0}/precious link; ln -s {0} closed/link; mkfifo pipe
        mkdir fixed; echo x > fixed/file; chattr +i fixed/file; chattr +a fixed; lsattr -d fixed | cut -c 6; echo ready; read x",
        sandbox.path().display(),
        program.display()
    );
    let (input, go_on) = std::io::pipe().unwrap();
    let mut command = copy(&sandbox, &["--cap-add=LINUX_IMMUTABLE", "sh", "-c", &script]);
    command.stderr(Stdio::piped());
    let mut running = Running::begin_with(&mut command, input);
    assert_eq!(["3000 0", "a", "ready"].map(|_| running.line()), ["3000 0", "a", "ready"]);
    let entries = fs::read_dir(format!("/proc/{}/fd", running.daemon())).unwrap();
    let is_scratch =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"rlaunch-"));
    let open = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let directory = open.into_iter().find(is_scratch).expect("the daemon keeps its directory open");
    drop(go_on);
    assert_eq!(running.wait(), (Some(1), String::new()));
    assert!(!directory.exists(), "{} is left", directory.display());
    assert_eq!(fs::read_to_string(sandbox.path().join("precious")).unwrap(), "of the host");
    // Without the capability, nothing of this kind can be made.
    let outcome = finish(&mut copy(&sandbox, &["sh", "-c", "echo x > file; chattr +i file"]));
    assert!(outcome.status == Some(1) && outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
}
