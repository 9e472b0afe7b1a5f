//! `runionfs flush`.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use unionfs::control::client::{self, Client, ClientError};
use unionfs::fs::{Flushed, Union};
use unionfs::options::{Words, branches};

use super::{Failure, FlushArgs, daemon, log};

pub(super) fn run(args: &FlushArgs) -> Result<(), Failure> {
    let flushed = flush(args)?;
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

/// Asks the daemon of a mount, or does it here for branches that are not mounted.
fn flush(args: &FlushArgs) -> Result<Flushed, Failure> {
    match client::find(Path::new(&args.union)) {
        Ok(mount) => Ok(Client::connect(&mount)?.flush()?),
        // a path alone is no union: what is below it is not said
        Err(error) if !args.union.as_bytes().iter().any(|byte| matches!(byte, b':' | b'=')) => Err(error.into()),
        Err(ClientError::NotAMount(_) | ClientError::Path { .. }) => flush_branches(args),
        Err(error) => Err(error.into()),
    }
}

fn flush_branches(args: &FlushArgs) -> Result<Flushed, Failure> {
    log::start(0)?;
    daemon::prepare()?;
    let mut words = Words::default();
    args.options.iter().try_for_each(|argument| words.add(argument))?;
    let union = Union::open(&branches::parse(&args.union)?, &words.options)?;
    Ok(union.flush_links().map_err(|errno| format!("cannot flush: {}", std::io::Error::from(errno)))?)
}
