//! Where a target works: a tmpfs in a mount namespace of its own, which goes when its process does.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where what is made by the targets lies, in the build folder.
const OUTPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/fuzz");

/// A directory of that.
///
/// # Panics
/// Where it cannot be made.
pub fn output(name: &str) -> PathBuf {
    let path = Path::new(OUTPUT).join(name);
    fs::create_dir_all(&path).expect("make a directory in the build folder");
    path.canonicalize().expect("resolve the build folder")
}

/// Hides all mounts of this process from others, and gives it an empty tmpfs.
///
/// # Panics
/// Without the privileges of root.
pub fn enter() -> PathBuf {
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare the mount namespace, which needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("make all mounts private");
    let ground = output("ground");
    tmpfs(&ground);
    ground
}

/// Mounts an empty tmpfs, on which a bomb finds its end.
///
/// # Panics
/// Where that is not allowed.
pub fn tmpfs(target: &Path) {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=256m")).expect("mount a tmpfs");
}
