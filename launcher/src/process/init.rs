//! pid 1 of a container: passes signals on, reaps, and ends with the command.

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, WaitStatus, wait, waitpid};

use super::number::SignalNumber;
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
    // The command has its own mask already. Up to here the kernel keeps real-time signals from pid 1.
    let taken = super::with_realtime(taken);
    if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&taken), None).is_err() {
        return OWN_FAILURE;
    }
    loop {
        let number = match super::wait_for_signal(&taken) {
            Ok(number) => number,
            Err(Errno::EINTR) => continue,
            Err(_) => return OWN_FAILURE,
        };
        match Signal::try_from(number) {
            Ok(LAUNCHER_ENDED) => return OWN_FAILURE,
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(command) {
                    return status;
                }
            }
            // No shell of the command's session could let it go on, and to such a group the kernel sends no SIGTSTP
            // (setpgid(2)).
            Ok(Signal::SIGTSTP) => forward(Signal::SIGSTOP.into(), command),
            _ => SignalNumber::known(number).into_iter().for_each(|signal| forward(signal, command)),
        }
    }
}

/// Takes everybody who has ended, also orphans that the kernel has given to us; the command's exit status, if it is one
/// of them.
fn reap(command: Pid) -> Option<u8> {
    let mut status = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, ended))) if pid.as_raw_nonzero().get() == command.as_raw() => {
                status = status.or(exit_status(ended));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return status,
        }
    }
}

/// The command leads a process group of its own; all of it is meant, as by a terminal.
fn forward(signal: SignalNumber, command: Pid) {
    let group = Pid::from_raw(-command.as_raw());
    // A failure is ESRCH: its group is not made yet, or it has ended just now, and SIGCHLD is on its way. Nothing else can
    // happen to a process that sends to its own child.
    let _sent = super::send(group, signal).or_else(|_| super::send(command, signal));
}

/// How a child has ended, as shells say it; `None` when it has not. Also by a signal without a name.
pub(crate) fn ended(child: Pid) -> Result<Option<u8>, Errno> {
    status_of(child, WaitOptions::NOHANG)
}

/// The same once it has ended.
pub(crate) fn ends(child: Pid) -> Result<Option<u8>, Errno> {
    loop {
        match status_of(child, WaitOptions::empty()) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn status_of(child: Pid, options: WaitOptions) -> Result<Option<u8>, Errno> {
    let found = waitpid(rustix::process::Pid::from_raw(child.as_raw()), options);
    let found = found.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    Ok(found.and_then(|(_, status)| exit_status(status)))
}

fn exit_status(status: WaitStatus) -> Option<u8> {
    as_shells_say(status.exit_status(), status.terminating_signal())
}

fn as_shells_say(code: Option<i32>, signal: Option<i32>) -> Option<u8> {
    // Only the low eight bits of a status reach a parent: see _exit(2).
    let code = code.map(|code| u8::try_from(code & 0xff).unwrap_or(OWN_FAILURE));
    code.or(signal.map(|signal| SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or_default())))
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
        for (code, signal, expected) in [
            (Some(0), None, Some(0)),
            (Some(255), None, Some(255)),
            (None, Some(Signal::SIGTERM as i32), Some(143)),
            (None, Some(Signal::SIGSEGV as i32), Some(139)),
            (None, Some(64), Some(192)),
            (None, None, None),
        ] {
            assert_eq!(as_shells_say(code, signal), expected, "{code:?} {signal:?}");
        }
    }
}
