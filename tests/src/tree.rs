//! Branches filled at random: as a value that shrinks, as a world, and on disk. And the same merged, in a plain
//! directory, which is what the union over the branches must look like.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::rootless::{give_branch, has_ordinary_daemons, possible};
use crate::world::{Access, Branch, Dir, Entry, Name, Seen, View, World};

/// The names that branches hold and that operations use: few, so that they meet.
pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What a union is mounted over.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The branches, top first.
    pub branches: Vec<Access>,
    /// For each branch, whether its root holds the opaque mark.
    pub opaque_roots: Vec<bool>,
    /// What they hold, in the order in which it is put there; what finds its place taken is left out.
    pub things: Vec<Thing>,
}

/// One thing that a branch holds.
#[derive(Debug, Clone)]
pub struct Thing {
    /// The branch, counted round.
    pub branch: usize,
    /// Where, in names of [`NAMES`].
    pub at: String,
    /// What.
    pub what: What,
    /// Its attributes.
    pub look: Look,
}

/// The kinds of things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file of so many bytes.
    File(usize),
    /// A symlink.
    Symlink(String),
    /// A fifo.
    Fifo,
    /// A character device 1:3.
    Device,
    /// A hard link to an earlier file of the branch, counted round.
    Link(usize),
    /// A directory.
    Dir,
    /// A directory that hides those below it.
    Opaque,
    /// A whiteout.
    Whiteout,
}

/// Attributes of a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: u32,
    /// Seconds of the modification time, long ago; the access time is a day earlier, so that `relatime` would move it.
    pub mtime: i64,
    /// Value of the attribute `user.look`, if it has one.
    pub xattr: Option<u8>,
}

/// What an entry of a generated branch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The object: names of the same number are hard links.
    pub object: usize,
    /// Its kind.
    pub what: What,
    /// Its attributes.
    pub look: Look,
}

/// How a directory looks that is there only because something lies in it, and the root.
const PLAIN_LOOK: Look = Look { mode: 0o755, owner: 0, mtime: 1_000_000_000, xattr: None };

/// Layouts of one to five branches.
pub fn layouts() -> impl Strategy<Value = Layout> {
    let top = prop_oneof![8 => Just(Access::Writable), 1 => Just(Access::Whiteouts), 1 => Just(Access::Plain)];
    let lower = prop_oneof![1 => Just(Access::Writable), 4 => Just(Access::Whiteouts), 2 => Just(Access::Plain)];
    let branches = (top, prop::collection::vec(lower, 0..=4)).prop_map(|(top, lower)| [vec![top], lower].concat());
    let opaque_roots = prop::collection::vec(prop::bool::weighted(0.05), 5);
    (branches, opaque_roots, prop::collection::vec(thing(), 0..=40))
        .prop_map(|(branches, opaque_roots, things)| possible(Layout { branches, opaque_roots, things }))
}

fn thing() -> impl Strategy<Value = Thing> {
    (0..5usize, paths(), what(), look()).prop_map(|(branch, at, what, look)| Thing { branch, at, what, look })
}

/// Paths of one to three of [`NAMES`].
pub fn paths() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(NAMES.to_vec());
    prop_oneof![
        4 => name().prop_map(str::to_owned),
        4 => (name(), name()).prop_map(|(a, b)| format!("{a}/{b}")),
        2 => (name(), name(), name()).prop_map(|(a, b, c)| format!("{a}/{b}/{c}")),
    ]
}

/// Where symlinks point: to names that may be there, never out of the tree.
pub fn link_targets() -> impl Strategy<Value = String> {
    prop_oneof![3 => paths(), 1 => Just("./a".to_owned()), 1 => Just("nowhere".to_owned())]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        6 => prop::sample::select(vec![0, 1, 100, 5_000, 70_000]).prop_map(What::File),
        1 => link_targets().prop_map(What::Symlink),
        1 => Just(What::Fifo),
        1 => Just(What::Device),
        2 => (0..8usize).prop_map(What::Link),
        6 => Just(What::Dir),
        1 => Just(What::Opaque),
        3 => Just(What::Whiteout),
    ]
}

fn look() -> impl Strategy<Value = Look> {
    let modes = vec![0o644, 0o600, 0o755, 0o777, 0o000, 0o4755, 0o2755, 0o2770, 0o1777, 0o750];
    let owner = prop_oneof![3 => Just(0), 1 => Just(1_000), 1 => Just(1_001)];
    let xattr = prop::option::weighted(0.3, any::<u8>());
    (prop::sample::select(modes), owner, 1_000_000_000..1_100_000_000_i64, xattr)
        .prop_map(|(mode, owner, mtime, xattr)| Look { mode, owner, mtime, xattr })
}

impl Layout {
    /// The branches as values.
    #[must_use]
    pub fn world(&self) -> World<About> {
        let branches = self.branches.iter().zip(&self.opaque_roots);
        let empty = |opaque: bool| Dir { opaque, ..Dir::default() };
        let mut world = World {
            branches: branches.map(|(access, opaque)| Branch { access: *access, root: empty(*opaque) }).collect(),
        };
        let mut files: HashMap<usize, Vec<About>> = HashMap::new();
        for (number, thing) in self.things.iter().enumerate() {
            let branch = thing.branch % world.branches.len();
            let mut about = About { object: 10 * number, what: thing.what.clone(), look: thing.look.clone() };
            let earlier = files.entry(branch).or_default();
            if let What::Link(which) = thing.what {
                match earlier.get(which % earlier.len().max(1)) {
                    Some(file) => about = file.clone(),
                    None => continue,
                }
            }
            if put(&mut world.branches[branch].root, &thing.at, &about)
                && !matches!(about.what, What::Dir | What::Opaque)
            {
                earlier.push(about);
            }
        }
        world
    }

    /// The branch string over directories `0`, `1` … in `parent`.
    #[must_use]
    pub fn branch_string(&self, parent: &Path) -> std::ffi::OsString {
        let mut text = std::ffi::OsString::new();
        for (index, access) in self.branches.iter().enumerate() {
            text.push(if index == 0 { "" } else { ":" });
            text.push(parent.join(index.to_string()));
            text.push(match access {
                Access::Writable => "=rw",
                Access::Whiteouts => "=ro+wh",
                Access::Plain => "=ro",
            });
        }
        text
    }

    /// Whether the topmost branch takes every change, so that none may be refused with EROFS.
    #[must_use]
    pub fn top_is_writable(&self) -> bool {
        self.branches.first() == Some(&Access::Writable)
    }

    /// Whether the topmost branch is the only one that is written.
    #[must_use]
    pub fn only_top_is_writable(&self) -> bool {
        self.top_is_writable() && !self.branches.iter().skip(1).any(|access| *access == Access::Writable)
    }
}

/// Puts a thing into a branch, with the directories above it. Says whether an entry came to be.
fn put(root: &mut Dir<About>, at: &str, about: &About) -> bool {
    let mut names: Vec<Name> = at.split('/').map(|name| name.as_bytes().to_vec()).collect();
    let Some(name) = names.pop() else { return false };
    let mut dir = root;
    for (depth, parent) in (1..).zip(names) {
        let implied = About { object: about.object + depth, what: What::Dir, look: PLAIN_LOOK };
        let slot = dir.slots.entry(parent).or_default();
        dir = match slot.entry.get_or_insert_with(|| Entry::Dir(implied, Dir::default())) {
            Entry::Dir(_, inner) => inner,
            Entry::Leaf(_) => return false,
        };
    }
    let slot = dir.slots.entry(name).or_default();
    match about.what {
        What::Whiteout => {
            slot.whiteout = true;
            return false;
        }
        _ if slot.entry.is_some() => return false,
        What::Dir | What::Opaque => {
            let body = Dir { opaque: about.what == What::Opaque, ..Dir::default() };
            slot.entry = Some(Entry::Dir(about.clone(), body));
        }
        _ => slot.entry = Some(Entry::Leaf(about.clone())),
    }
    true
}

/// The bytes of a generated file.
#[must_use]
pub fn bytes(seed: usize, length: usize) -> Vec<u8> {
    // never a zero byte, so that holes are told from data
    (0..length).map(|at| u8::try_from((seed * 31 + at * 7 + at / 251) % 255 + 1).unwrap_or(1)).collect()
}

/// Writes each branch to the directory of its index in `parent`.
///
/// # Errors
/// The first system call that fails.
pub fn write_branches(world: &World<About>, parent: &Path) -> io::Result<()> {
    for (index, branch) in world.branches.iter().enumerate() {
        let root = parent.join(index.to_string());
        fs::create_dir(&root)?;
        write_dir(&branch.root, &root, &PLAIN_LOOK, &mut HashMap::new())?;
        if has_ordinary_daemons() {
            give_branch(&root)?;
        }
    }
    Ok(())
}

fn write_dir(dir: &Dir<About>, path: &Path, look: &Look, objects: &mut HashMap<usize, PathBuf>) -> io::Result<()> {
    if dir.opaque {
        write_mark(&path.join(".wh..wh..opq"))?;
    }
    for (name, slot) in &dir.slots {
        if slot.whiteout {
            write_mark(&path.join(std::ffi::OsStr::from_bytes(&[b".wh.", name.as_slice()].concat())))?;
        }
        let path = path.join(std::ffi::OsStr::from_bytes(name));
        match &slot.entry {
            None => {}
            Some(Entry::Leaf(about)) => write_leaf(about, &path, objects)?,
            Some(Entry::Dir(about, inner)) => {
                fs::create_dir(&path)?;
                write_dir(inner, &path, &about.look, objects)?;
            }
        }
    }
    give_look(path, look, true)
}

/// Makes the directory `to` look like `from`, itself and not what is in it.
///
/// # Errors
/// The first system call that fails.
pub fn write_like(from: &Path, to: &Path) -> io::Result<()> {
    let stat = rustix::fs::stat(from)?;
    fs::create_dir(to)?;
    rustix::fs::chown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode))?;
    for (name, value) in crate::snapshot::xattrs(from)? {
        rustix::fs::setxattr(to, name, &value, XattrFlags::empty())?;
    }
    let time = |tv_sec, nanoseconds| Timespec { tv_sec, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    let last_access = time(stat.st_atime, stat.st_atime_nsec);
    let times = Timestamps { last_access, last_modification: time(stat.st_mtime, stat.st_mtime_nsec) };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::empty())?)
}

fn write_mark(path: &Path) -> io::Result<()> {
    fs::write(path, "")?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o444))
}

fn write_leaf(about: &About, path: &Path, objects: &mut HashMap<usize, PathBuf>) -> io::Result<()> {
    if let Some(first) = objects.get(&about.object) {
        return fs::hard_link(first, path);
    }
    objects.insert(about.object, path.to_owned());
    match &about.what {
        What::File(length) => fs::write(path, bytes(about.object, *length))?,
        What::Symlink(target) => symlink(target, path)?,
        What::Fifo => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::empty(), 0)?,
        What::Device => {
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(1, 3))?;
        }
        What::Link(_) | What::Dir | What::Opaque | What::Whiteout => unreachable!("not a leaf: {about:?}"),
    }
    let takes_xattrs = matches!(about.what, What::File(_));
    give_look(path, &about.look, takes_xattrs)
}

/// Sets owner, mode, xattr and times, in an order in which none undoes another.
fn give_look(path: &Path, look: &Look, takes_xattrs: bool) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(look.owner), Gid::from_raw(look.owner));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !fs::symlink_metadata(path)?.is_symlink() {
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(look.mode), AtFlags::empty())?;
    }
    if let Some(value) = look.xattr.filter(|_| takes_xattrs) {
        rustix::fs::lsetxattr(path, "user.look", &[value], XattrFlags::empty())?;
    }
    let time = |seconds| Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time(look.mtime - 86_400), last_modification: time(look.mtime) };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Writes what a union of the branches shows into the new directory `root`. Names that a branch holds but the union
/// does not show count as links (rule 32); they come to lie in `elsewhere`.
///
/// # Errors
/// The first system call that fails.
pub fn write_merged(world: &World<About>, root: &Path, elsewhere: &Path) -> io::Result<()> {
    fs::create_dir(root)?;
    let mut objects = HashMap::new();
    let mut names_left = HashMap::new();
    for branch in &world.branches {
        count_names(&branch.root, &mut names_left);
    }
    write_view(&world.view(), root, &PLAIN_LOOK, &mut objects, &mut names_left)?;
    for (object, path) in &objects {
        for number in 0..names_left.get(object).copied().unwrap_or(0) {
            fs::hard_link(path, elsewhere.join(format!("{object}-{number}")))?;
        }
    }
    Ok(())
}

fn count_names(dir: &Dir<About>, names: &mut HashMap<usize, usize>) {
    for slot in dir.slots.values() {
        match &slot.entry {
            None => {}
            Some(Entry::Leaf(about)) => *names.entry(about.object).or_default() += 1,
            Some(Entry::Dir(_, inner)) => count_names(inner, names),
        }
    }
}

fn write_view(
    view: &View<About>,
    path: &Path,
    look: &Look,
    objects: &mut HashMap<usize, PathBuf>,
    names_left: &mut HashMap<usize, usize>,
) -> io::Result<()> {
    for (name, seen) in view {
        let path = path.join(std::ffi::OsStr::from_bytes(name));
        match seen {
            Seen::Leaf(about) => {
                write_leaf(about, &path, objects)?;
                names_left.entry(about.object).and_modify(|left| *left -= 1);
            }
            Seen::Dir(about, inner) => {
                fs::create_dir(&path)?;
                write_view(inner, &path, &about.look, objects, names_left)?;
            }
        }
    }
    give_look(path, look, true)
}
