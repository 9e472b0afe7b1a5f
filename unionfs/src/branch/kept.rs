//! Attributes that the kernel refuses an ordinary user, and what a branch says of such ones.
//!
//! Owner, mode and type lie beside the entry in the extended attribute [`OVERRIDE`] in the form of
//! containers/storage and fuse-overlayfs, if the **root** of the branch carries one, too. What cannot
//! carry it (symbolic links, fifos, sockets; all on file systems without such attributes) has a row
//! in the work area, by inode number and time of birth. Each is written by one system call.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::at::At;
use super::dir::Dir;
use super::form::Form;
use super::rights::rights;
use super::root::RootNames;
use super::stat::{Kind, RealId, Stat};
use crate::options::Keeping;
use crate::union::name::WORK_AREA;

/// Says owner, mode and type of an entry; on the root of a branch also that this branch has some.
pub const OVERRIDE: &[u8] = b"user.containers.override_stat";
/// The same, as fuse-overlayfs wrote it before version 1.11.
pub const FORMER: &[u8] = b"user.fuseoverlayfs.override_stat";
/// The same, as fuse-overlayfs writes it where only root is to (`xattr_permissions=1`).
pub const PRIVILEGED: &[u8] = b"security.fuseoverlayfs.override_stat";
/// What all attributes begin with that stand for something else.
pub const PREFIX: &[u8] = b"user.containers.override_";

/// The rows, in the work area.
const ROWS: &[u8] = b"attributes";
const ROW: usize = 32;
const TAG: u32 = 0x6b65_7000;

/// Owner, mode and type in the place of the real ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// The type, if it is said.
    pub kind: Option<Kind>,
    /// Device number of a device.
    pub rdev: u64,
}

impl Override {
    /// What would say the same as these attributes.
    pub fn of(stat: &Stat) -> Override {
        Override { uid: stat.uid, gid: stat.gid, mode: stat.mode, kind: Some(stat.kind), rdev: stat.rdev }
    }

    /// The other type that it gives the real entry. Only a regular file can stand for something.
    pub fn stands_for(&self, real: Kind) -> Option<Kind> {
        let node = |kind: &Kind| matches!(kind, Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block);
        self.kind.filter(|kind| real == Kind::File && node(kind))
    }

    /// The attributes that result.
    pub fn over(&self, mut stat: Stat) -> Stat {
        if let Some(kind) = self.stands_for(stat.kind) {
            (stat.kind, stat.rdev) = (kind, self.rdev);
        }
        stat.uid = rights().user(self.uid, || true);
        stat.gid = rights().group(self.gid, || true);
        Stat { mode: self.mode, ..stat }
    }

    /// Reads `uid:gid:octalmode[:type]`; nothing if it is something else.
    pub fn parse(text: &[u8]) -> Option<Override> {
        let mut words = std::str::from_utf8(text).ok()?.trim_end_matches('\0').splitn(4, ':');
        let (uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let mode = u32::from_str_radix(words.next()?, 8).ok()? & 0o7777;
        let (kind, rdev) = words.next().and_then(kind_of_word).unzip();
        Some(Override { uid, gid, mode, kind, rdev: rdev.unwrap_or(0) })
    }

    /// Writes it.
    pub fn print(&self) -> String {
        let (major, minor) = (rustix::fs::major(self.rdev), rustix::fs::minor(self.rdev));
        let kind = match self.kind {
            None => String::new(),
            Some(Kind::File) => ":file".into(),
            Some(Kind::Dir) => ":dir".into(),
            Some(Kind::Symlink) => ":symlink".into(),
            Some(Kind::Fifo) => ":pipe".into(),
            Some(Kind::Socket) => ":socket".into(),
            Some(Kind::Block) => format!(":block{major}:{minor}"),
            Some(Kind::Char) => format!(":char{major}:{minor}"),
        };
        format!("{}:{}:{:04o}{kind}", self.uid, self.gid, self.mode)
    }

    fn to_row(self, birth: u64) -> [u8; ROW] {
        let kind = TAG | self.kind.map_or(0, |kind| 1 + (kind.file_type().as_raw_mode() >> 12));
        let mut row = [0; ROW];
        for (at, word) in [self.uid, self.gid, self.mode, kind].into_iter().enumerate() {
            row[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        row[16..24].copy_from_slice(&self.rdev.to_le_bytes());
        row[24..].copy_from_slice(&birth.to_le_bytes());
        row
    }

    fn of_row(row: &[u8; ROW], birth: u64) -> Option<Override> {
        let word = |at: usize| Some(u32::from_le_bytes(row.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(row.get(at..at + 8)?.try_into().ok()?));
        let kind = word(12)?;
        if kind & !0xff != TAG || long(24)? != birth {
            return None;
        }
        let kind = match kind & 0xff {
            0 => None,
            kind => Some(Kind::of(rustix::fs::FileType::from_raw_mode((kind - 1) << 12)).ok()?),
        };
        Some(Override { uid: word(0)?, gid: word(4)?, mode: word(8)? & 0o7777, kind, rdev: long(16)? })
    }
}

/// Reads `file`, `char1:3` and the like; devices are also written `char-1-3`.
fn kind_of_word(word: &str) -> Option<(Kind, u64)> {
    const WORDS: [(&str, Kind); 7] = [
        ("dir", Kind::Dir),
        ("file", Kind::File),
        ("symlink", Kind::Symlink),
        ("pipe", Kind::Fifo),
        ("socket", Kind::Socket),
        ("block", Kind::Block),
        ("char", Kind::Char),
    ];
    let (kind, rest) = WORDS.iter().find_map(|(text, kind)| Some((*kind, word.strip_prefix(text)?)))?;
    if !matches!(kind, Kind::Block | Kind::Char) {
        return Some((kind, 0));
    }
    let (major, minor) = rest.strip_prefix('-').unwrap_or(rest).split_once([':', '-'])?;
    Some((kind, rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?)))
}

/// Where the kept attributes of one branch are. Goes with every open directory of it as a plain
/// value ([`Form`]); a process opens few branches in its life, so it stays for the whole of it.
#[derive(Debug, Clone, Copy)]
pub struct Kept(&'static Place);

#[derive(Debug)]
struct Place {
    root: OwnedFd,
    /// Where entries have it: [`OVERRIDE`] or [`PRIVILEGED`].
    attribute: &'static [u8],
    /// Whether the root says that entries have it.
    marked: AtomicBool,
    /// Whether the kernel refuses us things, or owners are not to be changed; these are kept here then.
    writes: bool,
    /// Whether owners stay what they are.
    owners: bool,
    /// The work area, where the branch is written.
    area: OnceLock<OwnedFd>,
    rows: OnceLock<OwnedFd>,
    /// Whether rows were written that may not have reached the disk.
    unsynced: AtomicBool,
    syncing: Mutex<()>,
    making: Mutex<()>,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Kept) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Kept {}

impl Kept {
    /// What a branch keeps, by its root; nothing where it keeps nothing and nobody will ask it to.
    /// The rows of one that is only read lie in the work area in `workdir`, or at the root.
    ///
    /// # Errors
    /// Those of reading an extended attribute.
    pub fn of(
        root: &Dir,
        names: &RootNames,
        written: bool,
        keeping: Keeping,
        workdir: Option<&Dir>,
    ) -> Result<Option<Kept>, Errno> {
        let owners = keeping != Keeping::Refused;
        let has_privileged = names.has_one_of(&[PRIVILEGED]) && !names.has_one_of(&[OVERRIDE]);
        let attribute = match keeping {
            Keeping::Privileged => PRIVILEGED,
            Keeping::Refused if has_privileged => PRIVILEGED,
            Keeping::Owners | Keeping::Refused => OVERRIDE,
        };
        let marked = names.has_one_of(&[attribute]);
        // those of a branch that is written come with its work area
        let rows = if written { None } else { open_rows(workdir.unwrap_or(root))? };
        let writes = written && (owners || !rights().all);
        if !marked && !owners && !written && rows.is_none() {
            return Ok(None);
        }
        let place = Place {
            root: duplicate(root)?,
            marked: marked.into(),
            writes,
            attribute,
            owners,
            area: OnceLock::new(),
            rows: rows.map_or_else(OnceLock::new, OnceLock::from),
            unsynced: false.into(),
            syncing: Mutex::new(()),
            making: Mutex::new(()),
        };
        Ok(Some(Kept(Box::leak(Box::new(place)))))
    }

    /// Says where rows can be written.
    ///
    /// # Errors
    /// Those of opening them.
    pub fn set_area(self, area: &Dir) -> Result<(), Errno> {
        if let Some(rows) = open_in(area, OFlags::RDWR)? {
            self.0.rows.get_or_init(|| rows);
        }
        let area = duplicate(area)?;
        self.0.area.get_or_init(|| area);
        Ok(())
    }

    /// Opens the rows anew for reading, or for writing as well.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open_again(self, access: OFlags) -> Result<(), Errno> {
        let _making = self.0.making.lock();
        let (Some(rows), Some(area)) = (self.0.rows.get(), self.0.area.get()) else { return Ok(()) };
        let again = open_in(area, access)?.ok_or(Errno::NOENT)?;
        crate::sys::replace(rows.as_fd(), again)
    }

    /// Whether what the kernel refuses is kept.
    pub fn writes(self) -> bool {
        self.0.writes
    }

    /// Whether the attribute is looked for by its former name, too: by fuse-overlayfs, which wrote it.
    pub(super) fn has_former_names(self) -> bool {
        self.0.owners && self.0.attribute == OVERRIDE
    }

    /// The extended attribute in which it is kept.
    pub(super) fn attribute(self) -> &'static [u8] {
        self.0.attribute
    }

    /// Whether an owner that is asked for is kept, and never made real, where an entry can carry it.
    pub(super) fn keeps_owners(self) -> bool {
        self.0.owners && self.0.writes
    }

    /// Whether nothing was kept, nor may come to be: all is real.
    pub fn is_idle(self) -> bool {
        !self.writes() && !self.is_marked() && !self.has_rows()
    }

    /// Whether entries may have the extended attribute.
    pub fn is_marked(self) -> bool {
        self.0.owners || self.0.marked.load(Ordering::Relaxed)
    }

    /// Whether anything is in rows.
    pub fn has_rows(self) -> bool {
        self.0.rows.get().is_some()
    }

    /// Makes the root say that entries have the attribute. Whether it does.
    pub(super) fn mark(self) -> Result<bool, Errno> {
        if self.0.marked.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let root = At::open(self.0.root.as_fd(), Form::default());
        let text = Override::of(&root.stat()?).print();
        match root.set_xattr(self.0.attribute, text.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSPC) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        self.0.marked.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// The row of an entry.
    pub(super) fn row(self, id: RealId) -> Result<Option<Override>, Errno> {
        let Some(rows) = self.0.rows.get() else { return Ok(None) };
        let Some(offset) = offset(id) else { return Ok(None) };
        let mut row = [0; ROW];
        match rustix::io::pread(rows, &mut row, offset)? {
            ROW => Ok(Override::of_row(&row, id.birth)),
            // past the end
            _ => Ok(None),
        }
    }

    /// Writes the row of an entry.
    ///
    /// # Errors
    /// EPERM where the branch has no work area, and those of making and writing a file.
    pub(super) fn set_row(self, id: RealId, kept: Override) -> Result<(), Errno> {
        let at = offset(id).ok_or(Errno::FBIG)?;
        write(self.make_rows()?, &kept.to_row(id.birth), at)?;
        self.0.unsynced.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the rows durable.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(self) -> Result<(), Errno> {
        let Some(rows) = self.0.rows.get() else { return Ok(()) };
        // whoever is at it may be so with the row of this caller
        let _syncing = self.0.syncing.lock();
        if !self.0.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        rustix::fs::fsync(rows).inspect_err(|_| self.0.unsynced.store(true, Ordering::Release))
    }

    /// Has the row of an entry say something else, if it has one: what is written elsewhere and counts
    /// as soon as it is there. Without the row a power cut could show neither that nor what was before,
    /// for a row reaches the disk by itself, and what is written elsewhere with the journal.
    pub(super) fn update_row(self, id: RealId, kept: Override) -> Result<(), Errno> {
        match self.row(id)? {
            Some(_) => self.set_row(id, kept),
            None => Ok(()),
        }
    }

    /// Takes away the row of an entry that was just made: it is that of another one, which had the same
    /// inode number. That is gone from the disk, too, before its row goes.
    pub(super) fn drop_row(self, id: RealId) -> Result<(), Errno> {
        match (self.row(id)?, self.0.rows.get(), offset(id)) {
            (Some(_), Some(rows), Some(at)) => {
                rustix::fs::syncfs(rows)?;
                write(rows, &[0; ROW], at)
            }
            _ => Ok(()),
        }
    }

    fn make_rows(self) -> Result<&'static OwnedFd, Errno> {
        let _making = self.0.making.lock();
        if let Some(rows) = self.0.rows.get() {
            return Ok(rows);
        }
        let area = self.0.area.get().ok_or(Errno::PERM)?;
        let rows = open_in(area, OFlags::RDWR | OFlags::CREATE)?.ok_or(Errno::NOENT)?;
        Ok(self.0.rows.get_or_init(|| rows))
    }
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    fd.as_fd().try_clone_to_owned().map_err(|error| super::errno_of(&error))
}

fn offset(id: RealId) -> Option<u64> {
    id.ino.checked_mul(ROW as u64).filter(|at| i64::try_from(*at).is_ok())
}

fn write(rows: &OwnedFd, row: &[u8; ROW], at: u64) -> Result<(), Errno> {
    match rustix::io::pwrite(rows, row, at)? {
        ROW => Ok(()),
        _ => Err(Errno::NOSPC),
    }
}

/// The rows in the work area of a directory.
fn open_rows(parent: &Dir) -> Result<Option<OwnedFd>, Errno> {
    match parent.open_dir(WORK_AREA) {
        Ok(area) => open_in(&area, OFlags::RDONLY),
        // somebody else's mount wrote there, and what it kept is not ours to read
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn open_in(area: impl AsFd, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(area, ROWS, flags, Mode::from_raw_mode(0o600)) {
        Ok(rows) => Ok(Some(rows)),
        Err(Errno::NOENT | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

    #[test]
    fn overrides_are_read_in_every_form_and_written_in_one() {
        let plain = Override { uid: 0, gid: 42, mode: 0o2755, kind: None, rdev: 0 };
        let null = Override { kind: Some(Kind::Char), rdev: makedev(1, 3), ..plain };
        for (text, expected, printed) in [
            ("0:42:2755", plain, "0:42:2755"),
            ("0:42:102755:file", Override { kind: Some(Kind::File), ..plain }, "0:42:2755:file"),
            ("0:42:02755:dir", Override { kind: Some(Kind::Dir), ..plain }, "0:42:2755:dir"),
            ("0:42:2755:pipe", Override { kind: Some(Kind::Fifo), ..plain }, "0:42:2755:pipe"),
            ("0:42:2755:socket", Override { kind: Some(Kind::Socket), ..plain }, "0:42:2755:socket"),
            ("0:42:2755:char1:3", null, "0:42:2755:char1:3"),
            ("0:42:2755:char-1-3", null, "0:42:2755:char1:3"),
            ("0:42:2755:block1:3", Override { kind: Some(Kind::Block), ..null }, "0:42:2755:block1:3"),
            ("0:42:2755:unheard-of", plain, "0:42:2755"),
        ] {
            assert_eq!(Override::parse(text.as_bytes()), Some(expected), "{text}");
            assert_eq!(expected.print(), printed);
        }
        for text in ["", "0", "0:0", "0:0:", "0:0:9", "-1:0:644", "x:0:644", "0:99999999999:644"] {
            assert_eq!(Override::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Override::parse(b"\xff:0:644"), None);
    }

    #[test]
    fn rows_are_read_as_they_were_written_for_the_same_entry_only() {
        for kind in [None, Some(Kind::Symlink), Some(Kind::Fifo), Some(Kind::Block), Some(Kind::File)] {
            let kept = Override { uid: 7, gid: u32::MAX, mode: 0o7777, kind, rdev: makedev(259, 70_000) };
            let row = kept.to_row(99);
            assert_eq!(Override::of_row(&row, 99), Some(kept));
            assert_eq!(Override::of_row(&row, 98), None);
        }
        assert_eq!(Override::of_row(&[0; ROW], 0), None);
        assert_eq!(Override::of_row(&[0xff; ROW], u64::MAX), None);
    }

    #[test]
    fn only_a_file_stands_for_something_else() {
        let kept = |kind| Override { uid: 0, gid: 0, mode: 0, kind: Some(kind), rdev: 0 };
        assert_eq!(kept(Kind::Char).stands_for(Kind::File), Some(Kind::Char));
        assert_eq!(kept(Kind::Char).stands_for(Kind::Dir), None);
        assert_eq!(kept(Kind::Dir).stands_for(Kind::File), None);
        assert_eq!(kept(Kind::Symlink).stands_for(Kind::File), None);
    }
}
