//! Further ways out for root in a container: calls by other machines' numbers, links that are exchanged at the right moment,
//! the caller's keys, and those who look after the container.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::mount::finish;
use nix::errno::Errno;
use nix::libc;
use rustix::fs::{CWD, RenameFlags, renameat_with};

#[path = "support/calls.rs"]
mod calls;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Recorded, Running, Tree, printed};

/// A tree with the program for single system calls.
fn tree() -> Option<Tree> {
    let tree = Tree::new()?;
    calls::install(&tree.path(""))?;
    Some(tree)
}

/// Builds a static program.
#[track_caller]
fn build(source: &str, program: &Path) {
    let file = program.with_extension("c");
    fs::write(&file, source).expect("write the source");
    let outcome = finish(Command::new("gcc").args(["-static", "-O1", "-w", "-o"]).arg(program).arg(&file));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    fs::remove_file(&file).expect("remove the source");
}

/// Programs can make calls by the numbers of a 32-bit machine, or those of x32, at any time: see seccomp(2).
#[test]
#[cfg(target_arch = "x86_64")]
fn calls_by_the_numbers_of_other_machines_are_refused_as_well() {
    /// `foreign NUMBER ARGUMENT...`: prints the error number that the call of a 32-bit machine gives, 0 for none.
    const FOREIGN: &str = r#"
        #include <stdio.h>
        #include <stdlib.h>
        int main(int count, char **words) {
            int a[5] = {0}, result;
            for (int i = 2; i < count; i++) a[i - 2] = strtol(words[i], 0, 0);
            __asm__ volatile("int $0x80" : "=a"(result) : "a"((int)strtol(words[1], 0, 0)), "b"(a[0]), "c"(a[1]),
                "d"(a[2]), "S"(a[3]), "D"(a[4]) : "memory", "r8", "r9", "r10", "r11");
            printf("%d\n", result < 0 && result > -4096 ? -result : 0);
            return 0;
        }
    "#;
    let Some(tree) = tree() else { return };
    build(FOREIGN, &tree.path("bin/foreign"));
    let foreign = |options: &[&str], call: &str| {
        let mut command = tree.rlaunch();
        command.args(options).arg("foreign").args(call.split(' '));
        printed(finish(&mut command))
    };
    if foreign(&["--security-opt=seccomp=unconfined"], "20") != "0\n" {
        // This kernel runs no 32-bit programs, so there is nothing to refuse.
        return;
    }
    // keyctl, userfaultfd, personality, io_uring_setup: capabilities alone would not keep them away.
    for call in ["288 0 -3 1", "374 1", "136 0x0040000", "425 0 0"] {
        assert_eq!(foreign(&[], call), "1\n", "{call}");
        assert_ne!(foreign(&["--security-opt=seccomp=unconfined"], call), "1\n", "{call}");
    }
    // unshare, umount2, mount, bpf, open_by_handle_at
    for call in ["310 0x10000000", "52 0 0", "21 0 0 0 0 0", "357 0 0 0", "342 0 0 0"] {
        assert_eq!(foreign(&[], call), "1\n", "{call}");
    }
    assert_eq!(foreign(&[], "20"), "0\n", "getpid");
    for number in [libc::SYS_keyctl, libc::SYS_userfaultfd, libc::SYS_mount, libc::SYS_getpid] {
        let number = (number | 0x4000_0000).to_string();
        let outcome = finish(tree.rlaunch().args(["call", &number, "0", "-3", "1"]));
        let result = calls::result(&printed(outcome));
        assert!(matches!(result, Err(Errno::EPERM | Errno::ENOSYS)), "{number}: {result:?}");
    }
}

/// With the host's processes in sight, those that look after the container are out of reach all the same.
#[test]
fn nobody_who_looks_after_the_container_can_be_traced_where_it_sees_them() {
    let Some(tree) = tree() else { return };
    fs::create_dir(tree.beside("top")).unwrap();
    let mut command = Command::new(RLAUNCH);
    let branches = format!("{}=rw:{}=ro+wh", tree.beside("top").display(), tree.path("").display());
    command.args(["--branches", &branches, "--pid=host", "sh", "-c", "echo ready; read order; eval \"$order\""]);
    let (input, mut orders) = std::io::pipe().unwrap();
    let mut running = Running::begin_with(&mut command, input);
    assert_eq!(running.line(), "ready");
    let everybody = [running.pid(), running.init(), running.daemon()].map(|pid| pid.to_string()).join(" ");
    let number = libc::SYS_ptrace;
    let look =
        "cat /proc/$p/mem /proc/$p/environ /proc/$p/maps; readlink /proc/$p/fd/0; ls /proc/$p/root/ /proc/$p/cwd/";
    let order = format!(
        "for p in {everybody}; do call {number} 16 $p 0 0; call {number} 0x4206 $p 0 0; ({look}) 2> /dev/null; done; echo end\n"
    );
    std::io::Write::write_all(&mut orders, order.as_bytes()).unwrap();
    let lines: Vec<String> = (0..7).map(|_| running.line()).collect();
    assert_eq!(lines, ["1", "1", "1", "1", "1", "1", "end"], "EPERM twice for each, and nothing else");
    assert_eq!(running.wait(), (Some(0), String::new()));
}

/// The filter refuses all calls about keys. Without it, the keys are still others than the caller's.
#[test]
fn the_callers_keys_are_not_there() {
    /// Runs a command in a session that has a key.
    const SESSION: &str = r#"
        #include <unistd.h>
        #include <sys/syscall.h>
        int main(int count, char **words) {
            if (syscall(SYS_keyctl, 1, 0) < 0 || syscall(SYS_add_key, "user", "of-the-host", "secret", 6, -3) < 0) return 9;
            execv(words[1], words + 1);
            return 8;
        }
    "#;
    let Some(tree) = tree() else { return };
    let session = tree.beside("session");
    build(SESSION, &session);
    let search = [&libc::SYS_keyctl.to_string(), "10", "-3", ":user", ":of-the-host", "0"];
    let outside = finish(Command::new(&session).arg(tree.path("bin/call")).args(search));
    assert_eq!(printed(outside), "0\n", "the key is in the caller's session");
    let options = ["--security-opt=seccomp=unconfined", "call"];
    let inside =
        finish(Command::new(&session).args([RLAUNCH, "--rootfs"]).arg(tree.path("")).args(options).args(search));
    assert_eq!(calls::result(&printed(inside)), Err(Errno::ENOKEY));
}

/// Exchanges two entries of a directory again and again as long as it lives.
fn exchanging<T>(one: &Path, other: &Path, meanwhile: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let exchanger = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("exchange the entries");
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        done.store(true, Ordering::Relaxed);
        exchanger.join().expect("the other thread");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// CVE-2021-30465: who may write to the root exchanges what is on the way to a volume's target while it is mounted.
#[test]
fn whoever_exchanges_links_while_a_volume_is_mounted_gets_nothing() {
    let Some(tree) = tree() else { return };
    let (data, outside) = (tree.beside("data"), tree.beside("outside"));
    let (one, other) = (tree.path("one"), tree.path("other"));
    for directory in [&data, &outside, &one, &tree.path("third")] {
        fs::create_dir(directory).unwrap();
    }
    let mut started = 0;
    for link in ["/proc", "/dev", "../outside", "/third"] {
        symlink(link, &other).unwrap();
        exchanging(&one, &other, || {
            for target in ["/one/x", "/one"].repeat(8) {
                let volume = format!("{}:{target}:ro", data.display());
                let script = "awk '$4 ~ /data$/ { print $6 }' /proc/self/mountinfo";
                let outcome = finish(tree.rlaunch().args(["-v", &volume, "sh", "-c", script]));
                if outcome.status == Some(0) {
                    // It is there and as it was asked for, or there is no container.
                    started += 1;
                    let flags: Vec<&str> = outcome.stdout.lines().collect();
                    assert!(flags.len() == 1 && flags[0].starts_with("ro"), "{link} {target}: {outcome:?}");
                } else {
                    assert!(matches!(outcome.status, Some(125..=127)), "{link} {target}: {outcome:?}");
                }
                assert!(fs::read_dir(&outside).unwrap().next().is_none(), "something was made outside");
            }
        });
        let (link, directory) = if one.is_symlink() { (&one, &other) } else { (&other, &one) };
        fs::remove_file(link).unwrap();
        if directory == &other {
            fs::rename(directory, &one).unwrap();
        }
    }
    assert!(started > 0, "none was started");
}

/// The same for what every container mounts: /proc, whose dangerous files are hidden in steps of their own, and /dev.
#[test]
fn whoever_exchanges_the_mount_points_of_the_kernels_file_systems_gets_nothing() {
    let Some(tree) = tree() else { return };
    let outside = tree.beside("outside");
    fs::create_dir(&outside).unwrap();
    let host = launch::mounts();
    // What the container has of /proc may lie under either name by now.
    let look = "cd $proc && [ -e self/status ] || exit; echo here; [ -f kcore ] && echo kcore; [ -f keys ] && echo keys
        for file in sysrq-trigger sys/kernel/core_pattern; do (true >> $file) 2> /dev/null && echo $file; done";
    let script = format!(
        "i=0; while [ $i -lt 40 ]; do i=$((i + 1)); for proc in /proc /exchanged; do ({look}); done; done; echo end"
    );
    let mut has_proc = 0;
    for (name, link) in [("proc", "../outside"), ("proc", "other"), ("dev", "../outside"), ("dev", "other")] {
        let (one, other) = (tree.path(name), tree.path("exchanged"));
        fs::create_dir_all(&one).unwrap();
        fs::create_dir_all(tree.path("other")).unwrap();
        // Either a link, or a directory that nothing is mounted on.
        if link == "other" {
            fs::create_dir(&other).unwrap();
        } else {
            symlink(link, &other).unwrap();
        }
        exchanging(&one, &other, || {
            for _ in 0..12 {
                let outcome = tree.sh(&script);
                if outcome.stdout.ends_with("end\n") {
                    has_proc += usize::from(outcome.stdout.starts_with("here\n"));
                    assert!(outcome.stdout.lines().all(|line| ["here", "end"].contains(&line)), "{name}: {outcome:?}");
                } else {
                    assert!(matches!(outcome.status, Some(125..=127)), "{name}: {outcome:?}");
                }
                assert!(fs::read_dir(&outside).unwrap().next().is_none(), "something was made outside");
            }
        });
        for path in [&one, &other] {
            if path.is_symlink() { fs::remove_file(path).unwrap() } else { fs::remove_dir_all(path).unwrap() }
        }
    }
    assert_eq!(launch::mounts(), host);
    assert!(has_proc > 0, "none was started");
}

/// Whoever has one open can leave its root by /proc/self/fd/0/.. and the like.
#[test]
fn no_directory_of_the_host_comes_along_as_a_standard_stream() {
    let Some(tree) = Recorded::new() else { return };
    let mut running = tree.rlaunch();
    let _running = Running::start(running.args(["--name=streams", "sh", "-c", "echo ready; exec sleep 1000"]));
    let root = tree.path("");
    let root = root.to_str().unwrap();
    let begin: [&[&str]; 3] = [&["--rootfs", root], &["-d", "--rootfs", root], &["exec", "streams"]];
    for words in begin {
        for (redirection, name) in [("< /", "input"), ("3< / >&3", "output"), ("3< / 2>&3", "error")] {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec \"$@\" {redirection}"), "sh", RLAUNCH]).args(words).arg("true");
            let outcome = finish(&mut command);
            assert_eq!(outcome.status, Some(125), "{words:?} {redirection}: {outcome:?}");
            let reason = format!("standard {name} is a directory, which would lead out of the container (show it");
            // A directory as standard error takes no messages.
            assert!(name == "error" || outcome.stderr.contains(&reason), "{words:?} {redirection}: {outcome:?}");
        }
    }
}
