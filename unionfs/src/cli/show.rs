//! `runionfs show`.

use std::path::Path;

use unionfs::control::client::{self, Client};

use super::{Failure, ShowArgs, print};

pub(super) fn run(args: &ShowArgs) -> Result<(), Failure> {
    let mount = client::find(Path::new(&args.mountpoint))?;
    let status = Client::connect(&mount)?.show()?;
    if args.json { print(&status.to_line()?) } else { print(&status.to_text()) }
}
