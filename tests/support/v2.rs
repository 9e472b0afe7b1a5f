//! Cgroups of v2 that a test makes for itself and its containers, on a machine that has nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use harness::mount::poll;

use crate::launch::PATIENCE;

/// Where v2 is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// Where rlaunch moves the processes of a cgroup that has to give controllers to those below it.
pub(crate) const LEAF: &str = "rlaunch.processes";

/// The cgroup of this process.
pub(crate) fn own() -> PathBuf {
    let membership = fs::read_to_string("/proc/self/cgroup").expect("read this process's cgroup");
    let path = membership.trim().strip_prefix("0::/").expect("v2 alone");
    // Not with a slash at the end.
    Path::new(ROOT).join(path).components().collect()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("write {text} to {}: {error}", path.display()));
}

/// A cgroup with some controllers and with this process in it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Subtree {
    pub(crate) path: PathBuf,
}

impl Subtree {
    /// Makes it below `test-NAME`, which passes on the controllers, as in `+memory +pids`, and no others.
    pub(crate) fn enter(name: &str, controllers: &str) -> Subtree {
        let root = Path::new(ROOT);
        let above = root.join(format!("test-{name}"));
        let path = above.join("own");
        write(&root.join("cgroup.subtree_control"), controllers);
        fs::create_dir_all(&path).expect("make cgroups");
        write(&above.join("cgroup.subtree_control"), controllers);
        write(&path.join("cgroup.procs"), &std::process::id().to_string());
        Subtree { path }
    }

    /// Delegates it: see cgroups(7).
    pub(crate) fn give(&self, user: u32) {
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(self.path.join(name), Some(user), Some(user)).expect("chown a cgroup");
        }
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        let pid = std::process::id().to_string();
        fs::write(Path::new(ROOT).join("cgroup.procs"), pid).unwrap_or_default();
        let above = self.path.parent().expect("it is below another");
        // Who was killed leaves a little later.
        let is_gone = poll(PATIENCE, || remove(above).ok());
        // A test that has failed may leave anything.
        assert!(std::thread::panicking() || is_gone.is_some(), "processes stay in {}", above.display());
    }
}

/// Removes a cgroup and those below it, from which all processes have gone.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let below = entry?.path();
        if below.is_dir() {
            remove(&below)?;
        }
    }
    fs::remove_dir(path)
}
