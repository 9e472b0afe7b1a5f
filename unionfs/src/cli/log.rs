//! Where messages go: to standard error, and to the system's log once that is closed.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::Failure;

/// The environment variable that says how much is logged: off, error, warn, info, debug, trace.
const VARIABLE: &str = "RUNIONFS_LOG";

/// The system's log (syslog(3)), where there is one.
static SYSLOG: OnceLock<UnixDatagram> = OnceLock::new();

/// Logs warnings, or more when it is asked for.
pub(super) fn start(verbose: u8) -> Result<(), Failure> {
    let level = match std::env::var(VARIABLE) {
        Ok(name) => {
            name.parse().map_err(|_| format!("{VARIABLE}={name}: off, error, warn, info, debug and trace are known"))?
        }
        Err(_) => match verbose {
            0 => LevelFilter::WARN,
            1 => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        },
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(Log)
        .init();
    Ok(())
}

/// From now on messages go to the system's log. Without one they are lost, for a daemon has
/// nowhere else to say them.
pub(super) fn to_syslog() {
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect("/dev/log").map(|()| socket));
    match connected.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
        // it is called once
        Ok(socket) => drop(SYSLOG.set(socket)),
        Err(error) => tracing::debug!("no system log: {error}"),
    }
}

#[derive(Debug, Clone, Copy)]
struct Log;

/// Where one message goes.
#[derive(Debug)]
enum Line {
    Terminal(io::Stderr),
    /// Gathered here, for a message is one datagram.
    System(Vec<u8>),
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        line(Level::INFO)
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line {
        line(*about.level())
    }
}

fn line(level: Level) -> Line {
    if SYSLOG.get().is_none() {
        return Line::Terminal(io::stderr());
    }
    Line::System(format!("<{}>runionfs[{}]: ", priority(level), std::process::id()).into_bytes())
}

/// Facility `daemon` and the severity (syslog(3)).
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    3 << 3 | severity
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Line::Terminal(stderr) => stderr.write(bytes),
            Line::System(message) => message.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Line::Terminal(stderr) => stderr.flush(),
            Line::System(_) => Ok(()),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let (Line::System(message), Some(socket)) = (self, SYSLOG.get()) {
            // a log that takes no message is no reason to stop, and there is nowhere to say it
            drop(socket.send(message.trim_ascii_end()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_those_of_syslog() {
        assert_eq!((priority(Level::ERROR), priority(Level::TRACE)), (27, 31));
    }
}
