//! What a directory lists: a snapshot of its names in the order of their **cookies**.
//!
//! The hard problems, and what answers each:
//! - *The kernel keeps a listing, and asks for the rest of it when its own is gone* (or never says
//!   that somebody opens the directory): a cookie is a hash of the name, so it means the same place
//!   in every snapshot, and none has to be kept for a reader. What is listed after a cookie are the
//!   names with a larger one; a name that stays is met exactly once, whatever comes and goes.
//! - *Names of one hash*: [`Apart`] remembers another cookie for all but one of them.
//! - *Directories that are larger than memory should be*: a snapshot may hold a window of the
//!   cookies only, see [`Builder::narrow`].
//! - *Many readers*: all of a directory share one snapshot ([`super::readdir`]).

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::branch::stat::Kind;
use crate::union::merge::{Listed, merge};
use crate::union::{Below, BranchIndex, Found};

/// The cookie of `..`, which comes after `.`; no name has it or a smaller one.
pub(super) const DOT_DOT: u64 = 2;
/// The cookie of `.`; 0 is the beginning.
pub(super) const DOT: u64 = 1;
/// The largest hash: a cookie is a file offset, and names of this hash need room above.
const LAST: u64 = i64::MAX as u64 - 0xFFFF;
/// Above all cookies.
const END: u64 = i64::MAX as u64;
/// A snapshot holds at most so many names, and so many bytes of them.
const MOST: usize = 1 << 18;
const MOST_BYTES: usize = 32 << 20;

/// The hash of names, by a key that nobody knows: names of one hash cannot be made on purpose.
#[derive(Debug)]
pub(super) struct Cookies {
    key: RandomState,
    /// The bits of the hash that are used.
    bits: u64,
}

impl Default for Cookies {
    fn default() -> Cookies {
        Cookies { key: RandomState::new(), bits: END }
    }
}

impl Cookies {
    fn of(&self, name: &[u8]) -> u64 {
        (self.key.hash_one(name) & self.bits).clamp(DOT_DOT + 1, LAST)
    }
}

/// Names of a directory that have another cookie than their hash, which another name has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Apart(Vec<(Box<[u8]>, u64)>);

impl Apart {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn cookie(&self, name: &[u8]) -> Option<u64> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, cookie)| *cookie)
    }
}

/// An entry of a listing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    cookie: u64,
    /// The inode number on the branch's file system.
    pub(super) ino: u64,
    /// Where its name is.
    at: u32,
    length: u8,
    /// The type; nothing for a whiteout.
    kind: Option<Kind>,
    /// The branch of its topmost entry.
    pub(super) branch: BranchIndex,
}

impl Line {
    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize;
        &names[at..at + usize::from(self.length)]
    }

    fn listed<'a>(&self, names: &'a [u8]) -> Listed<'a> {
        let found = match self.kind {
            None => Found::Whiteout,
            Some(Kind::Dir) => Found::Dir(Below::Merges),
            Some(_) => Found::Leaf,
        };
        Listed { hash: self.cookie, name: self.name(names), found }
    }
}

/// A name as a listing says it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: Kind,
    pub(super) cookie: u64,
    pub(super) line: Line,
}

/// A snapshot of a directory, or of a window of it.
#[derive(Debug)]
pub(super) struct Listing {
    names: Box<[u8]>,
    lines: Box<[Line]>,
    /// It holds the names with larger cookies than this ...
    from: u64,
    /// ... and smaller ones than this.
    until: u64,
    /// What it is of, see [`crate::inode::Inode::generation`].
    pub(super) generation: u64,
}

impl Listing {
    /// The listing of a directory that is gone.
    pub(super) fn empty() -> Listing {
        Listing { names: Box::default(), lines: Box::default(), from: 0, until: END, generation: 0 }
    }

    /// The names after a cookie.
    pub(super) fn after(&self, cookie: u64) -> impl Iterator<Item = Shown<'_>> {
        let first = self.lines.partition_point(|line| line.cookie <= cookie);
        self.lines[first..].iter().filter_map(|line| {
            Some(Shown { name: line.name(&self.names), kind: line.kind?, cookie: line.cookie, line: *line })
        })
    }

    /// Whether it says what comes right after a cookie.
    pub(super) fn covers(&self, cookie: u64) -> bool {
        self.from <= cookie && (cookie < self.until - 1 || self.until == END)
    }

    /// The cookie after which another snapshot goes on; nothing if no name is left.
    pub(super) fn rest(&self) -> Option<u64> {
        (self.until < END).then(|| self.until - 1)
    }

    /// The room that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Listing>() + self.names.len() + size_of_val(&*self.lines)
    }

    fn has(&self, name: &[u8], cookie: u64) -> bool {
        self.after(cookie - 1).take_while(|shown| shown.cookie == cookie).any(|shown| shown.name == name)
    }
}

/// A listing in the making.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    cookies: &'a Cookies,
    apart: Apart,
    names: Vec<u8>,
    lines: Vec<Line>,
    from: u64,
    until: u64,
    most: usize,
}

impl<'a> Builder<'a> {
    /// Begins a listing of the names after a cookie.
    pub(super) fn new(cookies: &'a Cookies, apart: Apart, from: u64) -> Builder<'a> {
        Builder { cookies, apart, names: Vec::new(), lines: Vec::new(), from, until: END, most: MOST }
    }

    /// Adds the word of a branch on a name: an entry of a type, or without one a whiteout.
    pub(super) fn add(&mut self, branch: BranchIndex, name: &[u8], ino: u64, kind: Option<Kind>) {
        let known = if self.apart.is_empty() { None } else { self.apart.cookie(name) };
        let cookie = known.unwrap_or_else(|| self.cookies.of(name));
        let (Ok(length), Ok(at)) = (u8::try_from(name.len()), u32::try_from(self.names.len())) else { return };
        if cookie <= self.from || cookie >= self.until {
            return;
        }
        self.names.extend_from_slice(name);
        self.lines.push(Line { cookie, ino, at, length, kind, branch });
        if self.lines.len() > 2 * self.most || self.names.len() > MOST_BYTES {
            self.narrow();
        }
    }

    /// Leaves out what a later snapshot can say: the names with the larger cookies.
    fn narrow(&mut self) {
        let half = self.lines.len() / 2;
        let (_, bound, _) = self.lines.select_nth_unstable_by_key(half, |line| line.cookie);
        let bound = bound.cookie;
        if self.lines.iter().all(|line| line.cookie >= bound) {
            return;
        }
        self.until = bound;
        self.lines.retain(|line| line.cookie < bound);
        let mut names = Vec::with_capacity(self.names.len() / 2);
        for line in &mut self.lines {
            let name = line.name(&self.names);
            line.at = names.len() as u32;
            names.extend_from_slice(name);
        }
        self.names = names;
    }

    /// All words that were added, where those are all of the directory.
    pub(super) fn words(&self) -> Option<impl Iterator<Item = (BranchIndex, &[u8], Option<Kind>)>> {
        let whole = self.from <= DOT_DOT && self.until == END;
        whole.then(|| self.lines.iter().map(|line| (line.branch, line.name(&self.names), line.kind)))
    }

    /// The listing, and what is to be remembered of names of one hash. `before` is the snapshot
    /// before it: readers may be on the way by its cookies.
    pub(super) fn finish(mut self, generation: u64, before: Option<&Listing>) -> (Listing, Apart) {
        self.lines.sort_unstable_by_key(|line| (line.cookie, line.branch, line.kind.is_none()));
        merge(&mut self.lines, |line| line.listed(&self.names));
        if self.lines.windows(2).any(|two| two[0].cookie == two[1].cookie) {
            self.tell_apart(before);
        }
        let Builder { names, lines, from, until, apart, .. } = self;
        let listing = Listing { names: names.into(), lines: lines.into(), from, until, generation };
        (listing, apart)
    }

    /// Gives all but one of the names of one hash another cookie. The one that keeps it is the one
    /// that had it.
    fn tell_apart(&mut self, before: Option<&Listing>) {
        let names = &self.names;
        let mut taken: HashSet<u64> = self.lines.iter().map(|line| line.cookie).collect();
        for group in self.lines.chunk_by_mut(|a, b| a.cookie == b.cookie) {
            group.sort_by_key(|line| {
                let name = line.name(names);
                let had_it = before.is_some_and(|before| before.has(name, line.cookie));
                (self.apart.cookie(name).is_none(), !had_it, name)
            });
            for line in group.iter_mut().skip(1) {
                while !taken.insert(line.cookie) {
                    line.cookie += 1;
                }
                let name = line.name(names);
                self.apart.0.retain(|(known, _)| **known != *name);
                self.apart.0.push((name.into(), line.cookie));
            }
        }
        // those are listed when their turn comes
        let until = self.until;
        self.lines.retain(|line| line.cookie < until);
        self.lines.sort_unstable_by_key(|line| line.cookie);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Few hashes, with room between them.
    fn colliding() -> Cookies {
        Cookies { bits: 0x3F << 32, ..Cookies::default() }
    }

    fn list(
        cookies: &Cookies,
        apart: &Apart,
        from: u64,
        most: usize,
        names: &BTreeSet<u32>,
        before: Option<&Listing>,
    ) -> (Listing, Apart) {
        let mut builder = Builder { most, ..Builder::new(cookies, apart.clone(), from) };
        for name in names {
            builder.add(BranchIndex(0), format!("{name}").as_bytes(), u64::from(*name), Some(Kind::File));
        }
        builder.finish(0, before)
    }

    fn number(shown: Shown<'_>) -> u32 {
        std::str::from_utf8(shown.name).unwrap().parse().unwrap()
    }

    #[test]
    fn windows_together_hold_every_name_once() {
        for cookies in [Cookies::default(), colliding()] {
            let names: BTreeSet<u32> = (0..5_000).collect();
            let (mut from, mut met, mut windows, mut apart) = (0, Vec::new(), 0, Apart::default());
            loop {
                let (window, now) = list(&cookies, &apart, from, 700, &names, None);
                apart = now;
                met.extend(window.after(from).map(number));
                assert!(window.after(from).all(|shown| shown.line.ino == u64::from(number(shown))));
                assert!(window.lines.len() <= 1_400, "{}", window.lines.len());
                windows += 1;
                let Some(rest) = window.rest() else { break };
                assert!(rest > from && !window.covers(rest) && window.covers(rest - 1));
                from = rest;
            }
            assert!(windows > 3, "{windows}");
            assert_eq!(met.len(), names.len());
            assert_eq!(met.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }

    /// A reader goes on by its cookie alone, in snapshots that were taken anew after names came and
    /// went, all of one of a few hashes.
    #[test]
    fn a_name_that_stays_is_met_once_whatever_comes_and_goes() {
        for seed in 0..6_u32 {
            let cookies = colliding();
            let random = |at: u32| (seed * 1_000 + at + 1).wrapping_mul(0x9E37_79B9) >> 8;
            let mut names: BTreeSet<u32> = (0..300).filter(|name| name % 3 > 0).collect();
            let mut stayed: BTreeSet<u32> = names.clone();
            let (mut before, mut apart) = list(&cookies, &Apart::default(), 0, 10_000, &names, None);
            let (mut cookie, mut met) = (0, Vec::new());
            for turn in 0.. {
                let Some(shown) = before.after(cookie).next() else { break };
                met.push(number(shown));
                cookie = shown.cookie;
                let (gone, new) = (random(2 * turn) % 300, random(2 * turn + 1) % 300);
                names.remove(&gone);
                stayed.remove(&gone);
                if !stayed.contains(&new) {
                    names.insert(new);
                }
                let (now, known) = list(&cookies, &apart, 0, 10_000, &names, Some(&before));
                (before, apart) = (now, known);
            }
            for name in &stayed {
                assert_eq!(met.iter().filter(|met| *met == name).count(), 1, "{name}, seed {seed}: {met:?}");
            }
        }
    }

    #[test]
    fn no_cookie_is_that_of_a_dot_or_no_offset() {
        for bits in [0, END, u64::MAX] {
            let cookies = Cookies { bits, ..Cookies::default() };
            assert!((0..10_000_u32).all(|name| (DOT_DOT + 1..=LAST).contains(&cookies.of(&name.to_ne_bytes()))));
        }
    }
}
