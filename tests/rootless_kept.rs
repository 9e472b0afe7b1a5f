//! Owners, modes and types that are kept beside entries (`user.containers.override_stat`), read and written.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::mount::{finish, poll};
use harness::rootless::{self, USER, give};
use harness::sandbox::{self, Sandbox};
use harness::snapshot::{Exactness, Snapshot};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, makedev, mknodat};
use rustix::io::Errno;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");
const OVERRIDE: &str = "user.containers.override_stat";

fn kept(path: &Path) -> Option<String> {
    let mut value = [0; 200];
    match lgetxattr(path, OVERRIDE, &mut value[..]) {
        Ok(length) => Some(String::from_utf8_lossy(&value[..length]).into_owned()),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
        Err(errno) => panic!("{}: {errno}", path.display()),
    }
}

fn keep(path: &Path, text: &str) {
    lsetxattr(path, OVERRIDE, text.as_bytes(), XattrFlags::empty()).expect("set the attribute");
}

/// Type, device, mode, owner and group as text.
fn look(path: &Path) -> String {
    let about = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = about.file_type();
    let device = format!("{}:{}", rustix::fs::major(about.rdev()), rustix::fs::minor(about.rdev()));
    let word = match () {
        () if kind.is_char_device() => format!("char {device}"),
        () if kind.is_block_device() => format!("block {device}"),
        () if kind.is_fifo() => "fifo".into(),
        () if kind.is_socket() => "socket".into(),
        () if kind.is_symlink() => "symlink".into(),
        () if kind.is_dir() => "dir".into(),
        () => "file".into(),
    };
    format!("{word} {:o} {}:{}", about.mode() & 0o7777, about.uid(), about.gid())
}

/// What others write, and how it is shown.
const WRITTEN: &[(&str, &str, &str)] = &[
    ("plain", "7:8:0640:file", "file 640 7:8"),
    ("short", "7:8:4755", "file 4755 7:8"),
    ("null", "0:0:0666:char1:3", "char 1:3 666 0:0"),
    ("disk", "0:6:0660:block-8-1", "block 8:1 660 0:6"),
    ("pipe", "1:2:0600:pipe", "fifo 600 1:2"),
    ("socket", "1:2:0777:socket", "socket 777 1:2"),
    ("no-such-type", "1:2:0777:dir", "file 777 1:2"),
    ("garbage", "root:root:rw", "file 644 0:0"),
    ("none", "", "file 644 0:0"),
];

/// A branch `1` with all of these, and one of each type that cannot carry the attribute.
fn written_by_others(branches: &Branches, marked: bool) {
    for (name, text, _) in WRITTEN {
        branches.file(format!("1/d/{name}"), "");
        if !text.is_empty() {
            keep(&branches.at(format!("1/d/{name}")), text);
        }
    }
    keep(&branches.at("1/d"), "3:4:02750:dir");
    branches.symlink("1/link", "d/plain");
    if marked {
        keep(&branches.at("1"), "0:0:0755:dir");
    }
}

#[test]
fn a_marked_branch_shows_what_is_kept_and_a_copy_of_it_is_real() {
    let Some(branches) = Branches::new(BINARY, &["rw", "ro+wh"]) else { return };
    written_by_others(&branches, true);
    let mut union = branches.mount();
    assert_eq!(look(&union.path("d")), "dir 2750 3:4");
    for (name, _, shown) in WRITTEN {
        assert_eq!(look(&union.path("d").join(name)), *shown, "{name}");
    }
    for entry in fs::read_dir(union.path("d")).expect("list") {
        let entry = entry.expect("an entry");
        let (listed, found) = (entry.file_type().expect("a type"), entry.metadata().expect("stat").file_type());
        assert_eq!(listed, found, "{}", entry.path().display());
    }
    for (name, _, shown) in WRITTEN {
        fs::rename(union.path("d").join(name), union.path(name)).expect("rename");
        assert_eq!(look(&union.path(name)), *shown, "{name}");
        let below = union.at("0").join(name);
        assert_eq!((look(&below), kept(&below)), ((*shown).to_owned(), None), "{name} in the top");
    }
    assert_eq!(kept(&union.at("0")), None, "root has nothing to keep");
    union.remount_and_compare();
}

#[test]
fn a_branch_that_is_not_marked_is_read_as_it_lies() {
    let Some(branches) = Branches::new(BINARY, &["rw", "ro+wh"]) else { return };
    written_by_others(&branches, false);
    let union = branches.mount();
    for (name, ..) in WRITTEN {
        assert_eq!(look(&union.path("d").join(name)), "file 644 0:0", "{name}");
    }
    // nor is the attribute carried to where it might mean something
    fs::set_permissions(union.path("d/null"), PermissionsExt::from_mode(0o600)).expect("chmod");
    assert_eq!(kept(&union.at("0/d/null")), None);
}

#[test]
fn the_attribute_is_nobodys_to_see_or_to_set() {
    for marked in [true, false] {
        let Some(branches) = Branches::new(BINARY, &["rw", "ro+wh"]) else { return };
        written_by_others(&branches, marked);
        let union = branches.mount();
        union.write("mine", "");
        for name in ["", "d", "d/plain", "mine"] {
            let path = union.path(name);
            assert_eq!(kept(&path), None, "{name}");
            assert!(harness::snapshot::xattrs(&path).expect("list").is_empty(), "{name}");
            for attribute in [OVERRIDE, "user.containers.override_security.capability"] {
                let set = lsetxattr(&path, attribute, b"0:0:04777", XattrFlags::empty());
                assert_eq!(set, Err(Errno::PERM), "{name} {attribute}");
                assert_eq!(rustix::fs::lremovexattr(&path, attribute), Err(Errno::NODATA), "{name} {attribute}");
            }
        }
    }
}

#[test]
fn what_root_changes_in_a_marked_branch_becomes_real() {
    let Some(branches) = Branches::new(BINARY, &["ro", "rw"]) else { return };
    written_by_others(&branches, true);
    let mut union = branches.mount();
    fs::set_permissions(union.path("d/plain"), PermissionsExt::from_mode(0o604)).expect("chmod");
    chown(union.path("d/short"), Some(9), None).expect("chown");
    fs::set_permissions(union.path("d/null"), PermissionsExt::from_mode(0o600)).expect("chmod");
    for (name, shown, left) in [
        ("d/plain", "file 604 7:8", None),
        ("d/short", "file 755 9:8", None),
        ("d/null", "char 1:3 600 0:0", Some("0:0:0600:char1:3")),
    ] {
        assert_eq!(look(&union.path(name)), shown, "{name}");
        assert_eq!(kept(&union.at("1").join(name)).as_deref(), left, "{name}");
    }
    union.remount_and_compare();
}

/// A daemon of root lists the attributes of each branch's root, and asks for the one that keeps nowhere where no root
/// has it.
#[test]
fn root_asks_for_nothing_where_nothing_is_kept() {
    let Some(branches) = Branches::new(BINARY, &["rw", "ro+wh", "ro+wh"]) else { return };
    for name in ["1/a/b", "2/a/c", "0/d"] {
        branches.file(name, "");
    }
    let log = branches.at("log");
    let target = branches.at("mnt");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=listxattr,getxattr,lgetxattr,fgetxattr", "-o"])
        .arg(&log)
        .args([BINARY, "mount"])
        .arg(branches.string())
        .arg(&target)
        .stderr(Stdio::null())
        .spawn()
        .expect("start strace");
    let mounted = || sandbox::mounts_below(&target).contains(&target);
    poll(Duration::from_secs(60), || mounted().then_some(())).expect("it mounts");
    drop(Snapshot::take(&target));
    fs::write(target.join("a/b"), "changed").expect("write");
    fs::set_permissions(target.join("a/c"), PermissionsExt::from_mode(0o600)).expect("chmod");
    drop(Snapshot::take(&target));
    sandbox::run(Command::new(BINARY).arg("umount").arg(&target));
    strace.wait().expect("wait for strace");
    let log = fs::read_to_string(log).expect("read the log");
    let count = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert!(count("listxattr(") >= 3 && count("override") == 0, "{log}");
}

/// The mount of an ordinary user, used by root.
fn of_a_user(access: &[&str]) -> Option<(Union, Snapshot)> {
    of_a_user_in(sandbox::enter()?, access)
}

fn of_a_user_in(sandbox: Sandbox, access: &[&str]) -> Option<(Union, Snapshot)> {
    if !rootless::ordinary_daemons(&sandbox) {
        return None;
    }
    let branches = Branches::inside(sandbox, BINARY, access);
    for name in ["0", "1", "mnt"] {
        give(&branches.at(name));
    }
    for (name, kind) in [("null", FileType::CharacterDevice), ("fifo", FileType::Fifo), ("file", FileType::RegularFile)]
    {
        let path = branches.at("1").join(name);
        mknodat(CWD, &path, kind, Mode::from(0o644), makedev(1, 3)).expect("mknod");
        lchown(&path, Some(11), Some(12)).expect("chown");
    }
    symlink("file", branches.at("1/link")).expect("symlink");
    lchown(branches.at("1/link"), Some(11), Some(12)).expect("chown");
    let union = branches.mount();
    let before = Snapshot::take(union.mounted.target());
    Some((union, before))
}

#[test]
fn what_root_does_in_the_mount_of_a_user_is_kept_there() {
    let Some((mut union, _)) = of_a_user(&["rw", "ro+wh"]) else { return };
    let user = format!("{USER}:{USER}");
    mknodat(CWD, union.path("disk"), FileType::BlockDevice, Mode::from(0o600), makedev(8, 1)).expect("mknod");
    chown(union.path("disk"), Some(33), Some(44)).expect("chown");
    fs::set_permissions(union.path("disk"), PermissionsExt::from_mode(0o6770)).expect("chmod");
    for name in ["null", "fifo", "file", "link"] {
        fs::rename(union.path(name), union.path(format!("my-{name}"))).expect("rename");
    }
    lchown(union.path("my-fifo"), Some(21), Some(22)).expect("chown");
    fs::set_permissions(union.path("my-file"), PermissionsExt::from_mode(0o4711)).expect("chmod");
    fs::create_dir(union.path("closed")).expect("mkdir");
    chown(union.path("closed"), Some(1), Some(2)).expect("chown");
    fs::set_permissions(union.path("closed"), PermissionsExt::from_mode(0o000)).expect("chmod");
    union.write("closed/inside", "x");
    chown(union.path("closed/inside"), Some(USER), Some(USER)).expect("chown");
    let shown = [
        ("disk", "block 8:1 6770 33:44", Some("33:44:6770:block8:1"), format!("file 770 {user}")),
        ("my-null", "char 1:3 644 11:12", Some("11:12:0644:char1:3"), format!("file 644 {user}")),
        ("my-fifo", "fifo 644 21:22", None, format!("fifo 644 {user}")),
        ("my-link", "symlink 777 11:12", None, format!("symlink 777 {user}")),
        ("my-file", "file 4711 11:12", Some("11:12:4711:file"), format!("file 711 {user}")),
        ("closed", "dir 0 1:2", Some("1:2:0000:dir"), format!("dir 700 {user}")),
        // given back to the user, nothing of it is refused any more
        ("closed/inside", &*format!("file 644 {user}"), None, format!("file 644 {user}")),
    ];
    for _ in 0..2 {
        for (name, as_shown, as_kept, real) in &shown {
            let below = union.at("0").join(name);
            assert_eq!(look(&union.path(name)), *as_shown, "{name}");
            assert_eq!(kept(&below).as_deref(), *as_kept, "{name}");
            assert_eq!(look(&below), *real, "{name}");
        }
        union.remount_and_compare();
    }
    exported(&union);
    read_by_root(union);
}

/// In a layer they are what they stand for.
fn exported(union: &Union) {
    let layer = union.at("layer.tar");
    sandbox::run(Command::new(BINARY).arg("export").arg(union.at("0")).arg("-o").arg(&layer));
    let list = finish(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&layer)).stdout;
    let list: Vec<String> = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for (start, end) in [
        ("brwsrws--- 33/44 8,1 ", "disk"),
        ("crw-r--r-- 11/12 1,3 ", "my-null"),
        ("prw-r--r-- 21/22 0 ", "my-fifo"),
        ("lrwxrwxrwx 11/12 0 ", "my-link -> file"),
        ("-rws--x--x 11/12 0 ", "my-file"),
        ("d--------- 1/2 0 ", "closed/"),
    ] {
        assert!(list.iter().any(|line| line.starts_with(start) && line.ends_with(end)), "{start}{end}: {list:#?}");
    }
}

/// A branch that an ordinary user wrote, below another one of root: the same tree.
fn read_by_root(mut union: Union) {
    let before = Snapshot::take(union.mounted.target());
    union.mounted.umount();
    let (top, target) = (union.at("top"), union.at("mnt"));
    fs::create_dir(&top).expect("mkdir");
    let branches = format!("{}=rw:{}=ro+wh:{}=ro+wh", top.display(), union.at("0").display(), union.at("1").display());
    let outcome = finish(Command::new(BINARY).args(["mount", &branches]).arg(&target));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    let mut after = Snapshot::take(&target);
    after.entries.remove(Path::new(""));
    let mut expected = before.clone();
    expected.entries.remove(Path::new(""));
    sandbox::run(Command::new(BINARY).arg("umount").arg(&target));
    expected.assert_same(&after, Exactness::Equal, "root sees something else");
    union.mounted.mount_again();
}

#[test]
fn capabilities_and_acls_are_kept_and_end_as_real_ones() {
    let Some((mut union, _)) = of_a_user(&["rw", "ro+wh"]) else { return };
    // cap_net_raw=ep, see capabilities(7)
    let capability = [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat();
    let path = union.path("file");
    let read = |path: &Path| harness::snapshot::xattrs(path).expect("list the attributes");
    let change_and_expect_none = |what: &str, change: &dyn Fn()| {
        lsetxattr(&path, "security.capability", &capability, XattrFlags::empty()).expect("set capabilities");
        assert_eq!(read(&path).values().collect::<Vec<_>>(), [&capability], "before {what}");
        change();
        assert!(read(&path).is_empty(), "{what} leaves {:?}", read(&path));
    };
    change_and_expect_none("a write", &|| {
        fs::File::options().append(true).open(&path).and_then(|mut file| file.write_all(b"x")).expect("write");
    });
    change_and_expect_none("a truncation", &|| {
        fs::File::options().write(true).open(&path).and_then(|file| file.set_len(0)).expect("truncate");
    });
    change_and_expect_none("a change of owner", &|| chown(&path, Some(55), Some(55)).expect("chown"));
    change_and_expect_none("a removal", &|| {
        rustix::fs::lremovexattr(&path, "security.capability").expect("remove");
    });
    // the owner's own rights are the mode's and the ACL's at once
    sandbox::run(Command::new("setfacl").args(["-m", "u:66:rwx,u::-,m::rx"]).arg(&path));
    assert_eq!(look(&path), "file 54 55:55");
    let shown = finish(Command::new("getfacl").args(["-cnp"]).arg(&path)).stdout;
    assert_eq!(shown.split_whitespace().take(3).collect::<Vec<_>>(), ["user::---", "user:66:rwx", "#effective:r-x"]);
    fs::write(&path, "root may").expect("write");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("chmod");
    let shown = finish(Command::new("getfacl").args(["-cnp"]).arg(&path)).stdout;
    assert!(shown.contains("user::rw-") && shown.contains("mask::r--") && shown.contains("other::---"), "{shown}");
    union.remount_and_compare();
}

#[test]
fn without_extended_attributes_it_is_kept_in_the_work_area() {
    let Some(sandbox) = sandbox::enter() else { return };
    fs::create_dir(sandbox.path().join("0")).expect("mkdir");
    // neither attributes nor times of birth
    sandbox::run(Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(sandbox.path().join("0")));
    let Some((mut union, _)) = of_a_user_in(sandbox, &["rw", "ro+wh"]) else { return };
    for name in ["null", "fifo", "file", "link"] {
        fs::rename(union.path(name), union.path(format!("my-{name}"))).expect("rename");
    }
    fs::create_dir(union.path("dir")).expect("mkdir");
    chown(union.path("dir"), Some(1), Some(2)).expect("chown");
    let shown = [
        ("my-null", "char 1:3 644 11:12"),
        ("my-fifo", "fifo 644 11:12"),
        ("my-file", "file 644 11:12"),
        ("my-link", "symlink 777 11:12"),
        ("dir", "dir 755 1:2"),
    ];
    for _ in 0..2 {
        for (name, expected) in shown {
            assert_eq!(look(&union.path(name)), expected, "{name}");
        }
        union.remount_and_compare();
    }
    for (name, kind) in [("my-null", "file"), ("my-link", "symlink"), ("dir", "dir")] {
        let real = look(&union.at("0").join(name));
        assert!(real.starts_with(kind) && real.ends_with(&format!("{USER}:{USER}")), "{name}: {real}");
    }
    read_by_root(union);
}

/// What is kept in the work area reaches the disk by itself, and a change of the entry with the journal: a power cut may
/// keep the one and lose the other.
#[test]
fn an_owner_that_becomes_real_is_never_another_one() {
    let Some((mut union, _)) = of_a_user(&["rw", "ro+wh"]) else { return };
    fs::rename(union.path("link"), union.path("mine")).expect("rename");
    assert_eq!(look(&union.path("mine")), "symlink 777 11:12");
    union.mounted.umount();
    let (branches, target) = (format!("{}=rw", union.at("0").display()), union.at("mnt"));
    let as_root = |then: &dyn Fn(&Path)| {
        sandbox::run(Command::new(BINARY).args(["mount", &branches]).arg(&target));
        then(&target.join("mine"));
        sandbox::run(Command::new(BINARY).arg("umount").arg(&target));
    };
    as_root(&|path| lchown(path, Some(33), Some(44)).expect("chown"));
    assert_eq!(look(&union.at("0/mine")), "symlink 777 33:44");
    as_root(&|path| assert_eq!(look(path), "symlink 777 33:44"));
    // the change is lost
    lchown(union.at("0/mine"), Some(USER), Some(USER)).expect("chown");
    as_root(&|path| assert_eq!(look(path), "symlink 777 33:44"));
    // what comes then counts
    as_root(&|path| lchown(path, Some(55), Some(66)).expect("chown"));
    as_root(&|path| assert_eq!(look(path), "symlink 777 55:66"));
    union.mounted.mount_again();
}

/// Killed before, between or after the calls of a change, the entry has its old or its new attributes.
#[test]
fn a_change_that_is_cut_off_is_done_or_not() {
    let Some((mut union, _)) = of_a_user(&["rw", "ro+wh"]) else { return };
    let path = union.path("file");
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..40_u32 {
        let (old, new) = (look(&path), format!("file {} {}:{}", ["640", "4710"][round as usize % 2], 100 + round, 7));
        let pid = union.mounted.pid();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(u64::from(round) * 37 % 900));
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill the daemon");
            });
            // whether these are answered is chance
            drop(chown(&path, Some(100 + round), Some(7)));
            drop(fs::set_permissions(&path, PermissionsExt::from_mode([0o640, 0o4710][round as usize % 2])));
        });
        union.mounted.wait_for_the_end();
        sandbox::unmount(union.mounted.target(), nix::mount::MntFlags::MNT_DETACH).expect("unmount");
        union.mounted.mount_again();
        let now = look(&path);
        let mode_of = |look: &str| look.split(' ').nth(1).map(str::to_owned).expect("a mode");
        // a change of owner takes set-id bits, and the mode comes after it
        let stripped = u32::from_str_radix(&mode_of(&old), 8).expect("octal") & 0o777;
        let between = format!("file {stripped:o} {}:{}", 100 + round, 7);
        assert!([&old, &between, &new].contains(&&now), "round {round}: {old}, then {now}, but {new} was to come");
        seen.insert(now == old);
    }
    assert!(!seen.is_empty());
}

#[test]
fn looking_keeps_nothing() {
    let Some((union, before)) = of_a_user(&["rw", "ro+wh"]) else { return };
    let after = Snapshot::take(union.mounted.target());
    before.assert_same(&after, Exactness::Equal, "looking changed something");
    assert_eq!(union.on_disk("0"), Vec::<String>::new());
    assert_eq!(kept(&union.at("0")), None, "the mark comes with the first thing to keep");
}
