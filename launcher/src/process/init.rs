//! pid 1 of a container: passes signals on, reaps, and ends with the command.

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::signals::Signals;
use crate::failure::{OWN_FAILURE, SIGNAL_BASE};

/// What the kernel sends to one that is not pid 1 when the launcher has ended. Nobody else uses it.
const LAUNCHER_ENDED: Signal = Signal::SIGPWR;

/// Runs until the command ends. When this process then ends, the kernel kills what is left in the container.
pub(crate) fn run(command: Pid, signals: &Signals) -> u8 {
    serve(command, signals.taken())
}

/// The same without a process namespace: what is left is adopted, and killed here, also when the launcher ends.
pub(crate) fn run_and_adopt(command: Pid, signals: &Signals) -> Result<u8, Errno> {
    let mut taken = *signals.taken();
    taken.add(LAUNCHER_ENDED);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&taken), None)?;
    // Up to here the kernel would kill this process, which is alone with the command.
    set_pdeathsig(LAUNCHER_ENDED)?;
    let status = serve(command, &taken);
    super::end_children(None)?;
    Ok(status)
}

fn serve(command: Pid, taken: &SigSet) -> u8 {
    loop {
        match taken.wait() {
            Ok(LAUNCHER_ENDED) => return OWN_FAILURE,
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(command) {
                    return status;
                }
            }
            Ok(signal) => forward(signal, command),
            Err(Errno::EINTR) => {}
            Err(_) => return OWN_FAILURE,
        }
    }
}

/// Takes everybody who has ended, also orphans that the kernel has given to us; the command's exit status, if it is one
/// of them.
fn reap(command: Pid) -> Option<u8> {
    let mut status = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(ended) if ended.pid() == Some(command) => status = status.or(exit_status(ended)),
            Ok(WaitStatus::StillAlive) | Err(_) => return status,
            Ok(_) => {}
        }
    }
}

/// The command leads a process group of its own; all of it is meant, as by a terminal.
fn forward(signal: Signal, command: Pid) {
    let group = Pid::from_raw(-command.as_raw());
    // No shell of the command's session could let it go on, and to such a group the kernel sends no SIGTSTP (setpgid(2)).
    let signal = if signal == Signal::SIGTSTP { Signal::SIGSTOP } else { signal };
    // A failure is ESRCH: its group is not made yet, or it has ended just now, and SIGCHLD is on its way. Nothing else can
    // happen to a process that sends to its own child.
    let _sent = kill(group, signal).or_else(|_| kill(command, signal));
}

/// How a process ended, as shells say it; `None` when it has not.
pub(crate) fn exit_status(status: WaitStatus) -> Option<u8> {
    match status {
        // Only the low eight bits of a status reach a parent: see _exit(2).
        WaitStatus::Exited(_, code) => Some(u8::try_from(code & 0xff).unwrap_or(OWN_FAILURE)),
        WaitStatus::Signaled(_, signal, _) => Some(signal_status(signal)),
        _ => None,
    }
}

/// The status of one that a signal has ended.
pub(crate) fn signal_status(signal: Signal) -> u8 {
    SIGNAL_BASE.saturating_add(u8::try_from(signal as i32).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_shells() {
        let pid = Pid::from_raw(2);
        for (status, expected) in [
            (WaitStatus::Exited(pid, 0), Some(0)),
            (WaitStatus::Exited(pid, 255), Some(255)),
            (WaitStatus::Signaled(pid, Signal::SIGTERM, false), Some(143)),
            (WaitStatus::Signaled(pid, Signal::SIGSEGV, true), Some(139)),
            (WaitStatus::Stopped(pid, Signal::SIGSTOP), None),
            (WaitStatus::StillAlive, None),
        ] {
            assert_eq!(exit_status(status), expected, "{status:?}");
        }
    }
}
