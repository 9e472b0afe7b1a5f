//! Locks of containers and names; and where the file system has none, as Lustre without its mount option: there a filter
//! answers ENOLCK to flock(2).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::mount::{finish, poll};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Recorded, wait_until_gone};

/// `rlaunch` on a kernel whose flock(2) answers ENOLCK.
fn without_locks(words: &[&str]) -> Command {
    let load_number = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let is_flock = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_flock as u32 };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let refused = answer(libc::SECCOMP_RET_ERRNO | libc::ENOLCK as u32);
    let filter = [load_number, is_flock, refused, answer(libc::SECCOMP_RET_ALLOW)];
    let mut command = Command::new(RLAUNCH);
    command.args(words);
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program points to as many instructions as it says, which live until the call returns.
        match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and touches no memory but its own stack.
    unsafe { command.pre_exec(install) };
    command
}

fn background(tree: &Recorded, options: &[&str]) -> Command {
    let root = tree.path("").into_os_string().into_string().expect("a path in ASCII");
    let mut command = without_locks(&["--rootfs", &root, "-d"]);
    command.args(options).args(["sleep", "1000"]);
    command
}

#[track_caller]
fn process(name: &str, which: &str) -> Pid {
    let text = finish(Command::new(RLAUNCH).args(["inspect", name])).stdout;
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    Pid::from_raw(record[which]["pid"].as_i64().expect("a process").try_into().expect("a number of a process"))
}

fn files_in(directory: &str) -> Vec<OsString> {
    let entries = fs::read_dir(directory).expect("list a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

#[test]
fn a_file_takes_the_place_of_a_lock() {
    let Some(tree) = Recorded::new() else { return };
    let started = finish(&mut background(&tree, &["--name=kept"]));
    assert_eq!((started.status, &*started.stdout), (Some(0), "kept\n"), "{started:?}");
    assert_eq!(started.stderr.matches("has no locks; a file takes their place").count(), 1, "{started:?}");
    let started = finish(&mut background(&tree, &["--rm", "--name=brief"]));
    assert_eq!(started.status, Some(0), "{started:?}");
    assert_eq!(files_in("/var/lib/rlaunch/containers/kept"), [".lock", "log", "state.json"]);
    assert!(files_in("/run/rlaunch/brief")[0].to_str().unwrap().starts_with(".lock-"));
    // Nobody takes what is in use.
    for words in [&["start", "kept"][..], &["rm", "kept"], &["rm", "brief"]] {
        let outcome = finish(&mut without_locks(words));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{words:?}: {outcome:?}");
    }
    assert_eq!(finish(&mut without_locks(&["rm", "--stale"])).status, Some(0));
    assert!(Path::new("/run/rlaunch/brief").exists() && Path::new("/run/rlaunch/kept").exists());
    // What was killed holds nothing.
    for name in ["kept", "brief"] {
        let (launcher, init) = (process(name, "launcher"), process(name, "init"));
        kill(launcher, Signal::SIGKILL).unwrap();
        wait_until_gone(&[launcher, init]);
    }
    let again = finish(&mut without_locks(&["start", "kept"]));
    assert_eq!((again.status, &*again.stdout), (Some(0), "kept\n"), "{again:?}");
    assert!(!Path::new("/run/rlaunch/brief").exists(), "what it left is gone");
    assert_eq!(finish(&mut without_locks(&["rm", "--force", "kept"])).status, Some(0));
    let gone = poll(PATIENCE, || (!Path::new("/run/rlaunch").exists()).then_some(()));
    assert!(gone.is_some(), "{:?}", files_in("/run/rlaunch"));
    tree.assert_empty();
}

/// Every start removes what launchers left that were killed. One whose name is just being freed by another waits for that.
#[test]
fn a_name_that_is_being_freed_is_free() {
    let Some(tree) = Recorded::new() else { return };
    let left = Path::new("/run/rlaunch/again");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(left).expect("leave a directory");
    let held = Flock::lock(fs::File::open(left).expect("open it"), FlockArg::LockExclusive).expect("lock it");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            fs::remove_dir(left).expect("remove it");
            drop(held);
        });
        let started = finish(tree.rlaunch().args(["--rm", "--name=again", "true"]));
        assert_eq!((started.status, &*started.stderr), (Some(0), ""), "{started:?}");
    });
}

/// Whoever cleans up has a container for a moment.
#[test]
fn what_another_looks_at_is_removed_all_the_same() {
    let Some(tree) = Recorded::new() else { return };
    assert_eq!(finish(tree.rlaunch().args(["--name=kept", "true"])).status, Some(0));
    let kept = fs::File::open("/var/lib/rlaunch/containers/kept").expect("open it");
    let held = Flock::lock(kept, FlockArg::LockExclusive).expect("lock it");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        let removed = finish(Command::new(RLAUNCH).args(["rm", "kept"]));
        assert_eq!((removed.status, &*removed.stderr), (Some(0), ""), "{removed:?}");
    });
    tree.assert_empty();
}
