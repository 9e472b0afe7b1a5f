//! The command line of fuse-overlayfs: `[-f] [-d] [-o OPTIONS]… [SOURCE] MOUNTPOINT`, in any order.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::CommandFactory;

use super::super::{Cli, Failure};

/// What is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Help,
    Version,
    Mount(Line),
}

/// A mount as it stands on the command line.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) options: Vec<OsString>,
    pub(super) target: OsString,
    pub(super) foreground: bool,
    pub(super) debug: bool,
}

/// One word of the line, or two that belong together.
#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    Flag(&'a OsStr),
    Options(&'a OsStr),
    Place(&'a OsStr),
    /// An option of mount(8) with its value, of no meaning here.
    Ignored,
    Incomplete(&'a OsStr),
}

/// Takes the words apart.
fn words<'a>(line: &'a [OsString]) -> impl Iterator<Item = Word<'a>> {
    let mut rest = line.iter();
    let mut only_places = false;
    std::iter::from_fn(move || {
        let mut word = rest.next()?.as_os_str();
        if !only_places && word == "--" {
            only_places = true;
            word = rest.next()?.as_os_str();
        }
        let mut value =
            |then: fn(&'a OsStr) -> Word<'a>| rest.next().map_or(Word::Incomplete(word), |value| then(value));
        Some(match word.as_bytes() {
            _ if only_places => Word::Place(word),
            b"-o" => value(Word::Options),
            b"-t" => value(|_| Word::Ignored),
            [b'-', b'o', glued @ ..] => Word::Options(OsStr::from_bytes(glued)),
            [b'-', _, ..] => Word::Flag(word),
            _ => Word::Place(word),
        })
    })
}

/// What stands after each `-o`.
pub(super) fn options(line: &[OsString]) -> impl Iterator<Item = &OsStr> {
    words(line).filter_map(|word| match word {
        Word::Options(options) => Some(options),
        _ => None,
    })
}

/// Whether no subcommand is where one would stand: as the first word that is no flag.
pub(super) fn begins_without_command(line: &[OsString]) -> bool {
    let first = words(line).find_map(|word| match word {
        Word::Place(place) => Some(place),
        _ => None,
    });
    let command = Cli::command();
    first.is_none_or(|first| first != "help" && !command.get_subcommands().any(|known| first == known.get_name()))
}

/// Reads the line.
///
/// # Errors
/// Wrong usage.
pub(super) fn read(line: &[OsString]) -> Result<Asked, Failure> {
    let usage = |what: String| Err(Failure::Usage(what));
    let mut read = Line::default();
    let mut places = Vec::new();
    for word in words(line) {
        match word {
            Word::Options(options) => read.options.push(options.into()),
            Word::Place(place) => places.push(place),
            Word::Ignored => {}
            Word::Incomplete(word) => return usage(format!("{} needs a value", word.display())),
            Word::Flag(flag) => match flag.as_bytes() {
                b"-h" | b"--help" => return Ok(Asked::Help),
                b"-V" | b"--version" => return Ok(Asked::Version),
                b"-f" | b"--foreground" => read.foreground = true,
                b"-d" | b"--debug" => (read.foreground, read.debug) = (true, true),
                b"-s" | b"-n" | b"-v" | b"-w" => {}
                _ => return usage(format!("unknown argument {}", flag.display())),
            },
        }
    }
    match places[..] {
        [target] | [_, target] if !target.is_empty() => read.target = target.into(),
        [] => return usage("no mountpoint specified".into()),
        _ => return usage("a source and a mount point are expected, and no more".into()),
    }
    Ok(Asked::Mount(read))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn words_come_in_any_order() {
        for text in [
            "-o a,b -o c /m",
            "/m -oa,b -oc",
            "overlay /m -o a,b -o c -f",
            "-f -s -oa,b overlay -n -v -t fuse.x /m -o c",
            "-oa,b -o c -- overlay /m",
        ] {
            let Ok(Asked::Mount(read)) = read(&line(text)) else { panic!("{text}") };
            assert_eq!(read.options, ["a,b", "c"], "{text}");
            assert_eq!(read.target, "/m", "{text}");
            assert_eq!(read.foreground, text.contains("-f"), "{text}");
        }
        let Ok(Asked::Mount(read)) = read(&line("-d /m")) else { panic!() };
        assert!(read.debug && read.foreground);
    }

    #[test]
    fn what_makes_no_sense_is_wrong_usage() {
        for text in ["-o a", "-f", "/m -o", "a b c", "--wrong /m", "-x /m", "--"] {
            assert!(matches!(read(&line(text)), Err(Failure::Usage(_))), "{text}");
        }
        assert!(matches!(read(&line("-o a --help")), Ok(Asked::Help)));
        assert!(matches!(read(&line("-V")), Ok(Asked::Version)));
    }
}
