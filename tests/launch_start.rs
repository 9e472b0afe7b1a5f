//! Containers that are kept after their end: what they have written, and how they are started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish, is_alive, poll};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Recorded, Running, printed, wait_until_gone};

#[track_caller]
fn rlaunch(arguments: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).args(arguments))
}

#[track_caller]
fn refused(outcome: &Outcome, reason: &str) {
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains(reason), "{reason}: {}", outcome.stderr);
}

#[track_caller]
fn record(name: &str) -> serde_json::Value {
    serde_json::from_str(&printed(rlaunch(&["inspect", name]))).expect("JSON")
}

/// A copy of the host with a name; what is mounted below `/` is none of these tests' business.
fn copy(name: &str, options: &[&str], script: &str) -> Command {
    let mut command = Command::new(RLAUNCH);
    command.args(["--no-submounts", "--name", name]).args(options).args(["sh", "-c", script]);
    command
}

#[test]
fn it_is_started_as_it_was_asked_for_in_the_first_place() {
    let Some(tree) = Recorded::new() else { return };
    let script = "echo $GIVEN $SET $(pwd) $(hostname) $(ulimit -n); cat /data/file; exit 7";
    fs::create_dir_all(tree.beside("home/data")).unwrap();
    fs::write(tree.beside("home/data/file"), "from the volume\n").unwrap();
    let mut command = Command::new(RLAUNCH);
    command.args(["--rootfs", "../tree", "--name", "again", "-e", "GIVEN", "--env=SET=1", "-w", "/etc"]);
    command.args(["--hostname=box", "--ulimit=nofile=77", "-v", "./data:/data:ro", "sh", "-c", script]);
    let first = finish(command.current_dir(tree.beside("home")).env("GIVEN", "a \u{fc}"));
    let expected = "a \u{fc} 1 /etc box 77\nfrom the volume\n";
    assert_eq!((first.status, &*first.stdout), (Some(7), expected), "{first:?}");
    let created = record("again")["created"].clone();
    for attach in ["-a", "--attach"] {
        let mut command = Command::new(RLAUNCH);
        let again = finish(command.args(["start", attach, "again"]).current_dir("/").env("GIVEN", "other"));
        assert_eq!((again.status, &*again.stdout), (Some(7), expected), "{again:?}");
    }
    assert_eq!(printed(rlaunch(&["start", "again"])), "again\n");
    assert_eq!(rlaunch(&["wait", "again"]).status, Some(7));
    assert_eq!(printed(rlaunch(&["logs", "again"])), expected, "in the background it has a log");
    assert_eq!(record("again")["created"], created);
    // What cannot start now is what it was.
    fs::rename(tree.path(""), tree.beside("away")).unwrap();
    let failed = rlaunch(&["start", "again"]);
    refused(&failed, "cannot use ../tree as the root");
    assert!(printed(rlaunch(&["ps"])).contains("ended (7)"));
    fs::rename(tree.beside("away"), tree.path("")).unwrap();
    fs::remove_file(tree.path("bin/sh")).unwrap();
    assert_eq!(rlaunch(&["start", "-a", "again"]).status, Some(127));
    assert!(printed(rlaunch(&["ps"])).contains("ended (7)"));
    assert_eq!(printed(rlaunch(&["rm", "again"])), "");
    refused(&rlaunch(&["start", "again"]), "there is no container again");
    tree.assert_empty();
}

#[test]
fn only_one_runs_at_a_time_and_only_what_is_kept_again() {
    let Some(tree) = Recorded::new() else { return };
    let script = "echo ready; exec sleep 1000";
    let running = Running::start(tree.rlaunch().args(["--name=one", "sh", "-c", script]));
    refused(&rlaunch(&["start", "one"]), "the container one runs already");
    refused(&finish(tree.rlaunch().args(["--name=one", "--rm", "true"])), "there is a container one already");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
    // Two at once: one of them runs.
    let mut both = [0, 1].map(|_| Command::new(RLAUNCH).args(["start", "one"]).spawn().unwrap());
    let mut statuses = both.each_mut().map(|start| start.wait().unwrap().code());
    statuses.sort_unstable();
    assert_eq!(statuses, [Some(0), Some(125)]);
    refused(&finish(tree.rlaunch().args(["--name=one", "true"])), "there is a container one already");
    assert_eq!(printed(rlaunch(&["rm", "--force", "one"])), "");
    let running = Running::start(tree.rlaunch().args(["--rm", "--name=two", "sh", "-c", script]));
    refused(&rlaunch(&["start", "two"]), "two");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
    tree.assert_empty();
}

#[test]
fn a_copy_of_the_host_keeps_what_it_has_written_until_it_is_removed() {
    let Some(tree) = Recorded::new() else { return };
    let script = "cat /etc/count; echo x >> /etc/count; rm -f /etc/hostname; test -e /etc/hostname || echo removed";
    let first = finish(&mut copy("work", &[], script));
    assert_eq!((first.status, &*first.stdout), (Some(0), "removed\n"), "{first:?}");
    let files = PathBuf::from("/var/lib/rlaunch/containers/work/files");
    assert_eq!(fs::read_to_string(files.join("top/etc/count")).unwrap(), "x\n");
    // Neither another start nor cleaning takes it, nor a boot, which empties /run.
    assert_eq!(rlaunch(&["rm", "--stale"]).status, Some(0));
    assert_eq!(finish(&mut copy("other", &["--rm"], "true")).status, Some(0));
    umount2("/run", MntFlags::MNT_DETACH).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    for count in 1..3 {
        let again = rlaunch(&["start", "-a", "work"]);
        assert_eq!((again.status, again.stdout), (Some(0), "x\n".repeat(count) + "removed\n"), "{}", again.stderr);
    }
    assert!(!Path::new("/etc/count").exists());
    assert_eq!(printed(rlaunch(&["rm", "work"])), "");
    tree.assert_empty();
}

#[test]
fn its_files_are_made_as_they_were_at_its_first_start() {
    let Some(_tree) = Recorded::new() else { return };
    let start = |words: &[&str]| {
        let script = format!("umask 027; exec '{RLAUNCH}' \"$@\"");
        printed(finish(Command::new("sh").args(["-c", &script, "sh"]).args(words)))
    };
    assert_eq!(start(&["--no-submounts", "--name", "mask", "sh", "-c", "umask"]), "0027\n");
    let again = finish(Command::new("sh").args(["-c", &format!("umask 077; exec '{RLAUNCH}' start -a mask")]));
    assert_eq!(printed(again), "0027\n");
    assert_eq!(record("mask")["settings"]["confinement"]["umask"], "0027");
}

#[test]
fn one_whose_launcher_was_killed_keeps_what_it_has_written() {
    let Some(tree) = Recorded::new() else { return };
    let script =
        "if test -e /etc/count; then echo again; else echo x > /etc/count; sync; touch /etc/ready; exec sleep 1000; fi";
    printed(finish(copy("crash", &["-d"], script).env("LANG", "C")));
    let ready = Path::new("/var/lib/rlaunch/containers/crash/files/top/etc/ready");
    assert!(poll(PATIENCE, || ready.exists().then_some(())).is_some());
    let record = record("crash");
    let pid = |field: &str| Pid::from_raw(record[field]["pid"].as_i64().unwrap().try_into().unwrap());
    kill(pid("launcher"), Signal::SIGKILL).unwrap();
    wait_until_gone(&[pid("launcher"), pid("init")]);
    let again = rlaunch(&["start", "-a", "crash"]);
    assert_eq!((again.status, &*again.stdout), (Some(0), "again\n"), "{again:?}");
    assert!(!is_alive(pid("daemon")));
    assert_eq!(printed(rlaunch(&["rm", "crash"])), "");
    tree.assert_empty();
}

#[test]
fn where_the_folder_is_no_place_for_it_what_is_written_goes_elsewhere() {
    let Some(tree) = Recorded::new() else { return };
    mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    let elsewhere = tree.beside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let outcome = finish(copy("away", &[], "echo x > /etc/count").env("TMPDIR", &elsewhere));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    let found: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(fs::read_to_string(found[0].join("top/etc/count")).unwrap(), "x\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&found[0]).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o700);
    // The next start, which looks for leftovers there, leaves it alone.
    let other = finish(copy("other", &["--rm"], "cat /etc/count").env("TMPDIR", &elsewhere));
    assert_eq!((other.status, &*other.stdout), (Some(1), ""), "{other:?}");
    assert_eq!(printed(rlaunch(&["rm", "away"])), "");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    umount2("/var/lib", MntFlags::MNT_DETACH).unwrap();
    // A copy that nobody keeps uses the folder, and leaves nothing there.
    let running =
        Running::start(Command::new(RLAUNCH).args(["--no-submounts", "sh", "-c", "echo ready; exec sleep 1000"]));
    assert_eq!(fs::read_dir("/var/lib/rlaunch").unwrap().count(), 1);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
    tree.assert_empty();
}

#[test]
fn the_folder_may_be_a_file_system_of_its_own_or_out_of_reach() {
    let Some(tree) = Recorded::new() else { return };
    fs::create_dir("/var/lib/rlaunch").unwrap();
    mount(Some("tmpfs"), "/var/lib/rlaunch", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    printed(finish(tree.rlaunch().args(["--name=here", "true"])));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata("/var/lib/rlaunch").unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "it was closed");
    assert_eq!(printed(rlaunch(&["rm", "here"])), "");
    printed(finish(tree.rlaunch().arg("true")));
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/var/lib/rlaunch", None::<&str>, remount, None::<&str>).unwrap();
    printed(finish(tree.rlaunch().arg("true")));
    refused(&finish(tree.rlaunch().args(["--name=here", "true"])), "say --rm, or name a directory");
    printed(finish(tree.rlaunch().args(["--rm", "--name=here", "true"])));
    umount2("/var/lib/rlaunch", MntFlags::MNT_DETACH).unwrap();
    printed(finish(tree.rlaunch().arg("true")));
    tree.assert_empty();
}
