//! The FUSE transport and the adapter: the only module that knows the protocol, and the only place
//! that replies.
//!
//! Each operation is one call of [`Union`]. What may copy a file up runs in a pool with its reply,
//! everything else in the reader that received it. A panic inside one request is EIO for that
//! request; the mount lives on.
//!
//! | file | about |
//! |---|---|
//! | `abi` | messages as the kernel lays them out |
//! | `device` | the open /dev/fuse, and replies |
//! | `handshake` | what is agreed on with the kernel |
//! | `readers`, `counts` | the threads that take requests, and how many of each came |
//! | `message`, `convert`, `listing`, `ioctl` | requests taken apart, replies put together |
//! | `offer` | what the kernel offers, for those who only ask |
//! | `operations` | the operations |
//! | [`texts`] | another file system, of a few texts, on the same transport |
//! | `version` | serving a kernel as an older one |

mod abi;
mod convert;
mod counts;
mod device;
mod handshake;
mod ioctl;
mod listing;
mod message;
mod offer;
mod operations;
mod readers;
pub mod texts;
mod version;
mod walkers;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::abi::InHeader;
pub use self::counts::{BUCKETS, Counts, Operation, longest_of};
use self::device::{Answered, Device};
use self::handshake::{Agreed, MAX_WRITE, OpenDir, Wishes};
pub use self::offer::Offer;
use self::readers::Readers;
use self::version::Cap;
use self::walkers::Walkers;
use crate::backing::{Backings, take_up_set_id};
use crate::cpus;
use crate::fs::{Stale, Union};
use crate::interrupt::{self, Waiter};
use crate::pool::Pool;
use crate::sys;

/// Nothing changes behind our back: as long as the kernel can count.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// With `udba=reval`.
const REVALIDATE: Duration = Duration::from_secs(1);
/// A write request has a header and a message before its data.
const LONGEST_REQUEST: usize = MAX_WRITE as usize + 4096;
/// The kernel asks for no more at one time than it sends.
const LONGEST_ANSWER: usize = MAX_WRITE as usize;

/// A served union.
pub struct Server {
    adapter: Adapter,
    threads: usize,
    served: Served,
    features: Vec<String>,
}

/// A union between the beginning of a mount and its end.
struct Served(Arc<Union>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("features", &self.features).finish_non_exhaustive()
    }
}

impl Server {
    /// Shakes hands with the kernel over an open `/dev/fuse` that is mounted already.
    ///
    /// # Errors
    /// What reading the device answers, or that the kernel's protocol is too old.
    pub fn new(union: Arc<Union>, device: OwnedFd) -> io::Result<Server> {
        // a caller's mode is applied as it is; the umask that counts is the caller's
        rustix::process::umask(rustix::fs::Mode::empty());
        shed_limits()?;
        if let Err(errno) = sys::schedule_for(sys::Work::Answers) {
            tracing::debug!(%errno, "asking for short turns");
        }
        let device = Device::new(device)?;
        let threads = union.options().threads.unwrap_or_else(default_threads).max(1);
        let wishes = Wishes {
            revalidates: union.revalidates(),
            passthrough_depth: union.passthrough_depth(),
            writeback: union.wants_writeback(),
            no_open: union.wants_no_open(),
        };
        let cap = Cap::from_environment()?;
        let agreed = handshake::shake_hands(&device, wishes, cap)?;
        let Agreed { mut features, open_dir, passthrough, writeback, acls, no_open } = agreed;
        if passthrough {
            union.use_backings(Backings::new(device.as_fd().try_clone_to_owned()?)?);
        }
        if !acls {
            union.acls_are_ignored();
        }
        if writeback {
            union.use_writeback();
        }
        features.push(format!("threads={threads}"));
        let notified = Arc::clone(&device);
        union.on_stale(move |ino, stale| {
            let from = if stale == Stale::Content { 0 } else { -1 };
            match notified.invalidate_inode(ino, from, 0) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => tracing::debug!(%errno, "telling the kernel of a change"),
            }
        });
        let device_for_content = Arc::clone(&device);
        union.on_content(move |ino, content| {
            if let Err(errno) = device_for_content.store(ino, content) {
                tracing::debug!(%errno, "giving the kernel the content of a file");
            }
        });
        union.begin()?;
        let valid = if union.revalidates() { REVALIDATE } else { FOR_EVER };
        let counts = Arc::clone(device.counts());
        let shared = Arc::new(Shared { union: Arc::clone(&union), valid, counts });
        let (pool, waiting) = (Pool::default(), Pool::default());
        let (waiters, walkers) = (Arc::default(), Walkers::new());
        let adapter = Adapter { shared, device, pool, waiting, waiters, walkers, open_dir, no_open, cap };
        Ok(Server { adapter, threads, served: Served(union), features })
    }

    /// The features that were negotiated.
    pub fn features(&self) -> Vec<String> {
        self.features.clone()
    }

    /// The requests of the mount, also while it is served.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.adapter.shared.counts)
    }

    /// Serves until the mount is gone.
    ///
    /// # Errors
    /// What the device answers.
    pub fn run(self) -> io::Result<()> {
        let Server { adapter, threads, served, .. } = self;
        let readers = Readers::new(Arc::clone(&adapter.device), threads);
        let result = readers.run(&|request, room| adapter.serve(request, room));
        drop(served);
        result
    }
}

/// The limits of whoever mounted are not those of the users of the mount, whom the kernel has
/// checked already: a write over a file size limit or a long life must not end the daemon.
fn shed_limits() -> io::Result<()> {
    let most = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most })?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.add(Signal::SIGXCPU);
    // somebody opens a file while we ask by a lease who writes to it
    signals.add(Signal::SIGIO);
    // inherited by the threads that are started later
    signals.thread_block()?;
    Ok(())
}

/// Few of them are active at a time, but each may be stuck in a slow file system.
fn default_threads() -> usize {
    (2 * cpus::available()).clamp(4, 16)
}

/// What operations need, in whatever thread.
struct Shared {
    union: Arc<Union>,
    /// How long the kernel believes what it is told.
    valid: Duration,
    counts: Arc<Counts>,
}

struct Adapter {
    shared: Arc<Shared>,
    device: Arc<Device>,
    pool: Pool,
    /// For what waits until the kernel has sent us writes, which may need the other pool.
    waiting: Pool,
    /// Who waits for work in the pool, by request.
    waiters: Arc<Mutex<HashMap<u64, Arc<Waiter>>>>,
    walkers: Walkers,
    open_dir: OpenDir,
    /// Nobody is asked when a file is opened.
    no_open: bool,
    /// What it must not show that we can.
    cap: Cap,
}

impl Shared {
    /// One operation; a panic in it is EIO.
    fn run<T>(&self, operation: impl FnOnce(&Union) -> Result<T, Errno>) -> Result<T, Errno> {
        take_up_set_id()?;
        self.look(operation)
    }

    /// One that changes no file and makes none.
    fn look<T>(&self, operation: impl FnOnce(&Union) -> Result<T, Errno>) -> Result<T, Errno> {
        let result = catch_unwind(AssertUnwindSafe(|| operation(&self.union))).unwrap_or_else(|_| {
            tracing::error!("a request failed inside the file system; it was answered with EIO");
            Err(Errno::IO)
        });
        if matches!(result, Err(Errno::NOSPC | Errno::DQUOT)) {
            self.counts.note_full();
        }
        result
    }
}

impl Adapter {
    /// Runs here, or in the pool if it may take long.
    fn dispatch(
        &self,
        long: bool,
        ino: u64,
        head: &InHeader,
        job: impl FnOnce(&Shared) -> Answered + Send + 'static,
    ) -> Answered {
        if long { self.submit(&self.pool, ino, head, job) } else { job(&self.shared) }
    }

    /// Runs in a pool, after what came before it for the same inode.
    fn submit(
        &self,
        pool: &Pool,
        ino: u64,
        head: &InHeader,
        job: impl FnOnce(&Shared) -> Answered + Send + 'static,
    ) -> Answered {
        let (shared, waiters) = (Arc::clone(&self.shared), Arc::clone(&self.waiters));
        let (unique, waiter) = (head.unique, Waiter::new(head.pid));
        self.waiters.lock().insert(unique, Arc::clone(&waiter));
        pool.submit(ino, move || {
            drop(interrupt::work_for(waiter, || job(&shared)));
            waiters.lock().remove(&unique);
        });
        Answered::later()
    }

    fn union(&self) -> &Union {
        &self.shared.union
    }
}
