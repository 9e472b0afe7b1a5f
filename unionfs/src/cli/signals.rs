//! Signals: the first that asks to end unmounts, the second ends at once.

use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::Failure;

/// The signals that ask the daemon to end.
fn ending() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Keeps the signals from every thread that is started from now on, until somebody [waits](watch).
pub(super) fn block() -> Result<(), Failure> {
    Ok(ending().thread_block().map_err(|error| format!("cannot block signals: {error}"))?)
}

/// What a signal has done.
pub(super) trait Ending: Send + Sync + 'static {
    /// The first signal: whether the daemon will now end by itself.
    fn ask(&self) -> bool;
    /// The process ends here and now.
    fn force(&self) -> !;
}

/// Takes the signals in a thread of its own.
pub(super) fn watch<E: Ending>(serving: Arc<E>) -> Result<(), Failure> {
    thread::Builder::new().name("signals".into()).spawn(move || {
        let signals = ending();
        for asked in 0_u32.. {
            match signals.wait() {
                Ok(signal) => tracing::info!("{signal}: ending"),
                Err(error) => tracing::error!("cannot wait for signals: {error}"),
            }
            if asked > 0 || !serving.ask() {
                serving.force();
            }
        }
    })?;
    Ok(())
}
