//! What is known of containers: a directory for each, with a record that others read, and a log of those without a
//! terminal of somebody's.
//!
//! | Where | What | Until |
//! |---|---|---|
//! | `/run/rlaunch/NAME` | its name is taken; the record of one that is forgotten with its end | the launcher ends |
//! | `/var/lib/rlaunch/containers/NAME` | the record, the log and what was written, of one that is kept | it is removed |
//!
//! The launcher holds a lock on each for as long as it lives. A directory of the first kind that can be locked exclusively was
//! left by a launcher that was killed, and the next start removes it. One of the second kind stays, for what was written in
//! the container may be precious.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::failure::{Doing as _, Failure};
use crate::folders::{self, make_private};
use crate::lock::{self, Kind, Lock, lock};
use crate::message::warn;
use crate::scratch::{self, Scratch};

mod process;
mod settings;

pub(crate) use self::process::Handle;
pub use process::Process;
pub use settings::Settings;
pub(crate) use settings::{Origin, Word};

const RECORD: &str = "state.json";
const LOG: &str = "log";
/// Where containers that are kept are, in the folder for what stays.
const CONTAINERS: &str = "containers";
/// What was written in a container that is kept.
const FILES: &str = "files";
/// What the root is of a container that has no root of its own.
pub(crate) const COPY_OF_THE_HOST: &str = "copy of the host";
const ATTEMPTS: usize = 100;
/// How often it is looked whether a name is free that is being freed.
const LOOKING: Duration = Duration::from_millis(20);
const LONGEST_NAME: usize = 64;

/// What is known of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name, also that of its directory.
    pub name: String,
    /// What no other container on this machine has; the name of its cgroups.
    pub id: String,
    /// The command, for people to read.
    pub command: Vec<String>,
    /// What its root is, for people to read.
    pub root: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was started last.
    pub started: u64,
    /// When it ended last, if it has.
    pub finished: Option<u64>,
    /// During which boot of which machine the processes are there.
    pub boot: String,
    /// The process that looks after it.
    pub launcher: Process,
    /// Its first process, once there is one.
    pub init: Option<Process>,
    /// The process that serves its unions, if it has some.
    pub daemon: Option<Process>,
    /// Whether it runs in the background.
    pub detached: bool,
    /// Whether it is there after its end, until it is removed.
    pub kept: bool,
    /// The branches of its unions, the top first, by where they are mounted.
    pub(crate) unions: BTreeMap<String, Vec<Word>>,
    /// Where it is kept what is written, for one that is kept and a copy of this machine.
    pub(crate) files: Option<Word>,
    /// What it has printed, for one that is not kept and runs in the background.
    pub(crate) log: Option<Word>,
    /// The exit status of the command, once that has ended.
    pub status: Option<u8>,
    /// The image that it is on: its name or id then, and its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageUsed>,
    /// The number of the signal that asks it to end, where that is not SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// What it was started with.
    pub settings: Settings,
}

/// The image that a container is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUsed {
    /// What it was called.
    pub name: String,
    /// The digest of its configuration.
    pub id: String,
}

impl Record {
    /// Whether it is a copy of this machine.
    pub(crate) fn is_a_copy(&self) -> bool {
        self.root == COPY_OF_THE_HOST
    }

    /// The process that looks after it; `None` where that has ended.
    pub(crate) fn open_launcher(&self) -> io::Result<Option<Handle>> {
        self.open(Some(self.launcher))
    }

    /// Its first process; `None` where it has none.
    pub(crate) fn open_init(&self) -> io::Result<Option<Handle>> {
        self.open(self.init)
    }

    /// The process that serves its unions; `None` where it has none.
    pub(crate) fn open_daemon(&self) -> io::Result<Option<Handle>> {
        self.open(self.daemon)
    }

    fn open(&self, process: Option<Process>) -> io::Result<Option<Handle>> {
        match process {
            Some(process) if self.boot == lock::boot()? => process.open(),
            _ => Ok(None),
        }
    }
}

/// The directories of a container, for its launcher. Removed when it is dropped, but for those of one that is remembered.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The one that takes the name.
    running: PathBuf,
    /// The one of a container that is kept.
    kept: Option<PathBuf>,
    pub(crate) record: Record,
    is_remembered: bool,
    /// How it ended the time before, and when.
    before: (Option<u8>, Option<u64>),
    /// Where the log of one is that is not kept.
    log_place: Option<Scratch>,
    locks: Vec<Lock>,
}

impl Entry {
    /// Makes one, under a name of its own where none is given, and removes what killed launchers left.
    pub(crate) fn create(name: Option<&str>, record: Record) -> Result<Entry, Failure> {
        let doing = "keep a record of the container";
        for _ in 0..ATTEMPTS {
            let chance = random_name().doing(doing)?;
            let id = name.map_or_else(|| chance.clone(), |name| format!("{name}-{chance}"));
            let record = Record { name: name.map_or(chance, str::to_owned), id, ..record.clone() };
            let Some(mut entry) = Entry::take(record)? else {
                match name {
                    Some(name) => return Err(taken(name)),
                    None => continue,
                }
            };
            let directory = containers()?.map(|all| all.join(&entry.record.name));
            if !entry.record.kept {
                if directory.is_some_and(|directory| directory.exists()) {
                    return Err(taken(&entry.record.name));
                }
            } else if !entry.keep(directory)? {
                continue;
            }
            // One that is kept outlives its launcher, and has to be known at every moment. Others are once they have a process.
            if entry.record.kept {
                entry.write().doing(doing)?;
            }
            return Ok(entry);
        }
        Err(Failure::because(doing, "somebody keeps removing it"))
    }

    /// Takes one that is kept and has ended, for another start of it.
    pub(crate) fn start_again(name: &str, record: Record) -> Result<Entry, Failure> {
        let runs = || Failure::new(format!("the container {name} runs already"));
        let before = find(name)?.ok_or_else(|| Failure::no_container(name))?;
        let directory = containers()?.ok_or_else(|| Failure::no_container(name))?.join(name);
        let mut entry = Entry::take(before)?.ok_or_else(runs)?;
        let doing = format!("use the record of {name}");
        let lock = lock(&directory, Kind::Exclusive).doing(&doing)?;
        entry.locks.push(lock.ok_or_else(|| runs().remedy("it may run on another machine"))?);
        // Only now it does not change any more.
        let Record { name, id, created, files, status, finished, .. } = read(&directory).doing(&doing)?;
        entry.record = Record { name, id, created, files, status, finished, kept: true, ..record };
        entry.kept = Some(directory);
        entry.is_remembered = true;
        Ok(entry)
    }

    /// Takes the name, for as long as this process lives; `None` where somebody else has it.
    fn take(record: Record) -> Result<Option<Entry>, Failure> {
        let doing = "keep a record of the container";
        let all = folders::for_what_runs()?;
        for _ in 0..ATTEMPTS {
            make_private(&all).doing(&format!("{doing} in {}", all.display()))?;
            remove_stale(&all);
            scratch::remove_stale_of_ours();
            remove_empty_folders().doing(doing)?;
            let running = all.join(&record.name);
            match DirBuilder::new().mode(0o700).create(&running) {
                // Somebody who cleaned up has removed the directory of all.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    match lock(&running, Kind::Shared).doing(doing)? {
                        Some(_lock) => return Ok(None),
                        // What another start left there is being removed just now.
                        None => {
                            std::thread::sleep(LOOKING);
                            continue;
                        }
                    }
                }
                result => result.doing(doing)?,
            }
            if let Some(lock) = lock(&running, Kind::Shared).doing(doing)? {
                let (kept, is_remembered, before) = (None, false, (record.status, record.finished));
                let (log_place, locks) = (None, vec![lock]);
                return Ok(Some(Entry { running, kept, record, is_remembered, before, log_place, locks }));
            }
        }
        Err(Failure::because(doing, "somebody keeps removing it"))
    }

    /// Makes the directory of one that is kept; false where somebody has come between.
    fn keep(&mut self, directory: Option<PathBuf>) -> Result<bool, Failure> {
        let doing = "keep the container after its end";
        let remedy = "say --rm, or name a directory with XDG_DATA_HOME";
        let missing = || Failure::because(doing, "this user has no home directory").remedy(remedy);
        let directory = directory.ok_or_else(missing)?;
        let all = directory.parent().unwrap_or(&directory);
        // The one around it is to be closed to others as well.
        for folder in all.parent().into_iter().chain([all]) {
            let made = make_private(folder).doing(&format!("{doing} in {}", folder.display()));
            made.map_err(|failure| failure.remedy(remedy))?;
        }
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(&self.record.name)),
            result => result.doing(doing)?,
        }
        let Some(lock) = lock(&directory, Kind::Exclusive).doing(doing)? else { return Ok(false) };
        self.locks.push(lock);
        self.kept = Some(directory);
        Ok(true)
    }

    /// Where one that is kept keeps what is written, if it is a copy of this machine; no other one asks.
    pub(crate) fn place_for_files(&mut self) -> Result<Option<PathBuf>, Failure> {
        let Some(kept) = &self.kept else { return Ok(None) };
        if self.record.files.is_none() {
            let place = Scratch::place_to_keep(&kept.join(FILES), &self.record.id)?;
            // Before there is anything, so that nothing is there that nobody knows of.
            self.record.files = Some(Word::from(place.as_os_str()));
            self.write().doing("keep a record of the container")?;
        }
        Ok(self.record.files.as_ref().map(Word::path))
    }

    /// The directory that is there as long as it runs.
    pub(crate) fn running(&self) -> &Path {
        &self.running
    }

    /// Takes down that the command runs: until it ends, nobody knows how it will.
    pub(crate) fn begin(&mut self, init: Process, daemon: Option<Process>) -> io::Result<()> {
        (self.record.init, self.record.daemon) = (Some(init), daemon);
        self.before = (self.record.status.take(), self.record.finished.take());
        self.write()
    }

    /// Takes down that the command did not run after all: a container that is started again is what it was.
    pub(crate) fn put_back(&mut self) -> io::Result<()> {
        if !self.is_remembered {
            return Ok(());
        }
        (self.record.status, self.record.finished) = self.before;
        self.write()
    }

    /// Takes down how the command has ended, and keeps the container if it is one that is kept.
    pub(crate) fn end(&mut self, status: u8) -> io::Result<()> {
        if !self.record.kept {
            return Ok(());
        }
        (self.record.status, self.record.finished) = (Some(status), Some(now()));
        self.is_remembered = true;
        self.write()
    }

    /// Opens the log for what the command prints. It lies on a disk also for one that is not kept: /run is in memory, and
    /// whoever fills it stops more than one container.
    pub(crate) fn log(&mut self) -> Result<File, Failure> {
        let doing = "make the container's log";
        let directory = match &self.kept {
            Some(kept) => kept.clone(),
            None => {
                let place = self.log_place.insert(Scratch::create(&[])?).path().to_owned();
                self.record.log = Some(Word::from(place.join(LOG).as_os_str()));
                self.write().doing(doing)?;
                place
            }
        };
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        options.open(directory.join(LOG)).doing(doing)
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write(&self) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.directory())?;
        file.write_all(&serde_json::to_vec(&self.record)?)?;
        if self.kept.is_some() {
            // A power cut may leave the name and lose the content, and such a container could not even be removed.
            file.as_file().sync_data()?;
        }
        file.persist(self.directory().join(RECORD))?;
        Ok(())
    }

    fn directory(&self) -> &Path {
        self.kept.as_ref().unwrap_or(&self.running)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.as_ref().filter(|_| !self.is_remembered)
            && let Err(error) = remove_with_files(kept, &self.record)
        {
            warn(format_args!("cannot remove {}: {error}", kept.display()));
        }
        drop(self.log_place.take());
        // The name is free last, when nothing of it is there any more.
        if let Err(error) = remove(&self.running) {
            warn(format_args!("cannot remove {}: {error}", self.running.display()));
        }
    }
}

fn taken(name: &str) -> Failure {
    let failure = Failure::new(format!("there is a container {name} already"));
    failure.remedy(&format!("see rlaunch ps; rlaunch rm {name} forgets one that has ended"))
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
    let folders = folders()?;
    let mut names: Vec<String> = folders.iter().flat_map(|folder| names(folder)).collect();
    names.sort_unstable();
    names.dedup();
    // One that ends meanwhile is not there any more.
    Ok(names.iter().filter_map(|name| find_in(&folders, name).ok().flatten()).map(|(_, record)| record).collect())
}

/// The directory of one as long as it runs.
pub(crate) fn running_directory(name: &str) -> Result<PathBuf, Failure> {
    Ok(folders::for_what_runs()?.join(name))
}

/// The one with this name; `None` where there is none.
pub(crate) fn find(name: &str) -> Result<Option<Record>, Failure> {
    if !is_name(name) {
        return Ok(None);
    }
    let found = find_in(&folders()?, name).doing(&format!("read the record of {name}"))?;
    Ok(found.map(|(_, record)| record))
}

/// Opens the log of one; `None` where it has none.
pub(crate) fn open_log(record: &Record) -> Result<Option<File>, Failure> {
    let doing = format!("read the log of {}", record.name);
    let own = containers()?.map(|all| all.join(&record.name).join(LOG));
    let Some(path) = record.log.as_ref().map(Word::path).or(own) else { return Ok(None) };
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some).doing(&doing),
    }
}

/// Forgets one that has ended, with all that it has written; false where its launcher still lives.
pub(crate) fn forget(name: &str) -> Result<bool, Failure> {
    let doing = format!("forget {name}");
    let mut held = Vec::new();
    for directory in folders()?.iter().map(|folder| folder.join(name)).filter(|directory| directory.exists()) {
        match lock(&directory, Kind::Exclusive).doing(&doing)? {
            Some(lock) => held.push((directory, lock)),
            // It was removed just now.
            None if !directory.exists() => {}
            None => return Ok(false),
        }
    }
    for (directory, _lock) in &held {
        match read(directory) {
            Ok(record) => remove_with_files(directory, &record).doing(&doing)?,
            // Of one that is kept, this takes but the name; or it was never written.
            Err(_) => remove(directory).doing(&doing)?,
        }
    }
    Ok(true)
}

/// Removes what killed launchers left behind.
pub(crate) fn forget_stale() -> Result<(), Failure> {
    remove_stale(&folders::for_what_runs()?);
    Ok(())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    // A clock before that is as wrong as zero.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Where containers that are kept are; none for a user without a home directory.
fn containers() -> Result<Option<PathBuf>, Failure> {
    Ok(folders::for_what_stays().map(|folder| folder.join(CONTAINERS)))
}

/// Where containers are. Who is kept and runs has a directory in both, and a record in the first.
fn folders() -> Result<Vec<PathBuf>, Failure> {
    Ok(containers()?.into_iter().chain([folders::for_what_runs()?]).collect())
}

fn find_in(folders: &[PathBuf], name: &str) -> io::Result<Option<(PathBuf, Record)>> {
    for directory in folders.iter().map(|folder| folder.join(name)) {
        match read(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return Ok(Some((directory, result?))),
        }
    }
    Ok(None)
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
        let result = lock(&path, Kind::Exclusive).and_then(|lock| match lock {
            Some(_held) => remove(&path),
            None => Ok(()),
        });
        if let Err(error) = result {
            warn(format_args!("cannot remove what another start left in {}: {error}", path.display()));
        }
    }
}

/// Removes the folders for what stays as far as they are empty: a launcher that was killed may have made them and no more.
fn remove_empty_folders() -> io::Result<()> {
    let inner = folders::for_what_stays().map(|folder| folder.join(CONTAINERS).join("any"));
    inner.map_or(Ok(()), |inner| folders::remove_empty_around(&inner))
}

/// Removes the directory of a container that was kept, and what it has written elsewhere.
fn remove_with_files(directory: &Path, record: &Record) -> io::Result<()> {
    if let Some(files) = &record.files {
        scratch::remove(&files.path())?;
    }
    remove(directory)
}

/// Removes the directory of one, and those around it of ours once they are empty.
fn remove(directory: &Path) -> io::Result<()> {
    scratch::remove(directory)?;
    folders::remove_empty_around(directory)
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
}
