//! `runionfs diff`.

use unionfs::diff::diff;
use unionfs::options::Options;

use super::union::{Alone, Asked};
use super::{DiffArgs, Failure, daemon, print};

pub(super) fn run(args: &DiffArgs) -> Result<(), Failure> {
    daemon::prepare()?;
    let union = Asked::find(&args.union, Options::default(), Alone::IsNoUnion)?;
    union.write_out()?;
    let mut text = Vec::new();
    for change in diff(union.branches(), union.workdir())? {
        text.extend_from_slice(change.kind.to_string().as_bytes());
        text.push(b' ');
        text.extend_from_slice(&change.path);
        text.push(b'\n');
    }
    print(&text)
}
