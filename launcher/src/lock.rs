//! Locks on directories: shared by those who use one, exclusive for who removes it or is the only one who may use it.
//!
//! The kernel keeps them, and they end with whoever holds them. Some file systems have none, such as Lustre without the
//! mount option, and on those of other machines they are known to this machine alone. There a lock is a file in the
//! directory which says who holds it, and is broken when that process is gone. Of a process on another machine nobody can
//! know that here, so its lock stays.
//!
//! | Lock | File | Held if |
//! |---|---|---|
//! | shared | `.lock-…`, one for each holder | there is no exclusive one *after* it was made |
//! | exclusive | `.lock` | there is no shared one *after* it was made |
//!
//! Both sides make their file first and look then, so of two that come at once at least one sees the other.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::folders;
use crate::message::warn;
use crate::state::Process;

const EXCLUSIVE: &str = ".lock";
const SHARED: &str = ".lock-";

/// Who else may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Shared,
    Exclusive,
}

/// A lock that is held for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: Held,
}

#[derive(Debug)]
enum Held {
    #[allow(dead_code, reason = "it is there to be dropped")]
    Kernel(Flock<File>),
    #[allow(dead_code, reason = "it is there to be dropped")]
    File(LockFile),
}

/// Locks a directory; `None` where somebody else does, or it is not there any more.
///
/// # Errors
/// Where it cannot be opened, or neither the kernel nor a file can lock it.
pub(crate) fn lock(path: &Path, kind: Kind) -> io::Result<Option<Lock>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let directory = match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let held = match folders::is_far_away(&directory)? {
        true => by_file(path, kind)?.map(Held::File),
        false => by_kernel(directory, path, kind)?,
    };
    Ok(held.map(|held| Lock { _held: held }))
}

/// Locks a directory that another process has locked in the same way, and so is there.
///
/// # Errors
/// Where it is not.
pub(crate) fn hold(path: &Path) -> io::Result<Lock> {
    lock(path, Kind::Shared)?.ok_or(io::ErrorKind::NotFound.into())
}

fn by_kernel(directory: File, path: &Path, kind: Kind) -> io::Result<Option<Held>> {
    let inode = directory.metadata()?.ino();
    let argument = match kind {
        Kind::Shared => FlockArg::LockSharedNonblock,
        Kind::Exclusive => FlockArg::LockExclusiveNonblock,
    };
    let locked = match Flock::lock(directory, argument) {
        Ok(locked) => locked,
        Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP)) => {
            tell_once(path);
            return Ok(by_file(path, kind)?.map(Held::File));
        }
        Err((_, errno)) => return Err(errno.into()),
    };
    // Somebody may have removed it, and made another of that name, before the lock was there.
    let is_there = fs::symlink_metadata(path).is_ok_and(|now| now.ino() == inode);
    Ok(is_there.then_some(Held::Kernel(locked)))
}

fn tell_once(path: &Path) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if !IS_TOLD.swap(true, Ordering::Relaxed) {
        warn(format_args!("the file system of {} has no locks; a file takes their place", path.display()));
    }
}

/// Who holds a lock, as its file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    host: String,
    boot: String,
    process: Process,
}

impl Owner {
    fn this_process() -> io::Result<Owner> {
        Ok(Owner { host: host()?, boot: boot()?, process: Process::of(nix::unistd::getpid())? })
    }

    /// Whether it is known to have ended.
    fn is_gone(&self) -> io::Result<bool> {
        if self.host != host()? {
            return Ok(false);
        }
        Ok(self.boot != boot()? || self.process.open()?.is_none())
    }
}

fn host() -> io::Result<String> {
    Ok(nix::sys::utsname::uname()?.nodename().to_string_lossy().into_owned())
}

/// What tells this boot of this machine from all others; random(4).
pub(crate) fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// A lock that is a file; removed by the process that has made it.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    maker: u32,
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if self.maker != std::process::id() {
            return;
        }
        match fs::remove_file(&self.path) {
            // With its directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn(format_args!("cannot remove the lock {}: {error}", self.path.display())),
            Ok(()) => {}
        }
    }
}

fn by_file(directory: &Path, kind: Kind) -> io::Result<Option<LockFile>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let owner = Owner::this_process()?;
    let name = match kind {
        Kind::Exclusive => EXCLUSIVE.to_owned(),
        Kind::Shared => {
            let (boot, process) = (owner.boot.get(..8).unwrap_or_default(), owner.process);
            format!("{SHARED}{boot}-{}-{}-{}", process.pid, process.start, COUNT.fetch_add(1, Ordering::Relaxed))
        }
    };
    let Some(file) = make(directory, &name, &owner)? else { return Ok(None) };
    let is_in_the_way = |other: &String| match kind {
        Kind::Exclusive => other.starts_with(SHARED),
        Kind::Shared => other == EXCLUSIVE,
    };
    for other in names(directory)?.into_iter().filter(is_in_the_way) {
        if !break_if_gone(directory, &other)? {
            return Ok(None);
        }
    }
    Ok(Some(file))
}

/// Makes a lock with its content at once; `None` where somebody who is not gone has made it, or the directory is not there.
fn make(directory: &Path, name: &str, owner: &Owner) -> io::Result<Option<LockFile>> {
    let path = directory.join(name);
    loop {
        let mut file = match tempfile::Builder::new().prefix(".new-lock-").tempfile_in(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        file.write_all(&serde_json::to_vec(owner)?)?;
        // As with O_EXCL, there is one of that name only; but nobody ever sees one without its content.
        match file.persist_noclobber(&path) {
            Ok(_) => return Ok(Some(LockFile { path, maker: std::process::id() })),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                if !break_if_gone(directory, name)? {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error.error),
        }
    }
}

/// Removes a lock whose owner is gone; whether it is not there any more.
fn break_if_gone(directory: &Path, name: &str) -> io::Result<bool> {
    let path = directory.join(name);
    if !is_gone(&path)? {
        return Ok(false);
    }
    // Somebody else may break it as well, and lock anew before we do. Only one gets hold of what is moved away.
    let aside = tempfile::Builder::new().prefix(".old-lock-").tempdir_in(directory)?;
    let moved = aside.path().join(name);
    match fs::rename(&path, &moved) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        result => result?,
    }
    if !is_gone(&moved)? {
        // It is that new one. If there is a third by now, its owner has seen none: that one stays.
        return match fs::hard_link(&moved, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(false),
        };
    }
    warn(format_args!("the lock {} was broken: who held it has ended", path.display()));
    Ok(true)
}

/// Whether the owner of a lock is gone, or the lock is.
fn is_gone(path: &Path) -> io::Result<bool> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        result => result?,
    };
    let owner: Owner = serde_json::from_slice(&text).map_err(|error| {
        io::Error::other(format!("{} is no lock ({error}); remove it if nobody uses the directory", path.display()))
    })?;
    owner.is_gone()
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(io::Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_of_both_forms_keep_the_same_promises() {
        type Take = fn(&Path, Kind) -> io::Result<Option<Lock>>;
        let file: Take = |path, kind| Ok(by_file(path, kind)?.map(|file| Lock { _held: Held::File(file) }));
        for take in [lock as Take, file] {
            let place = tempfile::tempdir().unwrap();
            let (one, two) = (take(place.path(), Kind::Shared).unwrap(), take(place.path(), Kind::Shared).unwrap());
            assert!(one.is_some() && two.is_some());
            assert!(take(place.path(), Kind::Exclusive).unwrap().is_none());
            drop(one);
            assert!(take(place.path(), Kind::Exclusive).unwrap().is_none());
            drop(two);
            let all = take(place.path(), Kind::Exclusive).unwrap();
            assert!(all.is_some());
            assert!(take(place.path(), Kind::Exclusive).unwrap().is_none());
            assert!(take(place.path(), Kind::Shared).unwrap().is_none());
            drop(all);
            assert!(take(place.path(), Kind::Shared).unwrap().is_some());
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left");
            assert!(take(&place.path().join("missing"), Kind::Shared).unwrap().is_none());
        }
    }

    #[test]
    fn a_directory_that_goes_at_this_moment_is_not_there() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("short");
        std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                for _ in 0..5_000 {
                    fs::create_dir(&path).unwrap();
                    fs::remove_dir(&path).unwrap();
                }
            });
            while !others.is_finished() {
                // Who gets the lock may have it; nobody gets an error.
                drop(lock(&path, Kind::Shared).unwrap());
            }
        });
    }

    #[test]
    fn a_lock_is_broken_when_its_owner_is_gone_for_certain() {
        let own = Owner::this_process().unwrap();
        let ended = Process { start: own.process.start + 1, ..own.process };
        for (owner, is_broken) in [
            (own.clone(), false),
            (Owner { process: ended, ..own.clone() }, true),
            (Owner { boot: "before".into(), ..own.clone() }, true),
            (Owner { host: "other".into(), process: ended, ..own.clone() }, false),
        ] {
            for (theirs, ours) in
                [(EXCLUSIVE, Kind::Shared), (EXCLUSIVE, Kind::Exclusive), (".lock-x", Kind::Exclusive)]
            {
                let place = tempfile::tempdir().unwrap();
                fs::write(place.path().join(theirs), serde_json::to_vec(&owner).unwrap()).unwrap();
                assert_eq!(by_file(place.path(), ours).unwrap().is_some(), is_broken, "{owner:?} {theirs} {ours:?}");
                let left = usize::from(!is_broken);
                assert_eq!(fs::read_dir(place.path()).unwrap().count(), left, "{owner:?} {theirs} {ours:?}");
            }
        }
    }

    #[test]
    fn what_is_no_lock_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(EXCLUSIVE), "").unwrap();
        let error = by_file(place.path(), Kind::Shared).unwrap_err();
        assert!(error.to_string().contains("is no lock"), "{error}");
    }
}
