//! Reaching an object by one of its names, and never another one that stands there by now.
//!
//! A name may be changing in this moment, or somebody may have changed the branch directly. So
//! what is found under a name is compared with what the inode is known to be.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use smallvec::SmallVec;

use super::Union;
use crate::branch::at::At;
use crate::branch::dir::Dir;
use crate::branch::form::Form;
use crate::branch::stat::{RealId, Stat};
use crate::handle::Real;
use crate::inode::{Dentry, Inode, Place, ROOT};
use crate::links;
use crate::union::BranchIndex;

/// How long a name is waited for that is changing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the attributes of an inode are.
#[derive(Debug)]
pub(super) enum Where {
    /// Under a name of a directory; without a name, those of the directory itself.
    Named(Arc<Dir>, Component),
    /// In a file that is open.
    Open(Arc<Real>),
    /// In something that is held.
    Held(OwnedFd, Form),
    /// In something that lost its last name, and is held for others, too.
    Lost(Arc<OwnedFd>, Form),
}

/// A name as it stands in a branch, most often without an allocation.
pub(super) type Component = SmallVec<[u8; 32]>;

/// Renames that are under way: between the disk and what is known of it, a name leads to another
/// object.
#[derive(Debug, Default)]
pub(super) struct Renames {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A rename, until its value goes.
#[derive(Debug)]
pub(super) struct Renaming<'a>(&'a Renames);

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Renames {
    /// A rename begins.
    pub(super) fn begin(&self) -> Renaming<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Renaming(self)
    }

    /// How many there were, if none is under way.
    fn moment(&self) -> Option<u64> {
        // in this order: what began after the first look is seen by the second
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }
}

impl Where {
    pub(super) fn at(&self) -> At<'_> {
        match self {
            Where::Named(dir, name) => dir.at(name),
            Where::Open(real) => real.at(),
            Where::Held(held, form) => At::open(held.as_fd(), *form),
            Where::Lost(held, form) => At::open(held.as_fd(), *form),
        }
    }
}

impl Union {
    /// Does something by a name of an inode. `act` says nothing if what it finds under the name
    /// is something else; then the next name is tried, and the wrong one forgotten.
    ///
    /// # Errors
    /// ESTALE if no name leads to the object, and what `act` answers.
    pub(super) fn by_name<T>(
        &self,
        inode: &Arc<Inode>,
        mut act: impl FnMut(&Arc<Dir>, &[u8]) -> Result<Option<T>, Errno>,
    ) -> Result<T, Errno> {
        loop {
            let branch = match inode.place() {
                Place::Record(branch) => match act(self.work(branch)?.links(), &links::link_name(inode.ino)) {
                    // flushed in this moment, since when it is an entry like others
                    Err(Errno::NOENT) => {
                        leave_record(inode, branch, None);
                        continue;
                    }
                    done => return done?.ok_or(Errno::STALE),
                },
                Place::Gone(_) => return Err(Errno::STALE),
                Place::Entry(branch) => branch,
                Place::Stack(stack) if inode.ino == ROOT => {
                    return act(&self.dir(inode, stack.top())?, b"")?.ok_or(Errno::STALE);
                }
                Place::Stack(stack) => stack.top(),
            };
            let dentry = inode.dentry().ok_or(Errno::STALE)?;
            if let Some(done) = self.try_name(&dentry, branch, &mut act)? {
                return Ok(done);
            }
            // who changes the name holds the names of its directory
            let Some(_names) = dentry.parent.names.try_read_for(PATIENCE) else { return Err(Errno::STALE) };
            if !still_named(inode, &dentry, branch) {
                continue;
            }
            if let Some(done) = self.try_name(&dentry, branch, &mut act)? {
                return Ok(done);
            }
            // somebody changed the branch directly
            drop(inode.remove_name(&dentry.parent, dentry.name.as_name()));
        }
    }

    fn try_name<T>(
        &self,
        dentry: &Dentry,
        branch: BranchIndex,
        act: &mut impl FnMut(&Arc<Dir>, &[u8]) -> Result<Option<T>, Errno>,
    ) -> Result<Option<T>, Errno> {
        let done = self.dir(&dentry.parent, branch).and_then(|dir| act(&dir, dentry.name.as_bytes()));
        match done {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => Ok(None),
            done => done,
        }
    }

    /// The attributes of an object, by name.
    pub(super) fn stat_by_name(&self, inode: &Arc<Inode>) -> Result<Stat, Errno> {
        self.by_name(inode, |dir, name| Ok(ours(inode, dir.at(name).stat()?)))
    }

    /// Where the attributes of an inode are, for reading them.
    ///
    /// # Errors
    /// ESTALE if the kernel should look its name up again.
    pub(super) fn whereabouts(&self, inode: &Arc<Inode>) -> Result<Where, Errno> {
        match inode.place() {
            Place::Gone(_) => return self.without_name(inode),
            // that name goes when the record is flushed
            Place::Record(_) => return self.hold_to_change(inode),
            Place::Entry(_) | Place::Stack(_) => {}
        }
        let checks = self.revalidates();
        self.by_name(inode, |dir, name| {
            if checks && ours(inode, dir.at(name).stat()?).is_none() {
                return Ok(None);
            }
            Ok(Some(Where::Named(Arc::clone(dir), Component::from_slice(name))))
        })
    }

    /// Reads something of an inode: by its name, and if names were changing meanwhile, once more of
    /// the object itself.
    ///
    /// # Errors
    /// ESTALE if the kernel should look its name up again, and what `read` answers.
    pub(super) fn read_of<T>(&self, inode: &Arc<Inode>, read: impl Fn(At<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
        let before = self.renames.moment();
        let seen = self.whereabouts(inode).and_then(|place| read(place.at()));
        if before.is_some() && self.renames.moment() == before {
            return seen;
        }
        read(self.hold_to_change(inode)?.at())
    }

    /// Where the attributes of an inode are, for changing them: held, so that it is the object
    /// that was looked up and no other.
    ///
    /// # Errors
    /// ESTALE if the kernel should look its name up again.
    pub(super) fn hold_to_change(&self, inode: &Arc<Inode>) -> Result<Where, Errno> {
        let place = inode.place();
        if matches!(place, Place::Gone(_)) {
            return self.without_name(inode);
        }
        if let Some(open) = self.held_already(inode, &place)? {
            return Ok(open);
        }
        let held = self.by_name(inode, |dir, name| {
            let held = if name.is_empty() { dir.hold(b".")? } else { dir.hold(name)? };
            Ok(ours(inode, Stat::of_file(&held)?).map(|_| (held, dir.form())))
        });
        match held {
            // it lost its last name in this moment
            Err(Errno::STALE) => self.without_name(inode),
            held => held.map(|(held, form)| Where::Held(held, form)),
        }
    }

    /// What is open of an object anyway: the file that handles share, but for one that a copy-up is
    /// about to switch, or the directory that is kept open.
    fn held_already(&self, inode: &Arc<Inode>, place: &Place) -> Result<Option<Where>, Errno> {
        match place {
            Place::Entry(branch) | Place::Record(branch) => {
                let real = inode.open_file().map(|open| open.real());
                Ok(real.filter(|real| real.branch == Some(*branch)).map(Where::Open))
            }
            // if it cannot be opened, that is found out by its name
            Place::Stack(stack) => match self.dir(inode, stack.top()) {
                Ok(dir) => Ok(ours(inode, dir.stat()?).map(|_| Where::Named(dir, Component::new()))),
                Err(_) => Ok(None),
            },
            Place::Gone(_) => Ok(None),
        }
    }

    fn without_name(&self, inode: &Inode) -> Result<Where, Errno> {
        match inode.open_file() {
            Some(open) => Ok(Where::Open(open.real())),
            None => {
                let (held, branch) = self.held.get(inode.ino).ok_or(Errno::STALE)?;
                Ok(Where::Lost(held, self.form(Some(branch))))
            }
        }
    }

    /// The directory and name by which an object that is not a directory is reached.
    pub(super) fn real_name(&self, inode: &Arc<Inode>) -> Result<(Arc<Dir>, Component), Errno> {
        self.by_name(inode, |dir, name| {
            let found = ours(inode, dir.at(name).stat()?);
            Ok(found.map(|_| (Arc::clone(dir), Component::from_slice(name))))
        })
    }
}

/// The attributes, if they are those of the inode's object.
fn ours(inode: &Inode, stat: Stat) -> Option<Stat> {
    is_ours(inode, stat.id).then_some(stat)
}

/// Whether a real identity is that of the inode's topmost entry.
pub(super) fn is_ours(inode: &Inode, id: RealId) -> bool {
    inode.with(|state| state.real) == id
}

/// The object of a record that was flushed is an entry like others; without a known name it is
/// one that has none.
pub(super) fn leave_record(inode: &Inode, branch: BranchIndex, stat: Option<Stat>) {
    inode.with(|state| {
        if !matches!(state.place, Place::Record(at) if at == branch) {
            return;
        }
        state.place = match stat.filter(|_| state.dentries.is_empty()) {
            Some(stat) => Place::Gone(Box::new(stat)),
            None => Place::Entry(branch),
        };
    });
}

fn still_named(inode: &Inode, dentry: &Dentry, branch: BranchIndex) -> bool {
    let here = match inode.place() {
        Place::Entry(at) => at == branch,
        Place::Stack(stack) => stack.top() == branch,
        Place::Record(_) | Place::Gone(_) => false,
    };
    here && inode.dentry().is_some_and(|d| Arc::ptr_eq(&d.parent, &dentry.parent) && d.name == dentry.name)
}
