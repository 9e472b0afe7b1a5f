//! The image that Debian's mkinitramfs makes with the hook and the script of our package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Mounted, finish};
use harness::sandbox::{Sandbox, run};
use nix::mount::{MsFlags, mount};

use crate::{packages, tools};

/// What a Debian package installs, unpacked into the sandbox. `None` where the test is skipped.
pub(crate) fn unpack(sandbox: &Sandbox) -> Option<PathBuf> {
    let package = packages::file("runionfs_", ".deb")?;
    let tree = sandbox.path().join("package");
    run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&tree));
    Some(tree)
}

/// Makes the image for a kernel, in a root that is this machine's with the package and mkinitramfs laid on it: a union.
/// `None` where the test is skipped.
pub(crate) fn make(sandbox: &Sandbox, package: &Path, kernel: &Path) -> Option<PathBuf> {
    let mkinitramfs = tools::cache().join("initramfs-tools");
    if !mkinitramfs.exists() {
        harness::sandbox::skip(&format!("it needs {}, which tests/setup fetches", mkinitramfs.display()));
        return None;
    }
    let [changes, root] = ["changes", "root"].map(|name| sandbox.path().join(name));
    for folder in [&changes.join("usr/lib"), &changes.join("boot"), &root] {
        fs::create_dir_all(folder).expect("make directories");
    }
    run(Command::new("cp").arg("-a").arg(kernel.join("lib/modules")).arg(changes.join("usr/lib")));
    let version = version(kernel);
    // It looks for nothing else in there; all kernels of Debian have it.
    fs::write(changes.join(format!("boot/config-{version}")), "CONFIG_RD_GZIP=y\n").expect("write a configuration");
    let branches = format!("{}=rw:{}=ro:{}=ro:/=ro", changes.display(), package.display(), mkinitramfs.display());
    let union = Mounted::mount(env!("CARGO_BIN_EXE_runionfs"), branches, &root, &[]);
    for (kind, source, flags) in [("proc", "proc", MsFlags::empty()), ("dev", "/dev", MsFlags::MS_BIND)] {
        mount(Some(source), &root.join(kind), Some(kind), flags, None::<&str>).expect("mount in the root");
    }
    let script = format!("depmod {version} && mkinitramfs -c gzip -l 1 -o /initramfs {version}");
    let outcome = finish(Command::new("chroot").arg(&root).args(["sh", "-c", &script]));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    for place in ["proc", "dev"] {
        nix::mount::umount2(&root.join(place), nix::mount::MntFlags::MNT_DETACH).expect("unmount in the root");
    }
    drop(union);
    Some(changes.join("initramfs"))
}

fn version(kernel: &Path) -> String {
    let mut modules = fs::read_dir(kernel.join("lib/modules")).expect("the modules of the kernel");
    let folder = modules.next().expect("there are some").expect("read the folder");
    folder.file_name().into_string().expect("a version in ASCII")
}
