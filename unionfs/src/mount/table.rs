//! The table of mounts (`/proc/thread-self/mountinfo`, proc_pid_mountinfo(5)).
//!
//! Reading it asks no file system anything, so a stuck one does not hang its reader.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use crate::proc;

/// The number of a file system's device, unique among those that are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Major number; 0 for file systems without a block device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id; given again to another mount once it is gone.
    pub id: u64,
    /// The id of the mount that it lies on.
    pub parent: u64,
    /// The file system's device.
    pub device: DeviceNumber,
    /// The directory of its file system that it shows.
    pub root: PathBuf,
    /// Where it lies, as seen from this process's root.
    pub target: PathBuf,
    /// Flags of the mount, as `rw,noatime`.
    pub flags: OsString,
    /// The type of the file system, as `fuse.runionfs`.
    pub fs_type: OsString,
    /// What was mounted.
    pub source: OsString,
    /// Options of the file system, as `rw,user_id=0`.
    pub options: OsString,
}

/// Reads the table of this thread: threads may be in mount namespaces of their own.
pub fn read() -> io::Result<Vec<Entry>> {
    // a page at a time is what the kernel gives, if there is room for it
    let mut text = Vec::with_capacity(16 << 10);
    File::open(proc::path("thread-self/mountinfo"))?.read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Reads the table from its text. A line that is not understood is left out.
pub fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// The mount that is seen at this path, which must be resolved: of several that lie on each
/// other, the uppermost.
pub fn at<'a>(table: &'a [Entry], target: &Path) -> Option<&'a Entry> {
    let here = || table.iter().filter(|entry| entry.target == target);
    here().find(|entry| !here().any(|other| other.parent == entry.id))
}

/// The mount to which a path leads; nothing if the table does not know. No file system is asked.
pub fn leading_to<'a>(table: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    match mount_id(path) {
        Ok(Some(id)) => table.iter().find(|entry| entry.id == id),
        // the nearest one above it
        _ => path.ancestors().find_map(|above| at(table, above)),
    }
}

/// The id of the mount to which a path leads, where the kernel tells it.
fn mount_id(path: &Path) -> Result<Option<u64>, Errno> {
    match rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID) {
        Ok(about) if StatxFlags::from_bits_retain(about.stx_mask).contains(StatxFlags::MNT_ID) => {
            Ok(Some(about.stx_mnt_id))
        }
        // before Linux 5.8, or behind a filter that does not know statx(2)
        Ok(_) | Err(Errno::NOSYS) => crate::mount_id::at(path),
        Err(errno) => Err(errno),
    }
}

/// Where a directory lies within its own file system, whatever mount shows it; nothing if the
/// table does not know.
pub fn within_file_system(table: &[Entry], path: &Path) -> Option<(DeviceNumber, PathBuf)> {
    let path = path.canonicalize().ok()?;
    let mount = leading_to(table, &path)?;
    Some((mount.device, mount.root.join(path.strip_prefix(&mount.target).ok()?)))
}

/// Where a directory is found through a mount that does not map owners (mount_setattr(2), MOUNT_ATTR_IDMAP);
/// nothing where it is not mapped, or is not to be found.
pub fn without_id_map(table: &[Entry], path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let about = rustix::fs::statx(CWD, &path, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID | StatxFlags::INO).ok()?;
    let mount = table.iter().find(|entry| entry.id == about.stx_mnt_id).filter(|entry| entry.maps_ids())?;
    let within = mount.root.join(path.strip_prefix(&mount.target).ok()?);
    let others = table.iter().filter(|entry| entry.device == mount.device && !entry.maps_ids());
    let mut places = others.filter_map(|entry| Some(entry.target.join(within.strip_prefix(&entry.root).ok()?)));
    // another mount may cover it there
    places.find(|place| {
        let found = rustix::fs::statx(CWD, place, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID | StatxFlags::INO);
        found.is_ok_and(|found| {
            let is_same = |a: &rustix::fs::Statx| (a.stx_dev_major, a.stx_dev_minor, a.stx_ino);
            let maps = table.iter().any(|entry| entry.id == found.stx_mnt_id && entry.maps_ids());
            is_same(&found) == is_same(&about) && !maps
        })
    })
}

impl Entry {
    /// Whether owners are others in this mount than in its file system.
    fn maps_ids(&self) -> bool {
        self.flags.as_encoded_bytes().split(|byte| *byte == b',').any(|flag| flag == b"idmapped")
    }
}

/// The device of the file system that a path leads to. Asks that file system nothing.
pub fn device_at(path: &Path) -> io::Result<DeviceNumber> {
    let about = match rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) {
        Err(Errno::NOSYS) => {
            let entry = leading_to(&read()?, path).map(|entry| entry.device);
            return entry.ok_or_else(|| Errno::NOENT.into());
        }
        about => about?,
    };
    Ok(DeviceNumber { major: about.stx_dev_major, minor: about.stx_dev_minor })
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = device(fields.next()?)?;
    let root = PathBuf::from(unescaped(fields.next()?));
    let target = PathBuf::from(unescaped(fields.next()?));
    let flags = unescaped(fields.next()?);
    // any number of optional fields, up to a single dash
    let mut fields = fields.skip_while(|field| field != b"-").skip(1);
    let fs_type = unescaped(fields.next()?);
    let source = unescaped(fields.next()?);
    let options = unescaped(fields.next()?);
    Some(Entry { id, parent, device, root, target, flags, fs_type, source, options })
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn device(text: &[u8]) -> Option<DeviceNumber> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    Some(DeviceNumber { major: number(&text[..colon])?, minor: number(&text[colon + 1..])? })
}

/// Takes the kernel's `\ooo` escapes away.
fn unescaped(text: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard\n\
        40 22 0:35 / /mnt/a\\040b rw,noatime shared:3 master:2 - fuse.runionfs /t\\134:=rw:/l=ro rw,user_id=1000\n\
        41 40 0:36 / /mnt/a\\040b rw - tmpfs none rw\n\
        42 22 0:37 / /mnt/\xff rw - tmpfs \\012 rw\n\
        nonsense\n";

    #[test]
    fn lines_are_read_with_their_escapes() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 4);
        assert_eq!(
            table[1],
            Entry {
                id: 40,
                parent: 22,
                device: DeviceNumber { major: 0, minor: 35 },
                root: "/".into(),
                target: "/mnt/a b".into(),
                flags: "rw,noatime".into(),
                fs_type: "fuse.runionfs".into(),
                source: "/t\\:=rw:/l=ro".into(),
                options: "rw,user_id=1000".into(),
            }
        );
        assert_eq!(table[3].target, PathBuf::from(OsString::from_vec(b"/mnt/\xff".to_vec())));
        assert_eq!(table[3].source, "\n");
    }

    #[test]
    fn the_uppermost_mount_is_the_one_that_is_seen() {
        let mut table = parse(TABLE);
        assert_eq!(at(&table, Path::new("/mnt/a b")).map(|entry| entry.id), Some(41));
        table.reverse();
        assert_eq!(at(&table, Path::new("/mnt/a b")).map(|entry| entry.id), Some(41));
        assert_eq!(at(&table, Path::new("/mnt")), None);
    }

    #[test]
    fn our_own_table_is_read() {
        assert!(at(&read().unwrap(), Path::new("/proc")).is_some_and(|entry| entry.fs_type == "proc"));
    }
}
