//! The way from a container's own network to the machine's: pasta(1), which carries what it sends and gets through sockets
//! of an ordinary process, so that neither privileges nor a bridge are needed.
//!
//! pasta goes to the background when it is ready, and nobody's end is its own then. So it runs in a process namespace of
//! which a helper of ours is the first process: the helper ends with the launcher, and the kernel ends pasta with the helper.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};

use super::publish::{Protocol, Published};
use crate::confine::restrict_helper;
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::message::warn;
use crate::process::channel::{Channel, Message};
use crate::process::signals::Signals;
use crate::process::{clone_into, close_descriptors_but, wait_for};

/// Who answers for names in the container's network, in place of a server that listens on the host's loopback interface.
///
/// Link-local, so that it stands for no other machine; podman has the same.
pub(super) const NAME_SERVER: &str = "169.254.1.1";

const STARTING: &str = "start pasta for the container's network";
/// How long it may take to get ready, which is a matter of milliseconds.
const PATIENCE_MS: u16 = 10_000;
/// What `ps` shows of the helper; the kernel keeps 15 bytes.
const NAME: &std::ffi::CStr = c"rlaunch: pasta";

/// A pasta that runs; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Pasta {
    helper: Pid,
}

impl Pasta {
    /// Connects a network namespace, and returns once it is.
    pub(crate) fn start(network: OwnedFd, published: &[Published], signals: &Signals) -> Result<Pasta, Failure> {
        let (ours, theirs) = Channel::pair().doing(STARTING)?;
        let mut ours = Some(ours);
        // The helper works on its own copy of this memory: what it drops closes only its own descriptors.
        let helper = clone_into(CloneFlags::CLONE_NEWPID, None, || {
            drop(ours.take());
            help(&theirs, network, published, signals)
        })
        .doing(STARTING)?;
        let pasta = Pasta { helper: helper.pid };
        drop(theirs);
        let Some(channel) = ours else { return Ok(pasta) };
        channel.send(&Message::Go).doing(STARTING)?;
        let mut source = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        // Signals are blocked, so there is nothing that interrupts this.
        if poll(&mut source, PollTimeout::from(PATIENCE_MS)).doing(STARTING)? == 0 {
            return Err(Failure::because(STARTING, "it does not get ready"));
        }
        match channel.receive().doing(STARTING)? {
            Some(Message::Serving) => Ok(pasta),
            Some(Message::Refused(why)) => Err(Failure::new(why)),
            _ => Err(Failure::because(STARTING, "its helper has ended")),
        }
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        // It is not waited for until here, so its number is its own, and it cannot refuse: this cannot fail.
        if let Err(errno) = kill(self.helper, Signal::SIGKILL).and_then(|()| wait_for(self.helper)) {
            warn(format_args!("cannot end pasta: {}", errno.desc()));
        }
    }
}

/// The helper: starts pasta, and stays for as long as that is there.
fn help(channel: &Channel, network: OwnedFd, published: &[Published], signals: &Signals) -> u8 {
    // A launcher that ends before the first line closes the channel, one that ends later kills us.
    if set_pdeathsig(Signal::SIGKILL).is_err() || !matches!(channel.receive(), Ok(Some(Message::Go))) {
        return OWN_FAILURE;
    }
    let answer = match prepare(channel, &network, signals).and_then(|()| run(network, published)) {
        Ok(()) => Message::Serving,
        Err(failure) => Message::Refused(failure.to_string()),
    };
    // A launcher that cannot be told has ended, and this process with it.
    if channel.send(&answer).is_err() || !matches!(answer, Message::Serving) {
        return OWN_FAILURE;
    }
    // pasta, which has left its parent, is the only one here.
    while waitpid(None, None) != Err(Errno::ECHILD) {}
    warn("pasta has ended, so the container has no network any more");
    0
}

/// Keeps nothing of the launcher's, and nobody's signals.
fn prepare(channel: &Channel, network: &OwnedFd, signals: &Signals) -> Result<(), Failure> {
    let prepared = setsid()
        .and_then(|_| set_name(NAME))
        .and_then(|()| restrict_helper())
        .and_then(|()| signals.give_back())
        .and_then(|()| close_descriptors_but(&[channel.as_fd(), network.as_fd()]));
    prepared.doing(STARTING)
}

/// Returns once it is ready: pasta goes to the background then.
fn run(network: OwnedFd, published: &[Published]) -> Result<(), Failure> {
    let mut command = Command::new("pasta");
    // It is given the namespace as standard input, the one descriptor that it leaves open. The namespace's path in /proc
    // takes rights that it drops before it looks there.
    command.args(arguments(published)).stdin(network).stdout(Stdio::null()).stderr(Stdio::piped());
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(explain(&output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let failure = Failure::because(STARTING, "it is not installed");
            Err(failure.remedy("it is in Debian's package passt; --net host and --net none need nothing"))
        }
        Err(error) => Err(error).doing(STARTING),
    }
}

/// Nothing is open in either direction but what was asked for; by default pasta opens each port on which anybody listens,
/// and makes a gateway of the machine's own loopback interface.
fn arguments(published: &[Published]) -> Vec<String> {
    let words = "--quiet --config-net --no-map-gw --tcp-ns none --udp-ns none --no-netns-quit --netns /proc/self/fd/0";
    let mut arguments: Vec<String> = words.split(' ').map(str::to_owned).collect();
    // Another user could not enter the namespace. It keeps two capabilities, in an empty root and behind a filter.
    arguments.extend(["--runas", "0", "--dns-forward", NAME_SERVER].map(str::to_owned));
    for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let ports: Vec<String> =
            published.iter().filter(|one| one.protocol == protocol).map(ToString::to_string).collect();
        let ports = if ports.is_empty() { vec!["none".to_owned()] } else { ports };
        arguments.extend(ports.into_iter().flat_map(|ports| [option.to_owned(), ports]));
    }
    arguments
}

/// What pasta has complained about, at last. It also tells what it cannot log.
fn explain(output: &Output) -> Failure {
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("to syslog"));
    let why = lines.next_back().map_or_else(|| output.status.to_string(), ToOwned::to_owned);
    let failure = Failure::because(STARTING, format_args!("pasta: {why}"));
    if why.contains("interface not usable") {
        return failure.remedy("it uses the interface of the default route, and this machine has none");
    }
    if why.contains("bind any port") {
        return failure.remedy("the port is in use, or needs privileges");
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_open_but_what_is_published() {
        let text = arguments(&[]).join(" ");
        for closed in ["--tcp-ports none", "--udp-ports none", "--tcp-ns none", "--udp-ns none", "--no-map-gw"] {
            assert!(text.contains(closed), "{closed}: {text}");
        }
        let published = ["8080:80", "127.0.0.1:53:5353/udp", "9000-9001"].map(|text| text.parse().unwrap());
        let text = arguments(&published).join(" ");
        assert!(text.contains("--tcp-ports 8080:80 --tcp-ports 9000-9001:9000-9001 --udp-ports 127.0.0.1/53:5353"));
    }

    #[test]
    fn the_last_complaint_is_the_reason() {
        let explained = |text: &str| {
            let status = std::os::unix::process::ExitStatusExt::from_raw(0x100);
            explain(&Output { status, stdout: Vec::new(), stderr: text.as_bytes().to_vec() }).to_string()
        };
        let text = explained("No IPv6\nExternal interface not usable\nFailed to send 9 bytes to syslog\n");
        assert!(text.contains("network: pasta: External interface not usable (it uses"), "{text}");
        assert!(explained("").contains("exit status: 1"));
    }
}
