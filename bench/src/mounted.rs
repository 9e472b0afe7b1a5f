//! One mount and its daemon: taken away whatever state they are in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::watchdog::abort;

const PATIENCE: Duration = Duration::from_secs(10);

/// Something mounted by a contender. Dropping it unmounts, and waits for the end of the daemon.
#[derive(Debug)]
pub(crate) struct Mounted {
    target: PathBuf,
    daemon: Option<Pid>,
    connection: Option<u64>,
}

impl Mounted {
    /// Takes over what a mount command, successful or not, has left at `target`; `before` are the children there were
    /// before it.
    pub(crate) fn adopt(target: &Path, before: &[Pid]) -> io::Result<Mounted> {
        let connection = find(target)?.and_then(|mount| mount.connection());
        let daemon = children().into_iter().find(|pid| !before.contains(pid));
        Ok(Mounted { target: target.to_owned(), daemon, connection })
    }

    /// Where it is mounted.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The process that serves it, where one does.
    pub(crate) fn daemon(&self) -> Option<Pid> {
        self.daemon
    }

    /// The number of the FUSE connection, where it is one.
    pub(crate) fn connection(&self) -> Option<u64> {
        self.connection
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = poll(Duration::from_secs(5), || match umount2(&self.target, MntFlags::empty()) {
            // A child that was killed may still be closing its files.
            Err(Errno::EBUSY) => None,
            result => Some(result),
        });
        if unmounted != Some(Ok(())) {
            self.connection.into_iter().for_each(abort);
            // EINVAL: the daemon has unmounted it already.
            umount2(&self.target, MntFlags::MNT_DETACH).unwrap_or_default();
        }
        let Some(daemon) = self.daemon else { return };
        if poll(PATIENCE, || has_ended(daemon).then_some(())).is_none() {
            self.connection.into_iter().for_each(abort);
            kill(daemon, Signal::SIGKILL).unwrap_or_default();
            poll(PATIENCE, || has_ended(daemon).then_some(()));
        }
    }
}

fn has_ended(child: Pid) -> bool {
    waitpid(child, Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive)
}

fn poll<T>(limit: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One line of the kernel's table of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    kind: String,
    device: (u64, u64),
}

impl Mount {
    /// The minor number of a FUSE file system's device is the number of its connection.
    fn connection(&self) -> Option<u64> {
        let is_fuse = self.kind == "fuse" || self.kind.starts_with("fuse.");
        (is_fuse && self.device.0 == 0).then_some(self.device.1)
    }
}

fn find(target: &Path) -> io::Result<Option<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().rev().find_map(|line| parse(line, target)))
}

/// proc(5): `36 35 98:0 /root /mount/point options - type source options`. Targets of ours have nothing to escape.
fn parse(line: &str, target: &Path) -> Option<Mount> {
    let fields: Vec<&str> = line.split(' ').collect();
    if Path::new(*fields.get(4)?) != target {
        return None;
    }
    let (major, minor) = fields.get(2)?.split_once(':')?;
    let separator = fields.iter().position(|field| *field == "-")?;
    let kind = (*fields.get(separator + 1)?).to_owned();
    Some(Mount { kind, device: (major.parse().ok()?, minor.parse().ok()?) })
}

/// The processes whose parent is this one, but those that have ended.
pub(crate) fn children() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = Pid::this().as_raw();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // A process that has ended meanwhile has no file any more.
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        parse_stat(&stat).is_some_and(|(state, parent)| state != "Z" && parent == own)
    };
    pids.filter(is_child).map(Pid::from_raw).collect()
}

/// proc(5): `pid (name) state parent …`; the name may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(&str, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuse_mount_is_known_by_its_connection() {
        let line = "99 30 0:57 / /m/t rw,relatime shared:1 - fuse.runionfs a=rw:b=ro rw,user_id=0";
        let mount = parse(line, Path::new("/m/t")).unwrap();
        assert_eq!(mount.connection(), Some(57));
        assert_eq!(parse(line, Path::new("/m")), None);
    }

    #[test]
    fn a_process_may_have_any_name() {
        assert_eq!(parse_stat("12 (a) b ) (c) S 7 12 12 0"), Some(("S", 7)));
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn other_mounts_have_no_connection() {
        let overlay = parse("99 30 0:58 / /m rw - overlay overlay rw", Path::new("/m")).unwrap();
        assert_eq!(overlay.connection(), None);
        let fusectl = parse("99 30 0:59 / /m rw - fusectl fusectl rw", Path::new("/m")).unwrap();
        assert_eq!(fusectl.connection(), None);
    }
}
