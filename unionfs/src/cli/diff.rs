//! `runionfs diff`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use unionfs::control::client::{self, Client, ClientError};
use unionfs::diff::diff;
use unionfs::options::{BranchSpec, branches};

use super::{DiffArgs, Failure, daemon, print};

pub(super) fn run(args: &DiffArgs) -> Result<(), Failure> {
    daemon::prepare()?;
    let mut text = Vec::new();
    for change in diff(&branches_of(args)?)? {
        text.extend_from_slice(change.kind.to_string().as_bytes());
        text.push(b' ');
        text.extend_from_slice(&change.path);
        text.push(b'\n');
    }
    print(&text)
}

/// The branches of a mount, as its daemon says, or as they are given.
fn branches_of(args: &DiffArgs) -> Result<Vec<BranchSpec>, Failure> {
    match client::find(Path::new(&args.union)) {
        Ok(mount) => {
            let status = Client::connect(&mount)?.show()?;
            let list: Vec<OsString> = status.branches.into_iter().map(OsString::from).collect();
            Ok(branches::parse(&list.join(":".as_ref()))?)
        }
        // a path alone is no union: what is below it is not said
        Err(error) if !args.union.as_bytes().iter().any(|byte| matches!(byte, b':' | b'=')) => Err(error.into()),
        Err(ClientError::NotAMount(_) | ClientError::Path { .. }) => Ok(branches::parse(&args.union)?),
        Err(error) => Err(error.into()),
    }
}
