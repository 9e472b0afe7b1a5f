//! What is tested in the machine, with the static binaries of the packages.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mapping::{Mapping, Sharing};
use harness::mount::{finish, is_alive};
use harness::sandbox::{self, mount_table};
use harness::{Errno, ErrnoOf as _};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, RenameFlags, XattrFlags, lgetxattr, lsetxattr, renameat_with};

const RUNIONFS: &str = "/usr/bin/runionfs";

/// Where the boot script has put the branches of the root.
const HOME: &str = "/run/runionfs-root";

#[test]
#[ignore = "it needs a kernel without overlayfs: the tests of vm_matrix run it"]
fn there_is_no_overlayfs() {
    let Some(sandbox) = sandbox::enter() else { return };
    for name in ["lower", "upper", "work", "mnt"] {
        fs::create_dir(sandbox.path().join(name)).unwrap();
    }
    let at = |name: &str| sandbox.path().join(name).display().to_string();
    let words = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let mounted = mount(Some("overlay"), &sandbox.path().join("mnt"), Some("overlay"), MsFlags::empty(), Some(&*words));
    assert_eq!(mounted.errno(), Errno::ENODEV);
    assert!(!fs::read_to_string("/proc/filesystems").unwrap().contains("overlay"));
}

#[test]
#[ignore = "it needs a machine whose root is a union: the tests of vm_matrix run it"]
fn the_root_is_a_union() {
    let root = mount_table().into_iter().rfind(|entry| entry.target == Path::new("/")).unwrap();
    assert_eq!((&*root.kind, &*root.source), ("fuse.runionfs", "runionfs"), "{root:?}");
    let flags: Vec<&str> = root.options.split(',').collect();
    assert!(flags.contains(&"rw") && !flags.contains(&"nosuid") && !flags.contains(&"nodev"), "{root:?}");
    assert_eq!(fs::metadata(HOME).unwrap().mode() & 0o7777, 0o700, "what the union hides is for root alone");
    let [top, below] = ["changes/runionfs", "base"].map(|name| Path::new(HOME).join(name));
    // a file below, which is changed, attributes and all
    lsetxattr("/etc/profile", "user.mark", b"new", XattrFlags::empty()).unwrap();
    fs::write("/etc/profile", "changed").unwrap();
    assert_eq!(fs::read_to_string(top.join("etc/profile")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(below.join("etc/profile")).unwrap(), "below");
    assert_eq!(fs::write(below.join("etc/new"), "").errno(), Errno::EROFS);
    fs::remove_file("/etc/gone").unwrap();
    assert!(top.join("etc/.wh.gone").exists() && below.join("etc/gone").exists());
    // who was root in the initramfs is, and a program that was copied up by now runs
    assert_eq!(fs::read_to_string("/etc/fstab").unwrap().lines().next(), Some("# a union now: /dev/vda / ext4 ro 0 1"));
    fs::copy("/bin/busybox", "/usr/bin/busybox-copied").unwrap();
    let said = finish(Command::new("/usr/bin/busybox-copied").args(["echo", "it runs"]));
    assert_eq!((said.status, &*said.stdout), (Some(0), "it runs\n"), "{said:?}");
    assert!(
        finish(Command::new(RUNIONFS).args(["show", "/"])).stdout.contains("/run/runionfs-root/changes/runionfs=rw")
    );
}

/// systemd spares who has @ before his name when it ends all processes, and nobody else's signal counts.
#[test]
#[ignore = "it needs a machine whose root is a union: the tests of vm_matrix run it"]
fn the_daemon_of_the_root_outlives_whoever_ends_all() {
    let text = fs::read_to_string("/run/sendsigs.omit.d/runionfs").unwrap();
    let daemon = Pid::from_raw(text.trim().parse().unwrap());
    let of = |name: &str| fs::read_to_string(format!("/proc/{daemon}/{name}")).unwrap();
    assert!(of("cmdline").starts_with("@runionfs\0mount\0"), "{}", of("cmdline"));
    assert_eq!(of("oom_score_adj").trim(), "-1000");
    for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        kill(daemon, signal).unwrap();
    }
    for round in 0..50 {
        fs::write("/etc/round", round.to_string()).unwrap();
    }
    assert!(is_alive(daemon));
    // it sees no log of the machine but the kernel's
    let said = finish(&mut Command::new("dmesg"));
    assert!(said.stdout.contains("SIGHUP: ignored, for the root file system is served here"), "{said:?}");
}

fn union() -> Option<Union> {
    let branches = Branches::new(RUNIONFS, &["rw", "ro+wh", "ro+wh"])?;
    branches.file("1/changed", "0123456789").file("1/mapped", "0123456789").file("1/gone", "").file("2/gone", "");
    branches.file("1/dir/a", "a").file("2/dir/b", "b").file("2/dir/c", "c").whiteout("1/dir/c");
    branches.file("1/linked", "one").hard_link("1/linked", "1/other").symlink("2/link", "dir/a");
    branches
        .mode("1/changed", 0o640)
        .owner("1/changed", 12, 34)
        .file("1/old/in/it", "deep")
        .file("2/large", [7; 70_000]);
    lsetxattr(branches.at("1/changed"), "user.kept", b"kept", XattrFlags::empty()).unwrap();
    Some(branches.mount())
}

#[test]
#[ignore = "it needs a kernel without overlayfs: the tests of vm_matrix run it"]
fn files_are_made_changed_and_removed() {
    let Some(mut u) = union() else { return };
    assert_eq!(u.list("dir"), ["a", "b"]);
    fs::create_dir(u.path("made")).unwrap();
    u.write("made/file", "new");
    symlink("file", u.path("made/link")).unwrap();
    nix::unistd::mkfifo(&u.path("made/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // copied up: what was there stays, owner and attributes too
    File::options().write(true).open(u.path("changed")).unwrap().write_all_at(b"x", 3).unwrap();
    assert_eq!(u.read("changed"), "012x456789");
    assert_eq!((u.mode("changed") & 0o7777, u.stat("changed").uid(), u.stat("changed").gid()), (0o640, 12, 34));
    let mut value = [0_u8; 9];
    assert_eq!(lgetxattr(u.path("changed"), "user.kept", &mut value).unwrap(), 4);
    lsetxattr(u.path("changed"), OsStr::from_bytes(b"user.new"), b"", XattrFlags::empty()).unwrap();
    fs::remove_file(u.path("gone")).unwrap();
    u.assert_whiteout("0/gone");
    fs::remove_dir_all(u.path("dir")).unwrap();
    fs::create_dir(u.path("dir")).unwrap();
    u.assert_opaque("0/dir");
    assert_eq!((u.list("dir"), u.exists("gone")), (vec![], false));
    fs::set_permissions(u.path("old/in/it"), fs::Permissions::from_mode(0o4755)).unwrap();
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
#[ignore = "it needs a kernel without overlayfs: the tests of vm_matrix run it"]
fn names_are_moved_and_linked() {
    let Some(mut u) = union() else { return };
    fs::rename(u.path("old"), u.path("dir/renamed")).unwrap();
    assert_eq!(u.read("dir/renamed/in/it"), "deep");
    fs::rename(u.path("dir/a"), u.path("dir/b")).unwrap();
    renameat_with(CWD, u.path("large"), CWD, u.path("dir/b"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!((u.read("large"), u.stat("dir/b").len()), ("a".to_owned(), 70_000));
    let refused = renameat_with(CWD, u.path("changed"), CWD, u.path("large"), RenameFlags::NOREPLACE);
    assert_eq!(refused.errno(), Errno::EEXIST);
    fs::hard_link(u.path("large"), u.path("dir/hard")).unwrap();
    u.write("other", "two");
    assert_eq!((u.read("linked"), u.stat("linked").ino()), ("two".to_owned(), u.stat("other").ino()));
    assert_eq!(fs::read_link(u.path("link")).unwrap(), Path::new("dir/a"));
    u.remount_and_compare();
}

#[test]
#[ignore = "it needs a kernel without overlayfs: the tests of vm_matrix run it"]
fn open_files_are_mapped_extended_and_outlive_their_names() {
    let Some(mut u) = union() else { return };
    let mut file = File::options().read(true).write(true).open(u.path("mapped")).unwrap();
    let mapping = Mapping::new(&file, 10, Sharing::Shared).unwrap();
    mapping.write(2, b"mmap");
    mapping.sync().unwrap();
    assert_eq!(u.read("mapped"), "01mmap6789");
    file.set_len(5).unwrap();
    file.seek(SeekFrom::End(100_000)).unwrap();
    file.write_all(b"end").unwrap();
    file.sync_all().unwrap();
    assert_eq!(u.stat("mapped").len(), 100_008);
    fs::remove_file(u.path("mapped")).unwrap();
    let mut start = [0_u8; 5];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"01mma");
    drop((file, mapping));
    u.remount_and_compare();
}

#[test]
#[ignore = "it needs a kernel without overlayfs: the tests of vm_matrix run it"]
fn mount_has_its_helper() {
    let Some(sandbox) = sandbox::enter() else { return };
    for name in ["top", "low", "mnt"] {
        fs::create_dir(sandbox.path().join(name)).unwrap();
    }
    fs::write(sandbox.path().join("low/f"), "low").unwrap();
    let at = |name: &str| sandbox.path().join(name).display().to_string();
    let branches = format!("{}=rw:{}=ro+wh", at("top"), at("low"));
    let mount8 = |words: &[&str]| {
        let outcome = finish(Command::new("mount").args(words));
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{words:?}");
    };
    mount8(&["-t", "fuse.runionfs", "-o", "noatime", &branches, &at("mnt")]);
    fs::write(sandbox.path().join("mnt/f"), "new").unwrap();
    mount8(&["-o", "remount,ro", &at("mnt")]);
    assert_eq!(fs::write(sandbox.path().join("mnt/f"), "newer").errno(), Errno::EROFS);
    assert_eq!(finish(Command::new("umount").arg(at("mnt"))).status, Some(0));
    assert_eq!(fs::read_to_string(sandbox.path().join("top/f")).unwrap(), "new");
}

#[test]
#[ignore = "it needs a kernel without overlayfs: the tests of vm_matrix run it"]
fn containers_run_on_a_union() {
    let Some(sandbox) = sandbox::enter() else { return };
    let at = |name: &str| sandbox.path().join(name);
    fs::create_dir_all(at("image/bin")).unwrap();
    fs::create_dir(at("top")).unwrap();
    fs::copy("/bin/busybox", at("image/bin/busybox")).unwrap();
    symlink("busybox", at("image/bin/sh")).unwrap();
    fs::write(at("image/below"), "below").unwrap();
    let branches = format!("{}=rw:{}=ro+wh", at("top").display(), at("image").display());
    let script = "busybox cat /below; echo changed >/below; busybox hostname";
    let mut rlaunch = Command::new("/usr/bin/rlaunch");
    rlaunch.args(["--branches", &branches, "--hostname", "box", "--", "sh", "-c", script]);
    let outcome = finish(&mut rlaunch);
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "belowbox\n"), "{outcome:?}");
    assert_eq!(fs::read_to_string(at("top/below")).unwrap(), "changed\n");
    let mut file = File::open(at("image/below")).unwrap();
    assert_eq!(std::io::read_to_string(&mut file).unwrap(), "below");
}
