//! Linux 5.10, 6.1, 6.12 and the newest of Debian, without overlayfs, in machines that qemu boots. The root file system
//! of each is a union that the boot script of the package makes; what is tested in it is in [`inside`].
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::mount::finish;
use harness::sandbox::{self, Medium, Sandbox, run};

#[path = "support/initramfs.rs"]
mod initramfs;
#[path = "vm/inside.rs"]
mod inside;
#[path = "support/packages.rs"]
mod packages;
#[path = "support/tools.rs"]
mod tools;
#[path = "support/vm.rs"]
mod vm;

use vm::{Machine, Report};

/// Far more than it takes, for machines that have other things to do.
const LIMIT: Duration = Duration::from_secs(300);

/// The first process of a machine, and what it does at the end: what systemd does, which spares who has @ before his
/// name, and runs what packages have for the end.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox --install -s /bin
ip link set lo up
mount -t cgroup2 cgroup2 /sys/fs/cgroup
stty raw -F /dev/ttyS1
sh /script </dev/null >/dev/ttyS1 2>&1
END
for process in /proc/[0-9]*; do
    case $(head -c 1 $process/cmdline 2>/dev/null) in
    @ | '') ;;
    *) [ $process = /proc/1 ] || kill -KILL ${process#/proc/} ;;
    esac
done
sync
mount -o remount,ro /
for last in /usr/lib/systemd/system-shutdown/*; do $last reboot; done
reboot -f
"#;

/// A machine that boots by the image of mkinitramfs, and where that was made.
struct Ground {
    machine: Machine,
    initramfs: PathBuf,
    package: PathBuf,
    _sandbox: Sandbox,
}

impl Ground {
    /// Its tree has the package, busybox, and a script that is run. `None` where the test is skipped.
    fn new(suite: &str, script: &str) -> Option<Ground> {
        let sandbox = sandbox::enter_for(Medium::Disk, LIMIT * 3)?;
        let package = initramfs::unpack(&sandbox)?;
        let mut machine = Machine::with_kernel_of(suite)?;
        let initramfs = initramfs::make(&sandbox, &package, machine.kernel())?;
        run(Command::new("cp").arg("-a").arg(package.join("usr")).arg(machine.at("")));
        symlink("usr/sbin", machine.at("sbin")).unwrap();
        machine.add_script("usr/sbin/init", &INIT.replace("END", &vm::end()));
        machine.add_file("script", script);
        for (name, content) in [("profile", "below"), ("gone", ""), ("fstab", "/dev/vda / ext4 ro 0 1\n")] {
            machine.add_file(&format!("etc/{name}"), content);
        }
        Some(Ground { machine, initramfs, package, _sandbox: sandbox })
    }

    /// Puts the tree on a disk that nobody can write to, and changes on another, whose image is returned.
    fn with_disks(&mut self) -> PathBuf {
        let tree = self.machine.at("");
        self.machine.make_disk(128, true, &["-d".as_ref(), tree.as_os_str()]);
        self.machine.boot_with("root=/dev/vda ro panic=-1 runionfs=LABEL=changes");
        self.machine.make_disk(64, false, &["-L", "changes"].map(OsStr::new))
    }

    /// What the script has printed; it must succeed.
    #[track_caller]
    fn boot(&self) -> String {
        let Report { status, output, console } = self.machine.boot(&self.initramfs, LIMIT);
        assert_eq!(status, Some(0), "{output}\nthe kernel's messages:\n{console}");
        output
    }
}

/// Whether all that was written to an image of ext4 is in its place.
fn is_clean(image: &Path) -> bool {
    let said = finish(Command::new("dumpe2fs").arg("-h").arg(image)).stdout;
    said.contains("Filesystem state:         clean\n") && !said.contains("needs_recovery")
}

/// The tests that run inside.
fn names() -> Vec<String> {
    let list = finish(Command::new(std::env::current_exe().unwrap()).args(["--ignored", "--list", "--format=terse"]));
    list.stdout.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Boots a kernel and runs the tests in it.
fn runs_everything(suite: &str) {
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "export CI=true RUNIONFS_TEST_DIR=/run/runionfs-root/changes TMPDIR=/run/runionfs-root/changes\n\
         {} --ignored --test-threads=1\n",
        test.display()
    );
    let Some(mut ground) = Ground::new(suite, &script) else { return };
    ground.machine.add_program(&test);
    for tool in ["mount", "umount"] {
        if ground.machine.add_tool(tool).is_none() {
            return;
        }
    }
    let changes = ground.with_disks();
    let output = ground.boot();
    for name in names() {
        assert!(output.contains(&format!("test {name} ... ok\n")), "{name}:\n{output}");
    }
    assert!(is_clean(&changes), "the machine has not ended well:\n{output}");
}

#[test]
fn linux_5_10() {
    runs_everything("bullseye");
}

#[test]
fn linux_6_1() {
    runs_everything("bookworm");
}

#[test]
fn linux_6_12() {
    runs_everything("trixie");
}

#[test]
fn the_newest_linux() {
    runs_everything("sid");
}

#[test]
fn what_was_changed_is_there_after_a_reboot() {
    let script = "cat /etc/count; [ ! -e /etc/gone ]; echo 1 >>/etc/count; rm -f /etc/gone; uname -r";
    let Some(mut ground) = Ground::new("bookworm", script) else { return };
    ground.with_disks();
    let [first, second] = [ground.boot(), ground.boot()];
    assert!(first.contains("cat: can't open '/etc/count'"), "{first}");
    assert!(second.starts_with("1\n"), "{second}");
}

/// As a live CD has it: what is below is an image, and what changes is in memory.
#[test]
fn the_root_is_an_image_and_changes_are_in_memory() {
    let script = "set -e
        [ \"$(cat /etc/profile /run/runionfs-root/1/etc/profile)\" = belowbelow ]
        [ -s /run/runionfs-root/base/live/system.squashfs ]
        echo changed >/etc/profile
        cat /run/runionfs-root/changes/top/etc/profile
        df -m /run/runionfs-root/changes | tail -n 1";
    let Some(mut ground) = Ground::new("trixie", script) else { return };
    let Some(mksquashfs) = tools::find("mksquashfs") else { return };
    let medium = ground.package.with_file_name("medium");
    fs::create_dir_all(medium.join("live")).unwrap();
    run(Command::new(mksquashfs).arg(ground.machine.at("")).arg(medium.join("live/system.squashfs")).arg("-quiet"));
    ground.machine.make_disk(64, true, &["-d".as_ref(), medium.as_os_str()]);
    ground.machine.boot_with("root=/dev/vda ro panic=-1 runionfs=tmpfs runionfs.size=48m");
    ground.machine.boot_with("runionfs.images=/live/system.squashfs");
    let output = ground.boot();
    assert!(output.starts_with("changed\ntmpfs "), "{output}");
    assert!(output.split_whitespace().any(|word| word == "48"), "{output}");
}
