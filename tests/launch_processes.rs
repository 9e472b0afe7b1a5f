//! The processes of a container: its pid 1, the signals that reach it, and its end.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use harness::mount::{finish, poll};
use launch::{
    PATIENCE, RLAUNCH, Recorded, Running, Tree, arguments, processes_with, wait_until_changed, wait_until_gone,
    wait_until_still,
};

/// Prints `ready`, then waits until a trap ends it.
const WAIT: &str = "echo ready; while :; do sleep 0.05; done";

#[test]
fn pid_1_is_ours_and_the_command_is_pid_2_each_in_a_session_of_its_own() {
    let Some(tree) = Tree::new() else { return };
    // In the caller's, it would hear the keys of the caller's terminal beside the launcher, which passes them on as well.
    assert_eq!(tree.print("awk '{print $5, $6}' /proc/1/stat"), "1 1\n");
    assert_eq!(tree.print("echo $$; cat /proc/1/comm; awk '{print $4, $6}' /proc/$$/stat"), "2\nrlaunch\n1 2\n");
}

#[test]
fn orphans_are_reaped() {
    let Some(tree) = Tree::new() else { return };
    // The inner shell ends at once, so its child belongs to pid 1 and leaves a zombie where nobody reaps it.
    let script = "sh -c 'sleep 0.1 & echo $!' > /orphan; orphan=$(cat /orphan)
        awk '{print $4}' /proc/$orphan/stat
        for i in $(seq 300); do test -e /proc/$orphan || exit 0; sleep 0.1; done; exit 1";
    assert_eq!(tree.print(script), "1\n");
}

#[test]
fn every_signal_that_means_something_is_passed_on_once() {
    let Some(tree) = Tree::new() else { return };
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
        Signal::SIGCONT,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGXCPU,
        Signal::SIGXFSZ,
        Signal::SIGABRT,
        Signal::SIGTRAP,
        Signal::SIGSYS,
    ] {
        let name = signal.as_str().trim_start_matches("SIG");
        let script = format!("trap 'echo got {name}' {name}; trap 'echo got PWR; exit 5' PWR; {WAIT}");
        let mut running = Running::start(tree.rlaunch().args(["sh", "-c", &script]));
        running.signal(signal);
        assert_eq!(running.line(), format!("got {name}"));
        // What comes twice would come before this.
        let is_command = |pid: &Pid| arguments(*pid).first().is_some_and(|name| name == "sh");
        let inside = processes_with(&script).into_iter().find(is_command).expect("the command");
        kill(inside, Signal::SIGPWR).unwrap();
        assert_eq!(running.wait(), (Some(5), "got PWR\n".to_owned()), "{signal}");
    }
}

/// SIGTSTP stops the launcher, and the container with it: all of it, where its control group can do that.
#[test]
fn a_launcher_that_is_stopped_stops_its_container() {
    let Some(tree) = Recorded::new() else { return };
    let count = |file: &str| format!("i=0; while :; do i=$((i + 1)); echo $i > /{file}; sleep 0.02; done");
    let script = format!("setsid sh -c '{}' & echo ready; {}", count("other"), count("own"));
    let mut run = tree.rlaunch();
    let run = Running::start(run.args(["--name=stopped", "sh", "-c", &script]).process_group(0));
    let mut exec = Command::new(RLAUNCH);
    exec.args(["exec", "stopped", "sh", "-c", &format!("echo ready; {}", count("exec"))]);
    let exec = Running::start(exec.process_group(0));
    let [own, other, further] = ["own", "other", "exec"].map(|file| tree.path(file));
    [&own, &other, &further].into_iter().for_each(|file| wait_until_changed(file));
    // One more command is stopped alone.
    stop(&exec);
    wait_until_still(&further);
    wait_until_changed(&own);
    exec.signal(Signal::SIGCONT);
    wait_until_changed(&further);
    stop(&run);
    wait_until_still(&own);
    let v2 = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
    if v2.iter().any(|file| Path::new(file).exists()) {
        [&other, &further].into_iter().for_each(|file| wait_until_still(file));
    }
    run.signal(Signal::SIGCONT);
    [&own, &other, &further].into_iter().for_each(|file| wait_until_changed(file));
    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.wait().0, Some(143));
    // Nobody is left to let it go on.
    stop(&run);
    let left: Vec<_> = processes_with(&script).into_iter().filter(|pid| *pid != run.pid()).collect();
    run.signal(Signal::SIGKILL);
    wait_until_gone(&left);
}

/// Stops a launcher and waits until it is.
#[track_caller]
fn stop(running: &Running) {
    running.signal(Signal::SIGTSTP);
    let stat = format!("/proc/{}/stat", running.pid());
    let is_stopped = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")).then_some(());
    poll(PATIENCE, is_stopped).expect("the launcher is stopped");
}

#[test]
fn a_signal_that_ends_the_command_shows_in_the_status() {
    let Some(tree) = Tree::new() else { return };
    for (signal, status) in
        [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129), (Signal::SIGUSR1, 138)]
    {
        let running = Running::start(tree.rlaunch().args(["sh", "-c", "echo ready; exec sleep 1000"]));
        running.signal(signal);
        assert_eq!(running.wait().0, Some(status), "{signal}");
    }
}

#[test]
fn pid_1_cannot_be_killed_from_inside() {
    let Some(tree) = Tree::new() else { return };
    assert_eq!(tree.print("kill -9 1; kill -STOP 1; kill -PWR 1; kill -SEGV 1; sleep 0.1; echo alive"), "alive\n");
}

#[test]
fn the_end_of_the_command_is_the_end_of_the_container() {
    let Some(tree) = Tree::new() else { return };
    let outcome = tree.sh("sleep 98701 & (setsid sleep 98701 &) ; exit 3");
    assert_eq!(outcome.status, Some(3), "{outcome:?}");
    wait_until_gone(&processes_with("98701"));
}

#[test]
fn killing_the_launcher_ends_everything() {
    let Some(tree) = Tree::new() else { return };
    let script = "sleep 98702 & (setsid sleep 98702 &); echo ready; sleep 98702";
    let running = Running::start(tree.rlaunch().args(["sh", "-c", script]));
    let inside =
        poll(PATIENCE, || Some(processes_with("98702")).filter(|found| found.len() == 3)).expect("three sleeps");
    let init = running.children();
    assert_eq!(init.len(), 1);
    running.signal(Signal::SIGKILL);
    wait_until_gone(&[inside, init].concat());
}

#[test]
fn a_container_in_the_background_of_a_pipe_ends_with_its_input() {
    let Some(tree) = Tree::new() else { return };
    // Standard input of `finish` is /dev/null.
    assert_eq!(finish(tree.rlaunch().arg("cat")).status, Some(0));
}

#[test]
fn pid_1_holds_nothing_of_the_host() {
    let Some(tree) = Tree::new() else { return };
    let script = "cd /proc/1/fd; ls; for link in 0 1 2 ../cwd ../root; do readlink $link; done | sed 's/\\[.*//'";
    let outcome = finish(tree.rlaunch().args(["--cap-add", "SYS_PTRACE", "sh", "-c", script]));
    assert_eq!(launch::printed(outcome), "0\n1\n2\npipe:\npipe:\npipe:\n/\n/\n");
}
