//! Reading a directory: exactly what lookup finds, each name once (rules 10 to 12). Nobody needs a
//! handle for it; see [`super::listing`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::listing::{Apart, Builder, Cookies, DOT, DOT_DOT, Listing, Shown};
use super::tally::{Cache, Uses};
use super::{Entry, Level, Union};
use crate::branch::dir::{Dir, folds_case};
use crate::branch::stat::{Kind, RealId};
use crate::inode::{Birth, Inode, Place, ROOT, Ref};
use crate::union::{BranchIndex, Name, RawName};

/// All snapshots together take at most so many bytes; the last one that was used stays.
const ROOM: usize = 32 << 20;

/// One entry on its way to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The inode number, the same that lookup tells.
    pub ino: u64,
    /// The type.
    pub kind: Kind,
    /// Where reading goes on after it.
    pub next: u64,
}

/// Which entries of a listing come with attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Directories only.
    Directories,
    /// All.
    All,
}

/// What comes with a name in a listing with attributes.
#[derive(Debug)]
pub enum Seen {
    /// Number and type only, without a lookup.
    Named(u64, Kind),
    /// An entry.
    Entry(Entry),
    /// One whose branch does not tell its attributes: the kernel must not believe any.
    Unreadable(Ref, Kind),
}

/// What a directory lists at one place.
enum At<'a> {
    Dot,
    DotDot,
    Name(Shown<'a>),
}

/// Snapshots of directories by inode number, the least recently used ones forgotten first.
#[derive(Debug)]
pub(super) struct Listings {
    cookies: Cookies,
    kept: Mutex<Kept>,
    uses: Uses,
}

#[derive(Debug)]
struct Kept {
    listings: LruCache<u64, Arc<Listing>>,
    bytes: usize,
    /// Not bounded: nobody can make names of one hash, and by chance there are none.
    apart: HashMap<u64, Apart>,
}

impl Listings {
    pub(super) fn new() -> Arc<Listings> {
        let kept = Kept { listings: LruCache::unbounded(), bytes: 0, apart: HashMap::new() };
        Arc::new(Listings { cookies: Cookies::default(), kept: Mutex::new(kept), uses: Uses::default() })
    }

    pub(super) fn tally(&self) -> Cache {
        Cache::new("listings", [&self.uses], self.kept.lock().listings.len())
    }

    fn get(&self, ino: u64) -> Option<Arc<Listing>> {
        self.kept.lock().listings.get(&ino).cloned()
    }

    fn begin(&self, ino: u64, from: u64) -> Builder<'_> {
        let apart = self.kept.lock().apart.get(&ino).cloned().unwrap_or_default();
        Builder::new(&self.cookies, apart, from)
    }

    fn keep(&self, ino: u64, listing: &Arc<Listing>, apart: Apart) {
        // what falls out is dropped after the lock is gone
        let mut evicted = Vec::new();
        let mut kept = self.kept.lock();
        if !apart.is_empty() {
            kept.apart.insert(ino, apart);
        }
        kept.bytes += listing.bytes();
        evicted.extend(kept.listings.push(ino, Arc::clone(listing)));
        kept.bytes -= evicted.iter().map(|(_, before)| before.bytes()).sum::<usize>();
        while kept.bytes > ROOM
            && kept.listings.len() > 1
            && let Some((ino, oldest)) = kept.listings.pop_lru()
        {
            kept.bytes -= oldest.bytes();
            evicted.push((ino, oldest));
        }
        drop(kept);
    }

    pub(super) fn remove(&self, ino: u64) {
        let mut kept = self.kept.lock();
        kept.apart.remove(&ino);
        let removed = kept.listings.pop(&ino);
        kept.bytes -= removed.as_ref().map_or(0, |listing| listing.bytes());
        drop(kept);
        drop(removed);
    }
}

impl Union {
    /// Gives entries of a directory from an offset on to `take`, until it says that it is full. A
    /// directory that was removed can be read, too.
    ///
    /// # Errors
    /// ENOTDIR, and what the branches answer before anything was taken.
    pub fn read_dir(&self, ino: u64, offset: u64, mut take: impl FnMut(DirEntry<'_>) -> bool) -> Result<(), Errno> {
        let dir = self.inodes.get(ino)?;
        self.lines(&dir, offset, |at, next| {
            Ok(take(match &at {
                At::Dot => DirEntry { name: b".", ino, kind: Kind::Dir, next },
                At::DotDot => DirEntry { name: b"..", ino: parent_of(&dir), kind: Kind::Dir, next },
                At::Name(shown) => {
                    DirEntry { name: shown.name, ino: self.number_of(&dir, shown)?, kind: shown.kind, next }
                }
            }))
        })
    }

    /// The same with the attributes of this moment. An entry of which they are wanted comes with a
    /// lookup, which `take` hands over if it has room; others, `.` and `..` come without.
    ///
    /// # Errors
    /// ENOTDIR, and what the branches answer before anything was taken.
    pub fn read_dir_plus(
        &self,
        ino: u64,
        offset: u64,
        detail: Detail,
        mut take: impl FnMut(&[u8], Seen, u64) -> bool,
    ) -> Result<(), Errno> {
        let dir = self.inodes.get(ino)?;
        self.lines(&dir, offset, |at, next| match at {
            At::Dot => Ok(take(b".", Seen::Named(ino, Kind::Dir), next)),
            At::DotDot => Ok(take(b"..", Seen::Named(parent_of(&dir), Kind::Dir), next)),
            At::Name(shown) if detail == Detail::Directories && shown.kind != Kind::Dir => {
                Ok(take(shown.name, Seen::Named(self.number_of(&dir, &shown)?, shown.kind), next))
            }
            At::Name(shown) => {
                let Ok(name) = Name::new(shown.name) else { return Ok(false) };
                let _names = dir.names.read();
                match self.find(&dir, name) {
                    Ok(Some(entry)) => Ok(take(shown.name, Seen::Entry(entry), next)),
                    // removed since the listing was taken
                    Ok(None) => Ok(false),
                    // one bad entry does not make the directory unreadable; who asks for it is told
                    Err(_) => Ok(self.unreadable(&dir, &shown).is_some_and(|seen| take(shown.name, seen, next))),
                }
            }
        })
    }

    /// An entry of which nothing but number and type is known.
    fn unreadable(&self, dir: &Arc<Inode>, shown: &Shown<'_>) -> Option<Seen> {
        let real = self.real_of(shown);
        let ino = self.numbers.natural(real);
        let birth = Birth { ino, kind: shown.kind, place: Place::Entry(shown.line.branch), real };
        let lookup = self.inodes.look_up(birth).ok()?;
        drop(lookup.inode().add_name(dir, Name::new(shown.name).ok()?));
        Some(Seen::Unreadable(lookup, shown.kind))
    }

    /// What a directory lists from an offset on, until `take` says that it is full.
    fn lines(
        &self,
        dir: &Arc<Inode>,
        offset: u64,
        mut take: impl FnMut(At<'_>, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let mut any = false;
        let read = self.try_lines(dir, offset, |at, next| {
            let full = take(at, next)?;
            any |= !full;
            Ok(full)
        });
        // what was taken is on its way; the error comes when it is met first the next time
        if any { Ok(()) } else { read }
    }

    fn try_lines(
        &self,
        dir: &Arc<Inode>,
        offset: u64,
        mut take: impl FnMut(At<'_>, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let mut listing = self.listing(dir, offset)?;
        if (offset < DOT && take(At::Dot, DOT)?) || (offset < DOT_DOT && take(At::DotDot, DOT_DOT)?) {
            return Ok(());
        }
        let mut from = offset;
        loop {
            for shown in listing.after(from) {
                if take(At::Name(shown), shown.cookie)? {
                    return Ok(());
                }
            }
            let Some(rest) = listing.rest() else { return Ok(()) };
            from = rest;
            listing = self.listing(dir, from)?;
        }
    }

    /// The snapshot that says what comes after an offset. At offset 0 it is one of now.
    fn listing(&self, dir: &Arc<Inode>, offset: u64) -> Result<Arc<Listing>, Errno> {
        match dir.stack() {
            Err(Errno::NOENT) => return Ok(Arc::new(Listing::empty())),
            stack => stack?,
        };
        let known = self.listings.get(dir.ino);
        let _names = dir.names.read();
        let generation = dir.generation();
        let fits = |listing: &Arc<Listing>| {
            let of_now = listing.generation == generation && !self.revalidates();
            listing.covers(offset) && (offset > 0 || of_now)
        };
        let hit = known.as_ref().is_some_and(fits);
        self.listings.uses.count(hit);
        match known {
            Some(known) if hit => Ok(known),
            known => {
                let mut builder = self.listings.begin(dir.ino, offset);
                let exact = self.say_words(&mut builder, &self.level(dir)?)?;
                self.index_listed(dir, &builder, exact);
                let (listing, apart) = builder.finish(generation, known.as_deref());
                let listing = Arc::new(listing);
                self.listings.keep(dir.ino, &listing, apart);
                Ok(listing)
            }
        }
    }

    /// Whether a directory has no names in it. They are held.
    pub(super) fn is_empty_dir(&self, dir: &Arc<Inode>) -> Result<bool, Errno> {
        let level = self.level(dir)?;
        if let [(_, only)] = &level[..] {
            let attributes = only.has_whiteout_attributes()?;
            let mut empty = true;
            only.each_entry(|entry| {
                empty = !matches!(only.meaning(entry, attributes)?, RawName::Entry(_));
                Ok(empty)
            })?;
            return Ok(empty);
        }
        let mut builder = self.listings.begin(dir.ino, 0);
        self.say_words(&mut builder, &level)?;
        let (listing, _) = builder.finish(0, None);
        Ok(listing.after(0).next().is_none())
    }

    /// All words of the branches on the names in a directory. The branches of which they are all that
    /// can be found, where there are several.
    fn say_words(&self, builder: &mut Builder<'_>, level: &Level) -> Result<SmallVec<[BranchIndex; 4]>, Errno> {
        let mut exact = SmallVec::new();
        for (branch, dir) in level {
            // below the only branch there is nothing to hide
            let marks = level.len() > 1 && self.branch(*branch).honours_whiteouts();
            let fd = dir.open_for_reading()?;
            if level.len() > 1 && self.branch(*branch).exact_listing && !folds_case(fd.as_fd())? {
                exact.push(*branch);
            }
            say_words_of(builder, *branch, dir, fd.as_fd(), marks)?;
        }
        Ok(exact)
    }

    /// The number that lookup would tell.
    fn number_of(&self, dir: &Arc<Inode>, shown: &Shown<'_>) -> Result<u64, Errno> {
        let real = self.real_of(shown);
        let branch = self.branch(shown.line.branch);
        let recorded = branch.work.as_ref().filter(|work| work.may_have_number(real.ino));
        if branch.honest_listing && recorded.is_none() {
            return Ok(self.numbers.natural(real));
        }
        let at = match self.dir(dir, shown.line.branch) {
            // the directory was removed, and the listing is from before
            Err(Errno::NOENT) => return Ok(real.ino.max(2)),
            at => at?,
        };
        let id = at.find(shown.name)?.map_or(real, |stat| stat.id);
        Ok(recorded.and_then(|work| work.number(id)).unwrap_or_else(|| self.numbers.natural(id)))
    }

    /// The real identity, as far as a listing tells it.
    fn real_of(&self, shown: &Shown<'_>) -> RealId {
        RealId { dev: self.branch(shown.line.branch).device, ino: shown.line.ino, birth: 0 }
    }
}

/// All words of one branch's directory.
fn say_words_of(
    builder: &mut Builder<'_>,
    branch: BranchIndex,
    dir: &Dir,
    fd: BorrowedFd<'_>,
    marks: bool,
) -> Result<(), Errno> {
    let attributes = dir.has_whiteout_attributes()?;
    dir.each_entry_of(fd, |entry| {
        match dir.meaning(entry, attributes)? {
            RawName::Entry(name) => builder.add(branch, name.as_bytes(), entry.ino, Some(entry.kind)),
            RawName::Whiteout(name) if marks => builder.add(branch, name.as_bytes(), 0, None),
            RawName::LongWhiteout if marks => {
                if let Some(name) = dir.long_name(entry.name)? {
                    builder.add(branch, name.as_bytes(), 0, None);
                }
            }
            _ => {}
        }
        Ok(true)
    })
}

fn parent_of(dir: &Inode) -> u64 {
    dir.dentry().map_or(ROOT, |dentry| dentry.parent.ino)
}
