//! One cgroup: a directory of the kernel's, and the files in it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, read, write};

use crate::failure::errno_of;

/// How often a removal is tried, with a pause that grows up to 16 ms: about five seconds in all.
const ATTEMPTS: u32 = 320;

/// A cgroup that is held open: what happens to its path afterwards changes nothing.
#[derive(Debug)]
pub(crate) struct Directory {
    handle: File,
    path: PathBuf,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Directory, Errno> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let handle = File::options().read(true).custom_flags(flags.bits()).open(path).map_err(|e| errno_of(&e))?;
        Ok(Directory { handle, path: path.to_owned() })
    }

    /// Makes it, or takes the one that is there; whether it is new.
    pub(crate) fn open_or_make(path: &Path) -> Result<(Directory, bool), Errno> {
        let is_new = match Directory::open(path) {
            Err(Errno::ENOENT) => match make(path) {
                Err(Errno::EEXIST) => false,
                result => result.map(|()| true)?,
            },
            result => return result.map(|directory| (directory, false)),
        };
        Directory::open(path).map(|directory| (directory, is_new))
    }

    /// Makes one that is not there yet.
    pub(crate) fn make(path: &Path) -> Result<Directory, Errno> {
        make(path)?;
        Directory::open(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one value, in one call, to a file that the kernel has put there.
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let file = openat(&self.handle, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // An empty write would not reach the kernel's parser.
        write(file, value.as_bytes()).map(drop)
    }

    pub(crate) fn read(&self, name: &str) -> Result<String, Errno> {
        let file = openat(&self.handle, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        // Not by the standard library, which asks how long the file is: the kernel does not say.
        loop {
            match read(&file, &mut buffer)? {
                0 => return String::from_utf8(text).map_err(|_| Errno::EILSEQ),
                length => text.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            }
        }
    }

    /// The number in a file that holds one; none where it says `max`, is not there, or holds something else.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.read(name).ok()?.trim().parse().ok()
    }

    /// The number beside `key` in a file of lines with a key and a number each.
    pub(crate) fn number_of(&self, name: &str, key: &str) -> Option<u64> {
        number_of(&self.read(name).ok()?, key)
    }

    /// Whether a controller of v2 counts for it.
    pub(crate) fn has_controller(&self, name: &str) -> bool {
        self.read("cgroup.controllers").is_ok_and(|names| names.split_whitespace().any(|other| other == name))
    }

    /// Moves a process, with all its threads, into it.
    pub(crate) fn admit(&self, process: Pid) -> Result<(), Errno> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// The file by which a process that has one thread joins a cgroup of v1: see [`join`].
    pub(crate) fn tasks(&self) -> PathBuf {
        self.path.join("tasks")
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    pub(crate) fn processes(&self) -> Result<Vec<Pid>, Errno> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok().map(Pid::from_raw)).collect())
    }

    /// The cgroups right below it.
    pub(crate) fn children(&self) -> Result<Vec<Directory>, Errno> {
        let names = names_in(&self.path)?;
        Ok(names.iter().filter_map(|name| Directory::open(&self.path.join(name)).ok()).collect())
    }

    /// Says to others that it is in use, for as long as the value lives.
    ///
    /// `None` where somebody has it locked in another way.
    pub(crate) fn lock(&self, kind: FlockArg) -> Result<Option<Flock<File>>, Errno> {
        let copy = self.handle.try_clone().map_err(|error| errno_of(&error))?;
        match Flock::lock(copy, kind) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno),
        }
    }

    /// Removes it and what was made in it. Processes that are left are killed.
    pub(crate) fn remove(&self) -> Result<(), Errno> {
        for attempt in 0..ATTEMPTS {
            match self.try_remove() {
                Err(Errno::EBUSY) => self.kill_processes()?,
                result => return result,
            }
            // A killed process leaves its cgroup a little later.
            sleep(Duration::from_millis(1 << (attempt / 4).min(4)));
        }
        Err(Errno::EBUSY)
    }

    /// Removes it and what was made in it, if nobody is there.
    pub(crate) fn try_remove(&self) -> Result<(), Errno> {
        match fs::remove_dir(&self.path).map_err(|error| errno_of(&error)) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
        for child in self.children()? {
            child.try_remove()?;
        }
        match fs::remove_dir(&self.path).map_err(|error| errno_of(&error)) {
            Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY) => Err(Errno::EBUSY),
            result => result,
        }
    }

    /// Sends SIGKILL to everybody in it and below.
    pub(crate) fn kill_processes(&self) -> Result<(), Errno> {
        for child in self.children()? {
            child.kill_processes()?;
        }
        let processes = match self.processes() {
            // Removed by somebody else.
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
            result => result?,
        };
        for process in processes {
            match kill(process, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// The names of the cgroups right below one.
pub(crate) fn names_in(path: &Path) -> Result<Vec<OsString>, Errno> {
    let entries = fs::read_dir(path).map_err(|error| errno_of(&error))?;
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.file_name()).collect())
}

/// Moves this process, which has one thread, into a cgroup of v1, by its file `tasks`.
///
/// It is the one way for which the kernel does not stop all processes from starting and ending others: that takes several
/// milliseconds.
pub(crate) fn join(tasks: &Path) -> Result<(), Errno> {
    let mut file = File::options().write(true).open(tasks).map_err(|error| errno_of(&error))?;
    file.write_all(b"0").map_err(|error| errno_of(&error))
}

fn make(path: &Path) -> Result<(), Errno> {
    fs::DirBuilder::new().mode(0o755).create(path).map_err(|error| errno_of(&error))
}

/// The number beside `key` in lines with a key and a number each.
pub(crate) fn number_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_to_files_that_are_there() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("pids.max"), "").unwrap();
        let directory = Directory::open(place.path()).unwrap();
        assert_eq!(directory.write("pids.max", "17"), Ok(()));
        assert_eq!(directory.number("pids.max"), Some(17));
        assert_eq!(directory.write("memory.max", "17"), Err(Errno::ENOENT));
        assert!(!place.path().join("memory.max").exists());
    }

    #[test]
    fn numbers_are_found_by_their_whole_key() {
        let text = "anon_thp 1\nanon 2\noom_kill 3 4\nempty\nword x\n";
        for (key, expected) in
            [("anon", Some(2)), ("oom_kill", Some(3)), ("oom", None), ("empty", None), ("word", None)]
        {
            assert_eq!(number_of(text, key), expected, "{key}");
        }
    }

    #[test]
    fn a_tree_of_empty_cgroups_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a");
        fs::create_dir_all(path.join("b/c")).unwrap();
        fs::create_dir_all(path.join("d")).unwrap();
        let directory = Directory::open(&path).unwrap();
        assert_eq!(directory.remove(), Ok(()));
        assert!(!path.exists());
        assert_eq!(directory.remove(), Ok(()));
    }

    #[test]
    fn one_that_is_used_is_known_by_its_lock() {
        let place = tempfile::tempdir().unwrap();
        let (used, other) = (Directory::open(place.path()).unwrap(), Directory::open(place.path()).unwrap());
        let lock = used.lock(FlockArg::LockSharedNonblock).unwrap().expect("nobody else has it");
        assert!(other.lock(FlockArg::LockExclusiveNonblock).unwrap().is_none());
        drop(lock);
        assert!(other.lock(FlockArg::LockExclusiveNonblock).unwrap().is_some());
    }
}
