//! Which branches may hold a name of a directory: says where **not** to ask, and nothing else.
//!
//! An index is made of what the branches list. It is a superset: a name that went stays in it, which
//! costs a system call at most; whoever makes a name or a mark notes it before ([`Union::note`]),
//! so none is ever missing. What a name means is said by the branch that is asked
//! ([`crate::branch::dir::Dir::word`]), never by the index.
//!
//! A branch that an index does not cover is asked always: one that was not listed, or whose file
//! system finds names that it does not list ([`crate::branch::FileSystem::has_exact_listing`]).

use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::listing::Builder;
use super::tally::{Cache, Uses};
use super::{Level, Union};
use crate::branch::dir::{Dir, folds_case};
use crate::inode::Inode;
use crate::union::{BranchIndex, Name, RawName};

const SHARDS: usize = 16;
/// All indexes together take about so many bytes at most.
const ROOM: usize = 32 << 20;
/// A directory with more words than this has none, nor has one whose names take more bytes.
const MOST_WORDS: usize = 1 << 17;
const MOST_BYTES: usize = 4 << 20;
/// A directory of so many branches gets one when a name is first looked up in it.
const MANY_BRANCHES: usize = 3;
/// Another one gets one after so many names were not found in it.
const MANY_MISSES: u8 = 8;

/// What a branch may hold of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct May {
    pub(super) entry: bool,
    pub(super) whiteout: bool,
}

impl May {
    pub(super) const ANYTHING: May = May { entry: true, whiteout: true };
    pub(super) const ENTRY: May = May { entry: true, whiteout: false };
    pub(super) const WHITEOUT: May = May { entry: false, whiteout: true };

    fn or(self, other: May) -> May {
        May { entry: self.entry || other.entry, whiteout: self.whiteout || other.whiteout }
    }
}

/// The branches that are to be asked for a name, top first.
pub(super) type Asked = SmallVec<[(BranchIndex, May); 4]>;

/// A branch's word on a name.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Where the name is.
    at: u32,
    length: u8,
    may: May,
    branch: BranchIndex,
}

/// What may be in one directory.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The branches of which all is known, top first.
    covers: SmallVec<[BranchIndex; 4]>,
    names: Vec<u8>,
    words: HashTable<Word>,
}

impl Index {
    fn words_of<'a>(&'a self, hash: u64, name: &'a [u8]) -> impl Iterator<Item = &'a Word> {
        self.words.iter_hash(hash).filter(move |word| self.name(word) == name)
    }

    fn name(&self, word: &Word) -> &[u8] {
        name_of(&self.names, word)
    }

    /// Notes that a branch may hold something of a name; false if there is no more room.
    fn add(&mut self, key: &RandomState, name: &[u8], branch: BranchIndex, may: May) -> bool {
        let hash = key.hash_one(name);
        let same = |word: &Word| name_of(&self.names, word) == name;
        if let Some(known) = self.words.find_mut(hash, |word| word.branch == branch && same(word)) {
            known.may = known.may.or(may);
            return true;
        }
        // a name stands once, for all branches
        let at = self.words.find(hash, same).map(|word| word.at);
        let (Ok(end), Ok(length)) = (u32::try_from(self.names.len()), u8::try_from(name.len())) else { return false };
        if self.words.len() >= MOST_WORDS || at.is_none() && self.names.len() + name.len() > MOST_BYTES {
            return false;
        }
        if at.is_none() {
            self.names.extend_from_slice(name);
        }
        let word = Word { at: at.unwrap_or(end), length, may, branch };
        let names = &self.names;
        self.words.insert_unique(hash, word, |word| key.hash_one(name_of(names, word)));
        true
    }

    fn cover(&mut self, branch: BranchIndex) {
        if let Err(at) = self.covers.binary_search(&branch) {
            self.covers.insert(at, branch);
        }
    }

    fn ask(&self, hash: u64, name: &[u8], stack: &[BranchIndex]) -> Asked {
        let in_stack = |word: &&Word| stack.binary_search(&word.branch).is_ok();
        let mut asked: Asked = self.words_of(hash, name).filter(in_stack).map(|word| (word.branch, word.may)).collect();
        if self.covers[..] != *stack {
            let unknown = stack.iter().filter(|branch| self.covers.binary_search(branch).is_err());
            for branch in unknown {
                asked.retain(|(known, _)| known != branch);
                asked.push((*branch, May::ANYTHING));
            }
        }
        asked.sort_unstable_by_key(|(branch, _)| *branch);
        asked
    }

    fn bytes(&self) -> usize {
        size_of::<Slot>() + self.names.capacity() + self.words.allocation_size()
    }
}

fn name_of<'a>(names: &'a [u8], word: &Word) -> &'a [u8] {
    let at = word.at as usize;
    &names[at..at + usize::from(word.length)]
}

/// What is known of a directory.
#[derive(Debug)]
struct Slot {
    /// See [`Inode::incarnation`].
    incarnation: u32,
    state: State,
    /// What is counted for it.
    bytes: usize,
}

#[derive(Debug)]
enum State {
    /// So many names were not found.
    Misses(u8),
    /// It cannot have an index.
    Refused,
    Indexed(Index),
}

/// What there is to say of a name.
#[derive(Debug)]
enum Answer {
    /// These branches are to be asked.
    Known(Asked),
    /// There is no index; whether there should be one.
    Unknown { refused: bool },
}

/// Indexes of directories by inode number, the least recently used ones forgotten first.
#[derive(Debug)]
pub(super) struct Indexes {
    key: RandomState,
    shards: [Mutex<LruCache<u64, Slot>>; SHARDS],
    bytes: AtomicUsize,
    uses: [Uses; SHARDS],
}

impl Indexes {
    pub(super) fn new() -> Arc<Indexes> {
        let shards = std::array::from_fn(|_| Mutex::new(LruCache::unbounded()));
        Arc::new(Indexes { key: RandomState::new(), shards, bytes: AtomicUsize::new(0), uses: Default::default() })
    }

    fn place(ino: u64) -> usize {
        (ino.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) as usize % SHARDS
    }

    fn shard(&self, ino: u64) -> &Mutex<LruCache<u64, Slot>> {
        &self.shards[Indexes::place(ino)]
    }

    /// A hit is a lookup in a directory that has an index.
    pub(super) fn tally(&self) -> Cache {
        let indexed = |shard: &Mutex<LruCache<u64, Slot>>| {
            shard.lock().iter().filter(|(_, slot)| matches!(slot.state, State::Indexed(_))).count()
        };
        Cache::new("indexes", &self.uses, self.shards.iter().map(indexed).sum())
    }

    fn ask(&self, dir: &Inode, name: &[u8], stack: &[BranchIndex]) -> Answer {
        let hash = self.key.hash_one(name);
        let mut shard = self.shard(dir.ino).lock();
        match shard.get(&dir.ino).filter(|slot| slot.incarnation == dir.incarnation).map(|slot| &slot.state) {
            Some(State::Indexed(index)) => Answer::Known(index.ask(hash, name, stack)),
            Some(State::Refused) => Answer::Unknown { refused: true },
            Some(State::Misses(_)) | None => Answer::Unknown { refused: false },
        }
    }

    /// Changes what is known of a directory, and counts the bytes anew.
    fn change<T>(&self, dir: &Inode, change: impl FnOnce(&mut State) -> T) -> T {
        let mut shard = self.shard(dir.ino).lock();
        let new = || Slot { incarnation: dir.incarnation, state: State::Misses(0), bytes: 0 };
        let slot = shard.get_or_insert_mut(dir.ino, new);
        if slot.incarnation != dir.incarnation {
            *slot = Slot { bytes: slot.bytes, ..new() };
        }
        let done = change(&mut slot.state);
        let now = match &slot.state {
            State::Indexed(index) => index.bytes(),
            State::Misses(_) | State::Refused => 2 * size_of::<Slot>(),
        };
        let before = std::mem::replace(&mut slot.bytes, now);
        self.bytes.fetch_add(now, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
        drop(shard);
        self.make_room(dir.ino);
        done
    }

    /// Forgets directories while all take too much: those beside the one that is being used first.
    fn make_room(&self, used: u64) {
        let own = self.shard(used);
        for shard in std::iter::once(own).chain(&self.shards) {
            let least = usize::from(std::ptr::eq(shard, own));
            while self.bytes.load(Ordering::Relaxed) > ROOM {
                let mut kept = shard.lock();
                let oldest = if kept.len() > least { kept.pop_lru() } else { None };
                // it is dropped after the lock is gone
                drop(kept);
                let Some((_, oldest)) = oldest else { break };
                self.bytes.fetch_sub(oldest.bytes, Ordering::Relaxed);
            }
        }
    }

    /// Changes the index of a directory, if it has one.
    fn change_index(&self, dir: &Inode, change: impl FnOnce(&mut Index) -> bool) {
        if self.has(dir) {
            self.change(dir, |state| {
                if let State::Indexed(index) = state
                    && !change(index)
                {
                    // too many names came and went in it
                    *state = State::Misses(0);
                }
            });
        }
    }

    fn has(&self, dir: &Inode) -> bool {
        let shard = self.shard(dir.ino).lock();
        let slot = shard.peek(&dir.ino).filter(|slot| slot.incarnation == dir.incarnation);
        slot.is_some_and(|slot| matches!(slot.state, State::Indexed(_)))
    }

    fn covers(&self, dir: &Inode, branch: BranchIndex) -> bool {
        let shard = self.shard(dir.ino).lock();
        let slot = shard.peek(&dir.ino).filter(|slot| slot.incarnation == dir.incarnation);
        slot.is_some_and(|slot| matches!(&slot.state, State::Indexed(index) if index.covers.contains(&branch)))
    }

    /// A name was not found; whether it is time for an index.
    fn miss(&self, dir: &Inode) -> bool {
        self.change(dir, |state| match state {
            State::Misses(misses) => {
                *misses = misses.saturating_add(1);
                *misses >= MANY_MISSES
            }
            State::Refused | State::Indexed(_) => false,
        })
    }

    /// Forgets what is known of a directory.
    pub(super) fn remove(&self, ino: u64) {
        let removed = self.shard(ino).lock().pop(&ino);
        self.bytes.fetch_sub(removed.as_ref().map_or(0, |slot| slot.bytes), Ordering::Relaxed);
        drop(removed);
    }
}

impl Union {
    /// The branches of a directory that are to be asked for a name. `stack` are all of them, or those
    /// below one. The names of the directory are held.
    pub(super) fn asked(&self, dir: &Arc<Inode>, stack: &[BranchIndex], name: Name<'_>) -> Asked {
        let all = || stack.iter().map(|branch| (*branch, May::ANYTHING)).collect();
        if self.revalidates() {
            return all();
        }
        let answer = self.indexes.ask(dir, name.as_bytes(), stack);
        self.indexes.uses[Indexes::place(dir.ino)].count(matches!(answer, Answer::Known(_)));
        match answer {
            Answer::Known(asked) => asked,
            Answer::Unknown { refused: false } if stack.len() >= MANY_BRANCHES && self.try_make_index(dir) => {
                match self.indexes.ask(dir, name.as_bytes(), stack) {
                    Answer::Known(asked) => asked,
                    // it was forgotten at once
                    Answer::Unknown { .. } => all(),
                }
            }
            Answer::Unknown { .. } => all(),
        }
    }

    /// Whether it is known that a branch has no whiteout of a name.
    pub(super) fn is_unmarked(&self, dir: &Arc<Inode>, branch: BranchIndex, name: Name<'_>) -> bool {
        !self.asked(dir, &[branch], name).iter().any(|(_, may)| may.whiteout)
    }

    /// A name was asked for everywhere and not found. The names of the directory are held.
    pub(super) fn note_miss(&self, dir: &Arc<Inode>) {
        if !self.revalidates() && self.indexes.miss(dir) {
            self.try_make_index(dir);
        }
    }

    /// Notes that a branch may hold something of a name from now on, before it is made. The names of
    /// the directory are held to change them.
    pub(super) fn note(&self, dir: &Inode, name: Name<'_>, branch: BranchIndex) {
        self.indexes.change_index(dir, |index| index.add(&self.indexes.key, name.as_bytes(), branch, May::ANYTHING));
    }

    /// A directory was made on a branch, and is empty there.
    pub(super) fn note_fresh(&self, dir: &Inode, branch: BranchIndex) {
        if self.branch(branch).exact_listing {
            self.indexes.change_index(dir, |index| {
                index.cover(branch);
                true
            });
        }
    }

    /// A directory was made in another one, on a branch, and is empty. The names of the other are
    /// held, and nothing more is made under that lock.
    pub(super) fn note_born(&self, parent: &Arc<Inode>, dir: &Arc<Inode>, branch: BranchIndex) {
        // an index of the parent shows that names on that branch are told exactly, in what is made in
        // it, too
        let exact = || self.indexes.covers(parent, branch);
        let known = !self.revalidates() && (exact() || !self.indexes.has(parent) && self.make_index(parent) && exact());
        if known {
            let index = Index { covers: SmallVec::from_slice(&[branch]), ..Index::default() };
            self.indexes.change(dir, |state| *state = State::Indexed(index));
        }
    }

    /// Makes the index of a directory of several branches of what they listed. The names of the
    /// directory are held.
    pub(super) fn index_listed(&self, dir: &Inode, listed: &Builder<'_>, exact: SmallVec<[BranchIndex; 4]>) {
        if self.revalidates() || exact.is_empty() || self.indexes.has(dir) {
            return;
        }
        let Some(mut words) = listed.words() else { return };
        let mut index = Index { covers: exact, ..Index::default() };
        let room = words.all(|(branch, name, kind)| {
            let may = if kind.is_some() { May::ENTRY } else { May::WHITEOUT };
            index.add(&self.indexes.key, name, branch, may)
        });
        if room {
            self.indexes.change(dir, |state| *state = State::Indexed(index));
        }
    }

    /// Makes the index of a directory, unless its names are about to change: what was noted before
    /// there was an index may not be on the disk yet. Whether it has one.
    fn try_make_index(&self, dir: &Arc<Inode>) -> bool {
        let still = dir.names.try_read();
        still.is_some() && self.make_index(dir)
    }

    /// Makes the index of a directory whose names do not change; false if it cannot have one.
    fn make_index(&self, dir: &Arc<Inode>) -> bool {
        let made = self.level(dir).and_then(|level| self.index_of(&level));
        let made = made.unwrap_or_else(|errno| {
            // who may not list it may look names up in it all the same
            tracing::debug!(%errno, "making the index of a directory");
            None
        });
        let done = made.is_some();
        self.indexes.change(dir, |state| *state = made.map_or(State::Refused, State::Indexed));
        done
    }

    fn index_of(&self, level: &Level) -> Result<Option<Index>, Errno> {
        let mut index = Index::default();
        for (branch, dir) in level.iter().filter(|(branch, _)| self.branch(*branch).exact_listing) {
            match self.index_branch(&mut index, *branch, dir)? {
                Some(true) => index.cover(*branch),
                Some(false) => {}
                None => return Ok(None),
            }
        }
        index.names.shrink_to_fit();
        Ok((!index.covers.is_empty()).then_some(index))
    }

    /// Adds what a branch's directory lists. Whether that is all there is; nothing if it is too much.
    fn index_branch(&self, index: &mut Index, branch: BranchIndex, dir: &Dir) -> Result<Option<bool>, Errno> {
        let marks = self.branch(branch).honours_whiteouts();
        let mut room = true;
        let fd = dir.open_for_reading()?;
        if folds_case(fd.as_fd())? {
            return Ok(Some(false));
        }
        dir.each_entry_of(fd.as_fd(), |entry| {
            let key = &self.indexes.key;
            match RawName::parse(entry.name) {
                // in the form of overlayfs it may be a whiteout: whoever asks will see
                RawName::Entry(name) => room = index.add(key, name.as_bytes(), branch, May::ENTRY),
                RawName::Whiteout(name) if marks => room = index.add(key, name.as_bytes(), branch, May::WHITEOUT),
                RawName::LongWhiteout if marks => {
                    if let Some(name) = dir.long_name(entry.name)? {
                        room = index.add(key, name.as_bytes(), branch, May::WHITEOUT);
                    }
                }
                _ => {}
            }
            Ok(room)
        })?;
        Ok(room.then_some(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::stat::{Kind, RealId};
    use crate::inode::{Birth, Inodes, LeaveHook, Place};

    #[derive(Debug)]
    struct Nobody;

    impl LeaveHook for Nobody {
        fn left(&self, _: u64, _: Kind, _: bool) {}
    }

    #[test]
    fn long_names_make_no_large_index() {
        let (key, mut index) = (RandomState::new(), Index::default());
        let name = |number: usize| format!("{number:0>250}");
        let taken =
            (0..MOST_WORDS).take_while(|number| index.add(&key, name(*number).as_bytes(), BranchIndex(0), May::ENTRY));
        let taken = taken.count();
        assert!((MOST_BYTES / 256..MOST_BYTES / 249).contains(&taken), "{taken}");
        assert!(index.add(&key, name(0).as_bytes(), BranchIndex(1), May::ENTRY), "the name is there already");
    }

    #[test]
    fn all_indexes_together_have_a_bound_and_the_last_one_stays() {
        let (indexes, inodes) = (Indexes::new(), Inodes::new(Box::new(Nobody)));
        for ino in 2..40 {
            let real = RealId { dev: 1, ino, birth: 0 };
            let birth = Birth { ino, kind: Kind::Dir, place: Place::Entry(BranchIndex(0)), real };
            let dir = inodes.look_up(birth).unwrap();
            let index = Index { names: Vec::with_capacity(MOST_BYTES), ..Index::default() };
            indexes.change(dir.inode(), |state| *state = State::Indexed(index));
            assert!(indexes.has(dir.inode()), "{ino}");
            assert!(indexes.bytes.load(Ordering::Relaxed) <= ROOM, "{ino}");
        }
        let kept: usize = indexes
            .shards
            .iter()
            .flat_map(|shard| shard.lock().iter().map(|(_, slot)| slot.bytes).collect::<Vec<_>>())
            .sum();
        assert_eq!(kept, indexes.bytes.load(Ordering::Relaxed));
    }
}
