//! Defects that a review found in renames of directories with content below.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use harness::fixture::{Branches, Union};
use harness::sandbox::Medium;
use harness::{Errno, ErrnoOf as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

#[track_caller]
fn mv(u: &Union, from: &str, to: &str) {
    fs::rename(u.path(from), u.path(to)).unwrap_or_else(|error| panic!("mv {from} {to}: {error}"));
}

#[test]
fn what_comes_into_a_directory_is_seen_when_its_parent_became_opaque() {
    for link in [false, true] {
        let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
        branches.dir("0/moved/child").file("2/old/hidden", "").file("1/x", "x");
        let mut u = branches.mount();
        fs::remove_dir_all(u.path("old")).unwrap();
        // the child is known, and is not looked up again
        assert!(u.exists("moved/child"));
        mv(&u, "moved", "old");
        if link {
            fs::hard_link(u.path("x"), u.path("old/child/x")).unwrap();
        } else {
            mv(&u, "x", "old/child/x");
        }
        for _remounted in 0..2 {
            assert_eq!((u.read("old/child/x"), u.list("old/child")), ("x".into(), vec!["x".into()]), "link: {link}");
            u.remount_and_compare();
        }
    }
}

#[test]
fn a_directory_is_brought_up_while_those_above_it_are_renamed() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    const DEEP: &str = "a/b/c/d/e/f/g/h";
    for number in 0..200 {
        branches.dir(format!("1/{number}/{DEEP}")).dir(format!("1/{number}/other/a"));
    }
    let mut u = branches.mount_with(&["threads=8"]);
    let dirs: Vec<File> = (0..200).map(|number| File::open(u.path(format!("{number}/{DEEP}"))).unwrap()).collect();
    let begin = Barrier::new(3);
    thread::scope(|scope| {
        // by an open directory: the kernel cannot look again by a path
        let changes: [fn(&File) -> io::Result<()>; 2] = [
            |dir| dir.set_permissions(fs::Permissions::from_mode(0o700)),
            |dir| Ok(rustix::fs::mkdirat(dir, "new", 0o755.into())?),
        ];
        let rename = |number: usize| {
            let moves = [("a", "z"), ("z/b", "other/b"), ("other/b/c", "other/a/c")];
            let at = |path| u.path(format!("{number}/{path}"));
            moves.iter().try_for_each(|(from, to)| fs::rename(at(from), at(to)))
        };
        // whoever fails goes on all the same, for the others wait
        let mut workers = Vec::new();
        for change in changes {
            let (dirs, begin) = (&dirs, &begin);
            workers.push(scope.spawn(move || {
                let round = |dir| {
                    begin.wait();
                    change(dir)
                };
                dirs.iter().map(round).collect::<Vec<_>>()
            }));
        }
        let renamed: Vec<_> = (0..200).map(|number| (begin.wait(), rename(number)).1).collect();
        let all = workers.into_iter().flat_map(|worker| worker.join().unwrap()).chain(renamed);
        all.for_each(|result| result.unwrap());
    });
    drop(dirs);
    for number in 0..200 {
        let dir = format!("{number}/other/a/c/d/e/f/g/h");
        assert_eq!((u.mode(&dir), u.list(&dir)), (0o700, vec!["new".into()]), "{dir}");
    }
    u.remount_and_compare();
}

#[test]
fn records_that_follow_each_other_without_end_are_eloop() {
    // each takes room on the stack of a thread: some thousands ended the daemon
    let access: Vec<&str> = std::iter::once("rw").chain(std::iter::repeat_n("ro+wh", 600)).collect();
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &access) else { return };
    for branch in 1..access.len() {
        branches.dir(format!("{branch}/a")).file(format!("{branch}/.wh..wh.redirects"), "");
        std::os::unix::fs::symlink("a", branches.at(format!("{branch}/a/.wh..wh.redirect"))).unwrap();
    }
    let u = branches.mount();
    assert_eq!(fs::symlink_metadata(u.path("a")).errno(), Errno::ELOOP);
    u.write("other", "works");
    assert_eq!(u.read("other"), "works");
}

#[test]
fn an_opaque_mark_beats_a_damaged_record_too() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/a/f", "f").file("1/a/g", "g").opaque("1/a").file("1/.wh..wh.redirects", "");
    branches.symlink("1/a/.wh..wh.redirect", "../etc");
    let mut u = branches.mount();
    assert_eq!(u.list("a"), ["g"]);
    mv(&u, "a", "b");
    u.remount_and_compare();
    assert_eq!(u.list("b"), ["g"]);
}

/// Has the daemon's first calls of one kind fail while something is done.
fn failing<T>(u: &Union, call: &str, act: impl FnOnce() -> T) -> T {
    let pid = u.mounted.pid().to_string();
    let inject = format!("inject={call}:error=EIO:when=1");
    let mut strace = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", &inject, "-p", &pid])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut attached = String::new();
    BufReader::new(strace.stderr.take().unwrap()).read_line(&mut attached).unwrap();
    assert!(attached.contains("attached"), "{attached}");
    let done = act();
    kill(Pid::from_raw(strace.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    strace.wait().unwrap();
    done
}

#[test]
fn what_fails_after_a_rename_is_done_does_not_say_that_it_is_not() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a/s/f", "f").file("1/b/g", "g");
    let mut u = branches.mount();
    // before its first record, a branch is asked for none
    failing(&u, "readlinkat", || mv(&u, "a", "c"));
    assert_eq!((u.list(""), u.read("c/s/f")), (["b", "c"].map(String::from).to_vec(), "f".into()));
    u.write("c/s/f", "changed");
    u.remount_and_compare();
}

#[test]
fn attributes_are_those_of_the_object_while_names_are_exchanged() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for name in ["a", "b"] {
        branches.file(format!("1/{name}/f"), "");
        rustix::fs::setxattr(branches.at(format!("1/{name}")), "user.name", name.as_bytes(), XattrFlags::empty())
            .unwrap();
    }
    let u = branches.mount_with(&["threads=4"]);
    let dirs = ["a", "b"].map(|name| (name, File::open(u.path(name)).unwrap()));
    let done = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Acquire) {
                for (name, dir) in &dirs {
                    let mut value = [0; 8];
                    let read = rustix::fs::fgetxattr(dir, "user.name", &mut value[..]);
                    seen.insert((
                        *name,
                        read.map(|length| value[..length].to_vec()).map_err(|errno| errno.to_string()),
                    ));
                }
            }
            seen
        });
        let exchange = |_| renameat_with(CWD, u.path("a"), CWD, u.path("b"), RenameFlags::EXCHANGE);
        let exchanged: Result<Vec<()>, _> = (0..4_000).map(exchange).collect();
        done.store(true, Ordering::Release);
        exchanged.unwrap();
        reader.join().unwrap()
    });
    assert_eq!(Vec::from_iter(seen), ["a", "b"].map(|name| (name, Ok(name.as_bytes().to_vec()))));
}
