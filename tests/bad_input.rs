//! Bad input and bad luck: what no caller, no branch and no full disk may bring about.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mapping::{Mapping, Sharing};
use harness::mount::{finish, is_alive};
use harness::sandbox::{self, mount_table, mounts_below, run};
use harness::snapshot::{Exactness, Snapshot};
use harness::{Errno, ErrnoOf as _};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;
use rustix::fs::{CWD, OFlags, RenameFlags, ResolveFlags, XattrFlags, openat2, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Every call that takes a name, with its errno; none where it worked. `other` is a file that exists.
fn every_call(path: &Path, other: &Path) -> Vec<(&'static str, Option<Errno>)> {
    fn tried<T, E: Into<std::io::Error>>(what: &'static str, result: Result<T, E>) -> (&'static str, Option<Errno>) {
        let error = result.err().map(|error| Errno::from_raw(error.into().raw_os_error().unwrap()));
        (what, error)
    }
    let exchange = |from, to| renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE);
    vec![
        tried("stat", fs::symlink_metadata(path)),
        tried("open", File::open(path)),
        tried("create", File::create(path)),
        tried("create exclusively", File::create_new(path)),
        tried("mkdir", fs::create_dir(path)),
        tried("symlink", symlink("x", path)),
        tried("mknod", mknod(path, SFlag::S_IFREG, Mode::S_IRUSR, 0)),
        tried("mkfifo", mkfifo(path, Mode::S_IRUSR)),
        tried("link from", fs::hard_link(path, other.with_file_name("linked"))),
        tried("link to", fs::hard_link(other, path)),
        tried("rename from", fs::rename(path, other)),
        tried("rename to", fs::rename(other, path)),
        tried("exchange with", exchange(path, other)),
        tried("exchange to", exchange(other, path)),
        tried("unlink", fs::remove_file(path)),
        tried("rmdir", fs::remove_dir(path)),
        tried("readlink", fs::read_link(path)),
        tried("truncate", nix::unistd::truncate(path, 0)),
        tried("chmod", fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))),
        tried("chown", std::os::unix::fs::lchown(path, Some(1), Some(1))),
        tried("access", nix::unistd::access(path, nix::unistd::AccessFlags::F_OK)),
        tried("setxattr", rustix::fs::lsetxattr(path, "user.x", b"", XattrFlags::empty())),
        tried("getxattr", rustix::fs::lgetxattr_query(path, "user.x")),
        tried("opendir", fs::read_dir(path)),
        tried("statfs", nix::sys::statvfs::statvfs(path)),
        tried("below it", fs::symlink_metadata(path.join("f"))),
        tried("create below it", File::create(path.join("f"))),
    ]
}

#[test]
fn whiteout_names_are_eperm_in_every_call() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches
        .file("0/other", "")
        .file("0/d/other", "")
        .whiteout("0/gone")
        .file("1/gone", "")
        .opaque("0/d")
        .whiteout("1/x");
    let u = branches.mount();
    let before = Snapshot::take(&u.at("0"));
    for name in [
        ".wh.gone",
        ".wh.x",
        ".wh.other",
        ".wh.",
        ".wh..wh..opq",
        ".wh..wh.runionfs",
        ".wh..wh.anything",
        "d/.wh..wh..opq",
    ] {
        for (call, errno) in every_call(&u.path(name), &u.path("other")) {
            assert_eq!(errno, Some(Errno::EPERM), "{call} {name}");
        }
    }
    let after = Snapshot::take(&u.at("0"));
    before.without_work_area().assert_same(&after.without_work_area(), Exactness::Untouched, "refused calls");
}

#[test]
fn names_of_256_bytes_are_enametoolong_in_every_call() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/other", "");
    let u = branches.mount();
    for (call, errno) in every_call(&u.path("x".repeat(256)), &u.path("other")) {
        assert_eq!(errno, Some(Errno::ENAMETOOLONG), "{call}");
    }
    assert_eq!(u.on_disk("0"), ["other"]);
}

#[test]
fn long_and_strange_names_work_in_every_place() {
    let long = "n".repeat(255);
    let names: [&[u8]; 9] = [
        long.as_bytes(),
        &long.as_bytes()[..252],
        b"\xff\xfe\x80",
        b"new\nline",
        b" ",
        b"-rf",
        b"\x01\x7f\\",
        "\u{1f980}".as_bytes(),
        b"...",
    ];
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for name in names {
        branches.file(Path::new("1/low").join(OsStr::from_bytes(name)), name);
        branches.file(Path::new("1/dirs").join(OsStr::from_bytes(name)).join("f"), name);
    }
    let mut u = branches.mount();
    for name in names.map(OsStr::from_bytes) {
        let in_dir = |directory: &str| u.path(directory).join(name);
        fs::create_dir_all(in_dir("made")).unwrap();
        fs::write(in_dir("made").join(name), "x").unwrap();
        fs::rename(in_dir("low"), u.path("renamed")).unwrap();
        fs::rename(u.path("renamed"), in_dir("low")).unwrap();
        fs::write(in_dir("dirs").join("f"), "changed").unwrap();
        symlink(name, u.path("link")).unwrap();
        assert_eq!(fs::read_link(u.path("link")).unwrap(), Path::new(name));
        fs::remove_file(u.path("link")).unwrap();
    }
    u.remount_and_compare();
    for name in names.map(OsStr::from_bytes) {
        assert_eq!(fs::read(u.path("low").join(name)).unwrap(), name.as_bytes());
        fs::remove_file(u.path("low").join(name)).unwrap();
        fs::remove_dir_all(u.path("dirs").join(name)).unwrap();
        fs::remove_dir_all(u.path("made").join(name)).unwrap();
    }
    for _remounted in 0..2 {
        assert_eq!([u.list("low"), u.list("dirs"), u.list("made")].concat(), [""; 0]);
        u.mounted.remount();
    }
}

#[test]
fn a_symlink_in_a_branch_is_never_followed_by_the_daemon() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro+wh"]) else { return };
    branches.file("outside/secret", "secret").file("2/d/f", "low").file("2/e/f", "low").file("2/s/secret", "low");
    // Planted before the mount: what is a directory below is a symlink out of the branch above.
    branches
        .symlink("1/d", branches.at("outside"))
        .symlink("0/s", "/")
        .symlink("1/file", branches.at("outside/secret"));
    let mut u = branches.mount();
    let outside = Snapshot::take(&u.at("outside"));
    assert_eq!(fs::read_link(u.path("d")).unwrap(), u.at("outside"), "it is shown as what it is");
    fs::remove_file(u.path("d")).unwrap();
    fs::create_dir(u.path("d")).unwrap();
    assert_eq!(u.list("d"), [""; 0]);
    u.write("d/secret", "mine");
    fs::remove_file(u.path("file")).unwrap();
    u.write("file", "mine");
    u.mounted.remount();
    assert_eq!((u.read("d/secret"), u.read("file")), ("mine".into(), "mine".into()));
    outside.assert_same(&Snapshot::take(&u.at("outside")), Exactness::Untouched, "a planted symlink was followed");
}

#[test]
fn a_symlink_planted_under_a_mount_is_never_followed_by_the_daemon() {
    for known in [false, true] {
        for options in ["udba=none", "udba=reval"] {
            let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
            branches
                .file("outside/f", "secret")
                .file("outside/sub/f", "secret")
                .file("0/d/f", "top")
                .file("0/d/sub/f", "top");
            branches.file("1/e/f", "low").file("1/e/sub/f", "low");
            let mut u = branches.mount_with(&[options]);
            let open = File::options().append(true).open(u.path("d/f")).unwrap();
            let mut directories = Vec::new();
            if known {
                drop(Snapshot::take(&u.path("")));
                directories = ATTACKED.iter().filter_map(|path| below(&u, path)).collect();
            }
            for path in ["0/d", "1/e"] {
                fs::rename(u.at(path), u.at(format!("was-{}", &path[2..]))).unwrap();
                symlink(u.at("outside"), u.at(path)).unwrap();
            }
            symlink(u.at("outside"), u.at("0/e")).unwrap();
            u.accept_read_only_branches();
            let outside = Snapshot::take(&u.at("outside"));
            directories.iter().for_each(attack);
            ATTACKED.iter().filter_map(|path| below(&u, path)).for_each(|directory| attack(&directory));
            (&open).write_all(b"+").unwrap_or_default();
            drop((open, directories));
            let after = Snapshot::take(&u.at("outside"));
            outside.assert_same(&after, Exactness::Untouched, &format!("followed ({options}, known: {known})"));
            assert!(is_alive(u.mounted.pid()));
        }
    }
}

const ATTACKED: [&str; 4] = ["d", "d/sub", "e", "e/sub"];

/// A directory of the union, opened so that the caller itself follows no symlink: what happens outside is then the
/// daemon's doing.
fn below(u: &Union, path: &str) -> Option<OwnedFd> {
    let root = File::open(u.path("")).unwrap();
    let (flags, resolve) = (OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH);
    openat2(root, path, flags, rustix::fs::Mode::empty(), resolve).ok()
}

/// Reads and writes in a directory that is a planted symlink in a branch. Each call may fail or see what was there
/// before; what is outside must neither be seen nor touched.
fn attack(directory: &OwnedFd) {
    let path = Path::new("/proc/thread-self/fd").join(directory.as_raw_fd().to_string());
    let read = fs::read_to_string(path.join("f")).unwrap_or_default();
    assert!(!read.contains("secret"), "a file outside is shown");
    fs::write(path.join("f"), "attack").unwrap_or_default();
    fs::write(path.join("new"), "attack").unwrap_or_default();
    fs::create_dir(path.join("dir")).unwrap_or_default();
    fs::set_permissions(path.join("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap_or_default();
    fs::rename(path.join("f"), path.join("g")).unwrap_or_default();
    fs::remove_file(path.join("f")).unwrap_or_default();
    fs::remove_dir_all(path.join("sub")).unwrap_or_default();
}

/// A union whose top is a small file system of its own.
fn small_top(mkfs: &[&str]) -> Option<Branches> {
    let sandbox = sandbox::enter()?;
    drop(sandbox.small_ext4("0", 8, mkfs));
    Some(Branches::inside(sandbox, BIN, &["rw", "ro+wh"]))
}

#[test]
fn a_full_top_is_enospc_and_nothing_is_lost_or_left() {
    let Some(branches) = small_top(&[]) else { return };
    branches.file("1/d/large", vec![b'x'; 20 << 20]).file("1/d/small", "small");
    let mut u = branches.mount();
    let large: [fn(&Path) -> std::io::Result<()>; 4] = [
        |path| File::options().append(true).open(path)?.write_all(b"y"),
        |path| Ok(nix::unistd::truncate(path, 15 << 20)?),
        |path| std::os::unix::fs::chown(path, Some(1), None),
        |path| fs::rename(path, path.with_file_name("moved")),
    ];
    for (number, change) in large.iter().enumerate() {
        assert_eq!(change(&u.path("d/large")).errno(), Errno::ENOSPC, "change {number}");
        u.assert_no_temporaries(0);
        let stat = u.stat("d/large");
        assert_eq!((stat.len(), stat.uid(), stat.nlink()), (20 << 20, 0, 1), "change {number}");
        assert!(fs::read(u.path("d/large")).unwrap().iter().all(|byte| *byte == b'x'));
    }
    fill(&u.path("filler"));
    assert_eq!(u.read("d/small"), "small");
    fs::write(u.path("d/large"), "").unwrap_or_default();
    fs::remove_file(u.path("filler")).unwrap();
    fs::remove_file(u.path("d/large")).unwrap();
    u.write("d/small", "there is room again");
    assert_eq!(u.list("d"), ["small"]);
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn a_full_top_is_told_to_whoever_writes_by_a_mapping_or_an_old_handle() {
    let Some(branches) = small_top(&[]) else { return };
    branches.file("1/mapped", vec![b'x'; 4 << 20]).file("1/written", vec![b'x'; 4 << 20]);
    let u = branches.mount();
    let handles = ["mapped", "written"].map(|name| File::options().read(true).write(true).open(u.path(name)));
    fill(&u.path("filler"));
    let [Ok(mapped), Ok(written)] = handles else { panic!("there was room to open them") };
    let failures = [
        Mapping::new(&mapped, 4 << 20, Sharing::Shared).and_then(|map| {
            map.write(2 << 20, b"y");
            map.sync()
        }),
        written.write_all_at(b"y", 2 << 20).and_then(|()| written.sync_all()).map_err(|_| Errno::ENOSPC),
    ];
    for (name, failure) in ["mapped", "written"].into_iter().zip(failures) {
        if fs::metadata(u.at("0").join(name)).is_ok_and(|metadata| metadata.len() == 4 << 20) {
            continue;
        }
        assert_eq!(failure, Err(Errno::ENOSPC), "{name}: what was written is not on disk");
    }
    drop((mapped, written));
    u.assert_no_temporaries(0);
    for name in ["mapped", "written"] {
        assert_eq!(u.stat(name).len(), 4 << 20, "{name}");
        assert!(fs::read(u.path(name)).unwrap().iter().filter(|byte| **byte != b'x').count() <= 1, "{name}");
    }
}

/// Writes until there is no room.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let full = (0..10_000).find_map(|_| file.write_all(&[0x5a; 4096]).and_then(|()| file.sync_data()).err());
    assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::StorageFull));
}

#[test]
fn without_inodes_left_nothing_is_torn() {
    let Some(branches) = small_top(&["-N", "64"]) else { return };
    for number in 0..20 {
        branches.file(format!("1/d{number}/deep/f"), "low");
    }
    let mut u = branches.mount();
    let full = (0..200).find_map(|number| fs::write(u.path(format!("filler{number}")), "").err());
    assert_eq!(full.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    let before = Snapshot::take(&u.path(""));
    assert_eq!(
        File::options().append(true).open(u.path("d1/deep/f")).and_then(|mut f| f.write_all(b"x")).errno(),
        Errno::ENOSPC
    );
    assert_eq!(fs::create_dir(u.path("dir")).errno(), Errno::ENOSPC);
    assert_eq!(symlink("x", u.path("link")).errno(), Errno::ENOSPC);
    assert_eq!(fs::rename(u.path("d2/deep/f"), u.path("f")).errno(), Errno::ENOSPC);
    assert_eq!(fs::remove_file(u.path("d3/deep/f")).errno(), Errno::ENOSPC, "a whiteout needs room");
    assert_eq!(fs::hard_link(u.path("d4/deep/f"), u.path("linked")).errno(), Errno::ENOSPC);
    before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, "refused calls");
    u.assert_no_temporaries(0);
    (0..20).for_each(|number| fs::remove_file(u.path(format!("filler{number}"))).unwrap());
    fs::remove_file(u.path("d3/deep/f")).unwrap();
    u.write("d1/deep/f", "changed");
    assert_eq!((u.list("d3/deep"), u.read("d1/deep/f")), (vec![], "changed".into()));
    u.remount_and_compare();
}

#[test]
fn a_top_that_turns_read_only_is_erofs_and_recovers() {
    // As a failing disk does it: ext4 that was told so turns read-only at the first error.
    let Some(branches) = small_top(&["-e", "remount-ro"]) else { return };
    branches.file("1/low", "low").file("0/top", "top");
    let mut u = branches.mount();
    rustix::fs::syncfs(File::open(u.at("0")).unwrap()).unwrap();
    let device = mount_table().into_iter().find(|entry| entry.target == u.at("0")).unwrap().source;
    let device = Path::new(&device).file_name().unwrap();
    fs::write(Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error"), "1").unwrap();
    assert_eq!(fs::write(u.at("0/plain"), "").errno(), Errno::EROFS, "what this test is about");
    for name in ["low", "top", "new"] {
        assert_eq!(fs::write(u.path(name), "x").errno(), Errno::EROFS, "{name}");
    }
    assert_eq!(fs::remove_file(u.path("low")).errno(), Errno::EROFS);
    assert_eq!(fs::remove_file(u.path("top")).errno(), Errno::EROFS);
    assert_eq!(fs::create_dir(u.path("d")).errno(), Errno::EROFS);
    assert_eq!(fs::rename(u.path("low"), u.path("moved")).errno(), Errno::EROFS);
    let all_there = |u: &Union| {
        assert_eq!(
            (u.read("low"), u.read("top"), u.list("")),
            ("low".into(), "top".into(), vec!["low".into(), "top".into()])
        );
    };
    all_there(&u);
    u.mounted.umount();
    run(Command::new("umount").arg(u.at("0")));
    run(Command::new("mount").args(["-o", "loop"]).arg(u.at("0.img")).arg(u.at("0")));
    u.mounted.mount_again();
    all_there(&u);
    u.write("low", "changed");
    fs::remove_file(u.path("top")).unwrap();
    assert_eq!((u.read("low"), u.list("")), ("changed".into(), vec!["low".into()]));
    u.remount_and_compare();
}

#[test]
fn a_branch_removed_under_the_mount_gives_errors_and_no_crash() {
    for gone in ["0", "1"] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
        branches.file("0/d/top", "top").file("1/d/low", "low").file("2/d/lowest", "lowest").file("2/e/f", "");
        let mut u = branches.mount();
        assert_eq!(u.list("d"), ["low", "lowest", "top"]);
        fs::remove_dir_all(u.at(gone)).unwrap();
        fs::create_dir(u.at(gone)).unwrap();
        u.accept_read_only_branches();
        for path in ["d/top", "d/low", "d/lowest", "d/new", "e/f", "e/new", "new"] {
            fs::read(u.path(path)).unwrap_or_default();
            fs::write(u.path(path), "x").unwrap_or_default();
            fs::rename(u.path(path), u.path("e/renamed")).unwrap_or_default();
            fs::create_dir(u.path(path)).unwrap_or_default();
            fs::remove_file(u.path(path)).unwrap_or_default();
        }
        drop(fs::read_dir(u.path("")).map(Iterator::count));
        assert!(is_alive(u.mounted.pid()), "branch {gone}");
        u.accept_read_only_branches();
        u.mounted.umount();
        u.mounted.mount_again();
        assert!(u.exists("e"));
    }
}

#[test]
fn a_killed_daemon_is_enotconn_until_it_is_mounted_again() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "low");
    let mut u = branches.mount();
    u.write("g", "written");
    let open = File::open(u.path("f")).unwrap();
    u.mounted.kill9();
    assert_eq!(fs::read_dir(u.path("")).errno(), Errno::ENOTCONN);
    assert_eq!(fs::write(u.path("h"), "").errno(), Errno::ENOTCONN);
    assert_eq!(open.sync_all().errno(), Errno::ENOTCONN);
    drop(open);
    let outcome = finish(Command::new(BIN).arg("umount").arg(u.path("")));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert_eq!(mounts_below(&u.path("")), [""; 0].map(Path::new));
    u.mounted.mount_again();
    assert_eq!((u.list(""), u.read("g")), (vec!["f".into(), "g".into()], "written".into()));
    u.write("f", "changed");
    u.remount_and_compare();
}

#[test]
fn garbage_on_the_command_line_is_one_line_and_mounts_nothing() {
    let Some(sandbox) = sandbox::enter() else { return };
    let at = |name: &str| sandbox.path().join(name).display().to_string();
    for name in ["a", "b", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("file"), "").unwrap();
    let (a, b, mnt, file) = (at("a"), at("b"), at("mnt"), at("file"));
    let refused: Vec<Vec<String>> = vec![
        vec![format!("{a}=rw:{}=ro", at("missing")), mnt.clone()],
        vec![format!("{a}=rw:{file}=ro"), mnt.clone()],
        vec![format!("{a}=rw:{b}=ro"), at("missing")],
        vec![format!("{a}=rw:{b}=ro"), file.clone()],
        vec![format!("{a}=rwx"), mnt.clone()],
        vec![format!("{a}=rw+wh+nothing"), mnt.clone()],
        vec![format!("{a}=rw::{b}=ro"), mnt.clone()],
        vec![":::".into(), mnt.clone()],
        vec!["=".into(), mnt.clone()],
        vec![String::new(), mnt.clone()],
        vec![format!("{a}=rw"), mnt.clone(), "-o".into(), "no-such-option".into()],
        vec![format!("{a}=rw"), mnt.clone(), "-o".into(), "threads=many".into()],
        vec![format!("{a}=rw"), mnt.clone(), "-o".into(), "udba=perhaps".into()],
        vec![format!("{a}=rw"), mnt.clone(), "-o".into(), format!("workdir={}", at("missing"))],
        vec![format!("{a}=rw:{}\\", b), mnt.clone()],
    ];
    for arguments in &refused {
        let outcome = finish(Command::new(BIN).arg("mount").args(arguments));
        assert!(matches!(outcome.status, Some(1 | 2)), "{arguments:?}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{arguments:?}: {:?}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{arguments:?}");
        assert_eq!(mounts_below(sandbox.path()), [""; 0].map(Path::new), "{arguments:?}");
    }
    for arguments in [&[][..], &["mount"], &["mount", &a], &["no-such-command"], &["mount", "--no-such-flag", &a, &mnt]]
    {
        let outcome = finish(Command::new(BIN).args(arguments));
        assert_eq!(outcome.status, Some(2), "{arguments:?}: {outcome:?}");
        assert!(!outcome.stderr.is_empty() && outcome.stdout.is_empty(), "{arguments:?}: {outcome:?}");
    }
    assert_eq!(harness::snapshot::names(sandbox.path()).unwrap(), ["a", "b", "file", "mnt"]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    assert!(!Path::new(&a).join(".wh.").exists());
}

#[test]
fn branch_paths_with_strange_characters_are_mounted() {
    let Some(sandbox) = sandbox::enter() else { return };
    let mnt = sandbox.path().join("mnt point,\n\\");
    fs::create_dir(&mnt).unwrap();
    let names: [&[u8]; 4] = [b"a:b=c", b"with space,comma", b"\xff\xfe", b"back\\slash"];
    let mut string = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let path = sandbox.path().join(OsStr::from_bytes(name));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(number.to_string()), "").unwrap();
        for byte in path.as_os_str().as_bytes() {
            if b":=\\".contains(byte) {
                string.push(b'\\');
            }
            string.push(*byte);
        }
        string.extend_from_slice(if number == 0 { b"=rw:" } else { b"=ro:" });
    }
    string.pop();
    let mounted = harness::mount::Mounted::mount(BIN, OsStr::from_bytes(&string), &mnt, &[]);
    assert_eq!(harness::snapshot::names(mounted.target()).unwrap(), ["0", "1", "2", "3"]);
}
