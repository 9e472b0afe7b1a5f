//! `runionfs check`.

use unionfs::check::{Finding, Weight, check};

use super::union::{Alone, Asked, of_workdir};
use super::{CheckArgs, Failure, daemon, print, printable};

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    daemon::prepare()?;
    let union = Asked::find(&args.union, of_workdir(args.workdir.as_deref()), Alone::IsBranch)?;
    let mut lines = Ok(());
    let mut problems = false;
    let mut tell = |finding: Finding| {
        problems |= finding.weight == Weight::Problem;
        if lines.is_ok() && (finding.weight == Weight::Problem || !args.quiet) {
            lines = print(line(&finding).as_bytes());
        }
    };
    check(union.branches(), union.workdir(), &mut tell)?;
    lines?;
    if problems { Err(Failure::Said(1)) } else { Ok(()) }
}

fn line(finding: &Finding) -> String {
    let note = if finding.weight == Weight::Note { "note: " } else { "" };
    let text = format!("{note}{}: {}", String::from_utf8_lossy(&finding.path), finding.what);
    printable(&text) + "\n"
}
