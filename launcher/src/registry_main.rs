//! The `rlaunch-registry` command, which `rlaunch image pull` and `push` execute.

use std::process::ExitCode;

fn main() -> ExitCode {
    launcher::registry_main()
}
