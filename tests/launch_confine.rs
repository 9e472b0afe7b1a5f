//! What the command may do, option by option, seen from inside and from outside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use harness::mount::{Outcome, finish};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

#[path = "support/calls.rs"]
mod calls;
#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use cgroups::{devices_are_limited, root_of};
use launch::{RLAUNCH, Running, Tree, printed};

/// A set of capabilities as /proc tells it, with CAP_MKNOD where devices are limited in another way.
fn set(others: u64) -> &'static str {
    let nodes = if devices_are_limited() { 1 << 27 } else { 0 };
    format!("{:016x}", others | nodes).leak()
}

/// docker's default.
fn default() -> &'static str {
    set(0xa004_25fb)
}

const NONE: &str = "0000000000000000";
const KILL: &str = "0000000000000020";

/// Runs a shell script in a container, with options.
fn sh(tree: &Tree, options: &[&str], script: &str) -> Outcome {
    finish(tree.rlaunch().args(options).args(["sh", "-c", script]))
}

#[track_caller]
fn print(tree: &Tree, options: &[&str], script: &str) -> String {
    printed(sh(tree, options, script))
}

/// A tree with some users and groups.
fn tree() -> Option<Tree> {
    let tree = Tree::new()?;
    let users = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/sh\n";
    fs::write(tree.path("etc/passwd"), users).expect("write passwd");
    fs::write(tree.path("etc/group"), "root:x:0:\nweb:x:34:\ndisk:x:6:web\nvideo:x:44:\n").expect("write group");
    Some(tree)
}

/// The lines of /proc/PID/status, as the host sees it.
fn status(pid: Pid) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the status");
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[track_caller]
fn check(pid: Pid, expected: &[(&str, &str)]) {
    let status = status(pid);
    for (name, value) in expected {
        assert_eq!(status[*name], *value, "{name} of {pid}");
    }
}

/// A container that waits, its pid 1 and its command.
fn start(tree: &Tree, options: &[&str]) -> (Running, Pid, Pid) {
    let running = Running::start(tree.rlaunch().args(options).args(["sh", "-c", "echo ready; exec sleep 1000"]));
    let init = running.children()[0];
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("read the children");
    let command = children.split_whitespace().next().map_or(init, |pid| Pid::from_raw(pid.parse().expect("a number")));
    (running, init, command)
}

#[test]
fn by_default_the_command_has_dockers_capabilities_and_pid_1_has_one() {
    let Some(tree) = tree() else { return };
    let (_running, init, command) = start(&tree, &[]);
    let both = [("CapBnd", default()), ("CapInh", NONE), ("CapAmb", NONE), ("NoNewPrivs", "1"), ("Seccomp", "2")];
    check(command, &both);
    check(command, &[("CapPrm", default()), ("CapEff", default()), ("Groups", "")]);
    check(init, &both);
    check(init, &[("CapPrm", KILL), ("CapEff", KILL)]);
    // What is not dumpable belongs to root, whoever runs it; here it shows in who may look.
    assert!(sh(&tree, &[], "readlink /proc/1/exe").stdout.is_empty());
}

#[test]
fn a_container_without_an_init_is_the_command() {
    let Some(tree) = tree() else { return };
    for option in ["--init=false", "--no-init"] {
        let (_running, init, command) = start(&tree, &[option]);
        assert_eq!(init, command);
        check(init, &[("CapEff", default()), ("CapBnd", default()), ("NoNewPrivs", "1"), ("Seccomp", "2")]);
        // As busybox prints it in the seeds of this project: the shell is 1, and ps itself is the only other process.
        let list = print(&tree, &[option], "ps -o pid,comm; true");
        let list: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(list[1], ["1", "sh"]);
        assert_eq!((list.len(), list[2][1]), (3, "ps"));
        assert_eq!(sh(&tree, &[option], "exit 9").status, Some(9));
        assert_eq!(finish(tree.rlaunch().args([option, "missing"])).status, Some(127));
        assert_eq!(finish(tree.rlaunch().args([option, "/etc/passwd"])).status, Some(126));
    }
    assert_eq!(print(&tree, &["--no-init", "--user=web"], "echo $$; id -u"), "1\n33\n");
}

#[test]
fn the_launcher_cannot_be_traced_and_starts_nothing_that_is_more_than_itself() {
    let Some(tree) = tree() else { return };
    let (running, _, _) = start(&tree, &[]);
    check(running.pid(), &[("NoNewPrivs", "1")]);
}

#[test]
fn capabilities_are_added_and_dropped_by_name() {
    let Some(tree) = tree() else { return };
    for (options, bounding) in [
        (&["--cap-add", "NET_ADMIN"] as &[&str], set(0xa004_35fb)),
        (&["--cap-drop", "cap_chown", "--cap-drop=KILL"], set(0xa004_25da)),
        (&["--cap-drop=MKNOD"], "00000000a00425fb"),
        (&["--cap-drop=ALL"], NONE),
        (&["--cap-drop=all", "--cap-add=CAP_SYS_TIME"], "0000000002000000"),
        (&["--cap-add=ALL", "--cap-drop=ALL"], NONE),
    ] {
        let script =
            "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f 2 | uniq; grep CapBnd /proc/1/status | cut -f 2";
        assert_eq!(print(&tree, options, script), format!("{bounding}\n{bounding}\n"), "{options:?}");
    }
    // Signals reach a command also where neither it nor root may send any.
    let running = Running::start(tree.rlaunch().args([
        "--cap-drop=ALL",
        "--user=web",
        "sh",
        "-c",
        "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done",
    ]));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(7));
}

#[test]
fn what_the_launcher_lacks_is_told_and_not_given() {
    let Some(tree) = tree() else { return };
    let own = u64::from_str_radix(&status(Pid::this())["CapPrm"], 16).unwrap();
    let all = sh(&tree, &["--cap-add=ALL"], "grep CapBnd /proc/self/status | cut -f 2");
    let bounding = u64::from_str_radix(all.stdout.trim(), 16).unwrap();
    assert_eq!((bounding & !own, &*all.stderr), (0, ""));
    // CAP_AUDIT_READ, taken from the launcher itself.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-audit_read", "--inh-caps=-audit_read", RLAUNCH, "--rootfs"]).arg(tree.path(""));
    let outcome = finish(command.args(["--cap-add=AUDIT_READ", "grep", "CapBnd", "/proc/self/status"]));
    assert!(outcome.stdout.contains(default()), "{outcome:?}");
    assert!(outcome.stderr.contains("CAP_AUDIT_READ cannot be given"), "{outcome:?}");
}

#[test]
fn users_and_groups_are_the_containers_own() {
    let Some(tree) = tree() else { return };
    let script = "echo $(id -u) $(id -g) $(id -G) $HOME; grep Groups /proc/self/status";
    for (options, ids, groups) in [
        (&["--user", "web"] as &[&str], "33 34 34 6 /srv/web", "6 34"),
        (&["-u", "33"], "33 34 34 6 /srv/web", "6 34"),
        (&["--user=web:video"], "33 44 44 /srv/web", "44"),
        (&["--user=1234:99"], "1234 99 99 /", "99"),
        (&["--user=1234"], "1234 0 0 /", ""),
        (&["--user=web", "--env=HOME=/elsewhere"], "33 34 34 6 /elsewhere", "6 34"),
        (&["--user=web:video", "--group-add=disk", "--group-add=77"], "33 44 44 6 77 /srv/web", "6 44 77"),
        (&["--group-add=disk"], "0 0 0 6 /root", "6"),
    ] {
        let output = print(&tree, options, script);
        let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
        assert_eq!(lines, [ids, format!("Groups:\t{groups}").trim_end()], "{options:?}");
    }
    let (_running, init, command) = start(&tree, &["--user=web"]);
    check(command, &[("Uid", "33\t33\t33\t33"), ("Gid", "34\t34\t34\t34"), ("CapEff", NONE), ("CapPrm", NONE)]);
    check(init, &[("Uid", "0\t0\t0\t0")]);
}

#[test]
fn who_is_not_in_the_container_is_nobody() {
    let Some(tree) = tree() else { return };
    for options in [["--user=nobody"], ["--user=web:nogroup"], ["--group-add=nogroup"]] {
        let outcome = sh(&tree, &options, "echo ran");
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
        assert!(outcome.stderr.contains("in /etc/passwd and /etc/group of the container"), "{outcome:?}");
    }
    // CVE-2026-30892: what begins with a number is not that number.
    assert_eq!(sh(&tree, &["--user=0x"], "id").status, Some(125));
    assert_eq!(sh(&tree, &["--user=4294967295"], "id").status, Some(125));
    // A container that puts something else in its place does not hold the launcher up.
    fs::remove_file(tree.path("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&tree.path("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(sh(&tree, &["--user=web"], "id").status, Some(125));
}

#[test]
fn an_added_capability_is_kept_by_an_ordinary_user() {
    let Some(tree) = tree() else { return };
    let net_admin = "0000000000001000";
    let (_running, _, command) = start(&tree, &["--user=web", "--cap-add=NET_ADMIN"]);
    check(
        command,
        &[("CapEff", net_admin), ("CapAmb", net_admin), ("CapInh", net_admin), ("CapBnd", set(0xa004_35fb))],
    );
}

#[test]
fn set_id_programs_give_nothing_unless_they_may() {
    let Some(tree) = tree() else { return };
    // busybox drops privileges by itself: this one does not.
    let Some(()) = calls::install(&tree.path("")) else { return };
    fs::set_permissions(tree.path("bin/call"), fs::Permissions::from_mode(0o4755)).unwrap();
    // chown(2) of a file of root's to root: allowed to nobody but root.
    let script = format!("call {} -100 :/etc 0 0 0", libc::SYS_fchownat);
    let run = |options: &[&str]| calls::result(&print(&tree, options, &script));
    assert_eq!(run(&["--user=web"]), Err(Errno::EPERM));
    assert_eq!(run(&["--user=web", "--security-opt=no-new-privileges=true"]), Err(Errno::EPERM));
    assert_eq!(run(&["--user=web", "--security-opt=no-new-privileges=false"]), Ok(()));
    let (_running, init, command) = start(&tree, &["--security-opt=no-new-privileges=false"]);
    check(command, &[("NoNewPrivs", "0"), ("Seccomp", "2")]);
    check(init, &[("NoNewPrivs", "1"), ("Seccomp", "2")]);
}

#[test]
fn the_filter_can_be_left_out_and_replaced() {
    let Some(tree) = tree() else { return };
    let (_running, init, command) = start(&tree, &["--security-opt=seccomp=unconfined"]);
    check(command, &[("Seccomp", "0"), ("NoNewPrivs", "1")]);
    check(init, &[("Seccomp", "0")]);

    let Some(()) = calls::install(&tree.path("")) else { return };
    let profile = tree.beside("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["getpriority"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["setresuid", "capset", "close_range", "rt_sigtimedwait"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, text).unwrap();
    let option = format!("--security-opt=seccomp={}", profile.display());
    for more in ["--security-opt=no-new-privileges=true", "--user=0", "--no-init"] {
        let outcome = sh(&tree, &[&option, more], "mkdir /new; echo here");
        assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "here\n"), "{outcome:?}");
        assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
    }
    let script = format!("call {} 0 0; echo $?", libc::SYS_getpriority);
    assert_eq!(sh(&tree, &[&option], &script).stdout, "159\n", "SIGSYS");
    let (_running, init, _) = start(&tree, &[&option]);
    check(init, &[("Seccomp", "2")]);

    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).unwrap();
    let outcome = sh(&tree, &[&option], "echo ran");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("SCMP_ACT_NOTIFY"), "{outcome:?}");
    assert_eq!(sh(&tree, &["--security-opt=seccomp=/missing"], "echo ran").status, Some(125));
}

#[test]
fn the_filter_that_podman_ships_works() {
    let Some(tree) = tree() else { return };
    let path = "/usr/share/containers/seccomp.json";
    if !std::path::Path::new(path).exists() {
        return harness::sandbox::skip(&format!("it needs {path}, which podman brings"));
    }
    let Some(()) = calls::install(&tree.path("")) else { return };
    let option = format!("--security-opt=seccomp={path}");
    let unshare = format!("call {} 0x10000000", libc::SYS_unshare);
    let script = format!("echo $(ls / | wc -l); call {} 0; {unshare}", libc::SYS_bpf);
    let output = print(&tree, &[&option], &script);
    assert_eq!(output.lines().nth(1), Some("1"), "bpf is refused: {output}");
    check(start(&tree, &[&option]).2, &[("Seccomp", "2")]);
}

#[test]
fn a_privileged_container_has_what_the_launcher_has() {
    let Some(tree) = tree() else { return };
    let own = status(Pid::this())["CapPrm"].clone();
    let (_running, _, command) = start(&tree, &["--privileged"]);
    check(command, &[("CapEff", &own), ("CapBnd", &own), ("Seccomp", "0"), ("NoNewPrivs", "0")]);
    assert_eq!(print(&tree, &["--privileged"], "grep -c ' /proc/' /proc/mounts; true"), "0\n");
    assert_eq!(print(&tree, &["--privileged"], "mount -t tmpfs tmpfs /etc && echo mounted"), "mounted\n");
}

#[test]
fn what_the_kernel_tells_about_the_machine_is_hidden() {
    let Some(tree) = tree() else { return };
    let outcome = sh(
        &tree,
        &[],
        "for file in kcore keys latency_stats timer_list timer_stats sched_debug interrupts; do
            test ! -e /proc/$file || test -z \"$(head -c 1 /proc/$file)\" || echo shown $file; done
        for directory in /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
            test ! -e $directory || test -z \"$(ls $directory)\" || echo shown $directory; done
        for directory in $(ls -d /sys/devices/system/cpu/cpu*/thermal_throttle); do ls $directory; done",
    );
    assert_eq!((outcome.status, &*outcome.stdout), (outcome.status, ""), "{outcome:?}");
    assert!(!outcome.stderr.contains("shown"), "{outcome:?}");
    // The list above is not empty on any machine.
    assert_eq!(print(&tree, &[], "test -e /proc/interrupts && cat /proc/interrupts && echo empty"), "empty\n");
    assert!(fs::metadata("/proc/interrupts").unwrap().is_file());
}

#[test]
fn the_kernels_files_cannot_be_written() {
    let Some(tree) = tree() else { return };
    for file in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"] {
        if !std::path::Path::new(file).exists() {
            continue;
        }
        let outcome = sh(&tree, &["--cap-add=SYS_ADMIN"], &format!(": > {file}"));
        assert!(outcome.stderr.contains("Read-only file system"), "{file}: {outcome:?}");
    }
    let options = print(&tree, &[], "awk '$2 ~ \"^/proc/\" && $3 == \"proc\" {print $2, $4}' /proc/mounts");
    assert!(options.contains("/proc/sys ro,nosuid,nodev,noexec"), "{options}");
    assert!(options.lines().all(|line| line.contains(" ro,nosuid,nodev,noexec")), "{options}");
}

#[test]
fn what_a_container_does_to_what_hides_files_does_not_reach_the_host() {
    let Some(tree) = tree() else { return };
    let before = fs::metadata("/dev/null").unwrap();
    print(&tree, &[], "chmod 0 /proc/interrupts; chown 5:5 /proc/interrupts");
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((before.mode(), before.uid(), before.gid()), (after.mode(), after.uid(), after.gid()));
}

#[test]
fn limits_are_set_and_clamped_with_a_word() {
    let Some(tree) = tree() else { return };
    let script = "grep -E '^Max (open files|core|stack)' /proc/self/limits | tr -s ' '";
    let output = print(&tree, &["--ulimit=nofile=100:200", "--ulimit", "core=0", "--ulimit=stack=1048576:-1"], script);
    let hard = fs::read_to_string("/proc/self/limits").unwrap();
    let hard =
        hard.lines().find(|line| line.starts_with("Max stack")).unwrap().split_whitespace().nth(4).unwrap().to_owned();
    let expected =
        format!("Max stack size 1048576 {hard} bytes \nMax core file size 0 0 bytes \nMax open files 100 200 files \n");
    assert_eq!(output, expected);
    // pid 1 is not limited: it may have to do more than the command.
    let (_running, init, command) = start(&tree, &["--ulimit=nofile=10"]);
    let limit = |pid| fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limit(command).contains("Max open files            10                   10"));
    assert!(!limit(init).contains("Max open files            10 "));

    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-sys_resource", "prlimit", "--nofile=500:600", RLAUNCH, "--rootfs"])
        .arg(tree.path(""));
    let outcome = finish(command.args(["--ulimit=nofile=550:100000", "sh", "-c", "ulimit -n; ulimit -H -n"]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "550\n600\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("warning: the limit nofile is 600"), "{outcome:?}");
}

#[test]
fn the_score_for_the_lack_of_memory_is_set() {
    let Some(tree) = tree() else { return };
    let script = "cat /proc/self/oom_score_adj";
    assert_eq!(print(&tree, &["--oom-score-adj=500"], script), "500\n");
    let outcome = sh(&tree, &["--oom-score-adj=-1000"], script);
    // Lowering it takes a capability that root does not have everywhere.
    match outcome.status {
        Some(0) => assert_eq!(outcome.stdout, "-1000\n"),
        _ => assert!(outcome.stderr.contains("needs CAP_SYS_RESOURCE"), "{outcome:?}"),
    }
}

#[test]
fn the_environment_is_what_was_asked_for() {
    let Some(tree) = tree() else { return };
    let file = tree.beside("env");
    fs::write(&file, "# a comment\nFROM_FILE=one two\nTWICE=file\nCALLERS\n").unwrap();
    let mut command = tree.rlaunch();
    command.env("CALLERS", "callers").env("SECRET", "secret").arg("--env-file").arg(&file);
    let outcome = finish(command.args(["-e", "TWICE=word", "--env=PATH=/bin", "-eEMPTY=", "env"]));
    let mut lines: Vec<&str> = outcome.stdout.lines().filter(|line| !line.starts_with("TERM=")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["CALLERS=callers", "EMPTY=", "FROM_FILE=one two", "HOME=/root", "PATH=/bin", "TWICE=word"]);
    assert_eq!(sh(&tree, &["--env-file=/missing"], "env").status, Some(125));
}

#[test]
fn directory_entry_point_and_host_name_are_set() {
    let Some(tree) = tree() else { return };
    assert_eq!(print(&tree, &["-w", "/etc"], "pwd"), "/etc\n");
    assert_eq!(print(&tree, &["--workdir=/made/for/it"], "pwd"), "/made/for/it\n");
    assert!(tree.path("made/for/it").is_dir());
    let outcome = sh(&tree, &["--workdir=/etc/passwd"], "pwd");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    let outcome = finish(tree.rlaunch().args(["--entrypoint=echo", "a", "b"]));
    assert_eq!(printed(outcome), "a b\n");
    assert_eq!(print(&tree, &["--hostname=box-1.example"], "hostname"), "box-1.example\n");
}

#[test]
fn devices_are_those_that_were_given() {
    let Some(tree) = tree() else { return };
    let loops = harness::mount::poll(std::time::Duration::ZERO, || fs::metadata("/dev/loop0").ok());
    let Some(found) = loops else { return harness::sandbox::skip("it needs /dev/loop0") };
    let number = format!("{:x}:{:x}", libc::major(found.rdev()), libc::minor(found.rdev()));
    let script = "stat -c '%F %t:%T' /dev/loop0 /dev/disks/one";
    let output = print(&tree, &["--device=/dev/loop0", "--device=/dev/loop0:/dev/disks/one:r"], script);
    assert_eq!(output, format!("block special file {number}\nblock special file {number}\n"));
    assert_eq!(print(&tree, &["--device=/dev/null"], "stat -c %t:%T /dev/null"), "1:3\n");
    for (device, reason) in [("/etc/passwd:/dev/x", "not a device"), ("/dev/missing", "No such file")] {
        let outcome = sh(&tree, &["--device", device], "echo ran");
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
    }
}

#[test]
fn a_further_command_may_do_no_more_than_the_first() {
    let Some(tree) = tree() else { return };
    let name = format!("confine-{}", std::process::id());
    let (_running, _, _) = start(&tree, &["--rm", "--name", &name, "--cap-drop=CHOWN"]);
    let script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | cut -f 2; mount -t tmpfs x /etc";
    let outcome = finish(Command::new(RLAUNCH).args(["exec", &name, "sh", "-c", script]));
    let few = set(0xa004_25fa);
    assert_eq!(outcome.stdout, format!("{few}\n{few}\n1\n2\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("permission denied"), "{outcome:?}");
}

#[test]
fn a_further_command_is_not_run_outside_of_the_containers_list_of_devices() {
    let Some(tree) = tree() else { return };
    let Some((_, root)) = root_of("devices", "") else { return };
    let name = format!("devices-{}", std::process::id());
    let (_running, _, _) = start(&tree, &["--rm", "--name", &name]);
    let command =
        || finish(Command::new(RLAUNCH).args(["exec", &name, "sh", "-c", "grep :devices: /proc/self/cgroup"]));
    assert_eq!(command().status, Some(0));
    // From where that list cannot be seen, its cgroup cannot be joined.
    nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let outcome = command();
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("devices is not mounted here"), "{outcome:?}");
}
