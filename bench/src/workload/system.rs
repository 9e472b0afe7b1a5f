//! A whole system in the branch below: packages are installed in it, and it is started as a container.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

use super::{Job, Place, Workload};
use crate::installed;
use crate::tree::Tree;
use crate::tree::project::run;

const FAMILY: &str = "system";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("dpkg", "dpkg -i of 20 packages in a Debian that lies below", Tree::Debian, install)
        .changes()
        .reads_from(Tree::Packages)
        .of(FAMILY),
    Workload::timed(
        "container-first",
        "rlaunch starts a shell in a Debian that lies below, fresh mount",
        Tree::Debian,
        start_once,
    )
    .of(FAMILY),
    Workload::timed("container", "rlaunch starts 20 shells in it, one after the other", Tree::Debian, start_again)
        .warm()
        .of(FAMILY),
];

/// In a mount namespace of its own, so that what it mounts goes with it. `$1` is the root, `$2` has the packages.
const INSTALL: &str = r#"
mount --rbind /dev "$1/dev"
mount --bind /proc "$1/proc"
mount --bind "$2" "$1/mnt"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    sh -c 'dpkg -i /mnt/*.deb && test -z "$(dpkg --audit)"'
"#;

fn install(place: &Place<'_>) -> io::Result<Job<()>> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", INSTALL, "sh"]);
    command.arg(place.root).arg(place.assets).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Box::new(move || run(&mut command)))
}

fn start_once(place: &Place<'_>) -> io::Result<Job<()>> {
    starts(place, 1)
}

fn start_again(place: &Place<'_>) -> io::Result<Job<()>> {
    starts(place, place.scale.of(20, 2))
}

/// The same command whatever is mounted: a container is what is measured, not who mounts.
fn starts(place: &Place<'_>, times: usize) -> io::Result<Job<()>> {
    let program = installed::program("RLAUNCH", "rlaunch")?;
    let words = [OsStr::new("--rootfs"), place.root.as_os_str(), OsStr::new("sh"), OsStr::new("-c"), OsStr::new("ls")];
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Box::new(move || (0..times).try_for_each(|_| run_in_silence(&mut command))))
}

/// What it warns of is told when it fails only.
pub(super) fn run_in_silence(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let last = complaint.lines().last().unwrap_or("it says nothing");
    if output.status.success() { Ok(()) } else { Err(io::Error::other(format!("{}: {last}", output.status))) }
}
