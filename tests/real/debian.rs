//! A real Debian: made once, kept in the cache, unpacked and made odder for each test.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::sandbox::run;
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, Timespec, Timestamps, XattrFlags, flock, lsetxattr, makedev, mknodat,
    utimensat,
};

use crate::tools;

const MAKE_DEBIAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/real/make-debian");
/// Counts up when `make-debian` makes something else.
const NAME: &str = "debian-bookworm-1";

/// The files that an init branch gives to a container.
pub(crate) const INIT_FILES: &[&str] = &["etc/hostname", "etc/hosts", "etc/one", "etc/resolv.conf", "etc/two"];

/// What `make-debian` has made.
pub(crate) struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// The cached one, made now where there is none. `None` where the test is skipped.
    pub(crate) fn get() -> Option<Debian> {
        let folder = tools::cache().join(NAME);
        fs::create_dir_all(tools::cache()).expect("make the cache");
        let lock = File::create(tools::cache().join(format!("{NAME}.lock"))).expect("open a lock in the cache");
        flock(&lock, FlockOperation::LockExclusive).expect("lock the cache");
        if !folder.is_dir() {
            tools::find("debootstrap")?;
            run(Command::new("timeout").arg("1200").arg(MAKE_DEBIAN).arg(&folder));
        }
        Some(Debian { folder })
    }

    /// Unpacks the root file system to `target`, and adds what a real one has only sometimes.
    pub(crate) fn unpack(&self, target: &Path) {
        fs::create_dir(target).expect("make a directory to unpack to");
        run(Command::new("tar")
            .args(["--extract", "--numeric-owner", "--same-permissions", "--same-owner", "--acls", "--xattrs"])
            .args(["--xattrs-include=*", "--file"])
            .arg(self.folder.join("rootfs.tar"))
            .arg("--directory")
            .arg(target));
        for name in INIT_FILES {
            fs::write(target.join(name), format!("127.0.0.1 {name}\n")).expect("write a file of the init branch");
        }
        oddities(&target.join("srv"));
    }

    /// Copies the packages to `target`.
    pub(crate) fn packages(&self, target: &Path) {
        fs::create_dir(target).expect("make a directory for packages");
        for name in ["install", "upgrade"] {
            run(Command::new("cp").arg("-r").arg(self.folder.join(name)).arg(target));
        }
    }
}

/// Entries of every type and with every attribute, some of them extreme.
fn oddities(directory: &Path) {
    let at = |name: &str| directory.join(name);
    for name in ["acl", "empty", "sticky", "closed", "tree/a/b/c", "xattrs"] {
        fs::create_dir_all(at(name)).expect("make a directory");
    }
    for (name, mode) in [("sticky", 0o1777), ("closed", 0o700), ("tree/a", 0o2775), ("tree/a/b", 0o111)] {
        fs::set_permissions(at(name), Permissions::from_mode(mode)).expect("chmod");
    }
    run(Command::new("setfacl").args(["-m", "u:4711:rwx,d:u:4711:rx"]).arg(at("acl")));
    for index in 0..20 {
        fs::write(at(&format!("tree/a/b/c/file{index}")), "x".repeat(index * 1000)).expect("write a file");
    }
    odd_names(directory);
    odd_files(directory);
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket), ("null", FileType::CharacterDevice)] {
        mknodat(CWD, at(name), kind, Mode::from(0o640), makedev(1, 3)).expect("make a node");
        lchown(at(name), Some(12), Some(34)).expect("chown");
    }
    lsetxattr(at("xattrs"), "user.long", &[b'v'; 1000], XattrFlags::empty()).expect("set an xattr");
    lsetxattr(at("xattrs"), "trusted.empty", b"", XattrFlags::empty()).expect("set an xattr");
}

/// Names as long as they may be, and bytes that are no text.
fn odd_names(directory: &Path) {
    let mut names = vec!["n".repeat(255).into_bytes(), "d".repeat(251).into_bytes(), b"\xff\xfe not UTF-8".to_vec()];
    names.extend([b"new\nline".to_vec(), b"back\\slash:colon=equals".to_vec(), b".wh".to_vec(), b"...".to_vec()]);
    for name in names {
        fs::write(directory.join(OsStr::from_bytes(&name)), &name).expect("write a file");
    }
    symlink("/no/such\nplace", directory.join("dangling")).expect("make a symlink");
    symlink("t".repeat(4000), directory.join("long symlink")).expect("make a symlink");
}

fn odd_files(directory: &Path) {
    let at = |name: &str| directory.join(name);
    fs::write(at("set-id"), "#!/bin/true\n").expect("write a file");
    lchown(at("set-id"), Some(4711), Some(4712)).expect("chown");
    fs::set_permissions(at("set-id"), Permissions::from_mode(0o6755)).expect("chmod");
    fs::write(at("capable"), "not really").expect("write a file");
    run(Command::new("setfattr").args(["-n", "security.capability", "-v", CAP_NET_RAW]).arg(at("capable")));
    let sparse = File::create(at("sparse")).expect("make a file");
    sparse.set_len(1 << 25).expect("make a hole");
    sparse.write_all_at(b"island", 1 << 24).expect("write in the middle");
    fs::write(at("linked"), "one file, three names").expect("write a file");
    for name in ["tree/linked", "tree/a/linked"] {
        fs::hard_link(at("linked"), at(name)).expect("make a hard link");
    }
    for (name, seconds) in [("set-id", -2_000_000_000), ("capable", 4_000_000_000), ("linked", 0)] {
        let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("set times");
    }
}

/// `cap_net_raw=ep` as it lies on disk; see capabilities(7).
const CAP_NET_RAW: &str = "0x0100000200200000000000000000000000000000";
