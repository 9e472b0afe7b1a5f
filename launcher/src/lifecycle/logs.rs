//! What a container in the background has printed.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use clap::Args;

use super::find;
use crate::failure::{Doing as _, Failure};
use crate::state::{self, Handle};

/// How often a log is looked at for more.
const LOOKING: Duration = Duration::from_millis(100);
/// How much of it is in memory at a time.
const PIECE: u64 = 64 << 10;

/// Which part of a log.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LogOptions {
    /// Go on as long as it runs
    #[arg(short, long)]
    follow: bool,
    /// The last N lines only
    #[arg(short = 'n', long, value_name = "N", value_parser = lines)]
    tail: Option<u64>,
    /// The container
    name: String,
}

/// A number, or `all` as with docker.
fn lines(text: &str) -> Result<u64, &'static str> {
    match text {
        "all" => Ok(u64::MAX),
        _ => text.parse().map_err(|_| "a number is expected, or all"),
    }
}

pub(super) fn run(options: &LogOptions) -> Result<u8, Failure> {
    let record = find(&options.name)?;
    let no_log = || Failure::new(format!("the container {} prints to its caller and has no log", record.name));
    let mut log = state::open_log(&record)?.ok_or_else(no_log)?;
    if let Some(lines) = options.tail {
        let start = start_of_last(&mut log, lines).doing("read the log")?;
        log.seek(SeekFrom::Start(start)).doing("read the log")?;
    }
    let launcher = record.open_launcher().doing("follow the log")?.filter(|_| options.follow);
    match print(log, launcher.as_ref()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        result => result.doing("print the log").map(|()| 0),
    }
}

/// Prints all that there is and, as long as the launcher lives, what comes.
fn print(mut log: File, launcher: Option<&Handle>) -> io::Result<()> {
    let mut output = io::stdout().lock();
    loop {
        // Asked before the log is read: what comes in between is read the next time.
        let has_ended = launcher.map_or(Ok(true), |launcher| launcher.ends(Some(LOOKING)))?;
        io::copy(&mut log, &mut output)?;
        output.flush()?;
        if has_ended {
            return Ok(());
        }
    }
}

/// Where the last so many lines begin. The log is read from its end, a piece at a time.
fn start_of_last(log: &mut File, lines: u64) -> io::Result<u64> {
    let length = log.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let (mut end, mut left) = (length, lines);
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        let mut piece = Vec::new();
        log.seek(SeekFrom::Start(start))?;
        Read::by_ref(log).take(end - start).read_to_end(&mut piece)?;
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let behind = start + index as u64 + 1;
            // The break at the end begins no line.
            left -= u64::from(behind < length);
            if left == 0 {
                return Ok(behind);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let long = "x".repeat(PIECE as usize) + "\n";
        let two_pieces = format!("one\n{long}{long}two\n");
        for (text, lines, expected) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("\n\n", 1, "\n"),
            ("", 1, ""),
            (&two_pieces, 1, "two\n"),
            (&two_pieces, 2, &format!("{long}two\n")),
            (&two_pieces, 4, &two_pieces),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let start = start_of_last(&mut file, lines).unwrap();
            assert!(text[start as usize..] == *expected, "{lines} of {} bytes begin at {start}", text.len());
        }
        assert_eq!(lines("all"), Ok(u64::MAX));
        assert!(lines("-1").is_err());
    }
}
