//! Root on v2: cgroups that hold processes, and a root file system that cannot be exchanged.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use harness::mount::finish;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{major, minor};

use crate::cgroups::Group;
use crate::launch::{RLAUNCH, Running, Tree, printed, sh};
use crate::v2::{LEAF, ROOT, Subtree, own};

const STAY: &str = "echo ready; while :; do sleep 0.05; done";

fn with(tree: &Tree, options: &[&str], script: &str) -> Command {
    let mut command = tree.rlaunch();
    command.args(options).args(["sh", "-c", script]);
    command
}

/// As in a container of another engine: the uppermost cgroup that can be seen is not the uppermost of all.
#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn processes_in_the_uppermost_cgroup_make_place_for_containers() {
    let Some(tree) = Tree::new() else { return };
    let subtree = Subtree::enter("engine", "+cpu +memory +pids");
    // The namespaces of this thread go with it.
    std::thread::scope(|scope| scope.spawn(|| limit_in_the_uppermost_cgroup(&tree)).join().expect("it holds"));
    drop(subtree);
}

fn limit_in_the_uppermost_cgroup(tree: &Tree) {
    unshare(CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS).expect("unshare");
    sh("umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    // Nobody has to go where nothing is limited.
    assert_eq!(tree.print("echo started"), "started\n");
    assert_eq!(own(), Path::new(ROOT));
    for _ in 0..2 {
        let running = Running::start(&mut with(tree, &["-m", "64m", "--pids-limit", "30"], STAY));
        assert_eq!(own(), Path::new(ROOT).join(LEAF), "it was moved once");
        let group = Group::of(running.init(), "", "memory").expect("it is on v2");
        assert_eq!(group.path.parent(), Some(Path::new("/sys/fs/cgroup/rlaunch")));
        assert_eq!((&*group.read("", "memory.max"), &*group.read("", "pids.max")), ("67108864", "30"));
    }
}

#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn processes_of_others_stay_where_they_are_and_what_helps_is_named() {
    let Some(tree) = Tree::new() else { return };
    let subtree = Subtree::enter("busy", "+memory +pids");
    let parent = format!("/{}", subtree.path.strip_prefix(ROOT).unwrap().display());
    let options = ["--cgroup-parent", &parent, "-m", "64m"];
    let outcome = finish(&mut with(&tree, &options, "echo started"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    for word in ["cannot apply --memory", subtree.path.to_str().unwrap(), "processes live in it", "--cgroup-parent"] {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
    assert_eq!(own(), subtree.path);
    let outcome = finish(&mut with(&tree, &[&["--best-effort-limits"], &options[..]].concat(), "echo started"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "started\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("going on without it"), "{outcome:?}");
    // Once they have gone to a cgroup below, as it says, there is room.
    let below = subtree.path.join("below");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    assert_eq!(printed(finish(&mut with(&tree, &options, "cat /sys/fs/cgroup/memory.max"))), "67108864\n");
}

/// v2 has no file for that, but asks a program of ours.
#[test]
#[ignore = "it needs v2 alone: containers_on_v2_alone runs it"]
fn devices_are_opened_as_they_were_given() {
    let Some(tree) = Tree::new() else { return };
    let number = fs::metadata("/dev/vda").expect("the machine has a disk").rdev();
    let node = format!("b {} {}", major(number), minor(number));
    let look = format!(
        "mknod /disk-$$ {node} && head -c 1 /disk-$$ | wc -c; mknod /fuse-$$ c 10 229 && cat /fuse-$$
         for device in null zero full random urandom tty ptmx; do stat -c %t /dev/$device > /dev/null || echo $device; done
         head -c 1 /dev/zero | wc -c; head -c 1 /dev/urandom > /dev/null && echo x > /dev/null && echo written"
    );
    let outcome = finish(&mut with(&tree, &[], &look));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "0\n1\nwritten\n"), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
    for (access, expected) in [("r", "read\n"), ("w", "written\n"), ("rw", "read\nwritten\n"), ("m", "")] {
        let device = format!("/dev/vda:/dev/given:{access}");
        let script =
            "head -c 1 /dev/given | grep -q . && echo read; (: >> /dev/given) && echo written; mknod /new b 1 1";
        let outcome = finish(with(&tree, &["--device", &device], script).arg(access));
        assert_eq!(outcome.stdout, expected, "{access}: {outcome:?}");
        fs::remove_file(tree.path("new")).expect("a node can be made, as it cannot be opened");
    }
    // Who runs in it already is asked as well.
    let running = Running::start(&mut with(&tree, &["--name", "devices"], STAY));
    let outcome = finish(Command::new(RLAUNCH).args(["exec", "devices", "sh", "-c", &look]));
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
    drop(running);
}

/// The root of this machine is that of an initramfs, which pivot_root(2) does not take. The container's covers it.
#[test]
#[ignore = "it needs an initramfs: containers_on_v2_alone runs it"]
fn a_root_that_covers_that_of_an_initramfs_holds_like_another() {
    let Some(tree) = Tree::new() else { return };
    let script =
        "ls /; echo --; ls /../../..; echo --; cd ..; pwd; echo --; cat /proc/1/mountinfo | cut -d ' ' -f 5 | sort";
    let output = tree.print(script);
    let [root, above, directory, mounts] = output.split("--\n").collect::<Vec<_>>()[..] else { panic!("{output}") };
    assert_eq!((root, directory), (above, "/\n"));
    assert!(!root.contains("init") && !root.contains("script"), "{root}");
    assert!(mounts.starts_with("/\n/dev\n") && !mounts.contains("disk"), "{mounts}");
    // The machine's own /proc, which nothing masks, would let this one be mounted.
    let script = "unshare -U -r -m -p -f mount -t proc proc /proc";
    let outcome = finish(&mut with(&tree, &["--security-opt", "seccomp=unconfined"], script));
    assert!(outcome.status != Some(0) && outcome.stderr.contains("permission denied"), "{outcome:?}");
}
