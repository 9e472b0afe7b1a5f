//! `runionfs flush`.

use unionfs::options::Words;

use super::union::{Alone, Asked};
use super::{Failure, FlushArgs, daemon, log};

pub(super) fn run(args: &FlushArgs) -> Result<(), Failure> {
    log::start(&log::LogArgs::default())?;
    daemon::prepare()?;
    let mut words = Words::default();
    args.options.iter().try_for_each(|argument| words.add(argument))?;
    let union = Asked::find(&args.union, words.options, Alone::IsNoUnion)?;
    union.write_out()?;
    let flushed = union.flush_links()?;
    if flushed.pending == 0 {
        return Ok(());
    }
    let files = if flushed.pending == 1 { "file has" } else { "files have" };
    Err(format!(
        "{} hard-linked {files} names that could not be brought up (the daemon's log says why)",
        flushed.pending
    )
    .into())
}
