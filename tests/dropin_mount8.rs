//! mount(8) and fstab: what they pass to a helper, what they are told, and what the mount is then.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harness::mount::{Outcome, finish, poll};
use harness::sandbox::{self, MountEntry, Sandbox, mount_table, run};
use harness::{Errno, ErrnoOf as _};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const SBIN: &str = "/usr/sbin";

/// Branches `top` and `low`, a mount point, and the helpers where mount(8) looks for them.
struct Ground {
    sandbox: Sandbox,
}

impl Ground {
    /// With these names in /usr/sbin, in this mount namespace only.
    fn new(helpers: &[&str]) -> Option<Ground> {
        let sandbox = sandbox::enter()?;
        for name in ["top", "low", "mnt", "sbin"] {
            fs::create_dir(sandbox.path().join(name)).unwrap();
        }
        fs::write(sandbox.path().join("low/f"), "low").unwrap();
        for name in helpers {
            symlink(BIN, sandbox.path().join("sbin").join(name)).unwrap();
        }
        let sbin = format!("{}=rw:{SBIN}=ro", sandbox.path().join("sbin").display());
        run(Command::new(BIN).args(["mount", &sbin, SBIN]));
        Some(Ground { sandbox })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.sandbox.path().join(path)
    }

    fn branches(&self) -> String {
        format!("{}=rw:{}=ro+wh", self.at("top").display(), self.at("low").display())
    }

    fn mnt(&self) -> String {
        self.at("mnt").to_str().unwrap().to_owned()
    }

    fn entry(&self) -> Option<MountEntry> {
        mount_table().into_iter().find(|entry| entry.target == self.at("mnt"))
    }

    #[track_caller]
    fn mount(&self, words: &[&str]) {
        let outcome = mount8(words);
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{words:?}");
        assert_eq!(fs::read_to_string(self.at("mnt/f")).unwrap(), "low", "{words:?}");
    }

    /// Unmounts. A test beside this one may just be starting a process, which has our files open until it runs.
    #[track_caller]
    fn umount(&self) {
        let done = poll(Duration::from_secs(10), || umount2(&self.at("mnt"), MntFlags::empty()).ok());
        assert!(done.is_some(), "it stays busy");
    }

    /// A table like /etc/fstab; the line is its only one.
    fn fstab(&self, line: &str) -> String {
        fs::write(self.at("fstab"), format!("{line}\n")).unwrap();
        self.at("fstab").to_str().unwrap().to_owned()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        umount2(SBIN, MntFlags::MNT_DETACH).unwrap();
    }
}

fn mount8(words: &[&str]) -> Outcome {
    finish(Command::new("/bin/mount").args(words))
}

#[test]
fn mount_finds_it_by_every_name() {
    for (helpers, kind) in [
        (&["mount.fuse.runionfs"][..], "fuse.runionfs"),
        (&["mount.runionfs"], "runionfs"),
        (&["mount.runionfs"], "runionfs.sub"),
        (&["runionfs"], "fuse.runionfs"),
    ] {
        let Some(ground) = Ground::new(helpers) else { return };
        ground.mount(&["-t", kind, &ground.branches(), &ground.mnt()]);
        let entry = ground.entry().unwrap();
        assert_eq!((&*entry.kind, &*entry.source), ("fuse.runionfs", &*ground.branches()));
        ground.umount();
    }
}

#[test]
fn words_of_aufs_and_of_fstab_are_understood() {
    let Some(ground) = Ground::new(&["mount.fuse.runionfs", "mount.runionfs"]) else { return };
    let (top, low) = (ground.at("top").display().to_string(), ground.at("low").display().to_string());
    for options in [
        format!("br:{top}=rw:{low}=ro,dio,xino=/dev/shm/aufs.xino,dirperm1,udba=none,si=a1b2"),
        format!("dirs={top}=rw:{low}=ro+wh,noxino,nowarn_perm"),
        format!("br={top},append:{low},x-systemd.requires-mounts-for={low},nofail,_netdev,noatime"),
    ] {
        ground.mount(&["-t", "runionfs", "none", &ground.mnt(), "-o", &options]);
        ground.umount();
    }
    for (options, kind, source) in [
        ("fsname=a b,subtype=c.d", "fuse.c.d", "a b"),
        ("subtype=", "fuse", &*ground.branches()),
        ("fsname=x\\,y", "fuse.runionfs", "x,y"),
    ] {
        ground.mount(&["-t", "fuse.runionfs", &ground.branches(), &ground.mnt(), "-o", options]);
        let entry = ground.entry().unwrap();
        assert_eq!((&*entry.kind, &*entry.source), (kind, source), "{options}");
        assert_eq!(finish(Command::new(BIN).args(["umount", &ground.mnt()])).status, Some(0), "{options}");
    }
}

#[test]
fn a_line_of_fstab_is_mounted_alone_and_with_all() {
    let Some(ground) = Ground::new(&["mount.fuse.runionfs"]) else { return };
    fs::rename(ground.at("low"), ground.at("my low")).unwrap();
    let line = format!(
        "{}=rw:{}=ro+wh {} fuse.runionfs defaults,noauto,nofail,user,x-systemd.automount,comment=a,_netdev,noatime 0 0",
        ground.at("top").display(),
        ground.at("my\\040low").display(),
        ground.mnt()
    );
    let table = ground.fstab(&line);
    ground.mount(&["-T", &table, &ground.mnt()]);
    let entry = ground.entry().unwrap();
    for flag in ["noexec", "nosuid", "nodev", "noatime"] {
        assert!(entry.options.split(',').any(|word| word == flag), "{flag}: {}", entry.options);
    }
    ground.umount();
    let table = ground.fstab(&line.replace("noauto,", "").replace("user,", ""));
    for _ in 0..2 {
        // the second time it is there already
        let outcome = mount8(&["-a", "-T", &table]);
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    }
    assert_eq!(mount_table().iter().filter(|entry| entry.target == ground.at("mnt")).count(), 1);
    ground.umount();
    // what is not there at boot is no failure, if the line says so
    fs::remove_dir_all(ground.at("my low")).unwrap();
    let outcome = mount8(&["-a", "-T", &table]);
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert!(ground.entry().is_none());
    let table = ground.fstab(&line.replace("noauto,nofail,user,", ""));
    assert_eq!(mount8(&["-a", "-T", &table]).status, Some(32));
}

#[test]
fn a_remount_changes_flags_while_the_daemon_goes_on() {
    let Some(ground) = Ground::new(&["mount.fuse.runionfs"]) else { return };
    ground.mount(&["-t", "fuse.runionfs", &ground.branches(), &ground.mnt()]);
    let has = |flag: &str| ground.entry().unwrap().options.split(',').any(|word| word == flag);
    assert!(has("rw") && !has("noatime") && !has("nodev"));
    for (words, on, off) in [
        ("remount,ro", "ro", "noatime"),
        ("remount,rw,noatime", "noatime", "ro"),
        ("remount,nodev,nosuid", "nodev", "ro"),
        ("remount,dev,suid,relatime", "relatime", "nodev"),
        ("remount,nosymfollow,lazytime,silent", "nosymfollow", "nodev"),
    ] {
        let outcome = mount8(&["-o", words, &ground.mnt()]);
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{words}");
        assert!(has(on) && !has(off), "{words}: {}", ground.entry().unwrap().options);
        let written = fs::write(ground.at("mnt/new"), "");
        assert_eq!(written.is_ok(), !has("ro"), "{words}");
    }
    // a line of fstab repeats its branches; others are not silently left out
    let same = format!("remount,noatime,br={}", ground.branches());
    assert_eq!(mount8(&["-o", &same, &ground.mnt()]).status, Some(0));
    for words in ["remount,append:/tmp=ro", "remount,prepend=/tmp=rw", "remount,br:/tmp=rw", "remount,add:0:/tmp=ro"] {
        let outcome = mount8(&["-o", words, &ground.mnt()]);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(32), 1), "{words}: {}", outcome.stderr);
    }
    assert!(has("noatime"));
    ground.umount();
}

#[test]
fn the_exit_statuses_are_those_of_mount() {
    let Some(ground) = Ground::new(&["mount.fuse.runionfs", "mount.fuse-overlayfs"]) else { return };
    let helper = |name: &str, words: &[&str]| {
        let outcome =
            finish(Command::new(PathBuf::from(SBIN).join(name)).args(words).current_dir(ground.sandbox.path()));
        assert!(ground.entry().is_none(), "{words:?}");
        outcome
    };
    for (status, words) in [
        (1, &["mnt"][..]),
        (1, &["top=rw:low=ro", "mnt", "--wrong"]),
        (1, &["none", "mnt", "-o", "rw"]),
        (32, &["missing=rw", "mnt", "-o", "rw"]),
        (32, &["top=rw:low=ro", "missing"]),
        (32, &["top=rw:low=ro", "mnt", "-o", "rw,nonsense"]),
        (32, &["top=rw:low=ro", "mnt", "-o", "remount,ro"]),
        // to do all but mount
        (0, &["top=rw:low=ro", "mnt", "-f", "-o", "rw"]),
        (32, &["top=what:low=ro", "mnt", "-f"]),
    ] {
        let outcome = helper("mount.fuse.runionfs", words);
        assert_eq!(outcome.status, Some(status), "{words:?}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.is_empty(), status == 0, "{words:?}");
    }
    for (status, words) in [
        (1, &["-o", "lowerdir=low"][..]),
        (32, &["overlay", "mnt", "-o", "lowerdir=missing"]),
        (32, &["overlay", "mnt", "-o", "rw"]),
        (0, &["overlay", "mnt", "-f", "-o", "lowerdir=low"]),
    ] {
        let outcome = helper("mount.fuse-overlayfs", words);
        assert_eq!(outcome.status, Some(status), "{words:?}: {}", outcome.stderr);
    }
    // without the device nothing could be mounted
    let dead = ground.at("dead");
    mknod(&dead, SFlag::S_IFCHR, Mode::empty(), makedev(251, 251)).unwrap();
    nix::mount::mount(Some(&dead), "/dev/fuse", None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
    let outcome = helper("mount.fuse.runionfs", &["top=rw:low=ro", "mnt"]);
    umount2("/dev/fuse", MntFlags::empty()).unwrap();
    assert_eq!(outcome.status, Some(2), "{}", outcome.stderr);
    // what mount(8) hands on, and its -s
    let refused = mount8(&["-t", "fuse.runionfs", "/missing", &ground.mnt()]);
    assert_eq!((refused.status, refused.stderr.lines().count()), (Some(32), 1), "{}", refused.stderr);
    ground.mount(&["-s", "-t", "fuse.runionfs", &ground.branches(), &ground.mnt(), "-o", "nonsense"]);
    ground.umount();
}

#[test]
fn access_times_are_kept_as_the_mount_says() {
    let Some(ground) = Ground::new(&["mount.fuse.runionfs"]) else { return };
    let file = ground.at("top/read");
    fs::create_dir(ground.at("work")).unwrap();
    for options in ["noatime", "noatime,passthrough=off", &format!("noatime,workdir={}", ground.at("work").display())] {
        fs::write(&file, "read").unwrap();
        run(Command::new("touch").args(["-a", "-d", "2001-01-01"]).arg(&file));
        let before = fs::metadata(&file).unwrap().accessed().unwrap();
        ground.mount(&["-t", "fuse.runionfs", &ground.branches(), &ground.mnt(), "-o", options]);
        assert_eq!(fs::read(ground.at("mnt/read")).unwrap(), b"read");
        assert_eq!(fs::metadata(ground.at("mnt/read")).unwrap().accessed().unwrap(), before, "{options}");
        ground.umount();
        assert_eq!(fs::metadata(&file).unwrap().accessed().unwrap(), before, "{options}");
    }
}

#[test]
fn devices_and_set_user_id_programs_work_unless_they_are_not_to() {
    let Some(ground) = Ground::new(&["mount.fuse.runionfs"]) else { return };
    let everybody = |path: &str, mode| fs::set_permissions(ground.at(path), fs::Permissions::from_mode(mode)).unwrap();
    everybody("", 0o755);
    mknod(&ground.at("low/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    everybody("low/null", 0o666);
    fs::copy("/usr/bin/id", ground.at("low/id")).unwrap();
    everybody("low/id", 0o4755);
    for (options, works) in [("rw", true), ("nodev,nosuid", false)] {
        ground.mount(&["-t", "fuse.runionfs", &ground.branches(), &ground.mnt(), "-o", options]);
        let opened = fs::File::options().write(true).open(ground.at("mnt/null")).map(drop);
        match works {
            true => assert!(opened.is_ok(), "{options}: {opened:?}"),
            false => assert_eq!(opened.errno(), Errno::EACCES, "{options}"),
        }
        let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
        let id = finish(Command::new("setpriv").args(user).arg(ground.at("mnt/id")).arg("-u"));
        assert_eq!(id.stdout.trim(), if works { "0" } else { "1000" }, "{options}");
        ground.umount();
    }
}
