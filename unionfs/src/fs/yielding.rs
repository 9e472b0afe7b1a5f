//! Giving way: a mount that nobody can reach any more, but for those who stay in it, leaves its branches to the next
//! one. It goes on to be read, and every change in it is EROFS from then on.
//!
//! What the kernel enforces need not be looked for in each operation: the mounts that hold the branches alone become
//! read-only, which the kernel refuses while any file in them is open for writing, by a caller, by a copy-up, or by
//! itself. So there is no write that was answered and is lost.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Union;
use crate::branch::OwnMount;
use crate::branch::hold::BranchId;
use crate::branch::work::Work;

/// So long whoever writes is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a union does not give way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// Files are open for writing, or were written and are open.
    #[error("which is unmounted, but has files open that were written to: end who has them open")]
    Written,
    /// Its branches cannot be made read-only.
    #[error("which is unmounted, but in use, and cannot be made read-only: {0}")]
    CannotBeReadOnly(Errno),
}

impl Union {
    /// Whether this union holds a branch, so that no other can write it.
    pub fn holds(&self, branch: BranchId) -> bool {
        self.writable().any(|(_, work)| work.holds(branch))
    }

    /// Makes the union read-only for good, and lets its branches go.
    ///
    /// # Errors
    /// Why that cannot be; the union is as it was then.
    pub fn give_way(&self) -> Result<(), Stays> {
        let _flushing = self.records.flushing.lock();
        if self.writable().any(|(_, work)| work.is_released()) {
            return Ok(());
        }
        let mounts = self.own_mounts()?;
        self.wait_for_writers(&mounts)?;
        for (_, work) in self.writable() {
            if let Err(errno) = work.release() {
                tracing::error!(%errno, "letting go of a branch");
            }
        }
        Ok(())
    }

    fn wait_for_writers(&self, mounts: &[&OwnMount]) -> Result<(), Stays> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.become_read_only(mounts) {
                Err(Stays::Written) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                done => return done,
            }
        }
    }

    /// A file of a lower branch that is open for writing may be written to without a word to us (the kernel gathers
    /// writes), and is open for reading until that comes: handles are asked for once the branches are read-only, and
    /// none that writes is made from then on.
    fn become_read_only(&self, mounts: &[&OwnMount]) -> Result<(), Stays> {
        if self.has_writers() {
            return Err(Stays::Written);
        }
        let stopped = self.open_own_files(OFlags::RDONLY).map_err(Stays::CannotBeReadOnly);
        if let Err(stays) = stopped.and_then(|()| set_read_only(mounts)) {
            self.go_on();
            return Err(stays);
        }
        self.gives_way.store(true, Ordering::SeqCst);
        if self.has_writers() {
            self.gives_way.store(false, Ordering::SeqCst);
            set_writable(mounts);
            self.go_on();
            return Err(Stays::Written);
        }
        Ok(())
    }

    fn has_writers(&self) -> bool {
        !self.handles.written().is_empty()
    }

    /// The mounts of all branches that can be changed from here.
    fn own_mounts(&self) -> Result<Vec<&OwnMount>, Stays> {
        let changed = self.branches.iter().filter(|branch| branch.in_place());
        changed.map(|branch| branch.own_mount.as_ref().ok_or(Stays::CannotBeReadOnly(Errno::OPNOTSUPP))).collect()
    }

    /// Opens what the union itself has open in its branches anew.
    fn open_own_files(&self, access: OFlags) -> Result<(), Errno> {
        for (branch, work) in self.writable() {
            work.open_own_files(access)?;
            if let Some(kept) = self.form(Some(branch)).kept {
                kept.open_again(access)?;
            }
            if self.options.volatile {
                mark_volatile(work, access == OFlags::RDWR)?;
            }
        }
        Ok(())
    }

    /// Takes back what was done to give way.
    fn go_on(&self) {
        if let Err(errno) = self.open_own_files(OFlags::RDWR) {
            // numbers are known in this mount only then
            tracing::error!(%errno, "going on with the branches");
        }
    }
}

/// Whether a mount that never waits for the disk is under way.
fn mark_volatile(work: &Work, goes_on: bool) -> Result<(), Errno> {
    match if goes_on { work.begin_volatile() } else { work.end_volatile() } {
        Err(Errno::EXIST) => Ok(()),
        marked => marked,
    }
}

/// Makes all of them read-only, or none.
fn set_read_only(mounts: &[&OwnMount]) -> Result<(), Stays> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(errno) = mount.set_read_only(true) {
            set_writable(&mounts[..done]);
            return Err(if errno == Errno::BUSY { Stays::Written } else { Stays::CannotBeReadOnly(errno) });
        }
    }
    Ok(())
}

fn set_writable(mounts: &[&OwnMount]) {
    for mount in mounts {
        mount.set_read_only(false).unwrap_or_else(|errno| tracing::error!(%errno, "making a branch writable again"));
    }
}
