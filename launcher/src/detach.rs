//! A container in the background: its launcher goes on alone once the command runs.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid};

use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::process;

const DOING: &str = "go to the background";
/// In place of an exit status: what follows is the container's name.
const STARTED: u8 = 0;

/// Tells the one who waits in the foreground how the start has gone.
#[derive(Debug)]
pub(crate) struct Ready(Option<File>);

impl Ready {
    pub(crate) fn started(&mut self, name: &str) -> Result<(), Failure> {
        self.say(STARTED, name)
    }

    fn failed(&mut self, failure: &Failure) -> Result<(), Failure> {
        self.say(failure.status, &failure.to_string())
    }

    fn say(&mut self, status: u8, text: &str) -> Result<(), Failure> {
        // Closing it is what the other side waits for.
        let Some(mut file) = self.0.take() else { return Ok(()) };
        file.write_all(&[&[status], text.as_bytes()].concat()).doing(DOING)
    }
}

/// Runs `launch` in the background, and stays until the command runs or has failed to; prints the container's name.
pub(crate) fn start(launch: impl FnOnce(&mut Ready) -> Result<u8, Failure>) -> Result<u8, Failure> {
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(DOING)?;
    process::fork(|| background(Ready(Some(File::from(writer))), launch)).doing(DOING)?;
    answer(reader)
}

fn background(mut ready: Ready, launch: impl FnOnce(&mut Ready) -> Result<u8, Failure>) -> u8 {
    let result = leave_the_caller().and_then(|()| launch(&mut ready));
    match result {
        Ok(status) => status,
        // Whoever has started it may be gone, and then nobody asks.
        Err(failure) => ready.failed(&failure).map_or(OWN_FAILURE, |()| failure.status),
    }
}

/// A session of its own, and nothing to read.
fn leave_the_caller() -> Result<(), Failure> {
    setsid().doing(DOING)?;
    dup2_stdin(File::open("/dev/null").doing(DOING)?).doing(DOING)
}

/// Sends what is printed to a log from here on.
pub(crate) fn print_to(log: &File) -> Result<(), Failure> {
    dup2_stdout(log).and_then(|()| dup2_stderr(log)).doing("write the container's log")
}

fn answer(reader: OwnedFd) -> Result<u8, Failure> {
    let mut text = Vec::new();
    // The other end is closed with the word that it is for, or with the launcher.
    File::from(reader).read_to_end(&mut text).doing(DOING)?;
    let Some((status, text)) = text.split_first() else {
        return Err(Failure::because(DOING, "the launcher has ended"));
    };
    let text = String::from_utf8_lossy(text).into_owned();
    if *status != STARTED {
        return Err(Failure::new(text).with_status(*status));
    }
    writeln!(std::io::stdout(), "{text}").doing("print the container's name")?;
    Ok(0)
}
