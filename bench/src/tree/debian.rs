//! A Debian, as images of containers have it below, and packages for it. `bench/setup` fetches both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Scale;
use super::project::run;
use crate::installed::cache;

/// The root file system that the tests use, too.
const ROOT: &str = "debian-bookworm-1/rootfs.tar";
/// Packages that are not in it, with all that they need.
const PACKAGES: &str = "bench-packages-bookworm-1";

/// Unpacks it.
pub(super) fn root(root: &Path) -> io::Result<()> {
    let archive = fetched(ROOT)?;
    run(Command::new("tar").args(["-x", "--numeric-owner", "--same-owner", "-f"]).arg(archive).arg("-C").arg(root))
}

/// The packages; in a quick run the two first, which need no others.
pub(super) fn packages(root: &Path, scale: Scale) -> io::Result<()> {
    let entries = fs::read_dir(fetched(PACKAGES)?)?;
    let mut packages = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    packages.sort();
    for package in packages.iter().take(scale.of(20, 2)) {
        fs::copy(package, root.join(package.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn fetched(name: &str) -> io::Result<PathBuf> {
    let path = cache().join(name);
    if path.exists() { Ok(path) } else { Err(io::Error::other(format!("bench/setup has not fetched {name}"))) }
}
