//! `runionfs doctor`.

use std::path::Path;

use unionfs::doctor;

use super::{DoctorArgs, Failure, print};

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let directories: Vec<&Path> = args.directories.iter().map(Path::new).collect();
    let report = doctor::examine(&directories)?;
    let text = if args.json { report.to_json()? } else { report.to_text() };
    print(text.as_bytes())?;
    if report.unions { Ok(()) } else { Err(Failure::Said(1)) }
}
