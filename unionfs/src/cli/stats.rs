//! `runionfs stats`.

mod prometheus;
mod text;

use std::path::Path;

use unionfs::control::Statistics;
use unionfs::control::client::{self, Client, ClientError};
use unionfs::mount::table::Entry;

use super::{Failure, StatsArgs, complain, print};

pub(super) fn run(args: &StatsArgs) -> Result<(), Failure> {
    let (mounts, all_answer) = match &args.mountpoint {
        Some(mountpoint) => (vec![ask(&client::find(Path::new(mountpoint))?)?], true),
        None => ask_all()?,
    };
    if args.json {
        for mount in &mounts {
            print(&mount.to_line()?)?;
        }
    } else if args.prometheus {
        print(prometheus::write(&mounts).as_bytes())?;
    } else {
        for mount in &mounts {
            print(&text::write(mount))?;
        }
    }
    if all_answer { Ok(()) } else { Err(Failure::Said(1)) }
}

fn ask(mount: &Entry) -> Result<Statistics, ClientError> {
    Client::connect(mount)?.stats()
}

/// What each mount tells, and whether all of them do: one that does not is no reason to be silent of the others.
fn ask_all() -> Result<(Vec<Statistics>, bool), Failure> {
    let (mut told, mut all_answer) = (Vec::new(), true);
    for mount in client::all()? {
        match ask(&mount) {
            Ok(statistics) => told.push(statistics),
            Err(error) => {
                complain(&error.to_string());
                all_answer = false;
            }
        }
    }
    Ok((told, all_answer))
}
