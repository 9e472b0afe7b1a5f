//! Root in a container, with the default set of capabilities, tries to get out or to take the host down.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::process::Stdio;

use harness::mount::finish;
use harness::sandbox;
use nix::errno::Errno;
use nix::libc;

#[path = "support/calls.rs"]
mod calls;
#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use cgroups::devices_are_limited;
use launch::{Running, Tree, printed};

/// A tree with the program for single system calls.
fn tree() -> Option<Tree> {
    let tree = Tree::new()?;
    calls::install(&tree.path(""))?;
    Some(tree)
}

/// Makes one system call in a container.
#[track_caller]
fn call(tree: &Tree, options: &[&str], number: libc::c_long, arguments: &[&str]) -> Result<(), Errno> {
    let number = number.to_string();
    let mut command = tree.rlaunch();
    command.args(options).args(["call", &number]).args(arguments);
    calls::result(&printed(finish(&mut command)))
}

#[test]
fn calls_that_lead_out_are_refused() {
    let Some(tree) = tree() else { return };
    let refused: &[(libc::c_long, &[&str])] = &[
        (libc::SYS_mount, &[":none", ":/etc", ":tmpfs", "0", "0"]),
        (libc::SYS_umount2, &[":/proc/sys", "2"]),
        (libc::SYS_pivot_root, &[":/", ":/"]),
        (libc::SYS_unshare, &["0x10000000"]),
        (libc::SYS_unshare, &["0x20000"]),
        (libc::SYS_setns, &["0", "0"]),
        (libc::SYS_clone, &["0x10000011", "0", "0", "0", "0"]),
        (libc::SYS_open_by_handle_at, &["0", ":handle", "0"]),
        (libc::SYS_bpf, &["0", "0", "0"]),
        (libc::SYS_perf_event_open, &["0", "0", "-1", "-1", "0"]),
        (libc::SYS_init_module, &["0", "0", ":"]),
        (libc::SYS_finit_module, &["0", ":", "0"]),
        (libc::SYS_delete_module, &[":fuse", "0"]),
        (libc::SYS_kexec_load, &["0", "0", "0", "0"]),
        (libc::SYS_reboot, &["0xfee1dead", "672274793", "0", "0"]),
        (libc::SYS_settimeofday, &["0", "0"]),
        (libc::SYS_clock_settime, &["0", "0"]),
        (libc::SYS_keyctl, &["0", "-3", "1"]),
        (libc::SYS_add_key, &[":user", ":name", ":value", "5", "-3"]),
        (libc::SYS_request_key, &[":user", ":name", "0", "-3"]),
        (libc::SYS_swapon, &[":/etc/passwd", "0"]),
        (libc::SYS_syslog, &["3", "0", "0"]),
        (libc::SYS_acct, &["0"]),
        (libc::SYS_quotactl, &["0", "0", "0", "0"]),
        (libc::SYS_sethostname, &[":elsewhere", "9"]),
        (libc::SYS_userfaultfd, &["0"]),
        (libc::SYS_io_uring_setup, &["1", "0"]),
        (libc::SYS_fsopen, &[":tmpfs", "0"]),
        (libc::SYS_open_tree, &["-100", ":/", "1"]),
        (libc::SYS_move_mount, &["-100", ":/etc", "-100", ":/bin", "0"]),
        (libc::SYS_mount_setattr, &["-100", ":/", "0", "0", "0"]),
        (libc::SYS_fanotify_init, &["0", "0"]),
        (libc::SYS_pidfd_getfd, &["0", "0", "0"]),
        (libc::SYS_socket, &["40", "1", "0"]),
        (libc::SYS_personality, &["0x0040000"]),
    ];
    // One container for all: a start each would take too long.
    let line = |(number, arguments): &(libc::c_long, &[&str])| {
        let words: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
        format!("call {number} {}", words.join(" "))
    };
    let script: Vec<String> = refused.iter().map(line).collect();
    let output = tree.print(&script.join("\n"));
    let results: Vec<_> = output.lines().map(calls::result).collect();
    assert_eq!(results.len(), refused.len());
    for ((number, arguments), result) in refused.iter().zip(results) {
        assert_eq!(result, Err(Errno::EPERM), "call {number} {arguments:?}");
    }
    // What is missing is done without by those who ask.
    assert_eq!(call(&tree, &[], libc::SYS_clone3, &["0", "0"]), Err(Errno::ENOSYS));
    assert_eq!(call(&tree, &[], 4000, &[]), Err(Errno::ENOSYS));
}

/// The filter is a second line. This is the first.
#[test]
fn capabilities_keep_the_same_out_without_a_filter() {
    let Some(tree) = tree() else { return };
    let options = ["--security-opt=seccomp=unconfined"];
    for (number, arguments) in [
        (libc::SYS_mount, &[":none", ":/etc", ":tmpfs", "0", "0"] as &[&str]),
        (libc::SYS_umount2, &[":/proc/sys", "2"]),
        (libc::SYS_unshare, &["0x20000"]),
        (libc::SYS_reboot, &["0xfee1dead", "672274793", "0", "0"]),
        (libc::SYS_sethostname, &[":elsewhere", "9"]),
        (libc::SYS_init_module, &["0", "0", ":"]),
        (libc::SYS_finit_module, &["0", ":", "0"]),
        (libc::SYS_delete_module, &[":fuse", "0"]),
        (libc::SYS_settimeofday, &["0", "0"]),
        (libc::SYS_swapon, &[":/etc/passwd", "0"]),
        (libc::SYS_acct, &["0"]),
        (libc::SYS_syslog, &["5", "0", "0"]),
        (libc::SYS_kexec_load, &["0", "0", "0", "0"]),
        (libc::SYS_fanotify_init, &["4", "0"]),
    ] {
        let result = call(&tree, &options, number, arguments);
        // Not every kernel has modules, swap or accounting.
        assert!(matches!(result, Err(Errno::EPERM | Errno::ENOSYS)), "call {number} {arguments:?}: {result:?}");
    }
}

/// The number of a block device that surely is not in docker's list, as mknod(2) takes it: the first disk.
const DISK: &str = "0x800";
const BLOCK: &str = "0x61b0";

#[test]
fn nodes_of_devices_open_nothing_where_a_list_of_devices_is_enforced() {
    let Some(tree) = tree() else { return };
    if !devices_are_limited() {
        return sandbox::skip("this machine has no cgroups");
    }
    for options in [&[] as &[&str], &["--security-opt=seccomp=unconfined"]] {
        let script =
            format!("call {} -100 :/disk {BLOCK} {DISK}; call {} -100 :/disk 0", libc::SYS_mknodat, libc::SYS_openat);
        let outcome = finish(tree.rlaunch().args(options).args(["sh", "-c", &script]));
        let results: Vec<_> = printed(outcome).lines().map(calls::result).collect();
        assert_eq!(results, [Ok(()), Err(Errno::EPERM)], "{options:?}");
        fs::remove_file(tree.path("disk")).unwrap();
    }
    // One that an image brings works if it is of the list only.
    let mode = nix::sys::stat::Mode::S_IRUSR;
    for (number, result) in [(libc::makedev(1, 3), Ok(())), (libc::makedev(8, 0), Err(Errno::EPERM))] {
        let kind =
            if number == libc::makedev(1, 3) { nix::sys::stat::SFlag::S_IFCHR } else { nix::sys::stat::SFlag::S_IFBLK };
        nix::sys::stat::mknod(&tree.path("image"), kind, mode, number).unwrap();
        assert_eq!(call(&tree, &[], libc::SYS_openat, &["-100", ":/image", "0"]), result, "{kind:?}");
        fs::remove_file(tree.path("image")).unwrap();
    }
    // Who may not make nodes does not.
    let arguments = ["-100", ":/disk", BLOCK, DISK];
    assert_eq!(call(&tree, &["--cap-drop=MKNOD"], libc::SYS_mknodat, &arguments), Err(Errno::EPERM));
}

#[test]
fn without_a_list_of_devices_no_nodes_can_be_made_and_those_that_are_there_do_not_work() {
    let Some(tree) = tree() else { return };
    // As in a container around us: this namespace shows no cgroups.
    while nix::mount::umount2("/sys/fs/cgroup", nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    assert!(!devices_are_limited());
    let (null, kind) = (libc::makedev(1, 3), libc::S_IFCHR | 0o666);
    for place in ["/node", "/dev/node", "/dev/shm/node"] {
        let arguments = ["-100", &format!(":{place}"), &kind.to_string(), &null.to_string()];
        assert_eq!(call(&tree, &[], libc::SYS_mknodat, &arguments), Err(Errno::EPERM), "{place}");
    }
    // One that an image brings: as a disk it would be the host's.
    let mode = nix::sys::stat::Mode::S_IRUSR;
    nix::sys::stat::mknod(&tree.path("image"), nix::sys::stat::SFlag::S_IFCHR, mode, null).unwrap();
    assert_eq!(call(&tree, &[], libc::SYS_openat, &["-100", ":/image", "0"]), Err(Errno::EACCES));
    assert_eq!(call(&tree, &[], libc::SYS_openat, &["-100", ":/dev/null", "0"]), Ok(()));
    // Nor anywhere else: only /dev and its terminals have any.
    let script = "awk '$4 !~ /(^|,)nodev(,|$)/ {print $2}' /proc/mounts";
    let places = tree.print(script);
    assert!(places.lines().all(|place| place.starts_with("/dev") || place.starts_with("/proc/")), "{places}");
}

#[test]
fn pid_1_cannot_be_traced_or_looked_into() {
    let Some(tree) = tree() else { return };
    assert_eq!(call(&tree, &[], libc::SYS_ptrace, &["16", "1", "0", "0"]), Err(Errno::EPERM), "attach");
    assert_eq!(call(&tree, &[], libc::SYS_ptrace, &["0x4206", "1", "0", "0"]), Err(Errno::EPERM), "seize");
    let script = "for file in mem environ maps auxv syscall stack; do cat /proc/1/$file; done 2>/dev/null
        for link in exe root cwd fd/0 ns/mnt; do readlink /proc/1/$link; done
        ls /proc/1/root/ 2>/dev/null; readlink /proc/1/map_files/*; echo end";
    assert_eq!(tree.sh(script).stdout, "end\n");
    // Who was given the right to trace finds nothing there: no capability but one, and the same filter.
    let script =
        "grep -E 'CapPrm|Seccomp:' /proc/1/status | cut -f 2; ls /proc/1/fd; readlink /proc/1/fd/0 | cut -d : -f 1";
    let outcome = finish(tree.rlaunch().args(["--cap-add=SYS_PTRACE", "sh", "-c", script]));
    assert_eq!(printed(outcome), "0000000000000020\n2\n0\n1\n2\npipe\n");
}

#[test]
fn processes_outside_cannot_be_named() {
    let Some(tree) = tree() else { return };
    // A process of the host that is certainly there: this one.
    let pid = std::process::id().to_string();
    for (number, arguments) in [(libc::SYS_ptrace, vec!["16", &pid, "0", "0"]), (libc::SYS_kill, vec![&pid, "0"])] {
        assert_eq!(call(&tree, &[], number, &arguments), Err(Errno::ESRCH));
    }
}

/// CVE-2019-5736.
#[test]
fn our_program_cannot_be_written_through_a_process_of_ours() {
    let Some(tree) = tree() else { return };
    let running = Running::start(tree.rlaunch().args(["sh", "-c", "echo ready; exec sleep 1000"]));
    for pid in [running.pid(), running.children()[0]] {
        // Even for the host's root: without the read-only mount this would be ETXTBSY, and work once nobody runs it.
        let error = OpenOptions::new().write(true).truncate(true).open(format!("/proc/{pid}/exe")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{pid}: {error}");
        // Nor is it mapped through any other mount.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert!(!maps.contains(launch::RLAUNCH), "{maps}");
    }
    let script = ": > /proc/1/exe";
    let outcome = finish(tree.rlaunch().args(["--cap-add=SYS_PTRACE", "sh", "-c", script]));
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

/// What the kernel runs then is the loader, whose file must not be put in the place of ours.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_loader_that_is_started_by_hand_is_not_taken_for_our_program() {
    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
    let Some(tree) = tree() else { return };
    if !std::path::Path::new(LOADER).exists() {
        return harness::sandbox::skip("there is no loader of the GNU C library");
    }
    let mut command = std::process::Command::new(LOADER);
    let outcome = finish(command.arg(launch::RLAUNCH).arg("--rootfs").arg(tree.path("")).arg("true"));
    // It cannot run the program once more, because it does not know the words; but it was not killed.
    assert!(outcome.status.is_some(), "{outcome:?}");
}

/// A launcher that may not exchange the file that it runs in place, so that it runs itself again; what strace saw of that.
#[cfg(target_arch = "x86_64")]
fn which_runs_itself_again(tree: &Tree, strace: &std::path::Path) -> (std::process::Command, std::path::PathBuf) {
    let (mut command, trace) = (std::process::Command::new(strace), tree.beside("trace"));
    command.args(["-qq", "-e", "trace=prctl,execveat", "-e", "inject=prctl:error=EPERM:when=1", "-o"]).arg(&trace);
    command.args([launch::RLAUNCH, "--rootfs"]).arg(tree.path(""));
    (command, trace)
}

/// The attack itself: the container makes us run our own program, with a loader of its own that writes to it.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_container_that_runs_our_program_with_its_own_loader_gets_nothing() {
    /// No libc: the loader's program headers are those of another program.
    const LOADER: &str = r#"
        static long call(long n, long a, long b, long c, long d) {
            long r; register long r10 __asm__("r10") = d;
            __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
            return r;
        }
        void _start(void) {
            long r = call(257, -100, (long)"/proc/self/exe", 01001, 0);
            call(231, r < 0 ? -r : 99, 0, 0, 0);
        }
    "#;
    let Some(tree) = tree() else { return };
    let Some(strace) = tools::find("strace") else { return };
    fs::write(tree.beside("loader.c"), LOADER).unwrap();
    fs::create_dir(tree.path("lib64")).unwrap();
    let target = tree.path("lib64/ld-linux-x86-64.so.2");
    let mut compiler = std::process::Command::new("gcc");
    compiler
        .args(["-nostdlib", "-static", "-fno-stack-protector", "-O1", "-o"])
        .arg(target)
        .arg(tree.beside("loader.c"));
    assert_eq!(finish(&mut compiler).status, Some(0));
    let name = format!("own-loader-{}", std::process::id());
    let _running =
        Running::start(tree.rlaunch().args(["--rm", "--name", &name, "sh", "-c", "echo ready; exec sleep 1000"]));
    for command in [&["/proc/self/exe"] as &[&str], &["/script"]] {
        fs::write(tree.path("script"), "#!/proc/self/exe\n").unwrap();
        make_executable(&tree.path("script"));
        let mut exec = std::process::Command::new(launch::RLAUNCH);
        exec.args(["exec", &name]);
        let (mut again, trace) = which_runs_itself_again(&tree, &strace);
        for start in [&mut tree.rlaunch(), &mut again, &mut exec] {
            let outcome = finish(start.args(command));
            assert_eq!(outcome.status, Some(libc::EROFS), "{outcome:?}");
        }
        let trace = fs::read_to_string(trace).unwrap();
        assert!(trace.contains("(INJECTED)") && trace.contains("execveat("), "{trace}");
    }
}

#[cfg(target_arch = "x86_64")]
fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make the script a program");
}

/// CVE-2024-21626.
#[test]
fn no_descriptor_leads_out() {
    let Some(tree) = tree() else { return };
    // Open in the launcher's caller, and not closed on exec.
    let outside = fs::File::open("/").unwrap();
    let inherited = nix::unistd::dup(&outside).unwrap();
    for number in 3..20 {
        for option in ["--workdir", "-w"] {
            let outcome = finish(tree.rlaunch().args([option, &format!("/proc/self/fd/{number}"), "ls", "-a", "."]));
            assert!(!outcome.stdout.contains("home"), "{number}: {outcome:?}");
            assert!(matches!(outcome.status, Some(125)), "{number}: {outcome:?}");
        }
        let program = format!("/proc/self/fd/{number}/bin/sh");
        let outcome = finish(tree.rlaunch().args([&program, "-c", "echo ran"]));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(127), ""), "{number}: {outcome:?}");
    }
    drop(inherited);
    assert_eq!(tree.print("ls /proc/self/fd"), "0\n1\n2\n3\n", "3 is of ls itself");
}

#[test]
fn the_kernel_runs_nothing_for_a_container() {
    let Some(tree) = tree() else { return };
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for options in [&[] as &[&str], &["--cap-add=SYS_ADMIN"]] {
        let script = "echo '|/evil' > /proc/sys/kernel/core_pattern
            echo /evil > /proc/sys/kernel/modprobe; echo /evil > /sys/kernel/uevent_helper
            for file in $(ls -d /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent); do echo /evil > $file; done
            echo end";
        let outcome = finish(tree.rlaunch().args(options).args(["sh", "-c", script]));
        assert_eq!(outcome.stdout, "end\n", "{outcome:?}");
        assert!(outcome.stderr.contains("core_pattern: Read-only file system"), "{outcome:?}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
    let agents = || -> Vec<String> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        hierarchies.filter_map(|entry| fs::read_to_string(entry.path().join("release_agent")).ok()).collect()
    };
    assert!(agents().iter().all(|agent| !agent.contains("evil")));
}

#[test]
fn cgroups_cannot_be_mounted_to_plant_a_release_agent() {
    let Some(tree) = tree() else { return };
    let arguments = [":cgroup", ":/etc", ":cgroup", "0", ":freezer"];
    assert_eq!(call(&tree, &[], libc::SYS_mount, &arguments), Err(Errno::EPERM));
    assert_eq!(call(&tree, &["--security-opt=seccomp=unconfined"], libc::SYS_mount, &arguments), Err(Errno::EPERM));
}

/// CVE-2017-5226. The caller's terminal is on standard input only, so the command shares it.
#[test]
fn nothing_is_typed_into_the_callers_terminal() {
    let Some(tree) = tree() else { return };
    let terminal = nix::pty::openpty(None, None).unwrap();
    let slave = || Stdio::from(terminal.slave.try_clone().unwrap());
    let number = libc::SYS_ioctl.to_string();
    for request in [libc::TIOCSTI, libc::TIOCSTI | 1 << 32, libc::TIOCLINUX] {
        for options in [&[] as &[&str], &["--cap-add=SYS_ADMIN"]] {
            let mut command = tree.rlaunch();
            command.args(options).args(["call", &number, "0", &request.to_string(), ":x"]);
            let output = command.stdin(slave()).stderr(Stdio::null()).output().unwrap();
            assert_eq!(calls::result(&String::from_utf8_lossy(&output.stdout)), Err(Errno::EPERM), "{request:#x}");
        }
    }
    let master = fs::File::from(terminal.master);
    nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let mut byte = [0];
    let typed = io::Read::read(&mut &master, &mut byte);
    assert_eq!(typed.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
}

#[test]
fn a_killed_init_or_a_flood_of_processes_ends_with_the_container() {
    let Some(tree) = tree() else { return };
    // Bounded by the limit, and gone with the container: nothing is left for the host to clean up.
    let script = "i=0; while [ $i -lt 200 ]; do sleep 98877 & i=$((i + 1)); done 2>/dev/null; exit 3";
    let outcome = finish(tree.rlaunch().args(["sh", "-c", script]));
    assert_eq!(outcome.status, Some(3), "{outcome:?}");
    launch::wait_until_gone(&launch::processes_with("98877"));
}

#[test]
fn no_device_of_the_host_is_there() {
    let Some(tree) = tree() else { return };
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(tree.print("echo $(ls /dev)").trim_end(), expected);
}
