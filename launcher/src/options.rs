//! The command line.
//!
//! A subcommand is one only as the first word. After any option, or after `--`, the first word that is no option is the
//! command, so every program can be run whatever its name is: `rlaunch -- run`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::ContextKind;
use clap::{CommandFactory as _, Parser, ValueEnum};

use crate::cgroup::options::LimitOptions;
use crate::completions::{self, Completions};
use crate::confine::ConfineOptions;
use crate::image::{self, Images};
use crate::lifecycle::Lifecycle;
use crate::namespace::NamespaceOptions;
use crate::network::NetworkOptions;
use crate::proc_view::Wish;
use crate::volume::VolumeOptions;

/// What the program was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start a container.
    Run(Box<Options>),
    /// Do something to containers that are there. The words that it was said with may have meant a program of that name.
    Manage(Lifecycle, Vec<OsString>),
    /// Do something to images.
    Image(Images),
    /// Teach a shell this command line.
    Completions(Completions),
}

#[derive(Debug, Parser)]
#[command(name = "rlaunch", disable_help_subcommand = true)]
struct Manage {
    #[command(subcommand)]
    what: Lifecycle,
}

/// What to do when something else was meant by words that begin with a subcommand.
pub(crate) fn hint(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    format!("to run the program of that name: rlaunch -- {}", words.join(" "))
}

/// Parses what follows the program's own name.
///
/// # Errors
/// Where it is not understood, or asks for help or the version.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let program = OsString::from("rlaunch");
    let rest = match arguments.split_first() {
        Some((first, rest)) if first == "run" => rest,
        Some((first, _)) if first == image::COMMIT => return image::parse(&arguments).map(Command::Image),
        Some((first, rest)) if first == image::WORD => return image::parse(rest).map(Command::Image),
        Some((first, rest)) if first == completions::WORD => return completions::parse(rest).map(Command::Completions),
        Some((first, _)) if is_subcommand(first) => {
            let parsed = Manage::try_parse_from([program].iter().chain(&arguments));
            return parsed.map(|manage| Command::Manage(manage.what, arguments.clone())).map_err(|error| {
                match error.use_stderr() {
                    true => {
                        Manage::command().error(error.kind(), format!("{}\n  {}", first_line(&error), hint(&arguments)))
                    }
                    false => error,
                }
            });
        }
        _ => arguments.as_slice(),
    };
    let options = Options::try_parse_from([program].iter().chain(rest)).map_err(without_wrong_advice)?;
    Ok(Command::Run(Box::new(options)))
}

/// To say `--` before what is no option, as clap advises, would make it the command.
fn without_wrong_advice(mut error: clap::Error) -> clap::Error {
    error.remove(ContextKind::Suggested);
    error
}

/// To ask clap, all subcommands have to be built, with all of their options.
fn is_subcommand(word: &OsStr) -> bool {
    !word.as_encoded_bytes().starts_with(b"-") && Manage::command().find_subcommand(word).is_some()
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Runs a command in a container: over a root directory, or in a throw-away copy of this machine.
///
/// Options end at the first word that is not one; it and all that follow are the command. The word `run` may come first.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "rlaunch", version, override_usage = "rlaunch [run] [OPTIONS] [--] COMMAND [ARGUMENT]...")]
#[command(
    after_help = "Containers that are there: rlaunch ps, exec, inspect, logs, top, stats, pause, resume, update, cp, diff, commit, stop, kill, start, wait, rm; see rlaunch ps --help. Images: rlaunch image --help. What this machine can do: rlaunch doctor. For a shell: rlaunch completions SHELL."
)]
pub struct Options {
    /// The directory that becomes `/`; without it, a throw-away copy of this machine does
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,

    /// A union of directories becomes `/`, the top one first: `top=rw:img2=ro+wh:img1=ro+wh`, as for runionfs
    #[arg(long, value_name = "BRANCHES", conflicts_with = "rootfs")]
    pub branches: Option<OsString>,

    /// An image of the store becomes `/`, by its name or id; what is written goes with the container, unless it is kept
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["rootfs", "branches", "no_submounts"])]
    pub image: Option<String>,

    /// What a copy of this machine has of other file systems than that of `/`: nothing
    #[arg(long, conflicts_with_all = ["rootfs", "branches"])]
    pub no_submounts: bool,

    /// Where a copy of this machine, or a container on an image, keeps what is written.
    #[command(flatten)]
    pub top: TopOptions,

    /// How others find the container; without it, it gets a name by chance
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<String>,

    /// Go to the background once the command runs, and print the container's name
    #[arg(short, long)]
    pub detach: bool,

    /// Forget the container, and what it has written, once it has ended; those without --name and -d always are
    #[arg(long)]
    pub rm: bool,

    /// What the root holds beside its own files.
    #[command(flatten)]
    pub volumes: VolumeOptions,

    /// Which namespaces the container has of its own.
    #[command(flatten)]
    pub namespaces: NamespaceOptions,

    /// Names and addresses.
    #[command(flatten)]
    pub network: NetworkOptions,

    /// What the command may do.
    #[command(flatten)]
    pub confine: ConfineOptions,

    /// How the command's standard streams are connected.
    #[command(flatten, next_help_heading = "Terminal")]
    pub streams: StreamOptions,

    /// What it may use of the machine.
    #[command(flatten)]
    pub limits: LimitOptions,

    /// Show the container its limits in /proc/meminfo and the like: `auto` does so where it has one on memory or CPUs, `on`
    /// always, `off` never, and `static` always but with the values of the start
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, help_heading = "Limits")]
    #[arg(default_value = "auto", default_missing_value = "on")]
    pub proc_view: Wish,

    /// The command and its arguments; an image may say what is run without
    #[arg(required_unless_present_any = ["entrypoint", "image"], trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Where a copy of this machine keeps what is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct TopOptions {
    /// Keep what is written in this directory, and go on from what it holds; without it, it is gone with the container
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rootfs", "branches"])]
    pub keep: Option<PathBuf>,

    /// Use the directory of --keep also where others can enter it, and with it run set-id programs that are kept there
    #[arg(long, requires = "keep")]
    pub force: bool,

    /// Keep what is written in memory, at most SIZE (bytes, or with k, m, g or %; a quarter of the memory without it)
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_TOP_SIZE)]
    #[arg(value_parser = size, conflicts_with_all = ["rootfs", "branches", "keep"])]
    pub tmpfs_top: Option<String>,
}

fn name(text: &str) -> Result<String, &'static str> {
    let is_name = crate::state::is_name(text);
    is_name.then(|| text.to_owned()).ok_or("letters, digits, dots, dashes and underscores are expected, 64 at most")
}

/// What `--tmpfs-top` alone means.
pub(crate) const DEFAULT_TOP_SIZE: &str = "25%";

/// A size as tmpfs takes it.
fn size(text: &str) -> Result<String, &'static str> {
    let text = text.to_ascii_lowercase();
    let number = text.strip_suffix(['k', 'm', 'g', '%']).unwrap_or(&text);
    match number.parse::<u64>() {
        Ok(1..) if !number.starts_with('+') => Ok(text),
        _ => Err("a number is expected, with k, m, g or % behind it or nothing"),
    }
}

/// How the command's standard streams are connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct StreamOptions {
    /// A terminal of the container's own: `auto` makes one where input and output are terminals, `-t` alone always
    #[arg(short, long, value_name = "WHEN", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "auto", default_missing_value = "always")]
    pub tty: When,

    /// Accepted for those who know it from elsewhere: standard input is always connected
    #[arg(short, long)]
    pub interactive: bool,
}

/// When something is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Where it fits.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::error::ErrorKind> {
        match super::parse(arguments.iter().map(OsString::from)).map_err(|error| error.kind())? {
            Command::Run(options) => Ok(*options),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn the_manual_and_readme_name_every_option() {
        let manual = include_str!("../../man/rlaunch.1").replace("\\-", "-");
        let readme = include_str!("../../README.md");
        for argument in Options::command().get_arguments().filter_map(clap::Arg::get_long) {
            for (text, name) in [(manual.as_str(), "the manual"), (readme, "README")] {
                // these are everywhere the same
                let usual = matches!(argument, "help" | "version") || (argument == "interactive" && name == "README");
                let option = format!("--{argument}");
                assert!(usual || text.contains(&option), "{name} does not name {option}");
            }
        }
    }

    #[track_caller]
    fn check(arguments: &[&str], rootfs: Option<&str>, command: &[&str]) {
        let command = command.iter().map(OsString::from).collect();
        let parsed = parse(arguments).map(|options| (options.rootfs, options.command));
        assert_eq!(parsed, Ok((rootfs.map(PathBuf::from), command)), "{arguments:?}");
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
    fn a_subcommand_is_one_only_as_the_first_word() {
        check(&["run", "sh"], None, &["sh"]);
        check(&["run", "run", "sh"], None, &["run", "sh"]);
        check(&["run", "--rootfs=/r", "--", "sh"], Some("/r"), &["sh"]);
        check(&["--", "run", "sh"], None, &["run", "sh"]);
        check(&["--rootfs=/r", "run", "sh"], Some("/r"), &["run", "sh"]);
    }

    #[test]
    fn a_subcommand_that_is_not_understood_says_how_the_program_is_run() {
        for (words, hint) in [
            (&["rm", "-rf", "x"][..], "rlaunch -- rm -rf x"),
            (&["kill"], "rlaunch -- kill"),
            (&["top", "-b"], "rlaunch -- top -b"),
        ] {
            let error = super::parse(words.iter().map(OsString::from)).unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
        }
        check(&["--", "rm", "-rf", "x"], None, &["rm", "-rf", "x"]);
    }

    #[test]
    fn a_terminal_is_asked_for_in_every_way_that_is_known_from_elsewhere() {
        for (arguments, tty, interactive) in [
            (["sh", "-t"], When::Auto, false),
            (["-t", "sh"], When::Always, false),
            (["-it", "sh"], When::Always, true),
            (["-ti", "sh"], When::Always, true),
            (["-i", "sh"], When::Auto, true),
            (["--tty", "sh"], When::Always, false),
            (["--tty=never", "sh"], When::Never, false),
            (["--tty=auto", "sh"], When::Auto, false),
        ] {
            let options = parse(&arguments).unwrap();
            assert_eq!(options.streams, StreamOptions { tty, interactive }, "{arguments:?}");
            assert_eq!(options.command[0], "sh", "{arguments:?}");
        }
    }

    #[test]
    fn sizes_are_those_of_tmpfs() {
        for (word, expected) in [
            ("--tmpfs-top", Some("25%")),
            ("--tmpfs-top=1G", Some("1g")),
            ("--tmpfs-top=4096", Some("4096")),
            ("--tmpfs-top=50%", Some("50%")),
            ("--tmpfs-top=0", None),
            ("--tmpfs-top=+1m", None),
            ("--tmpfs-top=1m,mode=777", None),
            ("--tmpfs-top=", None),
        ] {
            assert_eq!(
                parse(&[word, "sh"]).ok().map(|options| options.top.tmpfs_top.unwrap()).as_deref(),
                expected,
                "{word}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        use clap::error::ErrorKind;
        assert_eq!(parse(&[]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["run"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--tty=maybe", "sh"]), Err(ErrorKind::InvalidValue));
        assert_eq!(parse(&["--rootfs", "/r"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--rotfs", "/r", "sh"]), Err(ErrorKind::UnknownArgument));
        assert_eq!(parse(&["-x", "sh"]), Err(ErrorKind::UnknownArgument));
        assert_eq!(parse(&["--rootfs=/a", "--branches=/b", "sh"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(parse(&["--rootfs=/a", "--keep=/b", "sh"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(parse(&["--tmpfs-top", "--keep=/b", "sh"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(parse(&["--force", "sh"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--rootfs=/a", "--no-submounts", "sh"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(parse(&["--rootfs", "/a", "--rootfs", "/b", "sh"]), Err(ErrorKind::ArgumentConflict));
    }
}
