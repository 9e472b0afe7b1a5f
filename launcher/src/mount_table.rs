//! The kernel's table of mounts, and which of them a copy of the host shows.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// File systems that are an interface of the kernel and hold no files of anybody.
const KERNEL_INTERFACES: [&str; 22] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// One mount; see proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u32,
    parent: u32,
    target: PathBuf,
    kind: String,
}

/// Parses a mountinfo file. Lines that are not understood are left out.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let target = unescape(fields.nth(2)?);
    // A variable number of optional fields ends with a single dash.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { id, parent, target: OsString::from_vec(target).into(), kind: String::from_utf8_lossy(kind).into() })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\').then(|| octal(after.get(..3)?)).flatten();
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// The mount points below `/` that can be seen and hold ordinary files, parents first, but for those at or below the
/// paths in `fresh`.
pub(crate) fn ordinary_submounts(table: &[Mount], fresh: &[&str]) -> Vec<PathBuf> {
    let hidden = hidden(table);
    let is_ordinary = |mount: &&Mount| {
        mount.target != Path::new("/")
            && !hidden.contains(&mount.id)
            && !KERNEL_INTERFACES.contains(&mount.kind.as_str())
            && !fresh.iter().any(|path| mount.target.starts_with(path))
    };
    let targets: BTreeSet<PathBuf> = table.iter().filter(is_ordinary).map(|mount| mount.target.clone()).collect();
    targets.into_iter().collect()
}

/// The mounts that another mount covers: one on top of them, or one further up in the tree.
fn hidden(table: &[Mount]) -> HashSet<u32> {
    let by_id: HashMap<u32, &Mount> = table.iter().map(|mount| (mount.id, mount)).collect();
    let covered_itself: HashSet<u32> = table
        .iter()
        .filter(|mount| {
            let covers = |other: &Mount| {
                let on_top = other.parent == mount.id && other.target == mount.target;
                let beside = other.parent == mount.parent && other.target != mount.target;
                other.id != mount.id && (on_top || beside && mount.target.starts_with(&other.target))
            };
            table.iter().any(covers)
        })
        .map(|mount| mount.id)
        .collect();
    let is_hidden = |mount: &&Mount| {
        // The table is bounded by its own length, whatever a damaged one says about parents.
        let chain = std::iter::successors(Some(*mount), |mount| by_id.get(&mount.parent).copied()).take(table.len());
        // A mount that lies on another at the same place is what can be seen there, so that one does not count.
        let mut below = None;
        for link in chain {
            let is_base = below.is_some_and(|child: &Mount| child.target == link.target);
            if covered_itself.contains(&link.id) && !is_base {
                return true;
            }
            below = Some(link);
        }
        false
    };
    table.iter().filter(is_hidden).map(|mount| mount.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    const FRESH: [&str; 3] = ["/proc", "/run", "/tmp"];

    #[track_caller]
    fn check(table: &str, expected: &[&str]) {
        let submounts = ordinary_submounts(&parse(table.as_bytes()), &FRESH);
        assert_eq!(submounts, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{table}");
    }

    #[test]
    fn ordinary_file_systems_are_shown_and_the_kernels_are_not() {
        check(
            "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
             40 27 8:2 / /var rw shared:3 master:1 - xfs /dev/sdb rw\n\
             41 40 8:3 / /var/lib rw - ext4 /dev/sdc rw\n\
             22 27 0:21 / /proc rw - proc proc rw\n\
             23 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n\
             24 27 0:33 / /srv/chroot/sys rw - sysfs sysfs rw\n\
             50 27 0:26 / /run rw - tmpfs tmpfs rw\n\
             51 50 0:27 / /run/media/disk rw - ext4 /dev/sdd rw\n\
             52 27 0:28 / /runner rw - tmpfs tmpfs rw\n\
             60 27 0:29 / /home rw - nfs4 server:/home rw\n",
            &["/home", "/runner", "/var", "/var/lib"],
        );
    }

    #[test]
    fn a_mount_on_top_of_another_hides_it_and_what_lies_on_it() {
        check(
            "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
             30 27 8:2 / /data rw - ext4 /dev/sdb rw\n\
             31 30 8:3 / /data/old rw - ext4 /dev/sdc rw\n\
             32 30 0:40 / /data rw - proc proc rw\n\
             33 32 8:4 / /data/new rw - ext4 /dev/sdd rw\n",
            &["/data/new"],
        );
    }

    #[test]
    fn a_mount_further_up_hides_those_beside_it() {
        check(
            "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
             30 27 8:2 / /a/b/c rw - ext4 /dev/sdb rw\n\
             31 30 8:2 / /a/b/c/d rw - ext4 /dev/sdc rw\n\
             32 27 8:3 / /a rw - ext4 /dev/sdd rw\n",
            &["/a"],
        );
    }

    #[test]
    fn a_root_that_lies_on_a_root_is_seen() {
        check(
            "1 1 0:2 / / rw - rootfs rootfs rw\n\
             27 1 254:0 / / rw - ext4 /dev/vda rw\n\
             30 27 8:2 / /home rw - ext4 /dev/sdb rw\n",
            &["/home"],
        );
    }

    #[test]
    fn odd_bytes_in_mount_points_survive() {
        let table = b"27 1 254:0 / /a\\040b\\134c\\011\xff\\8 rw - ext4 /dev/vda rw\n";
        let target = b"/a b\\c\t\xff\\8";
        assert_eq!(ordinary_submounts(&parse(table), &[])[0].as_os_str().as_bytes(), target);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        check("", &[]);
        check("x\n27 1\n27 1 254:0 / /x rw ext4\n\n27 one 0:0 / /y rw - ext4 x rw\n", &[]);
    }
}
