//! The union at work: the state, the lock order, and what all operations share.
//!
//! An operation **observes** the branches, lets [`crate::union`] **decide**, and then **acts**.
//! Each family of operations has its file below; this one holds what they stand on:
//! directories of branches (`Union::dir`), the search of a name (`Union::look`), and how
//! what was found becomes an inode (`Union::adopt`).
//!
//! # Lock order
//!
//! 1. the flush of hard-link records, by who flushes;
//! 2. the gate of an inode ([`Inode::gate`]): one copy-up at a time; held while data is copied,
//!    which no other lock but the flush is; held, too, while it is asked who writes to a file;
//! 3. names of directories ([`Inode::names`]): parents before children, two unrelated ones by
//!    number. The kernel already keeps operations apart that hold more than one;
//! 4. the way to the content of an open file ([`crate::handle::OpenFile::way`]), while it is chosen;
//! 5. the checks of hard-link records after a crash, once for each record;
//! 6. the tree (`Union::tree`): shared to walk from a directory to its parents, exclusive to
//!    move a directory;
//! 7. the state of an inode, then tables. No system call is made under either.

mod attr;
mod content;
mod copy_data;
mod copy_up;
mod create;
mod dirs;
mod file;
mod flags;
mod flush;
mod index;
mod io;
mod known;
mod listing;
mod lookup;
mod moved;
mod names;
mod owners;
mod parents;
mod places;
mod readdir;
mod records;
mod remove;
mod rename;
mod setup;
mod steps;
mod sync;
mod tally;
mod xattr;
mod yielding;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::branch::Branch;
use crate::branch::dir::Dir;
use crate::branch::form::Form;
use crate::branch::stat::Stat;
use crate::branch::work::Work;
use crate::handle::Handles;
use crate::identity::Numbers;
use crate::inode::{Inode, Inodes, Ref};
use crate::options::{BranchSpec, Options, Udba};
use crate::union::policy::Candidate;
use crate::union::{BranchIndex, Name, NameError, Redirect, Resolved};

pub use attr::Change;
pub use create::New;
pub use file::{NO_HANDLE, Opened, WrittenBy};
pub use flush::Flushed;
pub use readdir::{Detail, DirEntry, Seen};
pub use rename::{Progress, RenameFlags};
pub use setup::SetupError;
pub use tally::{Cache, Space, Tally};
pub use yielding::Stays;

/// A mounted or mountable union.
#[derive(Debug)]
pub struct Union {
    branches: Vec<Branch>,
    specs: Vec<BranchSpec>,
    options: Options,
    numbers: Numbers,
    inodes: Arc<Inodes>,
    root: Arc<Inode>,
    handles: Handles,
    dirs: Arc<dirs::DirCache>,
    held: Arc<dirs::Held>,
    listings: Arc<readdir::Listings>,
    indexes: Arc<index::Indexes>,
    /// The branches that take new names, top first.
    writable: Box<[BranchIndex]>,
    tree: RwLock<()>,
    renames: names::Renames,
    /// Shown in the place of directories that are other branches.
    empty: Option<Arc<Dir>>,
    records: records::Records,
    ways: copy_data::Ways,
    copy_ups: tally::CopyUps,
    /// Whether making something durable takes time.
    waits_for_disk: bool,
    changes: known::Changes,
    labels: known::Labels,
    data: io::Data,
    /// Whether nothing can be changed any more, for another mount has the branches.
    gives_way: AtomicBool,
    /// Files that are read without having been opened.
    unasked: dirs::Unasked,
    /// Tells the kernel that attributes of an inode changed on their own.
    on_stale: OnceLock<StaleHook>,
    /// Takes the content of small files before somebody reads it.
    taker: content::Taker,
}

/// Told the number of an inode of which the kernel must ask for something again.
pub struct StaleHook(Box<dyn Fn(u64, Stale) + Send + Sync>);

/// What the kernel must ask for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Attributes.
    Attributes,
    /// The content, too; what it has gathered of it is written before that call returns.
    Content,
}

impl std::fmt::Debug for StaleHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StaleHook")
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// Attributes as the kernel is told them: the topmost entry's, with the union's number and link
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The union's number.
    pub ino: u64,
    /// User and group that are shown.
    pub owner: (u32, u32),
    /// All else.
    pub stat: Stat,
    /// Whether they change by requests only, so that the kernel may remember them.
    pub lasting: bool,
}

/// An entry that is handed to the kernel.
#[derive(Debug)]
pub struct Entry {
    /// The lookup that comes with it.
    pub lookup: Ref,
    /// Its attributes.
    pub attr: Attr,
}

/// What was found under a name.
#[derive(Debug, Clone)]
struct Sight {
    resolved: Resolved,
    /// Of the topmost entry.
    stat: Option<Stat>,
    /// The real identities of all directories of the name, mixed.
    dirs: u64,
    /// Where what is below the last of them lies, if not under the name.
    redirect: Option<Redirect>,
    /// A branch on which a whiteout of the name was not looked for: there it would hide nothing.
    unmarked: Option<BranchIndex>,
    /// When it was looked at.
    moment: records::Moment,
}

/// A directory on each of its branches, top first.
type Level = SmallVec<[(BranchIndex, Arc<Dir>); 4]>;

impl Union {
    /// The branches as they were given, top first.
    pub fn branches(&self) -> &[BranchSpec] {
        &self.specs
    }

    /// The options it was opened with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether direct changes to branches are looked for.
    pub fn revalidates(&self) -> bool {
        self.options.udba == Udba::Reval
    }

    /// Sets who is told of what changed on its own. Only the first call counts.
    pub fn on_stale(&self, hook: impl Fn(u64, Stale) + Send + Sync + 'static) {
        if self.on_stale.set(StaleHook(Box::new(hook))).is_err() {
            tracing::debug!("somebody is told of stale attributes already");
        }
    }

    fn tell_stale(&self, ino: u64) {
        self.tell(ino, Stale::Attributes);
    }

    fn tell(&self, ino: u64, stale: Stale) {
        if let Some(StaleHook(hook)) = self.on_stale.get() {
            hook(ino, stale);
        }
    }

    /// The kernel gives lookups back.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes.forget(ino, lookups);
    }

    /// Begins a mount: the work areas of a volatile one are marked, so that a crash is noticed.
    ///
    /// # Errors
    /// Those of making a file.
    pub fn begin(&self) -> Result<(), Errno> {
        self.writable().filter(|_| self.options.volatile).try_for_each(|(_, work)| work.begin_volatile())
    }

    /// Ends a mount well.
    pub fn finish(&self) {
        // what was let go is the next mount's
        let held = |(_, work): &(BranchIndex, &Work)| self.options.volatile && !work.is_released();
        for (_, work) in self.writable().filter(held) {
            if let Err(errno) = work.end_volatile() {
                tracing::warn!(%errno, "marking the end of a volatile mount");
            }
        }
    }

    fn branch(&self, index: BranchIndex) -> &Branch {
        &self.branches[index.get()]
    }

    /// How a branch is read; an anonymous file in a work area has all it says in itself.
    fn form(&self, branch: Option<BranchIndex>) -> Form {
        branch.map_or_else(Form::default, |branch| self.branch(branch).root.form())
    }

    /// The work area of a branch that takes new names.
    fn work(&self, index: BranchIndex) -> Result<&Work, Errno> {
        self.branch(index).work.as_ref().ok_or(Errno::ROFS)
    }

    /// The branches that take new names, top first.
    fn writable(&self) -> impl Iterator<Item = (BranchIndex, &Work)> {
        self.writable.iter().filter_map(|index| Some((*index, self.branch(*index).work.as_ref()?)))
    }

    /// Whether a branch below one takes new names.
    fn has_writable_below(&self, branch: BranchIndex) -> bool {
        self.writable.last().is_some_and(|lowest| *lowest > branch)
    }

    /// The branches as those for a new entry in a directory.
    fn candidates(&self, dir: &Inode) -> Result<Vec<Candidate>, Errno> {
        let parent = dir.stack()?;
        let candidate = |(index, branch): (u16, &Branch)| {
            let branch_index = BranchIndex(index);
            Ok(Candidate {
                branch: branch_index,
                writable: branch.writable() && self.reaches(dir, branch_index)?,
                has_parent: parent.branches.binary_search(&branch_index).is_ok(),
            })
        };
        (0..).zip(&self.branches).map(candidate).collect()
    }

    /// The same for an entry that has names in two directories, or goes from one to the other.
    fn candidates_for_both(&self, one: &Inode, other: &Inode) -> Result<Vec<Candidate>, Errno> {
        let mut candidates = self.candidates(one)?;
        for candidate in candidates.iter_mut().filter(|candidate| candidate.writable) {
            candidate.writable = self.reaches(other, candidate.branch)?;
        }
        Ok(candidates)
    }

    /// The directory `inode` as it is on each of its branches.
    fn level(&self, inode: &Arc<Inode>) -> Result<Level, Errno> {
        let stack = inode.stack()?;
        stack.branches.iter().map(|branch| Ok((*branch, self.dir(inode, *branch)?))).collect()
    }
}

/// Checks a caller's name.
///
/// # Errors
/// EPERM for `.wh.` names, ENAMETOOLONG, EINVAL.
fn name(bytes: &[u8]) -> Result<Name<'_>, Errno> {
    Name::new(bytes).map_err(|error| match error {
        NameError::Invalid => Errno::INVAL,
        NameError::TooLong => Errno::NAMETOOLONG,
        NameError::Reserved => Errno::PERM,
    })
}
