//! A container on branches: the union is mounted only inside of it, its daemon serves from outside and goes with it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::mount::{finish, is_alive, poll};
use harness::snapshot::{Exactness, Snapshot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Running, Tree, mounts, printed, wait_until_gone};

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
        self.with(&[])
    }

    /// The same with options, `@` for the directory of the branches.
    fn with(&self, options: &[&str]) -> Command {
        let mut command = Command::new(RLAUNCH);
        let path =
            |name| self.tree.beside(name).to_str().expect("prepare the branches").trim_end_matches('/').to_owned();
        let branches = format!("{}=rw:{}=ro+wh:{}=ro+wh", path("top"), path("image"), path("tree"));
        command.args(["--branches", &branches]).args(options.iter().map(|word| word.replace('@', &path(""))));
        command.args(["sh", "-c"]);
        command
    }

    /// What the top holds, but for the work area: paths and the kinds of entries.
    fn on_top(&self) -> String {
        let script =
            "cd \"$1\" && find . -mindepth 1 -name .wh..wh.runionfs -prune -o -mindepth 1 -printf '%P %y\\n' | sort";
        printed(finish(Command::new("sh").args(["-c", script, "sh"]).arg(self.top(""))))
    }

    fn image(&self) -> Snapshot {
        Snapshot::take(&self.tree.beside("image"))
    }
}

#[test]
fn the_union_is_the_root_and_the_top_takes_every_change() {
    let Some(branches) = Branches::new() else { return };
    let script = "cat /etc/motd; ls /etc; echo changed > /etc/motd; rm /etc/passwd; mkdir /made
        awk '$2 == \"/\" {print $3}' /proc/mounts; uname -n; pwd";
    let output = printed(finish(branches.rlaunch().arg(script)));
    assert_eq!(output, "from the image\nhostname\nhosts\nmotd\nmtab\npasswd\nresolv.conf\nfuse.runionfs\ntop\n/\n");
    assert_eq!(fs::read_to_string(branches.top("etc/motd")).unwrap(), "changed\n");
    assert!(branches.top("etc/.wh.passwd").exists() && branches.top("made").is_dir());
    assert_eq!(fs::read_to_string(branches.tree.beside("image/etc/motd")).unwrap(), "from the image\n");
    // What was changed is there for the next container.
    assert_eq!(
        printed(finish(branches.rlaunch().arg("cat /etc/motd; ls -d /etc/m*"))),
        "changed\n/etc/motd\n/etc/mtab\n"
    );
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

#[test]
fn what_is_a_containers_own_lies_between_top_and_image() {
    let Some(branches) = Branches::new() else { return };
    let outside = branches.tree.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "of the host\n").unwrap();
    // Whatever an image has in the way is replaced, and never followed.
    symlink(outside.join("file"), branches.tree.beside("image/etc/resolv.conf")).unwrap();
    symlink(&outside, branches.tree.beside("image/dev")).unwrap();
    symlink("/etc/passwd", branches.tree.beside("image/etc/hostname")).unwrap();
    fs::create_dir(branches.tree.beside("image/etc/hosts")).unwrap();
    fs::write(branches.tree.beside("image/etc/mtab"), "old").unwrap();
    fs::set_permissions(branches.tree.beside("image/etc"), fs::Permissions::from_mode(0o750)).unwrap();
    harness::sandbox::run(Command::new("touch").args(["-d", "@12345"]).arg(branches.tree.beside("image/etc")));
    let before = branches.image();
    let script = "cat /etc/resolv.conf /etc/hosts /etc/hostname /run/host/container-manager; readlink /etc/mtab
        stat -c '%a %Y %F' /etc /etc/hosts; ls -d /dev/null /dev/pts /proc/self/fd/0 /sys/kernel
        echo added >> /etc/hosts; echo other > /etc/resolv.conf; chmod 600 /etc/hostname; tail -n 1 /etc/hosts";
    let output = printed(finish(branches.with(&["--dns=192.0.2.53", "--net=none"]).arg(script)));
    let mtime = output.lines().find(|line| line.ends_with("regular file")).unwrap();
    assert_eq!(
        output,
        format!(
            "nameserver 192.0.2.53\n127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 top\ntop\n\
             rlaunch\n/proc/mounts\n750 12345 directory\n{mtime}\n/dev/null\n/dev/pts\n/proc/self/fd/0\n/sys/kernel\n\
             added\n"
        )
    );
    assert_eq!(branches.on_top(), "", "writes went in place");
    before.assert_same(&branches.image(), Exactness::Equal, "the image has changed");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "of the host\n");
    // What is replaced or removed is so in the top, for this container alone.
    let script = "echo mine > /etc/x && mv /etc/x /etc/hosts && rm /etc/mtab && cat /etc/hosts";
    assert_eq!(printed(finish(branches.rlaunch().arg(script))), "mine\n");
    assert_eq!(branches.on_top(), "etc d\netc/.wh.mtab f\netc/hosts f\n");
    // There it stays, unless an option says otherwise.
    assert_eq!(printed(finish(branches.rlaunch().arg("cat /etc/hosts"))), "mine\n");
    let asked = branches.with(&["--add-host=web:192.0.2.7"]).arg("tail -n 1 /etc/hosts").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "192.0.2.7 web\n");
    assert_eq!(fs::read_to_string(branches.top("etc/hosts")).unwrap(), "mine\n");
}

#[test]
fn mount_points_are_made_in_the_containers_own_branch() {
    let Some(branches) = Branches::new() else { return };
    let data = branches.tree.beside("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "of the host\n").unwrap();
    fs::create_dir_all(branches.tree.beside("image/srv/here")).unwrap();
    fs::set_permissions(branches.tree.beside("image/srv"), fs::Permissions::from_mode(0o701)).unwrap();
    symlink("../missing/place", branches.tree.beside("image/srv/link")).unwrap();
    let before = branches.image();
    let options = [
        "-v=@/data:/srv/new/deep",
        "-v=@/data/file:/one",
        "-v=@/data:/srv/here",
        "-v=@/data:/srv/link/more",
        "--tmpfs=/cache",
        "-v=@/data:/cache/in",
    ];
    let script = "cat /srv/new/deep/file /one /srv/here/file /missing/place/more/file /cache/in/file; stat -c %a /srv
        echo new > /srv/new/deep/new";
    let line = "of the host\n";
    assert_eq!(printed(finish(branches.with(&options).arg(script))), format!("{line}{line}{line}{line}{line}701\n"));
    assert_eq!(branches.on_top(), "");
    before.assert_same(&branches.image(), Exactness::Equal, "the image has changed");
    assert!(data.join("new").exists());
    // A root that cannot be written has them as well.
    let mut list = branches.tree.path("").into_os_string();
    list.push("=ro");
    let mut command = Command::new(RLAUNCH);
    command.arg("--branches").arg(list).arg(format!("-v={}:/a/b", data.display()));
    let script = "cat /a/b/file; (echo x > /a/x) 2>&1; stat -c %a /; echo one.more >> /etc/hosts; tail -n 1 /etc/hosts";
    fs::set_permissions(branches.tree.path(""), fs::Permissions::from_mode(0o711)).unwrap();
    let output = printed(finish(command.args(["sh", "-c", script])));
    assert_eq!(output, "of the host\nsh: can't create /a/x: Read-only file system\n711\none.more\n");
    assert!(!branches.tree.path("a").exists());
}

#[test]
fn what_a_top_has_removed_is_made_in_it_where_something_is_mounted() {
    let Some(branches) = Branches::new() else { return };
    fs::create_dir_all(branches.tree.beside("image/srv")).unwrap();
    assert_eq!(printed(finish(branches.rlaunch().arg("rm -r /srv /etc && mkdir /etc && ls /etc"))), "");
    let options = ["-v=@/tree:/srv", "-v=@/tree:/etc/tree"];
    assert_eq!(
        printed(finish(branches.with(&options).arg("ls -d /srv/bin /etc/tree/bin"))),
        "/etc/tree/bin\n/srv/bin\n"
    );
    assert!(branches.top("srv").is_dir() && branches.top("etc/tree").is_dir());
}

#[test]
fn an_init_branch_of_the_callers_is_used_as_it_is() {
    let Some(branches) = Branches::new() else { return };
    let own = branches.tree.beside("own");
    fs::create_dir_all(own.join("etc")).unwrap();
    fs::write(own.join("etc/hosts"), "of the caller\n").unwrap();
    let list = format!(
        "{}=rw:{}=ro+wh+init:{}=ro",
        branches.top("").display(),
        own.display(),
        branches.tree.path("").display()
    );
    let script = "cat /etc/hosts; echo changed > /etc/motd; ls /etc";
    let output = printed(finish(Command::new(RLAUNCH).args(["--branches", &list, "--uts=host", "sh", "-c", script])));
    // Its file is there, so the container's own is laid over it, as over any root's.
    assert!(output.ends_with("gone\nhosts\nmotd\npasswd\n"), "{output}");
    assert_eq!(fs::read_to_string(own.join("etc/hosts")).unwrap(), "of the caller\n");
}

/// The daemon has taken a request, never answers it, and somebody else has its device open as well: killing it ends nothing.
#[test]
fn a_process_that_waits_for_its_union_for_ever_is_stopped_all_the_same() {
    let Some(branches) = Branches::new() else { return };
    let Some(strace) = tools::find("strace") else { return };
    let name = format!("waits-{}", std::process::id());
    let misses = "echo ready; n=0; while :; do n=$((n + 1)); test -e /miss$n; done";
    let running = Running::start(branches.with(&["--rm", "--name", &name]).arg(misses));
    let (init, daemon) = (running.init(), running.daemon());
    let _device = device_of(daemon);
    let never_answers = Command::new(strace)
        .args(["-f", "-e", "trace=writev", "-e", "inject=writev:delay_enter=600000000", "-p"])
        .arg(daemon.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("hold the daemon up");
    let never_answers = Ended(never_answers);
    assert!(poll(PATIENCE, || stands_still(init).then_some(())).is_some(), "the command does not wait");
    let stopped = finish(Command::new(RLAUNCH).args(["stop", "--time=0", &name]));
    drop(never_answers);
    assert_eq!((stopped.status, &*stopped.stderr), (Some(0), ""), "{stopped:?}");
    wait_until_gone(&[init, daemon]);
}

/// A copy of the device that a daemon has open.
fn device_of(daemon: Pid) -> OwnedFd {
    let entries = fs::read_dir(format!("/proc/{daemon}/fd")).expect("list the daemon's descriptors");
    let numbers = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a number"));
    let is_device = |number: &String| {
        fs::read_link(format!("/proc/{daemon}/fd/{number}")).is_ok_and(|to| to == Path::new("/dev/fuse"))
    };
    let number = numbers.filter(is_device).find_map(|number| number.parse().ok()).expect("the device is open");
    let pid = rustix::process::Pid::from_raw(daemon.as_raw()).expect("a process");
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("open the daemon");
    rustix::process::pidfd_getfd(&process, number, rustix::process::PidfdGetfdFlags::empty()).expect("copy its device")
}

/// Whether the only child of a process, which has much to do, does nothing for a while.
fn stands_still(init: Pid) -> bool {
    let switches = || {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        let status = fs::read_to_string(format!("/proc/{}/status", children.trim())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).map(str::to_owned)
    };
    let before = switches();
    std::thread::sleep(Duration::from_millis(300));
    before.is_some() && before == switches()
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}
