//! `rlaunch`: runs a command in a container.
//!
//! A container is a process with namespaces and a root of its own. The root is a directory (`--rootfs`), or a throw-away
//! copy of this machine: a union of a new directory on disk over the host's `/`, gone when the command has ended.
//!
//! # The story of a start
//!
//! ```text
//! options ─> Spec (what) ─> Steps (how, a list) ─> run
//!
//! launcher ───────────────┬── channel ──┬─> child, pid 1: does the steps, then reaps ──> the command
//!   hears, passes on,     │             │
//!   waits, cleans up      └── channel ──┴─> union's daemon, outside of all namespaces (copy of the host only)
//! ```
//!
//! The child is cloned straight into its namespaces and does one step after the other. A failure is told by number:
//! both sides have the same list. When the channel ends without one, the command runs, for the channel closes on exec.
//!
//! # Invariants
//!
//! - Nothing is changed in the host's mount table, ever; nothing of a container outlives its launcher, also when that is
//!   killed (but for the directory on disk, which the next start removes).
//! - Until the root is entered, paths in it are walked from its descriptor, and no link is followed.
//! - The launcher has one thread.
//! - The exit status is the command's, 128 + n when signal n ended it, 127 when it is not there, 126 when it cannot be
//!   executed, 125 when we failed.
//!
//! # Files
//!
//! | File | Question |
//! |---|---|
//! | [`options`], [`host`], [`spec`] | what was asked for, what is there, what it comes to |
//! | [`steps`] | how it is done, and the words for what fails |
//! | `child`, `namespace`, `rootfs`, `terminal` | doing the steps |
//! | `union`, `scratch`, `mount_table` | the throw-away copy of the host |
//! | `process` | clone and fork, channel, signals, pid 1, supervisor; the only `unsafe` code |
//! | [`failure`], `message` | exit statuses and what is told |
#![deny(unsafe_code)]

pub mod failure;
pub mod host;
pub mod options;
pub mod spec;
pub mod steps;

mod child;
mod message;
mod mount_table;
mod namespace;
#[allow(unsafe_code)]
mod process;
mod rootfs;
mod scratch;
mod terminal;
mod union;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use clap::Parser as _;

use crate::child::Child;
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::host::Host;
use crate::options::Options;
use crate::process::channel::Channel;
use crate::process::signals::Signals;
use crate::process::supervisor::Supervisor;
use crate::scratch::Scratch;
use crate::spec::{Root, Spec};
use crate::union::Daemon;

/// The program: a launcher or, under the daemon's name, the union's daemon.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == OsStr::new(union::daemon::NAME)) {
        return union::daemon::main(arguments);
    }
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Help and version are no failures. With the stream closed there is nobody to tell.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(OWN_FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    match start(options) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            message::say(&failure);
            ExitCode::from(failure.status)
        }
    }
}

/// Runs a container to its end; the exit status is the command's.
///
/// # Errors
/// Where the command was not started, or lost its files.
pub fn start(mut options: Options) -> Result<u8, Failure> {
    process::close_all_descriptors().doing("close what was left open for this program")?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("containers can only be started by root for now; use sudo"));
    }
    let host = match &mut options.rootfs {
        Some(tree) => {
            *tree = host::resolve_tree(tree)?;
            Host::observe()
        }
        None => Host::observe_for_a_copy()?,
    };
    let spec = Spec::new(options, host)?;
    let signals = Signals::take_over().doing("take over signals")?;
    match spec.root {
        Root::Tree(_) => run(&spec, &signals, None),
        Root::HostCopy { .. } => run_over_the_host(&spec, &signals),
    }
}

fn run_over_the_host(spec: &Spec, signals: &Signals) -> Result<u8, Failure> {
    let remedy = "load the module with modprobe fuse or, in a container, pass the device to it";
    let device = unionfs::mount::open_device().doing("open /dev/fuse").map_err(|failure| failure.remedy(remedy))?;
    // In this order, so that they go in the other: the directory is removed once nobody writes there any more.
    let scratch = Scratch::create()?;
    let mut daemon = Daemon::start(&device, &scratch.top())?;
    let result = run(spec, signals, Some(Union { device, scratch: &scratch, daemon: &mut daemon }));
    match daemon.finish() {
        Err(failure) if result.is_ok() => Err(failure),
        _ => result,
    }
}

/// What a container over the host needs of its launcher.
struct Union<'a> {
    device: OwnedFd,
    scratch: &'a Scratch,
    daemon: &'a mut Daemon,
}

fn run(spec: &Spec, signals: &Signals, union: Option<Union<'_>>) -> Result<u8, Failure> {
    let steps = steps::plan(spec);
    let (ours, theirs) = Channel::pair().doing("make a channel to the container's first process")?;
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    let (mut device, daemon) = match union {
        Some(union) => (Some((union.device, union.scratch.mount_point())), Some(union.daemon)),
        None => (None, None),
    };
    // The child works on its own copy of this memory: what it takes stays here, and what it drops closes only its own
    // descriptors. It drops the launcher's end, so that it notices when the launcher ends.
    let init = process::clone_into(namespace::NAMESPACES, || {
        drop(ours.take());
        let channel = theirs.take();
        let union = device.take();
        channel.map_or(OWN_FAILURE, |channel| Child { steps: &steps, signals, channel, union }.run())
    })
    .doing("make the container's namespaces")?;
    // The daemon and the child have theirs. A device that is open here would outlive the daemon.
    drop((device, theirs));
    match ours {
        Some(channel) => Supervisor::new(&steps, signals, init, channel, daemon).run(),
        None => Ok(OWN_FAILURE),
    }
}
