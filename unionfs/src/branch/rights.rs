//! What the kernel lets this process do with branches, and which ids it can tell.
//!
//! Found once: a daemon is in its user namespace, with its ids and capabilities, before it opens
//! the first branch.

use std::sync::OnceLock;

use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};

use super::stat::Kind;

/// Inode number of the first user namespace (`PROC_USER_INIT_INO` in the kernel).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFD;
/// What the kernel tells in the place of unknown ids, where nobody has changed that.
const NOBODY: u32 = 65_534;

/// The rights of this process.
#[derive(Debug)]
pub struct Rights {
    /// Root of the machine: the kernel refuses no owner, mode or device.
    pub all: bool,
    /// Whether what it owns can be opened whatever the mode says (CAP_DAC_OVERRIDE).
    pub opens_all: bool,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    users: Ids,
    groups: Ids,
}

/// Which ids a user namespace knows, see user_namespaces(7).
#[derive(Debug, PartialEq, Eq)]
struct Ids {
    /// First id and number of ids; nothing where all are known.
    ranges: Option<Vec<(u32, u32)>>,
    /// What the kernel tells in the place of ids that are not known.
    overflow: u32,
}

/// The rights of this process.
pub fn rights() -> &'static Rights {
    static RIGHTS: OnceLock<Rights> = OnceLock::new();
    RIGHTS.get_or_init(Rights::find)
}

impl Rights {
    fn find() -> Rights {
        use std::os::unix::fs::MetadataExt as _;
        let namespace = std::fs::metadata("/proc/self/ns/user").map(|found| found.ino());
        // a kernel without user namespaces, or no /proc
        let first = namespace.map_or(true, |ino| ino == FIRST_NAMESPACE);
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        // in the first namespace no id is unknown
        let ids = |map: &str, overflow: &str| match first {
            true => Ids { ranges: None, overflow: NOBODY },
            false => {
                Ids { ranges: Some(ranges(&read(map))), overflow: read(overflow).trim().parse().unwrap_or(NOBODY) }
            }
        };
        let effective = capabilities(None).map(|sets| sets.effective);
        let uid = geteuid().as_raw();
        Rights {
            all: first && uid == 0,
            opens_all: effective.is_ok_and(|effective| effective.contains(CapabilitySet::DAC_OVERRIDE)),
            uid,
            gid: getegid().as_raw(),
            users: ids("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
            groups: ids("/proc/self/gid_map", "/proc/sys/kernel/overflowgid"),
        }
    }

    /// The mode that an entry of our own really gets where `bits` are wanted, so that we can open it,
    /// and nobody becomes us by running it.
    pub fn real_mode(&self, kind: Kind, bits: u32) -> u32 {
        match kind {
            _ if self.all || self.opens_all => bits,
            Kind::File => bits & 0o1777 | 0o600,
            Kind::Dir => bits & 0o1777 | 0o700,
            _ => bits,
        }
    }

    /// Whether the kernel tells this owner or group of one that we know and of those that we do not.
    pub fn is_ambiguous(&self, uid: Option<u32>, gid: Option<u32>) -> bool {
        self.users.is_ambiguous(uid) || self.groups.is_ambiguous(gid)
    }

    /// The user to show for one that an entry has, root where the namespace does not know it;
    /// `is_known` tells whether it is really the user whom the kernel tells for all unknown ones.
    pub fn user(&self, uid: u32, is_known: impl FnOnce() -> bool) -> u32 {
        self.users.shown(uid, is_known)
    }

    /// As [`Rights::user`], for groups.
    pub fn group(&self, gid: u32, is_known: impl FnOnce() -> bool) -> u32 {
        self.groups.shown(gid, is_known)
    }
}

impl Ids {
    fn knows(&self, id: u32) -> bool {
        let within = |(first, count): &(u32, u32)| id.checked_sub(*first).is_some_and(|at| at < *count);
        self.ranges.as_ref().is_none_or(|ranges| ranges.iter().any(within))
    }

    fn is_ambiguous(&self, id: Option<u32>) -> bool {
        self.ranges.is_some() && id == Some(self.overflow) && self.knows(self.overflow)
    }

    fn shown(&self, id: u32, is_known: impl FnOnce() -> bool) -> u32 {
        let certain = self.ranges.is_none() || id != self.overflow;
        if self.knows(id) && (certain || is_known()) { id } else { 0 }
    }
}

/// The first two columns that matter of a map: first id inside, and how many.
fn ranges(map: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse);
        Some((words.next()?.ok()?, words.nth(1)?.ok()?))
    };
    map.lines().filter_map(line).collect()
}

/// Whether a status of proc_pid_status(5) has a capability in force.
pub fn has_capability(status: &str, bit: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.is_some_and(|caps| u64::from_str_radix(caps.trim(), 16).is_ok_and(|bits| bits >> bit & 1 == 1))
}

/// Whether this process is in the first user namespace, where capabilities count everywhere.
pub fn in_first_namespace() -> bool {
    rights().users.ranges.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_a_namespace_does_not_know_are_shown_as_root() {
        let one = Ids { ranges: Some(ranges("         0      10001          1\n")), overflow: 65_534 };
        assert_eq!(one.ranges, Some(vec![(0, 1)]));
        for id in [0, 1, 42, 65_534, u32::MAX] {
            assert_eq!(one.shown(id, || true), 0, "{id}");
        }
        let many = Ids { ranges: Some(ranges("0 10001 1\n1 100000 65536\n")), overflow: 65_534 };
        assert_eq!([0, 1, 42, 65_536].map(|id| many.shown(id, || true)), [0, 1, 42, 65_536]);
        assert_eq!([65_537, u32::MAX].map(|id| many.shown(id, || true)), [0, 0]);
        // nobody is also what the kernel says of all the others
        assert_eq!((many.shown(65_534, || true), many.shown(65_534, || false)), (65_534, 0));
        assert!(many.is_ambiguous(Some(65_534)) && !many.is_ambiguous(Some(1)) && !many.is_ambiguous(None));
        assert!(!one.is_ambiguous(Some(65_534)));
        let all = Ids { ranges: None, overflow: 65_534 };
        assert_eq!(all.shown(65_534, || false), 65_534);
    }

    #[test]
    fn capabilities_are_read_out_of_a_status() {
        let status = "Name:\tx\nCapEff:\t0000000000000002\n";
        assert!(has_capability(status, 1));
        assert!(!has_capability(status, 2));
        assert!(!has_capability("", 1));
    }
}
