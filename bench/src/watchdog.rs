//! How a hung daemon cannot hang the bench.
//!
//! Whoever touches the mount of a daemon that does not answer sleeps in the kernel and cannot be killed. Aborting the
//! connection through the fusectl file system wakes it with an error.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mounted::children;

/// Where the kernel lists the connections of FUSE daemons.
pub(crate) const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Waits for the end of one step. When that takes too long, it aborts the connections given and ends the commands that
/// the bench has started meanwhile.
#[derive(Debug)]
pub(crate) struct Watchdog {
    finished: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    expired: Arc<AtomicBool>,
}

impl Watchdog {
    /// Watches what the caller does from now on until the value is dropped. `connections` are numbers below
    /// [`CONNECTIONS`].
    pub(crate) fn start(limit: Duration, connections: Vec<u64>) -> Watchdog {
        let (finished, wait) = mpsc::channel();
        let expired = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&expired);
        let spared = children();
        let thread = std::thread::spawn(move || {
            if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                mark.store(true, Ordering::Relaxed);
                connections.iter().for_each(|connection| abort(*connection));
                end_children(&spared);
            }
        });
        Watchdog { finished: Some(finished), thread: Some(thread), expired }
    }

    /// Whether the time ran out.
    pub(crate) fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.finished.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once, for the sender is gone, and has nothing to say if it panicked.
            thread.join().unwrap_or_default();
        }
    }
}

/// Ends a connection: every request, waiting or to come, fails with ENOTCONN.
pub(crate) fn abort(connection: u64) {
    // It fails when the connection has ended by itself, which is as good.
    fs::write(format!("{CONNECTIONS}/{connection}/abort"), "1").unwrap_or_default();
}

fn end_children(spared: &[Pid]) {
    for pid in children().into_iter().filter(|pid| !spared.contains(pid)) {
        // ESRCH: it has just ended.
        kill(pid, Signal::SIGKILL).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_a_command_that_hangs_is_ended() {
        let watchdog = Watchdog::start(Duration::from_secs(1000), Vec::new());
        assert!(Command::new("true").status().unwrap().success());
        assert!(!watchdog.expired());
        drop(watchdog);

        let watchdog = Watchdog::start(Duration::from_millis(50), Vec::new());
        let status = Command::new("sleep").arg("1000").status().unwrap();
        assert!(!status.success());
        assert!(watchdog.expired());
    }
}
