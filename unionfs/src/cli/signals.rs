//! Signals: the first that asks to end unmounts, the second ends at once. SIGUSR1 has the daemon tell how
//! often it was asked for what, as that of fuse-overlayfs does.
//!
//! A daemon whose name begins with `@` serves the root file system, by the convention of systemd's "Storage Daemons
//! for the Root File System": who ends all processes at shutdown spares it. Not everybody does, so it does not end
//! for any signal but SIGKILL.

use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::Failure;

/// The signals that are waited for: all but one ask the daemon to end.
fn awaited() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1].into_iter().collect()
}

/// Keeps the signals from every thread that is started from now on, until somebody [waits](watch).
pub(super) fn block() -> Result<(), Failure> {
    Ok(awaited().thread_block().map_err(|error| format!("cannot block signals: {error}"))?)
}

/// What a signal has done.
pub(super) trait Ending: Send + Sync + 'static {
    /// Tells what has been going on, if there is anything to tell.
    fn tell(&self) {}

    /// The first signal: whether the daemon will now end by itself.
    fn ask(&self) -> bool;
    /// The process ends here and now.
    fn force(&self) -> !;
}

/// Whether this process was started by a name that begins with `@`.
fn serves_the_root() -> bool {
    std::env::args_os().next().is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"))
}

/// Takes the signals in a thread of its own.
pub(super) fn watch<E: Ending>(serving: Arc<E>) -> Result<(), Failure> {
    thread::Builder::new().name("signals".into()).spawn(move || {
        let (signals, serves_the_root) = (awaited(), serves_the_root());
        let mut asked = false;
        loop {
            match signals.wait() {
                Ok(Signal::SIGUSR1) => {
                    serving.tell();
                    continue;
                }
                Ok(signal) if serves_the_root => {
                    tracing::warn!("{signal}: ignored, for the root file system is served here");
                    continue;
                }
                Ok(signal) => tracing::info!("{signal}: ending"),
                Err(error) => tracing::error!("cannot wait for signals: {error}"),
            }
            if asked || !serving.ask() {
                serving.force();
            }
            asked = true;
        }
    })?;
    Ok(())
}
