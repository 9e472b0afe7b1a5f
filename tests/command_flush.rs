//! `runionfs flush`: what records join becomes real hard links (rule 32).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, Outcome, finish};
use harness::sandbox::{self, Medium};
use harness::snapshot::{Exactness, Snapshot, WORK_AREA, names};
use harness::{Errno, ErrnoOf as _};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn try_flush(union: impl AsRef<OsStr>, more: &[&str]) -> Outcome {
    finish(Command::new(BIN).arg("flush").arg(union).args(more))
}

#[track_caller]
fn flush(union: impl AsRef<OsStr>) {
    let outcome = try_flush(union, &[]);
    assert_eq!((outcome.status, &*outcome.stderr, &*outcome.stdout), (Some(0), "", ""));
}

/// What the work area of a branch keeps of hard links.
fn records(branch: &Path) -> usize {
    names(&branch.join(WORK_AREA).join("links")).unwrap().len()
}

fn links(path: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(path).unwrap().nlink()
}

/// Asserts that names are one file of so many links, in the union and on their branch.
#[track_caller]
fn assert_real(u: &Union, branch: &str, names: &[&str], content: &str) {
    let ino = u.stat(names[0]).ino();
    for name in names {
        let shown = u.stat(name);
        let below = fs::symlink_metadata(u.at(branch).join(name));
        let below = below.unwrap_or_else(|error| panic!("{name} on its branch: {error}"));
        assert_eq!((shown.ino(), shown.nlink()), (ino, names.len() as u64), "{name}");
        assert_eq!(below.nlink(), names.len() as u64, "{name} on its branch");
        assert_eq!(u.read(name), content, "{name}");
    }
}

/// One file of six names in the branch below, two of which go, and one that is there by itself.
fn six_names(medium: Medium) -> Option<Branches> {
    let branches = Branches::on(medium, BIN, &["rw", "ro+wh"])?;
    branches.file("1/a", "old").dir("1/d/e").mode("1/d", 0o710).owner("1/d", 3, 4);
    for name in ["1/b", "1/c", "1/d/x", "1/d/e/y", "1/d/e/z"] {
        branches.hard_link("1/a", name);
    }
    branches.file("1/alone", "alone").hard_link("1/alone", "1/d/alone");
    Some(branches)
}

fn change(u: &Union) {
    u.write("b", "new");
    fs::remove_file(u.path("c")).unwrap();
    fs::remove_file(u.path("d/e/z")).unwrap();
    fs::rename(u.path("a"), u.path("d/moved")).unwrap();
    fs::hard_link(u.path("d/x"), u.path("more")).unwrap();
}

const LEFT: [&str; 5] = ["b", "d/moved", "more", "d/x", "d/e/y"];

#[test]
fn records_become_hard_links_of_the_top() {
    for medium in [Medium::Disk, Medium::Tmpfs] {
        let Some(branches) = six_names(medium) else { return };
        let mut u = branches.mount();
        change(&u);
        let before = Snapshot::take(&u.path(""));
        assert_eq!((u.stat("b").nlink(), records(&u.at("0"))), (5, 2));
        flush(u.path(""));
        assert_eq!(records(&u.at("0")), 0);
        assert_real(&u, "0", &LEFT, "new");
        before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "a flush is not seen");
        let d = fs::metadata(u.at("0/d")).unwrap();
        assert_eq!((d.mode() & 0o7777, d.uid(), d.gid()), (0o710, 3, 4), "a directory comes up as it is");
        assert!(!u.at("0/d/alone").exists() && !u.at("0/alone").exists(), "what was not changed stays below");
        for name in LEFT {
            fs::write(u.path(name), format!("by {name}")).unwrap();
            assert_real(&u, "0", &LEFT, &format!("by {name}"));
            u.remount_and_compare();
        }
        fs::remove_file(u.path("d/x")).unwrap();
        fs::remove_file(u.path("b")).unwrap();
        assert_real(&u, "0", &["more", "d/moved", "d/e/y"], "by d/e/y");
        u.remount_and_compare();
        flush(u.path(""));
        u.assert_no_temporaries(0);
    }
}

#[test]
fn branches_that_are_not_mounted_are_flushed_here() {
    let Some(branches) = six_names(Medium::Disk) else { return };
    let string = branches.string();
    let mut u = branches.mount();
    change(&u);
    let before = Snapshot::take(&u.path(""));
    let outcome = try_flush(u.at("0"), &[]);
    assert_eq!(outcome.status, Some(1), "a directory is no union: {outcome:?}");
    let busy = try_flush(&string, &[]);
    assert!(busy.status == Some(1) && busy.stderr.contains("in use by another mount"), "{busy:?}");
    u.mounted.umount();
    flush(&string);
    assert_eq!((records(&u.at("0")), links(u.at("0/d/e/y"))), (0, 5));
    u.mounted.mount_again();
    before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "a flush is not seen");
    assert_real(&u, "0", &LEFT, "new");
}

#[test]
fn a_work_area_elsewhere_is_named() {
    let Some(branches) = six_names(Medium::Disk) else { return };
    fs::create_dir(branches.at("work")).unwrap();
    let (string, work) = (branches.string(), format!("workdir={}", branches.at("work").display()));
    let mut u = branches.mount_with(&[&work]);
    change(&u);
    u.mounted.umount();
    let outcome = try_flush(&string, &["-o", &work]);
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert_eq!((records(&u.at("work")), links(u.at("0/d/e/y"))), (0, 5));
    u.mounted.mount_again();
    assert_real(&u, "0", &LEFT, "new");
}

/// A copy of a flushed top, as plain tools make it, is the same layer over the same branches.
#[test]
fn a_flushed_top_stands_alone() {
    let Some(branches) = six_names(Medium::Disk) else { return };
    let mut u = branches.mount();
    change(&u);
    flush(u.path(""));
    u.mounted.umount();
    let (copy, mnt) = (u.at("copy"), u.at("mnt"));
    sandbox::run(Command::new("cp").arg("-a").arg(u.at("0")).arg(&copy));
    fs::remove_dir_all(copy.join(WORK_AREA)).unwrap();
    let layer = format!("{}=rw:{}=ro+wh", copy.display(), u.at("1").display());
    let mut mounted = Mounted::mount(BIN, layer, &mnt, &[]);
    for name in LEFT {
        assert_eq!((fs::read_to_string(mnt.join(name)).unwrap(), links(mnt.join(name))), ("new".into(), 5), "{name}");
    }
    fs::write(mnt.join("more"), "in the copy").unwrap();
    assert_eq!(fs::read_to_string(mnt.join("d/e/y")).unwrap(), "in the copy");
    mounted.umount();
    u.mounted.mount_again();
}

#[test]
fn open_files_keep_working_over_a_flush() {
    let Some(branches) = six_names(Medium::Disk) else { return };
    let u = branches.mount();
    let early = File::options().read(true).write(true).open(u.path("d/e/y")).unwrap();
    let nameless = File::options().read(true).write(true).open(u.path("d/alone")).unwrap();
    let reader = File::open(u.path("d/x")).unwrap();
    change(&u);
    // its names are not known any more, but the other one leads to the copy
    fs::remove_file(u.path("d/alone")).unwrap();
    nameless.write_all_at(b"NAMELESS", 0).unwrap();
    flush(u.path(""));
    early.write_all_at(b"NEW!", 0).unwrap();
    nameless.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    let mut content = [0; 4];
    reader.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"NEW!");
    assert_real(&u, "0", &LEFT, "NEW!");
    assert_real(&u, "0", &["alone"], "NAMELESS");
    assert_eq!((nameless.metadata().unwrap().nlink(), u.mode("alone")), (1, 0o640));
    for name in LEFT {
        fs::remove_file(u.path(name)).unwrap();
    }
    assert_eq!(early.metadata().unwrap().nlink(), 0);
    early.write_all_at(b"gone", 0).unwrap();
    reader.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"gone");
}

#[test]
fn names_that_nobody_sees_stay_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/a", "old").dir("2/d").hard_link("2/a", "2/d/b").hard_link("2/a", "2/c").hard_link("2/a", "2/e");
    branches.whiteout("1/c").file("1/e", "above").file("1/plain", "");
    let mut u = branches.mount();
    u.write("a", "new");
    assert_eq!(u.stat("a").nlink(), 4);
    flush(u.path(""));
    for _remounted in 0..2 {
        assert_real(&u, "0", &["a", "d/b"], "new");
        assert_eq!((u.read("e"), u.list("")), ("above".into(), ["a", "d", "e", "plain"].map(Into::into).into()));
        u.mounted.remount();
    }
    assert_eq!(records(&u.at("0")), 0);
}

/// Each record is flushed on its own branch; what it joined can be carried further up afterwards.
#[test]
fn records_of_several_writable_branches_are_flushed_where_they_are() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.file("2/d/a", "old").dir("2/e").hard_link("2/d/a", "2/d/b").hard_link("2/d/a", "2/e/c").dir("1/d");
    branches.file("2/top", "old").hard_link("2/top", "2/e/top").dir("0/x").opaque("0/x").dir("1/x");
    let mut u = branches.mount();
    u.write("d/a", "new");
    u.write("top", "new");
    assert_eq!((records(&u.at("0")), records(&u.at("1"))), (2, 2), "what this test is about");
    assert_eq!(fs::rename(u.path("d/b"), u.path("x/b")).errno(), Errno::EXDEV, "a known limit");
    flush(u.path(""));
    for _remounted in 0..2 {
        assert_eq!((records(&u.at("0")), records(&u.at("1"))), (0, 0));
        assert_real(&u, "1", &["d/a", "d/b", "e/c"], "new");
        assert_real(&u, "0", &["top", "e/top"], "new");
        u.mounted.remount();
    }
    fs::rename(u.path("d/b"), u.path("x/b")).unwrap();
    u.write("e/c", "newer");
    for name in ["d/a", "x/b", "e/c"] {
        assert_eq!((u.read(name), u.stat(name).nlink()), ("newer".into(), 3), "{name}");
    }
    flush(u.path(""));
    assert_real(&u, "0", &["d/a", "x/b", "e/c"], "newer");
    u.remount_and_compare();
}

/// A directory that a higher branch has renamed cannot be brought up to the branch of the record; nothing is torn.
#[test]
fn names_that_their_branch_cannot_show_stay_joined() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.file("2/e/a", "old").dir("2/D/sub").hard_link("2/e/a", "2/D/b").hard_link("2/e/a", "2/D/sub/c");
    branches.dir("0/x").opaque("0/x").dir("1/e").file("2/p", "old").hard_link("2/p", "2/e/q");
    let mut u = branches.mount();
    fs::rename(u.path("D"), u.path("x/D")).unwrap();
    u.write("e/a", "new");
    u.write("p", "new");
    assert_eq!(records(&u.at("1")), 2, "what this test is about");
    let before = Snapshot::take(&u.path(""));
    for _remounted in 0..2 {
        let outcome = try_flush(u.path(""), &[]);
        assert!(outcome.status == Some(1) && outcome.stderr.contains("1 hard-linked file has names"), "{outcome:?}");
        before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "a flush is not seen");
        for name in ["e/a", "x/D/b", "x/D/sub/c"] {
            assert_eq!((u.read(name), u.stat(name).nlink()), ("new".into(), 3), "{name}");
        }
        u.mounted.remount();
    }
    assert_real(&u, "0", &["p", "e/q"], "new");
}

#[test]
fn special_files_and_symlinks_are_flushed_too() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.symlink("1/link", "target").dir("1/d");
    fs::hard_link(branches.at("1/link"), branches.at("1/d/link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        branches.at("1/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    branches.hard_link("1/fifo", "1/d/fifo");
    let mut u = branches.mount();
    std::os::unix::fs::lchown(u.path("link"), Some(5), None).unwrap();
    fs::set_permissions(u.path("d/fifo"), fs::Permissions::from_mode(0o644)).unwrap();
    flush(u.path(""));
    for name in ["link", "d/link", "fifo", "d/fifo"] {
        assert_eq!((u.stat(name).nlink(), links(u.at("0").join(name))), (2, 2), "{name}");
    }
    assert_eq!(fs::read_link(u.at("0/d/link")).unwrap(), Path::new("target"));
    u.remount_and_compare();
}

/// Many files with many names each, over a flush, with others at work: no link count is ever wrong.
#[test]
fn link_counts_are_right_at_every_moment() {
    const FILES: usize = 150;
    const NAMES: usize = 5;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for file in 0..FILES {
        branches.file(format!("1/0/f{file}"), "old");
        for name in 1..NAMES {
            branches.dir(format!("1/{name}"));
            branches.hard_link(format!("1/0/f{file}"), format!("1/{name}/f{file}"));
        }
    }
    let mut u = branches.mount();
    for file in 0..FILES {
        u.write(format!("{}/f{file}", file % NAMES), "new");
    }
    let over = AtomicBool::new(false);
    let looked = thread::scope(|scope| {
        let watchers: Vec<_> = (0..2)
            .map(|watcher| {
                let (u, over) = (&u, &over);
                scope.spawn(move || {
                    let mut looked = 0;
                    // once more when it is over, so that something was looked at
                    loop {
                        let last = over.load(Ordering::Acquire);
                        for file in 0..FILES {
                            let path = u.path(format!("{}/f{file}", (looked + watcher) % NAMES));
                            // asks the daemon, whatever the kernel remembers
                            let seen = rustix::fs::statx(
                                rustix::fs::CWD,
                                &path,
                                rustix::fs::AtFlags::STATX_FORCE_SYNC,
                                rustix::fs::StatxFlags::NLINK,
                            );
                            assert_eq!(seen.unwrap().stx_nlink, NAMES as u32, "{}", path.display());
                        }
                        looked += 1;
                        if last {
                            return looked;
                        }
                    }
                })
            })
            .collect();
        flush(u.path(""));
        over.store(true, Ordering::Release);
        watchers.into_iter().map(|watcher| watcher.join().unwrap()).sum::<usize>()
    });
    assert!(looked >= 2);
    assert_eq!(records(&u.at("0")), 0);
    for file in 0..FILES {
        let names: Vec<_> = (0..NAMES).map(|name| format!("{name}/f{file}")).collect();
        assert_real(&u, "0", &names.iter().map(String::as_str).collect::<Vec<_>>(), "new");
    }
    u.remount_and_compare();
}

/// Names come and go while they are flushed; what is left at the end is one file for each.
#[test]
fn work_goes_on_during_a_flush() {
    const FILES: usize = 30;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for file in 0..FILES {
        branches.file(format!("1/a/{file}"), format!("{file}"));
        for dir in ["b", "c", "d"] {
            branches.dir(format!("1/{dir}")).hard_link(format!("1/a/{file}"), format!("1/{dir}/{file}"));
        }
    }
    let mut u = branches.mount();
    for file in 0..FILES {
        fs::set_permissions(u.path(format!("a/{file}")), fs::Permissions::from_mode(0o600)).unwrap();
    }
    thread::scope(|scope| {
        let at = |file: usize, dir: &str| u.path(format!("{dir}/{file}"));
        scope.spawn(move || (0..FILES).for_each(|file| fs::remove_file(at(file, "b")).unwrap()));
        scope.spawn(move || (0..FILES).for_each(|file| fs::rename(at(file, "c"), at(file, "d")).unwrap()));
        scope.spawn(move || {
            (0..FILES).for_each(|file| fs::rename(at(file, "d"), at(file, "c").with_extension("x")).unwrap())
        });
        scope.spawn(move || {
            (0..FILES).for_each(|file| fs::hard_link(at(file, "a"), at(file, "a").with_extension("l")).unwrap())
        });
        scope.spawn(move || (0..FILES).for_each(|file| fs::write(at(file, "a"), format!("{file}")).unwrap()));
        for _ in 0..4 {
            flush(u.path(""));
        }
    });
    flush(u.path(""));
    assert_eq!(records(&u.at("0")), 0);
    for file in 0..FILES {
        // renaming one name of a file to another of it does nothing, and leaves both
        let known = [
            format!("a/{file}"),
            format!("a/{file}.l"),
            format!("c/{file}.x"),
            format!("c/{file}"),
            format!("d/{file}"),
        ];
        let left: Vec<&str> = known.iter().map(String::as_str).filter(|name| u.exists(name)).collect();
        assert!(left.len() >= 3, "{left:?}");
        assert_real(&u, "0", &left, &format!("{file}"));
    }
    u.remount_and_compare();
}

#[test]
fn what_cannot_be_brought_up_stays_joined() {
    let Some(sandbox) = sandbox::enter() else { return };
    let top = sandbox.small_ext4("0", 8, &["-N", "64", "-O", "^resize_inode"]);
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("1/a", "old");
    for dir in 0..80 {
        branches.dir(format!("1/d{dir}")).hard_link("1/a", format!("1/d{dir}/b"));
    }
    let mut u = branches.mount();
    u.write("a", "new");
    let outcome = try_flush(u.path(""), &[]);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("1 hard-linked file has names that could not be brought up"), "{outcome:?}");
    assert!(names(&top).unwrap().len() > 5, "some came up");
    for _remounted in 0..2 {
        for dir in [0, 17, 79] {
            let path = format!("d{dir}/b");
            assert_eq!((u.stat(&path).nlink(), u.read(&path)), (81, "new".into()));
        }
        u.mounted.remount();
    }
    u.assert_no_temporaries(0);
}

/// Nothing is linked to, or loses a link, as long as its flags forbid it.
#[test]
fn what_flags_protect_is_flushed_once_it_is_free() {
    let Some(sandbox) = sandbox::enter() else { return };
    assert!(sandbox.small_ext4("0", 16, &[]).is_dir() && sandbox.small_ext4("1", 16, &[]).is_dir());
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    for name in ["imm", "app", "free"] {
        branches.file(format!("1/{name}"), "low").dir("1/d").hard_link(format!("1/{name}"), format!("1/d/{name}"));
    }
    let chattr = |flag: &str, path: &Path| sandbox::run(Command::new("chattr").arg(flag).arg(path));
    chattr("+a", &branches.at("1/app"));
    let mut u = branches.mount();
    u.write("imm", "new");
    chattr("+i", &u.path("imm"));
    u.write("free", "new");
    File::options().append(true).open(u.path("d/app")).unwrap().write_all(b"+").unwrap();
    let outcome = try_flush(u.path(""), &[]);
    assert!(outcome.status == Some(1) && outcome.stderr.contains("2 hard-linked files have names"), "{outcome:?}");
    assert_real(&u, "0", &["free", "d/free"], "new");
    for _remounted in 0..2 {
        for (name, content) in [("imm", "new"), ("app", "low+")] {
            let other = format!("d/{name}");
            assert_eq!((u.read(name), u.read(&other)), (content.into(), content.into()), "{name}");
            assert_eq!((u.stat(name).nlink(), u.stat(&other).nlink()), (2, 2), "{name}");
        }
        u.mounted.remount();
    }
    chattr("-i", &u.path("imm"));
    chattr("-a", &u.path("app"));
    flush(u.path(""));
    assert_real(&u, "0", &["imm", "d/imm"], "new");
    assert_real(&u, "0", &["app", "d/app"], "low+");
    u.remount_and_compare();
}

#[test]
fn deep_wide_and_odd_names_are_found() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro", "ro+wh"]) else { return };
    use std::os::unix::ffi::OsStrExt as _;
    let deep = vec!["n".repeat(60); 60].join("/");
    let odd = Path::new(OsStr::from_bytes(b"2/\xff \n/\xfe"));
    let long = format!("2/{}", "x".repeat(255));
    branches.file("2/a", "old").dir(format!("2/{deep}")).dir(odd.parent().unwrap()).dir("2/wide").dir("1/wide");
    branches.hard_link("2/a", format!("2/{deep}/b")).hard_link("2/a", odd).hard_link("2/a", &long);
    for name in 0..3000 {
        branches.file(format!("{}/wide/{name}", 1 + name % 2), "");
    }
    branches.hard_link("2/a", "2/wide/last");
    let mut u = branches.mount();
    u.write("a", "new");
    assert_eq!(u.stat("a").nlink(), 5);
    flush(u.path(""));
    assert_eq!((records(&u.at("0")), links(u.at("0/a")), links(u.at("0").join(&deep).join("b"))), (0, 5, 5));
    assert_eq!(names(&u.at("0/wide")).unwrap().len(), 1);
    u.remount_and_compare();
}

/// Directories are renamed with names in them that have to be brought up, before a flush and during it.
#[test]
fn names_in_renamed_directories_are_found() {
    const FILES: usize = 20;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    for file in 0..FILES {
        branches.file(format!("2/a/b/c/{file}"), "old").dir("2/x/y").dir("2/m").dir("1/a/b/c").dir("1/x");
        branches.hard_link(format!("2/a/b/c/{file}"), format!("2/x/y/{file}"));
        branches.hard_link(format!("2/a/b/c/{file}"), format!("2/m/{file}"));
    }
    let mut u = branches.mount();
    fs::create_dir(u.path("new")).unwrap();
    fs::rename(u.path("a/b"), u.path("new/b")).unwrap();
    for file in 0..FILES {
        u.write(format!("m/{file}"), "new");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..40 {
                fs::rename(u.path("new"), u.path("newer")).unwrap();
                fs::rename(u.path("x/y"), u.path("newer/y")).unwrap();
                fs::rename(u.path("newer/y"), u.path("x/y")).unwrap();
                fs::rename(u.path("newer"), u.path("new")).unwrap();
            }
        });
        for _ in 0..3 {
            // what moves all the time may be missed, but then it is said, and joined as it was
            let outcome = try_flush(u.path(""), &[]);
            assert!(outcome.status == Some(0) || outcome.stderr.contains("could not be brought up"), "{outcome:?}");
        }
    });
    flush(u.path(""));
    assert_eq!(records(&u.at("0")), 0);
    for _remounted in 0..2 {
        for file in 0..FILES {
            let names = [format!("new/b/c/{file}"), format!("x/y/{file}"), format!("m/{file}")];
            assert_real(&u, "0", &names.each_ref().map(String::as_str), "new");
        }
        u.mounted.remount();
    }
}

#[test]
fn a_union_without_records_is_left_alone() {
    let Some(branches) = six_names(Medium::Disk) else { return };
    let u = branches.mount();
    // hides names of what is not copied up: that is for this union alone, and stays
    fs::remove_file(u.path("c")).unwrap();
    let before = Snapshot::take(&u.at("0"));
    flush(u.path(""));
    before.assert_same(&Snapshot::take(&u.at("0")), Exactness::Equal, "nothing to do");
    assert_eq!(u.stat("a").nlink(), 5);
}
