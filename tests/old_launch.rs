//! Containers as on older kernels: without the system calls that came later, or behind a filter that does not know them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use harness::mount::{Outcome, finish, poll};
use harness::old_kernel::{KERNELS, Kernel, OLD_FILTER, pretend};
use harness::rootless::{Way, again, inside};
use nix::mount::{MsFlags, mount};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use images::Images;
use launch::{PATIENCE, RLAUNCH, Recorded, Running, Tree};

#[track_caller]
fn rlaunch(words: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).args(words))
}

fn with(tree: &Tree, options: &[&str], script: &str) -> Outcome {
    let here = tree.beside("").to_str().unwrap().trim_end_matches('/').to_owned();
    let mut command = tree.rlaunch();
    command.args(options.iter().map(|option| option.replace('@', &here))).args(["sh", "-c", script]);
    finish(&mut command)
}

/// What is a container's own, and what it is kept from.
fn a_root(tree: &Tree) {
    let script = "id -u; echo $$; hostname; ls /dev/pts/ptmx; echo x > /dev/null; cat /proc/1/comm
        mount -t tmpfs t /mnt 2>/dev/null || echo refused; (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo refused
        ls /proc/self/fd; test -r /proc/kcore && test -s /proc/kcore || echo masked; exit 3";
    let outcome = tree.sh(script);
    let text = "0\n2\ntree\n/dev/pts/ptmx\nrlaunch\nrefused\nrefused\n0\n1\n2\n3\nmasked\n";
    assert_eq!((outcome.status, &*outcome.stdout), (Some(3), text), "{outcome:?}");
    assert_eq!(shown(with(tree, &["--read-only", "--tmpfs=/t"], "touch /x 2>/dev/null || touch /t/x && ls /t")), "x\n");
}

/// One with another file system in it, and by way of a link.
fn volumes(tree: &Tree) {
    fs::create_dir_all(tree.beside("data/sub/deep")).unwrap();
    for place in ["data/sub", "data/sub/deep"] {
        mount(Some("tmpfs"), &tree.beside(place), Some("tmpfs"), MsFlags::MS_NOEXEC, None::<&str>).unwrap();
        fs::create_dir_all(tree.beside("data/sub/deep")).unwrap();
    }
    fs::write(tree.beside("data/sub/deep/file"), "deep\n").unwrap();
    fs::create_dir(tree.path("there")).unwrap();
    symlink("../there", tree.path("etc/link")).unwrap();
    let script = "for f in /d/x /d/sub/x /d/sub/deep/x; do (echo x > $f) 2>/dev/null || echo refused; done
        cat /d/sub/deep/file /there/volume/sub/deep/file; echo new > /there/volume/sub/new
        grep -c ' /d[ /]' /proc/self/mountinfo";
    let outcome = with(tree, &["-v=@/data:/d:ro,nosuid,nodev", "-v=@/data:/etc/link/volume"], script);
    assert_eq!(shown(outcome), "refused\nrefused\nrefused\ndeep\ndeep\n3\n");
    assert_eq!(fs::read_to_string(tree.beside("data/sub/new")).unwrap(), "new\n");
    // a link never leads out of the root
    symlink("/../../../../../../../../../..", tree.path("out")).unwrap();
    assert_eq!(shown(with(tree, &["-v=@/data:/out/made/here"], "ls /made/here")), "sub\n");
}

fn branches(tree: &Tree) {
    for place in ["top", "image/etc"] {
        fs::create_dir_all(tree.beside(place)).unwrap();
    }
    fs::write(tree.beside("image/etc/motd"), "low\n").unwrap();
    let path = |name: &str| tree.beside(name).to_str().unwrap().trim_end_matches('/').to_owned();
    let branches = format!("{}=rw:{}=ro+wh:{}=ro+wh", path("top"), path("image"), path("tree"));
    let script = "echo up >> /etc/motd; cat /etc/motd; rm /etc/passwd; ls /etc/passwd 2>/dev/null || echo gone; mv /etc/motd /moved";
    assert_eq!(shown(rlaunch(&["--branches", &branches, "sh", "-c", script])), "low\nup\ngone\n");
    assert_eq!(fs::read_to_string(tree.beside("top/moved")).unwrap(), "low\nup\n");
}

/// What a container printed. Before Linux 4.6 it sees the names of the cgroups around it, and is told so.
#[track_caller]
fn shown(outcome: Outcome) -> String {
    let expected = |line: &str| line.contains("warning: cannot separate the container's cgroups from the host's");
    let others = outcome.stderr.lines().filter(|line| !expected(line)).count();
    assert_eq!((outcome.status, others), (Some(0), 0), "{outcome:?}");
    outcome.stdout
}

/// From its start in the background to its end.
fn a_life(tree: &Tree, kernel: Kernel) {
    let script = "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let limits = ["--memory=64m", "--pids-limit=50", "--cpus=0.5"];
    let outcome = finish(tree.rlaunch().args(["-d", "--name=old"]).args(limits).args(["sh", "-c", script]));
    assert_eq!(shown(outcome), "old\n");
    assert!(poll(PATIENCE, || rlaunch(&["logs", "old"]).stdout.ends_with("ready\n").then_some(())).is_some());
    assert!(shown(rlaunch(&["ps"])).contains(" runs "));
    let counted = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null; cat /proc/1/comm; echo $0";
    let text = shown(rlaunch(&["exec", "old", "sh", "-c", counted]));
    // without namespaces for them, they are not where they are looked for
    let limit = if kernel.separates_cgroups() { "50\n" } else { "" };
    assert_eq!(text, format!("{limit}rlaunch\nsh\n"));
    assert_eq!(shown(rlaunch(&["pause", "old"])), "");
    assert_eq!(rlaunch(&["exec", "old", "true"]).status, Some(125));
    assert!(shown(rlaunch(&["ps"])).contains("paused"));
    assert_eq!(shown(rlaunch(&["resume", "old"])), "");
    let mut waits = Running::begin(Command::new(RLAUNCH).args(["logs", "--follow", "--tail=1", "old"]));
    assert_eq!(waits.line(), "ready");
    assert_eq!(shown(rlaunch(&["stop", "old"])), "");
    let (status, text) = waits.wait();
    assert!(status == Some(0) && text.ends_with("asked\n"), "{text}");
    assert_eq!(rlaunch(&["wait", "old"]).status, Some(5));
    assert_eq!(shown(rlaunch(&["rm", "old"])), "");
}

fn works(kernel: Kernel) {
    let Some(recorded) = Recorded::new() else { return };
    pretend(kernel);
    a_root(&recorded);
    volumes(&recorded);
    branches(&recorded);
    a_life(&recorded, kernel);
    recorded.assert_empty();
}

fn images_work(kernel: Kernel) {
    let Some(images) = Images::new() else { return };
    pretend(kernel);
    let second = images.layer(&[("srv/a", "upper"), ("srv/.wh.b", ""), ("bin/.wh.yes", "")]);
    images.docker("stack", r#"{"Cmd":["sh"]}"#, &[images.base(), images.layer(&[("srv/b", "lower")]), second]);
    images.print(&["import", "stack"]);
    let script = "ls /srv; echo new > /srv/a; cat /srv/a; ls /bin/yes 2> /dev/null || echo hidden";
    let outcome = rlaunch(&["run", "--image", "stack:1", "sh", "-c", script]);
    assert_eq!(shown(outcome), "a\nnew\nhidden\n");
    images.print(&["rm", "stack:1"]);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
}

macro_rules! works {
    ($($name:ident, $images:ident: $kernel:expr;)*) => { $(
        #[test] fn $name() { works($kernel); }
        #[test] fn $images() { images_work($kernel); }
    )* };
}

works! {
    containers_work_on_linux_3_10, images_work_on_linux_3_10: KERNELS[0];
    containers_work_on_linux_4_4, images_work_on_linux_4_4: KERNELS[1];
    containers_work_on_linux_4_14, images_work_on_linux_4_14: KERNELS[2];
    containers_work_on_linux_4_19, images_work_on_linux_4_19: KERNELS[3];
    containers_work_on_linux_5_4, images_work_on_linux_5_4: KERNELS[4];
    containers_work_on_linux_5_10, images_work_on_linux_5_10: KERNELS[5];
    containers_work_behind_an_old_filter, images_work_behind_an_old_filter: OLD_FILTER;
}

/// The kernels on which users may mount FUSE themselves, and the filter.
fn as_a_user(kernel: Kernel, test: &str) {
    if inside().is_none() {
        pretend(kernel);
    }
    if !again(Way::Fusermount, test) {
        return;
    }
    let tree = Tree::new().expect("it can run");
    assert_eq!(tree.print("id -u; chown 5:7 /bin/busybox; stat -c %u:%g /bin/busybox"), "0\n5:7\n");
    fs::create_dir(tree.beside("top")).unwrap();
    let branches = format!("{}=rw:{}=ro+wh", tree.beside("top").display(), tree.path("").display());
    let script = "echo new > /new; rm /etc/passwd; chown 3:4 /new; stat -c %u:%g /new; ls /etc";
    let outcome = rlaunch(&["--branches", &branches, "sh", "-c", script]);
    assert_eq!(
        (outcome.status, &*outcome.stdout),
        (Some(0), "3:4\nhostname\nhosts\nmtab\nresolv.conf\n"),
        "{outcome:?}"
    );
}

#[test]
fn users_have_containers_on_linux_4_19() {
    as_a_user(KERNELS[3], "users_have_containers_on_linux_4_19");
}

#[test]
fn users_have_containers_on_linux_5_10() {
    as_a_user(KERNELS[5], "users_have_containers_on_linux_5_10");
}

#[test]
fn users_have_containers_behind_an_old_filter() {
    as_a_user(OLD_FILTER, "users_have_containers_behind_an_old_filter");
}

#[test]
fn the_doctor_is_here_as_well() {
    let Some(_recorded) = Recorded::new() else { return };
    let report: serde_json::Value = serde_json::from_str(&shown(rlaunch(&["doctor", "--json"]))).unwrap();
    assert!(report["unions"] == true && report["rows"].as_array().unwrap().iter().any(|row| row["feature"] == "pasta"));
    assert!(shown(rlaunch(&["doctor"])).ends_with("This user can mount unions here.\n"));
}
