//! A container on branches: the union is mounted only inside of it, its daemon serves from outside and goes with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::{finish, is_alive};
use nix::sys::signal::{Signal, kill};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Running, Tree, mounts, printed, wait_until_gone};

/// A root directory as the lowest branch, one with a file and a whiteout above, and an empty top.
struct Branches {
    tree: Tree,
}

impl Branches {
    fn new() -> Option<Branches> {
        let tree = Tree::new()?;
        fs::create_dir(tree.beside("top")).expect("prepare the branches");
        fs::create_dir_all(tree.beside("image/etc")).expect("prepare the branches");
        fs::write(tree.beside("image/etc/motd"), "from the image\n").expect("prepare the branches");
        fs::write(tree.path("etc/gone"), "gone").expect("prepare the branches");
        fs::write(tree.beside("image/etc/.wh.gone"), "").expect("prepare the branches");
        Some(Branches { tree })
    }

    fn top(&self, name: &str) -> PathBuf {
        self.tree.beside("top").join(name)
    }

    /// The command without its last word, the script.
    fn rlaunch(&self) -> Command {
        let mut command = Command::new(RLAUNCH);
        let path = |name| self.tree.beside(name).to_str().expect("prepare the branches").to_owned();
        let branches = format!("{}=rw:{}=ro+wh:{}=ro+wh", path("top"), path("image"), path("tree"));
        command.args(["--branches", &branches, "sh", "-c"]);
        command
    }
}

#[test]
fn the_union_is_the_root_and_the_top_takes_every_change() {
    let Some(branches) = Branches::new() else { return };
    let script = "cat /etc/motd; ls /etc; echo changed > /etc/motd; rm /etc/passwd; mkdir /made
        awk '$2 == \"/\" {print $3}' /proc/mounts; uname -n; pwd";
    let output = printed(finish(branches.rlaunch().arg(script)));
    assert_eq!(output, "from the image\nmotd\npasswd\nfuse.runionfs\ntop\n/\n");
    assert_eq!(fs::read_to_string(branches.top("etc/motd")).unwrap(), "changed\n");
    assert!(branches.top("etc/.wh.passwd").exists() && branches.top("made").is_dir());
    assert_eq!(fs::read_to_string(branches.tree.beside("image/etc/motd")).unwrap(), "from the image\n");
    // What was changed is there for the next container.
    assert_eq!(printed(finish(branches.rlaunch().arg("cat /etc/motd; ls /etc"))), "changed\nmotd\n");
}

#[test]
fn the_hosts_mount_table_never_shows_it_and_the_daemon_is_outside() {
    let Some(branches) = Branches::new() else { return };
    let before = mounts();
    let running = Running::start(branches.rlaunch().arg("echo ready; exec sleep 1000"));
    assert_eq!(mounts(), before);
    let (daemon, everybody) = (running.daemon(), running.children());
    assert_eq!(everybody.len(), 2, "pid 1 and the daemon");
    let namespace = |pid, kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["mnt", "pid", "uts", "ipc"] {
        assert_eq!(namespace(daemon, kind), namespace(running.pid(), kind), "{kind}: the daemon is outside");
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
    assert!(!is_alive(daemon));
    assert_eq!(mounts(), before);
}

#[test]
fn whoever_is_killed_the_daemon_goes_with_the_container() {
    let Some(branches) = Branches::new() else { return };
    for victim in ["launcher", "pid 1"] {
        let running = Running::start(branches.rlaunch().arg("echo ready; exec sleep 1000"));
        let daemon = running.daemon();
        let everybody = running.children();
        let init = everybody.iter().copied().find(|pid| *pid != daemon).unwrap();
        kill(if victim == "launcher" { running.pid() } else { init }, Signal::SIGKILL).unwrap();
        wait_until_gone(&everybody);
        if victim == "pid 1" {
            assert_eq!(running.wait().0, Some(137));
        }
    }
}

#[test]
fn the_daemon_holds_nothing_of_the_launchers() {
    let Some(branches) = Branches::new() else { return };
    let script = "exec 9< /etc/passwd; exec \"$@\"";
    let inner = branches.rlaunch();
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    let running = Running::start(command.arg("echo ready; exec sleep 1000"));
    let daemon = running.daemon();
    let entries = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap();
    let open: Vec<_> = entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
    let is = |word: &str| open.iter().filter(|path| path.to_str().unwrap().contains(word)).count();
    assert_eq!((is("/etc/passwd"), is("signalfd"), is("pipe:")), (0, 0, 0), "{open:?}");
    for stream in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{daemon}/fd/{stream}")).unwrap().to_str(), Some("/dev/null"));
    }
}

#[test]
fn without_a_writable_branch_the_root_is_read_only() {
    let Some(tree) = Tree::new() else { return };
    for name in ["proc", "sys", "dev"] {
        fs::create_dir(tree.path(name)).unwrap();
    }
    let mut list = tree.path("").into_os_string();
    list.push("=ro");
    let outcome = finish(Command::new(RLAUNCH).arg("--branches").arg(list).args([
        "sh",
        "-c",
        "echo x > /x; echo $?; echo y > /dev/shm/y",
    ]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "1\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert!(!tree.path("x").exists());
}

#[test]
fn branches_that_are_no_branches_are_refused_with_the_reason() {
    let Some(tree) = Tree::new() else { return };
    fs::write(tree.beside("file"), "").unwrap();
    symlink("nowhere", tree.beside("dangling")).unwrap();
    let path = |name: &str| tree.beside(name).to_str().unwrap().to_owned();
    for (list, reason) in [
        (path("missing"), "no such file or directory"),
        (path("file"), "not a directory"),
        (path("dangling"), "no such file or directory"),
        (format!("{}=rx", path("tree")), "cannot use the branches"),
        (String::new(), "cannot use the branches"),
    ] {
        let outcome = finish(Command::new(RLAUNCH).args(["--branches", &list, "--", "true"]));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{list}: {outcome:?}");
        assert!(outcome.stderr.starts_with("rlaunch: cannot "), "{list}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(reason), "{list}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{list}: {}", outcome.stderr);
    }
}
