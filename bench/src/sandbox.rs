//! Where the measuring happens.
//!
//! The bench starts itself once more as the first process of a pid and a mount namespace. So nothing that it mounts is
//! seen outside, orphans become its children (every daemon is known), and when it ends, however that happens, the kernel
//! ends all daemons and takes all mounts away.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::medium::{self, Ground, Medium};
use crate::options::Options;
use crate::tree::Scale;
use crate::watchdog::CONNECTIONS;

/// Starts this program again inside its own namespaces and waits for it.
pub(crate) fn run_inside() -> io::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err(io::Error::other("mounting needs root (try sudo)"));
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
    let arguments = std::env::args_os().skip(1);
    let status = Command::new(std::env::current_exe()?).arg("--inside").args(arguments).status()?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => ExitCode::from(u8::try_from(128 + signal.unwrap_or(0)).unwrap_or(u8::MAX)),
    })
}

/// The places where trees and mounts lie.
#[derive(Debug)]
pub(crate) struct Sandbox {
    store: PathBuf,
    /// A number that no other run has at the same time.
    pub(crate) key: u64,
    /// The size of the trees.
    pub(crate) scale: Scale,
    /// How long one measurement may take.
    pub(crate) limit: Duration,
    // Two runs at the same time would disturb each other and could make the same tree twice.
    _lock: Option<Flock<File>>,
}

impl Sandbox {
    /// Mounts what is needed and moves to the CPU that was asked for.
    pub(crate) fn set_up(options: &Options) -> io::Result<Sandbox> {
        // Whatever ends the process outside ends this one.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        mount(none(), "/", none(), MsFlags::MS_REC | MsFlags::MS_PRIVATE, none())?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none())?;
        if fs::read_dir(CONNECTIONS)?.next().is_none() {
            mount(Some("fusectl"), CONNECTIONS, Some("fusectl"), MsFlags::empty(), none())?;
        }
        if let Some(cpu) = options.pin {
            pin(cpu)?;
        }

        fs::create_dir_all(&options.store)?;
        let lock = lock(&options.store)?;
        let sandbox = Sandbox { _lock: Some(lock), ..Sandbox::join(options)? };
        let Ground { trees, tops } = sandbox.ground(Medium::Usual);
        fs::create_dir_all(&trees)?;
        fs::create_dir_all(&tops)?;
        match &options.top {
            Some(top) => mount(Some(&scratch(top)?), &tops, none(), MsFlags::MS_BIND, none())?,
            None => mount(Some("tmpfs"), &tops, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?,
        }
        Ok(sandbox)
    }

    /// Uses what the parent of this process has set up with the same options.
    pub(crate) fn join(options: &Options) -> io::Result<Sandbox> {
        let store = options.store.canonicalize()?;
        let scale = if options.quick { Scale::Quick } else { Scale::Full };
        Ok(Sandbox {
            key: fs::metadata(&store)?.ino(),
            store,
            scale,
            limit: Duration::from_secs(options.timeout()),
            _lock: None,
        })
    }

    /// The folders of a medium, for this scale.
    pub(crate) fn ground(&self, medium: Medium) -> Ground {
        medium.ground(&self.store, self.scale)
    }

    /// Mounts a medium, so that its folders are there.
    pub(crate) fn mount(&self, medium: Medium) -> io::Result<()> {
        medium.mount(&self.store, self.scale)
    }

    /// From now on nobody can change the lower trees, however wrong a contender is.
    pub(crate) fn protect_lower_trees(&self) -> io::Result<()> {
        for medium in [Medium::Usual, Medium::Btrfs, Medium::Xfs] {
            let trees = self.ground(medium).trees;
            // A medium that no workload needs is not mounted.
            if trees.is_dir() {
                mount(Some(&trees), &trees, none(), MsFlags::MS_BIND, none())?;
                let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
                mount(none(), &trees, none(), read_only, none())?;
            }
        }
        Ok(())
    }
}

fn none() -> Option<&'static str> {
    None
}

fn pin(cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

fn lock(store: &Path) -> io::Result<Flock<File>> {
    let file = File::create(store.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| io::Error::other(format!("another bench uses {} (see --store)", store.display())))
}

/// A folder of our own below the one that was given, emptied of what a run that was killed has left.
fn scratch(top: &Path) -> io::Result<PathBuf> {
    let scratch = top.canonicalize()?.join("runionfs-bench-tops");
    medium::empty(&scratch)?;
    Ok(scratch)
}
