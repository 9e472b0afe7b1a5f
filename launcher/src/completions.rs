//! `rlaunch completions`: the whole command line as one tree, which is otherwise taken apart by its first word, so that a
//! start does not have to know all of it.

use std::ffi::OsString;
use std::io::Write as _;

use clap::{Args, Command, CommandFactory as _, Parser, Subcommand as _};
use unionfs::completions::{Names, Shell, script};

use crate::failure::{Doing as _, Failure};
use crate::image::{self, CommitOptions, Images};
use crate::lifecycle::Lifecycle;
use crate::options::Options;

/// The first word that means this.
pub(crate) const WORD: &str = "completions";

const CONTAINERS: Names = Names { help: "The container", list: r#"rlaunch ps | awk "NR > 1 { print \$1 }""# };
const IMAGES: Names = Names { help: "The image", list: r#"rlaunch image ls | awk "NR > 1 { print \$1 }""# };

/// Which shell is to be taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Parser)]
#[command(name = "rlaunch completions", bin_name = "rlaunch completions", about = ABOUT)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

const ABOUT: &str = "Write the script that teaches a shell this command line";

/// Reads the words behind `completions`.
///
/// # Errors
/// Where they are not understood, or ask for help.
pub(crate) fn parse(words: &[OsString]) -> Result<Completions, clap::Error> {
    Completions::try_parse_from([OsString::from("rlaunch completions")].iter().chain(words))
}

/// Does it; the exit status.
pub(crate) fn run(what: Completions) -> Result<u8, Failure> {
    let text = script(what.shell, whole(), &[CONTAINERS, IMAGES]);
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        other => other.doing("print").map(|()| 0),
    }
}

/// Every command and option.
pub(crate) fn whole() -> Command {
    let images = Images::augment_subcommands(Command::new(image::WORD).about("Do something to images"));
    let commit = CommitOptions::augment_args(Command::new(image::COMMIT).about("Make an image of a container"));
    let run = Options::command().name("run").about("Start a container").version(None);
    let completions = Completions::command().name(WORD).bin_name(WORD);
    Lifecycle::augment_subcommands(Options::command())
        .subcommands([run, commit, images, completions])
        .disable_help_subcommand(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_is_taught_every_command_and_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, whole(), &[CONTAINERS, IMAGES]);
            let mut waiting = vec![whole()];
            while let Some(command) = waiting.pop() {
                waiting.extend(command.get_subcommands().cloned());
                let options = command.get_opts().filter(|option| !option.is_hide_set());
                let words = options.filter_map(|option| option.get_long()).chain([command.get_name()]);
                for word in words {
                    assert!(script.contains(word), "{shell:?} is not taught {word} of {}", command.get_name());
                }
            }
        }
    }
}
