//! The processes of a container: its pid 1, the signals that reach it, and its end.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use harness::mount::{finish, poll};
use launch::{PATIENCE, Running, Tree, arguments, processes_with, wait_until_gone};

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
