//! Asking the daemon of a mount.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, geteuid};
use serde::de::DeserializeOwned;

use super::{Refusal, Request, Statistics, Status, place};
use crate::branch::hold::BranchId;
use crate::fs::Flushed;
use crate::mount::{FS_TYPE, is_fuse, table};

/// A daemon answers at once; one that does not is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a question that costs nothing, to each of many daemons.
const SHORT_PATIENCE: Duration = Duration::from_millis(250);

/// As short as a timeout can be: none at all would be for ever.
const SHORTEST: Duration = Duration::from_millis(1);

/// The type of a mount in the place of fuse-overlayfs.
const IN_ITS_PLACE: &str = "fuse.fuse-overlayfs";

/// That of a union of thousands of branches is shorter.
const LONGEST_ANSWER: usize = 16 << 20;

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The path cannot be looked at.
    #[error("cannot look at {}: {error}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something else is there.
    #[error("{} is not a runionfs mount", .0.display())]
    NotAMount(PathBuf),
    /// Another program's, or ours under its name.
    #[error(
        "{} is a mount of fuse-overlayfs, or of runionfs in its place whose control socket cannot be reached: it belongs \
         to another user, or was mounted without XDG_RUNTIME_DIR",
        .0.display()
    )]
    NoName(PathBuf),
    /// Nobody listens.
    #[error(
        "the daemon of {} has no control socket that can be reached ({socket}): it is gone, or could not write there \
         when it mounted, or belongs to another user",
        path.display()
    )]
    NoSocket {
        /// The mount point.
        path: PathBuf,
        /// Where it was looked for, and why it could not be reached.
        socket: String,
    },
    /// It did not answer, or nothing that can be read.
    #[error("the daemon of {} has no answer: {error}", path.display())]
    NoAnswer {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Finds the mount of ours that a path leads to. Neither the file system nor its daemon is asked.
pub fn find(path: &Path) -> Result<table::Entry, ClientError> {
    let failed = |error| ClientError::Path { path: path.to_path_buf(), error };
    let resolved = path.canonicalize().map_err(failed)?;
    let mounts = table::read().map_err(failed)?;
    let found = match table::at(&mounts, &resolved) {
        // of a user's mount not even root may look at more than where it is
        Some(entry) => Some(entry),
        None => {
            let device = table::device_at(&resolved).map_err(failed)?;
            mounts.iter().find(|entry| entry.device == device)
        }
    };
    match found {
        Some(entry) if is_fuse(&entry.fs_type) => named(entry, path).map_err(|error| {
            // it is no directory of its own, of which one could ask as of a branch
            let is_union = entry.fs_type == IN_ITS_PLACE && entry.target == resolved;
            if is_union { ClientError::NoName(path.to_path_buf()) } else { error }
        }),
        _ => Err(ClientError::NotAMount(path.to_path_buf())),
    }
}

/// All mounts of ours that are seen from here and belong to this user, or all to root; each file system once.
pub fn all() -> io::Result<Vec<table::Entry>> {
    let user = geteuid().as_raw();
    let mut found: Vec<table::Entry> = Vec::new();
    for entry in table::read()?.into_iter().filter(|entry| is_fuse(&entry.fs_type)) {
        let is_ours = || (user == 0 || owner(&entry) == user) && named(&entry, &entry.target).is_ok();
        if found.iter().all(|known| known.device != entry.device) && is_ours() {
            found.push(entry);
        }
    }
    Ok(found)
}

/// A mount that has our name, or another one and a socket of ours.
fn named(entry: &table::Entry, path: &Path) -> Result<table::Entry, ClientError> {
    let has_socket = || place::candidates(entry.device, owner(entry)).iter().any(|socket| socket.exists());
    match entry.fs_type == FS_TYPE || has_socket() {
        true => Ok(entry.clone()),
        false => Err(ClientError::NotAMount(path.to_path_buf())),
    }
}

/// Asks the daemon that holds a branch to give way, if it is one of this user's. Why it does not; nothing where it
/// does, or where none holds it.
pub fn ask_to_give_way(branch: BranchId) -> Option<String> {
    let mut daemons = place::all().into_iter().filter_map(|socket| {
        let stream = UnixStream::connect(&socket).ok()?;
        Some(Client { path: socket, stream })
    });
    let holds = |daemon: &mut Client| daemon.ask(Request::Holds(branch), Some(SHORT_PATIENCE)).unwrap_or(false);
    let mut holder = daemons.find_map(|mut daemon| holds(&mut daemon).then_some(daemon))?;
    match holder.ask::<()>(Request::GiveWay(branch), Some(PATIENCE)) {
        Ok(()) => None,
        Err(ClientError::NoAnswer { error, .. }) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// A connection to the daemon of a mount.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects to the daemon of a mount.
    pub fn connect(mount: &table::Entry) -> Result<Client, ClientError> {
        let mut tried = Vec::new();
        for socket in place::candidates(mount.device, owner(mount)) {
            match UnixStream::connect(&socket) {
                Ok(stream) => return Ok(Client { path: mount.target.clone(), stream }),
                Err(error) => tried.push(format!("{}: {error}", socket.display())),
            }
        }
        if tried.is_empty() {
            tried.push(place::NOWHERE.into());
        }
        Err(ClientError::NoSocket { path: mount.target.clone(), socket: tried.join("; ") })
    }

    /// Asks for the status.
    pub fn show(&mut self) -> Result<Status, ClientError> {
        self.ask(Request::Show, Some(PATIENCE))
    }

    /// Asks for what was counted.
    pub fn stats(&mut self) -> Result<Statistics, ClientError> {
        self.ask(Request::Stats, Some(PATIENCE))
    }

    /// Has hard links flushed, and waits as long as that takes.
    pub fn flush(&mut self) -> Result<Flushed, ClientError> {
        self.ask(Request::Flush, None)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: Request, patience: Option<Duration>) -> Result<T, ClientError> {
        let answer = self.ask_line(request, patience).and_then(|line| {
            serde_json::from_slice(&line).map_err(|error| match serde_json::from_slice(&line) {
                Ok(Refusal { error }) => io::Error::other(error),
                Err(_) => error.into(),
            })
        });
        answer.map_err(|error| ClientError::NoAnswer { path: self.path.clone(), error })
    }

    fn ask_line(&mut self, request: Request, patience: Option<Duration>) -> io::Result<Vec<u8>> {
        self.stream.set_write_timeout(patience)?;
        self.stream.write_all(request.line().as_bytes())?;
        let deadline = patience.map(|patience| Instant::now() + patience);
        let (mut line, mut piece) = (Vec::new(), [0; 16 << 10]);
        // the daemon may be another user's, who means no good
        while !line.ends_with(b"\n") {
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                self.stream.set_read_timeout(Some(left).filter(|left| !left.is_zero()).or(Some(SHORTEST)))?;
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::Error::other("it hung up")),
                Ok(length) => line.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Errno::TIMEDOUT.into()),
                Err(error) => return Err(error),
            }
            if line.len() > LONGEST_ANSWER || deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Err(io::Error::other("it says too much, or too slowly"));
            }
        }
        Ok(line)
    }

    /// Waits until the daemon has ended, so that its branches are free. Whether it did in time.
    pub fn wait_for_end(self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        match self.process()? {
            // its end, when all its descriptors and locks are gone
            Some(process) => wait(&process, PollFlags::IN, deadline),
            // the next best: the end of its connection
            None => wait(&self.stream, PollFlags::IN, deadline),
        }
    }

    /// The daemon as a process, where it can be seen from here.
    fn process(&self) -> io::Result<Option<impl AsFd>> {
        // 0 where it is in a pid namespace that is not seen from here
        let Some(pid) = Pid::from_raw(getsockopt(&self.stream, PeerCredentials)?.pid()) else {
            return Ok(None);
        };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => Ok(Some(process)),
            // before Linux 5.3, or behind a filter that does not know the call; ended by now
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn wait(what: &impl AsFd, event: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(what, event)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// The user who mounted it.
fn owner(mount: &table::Entry) -> u32 {
    let options = mount.options.to_string_lossy();
    options.split(',').find_map(|word| word.strip_prefix("user_id=")?.parse().ok()).unwrap_or(0)
}
