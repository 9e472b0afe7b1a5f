//! Files that the kernel reads and writes itself (FUSE passthrough, kernel 6.9).
//!
//! The kernel keeps a file that it was given under a number, for the mount whose device it was given
//! to. It opens it once more for each handle of the union that names that number in its answer, with
//! the credentials of the thread that gave it.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::sys;

/// What a mount needs to give files to the kernel.
#[derive(Debug)]
pub struct Backings {
    /// `/dev/fuse`, as the mount has it.
    device: OwnedFd,
    /// The capabilities of the daemon's threads.
    capabilities: CapabilitySets,
    /// The kernel takes none: it would refuse every one.
    refused: AtomicBool,
}

/// A file that the kernel has; it gives it back when this is dropped, for handles to come.
#[derive(Debug)]
pub struct Backing {
    number: i32,
    home: Arc<Backings>,
}

impl Backings {
    /// For the mount of an open `/dev/fuse`.
    ///
    /// # Errors
    /// Those of capget(2).
    pub fn new(device: OwnedFd) -> Result<Arc<Backings>, Errno> {
        Ok(Arc::new(Backings { device, capabilities: capabilities(None)?, refused: false.into() }))
    }

    /// Whether this process may give files to the kernel at all: CAP_SYS_ADMIN in the first user
    /// namespace.
    pub fn are_permitted() -> bool {
        let effective = capabilities(None).map(|sets| sets.effective);
        crate::branch::rights::in_first_namespace()
            && effective.is_ok_and(|effective| effective.contains(CapabilitySet::SYS_ADMIN))
    }

    /// Whether the kernel has refused a file for a reason that holds for all.
    pub fn are_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Gives a file to the kernel.
    ///
    /// # Errors
    /// What the kernel answers; the file is to be read and written by us then.
    pub fn open(self: &Arc<Self>, file: BorrowedFd<'_>) -> Result<Backing, Errno> {
        match self.lay_down_set_id().and_then(|()| sys::open_backing(&self.device, file)) {
            Ok(number) => Ok(Backing { number, home: Arc::clone(self) }),
            Err(errno) => {
                if matches!(errno, Errno::PERM | Errno::LOOP | Errno::NOTTY | Errno::OPNOTSUPP) {
                    self.refused.store(true, Ordering::Relaxed);
                }
                Err(errno)
            }
        }
    }

    /// Lets go of CAP_FSETID in this thread, until [`take_up_set_id`]. A file that is written with the
    /// credentials of now loses its set-id bits on its branch with every write, as it must: the
    /// kernel asks nobody whether the writer may keep them.
    fn lay_down_set_id(&self) -> Result<(), Errno> {
        if SET_ID.get() != SetId::LaidDown {
            let all = *ALL.get_or_init(|| self.capabilities);
            let mut less = all;
            less.effective.remove(CapabilitySet::FSETID);
            set_capabilities(None, less)?;
            SET_ID.set(SetId::LaidDown);
        }
        Ok(())
    }
}

/// Whether a thread has CAP_FSETID in force, as far as this process has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SetId {
    /// As the thread had it that started this one, whatever it was doing then.
    Inherited,
    InForce,
    LaidDown,
}

/// What the process had in force before any of its threads let go of CAP_FSETID.
static ALL: OnceLock<CapabilitySets> = OnceLock::new();

thread_local! {
    static SET_ID: Cell<SetId> = const { Cell::new(SetId::Inherited) };
}

/// Has CAP_FSETID in force again in this thread, if the process ever had it: before modes, owners and
/// contents of files are changed, new ones are made, or ACLs. Whoever only opens and looks does not need
/// it, and two system calls for each open are not made.
///
/// # Errors
/// Those of capset(2).
pub(crate) fn take_up_set_id() -> Result<(), Errno> {
    // nobody has laid it down
    let Some(all) = ALL.get() else { return Ok(()) };
    if SET_ID.get() != SetId::InForce {
        set_capabilities(None, *all)?;
        SET_ID.set(SetId::InForce);
    }
    Ok(())
}

impl Backing {
    /// The number by which an answer names it.
    pub fn number(&self) -> i32 {
        self.number
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        match sys::close_backing(self.home.device.as_fd(), self.number) {
            // the mount is gone, and all of them with it
            Ok(()) | Err(Errno::PERM | Errno::NOENT) => {}
            Err(errno) => tracing::warn!(%errno, "taking a file back from the kernel"),
        }
    }
}
