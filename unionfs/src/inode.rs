//! Identity: what the kernel knows by a number, where it lies, and how long it is remembered.
//!
//! An inode lives as long as the kernel owes it a forget, a handle is open on it, or a name below
//! it is known; then it leaves nothing behind. Locks in it are taken in the order that
//! [`crate::fs`] states.

mod learned;

use std::collections::hash_map::RandomState;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::branch::stat::{Kind, RealId, Stat};
use crate::cpus::parts_of_a_table;
use crate::handle::OpenFile;
use crate::union::{BranchIndex, Name, NameBuf};

pub use learned::{Absent, Heritage, Learned};

/// The number of the root, fixed by the FUSE protocol.
pub const ROOT: u64 = 1;

/// As [`State::seen`] of a directory: it was brought up to one more branch, and is otherwise what it was.
pub const GROWN: u64 = u64::MAX;

/// One object of the union.
#[derive(Debug)]
pub struct Inode {
    /// Its number: `st_ino`, and the FUSE node id.
    pub ino: u64,
    /// Its type, which never changes.
    pub kind: Kind,
    /// Differs for a later object of the same number, so that a file handle which the kernel gave
    /// out for this one (name_to_handle_at(2)) never leads to that.
    pub incarnation: u32,
    /// Lookups that the kernel owes a forget.
    lookups: AtomicU64,
    /// For a directory: the names in it. Held shared by who looks; who changes them takes
    /// [`Inode::lock_names`].
    pub names: RwLock<()>,
    /// Counts the times that names may have changed.
    generation: AtomicU64,
    /// Held by who copies the object up, or asks who writes to it.
    pub gate: Mutex<()>,
    state: Mutex<State>,
    home: Weak<Inodes>,
}

/// What changes of an inode. Read and written under a short lock, never over a system call.
#[derive(Debug)]
pub struct State {
    /// The names that are known; a directory has one, but for the root, which has none.
    pub dentries: SmallVec<[Dentry; 1]>,
    /// Where the object lies.
    pub place: Place,
    /// The real identity of its topmost entry.
    pub real: RealId,
    /// The open file, while a handle is open.
    pub open: Weak<OpenFile>,
    /// Of a file, size, mtime and ctime at the last open, mixed: tells whether cached pages may
    /// stay. Of a directory, the directories behind it at the last lookup: tells whether what is
    /// open of them may.
    pub seen: u64,
    /// Of a directory, what was found out about it.
    learned: Option<Box<Learned>>,
    /// The extended attributes that it is known not to have.
    pub absent: Absent,
    /// Copied up, and the names that lead to it are not known to be on disk.
    pub unsynced: bool,
    /// Somebody held it open when it was about to lose its last name.
    pub held: bool,
    /// A handle was on it, so that the kernel may have pages of it.
    pub opened: bool,
    /// Of a file that the kernel may be writing without our knowledge, which open it was that last
    /// let it: size and times are not to be remembered by it. A mapping writes when all handles are
    /// closed already.
    pub written: Option<NonZeroU32>,
}

impl State {
    /// What was found out about a directory, if anything was.
    pub fn learned(&self) -> Option<&Learned> {
        self.learned.as_deref()
    }

    /// Other directories are behind it than before, of which nothing is known.
    pub fn forget_learned(&mut self) {
        self.learned = None;
    }

    /// The same, to be added to.
    pub fn learn(&mut self) -> &mut Learned {
        self.learned.get_or_insert_default()
    }
}

/// A name in a directory.
#[derive(Debug, Clone)]
pub struct Dentry {
    /// The directory.
    pub parent: Arc<Inode>,
    /// The name.
    pub name: NameBuf,
}

/// Where an object lies.
#[derive(Debug, Clone)]
pub enum Place {
    /// Not a directory: on this branch, under each of its known names.
    Entry(BranchIndex),
    /// Not a directory: a hard link of the record in this branch's work area. Some of its names
    /// may still stand on branches below.
    Record(BranchIndex),
    /// A directory.
    Stack(Arc<Stack>),
    /// Without a name; these were its attributes, with the links that remain.
    Gone(Box<Stat>),
}

/// The branches of a directory, top first, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The branches.
    pub branches: SmallVec<[BranchIndex; 4]>,
    /// The lowest branch on which a new entry in this directory is seen.
    pub lowest_seen: BranchIndex,
    /// Where it was renamed with what is below.
    pub redirect: Option<Box<Redirected>>,
}

/// Of a renamed directory, what is not found by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirected {
    /// The branch of the record.
    pub branch: BranchIndex,
    /// The directories below that one: their paths in their branches.
    pub places: Vec<(BranchIndex, Box<[u8]>)>,
}

impl Stack {
    /// The topmost branch.
    pub fn top(&self) -> BranchIndex {
        self.branches[0]
    }

    /// The path in a branch, where the directory does not lie there under its name.
    pub fn elsewhere(&self, branch: BranchIndex) -> Option<&[u8]> {
        let places = &self.redirect.as_ref()?.places;
        places.iter().find(|(at, _)| *at == branch).map(|(_, path)| &**path)
    }

    /// Whether the directory would be seen on a branch that it does not lie on, if it were brought
    /// up to it under its name.
    pub fn takes(&self, branch: BranchIndex) -> bool {
        let elsewhere = self.redirect.as_ref().is_some_and(|redirect| branch > redirect.branch);
        !elsewhere && branch <= self.lowest_seen
    }

    /// The same stack with one more branch.
    pub fn with(&self, branch: BranchIndex) -> Stack {
        let mut stack = self.clone();
        if let Err(at) = stack.branches.binary_search(&branch) {
            stack.branches.insert(at, branch);
        }
        stack
    }
}

impl Inode {
    /// Holds the names of a directory to change them.
    pub fn lock_names(&self) -> RwLockWriteGuard<'_, ()> {
        let names = self.names.write();
        self.generation.fetch_add(1, Ordering::Relaxed);
        names
    }

    /// How often names may have changed; it stands still while the names are held.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// A copy of where the object lies.
    pub fn place(&self) -> Place {
        self.state.lock().place.clone()
    }

    /// The branches of a directory.
    ///
    /// # Errors
    /// ENOENT if it was removed, ENOTDIR if it is not a directory.
    pub fn stack(&self) -> Result<Arc<Stack>, Errno> {
        match &self.state.lock().place {
            Place::Stack(stack) => Ok(Arc::clone(stack)),
            Place::Gone(_) if self.kind == Kind::Dir => Err(Errno::NOENT),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Some name of the object.
    pub fn dentry(&self) -> Option<Dentry> {
        self.state.lock().dentries.first().cloned()
    }

    /// Reads or changes the state. `f` must not block nor drop the last reference to an inode.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock())
    }

    /// Whether the one lookup that somebody is about to hand over is the only one. Whoever looks the
    /// inode up after this was asked sees what its state was when it was.
    pub fn is_looked_up_once(&self) -> bool {
        self.lookups.load(Ordering::SeqCst) == 1
    }

    /// The open file, if a handle is open.
    pub fn open_file(&self) -> Option<Arc<OpenFile>> {
        self.state.lock().open.upgrade()
    }

    /// Notes a name that was seen just now; it is the first to be tried from now on. A directory
    /// has one name, so what it had before is returned, to be dropped without the lock.
    #[must_use]
    pub fn add_name(&self, parent: &Arc<Inode>, name: Name<'_>) -> Option<Dentry> {
        let mut state = self.state.lock();
        let known = |d: &Dentry| Arc::ptr_eq(&d.parent, parent) && d.name.as_name() == name;
        if let Some(at) = state.dentries.iter().position(known) {
            state.dentries.swap(0, at);
            return None;
        }
        state.dentries.insert(0, Dentry { parent: Arc::clone(parent), name: name.to_owned() });
        if self.kind == Kind::Dir { state.dentries.drain(1..).next() } else { None }
    }

    /// Puts a new name in the place of one, in one go: somebody may be on the way by it. What is
    /// not needed any more is returned, to be dropped without the lock.
    #[must_use]
    pub fn move_name(&self, from: (&Arc<Inode>, Name<'_>), to: (&Arc<Inode>, Name<'_>)) -> Vec<Dentry> {
        let mut state = self.state.lock();
        let is = |d: &Dentry, (parent, name): (&Arc<Inode>, Name<'_>)| {
            Arc::ptr_eq(&d.parent, parent) && d.name.as_name() == name
        };
        let known = std::mem::take(&mut state.dentries);
        let (gone, kept): (Vec<_>, Vec<_>) = known.into_iter().partition(|d| is(d, from) || is(d, to));
        state.dentries.push(Dentry { parent: Arc::clone(to.0), name: to.1.to_owned() });
        state.dentries.extend(kept);
        gone
    }

    /// Forgets a name; returns it, to be dropped without the lock.
    pub fn remove_name(&self, parent: &Arc<Inode>, name: Name<'_>) -> Option<Dentry> {
        let mut state = self.state.lock();
        let at = state.dentries.iter().position(|d| Arc::ptr_eq(&d.parent, parent) && d.name.as_name() == name)?;
        Some(state.dentries.remove(at))
    }

    /// The path from the root, without a leading slash, by one of its names.
    pub fn path_of(parent: &Arc<Inode>, name: Name<'_>) -> Vec<u8> {
        let mut parts = vec![name.to_owned()];
        let mut at = Arc::clone(parent);
        while let Some(dentry) = at.dentry() {
            parts.push(dentry.name);
            at = dentry.parent;
        }
        parts.reverse();
        parts.iter().map(NameBuf::as_bytes).collect::<Vec<_>>().join(&b'/')
    }

    fn leave(&mut self) -> SmallVec<[Dentry; 1]> {
        if let Some(home) = self.home.upgrade() {
            home.table.remove_if(&self.ino, |_, slot| slot.inode.strong_count() == 0);
            home.on_leave.left(self.ino, self.kind, self.state.get_mut().held);
        }
        std::mem::take(&mut self.state.get_mut().dentries)
    }
}

impl Drop for Inode {
    /// Leaves the table, and lets parents go one by one: a recursion as deep as the tree could
    /// overflow the stack.
    fn drop(&mut self) {
        let mut leaving = self.leave().into_vec();
        while let Some(dentry) = leaving.pop() {
            if let Some(mut parent) = Arc::into_inner(dentry.parent) {
                leaving.extend(parent.leave());
            }
        }
    }
}

#[derive(Debug)]
struct Slot {
    inode: Weak<Inode>,
    /// Keeps the inode while the kernel knows it.
    known: Option<Arc<Inode>>,
}

/// All inodes, by number.
#[derive(Debug)]
pub struct Inodes {
    table: DashMap<u64, Slot, RandomState>,
    /// Told when a number is not in use any more.
    on_leave: Box<dyn LeaveHook>,
    /// The last [`Inode::incarnation`].
    made: AtomicU32,
    /// Counts forgets, to look at the size now and then only.
    forgets: AtomicU64,
    /// The largest number of inodes that was seen since memory was given back.
    peak: AtomicUsize,
}

/// So many forgets go by between two looks at the size.
const LOOK_AFTER: u64 = 4096;
/// Fewer inodes than this are not worth the effort.
const WORTHWHILE: usize = 16_384;

/// What is told of inodes that leave.
pub trait LeaveHook: Send + Sync + std::fmt::Debug {
    /// The number is free. `held` is [`State::held`].
    fn left(&self, ino: u64, kind: Kind, held: bool);
}

/// Where and how an inode begins.
#[derive(Debug)]
pub struct Birth {
    /// Its number.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
    /// Where it lies.
    pub place: Place,
    /// The real identity of its topmost entry.
    pub real: RealId,
}

/// The number belongs to another object that the kernel still knows.
#[derive(Debug)]
pub struct Taken;

impl Inodes {
    /// An empty table.
    pub fn new(on_leave: Box<dyn LeaveHook>) -> Arc<Inodes> {
        let table = DashMap::with_hasher_and_shard_amount(RandomState::new(), parts_of_a_table());
        Arc::new(Inodes {
            table,
            on_leave,
            made: AtomicU32::new(0),
            forgets: AtomicU64::new(0),
            peak: AtomicUsize::new(0),
        })
    }

    /// The inode of a number.
    ///
    /// # Errors
    /// ESTALE if there is none.
    pub fn get(&self, ino: u64) -> Result<Arc<Inode>, Errno> {
        self.table.get(&ino).and_then(|slot| slot.inode.upgrade()).ok_or(Errno::STALE)
    }

    /// The inode of a number with one more lookup, made if there is none. `place` and `real` of
    /// an inode that is there already stay as they are, unless it had no name.
    ///
    /// # Errors
    /// [`Taken`] if the number is that of a different object.
    pub fn look_up(self: &Arc<Self>, birth: Birth) -> Result<Ref, Taken> {
        let inode = match self.table.entry(birth.ino) {
            Entry::Occupied(mut slot) => match slot.get().inode.upgrade() {
                Some(inode) => {
                    if !inode.is(&birth) {
                        drop(slot);
                        return Err(Taken);
                    }
                    inode.lookups.fetch_add(1, Ordering::SeqCst);
                    slot.get_mut().known = Some(Arc::clone(&inode));
                    inode
                }
                None => {
                    let inode = self.make(birth);
                    slot.insert(Slot { inode: Arc::downgrade(&inode), known: Some(Arc::clone(&inode)) });
                    inode
                }
            },
            Entry::Vacant(slot) => {
                let inode = self.make(birth);
                slot.insert(Slot { inode: Arc::downgrade(&inode), known: Some(Arc::clone(&inode)) });
                inode
            }
        };
        Ok(Ref(Some(inode)))
    }

    fn make(self: &Arc<Self>, birth: Birth) -> Arc<Inode> {
        Arc::new(Inode {
            ino: birth.ino,
            kind: birth.kind,
            incarnation: self.made.fetch_add(1, Ordering::Relaxed),
            lookups: AtomicU64::new(1),
            names: RwLock::new(()),
            generation: AtomicU64::new(0),
            gate: Mutex::new(()),
            state: Mutex::new(State {
                dentries: SmallVec::new(),
                place: birth.place,
                real: birth.real,
                open: Weak::new(),
                seen: 0,
                learned: None,
                absent: Absent::NOTHING,
                unsynced: false,
                held: false,
                opened: false,
                written: None,
            }),
            home: Arc::downgrade(self),
        })
    }

    /// Gives lookups back.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let released = self.table.get_mut(&ino).and_then(|mut slot| {
            let known = slot.known.as_ref()?;
            let before = known.lookups.load(Ordering::Relaxed);
            // only changed under the lock of the table
            known.lookups.store(before.saturating_sub(lookups), Ordering::Relaxed);
            if before <= lookups { slot.known.take() } else { None }
        });
        drop(released);
        if self.forgets.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_AFTER) {
            self.give_back();
        }
    }

    /// Gives memory back when most of the inodes are gone.
    fn give_back(&self) {
        let now = self.table.len();
        let peak = self.peak.fetch_max(now, Ordering::Relaxed).max(now);
        if peak > WORTHWHILE && now < peak / 4 {
            self.peak.store(now, Ordering::Relaxed);
            self.table.shrink_to_fit();
            crate::sys::give_back_memory();
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

impl Inode {
    /// Whether the object that is looked up is this one.
    fn is(&self, birth: &Birth) -> bool {
        if self.kind != birth.kind {
            return false;
        }
        let mut state = self.state.lock();
        let dead = matches!(&state.place, Place::Gone(stat) if stat.nlink == 0);
        // the record of a number is the object of that number; it may be in the making
        let recorded = matches!(birth.place, Place::Record(_));
        if dead || !(recorded || state.real == birth.real) {
            return false;
        }
        if recorded {
            state.place = birth.place.clone();
            state.real = birth.real;
        }
        if matches!(state.place, Place::Gone(_)) {
            state.place = birth.place.clone();
        }
        true
    }
}

/// One lookup owed to the kernel, given back unless it is handed over.
#[derive(Debug)]
pub struct Ref(Option<Arc<Inode>>);

impl Ref {
    /// The inode.
    pub fn inode(&self) -> &Arc<Inode> {
        self.0.as_ref().expect("it is taken by hand_over only, which consumes the value")
    }

    /// The kernel has it from now on, and will give it back by a forget.
    pub fn hand_over(mut self) {
        self.0 = None;
    }
}

impl Drop for Ref {
    fn drop(&mut self) {
        if let Some(inode) = self.0.take()
            && let Some(home) = inode.home.upgrade()
        {
            let ino = inode.ino;
            drop(inode);
            home.forget(ino, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the two counts of its `Arc` and what the allocator adds, an inode is in 192 bytes; its
    /// slot in the table takes about 45 more.
    #[test]
    fn an_inode_is_small() {
        assert!(size_of::<Inode>() + 16 <= 184, "{}", size_of::<Inode>());
        assert_eq!(size_of::<Dentry>(), 32);
        assert_eq!(size_of::<(u64, Slot)>(), 24);
    }
}
