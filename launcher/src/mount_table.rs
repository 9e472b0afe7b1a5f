//! The kernel's table of mounts, and which of them a copy of the host shows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

/// File systems that are an interface of the kernel and hold no files of anybody.
const KERNEL_INTERFACES: [&str; 21] = [
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

/// File systems whose files lie on another machine, or appear only when somebody asks for them. What a container changes
/// there cannot be told from what others change meanwhile, and one server that does not answer would stop everything.
const FAR_AWAY: [&str; 16] = [
    "9p",
    "afs",
    "autofs",
    "ceph",
    "cifs",
    "coda",
    "fuse.ceph",
    "fuse.glusterfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.sshfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "smb3",
];

/// What the unions of containers are called in the table.
pub(crate) const UNION: &str = "rlaunch";

/// One mount; see proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u32,
    /// The number of the mount that it lies on.
    pub(crate) parent: u32,
    /// The minor number of its device; that of a FUSE file system is also the number of its connection.
    minor: u32,
    pub(crate) target: PathBuf,
    flags: MsFlags,
    kind: String,
    source: String,
    /// Those of the file system itself.
    options: String,
}

/// A mount below `/` that holds files, and how a copy of the host shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submount {
    /// Where it is, on the host and in the container.
    pub path: PathBuf,
    /// How it is shown.
    pub shown: Shown,
}

/// How a copy of the host shows a mount below `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// As a union of its own, with these flags.
    Union(MsFlags),
    /// Read-only, as it is on the host.
    Bound,
    /// Read-only, for it is of a type with files that are not on this machine.
    FarAway(String),
}

/// Parses a mountinfo file. Lines that are not understood are left out.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let minor = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?.1.parse().ok()?;
    let target = unescape(fields.nth(1)?);
    let flags = fields.next().map(flags)?;
    // A variable number of optional fields ends with a single dash.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(fields.next()?).into();
    let mut text = || fields.next().map(String::from_utf8_lossy).unwrap_or_default().into();
    let (source, options) = (text(), text());
    let target = OsString::from_vec(target).into();
    Some(Mount { id, parent, minor, target, flags, kind, source, options })
}

fn flags(words: &[u8]) -> MsFlags {
    let flag = |word: &[u8]| match word {
        b"ro" => MsFlags::MS_RDONLY,
        b"nosuid" => MsFlags::MS_NOSUID,
        b"nodev" => MsFlags::MS_NODEV,
        b"noexec" => MsFlags::MS_NOEXEC,
        _ => MsFlags::empty(),
    };
    words.split(|byte| *byte == b',').map(flag).collect()
}

/// The union that a container has at a place of its own, and the number of its connection; see fuse.rst of the kernel.
pub(crate) fn connection_of_union(table: &[Mount], place: &Path) -> Option<u32> {
    let uppermost = table.iter().rfind(|mount| mount.target == place)?;
    (uppermost.kind == "fuse.runionfs" && uppermost.source == UNION).then_some(uppermost.minor)
}

/// Whether a path lies on a FUSE file system that answers nobody but the user who has mounted it; see `allow_other` in
/// fuse(4).
pub(crate) fn is_private(table: &[Mount], path: &Path) -> bool {
    let covers = |mount: &&Mount| path.starts_with(&mount.target);
    // Of those at the same place, the last one is on top.
    let found = table.iter().filter(covers).max_by_key(|mount| mount.target.components().count());
    found.is_some_and(|mount| {
        let is_fuse = mount.kind == "fuse" || mount.kind == "fuseblk" || mount.kind.starts_with("fuse.");
        is_fuse && !mount.options.split(',').any(|option| option == "allow_other")
    })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
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

/// The mounts below `/` that can be seen and hold files, parents first, but for those at or below the paths in `fresh`.
pub(crate) fn submounts(table: &[Mount], fresh: &[&str]) -> Vec<Submount> {
    let hidden = hidden(table);
    let is_shown = |mount: &&Mount| {
        mount.target != Path::new("/")
            && !hidden.contains(&mount.id)
            && !KERNEL_INTERFACES.contains(&mount.kind.as_str())
            && !fresh.iter().any(|path| mount.target.starts_with(path))
    };
    let by_path: BTreeMap<&PathBuf, &Mount> =
        table.iter().filter(is_shown).map(|mount| (&mount.target, mount)).collect();
    by_path.into_iter().map(|(path, mount)| Submount { path: path.clone(), shown: shown(mount) }).collect()
}

fn shown(mount: &Mount) -> Shown {
    if FAR_AWAY.contains(&mount.kind.as_str()) {
        Shown::FarAway(mount.kind.clone())
    } else if mount.flags.contains(MsFlags::MS_RDONLY) {
        Shown::Bound
    } else {
        Shown::Union(mount.flags)
    }
}

/// The mounts that another mount covers: one on top of them, or one further up in the tree.
fn hidden(table: &[Mount]) -> HashSet<u32> {
    let by_id: HashMap<u32, &Mount> = table.iter().map(|mount| (mount.id, mount)).collect();
    let covered_itself: HashSet<u32> = table
        .iter()
        .filter(|mount| {
            let covers = |other: &Mount| {
                let on_top = other.parent == mount.id && other.target == mount.target;
                // The uppermost mount of all is said to lie on itself, but is not beside what lies on it.
                let beside = other.parent == mount.parent && other.id != mount.parent && other.target != mount.target;
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

    #[test]
    fn a_file_system_of_one_user_is_known() {
        let table = parse(
            b"1 0 8:1 / / rw shared:1 - ext4 /dev/vda rw\n\
              2 1 0:40 / /mnt/mine rw,nosuid - fuse.runionfs runionfs rw,user_id=1000,group_id=1000\n\
              3 1 0:41 / /mnt/ours rw - fuse.runionfs runionfs rw,user_id=1000,group_id=1000,allow_other\n\
              4 1 0:42 / /mnt/covered rw - fuse.x x rw\n5 4 0:43 / /mnt/covered rw - tmpfs t rw\n",
        );
        let private = |path: &str| is_private(&table, Path::new(path));
        assert!(private("/mnt/mine") && private("/mnt/mine/below"));
        assert!(!private("/mnt/ours") && !private("/mnt/minefield") && !private("/mnt/covered") && !private("/"));
    }
    use std::os::unix::ffi::OsStrExt as _;

    const FRESH: [&str; 3] = ["/proc", "/run", "/tmp"];

    #[track_caller]
    fn check(table: &str, expected: &[&str]) {
        let submounts = submounts(&parse(table.as_bytes()), &FRESH);
        let paths: Vec<_> = submounts.iter().map(|submount| submount.path.to_str().unwrap()).collect();
        assert_eq!(paths, expected, "{table}");
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
    fn what_is_read_only_or_far_away_is_shown_as_it_is() {
        let table = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
             40 27 8:2 / /home rw,nosuid,noexec,relatime shared:3 - xfs /dev/sdb rw\n\
             41 27 7:3 / /snap/core ro,nodev - squashfs /dev/loop0 ro\n\
             42 27 0:60 / /net rw,relatime - autofs /etc/auto.net rw\n\
             43 27 0:61 / /srv rw - nfs4 server:/srv rw\n";
        let shown: Vec<_> = submounts(&parse(table.as_bytes()), &FRESH).into_iter().map(|mount| mount.shown).collect();
        let expected = [
            Shown::Union(MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
            Shown::FarAway("autofs".into()),
            Shown::Bound,
            Shown::FarAway("nfs4".into()),
        ];
        assert_eq!(shown, expected);
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
    fn on_the_root_of_an_initramfs_there_are_mounts_too() {
        check(
            "1 1 0:2 / / rw - rootfs rootfs rw\n\
             22 1 0:20 / /proc rw - proc proc rw\n\
             30 1 8:2 / /home rw - ext4 /dev/sdb rw\n",
            &["/home"],
        );
    }

    #[test]
    fn odd_bytes_in_mount_points_survive() {
        let table = b"27 1 254:0 / /a\\040b\\134c\\011\xff\\8 rw - ext4 /dev/vda rw\n";
        let target = b"/a b\\c\t\xff\\8";
        assert_eq!(submounts(&parse(table), &[])[0].path.as_os_str().as_bytes(), target);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        check("", &[]);
        check("x\n27 1\n27 1 254:0 / /x rw ext4\n\n27 one 0:0 / /y rw - ext4 x rw\n", &[]);
    }
}
