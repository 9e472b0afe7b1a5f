//! `runionfs umount`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use unionfs::control::client::{self, Client, ClientError};
use unionfs::mount::mounted::unmount_as_user;

use super::{Failure, UmountArgs, complain};

/// How long the daemon's end is waited for. It only has to close its files by then.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(args: &UmountArgs) -> Result<(), Failure> {
    let mountpoint = Path::new(&args.mountpoint);
    let mount = client::find(mountpoint)?;
    // a directory inside of the mount is not where it is mounted
    if mount.target != mountpoint.canonicalize()? {
        return Err(ClientError::NotAMount(mountpoint.into()).into());
    }
    // before the unmount: afterwards there may be nobody to connect to
    let daemon = Client::connect(&mount).ok();
    unmount(mount.target.clone(), args.lazy)?;
    let Some(daemon) = daemon.filter(|_| !args.lazy) else {
        return Ok(());
    };
    if !daemon.wait_for_end(PATIENCE)? {
        complain(&format!("{} is unmounted, but its daemon has not ended yet", mount.target.display()));
    }
    Ok(())
}

fn unmount(target: PathBuf, lazy: bool) -> Result<(), Failure> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    let done = match umount2(&target, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) => unmount_as_user(&target, lazy),
        other => other.map_err(io::Error::from),
    };
    let target = target.display();
    Ok(done.map_err(|error| match Errno::try_from(error) {
        Ok(Errno::EBUSY) => format!("{target} is in use (see 'fuser -vm {target}'; or umount it lazily, with -l)"),
        Ok(error) => format!("cannot unmount {target}: {}", error.desc()),
        Err(error) => format!("cannot unmount {target}: {error}"),
    })?)
}
