//! Where `/proc` is. A daemon that was started in an initramfs keeps that as its root directory, and what is mounted
//! there is moved to the real one, by switch_root(8), and gone. So a daemon makes `/proc` its working directory: that
//! moves along, and paths that start in it are good for ever.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// Whether the working directory is `/proc`.
static STAYS: AtomicBool = AtomicBool::new(false);

/// Makes `/proc` the working directory of this process, for good; `/` where there is no `/proc`.
///
/// # Errors
/// As chdir(2).
pub fn stay() -> io::Result<()> {
    match rustix::process::chdir("/proc") {
        Ok(()) => STAYS.store(true, Ordering::Relaxed),
        Err(Errno::NOENT | Errno::ACCESS) => rustix::process::chdir("/")?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// What a path below `/proc` begins with.
pub(crate) fn prefix() -> &'static str {
    if STAYS.load(Ordering::Relaxed) { "" } else { "/proc/" }
}

/// A path below `/proc`: `path("self/status")`.
pub(crate) fn path(below: &str) -> PathBuf {
    PathBuf::from(format!("{}{below}", prefix()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_good_before_and_after() {
        let read = || std::fs::read(path("self/status")).expect("read a status");
        assert_eq!((prefix(), read().is_empty()), ("/proc/", false));
        // in this process tests beside this one would lose their working directory
        let stayed = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("a working directory of its own");
            rustix::process::chdir("/proc").expect("chdir");
            std::fs::read("self/status").expect("read a status").is_empty()
        });
        assert!(!stayed.join().expect("it runs"));
    }
}
