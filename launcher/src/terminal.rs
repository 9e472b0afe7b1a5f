//! A terminal of the container's own, and the proxy between it and the caller's.
//!
//! Sharing the caller's terminal lets a container push input into it (TIOCSTI, CVE-2017-5226) and breaks job control.
//! So the command gets a pty of the container's own devpts, and the parent copies bytes, as script(1) does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, read, write};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::host::StandardStreams;
use crate::message::warn;
use crate::process::signals::{Signals, ends_by_default};

/// Of a terminal that nobody looks at.
const USUAL_SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// What is typed to end the input: the default of VEOF, see termios(3).
const END_OF_INPUT: u8 = 4;

/// A new terminal: its master goes to the parent, its slave to the command.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// Opens one in the container, with the settings and the size of the caller's, if there is one on standard input.
    pub(crate) fn open() -> Result<Terminal, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let master = open("/dev/pts/ptmx", flags, Mode::empty())?;
        unlockpt(&master).map_err(errno)?;
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .map_err(errno)?;
        let caller = io::stdin();
        if isatty(&caller) {
            tcsetattr(&slave, OptionalActions::Now, &tcgetattr(&caller).map_err(errno)?).map_err(errno)?;
            tcsetwinsize(&master, tcgetwinsize(&caller).map_err(errno)?).map_err(errno)?;
        } else {
            tcsetwinsize(&master, USUAL_SIZE).map_err(errno)?;
        }
        Ok(Terminal { master, slave })
    }
}

/// Makes the slave the controlling terminal of this session, and the standard streams that are named.
pub(crate) fn take_over(slave: &OwnedFd, streams: StandardStreams) -> Result<(), Errno> {
    rustix::process::ioctl_tiocsctty(slave).map_err(errno)?;
    if streams.input {
        dup2_stdin(slave)?;
    }
    if streams.output {
        dup2_stdout(slave)?;
    }
    if streams.error {
        dup2_stderr(slave)?;
    }
    Ok(())
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Copies between the caller's terminal, which is raw meanwhile, or its streams, and the container's terminal.
///
/// It never waits: whoever does not read what is printed must not keep the launcher from anything else.
pub(crate) struct Proxy {
    /// None once what is printed has nowhere to go.
    master: Option<OwnedFd>,
    /// The settings of the caller's terminal, given back on drop; none where its input is no terminal.
    settings: Option<Termios>,
    /// Typed, but not yet taken by the container.
    typed: Vec<u8>,
    /// Printed by the container, but not yet taken by the caller.
    printed: Vec<u8>,
    /// Whether the last line that was typed has no end yet.
    line_is_open: bool,
    input_is_open: bool,
    output_is_open: bool,
}

const BUFFER: usize = 16 * 1024;
/// What a pipe takes at once when it takes anything (pipe(7), PIPE_BUF).
const PORTION: usize = 4096;

impl Proxy {
    pub(crate) fn start(master: OwnedFd) -> Result<Proxy, Errno> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let settings = if isatty(io::stdin()) { Some(make_raw()?) } else { None };
        let (typed, printed) = (Vec::new(), Vec::new());
        let (input_is_open, output_is_open) = (true, true);
        Ok(Proxy { master: Some(master), settings, typed, printed, line_is_open: false, input_is_open, output_is_open })
    }

    /// What to wait for.
    pub(crate) fn interests<'a>(&'a self, input: BorrowedFd<'a>, output: BorrowedFd<'a>) -> Vec<PollFd<'a>> {
        let mut interests = Vec::with_capacity(3);
        let Some(master) = &self.master else { return interests };
        if self.input_is_open && self.typed.len() < BUFFER {
            interests.push(PollFd::new(input, PollFlags::POLLIN));
        }
        if !self.printed.is_empty() {
            interests.push(PollFd::new(output, PollFlags::POLLOUT));
        }
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.output_is_open && self.printed.is_empty());
        events.set(PollFlags::POLLOUT, self.output_is_open && !self.typed.is_empty());
        // Not without a reason: poll(2) always tells that the other side is closed, also where nobody asked.
        if !events.is_empty() {
            interests.push(PollFd::new(master.as_fd(), events));
        }
        interests
    }

    /// Copies what can be copied without waiting. Called when standard input is `readable`, or when standard output or the
    /// container's terminal is ready for anything.
    pub(crate) fn copy(&mut self, readable: bool) -> Result<(), Errno> {
        if readable && self.input_is_open {
            self.take_input()?;
        }
        self.hand_over()?;
        self.print()
    }

    fn take_input(&mut self) -> Result<(), Errno> {
        let before = self.typed.len();
        self.input_is_open = append(io::stdin().as_fd(), &mut self.typed)?;
        if let Some(last) = self.typed.get(before..).and_then(<[u8]>::last) {
            self.line_is_open = *last != b'\n';
        }
        if !self.input_is_open && self.settings.is_none() {
            // A reader of the container's terminal has to learn that there is no more. In the middle of a line, the first
            // one only ends the line.
            let count = if self.line_is_open { 2 } else { 1 };
            self.typed.extend(std::iter::repeat_n(END_OF_INPUT, count));
        }
        Ok(())
    }

    /// Gives the container what was typed, as far as it takes it.
    fn hand_over(&mut self) -> Result<(), Errno> {
        let Some(master) = &self.master else { return Ok(()) };
        while !self.typed.is_empty() {
            match write(master, &self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // Nobody has the terminal open any more: what was typed has no reader.
                Err(Errno::EIO) => self.typed.clear(),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Prints what the container has printed, as far as it is taken.
    fn print(&mut self) -> Result<(), Errno> {
        if let Some(master) = self.master.as_ref().filter(|_| self.output_is_open && self.printed.is_empty()) {
            self.output_is_open = append(master.as_fd(), &mut self.printed)?;
        }
        while !self.printed.is_empty() && is_ready(io::stdout().as_fd(), PollFlags::POLLOUT)? {
            let portion = self.printed.get(..PORTION).unwrap_or(&self.printed);
            match write(io::stdout(), portion) {
                Ok(count) => drop(self.printed.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => self.hang_up(errno),
            }
        }
        Ok(())
    }

    /// Where what is printed has nowhere to go, the container's terminal is gone, too: the kernel tells the command by
    /// SIGHUP, and it ends as it likes.
    fn hang_up(&mut self, errno: Errno) {
        // A pipe or a terminal that was closed is no surprise.
        if !matches!(errno, Errno::EPIPE | Errno::EIO) {
            warn(format_args!("cannot print the container's output: {}; its terminal is hung up", errno.desc()));
        }
        self.master = None;
        self.typed.clear();
        self.printed.clear();
        // From here on, keys that interrupt are for this process again, which passes that on.
        self.give_back();
    }

    fn give_back(&mut self) {
        let Some(settings) = self.settings.take() else { return };
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &settings) {
            warn(format_args!("cannot give the terminal its settings back: {error}"));
        }
    }

    /// Gives the caller's terminal back for a while; whether [`Proxy::resume`] has to take it again.
    pub(crate) fn pause(&mut self) -> bool {
        let was_raw = self.settings.is_some();
        self.give_back();
        was_raw
    }

    /// Takes the caller's terminal again, as it is by now.
    pub(crate) fn resume(&mut self) -> Result<(), Errno> {
        match make_raw() {
            Ok(settings) => self.settings = Some(settings),
            // It was closed meanwhile, and SIGHUP is on its way.
            Err(Errno::EIO) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        self.resize()
    }

    /// Prints what is left, once the container has ended. One of `signals` ends the wait for whoever takes it, and is the
    /// result then.
    pub(crate) fn finish(mut self, signals: &Signals) -> Result<Option<Signal>, Errno> {
        self.input_is_open = false;
        loop {
            self.print()?;
            if self.printed.is_empty() {
                let Some(master) = self.master.as_ref().filter(|_| self.output_is_open) else { return Ok(None) };
                if !is_ready(master.as_fd(), PollFlags::POLLIN)? {
                    return Ok(None);
                }
                continue;
            }
            let output = io::stdout();
            let mut sources =
                [PollFd::new(output.as_fd(), PollFlags::POLLOUT), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut sources, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            while let Some(signal) = signals.next()? {
                if ends_by_default(signal) {
                    return Ok(Some(signal));
                }
            }
        }
    }

    /// Gives the container's terminal the size of the caller's.
    pub(crate) fn resize(&self) -> Result<(), Errno> {
        let Some(master) = self.master.as_ref().filter(|_| self.settings.is_some()) else { return Ok(()) };
        // The kernel sends SIGWINCH to the container's foreground processes.
        tcsetwinsize(master, tcgetwinsize(io::stdin()).map_err(errno)?).map_err(errno)
    }
}

/// Whether something can be done at once, or tells at once that it cannot be done any more.
fn is_ready(descriptor: BorrowedFd<'_>, what: PollFlags) -> Result<bool, Errno> {
    match poll(&mut [PollFd::new(descriptor, what)], PollTimeout::ZERO) {
        Err(Errno::EINTR) => Ok(false),
        result => Ok(result? > 0),
    }
}

/// Makes the caller's terminal raw; its settings before.
fn make_raw() -> Result<Termios, Errno> {
    let settings = tcgetattr(io::stdin()).map_err(errno)?;
    let mut raw = settings.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(errno)?;
    Ok(settings)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Appends what can be read; false at the end, which is EIO for a terminal whose other side is closed.
fn append(source: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<bool, Errno> {
    let mut chunk = [0; BUFFER];
    match read(source, &mut chunk) {
        Ok(0) | Err(Errno::EIO) => Ok(false),
        Ok(count) => {
            buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            Ok(true)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno),
    }
}
