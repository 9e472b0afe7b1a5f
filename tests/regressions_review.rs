//! Defects that a review of this file system found in it, one test each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::fixture::{Branches, Union, as_user};
use harness::mount::{finish, poll};
use harness::sandbox::run;
use harness::{Errno, ErrnoOf as _};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Runs a shell script in the mount; it must succeed.
#[track_caller]
fn shell(u: &Union, script: &str) {
    run(Command::new("sh").args(["-euc", script]).current_dir(u.path("")));
}

/// Waits until a name is what a test expects, for direct changes are noticed after a second.
#[track_caller]
fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    assert!(poll(std::time::Duration::from_secs(10), || is().then_some(())).is_some(), "{what}");
}

#[test]
fn capabilities_of_another_user_namespace_keep_no_set_id_bits() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("0/program", "x").mode("0/program", 0o4777);
    let u = branches.mount();
    for change in ["echo more >>program", "truncate -s 0 program"] {
        fs::set_permissions(u.path("program"), fs::Permissions::from_mode(0o4777)).unwrap();
        let path = u.path("");
        as_user(1234, 1234, || {
            run(Command::new("unshare").args(["-Ur", "sh", "-euc", change]).current_dir(path));
        });
        assert_eq!(u.mode("program"), 0o777, "{change}");
    }
}

#[test]
fn a_direct_rename_never_turns_a_change_on_the_file_that_took_the_name() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("0/log", "old");
    let u = branches.mount_with(&["udba=reval"]);
    assert_eq!(u.read("log"), "old");
    fs::rename(u.at("0/log"), u.at("0/log.1")).unwrap();
    fs::write(u.at("0/log"), "new").unwrap();
    wait_for("the new file shows", || fs::read_to_string(u.path("log")).is_ok_and(|content| content == "new"));
    wait_for("the old file shows", || fs::read_to_string(u.path("log.1")).is_ok_and(|content| content == "old"));
    fs::set_permissions(u.path("log.1"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(u.at("0/log.1")).unwrap().mode() & 0o777, 0o600);
    assert_ne!(fs::metadata(u.at("0/log")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_direct_rename_of_a_directory_takes_new_files_along() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw"]) else { return };
    branches.file("1/d/f", "x");
    let u = branches.mount_with(&["udba=reval"]);
    assert_eq!(u.list("d"), ["f"]);
    fs::rename(u.at("1/d"), u.at("1/e")).unwrap();
    wait_for("the directory shows under its new name", || u.exists("e") && !u.exists("d"));
    u.write("e/new", "y");
    assert_eq!(u.list("e"), ["f", "new"]);
    assert!(!u.exists("d"));
}

#[test]
fn a_lower_directory_that_was_replaced_is_noticed() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw"]) else { return };
    branches.dir("0/d").file("1/d/f", "old");
    let u = branches.mount_with(&["udba=reval"]);
    assert_eq!(u.read("d/f"), "old");
    fs::rename(u.at("1/d"), u.at("1/moved")).unwrap();
    fs::create_dir(u.at("1/d")).unwrap();
    fs::write(u.at("1/d/f"), "new").unwrap();
    wait_for("the new content shows", || fs::read_to_string(u.path("d/f")).is_ok_and(|content| content == "new"));
    fs::OpenOptions::new().append(true).open(u.path("d/f")).unwrap().write_all(b"er").unwrap();
    assert_eq!(fs::read_to_string(u.at("1/moved/f")).unwrap(), "old");
}

#[test]
fn a_write_after_one_name_went_shows_under_the_other() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a", "old!").hard_link("1/a", "1/b");
    let mut u = branches.mount();
    let file = fs::OpenOptions::new().read(true).write(true).open(u.path("a")).unwrap();
    fs::remove_file(u.path("a")).unwrap();
    file.write_all_at(b"new!", 0).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    drop(file);
    for _remounted in 0..2 {
        assert_eq!(u.read("b"), "new!");
        assert_eq!(u.stat("b").nlink(), 1);
        u.mounted.remount();
    }
}

#[test]
fn a_truncation_that_fails_or_not_never_empties_other_names() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/s/a", "content").hard_link("1/s/a", "1/s/b").hard_link("1/s/a", "1/s/c").dir("0/s");
    let u = branches.mount();
    fs::remove_file(u.path("s/c")).unwrap();
    run(Command::new("chattr").arg("+i").arg(u.at("0/s")));
    let truncated = fs::OpenOptions::new().write(true).truncate(true).open(u.path("s/a"));
    run(Command::new("chattr").arg("-i").arg(u.at("0/s")));
    let expected = if truncated.is_ok() { "" } else { "content" };
    assert_eq!((u.read("s/a").as_str(), u.read("s/b").as_str()), (expected, expected));
    assert_eq!(u.stat("s/a").ino(), u.stat("s/b").ino());
}

#[test]
fn names_that_are_looked_up_during_a_copy_up_are_the_same_file() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/y");
    for i in 0..300 {
        branches.file(format!("1/x/{i}"), "old").hard_link(format!("1/x/{i}"), format!("1/y/{i}"));
    }
    let u = branches.mount();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for i in 0..300 {
                    fs::metadata(u.path(format!("y/{i}"))).unwrap();
                }
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
        });
        for i in 0..300 {
            let path = u.path(format!("x/{i}"));
            fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"+").unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    for i in 0..300 {
        assert_eq!(u.read(format!("y/{i}")), "old+", "{i}");
        assert_eq!(u.stat(format!("y/{i}")).ino(), u.stat(format!("x/{i}")).ino(), "{i}");
    }
}

#[test]
fn fstat_of_an_open_file_works_while_others_rename_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let u = branches.mount();
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(u.path("n")).unwrap();
    let ino = file.metadata().unwrap().ino();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2_000 {
                fs::rename(u.path("n"), u.path("q")).unwrap();
                fs::write(u.path("n"), "another").unwrap();
                fs::rename(u.path("q"), u.path("n")).unwrap();
            }
        });
        for _ in 0..2_000 {
            file.write_all_at(b"z", 0).unwrap();
            let stat = file.metadata().unwrap();
            assert_eq!((stat.ino(), stat.len()), (ino, 1));
        }
    });
}

#[test]
fn a_mount_that_was_refused_leaves_no_volatile_marker() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let (top, target) = (branches.at("0"), branches.at("2"));
    fs::create_dir(&target).unwrap();
    let string = format!("{}=rw:{}=rw", top.display(), branches.at("missing").display());
    let refused = finish(Command::new(BIN).args(["mount", &string, "-o", "volatile"]).arg(&target));
    assert_eq!(refused.status, Some(1));
    branches.mount().write("f", "x");
}

#[test]
fn a_deep_tree_in_a_removed_directory_costs_neither_stack_nor_descriptors() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.dir("0/d/.wh..wh.x");
    let mut at = OwnedFd::from(fs::File::open(branches.at("0/d/.wh..wh.x")).unwrap());
    for _ in 0..15_000 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    drop(at);
    let u = branches.mount();
    fs::remove_dir(u.path("d")).unwrap();
    assert_eq!(u.list(""), [""; 0]);
    u.assert_no_temporaries(0);
}

#[test]
fn a_file_size_limit_of_whoever_mounted_does_not_end_the_daemon() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let target = branches.at("mnt");
    if !target.exists() {
        fs::create_dir(&target).unwrap();
    }
    let script = format!(
        "ulimit -S -f 1000; exec {BIN} mount '{}=rw:{}=ro' '{}'",
        branches.at("0").display(),
        branches.at("1").display(),
        target.display()
    );
    run(Command::new("sh").args(["-euc", &script]));
    let written = fs::write(target.join("f"), vec![b'x'; 5 << 20]);
    let length = fs::metadata(target.join("f")).map(|stat| stat.len());
    run(Command::new(BIN).arg("umount").arg(&target));
    written.unwrap();
    assert_eq!(length.unwrap(), 5 << 20);
}

#[test]
fn a_planted_long_whiteout_hides_nothing_and_stops_nobody() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro"]) else { return };
    branches.file("2/foo", "x").file("1/.wh..wh.long.deadbeef", "foo");
    branches.dir("1/d/.wh..wh.long.x").file("2/d/a", "");
    let u = branches.mount();
    assert_eq!(u.list(""), ["d", "foo"]);
    assert_eq!(u.list("d"), ["a"]);
    shell(&u, "cat foo && rm -r d && ! [ -e d ]");
}

#[test]
fn a_change_that_fails_leaves_whiteouts_that_were_there_before() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.dir("0/d").dir("0/t").whiteout("0/d").file("1/d/x", "removed");
    let mut u = branches.mount();
    assert_eq!(u.list("d"), [""; 0]);
    run(Command::new("chattr").arg("+i").arg(u.at("0/t")));
    let moved = fs::rename(u.path("d"), u.path("t/d"));
    run(Command::new("chattr").arg("-i").arg(u.at("0/t")));
    assert_eq!(moved.errno(), Errno::EPERM);
    u.mounted.remount();
    assert_eq!(u.list("d"), [""; 0]);
}

#[test]
fn a_directory_that_is_another_branch_keeps_its_attributes_when_it_comes_up() {
    let Some(branches) = Branches::new(BIN, &["ro"]) else { return };
    branches.dir("0/v/top").mode("0/v/top", 0o751);
    let (outer, top, target) = (branches.at("0"), branches.at("0/v/top"), branches.at("mnt"));
    if !target.exists() {
        fs::create_dir(&target).unwrap();
    }
    let string = format!("{}=rw:{}=ro", top.display(), outer.display());
    run(Command::new(BIN).args(["mount", &string]).arg(&target));
    let made = fs::write(target.join("v/top/x"), "");
    let mode = fs::metadata(target.join("v/top")).map(|stat| stat.mode() & 0o7777);
    run(Command::new(BIN).arg("umount").arg(&target));
    made.unwrap();
    assert_eq!(mode.unwrap(), 0o751);
}

#[test]
fn a_branch_inside_another_by_a_bind_mount_is_seen() {
    let Some(branches) = Branches::new(BIN, &["ro"]) else { return };
    branches.dir("0/v/top").dir("bind");
    let (outer, bind, target) = (branches.at("0"), branches.at("bind"), branches.at("mnt"));
    run(Command::new("mount").arg("--bind").arg(branches.at("0/v/top")).arg(&bind));
    if !target.exists() {
        fs::create_dir(&target).unwrap();
    }
    let both = format!("{}=rw:{}=rw", bind.display(), outer.display());
    assert_eq!(finish(Command::new(BIN).args(["mount", &both]).arg(&target)).status, Some(1));
    let string = format!("{}=rw:{}=ro", bind.display(), outer.display());
    run(Command::new(BIN).args(["mount", &string]).arg(&target));
    let made = fs::write(target.join("x"), "");
    let inside = fs::read_dir(target.join("v/top")).map(Iterator::count);
    let removed = fs::remove_dir(target.join("v/top")).errno();
    run(Command::new(BIN).arg("umount").arg(&target));
    run(Command::new("umount").arg(&bind));
    made.unwrap();
    assert_eq!(inside.unwrap(), 0);
    assert_eq!(removed, Errno::EBUSY);
}

#[test]
fn a_link_count_survives_a_change_in_place() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh+init"]) else { return };
    branches.file("1/x", "i").hard_link("1/x", "1/y").hard_link("1/x", "1/z");
    let mut u = branches.mount();
    fs::remove_file(u.path("z")).unwrap();
    fs::OpenOptions::new().append(true).open(u.path("y")).unwrap().write_all(b"more").unwrap();
    u.accept_read_only_branches();
    u.mounted.remount();
    assert_eq!(u.stat("y").nlink(), 2);
}

#[test]
fn handles_on_one_directory_share_its_listing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/d");
    fs::create_dir(branches.at("1/d")).unwrap();
    for i in 0..20_000 {
        fs::File::create(branches.at(format!("1/d/some-name-of-usual-length-{i}"))).unwrap();
    }
    let u = branches.mount();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", u.mounted.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let open = || {
        let mut entries = fs::read_dir(u.path("d")).unwrap();
        assert!(entries.next().is_some());
        entries
    };
    let first = open();
    let before = resident();
    let others: Vec<_> = (0..100).map(|_| open()).collect();
    let after = resident();
    drop((first, others));
    // a listing takes about 2 MiB; a hundred of them would be 200
    assert!(after < before + 50 * 1024, "{before} KiB became {after} KiB");
}

#[test]
fn a_running_program_is_not_truncated_by_an_open_that_fails() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let u = branches.mount();
    fs::copy("/bin/sleep", u.path("sleep")).unwrap();
    let length = u.stat("sleep").len();
    let mut running = Command::new(u.path("sleep")).arg("100").spawn().unwrap();
    let opened = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_TRUNC).open(u.path("sleep"));
    let mut content = Vec::new();
    fs::File::open(u.path("sleep")).unwrap().read_to_end(&mut content).unwrap();
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(opened.errno(), Errno::ETXTBSY);
    assert_eq!(content.len() as u64, length);
}
