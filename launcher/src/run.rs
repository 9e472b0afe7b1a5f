//! One start: from the options to the exit status.

use std::os::fd::OwnedFd;

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
use crate::{host, namespace, process, steps};

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
