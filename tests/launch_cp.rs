//! Files to and from containers that run, some of which would like to have others.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::mount::{Outcome, finish};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Recorded, printed, sh};

fn cp(words: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).arg("cp").args(words))
}

#[track_caller]
fn copied(words: &[&str]) {
    assert_eq!(printed(cp(words)), "", "{words:?}");
}

#[track_caller]
fn refused(outcome: &Outcome, reason: &str) {
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains(reason), "{reason}: {}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
}

/// A container, and a directory beside it with something to copy.
fn start(name: &str, options: &[&str]) -> Option<Recorded> {
    let tree = Recorded::new()?;
    printed(finish(tree.rlaunch().args(["-d", "--name", name]).args(options).args(["sleep", "1000"])));
    let source = tree.beside("source");
    let source = source.display();
    sh(&format!(
        "mkdir -p {source}/dir/deep; cd {source}; echo one > file; echo two > dir/deep/two; ln dir/deep/two dir/again; \
         ln -s deep/two dir/link; chown -h 33:44 file dir dir/link; chmod 4750 file; chmod 2711 dir; \
         touch -h -d '2001-02-03 04:05:06.789 UTC' file dir/link dir"
    ));
    Some(tree)
}

/// Mode, owner, time with nanoseconds.
fn attributes(path: &Path) -> (u32, u32, u32, i64, i64) {
    let found = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime(), found.mtime_nsec())
}

const TIME: (i64, i64) = (981_173_106, 789_000_000);

#[test]
fn copies_are_made_where_cp_would_make_them() {
    let Some(tree) = start("cp-where", &[]) else { return };
    let (source, into) = (|name: &str| tree.beside("source").join(name).display().to_string(), "cp-where:");
    let inside = |path: &str| format!("{into}{path}");
    for (from, to, found) in [
        ("file", "/new", "new"),
        ("file", "/etc", "etc/file"),
        ("file", "/etc/", "etc/file"),
        ("file", "relative", "relative"),
        ("dir", "/made", "made/deep/two"),
        ("dir", "/made/", "made/dir/deep/two"),
        ("dir/.", "/made/deep", "made/deep/deep/two"),
        ("dir/", "/other/", "other/deep/two"),
        ("dir/link", "/etc", "etc/link"),
    ] {
        copied(&[&source(from), &inside(to)]);
        assert!(fs::symlink_metadata(tree.path(found)).is_ok(), "{from} {to}: {found}");
    }
    assert_eq!(fs::read_link(tree.path("etc/link")).unwrap(), Path::new("deep/two"));
    copied(&["-L", &source("dir/link"), &inside("/etc/followed")]);
    assert_eq!(fs::read_to_string(tree.path("etc/followed")).unwrap(), "two\n");
    let (one, two) =
        (fs::metadata(tree.path("made/again")).unwrap(), fs::metadata(tree.path("made/deep/two")).unwrap());
    assert_eq!(one.ino(), two.ino(), "a file with two names is one");
    // And the other way.
    let out = tree.beside("out").display().to_string();
    copied(&[&inside("/made"), &out]);
    assert_eq!(fs::read_to_string(tree.beside("out/deep/two")).unwrap(), "two\n");
    copied(&[&inside("made/deep/two"), &out]);
    assert_eq!(fs::read_to_string(tree.beside("out/two")).unwrap(), "two\n");
    for (from, to, reason) in [
        (source("missing"), inside("/x"), "No such file"),
        (source("file"), inside("/missing/x"), "No such file"),
        (source("file"), inside("/missing/"), "No such file"),
        (source("dir"), inside("/new"), "it is not a directory"),
        (source("file/"), inside("/x"), "ot a directory"),
        (inside("/missing"), out.clone(), "No such file"),
        (inside("/new"), "/nowhere/x".to_owned(), "No such file"),
        (inside("/new"), inside("/x"), "one end has to be outside"),
        (source("file"), out.clone(), "one end has to be in a container"),
        (source("file"), "nobody:/x".to_owned(), "there is no container nobody"),
    ] {
        refused(&cp(&[&from, &to]), reason);
    }
    printed(finish(Command::new(RLAUNCH).args(["stop", "--time=0", "cp-where"])));
    refused(&cp(&[&source("file"), &inside("/x")]), "rlaunch start cp-where");
}

#[test]
fn modes_and_times_are_kept_and_owners_on_demand() {
    let Some(tree) = start("cp-keep", &[]) else { return };
    let source = |name: &str| tree.beside("source").join(name).display().to_string();
    let out = tree.beside("out");
    fs::create_dir(&out).unwrap();
    let out = out.display().to_string();
    for (option, owner, set_id) in [(None, (0, 0), 0o777), (Some("-a"), (33, 44), 0o7777)] {
        let with = |words: [&str; 2]| copied(&option.into_iter().chain(words).collect::<Vec<_>>());
        with([&source("file"), "cp-keep:/etc/file"]);
        with([&source("dir"), "cp-keep:/etc"]);
        let expect = |path: &Path, mode: u32| {
            assert_eq!(attributes(path), (mode & set_id, owner.0, owner.1, TIME.0, TIME.1), "{}", path.display());
        };
        expect(&tree.path("etc/file"), 0o4750);
        expect(&tree.path("etc/dir"), 0o2711);
        let link = attributes(&tree.path("etc/dir/link"));
        assert_eq!((link.1, link.2, link.3, link.4), (owner.0, owner.1, TIME.0, TIME.1));
        with(["cp-keep:/etc/file", &out]);
        with(["cp-keep:/etc/dir", &out]);
        expect(&tree.beside("out/file"), 0o4750);
        expect(&tree.beside("out/dir"), 0o2711);
    }
}

#[test]
fn streams_are_those_of_tar() {
    let Some(tree) = start("cp-tar", &[]) else { return };
    let source = tree.beside("source").display().to_string();
    sh(&format!("tar -C {source} -cf - file dir | {RLAUNCH} cp - cp-tar:/etc"));
    assert_eq!(attributes(&tree.path("etc/file")).1, 33, "the stream says whose it is");
    assert_eq!(fs::read_to_string(tree.path("etc/dir/again")).unwrap(), "two\n");
    let list = Command::new("sh").args(["-c", &format!("{RLAUNCH} cp cp-tar:/etc/dir - | tar -tf - | sort")]).output();
    assert_eq!(
        String::from_utf8(list.unwrap().stdout).unwrap(),
        "dir/\ndir/again\ndir/deep/\ndir/deep/two\ndir/link\n"
    );
    let mut command = Command::new(RLAUNCH);
    command.args(["cp", "-", "cp-tar:/etc"]).stdin(Stdio::null());
    assert_eq!(finish(&mut command).status, Some(0), "an empty stream is a stream");
    // What leads out of the directory is refused, and nothing is made of what is no file.
    for (names, reason) in [("../up", "leads out"), ("a/../../up", "leads out")] {
        let script =
            format!("cd {source}; tar -P --transform 's,^file$,{names},' -cf - file | {RLAUNCH} cp - cp-tar:/etc");
        refused(&finish(Command::new("sh").args(["-c", &script])), reason);
    }
    assert!(!tree.path("up").exists());
    // A link in the stream is not followed by what comes behind it.
    sh(&format!("mkdir -p {source}/l/a {source}/m; ln -s /bin {source}/m/a; echo x > {source}/l/a/evil"));
    let script = format!(
        "cd {source}; (tar -C m --no-recursion -cf - a; tar -C l -cf - a/evil) | tar --ignore-zeros -cf all.tar @- 2> /dev/null; \
                          tar -C m -cf all.tar a; tar -C l -rf all.tar a/evil; {RLAUNCH} cp - cp-tar:/etc < all.tar"
    );
    let outcome = finish(Command::new("sh").args(["-c", &script]));
    refused(&outcome, "a/evil");
    assert!(!tree.path("bin/evil").exists());
}

#[test]
fn a_container_can_neither_lead_a_copy_out_nor_hand_a_device_over() {
    let Some(tree) = start("cp-bad", &["--tmpfs", "/mine"]) else { return };
    let source = |name: &str| tree.beside("source").join(name).display().to_string();
    let victim = tree.beside("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "precious\n").unwrap();
    // Links in the container are those of the container.
    symlink(&victim, tree.path("way")).unwrap();
    symlink("../../../../../../../..", tree.path("up")).unwrap();
    symlink(victim.join("file"), tree.path("direct")).unwrap();
    refused(&cp(&[&source("file"), "cp-bad:/way/file"]), "No such file");
    copied(&[&source("file"), "cp-bad:/up/made"]);
    assert_eq!(fs::read_to_string(tree.path("made")).unwrap(), "one\n");
    copied(&[&source("file"), "cp-bad:/direct"]);
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "precious\n");
    assert_eq!(fs::read_to_string(tree.path("direct")).unwrap(), "one\n", "the link was replaced");
    // Mounts in it are seen as it sees them.
    copied(&[&source("file"), "cp-bad:/mine/file"]);
    assert!(!tree.path("mine/file").exists());
    assert_eq!(printed(finish(Command::new(RLAUNCH).args(["exec", "cp-bad", "cat", "/mine/file"]))), "one\n");
    // What the kernel says of this machine, and its switches, are as closed as for the container's root.
    let outcome = cp(&[&source("file"), "cp-bad:/proc/sys/kernel/core_pattern"]);
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    // Neither devices nor pipes come out, and nobody waits for one.
    let bad = tree.path("bad");
    fs::create_dir(&bad).unwrap();
    mknod(&bad.join("disk"), SFlag::S_IFBLK, Mode::from_bits_truncate(0o666), nix::sys::stat::makedev(7, 0)).unwrap();
    mkfifo(&bad.join("pipe"), Mode::from_bits_truncate(0o666)).unwrap();
    symlink("/etc/shadow", bad.join("link")).unwrap();
    fs::write(bad.join("good"), "good\n").unwrap();
    let out = tree.beside("out");
    let outcome = cp(&["-a", "cp-bad:/bad", out.to_str().unwrap()]);
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("is left out").count(), 2, "{outcome:?}");
    let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["good", "link"]);
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("/etc/shadow"));
    let pipe = cp(&["cp-bad:/bad/pipe", out.to_str().unwrap()]);
    assert!(pipe.stderr.contains("is left out"), "{pipe:?}");
    // A link outside, at a name that the container chooses, is not followed.
    fs::create_dir(tree.path("bad/link2")).unwrap();
    fs::write(tree.path("bad/link2/file"), "evil\n").unwrap();
    symlink(&victim, out.join("link2")).unwrap();
    let outcome = cp(&["cp-bad:/bad/.", out.to_str().unwrap()]);
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "precious\n");
    assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o755);
}
