//! A container that stands still for as long as something is read of it, and goes on whatever becomes of the reader.
//!
//! A second process watches over the first one, which may be killed at any moment: it waits for the end of a pipe and, if
//! it has heard that the container was stopped and not that it goes on, lets it go on then. It is there before the container is stopped,
//! in a session of its own, so that what a terminal sends to the first does not reach it.
//!
//! Only one at a time: whoever finds a container that stands still would take that for what its user has wanted.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::prctl::set_name;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, setsid};

use crate::cgroup::Cgroups;
use crate::failure::{Doing as _, Failure};
use crate::message::warn;
use crate::process;
use crate::state::Record;

const LOCK: &str = "pausing";
/// What `ps` shows of who watches.
const NAME: &std::ffi::CStr = c"rlaunch: resume";

/// What is told to who watches, in this order.
const STOPPED: &[u8] = b"s";
const GOES_ON: &[u8] = b"g";

/// A container that can be stopped. Once it was, it stands still until this is dropped.
#[derive(Debug)]
pub(crate) struct Paused {
    record: Record,
    cgroups: Cgroups,
    watcher: Pid,
    told: Option<PipeWriter>,
    /// Whether it was stopped by this process, and is to go on.
    is_ours: bool,
    _turn: Flock<File>,
}

impl Paused {
    /// Gets ready for it, and waits for whoever else is. This process has one thread.
    ///
    /// # Errors
    /// Where there can be nobody who watches.
    pub(crate) fn ready(record: &Record, cgroups: Cgroups, directory: &Path) -> Result<Paused, Failure> {
        let doing = "watch over the container";
        let turn = take_turn(&directory.join(LOCK)).doing(doing)?;
        stay().doing(doing)?;
        let (watcher, told) = watch(&cgroups).doing(doing)?;
        Ok(Paused { record: record.clone(), cgroups, watcher, told: Some(told), is_ours: false, _turn: turn })
    }

    /// Stops it, unless its user has done that already.
    ///
    /// # Errors
    /// Where it does not stop, or this machine cannot do that.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        if self.cgroups.is_frozen() {
            return Ok(());
        }
        if let Some(told) = &mut self.told {
            told.write_all(STOPPED).doing("tell who watches over the container")?;
        }
        // Where not all of it could be stopped, who watches lets the rest go on.
        self.cgroups.freeze().inspect(|()| self.is_ours = true)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let thawed = if self.is_ours { self.cgroups.thaw() } else { Ok(()) };
        if let (true, Ok(()), Some(told)) = (self.is_ours, &thawed, &mut self.told) {
            // Who was killed meanwhile need not hear it.
            drop(told.write_all(GOES_ON));
        }
        // Who was not told does it once more.
        drop(self.told.take());
        let waited = process::wait_for(self.watcher).doing("wait for who watches");
        // One that was killed while it stood still has no cgroup any more.
        let runs = self.record.open_init().is_ok_and(|init| init.is_some());
        if let (true, Err(failure)) = (runs, thawed.and(waited)) {
            warn(format_args!("the container {} may still be paused: {failure}", self.record.name));
        }
    }
}

fn take_turn(path: &Path) -> io::Result<Flock<File>> {
    let file =
        File::options().write(true).create(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// A key of the terminal must not make this process stand still, too.
fn stay() -> Result<(), nix::errno::Errno> {
    [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect::<SigSet>().thread_block()
}

fn watch(cgroups: &Cgroups) -> io::Result<(Pid, PipeWriter)> {
    let (ends, told) = io::pipe()?;
    let mut told = Some(told);
    let watcher = process::fork(|| {
        // Its own end of it would keep the pipe open.
        drop(told.take());
        u8::from(watch_over(ends, cgroups).is_err())
    })?;
    told.map(|told| (watcher, told)).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
}

/// Waits for the end of the other process.
fn watch_over(mut ends: PipeReader, cgroups: &Cgroups) -> io::Result<()> {
    setsid()?;
    SigSet::all().thread_block()?;
    set_name(NAME)?;
    let mut told = Vec::new();
    ends.read_to_end(&mut told)?;
    if told == STOPPED { cgroups.thaw().map_err(io::Error::other) } else { Ok(()) }
}
