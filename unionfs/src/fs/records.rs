//! Hard-link records while the union is in use (rule 32): names that were counted as gone are
//! checked after a crash, and nobody is told a link count of a record that is half changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Union;
use crate::branch::stat::{Kind, Stat};
use crate::branch::work::Work;
use crate::inode::{Inode, Place};
use crate::links::{self, Gone};
use crate::union::{BranchIndex, Name};

/// So often is looked again at what changes all the time.
pub(super) const LOOKS: usize = 16;

/// What is known of the records of all branches.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Those that were checked against the branches in this mount.
    checked: Mutex<HashSet<(BranchIndex, u64)>>,
    /// Changes that began, and those of them that ended.
    begun: AtomicU64,
    ended: AtomicU64,
    /// Names that came to be where they were not before: directories that were moved with what is
    /// below, and removals that failed.
    moves: AtomicU64,
    /// Whether all records were checked.
    all_checked: Mutex<bool>,
    /// Held by who flushes.
    pub(super) flushing: Mutex<()>,
}

/// A moment between changes of records, if it was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(Option<u64>);

/// A change of a record, from the first system call of it to the last: link counts that are
/// computed meanwhile mean nothing.
#[derive(Debug)]
pub(super) struct Changing<'a>(&'a Records);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Records {
    /// A change begins; it ends when the value goes.
    pub(super) fn change(&self) -> Changing<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Changing(self)
    }

    /// Begins a change when no other is under way; nothing if others go on and on.
    pub(super) fn change_alone(&self) -> Option<Changing<'_>> {
        (0..LOOKS).find_map(|_| {
            self.settle();
            let changing = self.change();
            let ended = self.ended.load(Ordering::SeqCst);
            (self.begun.load(Ordering::SeqCst) == ended + 1).then_some(changing)
        })
    }

    /// The present moment.
    pub(super) fn moment(&self) -> Moment {
        // in this order: what began after the first look is seen by the second
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        Moment((begun == ended).then_some(begun))
    }

    /// Whether no record has changed since.
    pub(super) fn are_as_in(&self, moment: Moment) -> bool {
        moment.0 == Some(self.begun.load(Ordering::SeqCst))
    }

    /// Lets those go on who are changing records: a few system calls each.
    pub(super) fn settle(&self) {
        for turn in 0..200 {
            if self.moment().0.is_some() {
                return;
            }
            if turn < 20 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(100)) }
        }
    }

    /// A name below can be seen where it was not a moment ago.
    pub(super) fn note_move(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    /// How often [`Records::note_move`] was called.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }
}

/// Whether the link count of an object has to do with records.
pub(super) fn is_linked(inode: &Inode, stat: &Stat) -> bool {
    inode.kind != Kind::Dir && (stat.nlink != 1 || matches!(inode.place(), Place::Record(_)))
}

impl Union {
    /// A name of a directory, as the records call it that lies on this branch.
    pub(super) fn gone(&self, dir: &Arc<Inode>, branch: BranchIndex, name: Name<'_>) -> Result<Gone, Errno> {
        Ok(Gone::new(self.dir(dir, branch)?.stat()?.id, name, Inode::path_of(dir, name)))
    }

    /// Takes back names of a record that are not gone after all: whoever noted them died before
    /// they went. Once for each record in a mount, before anybody changes it.
    pub(super) fn check_record(&self, branch: BranchIndex, ino: u64) -> Result<(), Errno> {
        // held until it is checked: nobody may count a name before that
        let mut checked = self.records.checked.lock();
        if checked.contains(&(branch, ino)) {
            return Ok(());
        }
        links::keep_gone(self.work(branch)?, ino, |gone| self.is_gone(branch, ino, gone))?;
        checked.insert((branch, ino));
        Ok(())
    }

    fn is_gone(&self, branch: BranchIndex, ino: u64, gone: &Gone) -> bool {
        match self.resolve_path(&gone.path) {
            Ok(Some(found)) => {
                let elsewhere = found.branch == branch || self.number(found.branch, &found.stat) != ino;
                elsewhere || !gone.is_in(found.dir)
            }
            Ok(None) => true,
            Err(errno) => {
                tracing::warn!(%errno, "checking a hard-link record");
                true
            }
        }
    }

    /// Checks all records, before a directory is moved for the first time: the paths by which they
    /// are checked lead elsewhere afterwards.
    pub(super) fn check_all_records(&self) {
        let mut all_checked = self.records.all_checked.lock();
        if std::mem::replace(&mut *all_checked, true) {
            return;
        }
        let check = |(branch, work): (BranchIndex, &Work)| -> Result<(), Errno> {
            links::numbers(work)?.into_iter().try_for_each(|number| self.check_record(branch, number))
        };
        if let Err(errno) = self.writable().try_for_each(check) {
            // link counts may be wrong after a crash, no more
            tracing::warn!(%errno, "checking the hard-link records");
        }
    }
}
