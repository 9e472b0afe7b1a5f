//! What is known of which branches hold a name never changes an answer: after every change of a history, a union that
//! has followed it looks up and lists exactly what another one finds that asks the branches each time.
//!
//! The unions are opened in this process, for a kernel in between would remember names by itself.
//! `RUNIONFS_INDEX_CASES` sets how many histories are tried.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use harness::sandbox::{self, Medium, Sandbox};
use harness::tree::{Layout, NAMES, layouts, paths};
use harness::trial::{Ground, fail, number, try_many};
use harness::world::Access;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use rustix::fs::Mode;
use rustix::io::Errno;
use unionfs::branch::at::SetTime;
use unionfs::branch::stat::Kind;
use unionfs::fs::{Caller, Change, Entry, New, RenameFlags, Union, WrittenBy};
use unionfs::inode::ROOT;
use unionfs::options::{Options, Udba, Whiteout, branches};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// One change. What it is told of need not be there.
#[derive(Debug, Clone)]
enum Act {
    Make(String, Kind),
    Remove(String),
    Rename(String, String, RenameFlags),
    Link(String, String),
    Chmod(String),
    Write(String),
    /// Looks some names up that are not there.
    Miss(String),
    /// Every inode but the root is forgotten.
    Forget,
}

fn acts() -> impl Strategy<Value = Act> {
    let kind = prop::sample::select(vec![Kind::File, Kind::Dir, Kind::Dir, Kind::Symlink]);
    let flags = prop::sample::select(vec![
        RenameFlags::Replace,
        RenameFlags::Replace,
        RenameFlags::NoReplace,
        RenameFlags::Exchange,
        RenameFlags::Whiteout,
    ]);
    prop_oneof![
        4 => (paths(), kind).prop_map(|(at, kind)| Act::Make(at, kind)),
        4 => paths().prop_map(Act::Remove),
        5 => (paths(), paths(), flags).prop_map(|(from, to, flags)| Act::Rename(from, to, flags)),
        1 => (paths(), paths()).prop_map(|(from, to)| Act::Link(from, to)),
        2 => paths().prop_map(Act::Chmod),
        2 => paths().prop_map(Act::Write),
        2 => paths().prop_map(Act::Miss),
        1 => Just(Act::Forget),
    ]
}

/// A union, and the inodes that a kernel would know.
struct Known {
    union: Arc<Union>,
    entries: Vec<Entry>,
}

/// Type, and mode, owner, size and time of modification; of what has several names the type alone, for whoever reads
/// the branches only does not know of names that stand below.
type Seen = Option<(Kind, Option<(u32, u32, u64, i64)>)>;

impl Known {
    fn open(text: OsString, udba: Udba) -> Known {
        let specs = branches::settle(branches::parse(&text).expect("branches"), Whiteout::Wh).expect("branches");
        let options = Options { udba, ..Options::default() };
        Known { union: Union::open(&specs, &options).expect("open the union"), entries: Vec::new() }
    }

    fn look(&mut self, parent: u64, name: &str) -> Result<Option<(u64, Seen)>, Errno> {
        let Some(entry) = self.union.lookup(parent, name.as_bytes())? else { return Ok(None) };
        let (ino, stat) = (entry.attr.ino, entry.attr.stat);
        self.entries.push(entry);
        let size = if stat.kind == Kind::Dir { 0 } else { stat.size };
        let alone = stat.kind == Kind::Dir || stat.nlink == 1;
        Ok(Some((ino, Some((stat.kind, alone.then_some((stat.mode, stat.uid, size, stat.mtime.sec)))))))
    }

    fn walk(&mut self, path: &str) -> Option<(u64, Kind)> {
        path.split('/').filter(|name| !name.is_empty()).try_fold((ROOT, Kind::Dir), |(at, kind), name| {
            let found = if kind == Kind::Dir { self.look(at, name).ok()? } else { None };
            found.and_then(|(ino, seen)| Some((ino, seen?.0)))
        })
    }

    fn parent<'a>(&mut self, path: &'a str) -> Option<(u64, &'a [u8])> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (ino, kind) = self.walk(parent)?;
        (kind == Kind::Dir).then_some((ino, name.as_bytes()))
    }

    /// What fails is part of the play.
    fn act(&mut self, act: &Act) -> Option<Result<(), Errno>> {
        let union = Arc::clone(&self.union);
        Some(match act {
            Act::Make(at, kind) => {
                let (parent, name) = self.parent(at)?;
                let new = match kind {
                    Kind::Dir => New::Dir,
                    Kind::Symlink => New::Symlink(b"a"),
                    _ => New::File,
                };
                union.make(parent, name, new, 0o755, 0o022, CALLER).map(|entry| self.entries.push(entry))
            }
            Act::Remove(at) => {
                let ((parent, name), (_, kind)) = (self.parent(at)?, self.walk(at)?);
                if kind == Kind::Dir { union.rmdir(parent, name) } else { union.unlink(parent, name, true).map(drop) }
            }
            Act::Rename(from, to, flags) => {
                let inside = |one: &str, other: &str| one == other || one.starts_with(&format!("{other}/"));
                if inside(from, to) || inside(to, from) {
                    // the kernel does not ask for that
                    return None;
                }
                let (from, to) = (self.parent(from)?, self.parent(to)?);
                union.rename(from, to, *flags, true).map(drop)
            }
            Act::Link(from, to) => {
                let ((ino, _), (parent, name)) = (self.walk(from)?, self.parent(to)?);
                union.link(ino, parent, name).map(|entry| self.entries.push(entry))
            }
            Act::Chmod(at) => {
                let (ino, kind) = self.walk(at)?;
                let mode = Some(0o711).filter(|_| kind != Kind::Symlink);
                let (atime, mtime) = (SetTime::Keep, SetTime::To(unionfs::branch::stat::Time { sec: 5, nsec: 0 }));
                let change = Change { mode, uid: None, gid: None, size: None, atime, mtime };
                union.setattr(ino, change, CALLER).map(drop)
            }
            Act::Write(at) => {
                let (ino, kind) = self.walk(at)?;
                if kind != Kind::File {
                    return None;
                }
                union.open_handle(ino, libc::O_WRONLY as u32).and_then(|opened| {
                    let written = union.write(opened.handle, 0, b"written", WrittenBy::Caller, None);
                    union.release(opened.handle);
                    written.map(drop)
                })
            }
            Act::Miss(at) => {
                let (parent, _) = self.parent(at)?;
                (0..10).try_for_each(|number| union.lookup(parent, format!("missing{number}").as_bytes()).map(drop))
            }
            Act::Forget => {
                self.entries.clear();
                Ok(())
            }
        })
    }

    fn list(&self, dir: u64) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let read = self.union.read_dir(dir, 0, |entry| {
            names.insert(String::from_utf8_lossy(entry.name).into_owned());
            false
        });
        read.expect("list a directory");
        names
    }
}

/// Compares all that is seen in a directory and below it.
fn compare(one: &mut Known, at: u64, other: &mut Known, there: u64, path: &str) -> TestCaseResult {
    let (listed, expected) = (one.list(at), other.list(there));
    if listed != expected {
        return fail(format!("{path:?} lists {listed:?} and not {expected:?}"));
    }
    for name in NAMES {
        let (seen, expected) = (one.look(at, name), other.look(there, name));
        let told = |seen: &Result<Option<(u64, Seen)>, Errno>| seen.map(|seen| seen.and_then(|(_, seen)| seen));
        let same = match (told(&seen), told(&expected)) {
            (Ok(Some((kind, about))), Ok(Some((other, expected)))) => {
                kind == other && (about.is_none() || expected.is_none() || about == expected)
            }
            (seen, expected) => seen == expected,
        };
        if !same {
            return fail(format!("{path}/{name} is {seen:?} and not {expected:?}"));
        }
        if let (Ok(Some((ino, Some((Kind::Dir, _))))), Ok(Some((other_ino, _)))) = (seen, expected) {
            compare(one, ino, other, other_ino, &format!("{path}/{name}"))?;
        }
    }
    Ok(())
}

/// The same branches for reading only: what was written to them counts, and nobody holds them.
fn for_reading(layout: &Layout) -> Layout {
    let read = |access: &Access| if *access == Access::Plain { Access::Plain } else { Access::Whiteouts };
    Layout { branches: layout.branches.iter().map(read).collect(), ..layout.clone() }
}

/// At least three branches, for which directories are indexed at once; the top takes changes.
fn several(mut layout: Layout) -> Layout {
    layout.branches[0] = Access::Writable;
    let missing = 3_usize.saturating_sub(layout.branches.len());
    layout.branches.extend(std::iter::repeat_n(Access::Whiteouts, missing));
    layout.opaque_roots.resize(layout.branches.len().max(layout.opaque_roots.len()), false);
    layout
}

fn try_histories(sandbox: &Sandbox, cases: u32, several_branches: bool) {
    let trials = std::cell::Cell::new(0);
    let values = (layouts(), prop::collection::vec(acts(), 1..40));
    try_many(cases, &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let layout = if several_branches { several(layout) } else { layout };
        let ground =
            Ground::new(sandbox.path(), &format!("{several_branches}{}", trials.get()), &layout).expect("branches");
        let mut union = Known::open(layout.branch_string(&ground.at("")), Udba::None);
        let reading = for_reading(&layout).branch_string(&ground.at(""));
        for (number, act) in acts.iter().enumerate() {
            let done = union.act(act);
            let mut fresh = Known::open(reading.clone(), Udba::Reval);
            let compared = compare(&mut union, ROOT, &mut fresh, ROOT, "");
            if let Err(error) = compared {
                return fail(format!("after act {number}, {act:?} ({done:?}): {error}"));
            }
        }
        drop(union);
        std::fs::remove_dir_all(ground.at("")).expect("remove the branches");
        Ok(())
    });
}

#[test]
fn lookups_answer_what_the_branches_say_after_every_change() {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(600)) else { return };
    rustix::process::umask(Mode::empty());
    try_histories(&sandbox, number("RUNIONFS_INDEX_CASES", 60), true);
    try_histories(&sandbox, number("RUNIONFS_INDEX_CASES", 60) / 2, false);
}
