//! Passwords: from a terminal that does not show them, or from standard input.

use std::io::{self, BufRead as _, Read as _, Write as _};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

use crate::failure::{Doing as _, Failure, SIGNAL_BASE};
use crate::message::warn;

const DOING: &str = "read the password";
const LONGEST: u64 = 64 * 1024;
/// What Ctrl-C types.
const INTERRUPT: u8 = 3;

/// The terminal as it was, put back in the end.
struct Silent {
    terminal: std::fs::File,
    before: Termios,
}

impl Drop for Silent {
    fn drop(&mut self) {
        match tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before) {
            // A terminal that is gone shows nothing any more.
            Ok(()) | Err(Errno::EIO) => {}
            Err(errno) => warn(format_args!("cannot make the terminal show what is typed: {}", errno.desc())),
        }
    }
}

/// Asks whoever sits at the terminal.
pub(super) fn ask(prompt: &str) -> Result<String, Failure> {
    let terminal = terminal()?;
    let before = tcgetattr(&terminal).doing(DOING)?;
    let mut silent = before.clone();
    // Ctrl-C ends the line and not this program, which would leave the terminal like that.
    silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
    silent.control_chars[SpecialCharacterIndices::VEOL as usize] = INTERRUPT;
    tcsetattr(&terminal, SetArg::TCSANOW, &silent).doing(DOING)?;
    let silent = Silent { terminal, before };
    let answer = line(&silent.terminal, prompt).doing(DOING)?;
    match answer.contains(char::from(INTERRUPT)) {
        true => Err(Failure::because(DOING, "it was interrupted").with_status(SIGNAL_BASE + Signal::SIGINT as u8)),
        false => Ok(answer),
    }
}

/// Asks for what may be shown.
pub(super) fn ask_openly(prompt: &str) -> Result<String, Failure> {
    line(&terminal()?, prompt).doing("read the name")
}

fn terminal() -> Result<std::fs::File, Failure> {
    let terminal = std::fs::File::options().read(true).write(true).open("/dev/tty");
    terminal.map_err(|_| {
        Failure::because(DOING, "there is no terminal").remedy("give it with --creds, --password-stdin or an auth file")
    })
}

fn line(mut terminal: &std::fs::File, prompt: &str) -> io::Result<String> {
    terminal.write_all(prompt.as_bytes())?;
    let mut text = String::new();
    io::BufReader::new(terminal.take(LONGEST)).read_line(&mut text)?;
    terminal.write_all(b"\n")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// All of standard input, but for the end of its last line.
pub(super) fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin().take(LONGEST).read_to_string(&mut text).doing(DOING)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
