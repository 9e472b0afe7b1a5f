//! A terminal of the container's own, and the proxy between it and the caller's.
//!
//! Sharing the caller's terminal lets a container push input into it (TIOCSTI, CVE-2017-5226) and breaks job control.
//! So the command gets a pty of the container's own devpts, and the parent copies bytes, as script(1) does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, read, write};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::host::StandardStreams;
use crate::message::warn;

/// A new terminal: its master goes to the parent, its slave to the command.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// Opens one in the container, with the settings and the size of the caller's on standard input.
    pub(crate) fn open() -> Result<Terminal, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let master = open("/dev/pts/ptmx", flags, Mode::empty())?;
        unlockpt(&master).map_err(errno)?;
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .map_err(errno)?;
        let caller = io::stdin();
        tcsetattr(&slave, OptionalActions::Now, &tcgetattr(&caller).map_err(errno)?).map_err(errno)?;
        tcsetwinsize(&master, tcgetwinsize(&caller).map_err(errno)?).map_err(errno)?;
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

/// Copies between the caller's terminal, which is raw meanwhile, and the container's.
pub(crate) struct Proxy {
    master: OwnedFd,
    /// The caller's settings, given back on drop.
    settings: Termios,
    /// Typed, but not yet taken by the container.
    typed: Vec<u8>,
    input_is_open: bool,
    output_is_open: bool,
}

const BUFFER: usize = 16 * 1024;

impl Proxy {
    pub(crate) fn start(master: OwnedFd) -> Result<Proxy, Errno> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let settings = tcgetattr(io::stdin()).map_err(errno)?;
        let mut raw = settings.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(errno)?;
        Ok(Proxy { master, settings, typed: Vec::new(), input_is_open: true, output_is_open: true })
    }

    /// What to wait for.
    pub(crate) fn interests<'a>(&'a self, input: BorrowedFd<'a>) -> Vec<PollFd<'a>> {
        let mut interests = Vec::with_capacity(2);
        if self.input_is_open && self.typed.len() < BUFFER {
            interests.push(PollFd::new(input, PollFlags::POLLIN));
        }
        if self.output_is_open {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, !self.typed.is_empty());
            interests.push(PollFd::new(self.master.as_fd(), events));
        }
        interests
    }

    /// Copies what can be copied without waiting. Called when standard input is `readable`, or the container's
    /// terminal is ready for anything.
    pub(crate) fn copy(&mut self, readable: bool) -> Result<(), Errno> {
        if readable && self.input_is_open {
            self.input_is_open = append(io::stdin().as_fd(), &mut self.typed)?;
        }
        while !self.typed.is_empty() {
            match write(&self.master, &self.typed) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // Nobody has the terminal open any more: what was typed has no reader.
                Err(Errno::EIO) => self.typed.clear(),
                Err(errno) => return Err(errno),
            }
        }
        self.print()
    }

    fn print(&mut self) -> Result<(), Errno> {
        let mut buffer = Vec::new();
        self.output_is_open = append(self.master.as_fd(), &mut buffer)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            match write(io::stdout(), rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Prints what is left, once the container has ended.
    pub(crate) fn finish(mut self) -> Result<(), Errno> {
        while self.output_is_open {
            let before = self.master.as_fd();
            let mut poll = [PollFd::new(before, PollFlags::POLLIN)];
            if nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO)? == 0 {
                break;
            }
            self.print()?;
        }
        Ok(())
    }

    /// Gives the container's terminal the size of the caller's.
    pub(crate) fn resize(&self) -> Result<(), Errno> {
        // The kernel sends SIGWINCH to the container's foreground processes.
        tcsetwinsize(&self.master, tcgetwinsize(io::stdin()).map_err(errno)?).map_err(errno)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.settings) {
            warn(format_args!("cannot give the terminal its settings back: {error}"));
        }
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
