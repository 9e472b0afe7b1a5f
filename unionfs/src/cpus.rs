//! How many processors there are for us, and what follows from it.

/// How many processors this process may run on; at least one.
///
/// The standard library answers it, too, and reads the files of control groups for that: twenty system calls at every
/// mount.
pub(crate) fn available() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(1, |cpus| cpus.count() as usize).max(1)
}

/// Into how many parts with a lock of its own each a table is divided, so that threads rarely wait for each other.
///
/// There are at most 16 readers, whatever the machine has, and parts that nobody needs take memory in every mount.
pub(crate) fn parts_of_a_table() -> usize {
    const MOST: usize = 64;
    (4 * available()).next_power_of_two().min(MOST)
}
