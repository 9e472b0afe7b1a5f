//! What a new cgroup of v1 needs before a process may join it.

use nix::errno::Errno;

use super::directory::Directory;

/// Gives a new cgroup the CPUs and memory nodes of the one around it: on v1 both are empty, and nobody may join.
///
/// A mount with the option `noprefix` has the files under short names.
pub(crate) fn inherit_cpuset(parent: &Directory, child: &Directory) -> Result<(), Errno> {
    for names in [["cpuset.cpus", "cpus"], ["cpuset.mems", "mems"]] {
        let Some((name, own)) = names.into_iter().find_map(|name| Some((name, child.read(name).ok()?))) else {
            continue;
        };
        if own.trim().is_empty() {
            child.write(name, parent.read(name)?.trim())?;
        }
    }
    Ok(())
}

/// Lets the kernel do the same for the cgroups that are made in this one.
pub(crate) fn pass_on_cpuset(directory: &Directory) -> Result<(), Errno> {
    directory.write("cgroup.clone_children", "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn cgroup(path: &Path, prefix: &str, cpus: &str, mems: &str) -> Directory {
        fs::create_dir(path).unwrap();
        fs::write(path.join(format!("{prefix}cpus")), cpus).unwrap();
        fs::write(path.join(format!("{prefix}mems")), mems).unwrap();
        Directory::open(path).unwrap()
    }

    #[test]
    fn what_is_empty_is_taken_from_above() {
        let place = tempfile::tempdir().unwrap();
        for (name, prefix) in [("a", "cpuset."), ("b", "")] {
            let parent = cgroup(&place.path().join(name), prefix, "0-3\n", "0\n");
            let child = cgroup(&place.path().join(name).join("child"), prefix, "1\n", "\n");
            inherit_cpuset(&parent, &child).unwrap();
            assert_eq!(child.read(&format!("{prefix}cpus")).unwrap().trim(), "1");
            assert_eq!(child.read(&format!("{prefix}mems")).unwrap().trim(), "0");
        }
    }
}
