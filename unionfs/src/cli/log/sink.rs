//! Where messages go.
//!
//! No write waits: a daemon that waited for the system's log would stall the union that this writes to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::message::{Message, Origin, rfc3339};
use super::{Failure, Form};

const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";
/// The kernel's log, which is there before any other.
const KERNEL: &str = "/dev/kmsg";
/// Says which device and inode the journal's stream is (systemd.exec(5)).
const STREAM: &str = "JOURNAL_STREAM";
/// A socket of the journal takes no more at once than its buffer holds.
const LONGEST: usize = 32 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// Standard error in the foreground, or the journal where that leads there; for a daemon the first of the
    /// journal, the system's log, and the kernel's.
    #[default]
    Auto,
    /// Standard error, in the foreground.
    Stderr,
    Journal,
    Syslog,
    File(PathBuf),
}

/// Where messages go that do not go to standard error.
#[derive(Debug)]
pub(super) enum Sink {
    File(File),
    System(System),
}

/// A log of the system. Who keeps it may come and go, so that it is looked for with each message.
#[derive(Debug)]
pub(super) struct System {
    socket: UnixDatagram,
    journal: bool,
    syslog: bool,
    kernel: Option<File>,
}

impl Place {
    /// Opens it, for a process that stays in the foreground, or for a daemon once it has let go of its caller.
    /// Nothing is standard error.
    pub(super) fn open(&self, foreground: bool) -> Result<Option<Sink>, Failure> {
        Ok(match self {
            Place::Stderr if foreground => None,
            Place::Stderr => return Err("a daemon has no standard error: --log stderr needs --foreground".into()),
            Place::Auto if foreground && !stderr_is_the_journal() => None,
            Place::Auto if foreground => Some(Sink::System(System::open(true, false)?)),
            Place::Auto => Some(Sink::System(System { kernel: kernel(), ..System::open(true, true)? })),
            Place::Journal => Some(Sink::System(System::open(true, false)?.reached(JOURNAL)?)),
            Place::Syslog => Some(Sink::System(System::open(false, true)?.reached(SYSLOG)?)),
            Place::File(path) => Some(Sink::File(open_file(path)?)),
        })
    }
}

/// Added to at its end, so that it may be cut off while it is used (logrotate's `copytruncate`). Of a fifo nobody is
/// waited for who reads.
fn open_file(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path);
    Ok(opened.map_err(|error| format!("cannot open the log {}: {error}", path.display()))?)
}

fn kernel() -> Option<File> {
    // root's alone, and not there in every container
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(KERNEL).ok()
}

/// Whether what is said on standard error is the journal's anyway.
fn stderr_is_the_journal() -> bool {
    let Ok(about) = rustix::fs::fstat(io::stderr().as_fd()) else { return false };
    std::env::var(STREAM).is_ok_and(|stream| stream == format!("{}:{}", about.st_dev, about.st_ino))
}

impl Sink {
    pub(super) fn write(&self, message: &Message, form: Form, origin: Origin<'_>) {
        let now = SystemTime::now();
        let said = form.of(message, origin, now);
        match self {
            Sink::File(file) => {
                let time = if form == Form::Text { rfc3339(now) + " " } else { String::new() };
                // a log that takes no message is no reason to stop, and there is nowhere to say it
                (&mut &*file).write_all(format!("{time}{said}\n").as_bytes()).unwrap_or_default();
            }
            Sink::System(system) => system.write(message, &said, origin),
        }
    }
}

impl System {
    fn open(journal: bool, syslog: bool) -> io::Result<System> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(System { socket, journal, syslog, kernel: None })
    }

    /// Whether somebody listens there.
    fn reached(self, place: &str) -> Result<System, Failure> {
        let reached = UnixDatagram::unbound().and_then(|socket| socket.connect(place));
        reached.map_err(|error| format!("cannot reach the log at {place}: {error}"))?;
        Ok(self)
    }

    fn write(&self, message: &Message, said: &str, origin: Origin<'_>) {
        let longest = (0..=LONGEST.min(said.len())).rev().find(|end| said.is_char_boundary(*end));
        let said = &said[..longest.unwrap_or_default()];
        let sent = |place, bytes: &[u8]| self.socket.send_to(bytes, place).is_ok();
        if self.journal && sent(JOURNAL, &message.to_journal(said, origin)) {
            return;
        }
        let line = message.to_syslog(said, origin);
        if self.syslog && sent(SYSLOG, line.as_bytes()) {
            return;
        }
        if let Some(kernel) = &self.kernel {
            // the last place there is
            (&mut &*kernel).write_all(line.as_bytes()).unwrap_or_default();
        }
    }
}
