//! What apt needs in a copy of this machine that an ordinary user makes.
//!
//! It fetches as a user of its own, to whom it gives two directories that nobody else may enter. That user may not be there,
//! and to enter what is somebody else's is not ours to give: in the copy these directories are empty, and root's.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::{AccessFlags, access};
use unionfs::union::name::OPAQUE;

use crate::host::Host;

/// Where a copy of the host keeps words for apt; `/run` is fresh in it.
const CONFIGURATION: &str = "/run/rlaunch/apt.conf";
/// Where it keeps what it is fetching.
const CLOSED: [&str; 2] = ["/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial"];

/// Nobody but root is in the container: apt is told to do without a user of its own.
pub(crate) fn do_without_user(host: &mut Host) {
    if host.environment.iter().all(|(name, _)| name != "APT_CONFIG") {
        host.environment.push(("APT_CONFIG".into(), CONFIGURATION.into()));
        host.files.push((CONFIGURATION.into(), b"APT::Sandbox::User \"root\";\n".to_vec()));
    }
}

/// Makes room for what is fetched in a top that lies over this part of the host, where the user may not enter the host's.
///
/// # Errors
/// Those of making directories in the top.
pub(crate) fn make_room(top: &Path, part: &Path) -> io::Result<()> {
    for path in CLOSED.map(Path::new) {
        let Ok(below) = path.strip_prefix(part) else { continue };
        let is_closed = path.is_dir() && access(path, AccessFlags::R_OK | AccessFlags::X_OK).is_err();
        if is_closed && fs::symlink_metadata(top.join(below)).is_err() {
            make_empty(top, part, below)?;
        }
    }
    Ok(())
}

/// Makes a directory that hides what lies below it, and those above it like the host's.
fn make_empty(top: &Path, part: &Path, path: &Path) -> io::Result<()> {
    let parents: Vec<_> = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        match fs::create_dir(top.join(parent)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            result => result?,
        }
        fs::set_permissions(top.join(parent), fs::metadata(part.join(parent))?.permissions())?;
    }
    let made = top.join(path);
    DirBuilder::new().mode(0o700).create(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o700))?;
    File::create(made.join(OsStr::from_bytes(OPAQUE))).map(drop)
}
