//! The adapter: the only module that knows the FUSE library, and the only place that replies.
//!
//! Each operation is one call of [`Union`]. What may copy a file up runs in a pool with its reply,
//! everything else in the event loop that received it. A panic inside one request is EIO for that
//! request; the mount lives on.

mod convert;
mod ioctl;
mod operations;

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, INodeNo, InitFlags, ReplyEntry, Session, SessionACL};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fs::{Entry, Union};
use crate::pool::Pool;
use convert::{attributes, generation, reply_errno};

/// What we would like the kernel to do, where it can.
///
/// Not FUSE_ATOMIC_O_TRUNC: with it `open(O_RDONLY | O_TRUNC)` of a running program truncates it
/// before the kernel says ETXTBSY. Without it the truncation comes as a request of its own, only
/// for a file that is there already.
const WANTED: [(InitFlags, &str); 8] = [
    (InitFlags::FUSE_PARALLEL_DIROPS, "parallel_dirops"),
    (InitFlags::FUSE_DO_READDIRPLUS, "readdirplus"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "readdirplus_auto"),
    (InitFlags::FUSE_DONT_MASK, "dont_mask"),
    (InitFlags::FUSE_POSIX_ACL, "posix_acl"),
    (InitFlags::FUSE_ASYNC_DIO, "async_dio"),
    (InitFlags::FUSE_MAX_PAGES, "max_pages"),
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "handle_killpriv_v2"),
];
/// Largest write request, in bytes.
const MAX_WRITE: u32 = 1 << 20;
/// Nothing changes behind our back: as long as the kernel can count.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// With `udba=reval`.
const REVALIDATE: Duration = Duration::from_secs(1);

/// A served union.
pub struct Server {
    session: Session<Adapter>,
    served: Served,
    features: Arc<Mutex<Vec<String>>>,
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
        let features = Arc::new(Mutex::new(Vec::new()));
        let threads = union.options().threads.unwrap_or_else(default_threads).max(1);
        let ttl = if union.revalidates() { REVALIDATE } else { FOR_EVER };
        let shared = Shared { union: Arc::clone(&union), ttl };
        let adapter = Adapter { shared: Arc::new(shared), pool: Pool::default(), features: Arc::clone(&features) };
        let mut config = Config::default();
        config.n_threads = Some(threads);
        // a loop on its own descriptor does not wake the others; it needs /dev/fuse by its path
        config.clone_fd = rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK).is_ok();
        config.acl = SessionACL::All;
        let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
        let notifier = session.notifier();
        union.on_stale(move |ino| {
            if let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0) {
                tracing::debug!(%error, "telling the kernel of changed attributes");
            }
        });
        features.lock().push(format!("threads={threads}"));
        union.begin()?;
        Ok(Server { session, served: Served(union), features })
    }

    /// The features that were negotiated.
    pub fn features(&self) -> Vec<String> {
        self.features.lock().clone()
    }

    /// Serves until the mount is gone.
    ///
    /// # Errors
    /// What the transport answers.
    pub fn run(self) -> io::Result<()> {
        let result = self.session.run();
        drop(self.served);
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
    // inherited by the threads that are started later
    signals.thread_block()?;
    Ok(())
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 16))
}

struct Shared {
    union: Arc<Union>,
    ttl: Duration,
}

struct Adapter {
    shared: Arc<Shared>,
    pool: Pool,
    features: Arc<Mutex<Vec<String>>>,
}

type Outcome<T> = Result<T, fuser::Errno>;

impl Shared {
    /// One operation; a panic in it is EIO.
    fn run<T>(&self, operation: impl FnOnce(&Union) -> Result<T, Errno>) -> Outcome<T> {
        match catch_unwind(AssertUnwindSafe(|| operation(&self.union))) {
            Ok(result) => result.map_err(reply_errno),
            Err(_) => {
                tracing::error!("a request failed inside the file system; it was answered with EIO");
                Err(fuser::Errno::EIO)
            }
        }
    }

    fn reply_entry(&self, result: Outcome<Entry>, reply: ReplyEntry) {
        match result {
            Ok(entry) => {
                let generation = generation(&entry.lookup);
                // handed over first: the kernel may forget it before this thread goes on
                entry.lookup.hand_over();
                reply.entry(&self.ttl, &attributes(&entry.attr), generation);
            }
            Err(errno) => reply.error(errno),
        }
    }
}

impl Adapter {
    /// Runs here, or in the pool if it may take long.
    fn dispatch(&self, long: bool, ino: INodeNo, job: impl FnOnce(&Shared) + Send + 'static) {
        if !long {
            return job(&self.shared);
        }
        let shared = Arc::clone(&self.shared);
        self.pool.submit(ino.0, move || job(&shared));
    }

    fn union(&self) -> &Union {
        &self.shared.union
    }
}
