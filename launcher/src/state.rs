//! What is known of containers: a directory for each, with a record that others read, and a log of those without a
//! terminal of somebody's.
//!
//! The launcher holds a shared lock on the directory for as long as it lives. One that can be locked exclusively, and whose
//! record has no end, was left by a launcher that was killed: the next start removes it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{Pid, geteuid};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::failure::{Doing as _, Failure};
use crate::message::warn;
use crate::rootless;
use crate::scratch;

mod settings;

pub use settings::Settings;
pub(crate) use settings::Word;

const RECORD: &str = "state.json";
const LOG: &str = "log";
const ATTEMPTS: usize = 100;
const LONGEST_NAME: usize = 64;

/// What is known of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name, also that of its directory.
    pub name: String,
    /// The command, for people to read.
    pub command: Vec<String>,
    /// What its root is, for people to read.
    pub root: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The process that looks after it.
    pub launcher: Process,
    /// Its first process, once there is one.
    pub init: Option<Process>,
    /// The process that serves its unions, if it has some.
    pub daemon: Option<Process>,
    /// Whether it runs in the background.
    pub detached: bool,
    /// The exit status of the command, once that has ended.
    pub status: Option<u8>,
    /// What it was started with.
    pub settings: Settings,
}

/// A process that cannot be taken for another one: numbers are used again, but not with the same start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number on the host.
    pub pid: i32,
    /// When it was started; see proc_pid_stat(5), field 22.
    pub start: u64,
}

impl Process {
    /// One that runs, and cannot end and be waited for meanwhile.
    pub(crate) fn of(pid: Pid) -> io::Result<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_of(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Process { pid: pid.as_raw(), start })
    }

    /// A descriptor for it; `None` where it has ended.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            result => result?,
        };
        // Once it is open, the number stays with it: if the start is right now, the descriptor is right.
        let is_same = Process::of(Pid::from_raw(self.pid)).is_ok_and(|now| now == *self);
        Ok(is_same.then_some(descriptor))
    }
}

/// The name of the program, in parentheses, may hold anything, so it is counted from behind it.
fn start_of(stat: &str) -> Option<u64> {
    const AFTER_THE_NAME: usize = 19;
    stat.rsplit_once(')')?.1.split_whitespace().nth(AFTER_THE_NAME)?.parse().ok()
}

/// The directory of a container, for its launcher. Removed when it is dropped, unless the container is to be remembered.
#[derive(Debug)]
pub(crate) struct Entry {
    directory: PathBuf,
    pub(crate) record: Record,
    is_remembered: bool,
    _lock: Flock<File>,
}

impl Entry {
    /// Makes one, under a name of its own where none is given, and removes what killed launchers left.
    pub(crate) fn create(name: Option<&str>, record: Record) -> Result<Entry, Failure> {
        let doing = "keep a record of the container";
        let all = directory()?;
        for _ in 0..ATTEMPTS {
            make_private(&all).doing(&format!("{doing} in {}", all.display()))?;
            remove_stale(&all);
            let name = name.map_or_else(random_name, |name| Ok(name.to_owned())).doing(doing)?;
            let directory = all.join(&name);
            match DirBuilder::new().mode(0o700).create(&directory) {
                // Somebody who cleaned up has removed the directory of all, or a random name is taken.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let failure = Failure::new(format!("there is a container {name} already"));
                    return Err(
                        failure.remedy(&format!("see rlaunch ps; rlaunch rm {name} forgets one that has ended"))
                    );
                }
                result => result.doing(doing)?,
            }
            if let Some(lock) = scratch::lock(&directory, FlockArg::LockSharedNonblock).doing(doing)? {
                let entry = Entry { directory, record: Record { name, ..record }, is_remembered: false, _lock: lock };
                entry.write().doing(doing)?;
                return Ok(entry);
            }
        }
        Err(Failure::because(doing, "somebody keeps removing it"))
    }

    /// Keeps it once the container has ended.
    pub(crate) fn remember(&mut self) {
        self.is_remembered = true;
    }

    /// Opens the log for what the command prints.
    pub(crate) fn log(&self) -> io::Result<File> {
        let flags = OFlag::O_NOFOLLOW.bits();
        OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(self.directory.join(LOG))
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write(&self) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&serde_json::to_vec(&self.record)?)?;
        file.persist(self.directory.join(RECORD))?;
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_remembered {
            return;
        }
        if let Err(error) = remove(&self.directory) {
            warn(format_args!("cannot remove {}: {error}", self.directory.display()));
        }
    }
}

/// Whether a word can be the name of a container: it becomes that of a directory.
pub(crate) fn is_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    name.len() <= LONGEST_NAME
        && name.bytes().all(is_inner)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// All that there are, by name.
pub(crate) fn all() -> Result<Vec<Record>, Failure> {
    let directory = directory()?;
    let mut records: Vec<Record> =
        names(&directory).iter().filter_map(|name| read(&directory.join(name)).ok()).collect();
    records.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(records)
}

/// The one with this name; `None` where there is none.
pub(crate) fn find(name: &str) -> Result<Option<Record>, Failure> {
    if !is_name(name) {
        return Ok(None);
    }
    match read(&directory()?.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some).doing(&format!("read the record of {name}")),
    }
}

/// Opens the log of one.
pub(crate) fn open_log(name: &str) -> Result<File, Failure> {
    File::open(directory()?.join(name).join(LOG)).doing(&format!("read the log of {name}"))
}

/// Forgets one that has ended; false where its launcher still lives.
pub(crate) fn forget(name: &str) -> Result<bool, Failure> {
    let directory = directory()?.join(name);
    let doing = format!("forget {name}");
    let Some(_lock) = scratch::lock(&directory, FlockArg::LockExclusiveNonblock).doing(&doing)? else {
        return Ok(!directory.exists());
    };
    remove(&directory).doing(&doing).map(|()| true)
}

/// Removes what killed launchers left behind.
pub(crate) fn forget_stale() -> Result<(), Failure> {
    remove_stale(&directory()?);
    Ok(())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    // A clock before that is as wrong as zero.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn directory() -> Result<PathBuf, Failure> {
    if rootless::is_root() {
        return Ok("/run/rlaunch".into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    // Who has not logged in has none, such as a job of cron or a user of su.
    let user = rootless::user().doing("find out who starts this container")?;
    Ok(runtime.map_or_else(|| format!("/tmp/rlaunch-{user}").into(), |runtime| runtime.join("rlaunch")))
}

/// Nobody else may have made it, for we believe what it holds.
fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    let metadata = fs::symlink_metadata(directory)?;
    if metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(io::Error::other("it is not a directory of our own with mode 700"))
}

fn names(directory: &Path) -> Vec<String> {
    // A directory that is not there holds nothing.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_name(name)).collect()
}

fn read(directory: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&fs::read(directory.join(RECORD))?)?)
}

fn remove_stale(directory: &Path) {
    for path in names(directory).iter().map(|name| directory.join(name)) {
        let result = scratch::lock(&path, FlockArg::LockExclusiveNonblock).and_then(|lock| match lock {
            Some(_held) if read(&path).is_ok_and(|record| record.status.is_some()) => Ok(()),
            Some(_held) => remove(&path),
            None => Ok(()),
        });
        if let Err(error) = result {
            warn(format_args!("cannot remove what another start left in {}: {error}", path.display()));
        }
    }
}

/// Removes the directory of one, and that of all once it is empty.
fn remove(directory: &Path) -> io::Result<()> {
    fs::remove_dir_all(directory)?;
    let all = directory.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match fs::remove_dir(all) {
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => Ok(()),
        result => result,
    }
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_directories_that_nobody_can_lead_astray() {
        for name in ["web", "web-1.example", "0a", "A_b"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "-rf", ".x", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_start_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(start_of(&format!("7 (sh) {fields}")), Some(4242));
        assert_eq!(start_of(&format!("7 (a) b (c) {fields}")), Some(4242));
        assert_eq!(start_of("7 (sh"), None);
    }

    #[test]
    fn a_process_that_has_ended_is_not_another_with_its_number() {
        let own = Process::of(nix::unistd::getpid()).unwrap();
        assert!(own.open().unwrap().is_some());
        assert!(Process { start: own.start + 1, ..own }.open().unwrap().is_none());
    }
}
