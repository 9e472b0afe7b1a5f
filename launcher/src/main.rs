//! The `rlaunch` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    launcher::main()
}
