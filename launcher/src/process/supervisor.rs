//! The parent's side of a container: it hears the child out, passes signals and bytes on, and waits for the end.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::channel::{Channel, Message};
use super::init::{ended, signal_status};
use super::signals::{Signals, ends_by_default, ends_the_launcher};
use crate::cgroup::Cgroups;
use crate::failure::{Doing as _, Failure};
use crate::message::warn;
use crate::proc_view::ProcView;
use crate::proc_view::server::Teller;
use crate::steps::Step;
use crate::terminal::Proxy;
use crate::union::Daemon;

/// How long a container may take to end once its union has.
const ENDING_MS: u16 = 10_000;

/// Who has to be looked after.
pub(crate) struct Supervisor<'a> {
    steps: &'a [Step],
    signals: &'a Signals,
    init: Pid,
    /// Open until the command runs, or has failed to.
    channel: Option<Channel>,
    daemon: Option<&'a mut Daemon>,
    proxy: Option<Proxy>,
    failure: Option<Failure>,
    /// What `/proc` is to tell the container and by which device, and who tells it.
    view: Option<(&'a ProcView, OwnedFd)>,
    teller: Option<Teller>,
    /// Those of the container, where all of it stops and goes on with the launcher.
    cgroups: Option<&'a Cgroups>,
}

/// What poll(2) has found.
#[derive(Default)]
struct Ready {
    signals: bool,
    channel: bool,
    input: bool,
    terminal: bool,
}

impl<'a> Supervisor<'a> {
    /// For the child `init`, which waits for a word on `channel`.
    pub(crate) fn new(
        steps: &'a [Step],
        signals: &'a Signals,
        init: Pid,
        channel: Channel,
        daemon: Option<&'a mut Daemon>,
    ) -> Self {
        let (proxy, failure, view, teller, cgroups) = (None, None, None, None, None);
        Supervisor { steps, signals, init, channel: Some(channel), daemon, proxy, failure, view, teller, cgroups }
    }

    /// The same for the one that looks after the whole container, and stops all of it when it is stopped itself.
    pub(crate) fn of_all(self, cgroups: &'a Cgroups) -> Self {
        Supervisor { cgroups: Some(cgroups), ..self }
    }

    /// The same for one that also has a process tell the container what it may use.
    pub(crate) fn telling(self, view: Option<(&'a ProcView, OwnedFd)>) -> Self {
        Supervisor { view, ..self }
    }

    /// Starts the child and stays until it has ended. Calls `record` at once, while the child makes the container, and
    /// `started` once the command runs. The exit status is the command's.
    pub(crate) fn run(
        mut self,
        record: impl FnOnce() -> Result<(), Failure>,
        started: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<u8, Failure> {
        self.go()?;
        let mut started = Some(started);
        let result = record().and_then(|()| self.stay(&mut started));
        if result.is_err() {
            self.kill_and_wait();
        }
        while self.channel.is_some() {
            match self.listen() {
                Ok(()) => {}
                // The first reason is the one that explains the others.
                Err(_) if result.is_err() => break,
                Err(failure) => return Err(failure),
            }
        }
        // A short command has ended before it was known to run.
        if let Some(started) = started.take_if(|_| result.is_ok() && self.failure.is_none()) {
            started()?;
        }
        let given_up = self.proxy.take().map(|proxy| proxy.finish(self.signals)).transpose();
        let given_up = given_up.doing("copy the rest of the container's output")?.flatten();
        match (self.failure.take(), given_up) {
            (Some(failure), _) => Err(failure),
            (None, Some(signal)) => result.map(|_| signal_status(signal)),
            (None, None) => result,
        }
    }

    /// Until the child has ended.
    fn stay(&mut self, started: &mut Option<impl FnOnce() -> Result<(), Failure>>) -> Result<u8, Failure> {
        loop {
            // A channel that has closed without a failure is a command that runs, or has already.
            if let Some(started) = started.take_if(|_| self.channel.is_none() && self.failure.is_none()) {
                started()?;
            }
            if let Some(status) = self.turn()? {
                return Ok(status);
            }
        }
    }

    fn go(&self) -> Result<(), Failure> {
        match &self.channel {
            // EPIPE: it has ended already, which is found out below.
            Some(channel) => match channel.send(&Message::Go) {
                Err(Errno::EPIPE) => Ok(()),
                result => result.doing("speak to the container's first process"),
            },
            None => Ok(()),
        }
    }

    /// Waits for something to happen and handles it; the exit status, once the child has ended.
    fn turn(&mut self) -> Result<Option<u8>, Failure> {
        let Some(ready) = self.wait().doing("wait for the container")? else {
            return Err(Failure::new("the union was aborted, so the container has no files any more"));
        };
        if ready.channel {
            self.listen()?;
        }
        if let Some(proxy) = self.proxy.as_mut().filter(|_| ready.input || ready.terminal) {
            proxy.copy(ready.input).doing("copy between the terminals")?;
        }
        if ready.signals {
            while let Some(signal) = self.signals.next().doing("read a signal")? {
                if let Some(status) = self.handle(signal)? {
                    return Ok(Some(status));
                }
            }
        }
        Ok(None)
    }

    /// Waits until there is something to do; `None` when the container goes on without its union.
    fn wait(&self) -> Result<Option<Ready>, Errno> {
        let is_ending = self.daemon.as_ref().is_some_and(|daemon| daemon.has_ended());
        let limit = if is_ending { PollTimeout::from(ENDING_MS) } else { PollTimeout::NONE };
        let (input, output) = (io::stdin(), io::stdout());
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        sources.extend(self.channel.as_ref().map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        sources.extend(self.proxy.iter().flat_map(|proxy| proxy.interests(input.as_fd(), output.as_fd())));
        match poll(&mut sources, limit) {
            Err(Errno::EINTR) => return Ok(Some(Ready::default())),
            Ok(0) => return Ok(None),
            result => result?,
        };
        let mut ready = Ready::default();
        let channel = self.channel.as_ref().map(|channel| channel.as_fd().as_raw_fd());
        for source in sources.iter().filter(|source| source.any().unwrap_or(true)) {
            match source.as_fd().as_raw_fd() {
                number if number == self.signals.as_fd().as_raw_fd() => ready.signals = true,
                number if Some(number) == channel => ready.channel = true,
                number if number == input.as_raw_fd() => ready.input = true,
                _ => ready.terminal = true,
            }
        }
        Ok(Some(ready))
    }

    /// Hears one message of the child.
    fn listen(&mut self) -> Result<(), Failure> {
        let Some(channel) = &self.channel else { return Ok(()) };
        match channel.receive().doing("hear the container's first process")? {
            None => self.channel = None,
            Some(Message::Mounted) => {
                if let Some(daemon) = self.daemon.as_mut() {
                    daemon.serve()?;
                }
                self.go()?;
            }
            Some(Message::Terminal(master)) => {
                self.proxy = Some(Proxy::start(master).doing("use this terminal for the container")?);
            }
            Some(Message::View) => {
                // Without a process the device closes, and the child sees that there is no answer.
                self.teller = self.view.take().and_then(|(view, device)| Teller::start(view, device));
            }
            Some(Message::Warning(number, errno)) => {
                if let Some(step) = self.steps.get(number as usize) {
                    warn(step.warning(errno));
                }
            }
            Some(Message::Failed(number, errno)) => {
                let step = self.steps.get(number as usize);
                self.failure = step.map(|step| step.failure(errno));
            }
            Some(Message::Go | Message::Opened | Message::Serving | Message::Full | Message::Refused(_)) => {
                return Err(Failure::new("the container's first process says what it cannot know"));
            }
        }
        Ok(())
    }

    fn handle(&mut self, signal: Signal) -> Result<Option<u8>, Failure> {
        match signal {
            Signal::SIGCHLD => self.reap(),
            Signal::SIGWINCH if self.proxy.is_some() => {
                self.proxy.as_ref().map_or(Ok(()), Proxy::resize).doing("resize the container's terminal")?;
                Ok(None)
            }
            Signal::SIGTSTP => self.stop(),
            _ if ends_the_launcher(signal) => {
                Err(Failure::new(format!("ended by {signal}")).with_status(signal_status(signal)))
            }
            // Nobody is there yet who could decide what the signal means, and a step may take long.
            _ if self.channel.is_some() && ends_by_default(signal) => self.send(Signal::SIGKILL),
            _ => self.send(signal),
        }
    }

    /// Stops the container, gives the terminal back, and stops this process; all of it goes on together.
    fn stop(&mut self) -> Result<Option<u8>, Failure> {
        let doing = "stop with the container";
        let is_paused = self.cgroups.is_some_and(Cgroups::is_frozen);
        let frozen = self.cgroups.filter(|cgroups| !is_paused && cgroups.freeze_killable());
        if frozen.is_none() && !is_paused {
            self.send(Signal::SIGTSTP)?;
        }
        let was_raw = self.proxy.as_mut().is_some_and(Proxy::pause);
        let later: Vec<Signal> =
            std::iter::from_fn(|| self.signals.next().transpose()).collect::<Result<_, _>>().doing(doing)?;
        // The kernel forgets that somebody has said to go on when a process is stopped anew.
        let goes_on = later.contains(&Signal::SIGCONT);
        let stopped = if goes_on { Ok(()) } else { self.signals.stop_this_process() };
        // First, because it waits where this job goes on in the background: a terminal is for the one in the foreground.
        let resumed = self.proxy.as_mut().filter(|_| was_raw).map_or(Ok(()), Proxy::resume);
        frozen.map_or(Ok(()), Cgroups::thaw)?;
        if frozen.is_none() && !is_paused {
            // Together with the one that has let this process go on, if it was stopped at all, this is one that is passed on.
            raise(Signal::SIGCONT).doing(doing)?;
        }
        stopped.and(resumed).doing(doing)?;
        for signal in later.into_iter().filter(|signal| *signal != Signal::SIGTSTP) {
            if let Some(status) = self.handle(signal)? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    fn send(&self, signal: Signal) -> Result<Option<u8>, Failure> {
        // The child is ours and not waited for, so its number is its own: this cannot fail.
        kill(self.init, signal).doing("pass a signal to the container")?;
        Ok(None)
    }

    fn reap(&mut self) -> Result<Option<u8>, Failure> {
        if let Some(teller) = &mut self.teller {
            teller.look();
        }
        if let Some(failure) = self.daemon.as_mut().and_then(|daemon| daemon.failure()) {
            return Err(failure);
        }
        ended(self.init).doing("wait for the container's first process")
    }

    fn kill_and_wait(&self) {
        // Our child cannot refuse this signal; ECHILD and ESRCH mean that it has been waited for.
        if kill(self.init, Signal::SIGKILL).is_ok() {
            while waitpid(self.init, None) == Err(Errno::EINTR) {}
        }
    }
}
