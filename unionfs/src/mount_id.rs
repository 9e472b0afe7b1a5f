//! On which mount an open file lies, without asking its file system anything, which may be one that nobody serves.
//! statx(2) tells it since Linux 5.8; this is what is left before that.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::proc;

/// The id of the mount, as the table of mounts has it; nothing before Linux 3.15.
///
/// # Errors
/// What reading /proc answers.
pub(crate) fn of(file: impl AsFd) -> Result<Option<u64>, Errno> {
    let about = std::fs::read(proc::path(&format!("self/fdinfo/{}", file.as_fd().as_raw_fd()))).map_err(errno_of)?;
    let ids = about.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"mnt_id:"));
    Ok(ids.filter_map(|id| std::str::from_utf8(id).ok()?.trim().parse().ok()).next())
}

/// The same of what a path leads to.
///
/// # Errors
/// Those of open(2), and what reading /proc answers.
pub(crate) fn at(path: &Path) -> Result<Option<u64>, Errno> {
    of(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether a file that was opened in a directory lies on another mount than that.
///
/// # Errors
/// What reading /proc answers.
pub(crate) fn differs(directory: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<bool, Errno> {
    match (of(directory)?, of(file)?) {
        (Some(outer), Some(inner)) => Ok(outer != inner),
        _ => is_mount_point(file),
    }
}

/// The same by the path that the kernel knows of it, which is slow where much is mounted.
fn is_mount_point(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let path = rustix::fs::readlink(proc::path(&format!("self/fd/{}", file.as_raw_fd())), Vec::new())?;
    let table =
        std::fs::read(proc::path("thread-self/mountinfo")).or_else(|_| std::fs::read(proc::path("self/mountinfo")));
    let escaped = escaped(path.to_bytes());
    let table = table.map_err(errno_of)?;
    let mut targets = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(targets.any(|target| target == escaped))
}

/// A path as the table of mounts writes it, see proc_pid_mountinfo(5).
fn escaped(path: &[u8]) -> Vec<u8> {
    let one = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        other => vec![*other],
    };
    path.iter().flat_map(one).collect()
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str) -> std::os::fd::OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn a_mount_is_told_from_what_it_lies_on() {
        let [root, proc, below] = ["/", "/proc", "/proc/sys"].map(open);
        assert_ne!(of(&root).unwrap(), None);
        assert_eq!(of(&proc).unwrap(), at(Path::new("/proc")).unwrap());
        assert!(differs(root.as_fd(), proc.as_fd()).unwrap());
        assert_eq!(
            differs(proc.as_fd(), below.as_fd()).unwrap(),
            is_mount_point(below.as_fd()).unwrap(),
            "some machines mount it read-only"
        );
        assert!(is_mount_point(proc.as_fd()).unwrap() && !is_mount_point(open("/proc/self/fd").as_fd()).unwrap());
    }

    #[test]
    fn paths_are_compared_as_the_table_has_them() {
        assert_eq!(escaped(b"/a b\\c\t"), b"/a\\040b\\134c\\011");
    }
}
