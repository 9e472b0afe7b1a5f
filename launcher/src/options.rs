//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

/// Runs a command in a container: over a root directory, or in a throw-away copy of this machine.
///
/// Options end at the first word that is not one; it and all that follow are the command.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "rlaunch", version, override_usage = "rlaunch [--rootfs DIR] [--] COMMAND [ARGUMENT]...")]
pub struct Options {
    /// The directory that becomes `/`; without it, a throw-away copy of this machine does
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::error::ErrorKind> {
        Options::try_parse_from(["rlaunch"].iter().chain(arguments)).map_err(|error| error.kind())
    }

    #[track_caller]
    fn check(arguments: &[&str], rootfs: Option<&str>, command: &[&str]) {
        let command = command.iter().map(OsString::from).collect();
        assert_eq!(parse(arguments), Ok(Options { rootfs: rootfs.map(PathBuf::from), command }), "{arguments:?}");
    }

    #[test]
    fn options_end_at_the_first_word() {
        check(&["sh"], None, &["sh"]);
        check(&["sh", "-c", "exit 7"], None, &["sh", "-c", "exit 7"]);
        check(&["--rootfs", "/r", "ls", "--rootfs", "x"], Some("/r"), &["ls", "--rootfs", "x"]);
        check(&["--rootfs=/r", "ls", "--help", "--version"], Some("/r"), &["ls", "--help", "--version"]);
        check(&["--rootfs=/r", "--", "-x"], Some("/r"), &["-x"]);
        check(&["--", "ls", "--", "x"], None, &["ls", "--", "x"]);
        check(&["echo", "--", "x"], None, &["echo", "--", "x"]);
        check(&["", "x"], None, &["", "x"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        use clap::error::ErrorKind;
        assert_eq!(parse(&[]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--rootfs", "/r"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--rotfs", "/r", "sh"]), Err(ErrorKind::UnknownArgument));
        assert_eq!(parse(&["-x", "sh"]), Err(ErrorKind::UnknownArgument));
        assert_eq!(parse(&["--rootfs", "/a", "--rootfs", "/b", "sh"]), Err(ErrorKind::ArgumentConflict));
    }
}
