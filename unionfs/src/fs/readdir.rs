//! Listings: exactly what lookup finds, each name once (rules 10 to 12).

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Attr, Entry, Union};
use crate::branch::dir::{Dir, RawEntry};
use crate::branch::stat::{Kind, RealId};
use crate::handle::{Item, Listing};
use crate::inode::{Birth, Inode, Place, ROOT, Ref};
use crate::union::merge::Listed;
use crate::union::{Below, BranchIndex, Found, Name, RawName, merge};

/// Offset after `..` in a merged listing; its items come after it.
const DOT_DOT: u64 = 2;

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

/// What comes with a name in a listing with attributes.
#[derive(Debug)]
pub enum Seen {
    /// `.` or `..`, without a lookup.
    Directory(Attr),
    /// An entry.
    Entry(Entry),
    /// One whose branch does not tell its attributes: the kernel must not believe any.
    Unreadable(Ref, Kind),
}

/// What a listing holds at one place.
enum Line<'a> {
    Dot,
    DotDot,
    Item(Item, &'a [u8]),
}

impl Union {
    /// Opens a directory, also one that was removed.
    ///
    /// # Errors
    /// ENOTDIR.
    pub fn open_dir(&self, ino: u64) -> Result<u64, Errno> {
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        Ok(self.handles.add_dir(inode))
    }

    /// Ends a directory handle.
    pub fn release_dir(&self, handle: u64) {
        self.handles.remove_dir(handle);
    }

    /// Gives entries from an offset on to `take`, until it says that it is full.
    ///
    /// # Errors
    /// EBADF, and what the branches answer before anything was taken.
    pub fn read_dir(&self, handle: u64, offset: u64, mut take: impl FnMut(DirEntry<'_>) -> bool) -> Result<(), Errno> {
        let dir = Arc::clone(&self.handles.dir(handle)?.inode);
        self.lines(handle, offset, |line, next| {
            Ok(take(match &line {
                Line::Dot => DirEntry { name: b".", ino: dir.ino, kind: Kind::Dir, next },
                Line::DotDot => DirEntry { name: b"..", ino: parent_of(&dir), kind: Kind::Dir, next },
                Line::Item(item, name) => DirEntry { name, ino: self.number_of(&dir, item)?, kind: item.kind, next },
            }))
        })
    }

    /// The same with the attributes of this moment. An entry comes with a lookup, which `take`
    /// hands over if it has room; `.` and `..` come without.
    ///
    /// # Errors
    /// EBADF, and what the branches answer before anything was taken.
    pub fn read_dir_plus(
        &self,
        handle: u64,
        offset: u64,
        mut take: impl FnMut(&[u8], Seen, u64) -> bool,
    ) -> Result<(), Errno> {
        let dir = Arc::clone(&self.handles.dir(handle)?.inode);
        self.lines(handle, offset, |line, next| match line {
            Line::Dot => Ok(take(b".", Seen::Directory(self.getattr(dir.ino)?), next)),
            Line::DotDot => Ok(take(b"..", Seen::Directory(self.getattr(parent_of(&dir))?), next)),
            Line::Item(item, bytes) => {
                let Ok(name) = Name::new(bytes) else { return Ok(false) };
                let _names = dir.names.read();
                match self.find(&dir, name) {
                    Ok(Some(entry)) => Ok(take(bytes, Seen::Entry(entry), next)),
                    // removed since the listing was taken
                    Ok(None) => Ok(false),
                    // one bad entry does not make the directory unreadable; who asks for it is told
                    Err(_) => Ok(self.unreadable(&dir, &item).is_some_and(|seen| take(bytes, seen, next))),
                }
            }
        })
    }

    /// An entry of which nothing but number and type is known.
    fn unreadable(&self, dir: &Arc<Inode>, item: &Item) -> Option<Seen> {
        let real = RealId { dev: item.dev, ino: item.raw_ino, birth: 0 };
        let ino = self.numbers.natural(real);
        let birth = Birth { ino, kind: item.kind, place: Place::Entry(item.branch), real };
        let lookup = self.inodes.look_up(birth).ok()?;
        drop(lookup.inode().add_name(dir, item.name.as_name()));
        Some(Seen::Unreadable(lookup, item.kind))
    }

    /// The lines of a handle's listing from an offset on, until `take` says that it is full. At
    /// offset 0 the listing is taken anew.
    fn lines(
        &self,
        handle: u64,
        offset: u64,
        mut take: impl FnMut(Line<'_>, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let handle = self.handles.dir(handle)?;
        let mut listing = handle.listing.lock();
        if offset == 0 || listing.is_none() {
            *listing = Some(self.list(&handle.inode)?);
        }
        let mut any = false;
        let take = |line: Line<'_>, next: u64| {
            let full = take(line, next)?;
            any |= !full;
            Ok(full)
        };
        let read = match listing.as_mut() {
            Some(Listing::Merged(items)) => merged_lines(items, offset, take),
            Some(Listing::Streamed(stream)) => stream.lines(offset, take),
            None => Ok(()),
        };
        // what was taken is on its way; the error comes when it is met first the next time
        if any { Ok(()) } else { read }
    }

    /// Takes a listing of a directory.
    fn list(&self, inode: &Arc<Inode>) -> Result<Listing, Errno> {
        let stack = match inode.stack() {
            Err(Errno::NOENT) => return Ok(Listing::Merged(Arc::default())),
            stack => stack?,
        };
        if let [branch] = stack.branches[..] {
            let dir = self.dir(inode, branch)?;
            return Stream::open(dir, branch).map(|stream| Listing::Streamed(Box::new(stream)));
        }
        self.shared_listing(inode).map(Listing::Merged)
    }

    /// The merged listing of a directory, the same for all handles between two changes: a caller
    /// with many handles on a large directory must not fill the memory.
    fn shared_listing(&self, inode: &Arc<Inode>) -> Result<Arc<Vec<Item>>, Errno> {
        let _names = inode.names.read();
        let generation = inode.generation();
        let known = inode.with(|state| state.listing.0.upgrade().filter(|_| state.listing.1 == generation));
        if let Some(known) = known.filter(|_| !self.revalidates()) {
            return Ok(known);
        }
        let taken = Arc::new(self.merged(inode)?);
        inode.with(|state| state.listing = (Arc::downgrade(&taken), generation));
        Ok(taken)
    }

    /// The merged listing of a directory, without `.` and `..`.
    pub(super) fn merged(&self, inode: &Arc<Inode>) -> Result<Vec<Item>, Errno> {
        let level = self.level(inode)?;
        let listings = level.iter().map(|(branch, dir)| self.words(*branch, dir)).collect::<Result<Vec<_>, _>>()?;
        let shown = merge(listings);
        Ok(shown.into_iter().filter_map(|listed| listed.about).collect())
    }

    /// All words of one branch's directory: entries first, for they beat the whiteouts beside
    /// them.
    fn words(&self, branch: BranchIndex, dir: &Dir) -> Result<Vec<Listed<Option<Item>>>, Errno> {
        let dev = dir.stat()?.id.dev;
        let marks = self.branch(branch).honours_whiteouts();
        let attributes = dir.has_whiteout_attributes()?;
        let (mut words, mut whiteouts) = (Vec::new(), Vec::new());
        for entry in dir.entries()? {
            let hidden = match dir.meaning(&entry, attributes)? {
                RawName::Entry(name) => {
                    let found = if entry.kind == Kind::Dir { Found::Dir(Below::Merges) } else { Found::Leaf };
                    let name = name.to_owned();
                    let item = Item { name: name.clone(), branch, dev, raw_ino: entry.ino, kind: entry.kind };
                    words.push(Listed { name, found, about: Some(item) });
                    continue;
                }
                RawName::Whiteout(name) if marks => Some(name.to_owned()),
                RawName::LongWhiteout if marks => dir.long_name(&entry.name)?,
                _ => None,
            };
            whiteouts.extend(hidden.map(|name| Listed { name, found: Found::Whiteout, about: None }));
        }
        words.append(&mut whiteouts);
        Ok(words)
    }

    /// The number that lookup would tell.
    fn number_of(&self, dir: &Arc<Inode>, item: &Item) -> Result<u64, Errno> {
        let branch = self.branch(item.branch);
        let recorded = branch.work.as_ref().filter(|work| work.may_have_number(item.raw_ino));
        if branch.honest_listing && recorded.is_none() {
            return Ok(self.numbers.natural(RealId { dev: item.dev, ino: item.raw_ino, birth: 0 }));
        }
        let at = match self.dir(dir, item.branch) {
            // the directory was removed, and the listing is from before
            Err(Errno::NOENT) => return Ok(item.raw_ino.max(2)),
            at => at?,
        };
        let id = match at.find(item.name.as_bytes())? {
            Some(stat) => stat.id,
            None => RealId { dev: item.dev, ino: item.raw_ino, birth: 0 },
        };
        Ok(recorded.and_then(|work| work.number(id)).unwrap_or_else(|| self.numbers.natural(id)))
    }
}

fn merged_lines(
    items: &[Item],
    offset: u64,
    mut take: impl FnMut(Line<'_>, u64) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    if (offset < 1 && take(Line::Dot, 1)?) || (offset < DOT_DOT && take(Line::DotDot, DOT_DOT)?) {
        return Ok(());
    }
    let first = usize::try_from(offset.saturating_sub(DOT_DOT)).unwrap_or(usize::MAX);
    for (place, item) in items.iter().enumerate().skip(first) {
        if take(Line::Item(item.clone(), item.name.as_bytes()), place as u64 + 1 + DOT_DOT)? {
            break;
        }
    }
    Ok(())
}

fn parent_of(dir: &Inode) -> u64 {
    dir.dentry().map_or(ROOT, |dentry| dentry.parent.ino)
}

/// A directory of one branch, read as it goes. Its offsets are the branch's own.
#[derive(Debug)]
pub struct Stream {
    dir: Arc<Dir>,
    branch: BranchIndex,
    dev: u64,
    fd: OwnedFd,
    /// Where the first entry of `ahead` begins.
    at: u64,
    /// Entries that were read but not asked for yet.
    ahead: VecDeque<RawEntry>,
    /// Whether empty files may be whiteouts.
    whiteout_attributes: bool,
}

impl Stream {
    fn open(dir: Arc<Dir>, branch: BranchIndex) -> Result<Stream, Errno> {
        let fd = dir.open_for_reading()?;
        let dev = dir.stat()?.id.dev;
        let whiteout_attributes = dir.has_whiteout_attributes()?;
        Ok(Stream { dir, branch, dev, fd, at: 0, ahead: VecDeque::new(), whiteout_attributes })
    }

    fn lines(&mut self, offset: u64, mut take: impl FnMut(Line<'_>, u64) -> Result<bool, Errno>) -> Result<(), Errno> {
        self.go_to(offset)?;
        while let Some(entry) = self.next()? {
            let Some(line) = self.line(&entry)? else { continue };
            match take(line, entry.next) {
                Ok(false) => {}
                full_or_failed => {
                    self.push_back(entry);
                    return full_or_failed.map(drop);
                }
            }
        }
        Ok(())
    }

    fn go_to(&mut self, offset: u64) -> Result<(), Errno> {
        if offset != self.at {
            rustix::fs::seek(&self.fd, SeekFrom::Start(offset))?;
            self.ahead.clear();
            self.at = offset;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<RawEntry>, Errno> {
        if self.ahead.is_empty() {
            let ahead = &mut self.ahead;
            self.dir.read_some(self.fd.as_fd(), |entry| ahead.push_back(entry))?;
        }
        let entry = self.ahead.pop_front();
        self.at = entry.as_ref().map_or(self.at, |entry| entry.next);
        Ok(entry)
    }

    /// An entry for which there was no room is read again, from where the kernel then asks.
    fn push_back(&mut self, entry: RawEntry) {
        self.ahead.push_front(entry);
        // the kernel goes on behind the entry before this one, whose offset is not known here
        self.at = u64::MAX;
    }

    fn line<'a>(&self, entry: &'a RawEntry) -> Result<Option<Line<'a>>, Errno> {
        Ok(match &*entry.name {
            b"." => Some(Line::Dot),
            b".." => Some(Line::DotDot),
            bytes => match self.dir.meaning(entry, self.whiteout_attributes)? {
                RawName::Entry(name) => {
                    let item = Item {
                        name: name.to_owned(),
                        branch: self.branch,
                        dev: self.dev,
                        raw_ino: entry.ino,
                        kind: entry.kind,
                    };
                    Some(Line::Item(item, bytes))
                }
                _ => None,
            },
        })
    }
}
