//! Limits of an ordinary user: when systemd-run(1) is asked for a cgroup, and what it is told. It is a script here that notes
//! its words and runs the command, without a cgroup: what comes of a real one is tested where there is v2 alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{Way, again, inside};
use harness::sandbox::{self, Sandbox};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Tree, mounts, sh};

/// Hides the hierarchies of v1 from what this thread starts, so that limits are v2's business; `None` where the test is
/// skipped.
fn hide_v1() -> Option<Sandbox> {
    let sandbox = sandbox::enter()?;
    let table = mounts();
    if !table.contains(" - cgroup2 ") {
        sandbox::skip("it needs a mounted cgroup2");
        return None;
    }
    for line in table.lines().filter(|line| line.contains(" - cgroup ")) {
        sh(&format!("umount -l {}", line.split(' ').nth(4).expect("a mount point")));
    }
    Some(sandbox)
}

/// A user with a service manager and a systemd-run.
struct User {
    tree: Tree,
    path: String,
    runtime: PathBuf,
    _manager: UnixListener,
}

impl User {
    fn new() -> User {
        let tree = Tree::new().expect("it can run");
        let (tools, runtime) = (tree.beside("tools"), tree.beside("runtime"));
        fs::create_dir_all(&tools).expect("make a directory");
        fs::create_dir_all(runtime.join("systemd")).expect("make a directory");
        let manager = UnixListener::bind(runtime.join("systemd/private")).expect("listen");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {0}\nwhile [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"\n",
            tree.beside("told").display()
        );
        fs::write(tools.join("systemd-run"), script).expect("write the script");
        fs::set_permissions(tools.join("systemd-run"), fs::Permissions::from_mode(0o755)).expect("chmod");
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a path"));
        User { tree, path, runtime, _manager: manager }
    }

    /// Runs a container, and says what systemd-run was told, line by line.
    fn run(&self, options: &[&str]) -> (Outcome, String) {
        self.run_with(options, &self.path, &self.runtime.display().to_string())
    }

    fn run_with(&self, options: &[&str], path: &str, runtime: &str) -> (Outcome, String) {
        let told = self.tree.beside("told");
        fs::write(&told, "").expect("empty the notes");
        let mut command = Command::new(RLAUNCH);
        command.args(["run", "--rootfs"]).arg(self.tree.path("")).args(options);
        let outcome = finish(
            command
                .args(["sh", "-c", "env | grep RLAUNCH; echo ran"])
                .env("PATH", path)
                .env("XDG_RUNTIME_DIR", runtime),
        );
        (outcome, fs::read_to_string(&told).expect("read the notes"))
    }
}

#[test]
fn a_user_whose_limits_need_a_cgroup_is_given_one_by_systemd_run_once() {
    const THIS: &str = "a_user_whose_limits_need_a_cgroup_is_given_one_by_systemd_run_once";
    let _hidden = match inside() {
        Some(_) => None,
        None => match hide_v1() {
            None => return,
            hidden => hidden,
        },
    };
    if !again(Way::Fusermount, THIS) {
        return;
    }
    let user = User::new();
    // This one has given no cgroup, and is not asked once more.
    let (outcome, told) = user.run(&["--pids-limit=50", "--best-effort-limits"]);
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "ran\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("warning: cannot apply --pids-limit"), "{outcome:?}");
    let root = user.tree.path("").display().to_string();
    let words =
        format!("run --rootfs {root} --pids-limit=50 --best-effort-limits sh -c env | grep RLAUNCH; echo ran\n");
    assert_eq!(told, format!("--user --scope --quiet --collect -p Delegate=yes -- {RLAUNCH} {words}"));
    let (outcome, told) = user.run(&["--memory=64m"]);
    assert_eq!((outcome.status, told.lines().count()), (Some(125), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot apply --memory"), "{outcome:?}");
    // Nothing to ask it for; nobody who would answer; no such program.
    let (outcome, told) = user.run(&[]);
    assert_eq!((outcome.status, &*told), (Some(0), ""), "{outcome:?}");
    let (empty, here) = (user.tree.beside("empty"), user.runtime.display().to_string());
    fs::create_dir(&empty).unwrap();
    for (path, runtime) in [(&*user.path, &*empty.display().to_string()), ("/usr/lib", &here)] {
        let (outcome, told) = user.run_with(&["--memory=64m"], path, runtime);
        assert_eq!((outcome.status, &*told), (Some(125), ""), "{outcome:?}");
        assert!(outcome.stderr.contains("cannot apply --memory"), "{outcome:?}");
    }
}

#[test]
fn where_v1_has_the_controllers_systemd_run_could_not_help() {
    const THIS: &str = "where_v1_has_the_controllers_systemd_run_could_not_help";
    if !again(Way::Fusermount, THIS) {
        return;
    }
    if !mounts().lines().any(|line| line.contains(" - cgroup ") && line.ends_with("memory")) {
        eprintln!("nothing to see: v1 does not have the memory controller here");
        return;
    }
    let user = User::new();
    let (outcome, told) = user.run(&["--memory=64m"]);
    assert_eq!((outcome.status, &*told), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("on v1 limits are for root"), "{outcome:?}");
}
