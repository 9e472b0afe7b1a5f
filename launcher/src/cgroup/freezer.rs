//! Stopping a container without its notice, and killing all of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::detect::Version;
use super::directory::Directory;

/// A process in the middle of a request to a file system cannot be stopped before that is answered.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// Stops everybody in a cgroup and below. Where not all can be stopped in time, all go on, and the error is ETIMEDOUT.
pub(crate) fn freeze(directory: &Directory, version: Version) -> Result<(), Errno> {
    let end = Instant::now() + PATIENCE;
    loop {
        // v1 has to be told again as long as it is under way: a process that was made meanwhile may have been missed.
        write(directory, version, true)?;
        if is_frozen(directory, version)? {
            return Ok(());
        }
        if Instant::now() > end {
            thaw(directory, version)?;
            return Err(Errno::ETIMEDOUT);
        }
        sleep(PAUSE);
    }
}

/// Lets everybody go on.
pub(crate) fn thaw(directory: &Directory, version: Version) -> Result<(), Errno> {
    write(directory, version, false)
}

fn write(directory: &Directory, version: Version, stop: bool) -> Result<(), Errno> {
    match version {
        Version::V1 => directory.write("freezer.state", if stop { "FROZEN" } else { "THAWED" }),
        Version::V2 => directory.write("cgroup.freeze", if stop { "1" } else { "0" }),
    }
}

/// Whether everybody is stopped.
pub(crate) fn is_frozen(directory: &Directory, version: Version) -> Result<bool, Errno> {
    match version {
        Version::V1 => Ok(directory.read("freezer.state")?.trim() == "FROZEN"),
        Version::V2 => {
            let events = directory.read("cgroup.events")?;
            Ok(super::directory::number_of(&events, "frozen") == Some(1))
        }
    }
}

/// Kills everybody in a cgroup and below, also those who are being made meanwhile.
pub(crate) fn kill(directory: &Directory, version: Version) -> Result<(), Errno> {
    if version == Version::V2 {
        match directory.write("cgroup.kill", "1") {
            // Before Linux 5.14.
            Err(Errno::ENOENT) => {}
            result => return result,
        }
    }
    // Who is stopped makes no new processes, and its number stays its own. On v1 nobody dies before it goes on.
    let frozen = freeze(directory, version);
    let killed = directory.kill_processes();
    match frozen {
        Ok(()) => thaw(directory, version).and(killed),
        // They go on already.
        Err(Errno::ETIMEDOUT) => killed,
        Err(errno) => killed.and(Err(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn states_are_read_as_the_kernel_writes_them() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).unwrap();
        for (name, text, version, expected) in [
            ("freezer.state", "FROZEN\n", Version::V1, true),
            ("freezer.state", "FREEZING\n", Version::V1, false),
            ("freezer.state", "THAWED\n", Version::V1, false),
            ("cgroup.events", "populated 1\nfrozen 1\n", Version::V2, true),
            ("cgroup.events", "populated 1\nfrozen 0\n", Version::V2, false),
        ] {
            fs::write(place.path().join(name), text).unwrap();
            assert_eq!(is_frozen(&directory, version), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn stopping_and_going_on_are_written() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).unwrap();
        for (name, text, version, stopped, going) in [
            ("freezer.state", "THAWED", Version::V1, "FROZEN", "THAWED"),
            ("cgroup.freeze", "0", Version::V2, "1", "0"),
        ] {
            fs::write(place.path().join(name), text).unwrap();
            fs::write(place.path().join("cgroup.events"), "frozen 1\n").unwrap();
            freeze(&directory, version).unwrap();
            assert_eq!(directory.read(name).unwrap(), stopped);
            thaw(&directory, version).unwrap();
            assert_eq!(directory.read(name).unwrap(), going);
        }
    }
}
