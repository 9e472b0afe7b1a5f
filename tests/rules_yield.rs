//! A mount that nobody can reach any more, but for those who stay in it, gives way to the next one of its top.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, finish, poll};
use harness::sandbox;
use harness::{Errno, ErrnoOf as _};
use nix::mount::MntFlags;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, XattrFlags};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const PATIENCE: Duration = Duration::from_secs(20);

/// A union of a top and a branch below, and a second mount point.
fn union(options: &[&str]) -> Option<(Union, PathBuf, PathBuf)> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    branches.dir("mnt2").dir("work").file("1/low", "low").file("1/d/below", "below");
    let (string, second) = (PathBuf::from(branches.string()), branches.at("mnt2"));
    Some((branches.mount_with(options), string, second))
}

fn take_away(u: &Union) {
    sandbox::unmount(u.mounted.target(), MntFlags::MNT_DETACH).unwrap();
}

/// Every change, by a directory that is open.
fn changes(dir: &File) -> Vec<(&'static str, Result<(), rustix::io::Errno>)> {
    let open = |name: &str, flags| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(drop);
    vec![
        ("create", open("new", OFlags::CREATE | OFlags::WRONLY)),
        ("open for writing", open("below", OFlags::WRONLY)),
        ("truncate", open("own", OFlags::WRONLY | OFlags::TRUNC)),
        ("mkdir", rustix::fs::mkdirat(dir, "new", Mode::RWXU)),
        ("symlink", rustix::fs::symlinkat("a", dir, "new")),
        ("link", rustix::fs::linkat(dir, "own", dir, "new", AtFlags::empty())),
        ("unlink", rustix::fs::unlinkat(dir, "own", AtFlags::empty())),
        ("unlink below", rustix::fs::unlinkat(dir, "below", AtFlags::empty())),
        ("rename", rustix::fs::renameat(dir, "own", dir, "new")),
        ("exchange", rustix::fs::renameat_with(dir, "own", dir, "below", RenameFlags::EXCHANGE)),
        ("chmod", rustix::fs::chmodat(dir, "own", Mode::RWXU, AtFlags::empty())),
        ("chmod of the directory", rustix::fs::fchmod(dir, Mode::RWXU)),
        ("setxattr", rustix::fs::fsetxattr(dir, "user.a", b"a", XattrFlags::empty())),
    ]
}

fn read_at(dir: &File, name: &str) -> String {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY, Mode::empty()).unwrap();
    std::io::read_to_string(File::from(file)).unwrap()
}

fn gives_way(options: &[&str]) {
    let Some((mut u, string, second)) = union(options) else { return };
    u.write("d/own", "own");
    u.write("low", "changed");
    let dir = File::open(u.path("d")).unwrap();
    let reader = File::open(u.path("d/below")).unwrap();
    take_away(&u);
    let new = Mounted::mount(BIN, &string, &second, options);
    assert_eq!(fs::read_to_string(second.join("low")).unwrap(), "changed");
    for (change, done) in changes(&dir) {
        assert_eq!(done, Err(rustix::io::Errno::ROFS), "{change}");
    }
    assert_eq!((read_at(&dir, "own"), read_at(&dir, "below")), ("own".into(), "below".into()));
    assert_eq!(std::io::read_to_string(&reader).unwrap(), "below");
    fs::write(second.join("d/own"), "newer").unwrap();
    fs::remove_file(second.join("low")).unwrap();
    drop((dir, reader));
    // its end takes nothing from the new one: not the lock, nor the mark of a volatile mount
    u.mounted.wait_for_the_end();
    if options.is_empty() {
        assert_kept(&string, u.mounted.target(), &format!("at {}", second.display()));
    }
    assert_eq!(u.at("0/.wh..wh.runionfs/volatile").exists(), options.contains(&"volatile"));
    fs::write(second.join("d/new"), "new").unwrap();
    assert_eq!(new.check(), "");
    drop(new);
    u.mounted.mount_again();
    assert_eq!((u.read("d/own"), u.read("d/new"), u.exists("low")), ("newer".into(), "new".into(), false));
}

#[test]
fn the_next_mount_has_the_top_and_who_stays_in_the_old_one_reads_on() {
    gives_way(&[]);
}

#[test]
fn a_volatile_one_gives_way_and_its_successor_is_marked() {
    gives_way(&["volatile"]);
}

#[test]
fn one_that_looks_for_direct_changes_gives_way() {
    gives_way(&["udba=reval"]);
}

#[test]
fn with_a_work_directory_and_as_fuse_overlayfs_it_is_the_same() {
    let Some((u, _, second)) = union(&[]) else { return };
    let at = |name: &str| u.at(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={},volatile", at("1"), at("upper"), at("work"));
    fs::create_dir(u.at("upper")).unwrap();
    let third = u.at("third");
    fs::create_dir(&third).unwrap();
    let mount = |target: &Path| finish(Command::new(BIN).args(["-o", &options]).arg(target));
    assert_eq!(mount(&second).status, Some(0));
    fs::write(second.join("a"), "a").unwrap();
    let dir = File::open(&second).unwrap();
    sandbox::unmount(&second, MntFlags::MNT_DETACH).unwrap();
    let outcome = mount(&third);
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert_eq!(fs::read_to_string(third.join("a")).unwrap(), "a");
    let created = rustix::fs::openat(&dir, "b", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
    assert_eq!(created.map(drop), Err(rustix::io::Errno::ROFS));
    // and so does the next one to one after it
    let other = File::open(&third).unwrap();
    sandbox::unmount(&third, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(mount(&second).status, Some(0));
    assert_eq!((read_at(&dir, "a"), read_at(&other, "a")), ("a".into(), "a".into()));
    drop((dir, other));
    sandbox::unmount(&second, MntFlags::empty()).unwrap();
}

/// A second mount is refused, and says this.
#[track_caller]
fn assert_kept(string: &Path, second: &Path, says: &str) {
    let refused = Mounted::try_mount(BIN, string, second, &[]).unwrap_err();
    assert_eq!((refused.status, refused.stderr.lines().count()), (Some(1), 1), "{}", refused.stderr);
    assert!(refused.stderr.contains("in use by another mount, "), "{}", refused.stderr);
    assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
}

/// A process in a mount namespace of its own, in which all is mounted that is here.
fn namespace_of_its_own() -> Child {
    let mut command = Command::new("unshare");
    let child = command.args(["-m", "--propagation", "private", "sh", "-c", "echo; read x"]).stdin(Stdio::piped());
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    child
}

#[test]
fn one_that_is_mounted_in_another_namespace_keeps_its_top() {
    let Some((u, string, second)) = union(&[]) else { return };
    let mut other = namespace_of_its_own();
    let dir = File::open(u.path("")).unwrap();
    take_away(&u);
    let there = u.mounted.target().display();
    assert_kept(&string, &second, &format!("at {there} in the mount namespace of process {}", other.id()));
    let seen = format!("/proc/{}/root{there}/new", other.id());
    fs::write(&seen, "new").unwrap();
    assert_eq!(read_at(&dir, "new"), "new");
    drop(other.stdin.take());
    other.wait().unwrap();
    let new = Mounted::mount(BIN, &string, &second, &[]);
    assert_eq!(fs::read_to_string(second.join("new")).unwrap(), "new");
    drop((new, dir));
}

#[test]
fn one_that_is_written_to_keeps_its_top() {
    let Some((u, string, second)) = union(&[]) else { return };
    let mut writers = ["log", "low"].map(|name| File::options().append(true).create(true).open(u.path(name)).unwrap());
    writers[0].write_all(b"one\n").unwrap();
    take_away(&u);
    assert_kept(&string, &second, "has files open that were written to");
    writers[0].write_all(b"two\n").unwrap();
    let [first, mut below] = writers;
    drop(first);
    // of a lower file nothing has come to the daemon yet
    below.write_all(b" and more").unwrap();
    assert_kept(&string, &second, "has files open that were written to");
    below.sync_all().unwrap();
    // and with the last of them it is free
    drop(below);
    let new = Mounted::mount(BIN, &string, &second, &[]);
    assert_eq!(fs::read_to_string(second.join("log")).unwrap(), "one\ntwo\n");
    assert_eq!(fs::read_to_string(second.join("low")).unwrap(), "low and more");
    drop(new);
}

/// Names that were made, moved and removed, as those who did it were told.
#[test]
fn what_was_answered_before_it_gave_way_is_there() {
    let Some((u, string, second)) = union(&[]) else { return };
    const WORKERS: usize = 4;
    for worker in 0..WORKERS {
        fs::create_dir(u.path(format!("w{worker}"))).unwrap();
    }
    let dirs: Vec<File> = (0..WORKERS).map(|worker| File::open(u.path(format!("w{worker}"))).unwrap()).collect();
    take_away(&u);
    let (begun, given) = (Barrier::new(WORKERS + 1), AtomicBool::new(false));
    let (told, new) = std::thread::scope(|scope| {
        let work = |dir| {
            begun.wait();
            work_until_refused(dir, &given)
        };
        let workers: Vec<_> = dirs.iter().map(|dir| scope.spawn(move || work(dir))).collect();
        begun.wait();
        // one that finds no moment in which nobody writes is refused
        let new = (0..8).find_map(|_| Mounted::try_mount(BIN, &string, &second, &[]).ok());
        // whatever became of it, they end
        given.store(true, Ordering::SeqCst);
        (workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>(), new)
    });
    let new = new.expect("it gives way");
    for (worker, (expected, refused)) in told.iter().enumerate() {
        assert!(refused, "it is EROFS once another mount has the branches");
        let names = fs::read_dir(second.join(format!("w{worker}"))).unwrap();
        let mut names: BTreeSet<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        for (name, content) in expected {
            let path = second.join(format!("w{worker}/{name}"));
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some(&**content), "{}", path.display());
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
            names.remove(name);
        }
        // but for the one that was refused, which was made or not
        assert!(names.len() <= 1, "{names:?}");
    }
    assert_eq!(new.check(), "");
    drop(dirs);
}

/// Makes files and moves each to its name, until that is refused, and once more after it should be; what is there then, and
/// whether it was.
fn work_until_refused(dir: &File, given: &AtomicBool) -> (Vec<(String, String)>, bool) {
    let mut done = Vec::new();
    loop {
        let is_last = given.load(Ordering::SeqCst);
        let (name, content) = (format!("f{}", done.len()), format!("content {}", done.len()));
        let written = || -> Result<(), rustix::io::Errno> {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let file = rustix::fs::openat(dir, "temporary", flags, Mode::from_raw_mode(0o640))?;
            rustix::io::write(file.as_fd(), content.as_bytes())?;
            drop(file);
            rustix::fs::renameat(dir, "temporary", dir, &name)
        };
        match written() {
            Ok(()) => done.push((name, content)),
            Err(rustix::io::Errno::ROFS) => return (done, true),
            Err(errno) => panic!("{name}: {errno}"),
        }
        if is_last {
            return (done, false);
        }
        // so that there are moments in which nobody writes, sooner or later
        std::thread::sleep(Duration::from_millis(5 + done.len() as u64));
    }
}

#[test]
fn in_a_namespace_of_a_users_own_it_gives_way_too() {
    let Some((u, ..)) = union(&[]) else { return };
    let script = "set -e; mkdir top low a b run; echo low > low/f; export XDG_RUNTIME_DIR=$PWD/run; chmod 700 run
        $1 mount top=rw:low=ro+wh a; echo changed > a/f; exec 3< a; umount -l a
        $1 mount top=rw:low=ro+wh b; cat b/f /proc/self/fd/3/f; ! touch /proc/self/fd/3/g 2> said; cat said
        exec 3<&-; umount b";
    let place = u.at("place");
    fs::create_dir(&place).unwrap();
    let mut command = Command::new("unshare");
    let outcome = finish(command.args(["-U", "-r", "-m", "sh", "-c", script, "sh", BIN]).current_dir(&place));
    let said = "changed\nchanged\ntouch: cannot touch '/proc/self/fd/3/g': Read-only file system\n";
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), said), "{}", outcome.stderr);
}

#[test]
fn a_daemon_that_does_not_answer_keeps_nobody_from_being_told() {
    let Some((u, string, second)) = union(&[]) else { return };
    let dir = File::open(u.path("")).unwrap();
    take_away(&u);
    nix::sys::signal::kill(u.mounted.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let refused = Mounted::try_mount(BIN, &string, &second, &[]).unwrap_err();
    nix::sys::signal::kill(u.mounted.pid(), nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("in use by another mount"), "{}", refused.stderr);
    let new = poll(PATIENCE, || Mounted::try_mount(BIN, &string, &second, &[]).ok());
    assert_eq!(fs::read_to_string(new.unwrap().target().join("low")).unwrap(), "low");
    drop(dir);
    assert_eq!(fs::metadata(second.join("missing")).errno(), Errno::ENOENT);
}
