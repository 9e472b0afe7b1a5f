//! What of the top branch goes into a layer, and in which order.
//!
//! The tree of the top is walked once, each directory sorted: its opaque mark, its whiteouts, then
//! its entries, each followed by what is in it. What lies there is asked by the words of
//! [`crate::branch::marks`], so that a branch in another form is written out in this one. Where a
//! directory of the top has a redirect record, a reader of the layer would not know what is in it:
//! from there on everything is written that the union shows, as `diff::view` sees it.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::member::{Look, Member, What};
use super::reading::shown;
use super::writing::{CopyError, Writer};
use crate::branch;
use crate::branch::descent::Descent;
use crate::branch::dir::Dir;
use crate::branch::leftovers;
use crate::branch::marks::Heed;
use crate::branch::stat::{Kind, RealId, Stat};
use crate::diff::view::{self, Marks, View};
use crate::diff::{DiffError, Twice, on};
use crate::options::BranchSpec;
use crate::union::name::OPAQUE;
use crate::union::{Below, BranchIndex, Found, Name, NameBuf, Resolved};

const TOP: BranchIndex = BranchIndex(0);

/// Why there is no layer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ExportError {
    #[error("no branch is given")]
    NoBranches,
    #[error(transparent)]
    View(#[from] DiffError),
    #[error("cannot open branch {}: {error}", path.display())]
    Branch { path: PathBuf, error: Errno },
    #[error("cannot read {}: {error}", shown(path))]
    Entry { path: Vec<u8>, error: Errno },
    #[error("{} changed while it was read: export again when nobody writes there", shown(.0))]
    Changed(Vec<u8>),
    #[error(
        "{} was renamed with content of the branches below: give all branches, as in TOP:LAYER=ro+wh:BASE=ro+wh",
        shown(.0)
    )]
    NeedsBelow(Vec<u8>),
    #[error("{} has its data in another branch (overlay.metacopy), which is not read", shown(.0))]
    Metacopy(Vec<u8>),
    #[error("cannot write the layer: {0}")]
    Output(io::Error),
}

/// Something that is left out of a layer, which the user should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path in the branch.
    pub path: Vec<u8>,
    /// Why, and what to do.
    pub why: String,
}

/// Writes the top of these branches to a file as a layer.
///
/// `workdir` is where the work area of the topmost writable branch lies, if not at its root. No time
/// in the layer is later than `latest`, in seconds since 1970. What cannot be part of a layer is
/// passed to `left_out`.
///
/// # Errors
/// Why it could not be written in full; what was written until then is no layer.
pub fn export(
    branches: &[BranchSpec],
    workdir: Option<&Path>,
    out: File,
    latest: Option<i64>,
    left_out: &mut dyn FnMut(LeftOut),
) -> Result<(), ExportError> {
    let used = needed(branches)?;
    let view = View::open_all(used, workdir)?;
    let root = |first| view.root(first).map_err(|error| failed(b"", error));
    let dirs = Rc::new(Twice { now: root(0)?, before: root(1)? });
    let mut walk = Walk {
        heed: view.heed(TOP),
        view,
        init: used.iter().map(|branch| branch.init).collect(),
        alone: branches.len() == 1,
        writer: Writer::new(out, latest),
        links: HashMap::new(),
        left_out,
        descent: Descent::new(Rc::clone(&dirs)),
        path: Vec::new(),
        stack: Vec::new(),
        pending: 0,
    };
    let left_of_aufs = on(&dirs.now, TOP).and_then(leftovers::of_aufs).map_err(|error| failed(b"", error))?;
    for leftover in left_of_aufs.iter().filter(|leftover| leftover.is_loss()) {
        (walk.left_out)(LeftOut { path: leftover.name().to_vec(), why: leftover.to_string() });
    }
    walk.all(dirs)?;
    walk.writer.finish().map_err(ExportError::Output)
}

/// The branches that have a say in what is written: those below the top only where the top may
/// have redirect records, or an init branch is among them.
fn needed(branches: &[BranchSpec]) -> Result<&[BranchSpec], ExportError> {
    let top = branches.first().ok_or(ExportError::NoBranches)?;
    let fail = |error| ExportError::Branch { path: top.path.clone(), error };
    let form = branch::form_of(top);
    let root = branch::open_root(&top.path, true, form).map_err(fail)?;
    if form.overlay
        && let Some(file) = root.find_metacopy().map_err(fail)?
    {
        return Err(ExportError::Metacopy(file));
    }
    let redirects = form.overlay || branch::has_records(&root).map_err(fail)?;
    Ok(if redirects || branches.iter().any(|branch| branch.init) { branches } else { &branches[..1] })
}

/// How a directory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// What the top holds; what is below shows through.
    Merging,
    /// What the top holds; it is opaque, or in a directory that is.
    Hiding,
    /// All that the union shows, whichever branch holds it.
    Whole,
}

/// One thing to write, in the order in which things of a directory are written.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Whiteout(NameBuf),
    Entry(NameBuf),
}

/// A directory that is being written.
struct Frame {
    /// How long its path is in [`Walk::path`].
    path: usize,
    manner: Manner,
    things: std::vec::IntoIter<Thing>,
    /// The directory itself, as long as it is not clear that it has to be written.
    pending: Option<Member>,
}

/// A directory as it is begun.
struct Begun {
    member: Member,
    manner: Manner,
    /// Whether it gets an opaque mark.
    opaque: bool,
    /// Whether it is written only if something in it is.
    later: bool,
}

struct Walk<'a> {
    view: View,
    /// What counts of the marks of the top.
    heed: Heed,
    /// Which branches are init branches.
    init: Vec<bool>,
    /// Whether no other branch was given.
    alone: bool,
    writer: Writer,
    /// The first path of what has several names.
    links: HashMap<RealId, Vec<u8>>,
    left_out: &'a mut dyn FnMut(LeftOut),
    descent: Descent<Rc<Twice>>,
    /// The path of the directory that is being written, with a slash at its end; empty for the root.
    path: Vec<u8>,
    stack: Vec<Frame>,
    /// How many directories of the stack are pending.
    pending: usize,
}

impl Walk<'_> {
    fn all(&mut self, dirs: Rc<Twice>) -> Result<(), ExportError> {
        let fail = |error| failed(b"", error);
        let top = on(&dirs.now, TOP).map_err(fail)?;
        let look = top.stat().and_then(|stat| Look::of(top.at(b""), &stat)).map_err(fail)?;
        let root = Member { path: Vec::new(), what: What::Dir, look };
        let opaque = self.heed.whiteouts && top.is_opaque().map_err(fail)?;
        let manner = if opaque { Manner::Hiding } else { Manner::Merging };
        self.begin(&dirs, Begun { member: root, manner, opaque, later: false })?;
        while let Some(frame) = self.stack.last_mut() {
            let manner = frame.manner;
            match frame.things.next() {
                Some(Thing::Whiteout(name)) => self.mark(&name.as_name().whiteout_in_layer())?,
                Some(Thing::Entry(name)) => self.entry(&name, manner).map_err(|stop| match stop {
                    Stop::Errno(error) => failed(&self.below(&name), error),
                    Stop::Said(error) => error,
                })?,
                None => self.end(),
            }
        }
        Ok(())
    }

    /// Begins a directory: itself, unless that is left for later, and its mark.
    fn begin(&mut self, dirs: &Twice, begun: Begun) -> Result<(), ExportError> {
        let Begun { member, manner, opaque, later } = begun;
        if !member.path.is_empty() {
            self.path = [&member.path, &b"/"[..]].concat();
        }
        let things = self.things(dirs, manner).map_err(|error| failed(&self.path, error))?;
        self.stack.push(Frame { path: self.path.len(), manner, things, pending: Some(member) });
        self.pending += 1;
        match (opaque, later) {
            (true, _) => self.mark(OPAQUE),
            (false, true) => Ok(()),
            (false, false) => self.settle(),
        }
    }

    /// Ends a directory.
    fn end(&mut self) {
        let ended = self.stack.pop();
        self.pending -= usize::from(ended.is_some_and(|frame| frame.pending.is_some()));
        self.path.truncate(self.stack.last().map_or(0, |frame| frame.path));
        self.descent.leave();
    }

    /// The path of a name in the directory that is being written.
    fn below(&self, name: &NameBuf) -> Vec<u8> {
        [&self.path, name.as_bytes()].concat()
    }

    /// What is to be written of a directory.
    fn things(&mut self, dirs: &Twice, manner: Manner) -> Result<std::vec::IntoIter<Thing>, Errno> {
        let mut names = BTreeSet::new();
        let mut things = Vec::new();
        if manner == Manner::Whole {
            for dir in dirs.now.stack.iter().filter_map(|place| place.dir.as_ref()) {
                view::names(dir, Marks::Not, &mut names)?;
            }
            things.extend(names.into_iter().map(Thing::Entry));
            return Ok(things.into_iter());
        }
        let top = match on(&dirs.now, TOP) {
            // a mount point could not be looked behind: it is empty, as in the union
            Err(Errno::NOENT) => return Ok(things.into_iter()),
            top => top?,
        };
        view::names(top, Marks::Too, &mut names)?;
        for name in names {
            let word = top.word(name.as_name(), self.heed)?;
            let is_socket = word.stat.is_some_and(|stat| stat.kind == Kind::Socket);
            match if is_socket { self.leave_out(&name) } else { word.found } {
                Found::Nothing => {}
                // there is nothing left that it could hide
                Found::Whiteout if manner == Manner::Hiding => {}
                Found::Whiteout if self.view.is_in_init_branch(&dirs.before, name.as_name())? => {}
                Found::Whiteout => things.push(Thing::Whiteout(name)),
                Found::Leaf | Found::Dir(_) => things.push(Thing::Entry(name)),
            }
        }
        things.sort_unstable();
        Ok(things.into_iter())
    }

    /// Leaves out a socket. What it hid stays hidden.
    fn leave_out(&mut self, name: &NameBuf) -> Found {
        let path = self.below(name);
        (self.left_out)(LeftOut { path, why: "it is a socket, which layers do not have".into() });
        Found::Whiteout
    }

    /// Writes an entry, or begins it if it is a directory.
    fn entry(&mut self, name: &NameBuf, around: Manner) -> Result<(), Stop> {
        let dirs = Rc::clone(self.descent.here(|above, name| enter(&self.view, above, name))?);
        let is_own = self.view.is_in_init_branch(&dirs.before, name.as_name())?;
        match self.view.look(&dirs.now, name.as_name())?.resolved {
            Resolved::Missing { .. } => Ok(()),
            Resolved::Leaf(branch) if is_own || self.is_init(branch) => Ok(()),
            Resolved::Leaf(branch) => self.leaf(on(&dirs.now, branch)?, name),
            Resolved::Dir { stack, .. } => {
                let topmost = stack.first().copied().ok_or(Errno::NOENT)?;
                // asked by its name, for what lies under a mount point cannot be opened
                let at = on(&dirs.now, topmost)?.at(name.as_bytes());
                let member = Member { path: self.below(name), what: What::Dir, look: Look::of(at, &at.stat()?)? };
                let (manner, opaque) = self.manner(&dirs, name, around)?;
                let inner = enter(&self.view, &dirs, name.as_name())?;
                self.descent.enter(name.as_name(), Rc::clone(&inner));
                let later = is_own || self.is_init(topmost);
                Ok(self.begin(&inner, Begun { member, manner, opaque, later })?)
            }
        }
    }

    /// How a directory is written that lies in another one, and whether it gets an opaque mark.
    fn manner(&self, dirs: &Twice, name: &NameBuf, around: Manner) -> Result<(Manner, bool), Stop> {
        if around == Manner::Whole {
            return Ok((Manner::Whole, false));
        }
        match on(&dirs.now, TOP)?.word(name.as_name(), self.heed)?.found {
            Found::Dir(Below::Elsewhere) if self.alone => Err(ExportError::NeedsBelow(self.below(name)).into()),
            Found::Dir(Below::Elsewhere) => Ok((Manner::Whole, true)),
            Found::Dir(Below::Hidden) => Ok((Manner::Hiding, true)),
            _ => Ok((around, false)),
        }
    }

    fn is_init(&self, branch: BranchIndex) -> bool {
        self.init.get(branch.get()).copied().unwrap_or(false)
    }

    /// Writes what is not a directory.
    fn leaf(&mut self, dir: &Dir, name: &NameBuf) -> Result<(), Stop> {
        let at = dir.at(name.as_bytes());
        let stat = at.stat()?;
        let path = self.below(name);
        let look = Look::of(at, &stat)?;
        if let Some(first) = self.links.get(&stat.id) {
            let what = What::Link(first.clone());
            return Ok(self.add(&Member { path, what, look })?);
        }
        if stat.nlink > 1 && stat.kind != Kind::Socket {
            self.links.insert(stat.id, path.clone());
        }
        let what = match stat.kind {
            Kind::File => return self.file(dir, name, look),
            Kind::Symlink => What::Symlink(dir.read_link(name.as_bytes())?),
            Kind::Fifo => What::Fifo,
            Kind::Char => What::Char(stat.rdev),
            Kind::Block => What::Block(stat.rdev),
            Kind::Socket => {
                // in what is written whole: nothing lies below it
                self.leave_out(name);
                return Ok(());
            }
            Kind::Dir => return Err(Errno::STALE.into()),
        };
        Ok(self.add(&Member { path, what, look })?)
    }

    fn file(&mut self, dir: &Dir, name: &NameBuf, look: Look) -> Result<(), Stop> {
        let path = self.below(name);
        let file = dir.open_file(name.as_bytes(), OFlags::RDONLY)?;
        let size = Stat::of_file(&file)?.size;
        self.add(&Member { path: path.clone(), what: What::File(size), look })?;
        Ok(self.writer.copy(&file, size).map_err(|error| match error {
            CopyError::Source(error) => failed(&path, error),
            CopyError::Shorter => ExportError::Changed(path),
            CopyError::Archive(error) => ExportError::Output(error),
        })?)
    }

    /// Writes a whiteout or an opaque mark.
    fn mark(&mut self, name: &[u8]) -> Result<(), ExportError> {
        self.add(&Member::mark([&self.path, name].concat()))
    }

    /// Writes a member, and before it the directories in which it is.
    fn add(&mut self, member: &Member) -> Result<(), ExportError> {
        self.settle()?;
        self.writer.add(member).map_err(ExportError::Output)
    }

    /// Writes the directories that were left for later.
    fn settle(&mut self) -> Result<(), ExportError> {
        if self.pending == 0 {
            return Ok(());
        }
        for frame in &mut self.stack {
            if let Some(member) = frame.pending.take() {
                self.writer.add(&member).map_err(ExportError::Output)?;
            }
        }
        self.pending = 0;
        Ok(())
    }
}

/// Why an entry could not be written.
enum Stop {
    Errno(Errno),
    Said(ExportError),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Errno(errno)
    }
}

impl From<ExportError> for Stop {
    fn from(error: ExportError) -> Stop {
        Stop::Said(error)
    }
}

fn enter(view: &View, above: &Twice, name: Name<'_>) -> Result<Rc<Twice>, Errno> {
    Ok(Rc::new(Twice { now: view.enter(&above.now, name)?, before: view.enter(&above.before, name)? }))
}

fn failed(path: &[u8], error: Errno) -> ExportError {
    match error {
        // what was in the listing is gone, or something else by now
        Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP => ExportError::Changed(path.to_vec()),
        error => ExportError::Entry { path: path.to_vec(), error },
    }
}
