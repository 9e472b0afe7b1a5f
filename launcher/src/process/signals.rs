//! Signals, taken as values instead of interrupting anything.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that are passed on to the command.
pub(crate) const FORWARDED: [Signal; 19] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGIO,
    Signal::SIGSTKFLT,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];

/// The signals that end the launcher, after it has cleaned up: those by which the kernel tells a program of its own defects,
/// and the one by which pid 1 learns that the launcher has ended.
///
/// They are taken over where they are sent; a defect ends a program also where they are blocked.
const ENDING: [Signal; 5] = [Signal::SIGILL, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGSEGV, Signal::SIGPWR];

/// Whether the launcher ends by it, and does not pass it on.
pub(crate) fn ends_the_launcher(signal: Signal) -> bool {
    ENDING.contains(&signal)
}

/// Whether one who does nothing about one of them is ended by it.
pub(crate) fn ends_by_default(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGWINCH | Signal::SIGCONT | Signal::SIGTSTP | Signal::SIGCHLD)
}

/// The signals of this process, blocked and read one by one.
///
/// A blocked signal waits, also where it would be ignored by default, and also for pid 1 (signal(7)).
pub(crate) struct Signals {
    queue: SignalFd,
    taken: SigSet,
    before: SigSet,
}

impl Signals {
    pub(crate) fn take_over() -> Result<Signals, Errno> {
        // A caller that ignores SIGCHLD would leave nobody to wait for. Rust ignores SIGPIPE, which every program
        // inherits through exec; what we write ourselves is told EPIPE or, with the default, ends us as any other.
        super::reset_signal(Signal::SIGCHLD)?;
        let taken: SigSet = FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect();
        let all: SigSet = taken.iter().chain(ENDING).collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), Some(&mut before))?;
        let queue = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { queue, taken, before })
    }

    /// The next signal that has arrived, if there is one.
    pub(crate) fn next(&self) -> Result<Option<Signal>, Errno> {
        let Some(information) = self.queue.read_signal()? else { return Ok(None) };
        let number = i32::try_from(information.ssi_signo).map_err(|_| Errno::EINVAL)?;
        Signal::try_from(number).map(Some)
    }

    /// Those that pid 1 has to do with. To wait for one of them needs no descriptor.
    pub(crate) fn taken(&self) -> &SigSet {
        &self.taken
    }

    /// Does what SIGTSTP does to a program that knows nothing of it: returns once this process goes on, or at once where the
    /// caller ignores the signal or nobody is there who could let it go on (an orphaned process group).
    pub(crate) fn stop_this_process(&self) -> Result<(), Errno> {
        let stop: SigSet = [Signal::SIGTSTP].into_iter().collect();
        raise(Signal::SIGTSTP)?;
        stop.thread_unblock()?;
        stop.thread_block()
    }

    /// Gives a process that is about to run another program what that program expects.
    pub(crate) fn give_back(&self) -> Result<(), Errno> {
        super::reset_signal(Signal::SIGPIPE)?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}
