//! Further commands in a container: who they are and what they may do is what was said at its start.

use std::fs;
use std::process::Command;

use harness::mount::{Outcome, finish};
use nix::libc;

#[path = "support/calls.rs"]
mod calls;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Recorded, Running, Tree, printed};

/// A tree with some users and groups, and a place for records that no other test sees.
fn tree() -> Option<Recorded> {
    let tree = Recorded::new()?;
    let users = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/sh\n";
    fs::write(tree.path("etc/passwd"), users).expect("write passwd");
    fs::write(tree.path("etc/group"), "root:x:0:\nweb:x:34:\ndisk:x:6:web\nvideo:x:44:\n").expect("write group");
    Some(tree)
}

#[track_caller]
fn start(tree: &Tree, name: &str, options: &[&str]) -> Running {
    let mut command = tree.rlaunch();
    Running::start(command.args(["--name", name]).args(options).args(["sh", "-c", "echo ready; exec sleep 1000"]))
}

fn exec(options: &[&str], script: &str) -> Outcome {
    finish(Command::new(RLAUNCH).env_remove("TERM").arg("exec").args(options).args(["sh", "-c", script]))
}

#[track_caller]
fn print(options: &[&str], script: &str) -> String {
    printed(exec(options, script))
}

const WHO: &str = "echo $(id -u):$(id -g) $(id -G) $HOME";

#[test]
fn users_and_groups_are_the_containers_own() {
    let Some(tree) = tree() else { return };
    let _running = start(&tree, "exec-root", &[]);
    for (user, expected) in [
        ("web", "33:34 34 6 /srv/web\n"),
        ("33", "33:34 34 6 /srv/web\n"),
        ("web:video", "33:44 44 /srv/web\n"),
        ("1000:7", "1000:7 7 /\n"),
        ("root", "0:0 0 /root\n"),
    ] {
        assert_eq!(print(&["--user", user, "exec-root"], WHO), expected, "{user}");
    }
    assert_eq!(print(&["exec-root"], WHO), "0:0 0 /root\n");
    assert_eq!(print(&["-u", "web", "-e", "HOME=/mine", "exec-root"], WHO), "33:34 34 6 /mine\n");
    let capabilities = "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f 2";
    assert_eq!(print(&["-u", "web", "exec-root"], capabilities), "0000000000000000\n".repeat(4));
    let outcome = exec(&["-u", "nobody", "exec-root"], "echo ran");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot find nobody in /etc/passwd"), "{outcome:?}");
    // A link in the container leads nowhere outside of it.
    fs::remove_file(tree.path("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/proc/1/root/etc/shadow", tree.path("etc/passwd")).unwrap();
    assert_eq!(exec(&["-u", "daemon", "exec-root"], "echo ran").stdout, "");
}

#[test]
fn it_runs_as_the_containers_command_does() {
    let Some(tree) = tree() else { return };
    let options = ["--user=web", "--group-add=video", "--cap-add=NET_ADMIN", "-e", "A=1", "-w", "/bin"];
    let _running = start(&tree, "exec-web", &options);
    assert_eq!(print(&["exec-web"], &format!("{WHO}; pwd; echo $A")), "33:34 34 6 44 /srv/web\n/bin\n1\n");
    assert_eq!(print(&["-e", "A=2", "-w", "/etc", "exec-web"], "pwd; echo $A"), "/etc\n2\n");
    let bits = "grep -E '^Cap(Prm|Amb)' /proc/self/status | cut -f 2";
    assert_eq!(print(&["exec-web"], bits), "0000000000001000\n".repeat(2), "what was added by name");
    let file = tree.beside("variables");
    fs::write(&file, "# one\nB=3\n").unwrap();
    let option = format!("--env-file={}", file.display());
    assert_eq!(print(&[&option, "exec-web"], "echo $B$A"), "31\n");
    let outcome = exec(&["-w", "/missing", "exec-web"], "echo ran");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot enter the working directory /missing"), "{outcome:?}");
}

#[test]
fn its_files_are_made_as_those_of_the_containers_command() {
    let Some(tree) = tree() else { return };
    for (options, name, expected) in [(&[][..], "exec-usual", "0022\n"), (&["--umask=0007"], "exec-mask", "0007\n")] {
        let _running = start(&tree, name, options);
        assert_eq!(print(&[name], "umask"), expected);
        assert_eq!(print(&["--umask", "77", name], "umask"), "0077\n");
    }
}

#[test]
fn a_filter_of_the_users_holds_for_further_commands() {
    let Some(tree) = tree() else { return };
    let Some(()) = calls::install(&tree.path("")) else { return };
    let profile = tree.beside("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["getpriority"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    fs::write(&profile, text).unwrap();
    let option = format!("--security-opt=seccomp={}", profile.display());
    for (name, more) in [("exec-own", "--user=0"), ("exec-own-set-id", "--security-opt=no-new-privileges=false")] {
        let _running = start(&tree, name, &[&option, more]);
        // The profile is what it was at the start.
        fs::write(&profile, "nonsense").unwrap();
        let outcome = exec(&["-u", "web", name], "mkdir /tmp; echo here");
        assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "here\n"), "{outcome:?}");
        assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
        let script = format!("call {} 0 0; echo $?", libc::SYS_getpriority);
        assert_eq!(exec(&[name], &script).stdout, "159\n", "SIGSYS");
        fs::write(&profile, text).unwrap();
    }
    let _running = start(&tree, "exec-unconfined", &["--security-opt=seccomp=unconfined"]);
    assert_eq!(print(&["exec-unconfined"], "grep ^Seccomp: /proc/self/status | cut -f 2"), "0\n");
}

#[test]
fn limits_and_privileges_are_those_of_the_start() {
    let Some(tree) = tree() else { return };
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c 0; ulimit -n 900; exec \"$@\"", "sh"]);
    let inner = tree.rlaunch();
    command.arg(inner.get_program()).args(inner.get_args());
    command.args(["--name=exec-limits", "--ulimit=nproc=777:888", "--oom-score-adj=321"]);
    command.args(["--security-opt=no-new-privileges=false", "--cap-drop=ALL", "--cap-add=CHOWN"]);
    let _running = Running::start(command.args(["sh", "-c", "echo ready; exec sleep 1000"]));
    let script = "ulimit -c; ulimit -n; cat /proc/self/oom_score_adj; grep 'Max processes' /proc/self/limits; \
                  grep -E '^(NoNewPrivs|CapEff|CapBnd):' /proc/self/status | cut -f 2";
    let lines = print(&["exec-limits"], script);
    let words: Vec<_> = lines.split_whitespace().collect();
    let expected = "0 900 321 Max processes 777 888 processes 0000000000000001 0000000000000001 0";
    assert_eq!(words.join(" "), expected);
    // Also one that may not change users itself becomes another on the way in.
    assert_eq!(print(&["-u", "web", "exec-limits"], "id -u"), "33\n");
}

#[test]
fn a_container_without_a_dev_null_can_be_entered() {
    let Some(tree) = tree() else { return };
    let _running = start(&tree, "exec-null", &[]);
    for change in ["rm /dev/null", "mkdir /dev/null", "rmdir /dev/null; mkfifo /dev/null"] {
        assert_eq!(print(&["exec-null"], &format!("{change}; echo changed")), "changed\n");
        assert_eq!(print(&["exec-null"], "echo entered"), "entered\n", "{change}");
    }
}
