//! `runionfs`: mounts unions and asks after them.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
