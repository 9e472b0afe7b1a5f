//! Containers that do not end because a process in them waits for an answer of their union.
//!
//! With the union's daemon goes its device, and with that the connection: whoever waits gets an error. That is not so
//! while somebody else has the device open, too. Then the kernel is asked to give the connection up: by a forced umount in
//! the container, which nobody outside of it can do, and by the connection's own file where fusectl is mounted.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use crate::failure::{Doing as _, Failure};
use crate::{mount_table, process};

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The unions of a container, found while its first process still has them: one that is being killed has given them up.
pub(super) struct Unions<'a> {
    namespace: File,
    /// Where they are, and the numbers of their connections.
    connections: Vec<(&'a Path, u32)>,
}

impl<'a> Unions<'a> {
    /// Those at these places in a container, of which this is the first process.
    ///
    /// # Errors
    /// Where its mounts cannot be looked at.
    pub(super) fn of(init: i32, places: impl Iterator<Item = &'a Path>) -> io::Result<Unions<'a>> {
        let namespace = File::open(format!("/proc/{init}/ns/mnt"))?;
        let table = mount_table::parse(&fs::read(format!("/proc/{init}/mountinfo"))?);
        let connection = |place: &'a Path| Some((place, mount_table::connection_of_union(&table, place)?));
        Ok(Unions { namespace, connections: places.filter_map(connection).collect() })
    }

    /// Ends their connections. Whether that was of use is seen by the end of the container.
    ///
    /// # Errors
    /// Where no process can be made.
    pub(super) fn abort(&self) -> Result<(), Failure> {
        let helper = process::fork(|| u8::from(self.force_umounts().is_err())).doing("start a process")?;
        process::wait_for(helper).doing("wait for a process of ours")?;
        for (_, connection) in &self.connections {
            // One that has ended has no such file.
            let path = Path::new(CONNECTIONS).join(connection.to_string()).join("abort");
            fs::write(path, "1").unwrap_or_default();
        }
        Ok(())
    }

    /// The umounts themselves fail, for the container uses what is mounted; but before that the kernel gives the connection
    /// up.
    fn force_umounts(&self) -> Result<(), Errno> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
        self.connections.iter().try_for_each(|(place, _)| match umount2(*place, MntFlags::MNT_FORCE) {
            Ok(()) | Err(Errno::EBUSY | Errno::EINVAL) => Ok(()),
            result => result,
        })
    }
}
