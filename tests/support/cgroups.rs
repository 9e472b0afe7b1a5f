//! The cgroups of a container as they are seen from outside, on v1, on v2, and on both beside each other.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// The two forms of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Whether this machine keeps containers of root from devices that were not given to them: by a list on v1, by a program
/// of ours on v2.
pub(crate) fn devices_are_limited() -> bool {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
    root_of("devices", "").is_some() || table.lines().any(|line| line.contains(" - cgroup2 "))
}

/// Where the controller is mounted, which is called `v1` on v1 and `v2` on v2; `None` where it is not.
pub(crate) fn root_of(v1: &str, v2: &str) -> Option<(Version, PathBuf)> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let target = PathBuf::from(place.split(' ').nth(4)?);
        let options = kind.rsplit(' ').next()?;
        let controllers = || fs::read_to_string(target.join("cgroup.controllers")).unwrap_or_default();
        match kind.split(' ').next()? {
            "cgroup" if options.split(',').any(|option| option == v1) => Some((Version::V1, target)),
            "cgroup2" if controllers().split_whitespace().any(|name| name == v2) => Some((Version::V2, target)),
            _ => None,
        }
    };
    table.lines().find_map(mount)
}

/// The cgroup of a process that counts for a controller.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) version: Version,
    pub(crate) path: PathBuf,
}

impl Group {
    /// `None` where the controller is not mounted.
    pub(crate) fn of(process: Pid, v1: &str, v2: &str) -> Option<Group> {
        let (version, root) = root_of(v1, v2)?;
        let membership = fs::read_to_string(format!("/proc/{process}/cgroup")).expect("read the process's cgroups");
        let name = if version == Version::V1 { v1 } else { "" };
        let path = membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            fields.next()?.split(',').any(|controller| controller == name).then(|| fields.next()).flatten()
        });
        let path = path.expect("every process is in every hierarchy").trim_start_matches('/');
        Some(Group { version, path: root.join(path) })
    }

    /// The cgroup around it.
    pub(crate) fn parent(&self) -> Group {
        Group { version: self.version, path: self.path.parent().expect("it is below the root").to_owned() }
    }

    /// The content of a file, which has another name on v1 and on v2.
    pub(crate) fn read(&self, v1: &str, v2: &str) -> String {
        let path = self.path.join(if self.version == Version::V1 { v1 } else { v2 });
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        text.trim().to_owned()
    }

    /// The number in a file.
    pub(crate) fn number(&self, v1: &str, v2: &str) -> u64 {
        let text = self.read(v1, v2);
        text.parse().unwrap_or_else(|_| panic!("{text} in {v1} or {v2}"))
    }

    /// The number beside a key in a file.
    pub(crate) fn number_of(&self, file: &str, key: &str) -> u64 {
        let text = self.read(file, file);
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("no {key} in {text}"))
    }
}

/// All cgroups that rlaunch has made on this machine, by the names of the containers in `names`.
pub(crate) fn left_of(names: &[String]) -> Vec<PathBuf> {
    let roots = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
    let roots = roots.lines().filter(|line| line.contains(" - cgroup"));
    let roots: Vec<PathBuf> = roots.filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect();
    let paths = roots.iter().flat_map(|root| names.iter().map(move |name| root.join("rlaunch").join(name)));
    paths.filter(|path| path.exists()).collect()
}

/// The name of the container that a process is in.
pub(crate) fn container_of(process: Pid) -> String {
    let membership = fs::read_to_string(format!("/proc/{process}/cgroup")).expect("read the process's cgroups");
    let below = membership.lines().find_map(|line| line.split_once(":/rlaunch/")).expect("it is in a container").1;
    Path::new(below).iter().next().expect("a name").to_str().expect("in ASCII").to_owned()
}
