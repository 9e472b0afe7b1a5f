//! `runionfs completions`.

use clap::CommandFactory as _;
use unionfs::completions::{Names, script};

use super::{Cli, CompletionsArgs, Failure, print};

/// Where unions are mounted, as far as the table of mounts tells it without escapes.
const MOUNTS: Names =
    Names { help: "Where the union is mounted", list: r#"awk "\$3 == \"fuse.runionfs\" { print \$2 }" /proc/mounts"# };

pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    print(script(args.shell, Cli::command(), &[MOUNTS]).as_bytes())
}
