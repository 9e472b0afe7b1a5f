//! The life of a mount as its callers see it: `runionfs mount` and `umount`, their exit statuses, and whose mount is
//! whose.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::fixture::Branches;
use harness::mount::{Mounted, Outcome, finish, is_alive, poll};
use harness::sandbox::{self, Sandbox, mount_table, mounts_below, run};
use harness::{Errno, ErrnoOf as _};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const PATIENCE: Duration = Duration::from_secs(20);

fn runionfs<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Outcome {
    finish(Command::new(BIN).args(arguments))
}

/// The types of what is mounted at exactly this path.
fn kinds_at(target: &Path) -> Vec<String> {
    mount_table().into_iter().filter(|entry| entry.target == target).map(|entry| entry.kind).collect()
}

fn mount_tmpfs(target: &Path) {
    mount(Some("none"), target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// Two empty branches, a mount point, and the words that mount them.
struct Ground {
    sandbox: Sandbox,
}

impl Ground {
    fn new() -> Option<Ground> {
        let sandbox = sandbox::enter()?;
        for name in ["top", "low", "mnt"] {
            fs::create_dir(sandbox.path().join(name)).unwrap();
        }
        fs::write(sandbox.path().join("low/f"), "low").unwrap();
        Some(Ground { sandbox })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.sandbox.path().join(path)
    }

    fn branches(&self) -> OsString {
        format!("{}=rw:{}=ro+wh", self.at("top").display(), self.at("low").display()).into()
    }

    fn words(&self) -> [OsString; 3] {
        ["mount".into(), self.branches(), self.at("mnt").into()]
    }
}

#[test]
fn a_mount_that_follows_an_unmount_at_once_is_never_lost() {
    // where nothing is writable, no lock makes the second daemon wait for the first
    for access in [&["rw", "ro+wh"][..], &["ro"]] {
        let Some(branches) = Branches::new(BIN, access) else { return };
        let low = format!("{}/f", access.len() - 1);
        branches.file(low, "low");
        let mut union = branches.mount();
        for round in 0..40 {
            // every second time the former daemon may still run when the next mount comes
            if round % 2 == 0 {
                union.mounted.umount()
            } else {
                union.mounted.detach()
            }
            union.mounted.mount_again();
            assert_eq!(kinds_at(union.mounted.target()), ["fuse.runionfs"], "{access:?}, round {round}");
            assert_eq!(union.read("f"), "low", "{access:?}, round {round}");
        }
    }
}

#[test]
fn what_lies_over_a_mount_is_not_its_daemons_to_unmount() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let target = branches.at("mnt");
    let mut union = branches.mount();
    mount_tmpfs(&target);
    kill(union.mounted.pid(), Signal::SIGTERM).unwrap();
    union.mounted.wait_for_the_end();
    assert_eq!(kinds_at(&target), ["fuse.runionfs", "tmpfs"]);
    for _ in 0..2 {
        umount2(&target, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_daemon_whose_mount_was_replaced_leaves_the_successor_alone() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let target = branches.file("1/f", "low").at("mnt");
    let mut union = branches.mount();
    // the open file keeps the daemon alive
    let file = fs::File::open(union.path("f")).unwrap();
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    mount_tmpfs(&target);
    assert!(is_alive(union.mounted.pid()));
    kill(union.mounted.pid(), Signal::SIGTERM).unwrap();
    union.mounted.wait_for_the_end();
    assert_eq!(kinds_at(&target), ["tmpfs"]);
    drop(file);
    umount2(&target, MntFlags::empty()).unwrap();
}

#[test]
fn a_signal_unmounts_where_the_mount_was_moved_to() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let moved = branches.dir("moved").at("moved");
    let mut union = branches.mount();
    mount(Some(union.mounted.target()), &moved, None::<&str>, MsFlags::MS_MOVE, None::<&str>).unwrap();
    kill(union.mounted.pid(), Signal::SIGTERM).unwrap();
    union.mounted.wait_for_the_end();
    assert_eq!(kinds_at(&moved), [""; 0]);
}

#[test]
fn a_refusal_is_one_line_and_status_1_and_wrong_usage_is_2() {
    let Some(ground) = Ground::new() else { return };
    let (top, low, mnt) = ("top=rw", "low=ro", "mnt");
    let both = format!("{top}:{low}");
    for (status, words, says) in [
        (1, &["mount", "top=no", mnt][..], "unknown attribute 'no' of branch top"),
        (1, &["mount", "top:top", mnt], "given twice"),
        (1, &["mount", "top:", mnt], "branch 2 of the list has no path"),
        (1, &["mount", "missing", mnt], "missing"),
        (1, &["mount", &both, "missing"], "missing"),
        (1, &["mount", &both, "low/f"], "low/f"),
        (1, &["mount", &both, mnt, "-o", "nonsense"], "unknown option 'nonsense'"),
        (1, &["mount", &both, mnt, "-o", "udba=maybe"], "none and reval are known"),
        (1, &["umount", mnt], "is not a runionfs mount"),
        (1, &["umount", "missing"], "missing"),
        (1, &["show", mnt], "is not a runionfs mount"),
        (1, &["diff", mnt], "is not a runionfs mount"),
        (1, &["diff", "low=ro:top=ro"], "is not writable"),
        (2, &["mount"], "Usage"),
        (2, &["mount", &both], "no branches"),
        (2, &["mount", &both, mnt, "-o", "br=top"], "Usage"),
        (2, &["mount", &both, mnt, "--nonsense"], "Usage"),
        (2, &["nonsense"], "Usage"),
        (2, &[], "Usage"),
    ] {
        let outcome = finish(Command::new(BIN).args(words).current_dir(ground.sandbox.path()));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(status), ""), "{words:?}: {outcome:?}");
        assert!(outcome.stderr.contains(says), "{words:?}: {outcome:?}");
        assert!(status == 2 || outcome.stderr.lines().count() == 1, "{words:?}: {outcome:?}");
        assert_eq!(mounts_below(&ground.at("mnt")), [""; 0].map(Path::new), "{words:?}");
    }
}

#[test]
fn a_refusal_is_one_line_whatever_the_path() {
    let Some(ground) = Ground::new() else { return };
    let outcome = finish(Command::new(BIN).args(["mount", "a\nb\u{1b}[31m", "mnt"]).current_dir(ground.sandbox.path()));
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(!outcome.stderr.contains('\u{1b}'), "{outcome:?}");
}

#[test]
fn the_same_union_is_not_laid_on_itself_nor_on_its_dead_mount() {
    let Some(branches) = Branches::new(BIN, &["ro"]) else { return };
    let (string, target) = (branches.file("0/f", "low").string(), branches.at("mnt"));
    let mut union = branches.mount();
    let refused = || {
        let again = runionfs([OsString::from("mount"), string.clone(), target.clone().into()]);
        assert_eq!((again.status, again.stderr.lines().count()), (Some(1), 1), "{again:?}");
        assert!(again.stderr.contains("is a mount of the same branches already"), "{again:?}");
        assert_eq!(kinds_at(&target), ["fuse.runionfs"]);
    };
    refused();
    assert_eq!(union.read("f"), "low");
    union.mounted.kill9();
    refused();
    let away = runionfs(["umount".into(), OsString::from(&target)]);
    assert_eq!((away.status, &*away.stderr), (Some(0), ""));
    union.mounted.mount_again();
    assert_eq!(union.read("f"), "low");
}

#[test]
fn a_mount_in_use_is_unmounted_lazily_only() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let target = branches.file("1/f", "low").at("mnt");
    let mut union = branches.mount();
    let file = fs::File::open(union.path("f")).unwrap();
    let busy = runionfs(["umount".into(), OsString::from(&target)]);
    assert_eq!((busy.status, busy.stderr.lines().count()), (Some(1), 1), "{busy:?}");
    assert!(busy.stderr.contains("is in use"), "{busy:?}");
    let inside = runionfs(["umount".into(), OsString::from(target.join("f"))]);
    assert_eq!(inside.status, Some(1), "a file in it is not where it is mounted: {inside:?}");
    let lazy = runionfs(["umount".into(), "-l".into(), OsString::from(&target)]);
    assert_eq!((lazy.status, &*lazy.stderr), (Some(0), ""));
    assert_eq!(kinds_at(&target), [""; 0]);
    assert_eq!(std::io::read_to_string(&file).unwrap(), "low", "who has it open goes on");
    drop(file);
    union.mounted.wait_for_the_end();
}

#[test]
fn the_daemon_holds_no_lock_of_its_caller() {
    let Some(ground) = Ground::new() else { return };
    let lock = ground.at("lock");
    // the shell's descriptor 9 is inherited by everything that it starts
    let script = format!("exec 9>{}; flock 9; exec \"$0\" \"$@\"", lock.display());
    let outcome = finish(Command::new("sh").args(["-c", &script, BIN]).args(ground.words()));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let file = fs::File::open(&lock).unwrap();
    assert!(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(), "the lock is free");
    assert_eq!(runionfs(["umount".into(), ground.at("mnt").into_os_string()]).status, Some(0));
}

#[test]
fn a_caller_that_gives_up_leaves_nothing_mounted() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let (string, second) = (branches.string(), branches.dir("mnt2").at("mnt2"));
    let mut union = branches.mount();
    // it waits for the branch, and is killed meanwhile
    let mut waiting = Command::new(BIN).arg("mount").arg(&string).arg(&second).stderr(Stdio::null()).spawn().unwrap();
    let child = poll(PATIENCE, || child_of(waiting.id())).expect("it starts a daemon");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    union.mounted.umount();
    assert!(poll(PATIENCE, || (!is_alive(child)).then_some(())).is_some(), "the daemon ends");
    assert_eq!(kinds_at(&second), [""; 0]);
    union.mounted.mount_again();
}

fn child_of(parent: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Some(Pid::from_raw(children.split_whitespace().next()?.parse().unwrap()))
}

#[test]
fn a_list_of_branches_may_be_longer_than_a_source() {
    let Some(sandbox) = sandbox::enter() else { return };
    let name = "x".repeat(200);
    let list: Vec<String> = (0..40).map(|index| format!("{}/{index}{name}", sandbox.path().display())).collect();
    list.iter().for_each(|path| fs::create_dir(path).unwrap());
    fs::create_dir(sandbox.path().join("mnt")).unwrap();
    fs::write(Path::new(&list[39]).join("f"), "low").unwrap();
    let mounted = Mounted::mount(BIN, list.join(":"), &sandbox.path().join("mnt"), &[]);
    let source = mounted.entry().unwrap().source;
    assert!(source.starts_with(&*list[0]) && source.ends_with("..."), "{source}");
    assert_eq!(fs::read_to_string(mounted.target().join("f")).unwrap(), "low");
}

#[test]
fn options_of_the_mount_reach_the_kernel() {
    let Some(ground) = Ground::new() else { return };
    let target = ground.at("mnt");
    let mounted =
        Mounted::mount(BIN, ground.branches(), &target, &["ro,noatime,nodev", "nosuid,noexec,fsname=a\\,b c"]);
    let entry = mounted.entry().unwrap();
    assert_eq!((&*entry.kind, &*entry.source), ("fuse.runionfs", "a,b c"));
    for option in ["ro", "noatime", "nodev", "nosuid", "noexec"] {
        assert!(entry.options.split(',').any(|other| other == option), "{option} is not in {}", entry.options);
    }
    for option in ["default_permissions", "allow_other"] {
        assert!(entry.super_options.contains(option), "{option} is not in {}", entry.super_options);
    }
}

#[test]
fn a_remount_changes_the_flags_of_the_mount_and_nothing_else() {
    let Some(ground) = Ground::new() else { return };
    let target = ground.at("mnt");
    let remount = |options: &str| runionfs([ground.branches(), target.clone().into(), "-o".into(), options.into()]);
    let outcome = remount("remount,ro");
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "nothing is mounted: {outcome:?}");
    let mounted = Mounted::mount(BIN, ground.branches(), &target, &[]);
    let pid = mounted.pid();
    // as mount(8) calls its helper, with what /proc/mounts says
    let outcome = remount("ro,noatime,remount,user_id=0,group_id=0,default_permissions,allow_other");
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert!(mounted.entry().unwrap().options.starts_with("ro,noatime"), "{:?}", mounted.entry());
    assert_eq!(fs::write(target.join("new"), "").errno(), Errno::EROFS);
    assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "low");
    assert_eq!(remount("remount,rw").status, Some(0));
    let writer = fs::File::options().append(true).open(target.join("f")).unwrap();
    assert_eq!(remount("remount,ro").status, Some(1), "a file is open for writing");
    drop(writer);
    assert_eq!((mounted.pid(), kinds_at(&target).len()), (pid, 1));
}

#[test]
fn branches_with_odd_names_are_mounted() {
    let Some(ground) = Ground::new() else { return };
    for (name, written) in [("a:b", "a\\:b"), ("a=rw", "a\\=rw"), ("a\\", "a\\\\"), ("a b,c", "a b,c"), ("a\n", "a\n")]
    {
        fs::create_dir(ground.at(name)).unwrap();
        fs::write(ground.at(name).join("odd"), name).unwrap();
        let list = format!("{}=rw:{}/{written}=ro", ground.at("top").display(), ground.sandbox.path().display());
        let mut mounted = Mounted::mount(BIN, &list, &ground.at("mnt"), &[]);
        assert_eq!(fs::read_to_string(mounted.target().join("odd")).unwrap(), name);
        mounted.umount();
        let escaped = format!("br={},udba=reval", list.replace(',', "\\,"));
        let outcome = runionfs(["mount", "-o", &escaped, ground.at("mnt").to_str().unwrap()]);
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{escaped}");
        assert_eq!(fs::read_to_string(ground.at("mnt/odd")).unwrap(), name);
        assert_eq!(runionfs(["umount".into(), ground.at("mnt").into_os_string()]).status, Some(0));
    }
}

#[test]
fn mount_8_calls_it_without_a_subcommand() {
    let Some(ground) = Ground::new() else { return };
    let tail = ["-o", "rw,noatime,dev,suid"].map(OsString::from);
    for name in [BIN, "/sbin/mount.runionfs", "/sbin/mount.fuse.runionfs"] {
        let places = [ground.branches(), ground.at("mnt").into()];
        let outcome = finish(Command::new(BIN).arg0(name).args(places).args(&tail));
        assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""), "{name}");
        assert_eq!(fs::read_to_string(ground.at("mnt/f")).unwrap(), "low", "{name}");
        assert_eq!(runionfs(["umount".into(), ground.at("mnt").into_os_string()]).status, Some(0));
    }
}

#[test]
fn users_mount_with_the_help_of_fusermount3() {
    let Some(ground) = Ground::new() else { return };
    if finish(Command::new("sh").args(["-c", "command -v fusermount3 setpriv"])).status != Some(0) {
        return sandbox::skip("it needs fusermount3 and setpriv");
    }
    open_device_to_all(&ground);
    let user = |words: &[OsString]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]).arg(ground.at("runionfs")).args(words);
        finish(command.env("XDG_RUNTIME_DIR", ground.at("run")))
    };
    // the user must be able to reach the program
    fs::copy(BIN, ground.at("runionfs")).unwrap();
    for name in ["top", "low", "low/f", "mnt", "run"] {
        if name == "run" {
            fs::create_dir(ground.at(name)).unwrap();
        }
        std::os::unix::fs::chown(ground.at(name), Some(1000), Some(1000)).unwrap();
    }
    let mounted = user(&ground.words());
    assert_eq!((mounted.status, &*mounted.stderr), (Some(0), ""));
    let entry = mount_table().into_iter().find(|entry| entry.target == ground.at("mnt")).unwrap();
    assert_eq!(entry.kind, "fuse.runionfs");
    assert!(entry.super_options.contains("user_id=1000"), "{}", entry.super_options);
    let shown = user(&["show".into(), ground.at("mnt").into()]);
    assert!(shown.stdout.starts_with(&format!("br0 {}=rw\n", ground.at("top").display())), "{shown:?}");
    let away = user(&["umount".into(), ground.at("mnt").into()]);
    assert_eq!((away.status, &*away.stderr), (Some(0), ""));
    assert_eq!(kinds_at(&ground.at("mnt")), [""; 0]);
    let refused = user(&[&ground.words()[..], &["-o".into(), "allow_other".into()]].concat());
    assert_eq!((refused.status, refused.stderr.lines().count()), (Some(1), 1), "{refused:?}");
    assert_eq!(kinds_at(&ground.at("mnt")), [""; 0]);
}

/// In this mount namespace only, as on an ordinary machine.
fn open_device_to_all(ground: &Ground) {
    let dev = ground.at("dev");
    fs::create_dir(&dev).unwrap();
    mount_tmpfs(&dev);
    run(Command::new("mknod").arg(dev.join("fuse")).args(["c", "10", "229"]));
    fs::set_permissions(dev.join("fuse"), fs::Permissions::from_mode(0o666)).unwrap();
    mount(Some(&dev.join("fuse")), "/dev/fuse", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}
