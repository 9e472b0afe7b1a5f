//! Durability (rule 36): fsync makes the data durable and, after a copy-up, the names that lead
//! to it.

use std::sync::Arc;

use rustix::io::Errno;

use super::{Stale, Union};
use crate::branch::kept::Kept;
use crate::inode::{Inode, Place};
use crate::union::BranchIndex;

impl Union {
    /// Whether making something durable takes time: not where nothing is on a disk.
    pub fn waits_for_disk(&self) -> bool {
        self.waits_for_disk
    }

    /// Has the kernel write what it has gathered of files that are open, and waits until it is written. syncfs(2) on a
    /// mount of FUSE makes it begin, a lot at a time, but does not wait. Of files that were closed it has none.
    ///
    /// Not for a thread that answers requests: that is how the writes come.
    pub fn collect_writes(&self) {
        for ino in self.handles.written() {
            self.tell(ino, Stale::Content);
        }
    }

    /// fsync(2) or fdatasync(2) of an open file.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self, handle: u64, data_only: bool) -> Result<(), Errno> {
        if self.options.volatile {
            return Ok(());
        }
        let open = Arc::clone(&self.handles.file(handle)?.open);
        let real = open.real();
        // a descriptor for reading will do, as sync(1) uses one; a read-only branch needs no fsync
        if real.writable || real.branch.is_some_and(|branch| self.branch(branch).in_place()) {
            if data_only {
                rustix::fs::fdatasync(&real.file)?;
            } else {
                rustix::fs::fsync(&real.file)?;
                self.sync_kept(real.branch.as_slice())?;
            }
        }
        self.sync_names(&open.inode)
    }

    /// fsync(2) of a directory: its names on every branch that is written.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync_dir(&self, ino: u64) -> Result<(), Errno> {
        let inode = self.inodes.get(ino)?;
        let Ok(stack) = inode.stack() else { return Ok(()) };
        if self.options.volatile {
            return Ok(());
        }
        for branch in stack.branches.iter().filter(|branch| self.branch(**branch).in_place()) {
            self.dir(&inode, *branch)?.sync()?;
        }
        self.sync_kept(&stack.branches)?;
        self.sync_names(&inode)
    }

    /// Waits until a copy may get its name, as far as its attributes are kept apart from it: no power
    /// cut must leave it without them.
    pub(super) fn wait_for_kept(&self, branch: BranchIndex) -> Result<(), Errno> {
        if self.options.volatile || !self.work(branch)?.is_on_disk() {
            return Ok(());
        }
        self.sync_kept(&[branch])
    }

    /// Makes the attributes durable that are kept apart from their entries.
    fn sync_kept(&self, branches: &[BranchIndex]) -> Result<(), Errno> {
        let kept = |branch: &BranchIndex| self.form(Some(*branch)).kept;
        branches.iter().filter_map(kept).try_for_each(Kept::sync)
    }

    /// Makes the directories durable that a copy-up made or wrote to, from the object upwards.
    fn sync_names(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        let mut pending = vec![Arc::clone(inode)];
        while let Some(at) = pending.pop() {
            if !at.with(|state| std::mem::take(&mut state.unsynced)) {
                continue;
            }
            let synced = self.sync_names_of(&at);
            pending.extend(synced.inspect_err(|_| at.with(|state| state.unsynced = true))?);
        }
        Ok(())
    }

    /// Makes the known names of one object durable that are written, and returns the directories
    /// that they are in.
    fn sync_names_of(&self, inode: &Arc<Inode>) -> Result<Vec<Arc<Inode>>, Errno> {
        let Some(branch) = written_to(inode) else { return Ok(Vec::new()) };
        if matches!(inode.place(), Place::Record(_)) {
            self.work(branch)?.links().sync()?;
        }
        let mut parents = Vec::new();
        for dentry in inode.with(|state| state.dentries.clone()) {
            match self.dir(&dentry.parent, branch) {
                Ok(dir) => dir.sync()?,
                // it stands below only, where nothing was written
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            }
            parents.push(dentry.parent);
        }
        Ok(parents)
    }
}

fn written_to(inode: &Inode) -> Option<BranchIndex> {
    match inode.place() {
        Place::Entry(branch) | Place::Record(branch) => Some(branch),
        Place::Stack(stack) => Some(stack.top()),
        Place::Gone(_) => None,
    }
}
