//! What is at a path, seen from inside of a root: links are followed, and none of them leads out of it.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::{HANDLE, kind};
use crate::failure::errno_of;

/// As many as the kernel follows; see path_resolution(7).
const MOST_LINKS: usize = 40;

/// Opens it; RESOLVE_IN_ROOT of openat2(2). No magic link of /proc is followed.
pub(super) fn resolve(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(root, path, how) {
        // Linux before 5.6, or a filter around us that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => walk(root, path),
        result => result,
    }
}

/// The same, name by name. `..` leads back to where the walk came from, whatever is moved meanwhile.
fn walk(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut way: Vec<OwnedFd> = Vec::new();
    let mut names = names(path);
    let mut links = 0;
    while let Some(name) = names.pop() {
        let at = way.last().unwrap_or(root);
        match name.to_str() {
            Some("..") => drop(way.pop()),
            Some("/") => way.clear(),
            _ => {
                let found = openat(at, name.as_os_str(), HANDLE, Mode::empty())?;
                if kind(&found)? != SFlag::S_IFLNK {
                    way.push(found);
                    continue;
                }
                links += 1;
                if links > MOST_LINKS || fstatfs(&found)?.filesystem_type() == PROC_SUPER_MAGIC {
                    return Err(Errno::ELOOP);
                }
                names.extend(self::names(Path::new(&readlinkat(&found, "")?)));
            }
        }
    }
    match way.pop() {
        Some(found) => Ok(found),
        None => root.as_fd().try_clone_to_owned().map_err(|error| errno_of(&error)),
    }
}

/// The names in a path, the last one first; a path from the root begins with a slash.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::CurDir | Component::Prefix(_) => None,
        other => Some(other.as_os_str().to_owned()),
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn both_walks_lead_to_the_same_place_in_the_root() {
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        fs::create_dir_all(at("root/a/b")).unwrap();
        fs::create_dir(at("a")).unwrap();
        fs::write(at("root/a/file"), "").unwrap();
        for (link, to) in
            [("up", "../../../a/b"), ("absolute", "/a/file"), ("a/back", "../up/.."), ("loop", "loop"), ("gone", "x/y")]
        {
            symlink(to, at("root").join(link)).unwrap();
        }
        let root = nix::fcntl::open(&at("root"), HANDLE, Mode::empty()).unwrap();
        let number = |found: Result<OwnedFd, Errno>| found.map(|found| nix::sys::stat::fstat(&found).unwrap().st_ino);
        let ino = |name: &str| Ok(fs::metadata(at("root").join(name)).unwrap().ino());
        for (path, expected) in [
            ("/", ino("")),
            ("/../../a", ino("a")),
            ("up", ino("a/b")),
            ("/absolute", ino("a/file")),
            ("/a/back", ino("a")),
            ("/a/./b/..", ino("a")),
            ("/loop", Err(Errno::ELOOP)),
            ("/gone", Err(Errno::ENOENT)),
            ("/absolute/x", Err(Errno::ENOTDIR)),
        ] {
            assert_eq!(number(walk(&root, Path::new(path))), expected, "{path}");
            assert_eq!(number(resolve(&root, Path::new(path))), expected, "{path}");
        }
        let proc = nix::fcntl::open("/", HANDLE, Mode::empty()).unwrap();
        assert_eq!(number(walk(&proc, Path::new("/proc/self/root"))), Err(Errno::ELOOP));
    }
}
