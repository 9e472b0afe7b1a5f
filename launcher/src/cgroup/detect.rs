//! Which hierarchies this machine has, and which controllers are where.
//!
//! Nothing is said about the machine as a whole: each controller is looked for on its own, for v1 and v2 may be mounted
//! side by side and share the controllers between them. See cgroups(7).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::failure::{Doing as _, Failure};
use crate::mount_table::unescape;

/// A part of the kernel that accounts for or limits something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time: `cpu`.
    Cpu,
    /// CPU time used, where v1 counts it on its own: `cpuacct`.
    CpuAccounting,
    /// CPUs and memory nodes: `cpuset`.
    Cpuset,
    /// Memory and swap: `memory`.
    Memory,
    /// The number of processes and threads: `pids`.
    Pids,
    /// Block devices: `io`, `blkio` on v1.
    Io,
    /// Access to devices: `devices`, on v1 only.
    Devices,
    /// Stopping processes: `freezer`, on v1 only; v2 does it without a controller.
    Freezer,
    /// Marks on packets: `net_cls`, on v1 only.
    NetworkClass,
}

impl Controller {
    /// All of them, and what the kernel calls them on v1 and on v2.
    const NAMES: [(Controller, &'static str, Option<&'static str>); 9] = [
        (Controller::Cpu, "cpu", Some("cpu")),
        (Controller::CpuAccounting, "cpuacct", None),
        (Controller::Cpuset, "cpuset", Some("cpuset")),
        (Controller::Memory, "memory", Some("memory")),
        (Controller::Pids, "pids", Some("pids")),
        (Controller::Io, "blkio", Some("io")),
        (Controller::Devices, "devices", None),
        (Controller::Freezer, "freezer", None),
        (Controller::NetworkClass, "net_cls", None),
    ];

    fn parse(name: &str, version: Version) -> Option<Controller> {
        let is_called = |(_, v1, v2): &&(_, &str, Option<&str>)| match version {
            Version::V1 => *v1 == name,
            Version::V2 => *v2 == Some(name),
        };
        Controller::NAMES.iter().find(is_called).map(|(controller, ..)| *controller)
    }

    /// What the kernel calls it.
    #[must_use]
    pub fn name(self, version: Version) -> &'static str {
        let names = Controller::NAMES.iter().find(|(controller, ..)| *controller == self);
        names.map_or("", |(_, v1, v2)| if version == Version::V2 { v2.unwrap_or(v1) } else { v1 })
    }
}

/// The two forms of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One tree for each controller.
    V1,
    /// One tree for all of them.
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) version: Version,
    /// Those that we know. For v2 they are found out in the tree itself.
    pub(crate) controllers: Vec<Controller>,
    /// What the kernel calls all of them, for v1.
    pub(crate) names: Vec<String>,
    /// The mount point: the uppermost cgroup that can be seen.
    pub(crate) root: PathBuf,
    /// The cgroup of the process that was asked for.
    pub(crate) own: PathBuf,
}

/// Looks at the mount table and at the cgroups of this process.
pub(crate) fn observe() -> Result<Vec<Mounted>, Failure> {
    observe_of("self")
}

/// The same with the cgroups of another process.
pub(crate) fn observe_of(process: &str) -> Result<Vec<Mounted>, Failure> {
    let table = fs::read("/proc/self/mountinfo").doing("read the mount table /proc/self/mountinfo")?;
    // A kernel without control groups has no such file.
    let membership = fs::read(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let mut mounted = parse(&table, &membership);
    // A mount point may be covered by another mount.
    mounted.retain(|mounted| mounted.root.join("cgroup.procs").exists());
    for mounted in mounted.iter_mut().filter(|mounted| mounted.version == Version::V2) {
        let names = fs::read_to_string(mounted.root.join("cgroup.controllers")).unwrap_or_default();
        mounted.controllers = known(names.split_whitespace(), Version::V2);
    }
    Ok(first_of_each(mounted))
}

/// The hierarchies, by the names of their controllers, in which a process is in a cgroup with this name in its path.
pub(crate) fn names_below(process: Pid, id: &str) -> std::io::Result<Vec<Vec<String>>> {
    let membership = fs::read(format!("/proc/{process}/cgroup"))?;
    let is_below = |group: &Membership| group.path.iter().any(|name| name == id);
    Ok(lines(&membership).filter_map(Membership::parse).filter(is_below).map(|group| group.controllers).collect())
}

/// The same hierarchy may be mounted at several places.
fn first_of_each(all: Vec<Mounted>) -> Vec<Mounted> {
    let mut kept: Vec<Mounted> = Vec::new();
    for mounted in all {
        let is_same = |other: &Mounted| match mounted.version {
            Version::V1 => other.version == Version::V1 && other.names == mounted.names,
            Version::V2 => other.version == Version::V2,
        };
        if !kept.iter().any(is_same) {
            kept.push(mounted);
        }
    }
    kept
}

fn known<'a>(names: impl Iterator<Item = &'a str>, version: Version) -> Vec<Controller> {
    names.filter_map(|name| Controller::parse(name, version)).collect()
}

/// What the two files of /proc say, without looking at the trees. Hierarchies without a controller that we know are left
/// out, but for v2.
fn parse(table: &[u8], membership: &[u8]) -> Vec<Mounted> {
    let groups: Vec<Membership> = lines(membership).filter_map(Membership::parse).collect();
    lines(table).filter_map(|line| Mount::parse(line)?.resolve(&groups)).collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// A line of /proc/self/cgroup.
struct Membership {
    /// Empty for v2.
    controllers: Vec<String>,
    path: PathBuf,
}

impl Membership {
    fn parse(line: &[u8]) -> Option<Membership> {
        let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
        let names = std::str::from_utf8(fields.next()?).ok()?;
        let controllers = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some(Membership { controllers, path: OsString::from_vec(fields.next()?.to_vec()).into() })
    }
}

/// A line of mountinfo that is about control groups; see proc_pid_mountinfo(5).
struct Mount {
    version: Version,
    /// Which directory of the hierarchy is mounted.
    root: PathBuf,
    target: PathBuf,
    options: Vec<String>,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let path = |field| Some(PathBuf::from(OsString::from_vec(unescape(field))));
        let (root, target) = (path(fields.next()?)?, path(fields.next()?)?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let version = match fields.next()? {
            b"cgroup" => Version::V1,
            b"cgroup2" => Version::V2,
            _ => return None,
        };
        let options = String::from_utf8_lossy(fields.nth(1)?);
        Some(Mount { version, root, target, options: options.split(',').map(str::to_owned).collect() })
    }

    /// Finds the cgroup of this process in it; none where that is not to be seen.
    fn resolve(self, groups: &[Membership]) -> Option<Mounted> {
        let is_of_this = |group: &&Membership| match self.version {
            Version::V1 => {
                !group.controllers.is_empty() && group.controllers.iter().all(|name| self.options.contains(name))
            }
            Version::V2 => group.controllers.is_empty(),
        };
        let group = groups.iter().find(is_of_this)?;
        let below = group.path.strip_prefix(&self.root).ok()?;
        if below.starts_with("..") {
            return None;
        }
        let controllers = known(group.controllers.iter().map(String::as_str), Version::V1);
        let is_useful = self.version == Version::V2 || !controllers.is_empty();
        let own = if below == Path::new("") { self.target.clone() } else { self.target.join(below) };
        is_useful.then(|| {
            let names = group.controllers.clone();
            Mounted { version: self.version, controllers, names, root: self.target, own }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Controller::{Cpu, CpuAccounting, Devices, Memory};

    fn v1(controllers: &[Controller], root: &str, own: &str) -> Mounted {
        let names = controllers.iter().map(|controller| controller.name(Version::V1).to_owned()).collect();
        let (root, own) = (root.into(), own.into());
        Mounted { version: Version::V1, controllers: controllers.to_vec(), names, root, own }
    }

    fn v2(root: &str, own: &str) -> Mounted {
        Mounted { version: Version::V2, ..v1(&[], root, own) }
    }

    #[test]
    fn each_controller_is_found_where_it_is() {
        let table = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            42 31 0:38 / /not/cgroup2 rw - ext4 cgroup2 rw\n";
        let membership = b"9:name=systemd:/\n4:memory:/api/x\n1:cpu,cpuacct:/\n0::/user.slice\n";
        let expected = [
            v1(&[Cpu, CpuAccounting], "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            v1(&[Memory], "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/api/x"),
            v2("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/user.slice"),
        ];
        assert_eq!(parse(table, membership), expected);
    }

    #[test]
    fn only_v2() {
        let table = b"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let expected = [v2("/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/session-1.scope")];
        assert_eq!(parse(table, b"0::/user.slice/session-1.scope\n"), expected);
    }

    #[test]
    fn in_a_container_without_a_cgroup_namespace_the_mount_is_a_part_of_the_tree() {
        let table = b"50 40 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup memory rw,memory\n\
            51 40 0:33 /docker/abc /sys/fs/cgroup/devices ro - cgroup devices rw,devices\n";
        let expected = [
            v1(&[Memory], "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"),
            v1(&[Devices], "/sys/fs/cgroup/devices", "/sys/fs/cgroup/devices/sub"),
        ];
        assert_eq!(parse(table, b"4:memory:/docker/abc\n5:devices:/docker/abc/sub\n"), expected);
    }

    #[test]
    fn what_lies_outside_of_what_can_be_seen_is_not_usable() {
        let v2 = b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse(v2, b"0::/../../user.slice\n"), []);
        let part = b"50 40 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup memory rw,memory\n";
        assert_eq!(parse(part, b"4:memory:/elsewhere\n"), []);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        assert_eq!(parse(b"", b""), []);
        assert_eq!(parse(b"x\n30 23 0:26 / /c rw - cgroup2\n\n30 23\n", b"0\n0:\n\n"), []);
    }

    #[test]
    fn the_first_of_several_mounts_counts() {
        let all = vec![v1(&[Cpu], "/a", "/a"), v1(&[Cpu], "/b", "/b"), v2("/c", "/c"), v2("/d", "/d")];
        assert_eq!(first_of_each(all), [v1(&[Cpu], "/a", "/a"), v2("/c", "/c")]);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (controller, v1, v2) in Controller::NAMES {
            assert_eq!(Controller::parse(controller.name(Version::V1), Version::V1), Some(controller), "{v1}");
            assert_eq!(v2.and_then(|name| Controller::parse(name, Version::V2)), v2.map(|_| controller), "{v1}");
        }
        assert_eq!(Controller::parse("blkio", Version::V2), None);
        assert_eq!(Controller::parse("io", Version::V1), None);
        assert_eq!(Controller::parse("perf_event", Version::V1), None);
    }
}
