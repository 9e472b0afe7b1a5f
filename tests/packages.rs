//! The packages of packaging/build: what is in them, and that what they install works.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Mounted, Outcome, finish};
use harness::sandbox::{self, Sandbox, run};
use nix::mount::{MsFlags, mount};

#[path = "support/packages.rs"]
mod packages;
#[path = "support/tools.rs"]
mod tools;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What both kinds of packages install; there is more of it, such as pages of each command.
const CONTENTS: [&str; 16] = [
    "/usr/bin/rlaunch",
    "/usr/bin/rlaunch-registry",
    "/usr/bin/runionfs",
    "/usr/lib/systemd/system/runionfs@.service",
    "/usr/share/bash-completion/completions/rlaunch",
    "/usr/share/bash-completion/completions/runionfs",
    "/usr/share/doc/runionfs/CHANGELOG.md",
    "/usr/share/doc/runionfs/README.md",
    "/usr/share/doc/runionfs/examples/mnt-union.mount",
    "/usr/share/doc/runionfs/examples/storage.conf",
    "/usr/share/fish/vendor_completions.d/rlaunch.fish",
    "/usr/share/fish/vendor_completions.d/runionfs.fish",
    "/usr/share/man/man1/rlaunch.1.gz",
    "/usr/share/man/man5/runionfs-branches.5.gz",
    "/usr/share/man/man8/mount.runionfs.8.gz",
    "/usr/share/man/man8/runionfs.8.gz",
];

/// What Debian has of its own.
const ON_DEBIAN: [&str; 7] = [
    "/usr/lib/systemd/system-shutdown/runionfs",
    "/usr/sbin/mount.fuse.runionfs",
    "/usr/sbin/mount.runionfs",
    "/usr/share/initramfs-tools/hooks/runionfs",
    "/usr/share/initramfs-tools/scripts/init-bottom/runionfs",
    "/usr/share/zsh/vendor-completions/_rlaunch",
    "/usr/share/zsh/vendor-completions/_runionfs",
];

/// The output of a command that must succeed.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let outcome = finish(command);
    assert_eq!(outcome.status, Some(0), "{command:?}: {outcome:?}");
    outcome.stdout
}

#[track_caller]
fn assert_has_all(list: &str, names: &[&str]) {
    for name in names {
        assert!(list.split_whitespace().any(|word| word == *name), "{name}:\n{list}");
    }
}

#[test]
fn binaries_are_static_and_small() {
    let Some(folder) = packages::file("runionfs", "").map(|_| packages::folder()) else { return };
    for name in ["runionfs", "rlaunch", "rlaunch-registry"] {
        let program = folder.join(name);
        let length = fs::metadata(&program).unwrap().len();
        assert!(length < 6_000_000, "{name} has {length} bytes");
        assert_eq!(finish(Command::new("ldd").arg(&program)).stdout.trim(), "statically linked", "{name}");
    }
    for name in ["runionfs", "rlaunch"] {
        assert_eq!(printed(Command::new(folder.join(name)).arg("--version")), format!("{name} {VERSION}\n"));
    }
}

/// A root that is this machine's, where packages are installed and nothing is harmed: a union.
struct Root {
    path: PathBuf,
    _union: Mounted,
    _sandbox: Sandbox,
}

impl Root {
    fn new() -> Option<Root> {
        let sandbox = sandbox::enter()?;
        let [top, path] = ["top", "root"].map(|name| sandbox.path().join(name));
        for folder in [&top, &path] {
            fs::create_dir(folder).unwrap();
        }
        let union = Mounted::mount(BIN, format!("{}=rw:/=ro", top.display()), &path, &[]);
        for (place, kind, source, flags) in [
            ("proc", "proc", "proc", MsFlags::empty()),
            ("dev", "none", "/dev", MsFlags::MS_BIND | MsFlags::MS_REC),
            ("tmp", "tmpfs", "tmpfs", MsFlags::empty()),
            ("run", "tmpfs", "tmpfs", MsFlags::empty()),
        ] {
            mount(Some(source), &path.join(place), Some(kind), flags, None::<&str>).unwrap();
        }
        Some(Root { path, _union: union, _sandbox: sandbox })
    }

    /// A package, brought in.
    fn bring(&self, start: &str, end: &str) -> Option<String> {
        let package = packages::file(start, end)?;
        let place = Path::new("tmp").join(package.file_name().unwrap());
        fs::copy(&package, self.path.join(&place)).unwrap();
        Some(format!("/{}", place.display()))
    }

    fn sh(&self, script: &str) -> Outcome {
        let mut command = Command::new("chroot");
        command.arg(&self.path).args(["sh", "-ec", script]).env("DEBIAN_FRONTEND", "noninteractive");
        finish(&mut command)
    }

    #[track_caller]
    fn print(&self, script: &str) -> String {
        let outcome = self.sh(script);
        assert_eq!(outcome.status, Some(0), "{script}: {outcome:?}");
        outcome.stdout
    }
}

const USE: &str = "mkdir -p /tmp/top /tmp/low /tmp/mnt; echo low >/tmp/low/f
    mount -t fuse.runionfs /tmp/top=rw:/tmp/low=ro+wh /tmp/mnt
    grep ' /tmp/mnt fuse.runionfs ' /proc/mounts >/dev/null
    echo new >/tmp/mnt/f; umount /tmp/mnt; cat /tmp/top/f /tmp/low/f
    mount -t runionfs /tmp/top=rw:/tmp/low=ro+wh /tmp/mnt; runionfs show /tmp/mnt >/dev/null; umount /tmp/mnt";

#[test]
fn debian_packages_are_installed_used_and_removed() {
    let Some(root) = Root::new() else { return };
    let Some(package) = root.bring("runionfs_", ".deb") else { return };
    let Some(compat) = root.bring("runionfs-fuse-overlayfs_", ".deb") else { return };
    // whatever this machine has of the name
    root.print("dpkg --force-depends --purge runionfs-fuse-overlayfs runionfs");
    root.print(&format!("dpkg --no-triggers -i {package}"));
    let list = root.print("dpkg -L runionfs");
    assert_has_all(&list, &CONTENTS);
    assert_has_all(&list, &ON_DEBIAN);
    assert_eq!(
        root.print("dpkg-query -W -f '${Version} ${Status}' runionfs"),
        format!("{VERSION}-1 install ok installed")
    );
    assert_eq!(root.print(USE), "new\nlow\n");
    // fuse-overlayfs makes place, and what relies on it does not notice
    root.print(&format!("dpkg --no-triggers --auto-deconfigure -i {compat}"));
    assert_eq!(
        root.print("readlink -f /usr/bin/fuse-overlayfs /usr/sbin/mount.fuse-overlayfs").lines().collect::<Vec<_>>(),
        ["/usr/bin/runionfs"; 2]
    );
    let status = "dpkg-query -W -f '${db:Status-Status}' fuse-overlayfs 2>/dev/null || true";
    assert!(["", "not-installed", "config-files"].contains(&&*root.print(status)), "it is still there");
    assert!(!root.print("dpkg --audit").contains("runionfs"), "neither is half there");
    root.print("mkdir /tmp/work; fuse-overlayfs -o lowerdir=/tmp/low,upperdir=/tmp/top,workdir=/tmp/work /tmp/mnt; umount /tmp/mnt");
    root.print("dpkg --no-triggers --force-depends --purge runionfs-fuse-overlayfs runionfs");
    assert_eq!(root.print("ls -d /usr/bin/rlaunch /usr/bin/fuse-overlayfs /usr/sbin/*runionfs* /usr/share/doc/runionfs* 2>/dev/null || true"), "");
}

#[test]
fn rpm_packages_are_installed_used_and_removed() {
    let Some(root) = Root::new() else { return };
    if tools::find("rpm").is_none() {
        return;
    }
    let Some(package) = root.bring("runionfs-0", ".rpm") else { return };
    let Some(compat) = root.bring("runionfs-fuse-overlayfs-", ".rpm") else { return };
    root.print("rm -rf /var/lib/rpm /usr/lib/sysimage/rpm; rm -f /usr/bin/fuse-overlayfs");
    assert_has_all(&root.print(&format!("rpm -qlp {package}")), &CONTENTS);
    assert_eq!(root.print(&format!("rpm -qp --qf '%{{NAME}} %{{VERSION}}' {package}")), format!("runionfs {VERSION}"));
    assert_has_all(&root.print(&format!("rpm -qp --provides --conflicts {compat}")), &["fuse-overlayfs"]);
    // Debian's tools are not in its database
    root.print(&format!("rpm --nodeps -i {package} {compat}"));
    assert_eq!(root.print(USE), "new\nlow\n");
    assert!(root.print("fuse-overlayfs --version").contains("fuse-overlayfs"));
    // the scripts of an update must not take away what the new package has made
    root.print(&format!("rpm --nodeps --replacepkgs -U {package} {compat}; test -x /usr/sbin/mount.runionfs; test -x /usr/bin/fuse-overlayfs"));
    root.print("rpm --nodeps -e runionfs-fuse-overlayfs runionfs");
    assert_eq!(
        root.print("ls -d /usr/bin/rlaunch /usr/bin/fuse-overlayfs /usr/sbin/*runionfs* 2>/dev/null || true"),
        ""
    );
}

/// The scripts of the initramfs are run by shells that know POSIX alone.
#[test]
fn scripts_are_those_of_any_shell() {
    let Some(package) = packages::file("runionfs_", ".deb") else { return };
    let place = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("-x").arg(package).arg(place.path()));
    for script in ON_DEBIAN.iter().filter(|name| name.contains("initramfs") || name.contains("shutdown")) {
        let path = place.path().join(script.trim_start_matches('/'));
        assert!(fs::read_to_string(&path).unwrap().starts_with("#!/bin/sh\n"), "{script}");
        for shell in [&["dash", "-n"][..], &["busybox", "sh", "-n"]] {
            printed(Command::new(shell[0]).args(&shell[1..]).arg(&path));
        }
    }
}
