//! The root of a container: what it shows, what it hides, and that none of it reaches the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use harness::mount::finish;
use nix::mount::{MsFlags, mount};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Running, Tree, mounts};

#[test]
fn only_the_tree_is_there_with_fresh_kernel_interfaces() {
    let Some(tree) = Tree::new() else { return };
    // Which control groups there are is the machine's to say: see `launch_limits`.
    let output = tree.print("awk '$2 !~ \"^/sys/fs/cgroup\" {print $2, $3}' /proc/mounts");
    let lines: Vec<_> = output.lines().collect();
    assert!(lines[0].starts_with("/ "), "{output}");
    assert_eq!(
        lines[1..7],
        ["/proc proc", "/sys sysfs", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs", "/dev/mqueue mqueue",]
    );
    // What hides and protects the kernel's files.
    assert!(lines[7..].iter().all(|line| line.starts_with("/proc/") || line.starts_with("/sys/")), "{output}");
    assert_eq!(tree.print("ls /"), "bin\ndev\netc\nproc\nsys\n");
}

#[test]
fn devices_are_the_usual_ones_and_work() {
    let Some(tree) = Tree::new() else { return };
    let output = tree.print("cd /dev; stat -c '%n %F %t:%T %a' null zero full random urandom tty");
    assert_eq!(
        output,
        "null character special file 1:3 666\nzero character special file 1:5 666\nfull character special file 1:7 666\n\
         random character special file 1:8 666\nurandom character special file 1:9 666\n\
         tty character special file 5:0 666\n"
    );
    assert_eq!(tree.print("head -c 3 /dev/zero | od -An -tx1; head -c 9 /dev/urandom | wc -c"), " 00 00 00\n9\n");
    assert_eq!(tree.print("echo to-stdout > /dev/stdout; ls /dev/fd/0"), "to-stdout\n/dev/fd/0\n");
    assert_eq!(tree.print("readlink /dev/ptmx; stat -c %a /dev/shm /dev"), "pts/ptmx\n1777\n755\n");
}

#[test]
fn sys_is_read_only_and_proc_is_the_containers_own() {
    let Some(tree) = Tree::new() else { return };
    let outcome = tree.sh("echo 1 > /sys/kernel/profiling");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert_eq!(tree.print("ls /proc | grep -c '^[0-9]*$'"), "4\n", "init, sh, ls and grep");
}

#[test]
fn the_host_name_is_the_containers_own() {
    let Some(tree) = Tree::new() else { return };
    let before = nix::unistd::gethostname().unwrap();
    let script = "hostname; hostname elsewhere; hostname";
    let outcome = finish(tree.rlaunch().args(["--cap-add=SYS_ADMIN", "sh", "-c", script]));
    assert_eq!(launch::printed(outcome), "tree\nelsewhere\n");
    assert_eq!(nix::unistd::gethostname().unwrap(), before);
}

#[test]
fn the_hosts_mount_table_stays_the_same_even_where_mounts_are_shared() {
    let Some(tree) = Tree::new() else { return };
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>).unwrap();
    let before = mounts();
    let script = "mount -t tmpfs tmpfs /etc && mount --bind /bin /sys/fs && echo ready && read _ < /dev/ptmx";
    let running = Running::start(tree.rlaunch().args(["--cap-add=SYS_ADMIN", "sh", "-c", script]));
    assert_eq!(mounts(), before, "while it runs");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait();
    assert_eq!(mounts(), before, "after it has ended");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

#[test]
fn the_old_root_cannot_be_reached() {
    let Some(tree) = Tree::new() else { return };
    fs::write(tree.beside("secret"), "host").unwrap();
    assert_eq!(tree.print("ls -d /../secret /../../secret /proc/1/root/../secret 2>/dev/null; cd ..; pwd"), "/\n");
    assert_eq!(tree.print("awk '$5 !~ \"^/(dev|proc|sys)\"' /proc/self/mountinfo | wc -l"), "1\n");
    // The oldest way out: a chroot does not move the working directory, so that lies outside of it.
    assert_eq!(tree.print("mkdir /jail; cp /bin/busybox /jail; chroot /jail /busybox ls /"), "busybox\n");
}

#[test]
fn mounts_below_the_tree_are_part_of_it() {
    let Some(tree) = Tree::new() else { return };
    fs::create_dir(tree.path("data")).unwrap();
    mount(Some("tmpfs"), &tree.path("data"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(tree.path("data/file"), "below").unwrap();
    assert_eq!(tree.print("cat /data/file; echo new > /data/new"), "below");
    assert_eq!(fs::read_to_string(tree.path("data/new")).unwrap(), "new\n");
}

/// CVE-2026-41579 and CVE-2026-47766: an image whose /dev leads elsewhere.
#[test]
fn links_in_place_of_mount_points_are_refused() {
    let Some(tree) = Tree::new() else { return };
    let outside = tree.beside("outside");
    for name in ["dev", "proc"] {
        // The start before has made what was missing.
        for made in ["proc", "sys"].map(|name| tree.path(name)).iter().filter(|path| path.exists()) {
            fs::remove_dir(made).unwrap();
        }
        for target in ["../outside", outside.to_str().unwrap(), "bin", "missing"] {
            fs::create_dir_all(&outside).unwrap();
            symlink(target, tree.path(name)).unwrap();
            let outcome = tree.sh("echo should not run");
            assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{name} -> {target}: {outcome:?}");
            assert!(outcome.stderr.contains(&format!("at /{name} of the container")), "{}", outcome.stderr);
            assert!(outcome.stderr.contains("it is a symbolic link"), "{}", outcome.stderr);
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name} -> {target}");
            fs::remove_file(tree.path(name)).unwrap();
        }
    }
}

#[test]
fn a_link_behind_a_mount_point_cannot_lead_out_either() {
    let Some(tree) = Tree::new() else { return };
    // /sys is optional, so the container runs; but nothing may be mounted where the link leads.
    fs::create_dir(tree.beside("outside")).unwrap();
    symlink("../outside", tree.path("sys")).unwrap();
    let outcome = tree.sh("grep -c sysfs /proc/mounts");
    assert_eq!(outcome.stdout, "0\n", "{outcome:?}");
    assert!(outcome.stderr.contains("warning: cannot mount sysfs at /sys"), "{}", outcome.stderr);
}

#[test]
fn missing_mount_points_are_made_unless_the_tree_is_read_only() {
    let Some(tree) = Tree::new() else { return };
    let root = tree.path("");
    mount(Some(&root), &root, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, &root, None::<&str>, flags, None::<&str>).unwrap();
    let outcome = tree.sh("true");
    assert_eq!(outcome.status, Some(125));
    assert!(outcome.stderr.contains("cannot mount proc at /proc of the container: Read-only"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("make it there first"), "{}", outcome.stderr);
    let writable = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, &root, None::<&str>, writable, None::<&str>).unwrap();
    assert_eq!(tree.sh("true").status, Some(0));
    mount(None::<&str>, &root, None::<&str>, flags, None::<&str>).unwrap();
    let outcome = tree.sh("touch /new");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

#[test]
fn a_root_that_cannot_be_exchanged_is_covered_with_a_warning() {
    let Some(tree) = Tree::new() else { return };
    // pivot_root(2) fails on an initramfs, and also in a chroot on a mount whose parent is shared.
    let jail = tree.beside("jail");
    fs::create_dir(&jail).unwrap();
    let script = r#"
        mount --rbind / "$1"
        mount --make-rprivate "$1"
        exec chroot "$1" "$2" --rootfs "$3" sh -c 'ls /; awk "{print \$2}" /proc/mounts | head -n 1; ls -d /../tree'
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "shared", "sh", "-ec", script, "sh"]);
    let outcome = finish(command.arg(&jail).arg(RLAUNCH).arg(tree.path("")));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(1), "bin\ndev\netc\nproc\nsys\n/\n"), "{outcome:?}");
    assert!(outcome.stderr.starts_with("rlaunch: warning: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("held by chroot only"), "{}", outcome.stderr);
}

#[test]
fn root_that_may_not_mount_gets_the_reason_and_no_container_without_boundaries() {
    let Some(tree) = Tree::new() else { return };
    if tools::find("setpriv").is_none() {
        return;
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", RLAUNCH, "--rootfs"]).arg(tree.path(""));
    let outcome = finish(command.args(["sh", "-c", "echo started"]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("namespaces") && outcome.stderr.contains("CAP_SYS_ADMIN"), "{outcome:?}");
}
