//! The union as older kernels are given it: by every version of FUSE from 7.22 on, and without the system calls that
//! came later, or behind a filter that does not know them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::Duration;

use harness::fixture::{Branches, Union, as_user};
use harness::mapping::{Mapping, Sharing};
use harness::mount::{Mounted, finish};
use harness::old_kernel::{KERNELS, Kernel, OLD_FILTER, pretend};
use harness::ops::{Act, Op, RenameHow, Xattr, acts_over_layers};
use harness::sandbox::{self, Medium};
use harness::tree::layouts;
use harness::trial::{Ground, Trial, number, try_many};
use harness::{Errno, ErrnoOf as _};
use nix::mount::{MsFlags, mount};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
/// More names than fit into several replies.
const MANY: usize = 1_500;
/// What a kernel with all system calls speaks at most.
const MODERN: Kernel = Kernel::modern();

/// Branches with something of everything.
fn branches() -> Option<Branches> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    branches
        .file("1/low", "low")
        .mode("1/low", 0o644)
        .file("1/gone", "x")
        .file("1/merged/a", "a")
        .file("0/merged/b", "b");
    branches.file("1/old/deep/f", "f").file("1/program", "#!/bin/sh\n").mode("1/program", 0o4755);
    branches
        .file("1/hidden", "x")
        .whiteout("0/hidden")
        .file("1/solid/x", "x")
        .opaque("0/solid")
        .symlink("1/link", "low");
    branches.file("1/long", vec![b'l'; 300_000]).owner("1/long", 1000, 1000);
    for number in 0..MANY {
        branches.file(format!("1/many/{number:05}"), "");
    }
    Some(branches)
}

fn flags_and_names(u: &Union, kernel: Kernel) {
    let [from, to] = ["one", "two"].map(|name| u.path(name));
    u.write("one", "1");
    u.write("two", "2");
    let rename = |flags| rustix::fs::renameat_with(CWD, &from, CWD, &to, flags);
    if kernel.fuse() < 23 || !kernel.renames_with_flags() {
        assert_eq!(rename(RenameFlags::EXCHANGE), Err(rustix::io::Errno::INVAL));
    } else {
        rename(RenameFlags::EXCHANGE).unwrap();
        assert_eq!((u.read("one"), u.read("two")), ("2".into(), "1".into()));
    }
    fs::rename(&from, &to).unwrap();
    assert!(!u.exists("one"));
    fs::rename(u.path("merged"), u.path("other")).unwrap();
    assert_eq!(u.list("other"), ["a", "b"]);
    fs::create_dir(u.path("new")).unwrap();
    u.write("new/f", "f");
    fs::rename(u.path("new"), u.path("newer")).unwrap();
    fs::hard_link(u.path("newer/f"), u.path("newer/g")).unwrap();
    assert_eq!(u.stat("newer/g").nlink(), 2);
}

fn hiding(u: &Union) {
    assert!(!u.exists("hidden") && !u.exists("solid/x"));
    assert_eq!(u.list("merged"), ["a", "b"]);
    fs::remove_file(u.path("gone")).unwrap();
    u.assert_whiteout("0/gone");
    fs::remove_dir_all(u.path("old")).unwrap();
    fs::create_dir(u.path("old")).unwrap();
    assert_eq!(u.list("old"), [""; 0]);
    u.write("gone", "again");
    assert_eq!(u.read("gone"), "again");
}

fn content(u: &Union) {
    let mut file = fs::File::options().read(true).append(true).open(u.path("low")).unwrap();
    file.write_all(b"er").unwrap();
    assert_eq!((u.read("low"), u.on_disk("0").contains(&"low".to_owned())), ("lower".into(), true));
    // brought up by the change of an attribute, with all of its content
    fs::set_permissions(u.path("long"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!((u.read("long").len(), u.stat("long").uid(), u.mode("long")), (300_000, 1000, 0o600));
    let big = vec![7; 3 << 20];
    let file = fs::File::options().read(true).write(true).create_new(true).open(u.path("big")).unwrap();
    file.write_all_at(&big, 5).unwrap();
    let mut read = vec![0; big.len()];
    file.read_exact_at(&mut read, 5).unwrap();
    assert!(read == big && file.metadata().unwrap().len() == big.len() as u64 + 5);
    file.sync_all().unwrap();
    let target = fs::File::create(u.path("copy")).unwrap();
    assert_eq!(std::io::copy(&mut &file, &mut &target).unwrap(), big.len() as u64 + 5);
    assert!(fs::read(u.path("copy")).unwrap()[5..] == big);
    assert!((&file).seek(SeekFrom::End(0)).unwrap() == big.len() as u64 + 5);
    file.set_len(10).unwrap();
    let mapping = Mapping::new(&file, 10, Sharing::Shared).unwrap();
    mapping.write(0, b"mapped");
    mapping.sync().unwrap();
    assert_eq!(&fs::read(u.path("big")).unwrap()[..6], b"mapped");
}

fn open_without_a_name(u: &Union) {
    for name in ["kept", "many/00007"] {
        if name == "kept" {
            u.write(name, "kept");
        }
        let file = fs::File::options().read(true).write(true).open(u.path(name)).unwrap();
        fs::remove_file(u.path(name)).unwrap();
        assert!(!u.exists(name));
        file.write_all_at(b"still", 0).unwrap();
        let mut read = [0; 5];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!((&read, file.metadata().unwrap().nlink()), (b"still", 0), "{name}");
    }
}

fn attributes(u: &Union) {
    let low = u.path("low");
    rustix::fs::setxattr(&low, "user.a", b"value", XattrFlags::CREATE).unwrap();
    let mut value = [0; 16];
    assert_eq!(rustix::fs::getxattr(&low, "user.a", &mut value).unwrap(), 5);
    rustix::fs::removexattr(&low, "user.a").unwrap();
    assert_eq!(rustix::fs::getxattr(&low, "user.a", &mut value), Err(rustix::io::Errno::NODATA));
    let past = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let times = rustix::fs::Timestamps { last_access: past, last_modification: past };
    rustix::fs::utimensat(CWD, u.path("link"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    rustix::fs::utimensat(CWD, &low, &times, AtFlags::empty()).unwrap();
    for name in ["low", "link"] {
        assert_eq!((u.stat(name).mtime(), u.stat(name).mtime_nsec()), (1_000_000_000, 5), "{name}");
    }
    std::os::unix::fs::lchown(u.path("link"), Some(7), Some(8)).unwrap();
    assert_eq!((u.stat("link").uid(), u.stat("link").gid()), (7, 8));
    std::os::unix::fs::chown(&low, Some(1000), Some(1000)).unwrap();
    // written by who may not keep the bit
    fs::set_permissions(u.path("program"), fs::Permissions::from_mode(0o4777)).unwrap();
    as_user(1000, 1000, || fs::File::options().append(true).open(u.path("program")).unwrap().write_all(b"x").unwrap());
    assert_eq!(u.mode("program"), 0o777);
}

fn locks_and_lists(u: &Union) {
    let open = || fs::File::options().read(true).write(true).open(u.path("low")).unwrap();
    let (first, second) = (open(), open());
    rustix::fs::flock(&first, FlockOperation::LockExclusive).unwrap();
    let second = rustix::fs::flock(&second, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(second, Err(rustix::io::Errno::WOULDBLOCK));
    rustix::fs::fcntl_lock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
    for _ in 0..2 {
        assert_eq!(u.list("many").len(), MANY);
        u.write("many/another", "");
        assert_eq!(u.list("many").len(), MANY + 1);
        fs::remove_file(u.path("many/another")).unwrap();
    }
    let long = fs::read_dir(u.path("many")).unwrap();
    assert!(long.flatten().all(|entry| entry.metadata().unwrap().is_file()));
    // what has no name yet is made on no FUSE before 7.37, and never here
    let nameless = rustix::fs::open(u.path("many"), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    assert_eq!(nameless.err(), Some(rustix::io::Errno::OPNOTSUPP));
    rustix::fs::fsync(fs::File::open(u.path("many")).unwrap().as_fd()).unwrap();
}

/// Everything that a union is for, once, and that what it left on disk is the same afterwards.
fn works(kernel: Kernel) {
    let Some(branches) = branches() else { return };
    pretend(kernel);
    let mut u = branches.mount();
    let shown = finish(Command::new(BIN).arg("show").arg(u.path(""))).stdout;
    let protocol = format!("feature protocol=7.{}", kernel.fuse());
    assert!(kernel == OLD_FILTER || shown.lines().any(|line| line == protocol), "{shown}");
    locks_and_lists(&u);
    hiding(&u);
    content(&u);
    flags_and_names(&u, kernel);
    attributes(&u);
    open_without_a_name(&u);
    u.remount_and_compare();
    assert_eq!(u.mounted.check(), "");
    u.assert_no_temporaries(0);
    u.mounted.umount();
}

/// Whether a caller can be told the same by a plain directory, which is that of a newer kernel.
fn is_alike(act: &Act, kernel: Kernel) -> bool {
    let acl = |name: &Xattr| matches!(name, Xattr::AccessAcl | Xattr::DefaultAcl);
    match &act.op {
        Op::SetXattr { name, .. } | Op::GetXattr { name, .. } | Op::RemoveXattr { name, .. } => {
            kernel.heeds_acls() || !acl(name)
        }
        Op::Rename { how, .. } => *how == RenameHow::Plain || (kernel.fuse() >= 23 && kernel.renames_with_flags()),
        _ => true,
    }
}

/// Random operations, remounts, flushes and new tops; see `property_oracle.rs`.
#[test]
fn a_union_looks_like_a_plain_directory_on_every_kernel() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(600)) else { return };
    let cases = number("RUNIONFS_OLD_KERNEL_CASES", 3);
    for kernel in KERNELS.into_iter().chain([OLD_FILTER]) {
        pretend(kernel);
        let trials = Cell::new(0);
        let values = (layouts(), prop::collection::vec(acts_over_layers(), 0..80));
        try_many(cases, &values, |(layout, acts)| {
            trials.set(trials.get() + 1);
            let name = format!("{kernel}-{}-{}", kernel == OLD_FILTER, trials.get());
            let ground = Ground::new(sandbox.path(), &name, &layout).expect("write the branches");
            let mut trial = Trial::new(ground, BIN).expect("write the plain directory");
            trial.compare()?;
            for act in acts.iter().filter(|act| is_alike(act, kernel)) {
                trial.act(act)?;
            }
            trial.compare()
        });
    }
}

/// An access ACL: owner rw, a user 1000 rw, the group nothing, the mask rw, others r; see acl(5).
fn an_acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 6, 1000), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)];
    let bytes =
        |(tag, bits, id): (u16, u16, u32)| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat();
    [2_u32.to_le_bytes().to_vec(), entries.into_iter().flat_map(bytes).collect()].concat()
}

#[test]
fn a_kernel_that_ignores_acls_gives_nobody_more_than_they_do() {
    let Some(branches) = branches() else { return };
    branches.file("1/shared", "secret").owner("1/shared", 5, 2000);
    rustix::fs::setxattr(branches.at("1/shared"), "system.posix_acl_access", &an_acl(), XattrFlags::empty()).unwrap();
    pretend(KERNELS[1]);
    let u = branches.mount();
    for _ in 0..2 {
        // with the mode of the branch, 0664, the group could write
        assert_eq!(u.mode("shared"), 0o604);
        as_user(3000, 2000, || {
            assert_eq!(fs::read(u.path("shared")).errno(), Errno::EACCES);
            assert_eq!(fs::File::options().append(true).open(u.path("shared")).errno(), Errno::EACCES);
        });
        let shared = u.path("shared");
        let mut value = [0; 64];
        let heeded = rustix::fs::getxattr(&shared, "system.posix_acl_access", &mut value);
        assert_eq!(heeded, Err(rustix::io::Errno::OPNOTSUPP));
        let set = rustix::fs::setxattr(&shared, "system.posix_acl_access", &an_acl(), XattrFlags::empty());
        assert_eq!(set, Err(rustix::io::Errno::OPNOTSUPP));
        // and the same of a copy, which keeps its ACL
        u.write("shared", "copied up");
        let length = rustix::fs::getxattr(u.at("0/shared"), "system.posix_acl_access", &mut value).unwrap();
        assert_eq!(value[..length], an_acl());
    }
}

#[test]
fn a_mount_in_a_branch_is_not_entered_without_newer_calls() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/sub/covered", "").file("1/beside/f", "");
    mount(Some("tmpfs"), &branches.at("1/sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(branches.at("1/sub/mounted"), "").unwrap();
    for kernel in [KERNELS[0], KERNELS[3], OLD_FILTER] {
        pretend(kernel);
        let string = branches.string();
        let mounted = Mounted::mount(BIN, &string, &branches.at("mnt"), &[]);
        let names = |name: &str| fs::read_dir(mounted.target().join(name)).unwrap().count();
        assert_eq!((names("sub"), names("beside")), (0, 1), "{kernel}");
        // removed with what it covers, as a directory that is empty
        let removed = fs::remove_dir(mounted.target().join("sub"));
        assert_eq!(removed.errno(), Errno::EBUSY, "{kernel}");
    }
}

macro_rules! works {
    ($($name:ident: $kernel:expr;)*) => { $(#[test] fn $name() { works($kernel); })* };
}

works! {
    a_union_works_with_fuse_22: MODERN.with_fuse(22);
    a_union_works_with_fuse_23: MODERN.with_fuse(23);
    a_union_works_with_fuse_26: MODERN.with_fuse(26);
    a_union_works_with_fuse_28: MODERN.with_fuse(28);
    a_union_works_with_fuse_31: MODERN.with_fuse(31);
    a_union_works_with_fuse_36: MODERN.with_fuse(36);
    a_union_works_with_fuse_40: MODERN.with_fuse(40);
    a_union_works_on_linux_3_10: KERNELS[0];
    a_union_works_on_linux_4_4: KERNELS[1];
    a_union_works_on_linux_4_14: KERNELS[2];
    a_union_works_on_linux_4_19: KERNELS[3];
    a_union_works_on_linux_5_4: KERNELS[4];
    a_union_works_on_linux_5_10: KERNELS[5];
    a_union_works_behind_a_filter_that_does_not_know_new_calls: OLD_FILTER;
}
