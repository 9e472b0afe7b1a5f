//! What is logged, in which form, and where to.
//!
//! Whoever mounts reads on standard error what there is to say until the mount serves; from then on a daemon's messages
//! go where it was told, see [`Place`]. A message that is not logged costs one comparison: nothing is put together for
//! it.

mod message;
mod sink;

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::SystemTime;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use self::message::{Message, Origin};
pub(super) use self::sink::Place;
use self::sink::Sink;
use super::Failure;

/// The environment variable that says how much is logged, for whoever gives no option.
const VARIABLE: &str = "RUNIONFS_LOG";

/// Where messages go instead of to standard error, and the mount point that they are about.
static SINK: OnceLock<(Sink, String)> = OnceLock::new();

#[derive(Debug, Clone, Default, Args)]
pub(super) struct LogArgs {
    /// Say more; twice for even more
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "level")]
    pub(super) verbose: u8,
    /// Where to say it once the mount serves: stderr (with -f), journald, syslog, or the path of a file
    #[arg(long, value_name = "WHERE", value_parser = OsStringValueParser::new().try_map(|word| place(&word)))]
    log: Option<Place>,
    /// How much to say [default: warn, or what RUNIONFS_LOG says]
    #[arg(long = "log-level", value_name = "LEVEL")]
    level: Option<LogLevel>,
    /// How to say it
    #[arg(long = "log-format", value_name = "FORMAT", default_value = "text")]
    form: Form,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a message is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    #[default]
    Text,
    Json,
}

/// A file is a path with a slash, so that a mistyped word is none.
fn place(word: &OsStr) -> Result<Place, String> {
    match word.as_bytes() {
        b"stderr" => Ok(Place::Stderr),
        b"journald" => Ok(Place::Journal),
        b"syslog" => Ok(Place::Syslog),
        path if path.contains(&b'/') => {
            std::path::absolute(PathBuf::from(word)).map(Place::File).map_err(|error| error.to_string())
        }
        _ => Err("stderr, journald and syslog are known; a file is a path with a slash (./FILE)".into()),
    }
}

impl LogArgs {
    pub(super) fn verbose(verbose: u8) -> LogArgs {
        LogArgs { verbose, ..LogArgs::default() }
    }

    pub(super) fn place(&self) -> Place {
        self.log.clone().unwrap_or_default()
    }

    fn filter(&self) -> Result<LevelFilter, Failure> {
        if let Some(level) = self.level {
            return Ok(level.into());
        }
        match std::env::var(VARIABLE) {
            Ok(name) => LogLevel::from_str(&name, true)
                .map(LevelFilter::from)
                .map_err(|_| format!("{VARIABLE}={name}: off, error, warn, info, debug and trace are known").into()),
            Err(_) => Ok(match self.verbose {
                0 => LevelFilter::WARN,
                1 => LevelFilter::INFO,
                _ => LevelFilter::DEBUG,
            }),
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

impl Form {
    fn of(self, message: &Message, origin: Origin<'_>, now: SystemTime) -> String {
        match self {
            Form::Text => message.to_text(),
            Form::Json => message.to_json(origin, now),
        }
    }
}

/// Begins to log, on standard error for now.
pub(super) fn start(args: &LogArgs) -> Result<(), Failure> {
    let log = Log { level: args.filter()?, form: args.form };
    Ok(tracing::subscriber::set_global_default(log)?)
}

/// Another place for messages, opened but not used yet.
#[derive(Debug)]
pub(super) struct Opened(Option<Sink>, String);

/// Opens the place for messages about this mount; a daemon goes on on standard error until it has
/// [turned](Opened::turn) to it.
pub(super) fn open(place: &Place, mountpoint: &std::path::Path, foreground: bool) -> Result<Opened, Failure> {
    Ok(Opened(place.open(foreground)?, mountpoint.to_string_lossy().into_owned()))
}

impl Opened {
    /// From now on messages go there.
    pub(super) fn turn(self) {
        if let Opened(Some(sink), mountpoint) = self {
            // it is done once
            SINK.get_or_init(|| (sink, mountpoint));
        }
    }
}

/// Takes the messages of the whole process. There are no spans: a message says itself what it is about.
#[derive(Debug)]
struct Log {
    level: LevelFilter,
    form: Form,
}

impl Subscriber for Log {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        about.is_event() && *about.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let message = Message::of(event);
        let pid = std::process::id();
        match SINK.get() {
            Some((sink, mountpoint)) => sink.write(&message, self.form, Origin { pid, mountpoint: Some(mountpoint) }),
            None => {
                let said = self.form.of(&message, Origin { pid, mountpoint: None }, SystemTime::now());
                // whoever closed it does not want to hear
                io::stderr().write_all((said + "\n").as_bytes()).unwrap_or_default();
            }
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_path_with_a_slash() {
        assert_eq!(place("journald".as_ref()), Ok(Place::Journal));
        assert_eq!(place("/var/log/u".as_ref()), Ok(Place::File("/var/log/u".into())));
        assert_eq!(place("./u".as_ref()), Ok(Place::File(std::env::current_dir().unwrap().join("u"))));
        assert!(place("jurnal".as_ref()).is_err());
    }
}
