//! One start: from the options to the exit status.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::prctl::{set_child_subreaper, set_name};

use crate::cgroup::Cgroups;
use crate::child::Child;
use crate::confine::{Surroundings, restrict_helper, seal};
use crate::detach::{self, Ready};
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::host::Host;
use crate::message::say;
use crate::mount_table::{Shown, Submount};
use crate::namespace::Share;
use crate::process::channel::Channel;
use crate::process::signals::Signals;
use crate::process::supervisor::Supervisor;
use crate::rootless::{self, Ids};
use crate::scratch::Scratch;
use crate::spec::{Root, Spec, Top};
use crate::state::{self, Entry, Process, Record, Settings};
use crate::union::{Daemon, Memory, Plan, Stack};
use crate::{apt, host, process, steps};

/// Runs a container to its end; the exit status is the command's.
///
/// # Errors
/// Where the command was not started, or lost its files.
pub fn start(options: crate::options::Options) -> Result<u8, Failure> {
    process::close_all_descriptors().doing("close what was left open for this program")?;
    seal::ensure()?;
    let ids = rootless::enter()?;
    set_name(c"rlaunch").doing("set this process's name")?;
    match options.detach {
        true => detach::start(|ready| start_here(options, ids, Some(ready))),
        false => start_here(options, ids, None),
    }
}

fn start_here(
    mut options: crate::options::Options,
    ids: Option<Ids>,
    mut ready: Option<&mut Ready>,
) -> Result<u8, Failure> {
    let surroundings = Surroundings::observe(&options.confine)?;
    let mut host = match (&mut options.rootfs, &options.branches) {
        (Some(tree), _) => {
            *tree = host::resolve_tree(tree)?;
            Host::observe()
        }
        (None, Some(_)) => Host::observe(),
        (None, None) => Host::observe_for_a_copy()?,
    };
    if ids == Some(Ids::Single) {
        apt::do_without_user(&mut host);
    }
    let (name, rm) = (options.name.clone(), options.rm);
    let capabilities = surroundings.capabilities;
    let mut spec = Spec::new(options, Host { surroundings, ..host })?;
    spec.confinement.clamp_limits(capabilities)?;
    let record = record(&spec, ready.is_some()).doing("look at this process")?;
    let mut entry = Entry::create(name.as_deref(), record)?;
    if ready.is_some() {
        detach::print_to(&entry.log().doing("make the container's log")?)?;
    }
    let signals = Signals::take_over().doing("take over signals")?;
    let has_union = !matches!(spec.root, Root::Tree(_));
    let cgroups = Cgroups::create(&spec.limits, &entry.record.name, has_union)?;
    (spec.cgroups, spec.joins) = (cgroups.view(), cgroups.to_join());
    if cgroups.devices_are_limited() {
        spec.confinement.rely_on_device_list();
    }
    entry.record.settings = Settings::of(&spec).doing("look at this process")?;
    spec.confinement.devices.iter().try_for_each(|device| cgroups.allow(&device.rule()))?;
    let mut started = |name: &str| ready.as_mut().map_or(Ok(()), |ready| ready.started(name));
    let session = &mut Session { signals: &signals, cgroups: &cgroups, entry: &mut entry, started: &mut started };
    let result = start_on(&spec, session);
    cgroups.memory_report().iter().for_each(say);
    if let Ok(status) = &result
        && entry.record.detached
        && !rm
    {
        entry.record.status = Some(*status);
        entry.write().doing("remember how the container has ended")?;
        entry.remember();
    }
    result
}

/// What a start has to do with beside the container itself.
struct Session<'a> {
    signals: &'a Signals,
    cgroups: &'a Cgroups,
    entry: &'a mut Entry,
    /// Called with the container's name once the command runs.
    started: &'a mut dyn FnMut(&str) -> Result<(), Failure>,
}

fn record(spec: &Spec, detached: bool) -> std::io::Result<Record> {
    Ok(Record {
        name: String::new(),
        command: spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        root: match &spec.root {
            Root::Tree(tree) => tree.display().to_string(),
            Root::Branches(branches) => unionfs::options::branches::print(branches).display().to_string(),
            Root::HostCopy { .. } => "copy of the host".to_owned(),
        },
        created: state::now(),
        launcher: Process::of(nix::unistd::getpid())?,
        init: None,
        daemon: None,
        detached,
        status: None,
        settings: Settings::of(spec)?,
    })
}

fn start_on(spec: &Spec, session: &mut Session<'_>) -> Result<u8, Failure> {
    match &spec.root {
        Root::Tree(_) => run(spec, session, None),
        Root::Branches(branches) => {
            let scratch = Scratch::create(&[])?;
            let stacks = vec![Stack::of_branches(branches, scratch.init()?, spec)];
            run_on_unions(spec, session, &scratch, &Plan { stacks, scratch: scratch.path(), memory: None })
        }
        Root::HostCopy { submounts, top, .. } => {
            submounts.iter().for_each(tell);
            run_over_the_host(spec, session, parts(submounts), top)
        }
    }
}

fn run_over_the_host(spec: &Spec, session: &mut Session<'_>, parts: Vec<&Path>, top: &Top) -> Result<u8, Failure> {
    let scratch = match top {
        Top::OnDisk => Scratch::create(&parts)?,
        Top::InMemory(_) => Scratch::create(&[])?,
        Top::Kept { path, force } => Scratch::keep(path, *force, &parts)?,
    };
    let is_kept = matches!(top, Top::Kept { .. });
    let stack = |part: &&Path| Stack::over_the_host(&scratch.top(part), part, is_kept);
    let stacks = parts.iter().map(stack).collect();
    let memory = match top {
        Top::InMemory(size) => Some(Memory { size, parts }),
        Top::OnDisk | Top::Kept { .. } => None,
    };
    run_on_unions(spec, session, &scratch, &Plan { stacks, scratch: scratch.path(), memory })
}

/// What of the host has a union of its own, in the order in which they are mounted.
fn parts(submounts: &[Submount]) -> Vec<&Path> {
    let unions = submounts.iter().filter(|submount| matches!(submount.shown, Shown::Union(_)));
    [Path::new("/")].into_iter().chain(unions.map(|submount| submount.path.as_path())).collect()
}

fn tell(submount: &Submount) {
    if let Shown::FarAway(kind) = &submount.shown {
        say(format_args!("note: {} ({kind}) is shown read-only", submount.path.display()));
    }
}

fn run_on_unions(spec: &Spec, session: &mut Session<'_>, scratch: &Scratch, plan: &Plan<'_>) -> Result<u8, Failure> {
    let devices = plan.stacks.iter().map(|_| open_device()).collect::<Result<Vec<_>, _>>()?;
    // In this order, so that they go in the other: the directory is removed once nobody writes there any more.
    let mut daemon = Daemon::start(plan, &devices, session.cgroups)?;
    let result = run(spec, session, Some(Unions { devices, scratch, daemon: &mut daemon }));
    match daemon.finish() {
        Err(failure) if result.is_ok() => Err(failure),
        _ => result,
    }
}

fn open_device() -> Result<OwnedFd, Failure> {
    let remedy = "load the module with modprobe fuse or, in a container, pass the device to it";
    unionfs::mount::open_device().doing("open /dev/fuse").map_err(|failure| failure.remedy(remedy))
}

/// What a container on unions needs of its launcher.
struct Unions<'a> {
    devices: Vec<OwnedFd>,
    scratch: &'a Scratch,
    daemon: &'a mut Daemon,
}

fn run(spec: &Spec, session: &mut Session<'_>, unions: Option<Unions<'_>>) -> Result<u8, Failure> {
    let steps = steps::plan(spec);
    let signals = session.signals;
    let adopts = spec.namespaces.pid == Share::Host;
    if adopts {
        set_child_subreaper(true).doing("look after the container's processes")?;
    }
    let (ours, theirs) = Channel::pair().doing("make a channel to the container's first process")?;
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    let (mut devices, mount_point, daemon) = match unions {
        Some(unions) => (unions.devices, Some(unions.scratch.mount_point()), Some(unions.daemon)),
        None => (Vec::new(), None, None),
    };
    // The child works on its own copy of this memory: what it takes stays here, and what it drops closes only its own
    // descriptors. It drops the launcher's end, so that it notices when the launcher ends.
    let birthplace = session.cgroups.birthplace();
    let init = process::clone_into(spec.namespaces.made_with_the_process(), birthplace, || {
        drop(ours.take());
        let channel = theirs.take();
        let devices = std::mem::take(&mut devices).into_iter();
        let mount_point = mount_point.clone();
        let child = channel.map(|channel| Child { steps: &steps, signals, channel, adopts, devices, mount_point });
        child.map_or(OWN_FAILURE, Child::run)
    })
    .doing("make the container's namespaces")?;
    let process::Started { pid: init, is_in_cgroup } = init;
    if let Err(failure) = if is_in_cgroup { Ok(()) } else { session.cgroups.admit(init) } {
        // It has not been told to go on, and ends with the channel.
        drop(ours);
        return process::wait_for(init).doing("wait for the container's first process").and(Err(failure));
    }
    restrict_helper().doing("keep others from tracing the launcher")?;
    // The daemon and the child have theirs. A device that is open here would outlive the daemon.
    drop((devices, theirs));
    let Some(channel) = ours else { return Ok(OWN_FAILURE) };
    let serving = daemon.as_ref().map(|daemon| daemon.pid());
    // Neither has been waited for, so they are there, ended or not.
    session.entry.record.init = Some(Process::of(init).doing("look at the container's first process")?);
    session.entry.record.daemon = serving.map(Process::of).transpose().doing("look at the union's daemon")?;
    session.entry.write().doing("keep a record of the container")?;
    let name = session.entry.record.name.clone();
    let started = || (session.started)(&name);
    let result = Supervisor::new(&steps, signals, init, channel, daemon).run(started);
    if adopts {
        process::end_children(serving).doing("end what the container has left")?;
    }
    result
}
