//! Long work whose caller may be killed meanwhile: nobody waits for it any more, and it had better
//! end than go on for minutes, with the caller stuck in it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::proc;

/// SIGKILL in the signal sets of proc_pid_status(5). Every signal that ends a process makes this one
/// pending in its threads.
const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);

/// Somebody who waits for long work.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// The thread, 0 if it is in a pid namespace that we do not see.
    pid: u32,
    /// A signal came for it.
    signalled: AtomicBool,
}

thread_local! {
    static WAITER: RefCell<Option<Arc<Waiter>>> = const { RefCell::new(None) };
}

impl Waiter {
    pub(crate) fn new(pid: u32) -> Arc<Waiter> {
        Arc::new(Waiter { pid, signalled: AtomicBool::new(false) })
    }

    /// A signal came: from now on it is looked whether it ends the waiter.
    pub(crate) fn signal(&self) {
        self.signalled.store(true, Ordering::Relaxed);
    }

    fn is_dying(&self) -> bool {
        self.pid != 0 && self.signalled.load(Ordering::Relaxed) && is_killed(self.pid)
    }
}

fn is_killed(pid: u32) -> bool {
    std::fs::read_to_string(proc::path(&format!("{pid}/status"))).is_ok_and(|status| says_killed(&status))
}

fn says_killed(status: &str) -> bool {
    let set = |line: &str| {
        let bits = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(bits.trim(), 16).ok()
    };
    status.lines().filter_map(set).any(|set| set & SIGKILL != 0)
}

/// Does long work for somebody.
pub(crate) fn work_for<T>(waiter: Arc<Waiter>, work: impl FnOnce() -> T) -> T {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            WAITER.set(None);
        }
    }
    WAITER.set(Some(waiter));
    let _over = Over;
    work()
}

/// Asked by long work now and then.
///
/// # Errors
/// EINTR if its caller is being killed.
pub(crate) fn check() -> Result<(), Errno> {
    let dying = WAITER.with_borrow(|waiter| waiter.as_ref().is_some_and(|waiter| waiter.is_dying()));
    if dying { Err(Errno::INTR) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_ends_nobody_ends_no_work() {
        let waiter = Waiter::new(std::process::id());
        work_for(Arc::clone(&waiter), || {
            assert_eq!(check(), Ok(()));
            waiter.signal();
            assert_eq!(check(), Ok(()));
        });
        assert!(says_killed("Name:\tcp\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(says_killed("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n"));
        assert!(!says_killed("SigPnd:\t0000000000004002\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000100\n"));
    }
}
