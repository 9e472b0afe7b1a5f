//! One start: from the options to the exit status.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_child_subreaper, set_name};
use nix::unistd::chdir;
use unionfs::options::BranchSpec;

use crate::cgroup::{Cgroups, Counting};
use crate::child::Child;
use crate::confine::{Recorded, Surroundings, restrict_helper, seal};
use crate::detach::{self, Ready};
use crate::failure::{CANNOT_EXECUTE, Doing as _, Failure, OWN_FAILURE};
use crate::host::Host;
use crate::image::launch::Held;
use crate::init_branch::Contents;
use crate::message::say;
use crate::mount_table::{Shown, Submount};
use crate::namespace::{Network, Share};
use crate::options::{self, Command, Options};
use crate::proc_view::ProcView;
use crate::process::channel::Channel;
use crate::process::signals::Signals;
use crate::process::supervisor::Supervisor;
use crate::rootless::{self, Ids};
use crate::scratch::Scratch;
use crate::spec::{Root, Spec, Top};
use crate::state::{self, Entry, Origin, Process, Record, Settings, Word};
use crate::union::{Daemon, Memory, Plan, Stack, requests};
use crate::{apt, delegation, host, image, lock, mount_table, network, process, steps};

/// Runs a container to its end; the exit status is the command's.
///
/// # Errors
/// Where the command was not started, or lost its files.
pub fn start(options: Options) -> Result<u8, Failure> {
    delegation::enter(&options.limits)?;
    let ids = prepare(&options)?;
    launch(Request { options, origin: Origin::here(), again: None }, ids)
}

/// Runs one that was kept once more, as it was asked for in the first place.
///
/// # Errors
/// As for the first start, or where it runs already.
pub(crate) fn start_again(record: Record, attach: bool) -> Result<u8, Failure> {
    let doing = format!("start {} again", record.name);
    let missing = || Failure::because(&doing, "it is not one that is kept");
    let origin = record.settings.origin.ok_or_else(missing)?;
    // Paths that were named count from there, and are made absolute as soon as they are read.
    if let Some(directory) = origin.directory() {
        chdir(&directory).doing(&format!("enter {}, where the container was made", directory.display()))?;
    }
    let Ok(Command::Run(mut options)) = options::parse(origin.words()) else {
        return Err(Failure::because(&doing, "its record is of another version of this program"));
    };
    delegation::enter(&options.limits)?;
    let ids = prepare(&options)?;
    options.detach = !attach;
    launch(Request { options: *options, origin, again: Some(record.name) }, ids)
}

/// What is to be started.
struct Request {
    options: Options,
    origin: Origin,
    /// The container that is started again.
    again: Option<String>,
}

fn prepare(options: &Options) -> Result<Option<Ids>, Failure> {
    let maps = options.namespaces.id_maps()?;
    process::close_all_descriptors().doing("close what was left open for this program")?;
    host::check_streams()?;
    seal::ensure()?;
    let ids = rootless::enter(maps.as_ref())?;
    set_name(c"rlaunch").doing("set this process's name")?;
    Ok(ids)
}

fn launch(request: Request, ids: Option<Ids>) -> Result<u8, Failure> {
    match request.options.detach {
        true => detach::start(|ready| start_here(request, ids, Some(ready))),
        false => start_here(request, ids, None),
    }
}

fn start_here(request: Request, ids: Option<Ids>, mut ready: Option<&mut Ready>) -> Result<u8, Failure> {
    let Request { mut options, origin, again } = request;
    let image = options.image.as_deref().map(Held::find).transpose()?;
    image.iter().try_for_each(|image| image.fill(&mut options))?;
    let mut surroundings = Surroundings::observe(&options.confine, |name| origin.variable(name))?;
    surroundings.variables.splice(0..0, image.iter().flat_map(Held::variables));
    let host = observe(&mut options, ids, &origin)?;
    let host = Host { image: image.as_ref().map(Held::root), ..host };
    let capabilities = surroundings.capabilities;
    let name = options.name.clone();
    let is_kept = !options.rm && (name.is_some() || options.detach);
    let view = options.proc_view;
    let mut spec = Spec::new(options, Host { surroundings, ..host })?;
    if ids.is_some() {
        // They are those of the namespace in which this process is already.
        spec.id_maps = None;
    }
    check_maps(&spec)?;
    spec.confinement.clamp_limits(capabilities)?;
    let mut record = record(&spec, ready.is_some()).doing("look at this process")?;
    if let Some(image) = &image {
        image.tell(&mut record);
    }
    (record.kept, record.settings.origin) = (is_kept, is_kept.then_some(origin));
    let mut entry = match &again {
        Some(name) => Entry::start_again(name, record)?,
        None => Entry::create(name.as_deref(), record)?,
    };
    if ready.is_some() {
        detach::print_to(&entry.log()?)?;
    }
    let signals = Signals::take_over().doing("take over signals")?;
    let has_union = !matches!(spec.root, Root::Tree(_));
    let is_anonymous = name.is_none() && ready.is_none();
    let counting = if is_anonymous && !view.wants_everything() { Counting::Nothing } else { Counting::Everything };
    let mut cgroups = Cgroups::create(&spec.limits, &entry.record.id, has_union, counting)?;
    (spec.cgroups, spec.joins) = (cgroups.view(), cgroups.to_join());
    spec.proc_view = ProcView::decide(view, &spec, &cgroups)?;
    if cgroups.devices_are_limited() {
        spec.confinement.rely_on_device_list();
        entry.record.settings.confinement = Recorded::of(&spec.confinement).doing("look at this process")?;
    }
    spec.confinement.devices.iter().try_for_each(|device| cgroups.allow(&device.rule()))?;
    let has_started = Cell::new(false);
    let mut started = |name: &str| {
        has_started.set(true);
        ready.as_mut().map_or(Ok(()), |ready| ready.started(name))
    };
    let session = &mut Session { signals: &signals, cgroups: &cgroups, entry: &mut entry, started: &mut started };
    let result = start_on(&spec, session);
    cgroups.memory_report().iter().for_each(say);
    let noted = match has_started.get() {
        true => entry.end(result.as_ref().map_or(OWN_FAILURE, |status| *status)),
        false => entry.put_back(),
    };
    noted.doing("remember how the container has ended")?;
    result
}

/// The daemon of a union works for the users of its own namespace, and that is made with the container.
fn check_maps(spec: &Spec) -> Result<(), Failure> {
    if spec.id_maps.is_none() || matches!(spec.root, Root::Tree(_)) {
        return Ok(());
    }
    let failure = Failure::new("a union cannot serve a container with users of its own that root starts");
    Err(failure.remedy("give it a directory by --rootfs, or start it as the user whom its root is to be"))
}

fn observe(options: &mut Options, ids: Option<Ids>, origin: &Origin) -> Result<Host, Failure> {
    let mut host = match (&mut options.rootfs, &options.branches) {
        (Some(tree), _) => {
            *tree = host::resolve_tree(tree)?;
            Host::observe()
        }
        (None, Some(_)) => Host::observe(),
        (None, None) if options.image.is_some() => Host::observe(),
        (None, None) => Host::observe_for_a_copy()?,
    };
    (host.environment, host.umask) = (origin.environment(), origin.umask());
    if ids == Some(Ids::Single) {
        apt::do_without_user(&mut host);
    }
    Ok(host)
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
    let now = state::now();
    Ok(Record {
        image: None,
        stop_signal: None,
        name: String::new(),
        id: String::new(),
        command: spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        root: match &spec.root {
            Root::Tree(tree) => tree.display().to_string(),
            Root::Branches(branches) => unionfs::options::branches::print(branches).display().to_string(),
            Root::Image { .. } => "image".to_owned(),
            Root::HostCopy { .. } => state::COPY_OF_THE_HOST.to_owned(),
        },
        created: now,
        started: now,
        finished: None,
        boot: lock::boot()?,
        launcher: Process::of(nix::unistd::getpid())?,
        init: None,
        daemon: None,
        detached,
        kept: false,
        unions: BTreeMap::new(),
        files: None,
        log: None,
        status: None,
        settings: Settings::of(spec, None)?,
    })
}

fn start_on(spec: &Spec, session: &mut Session<'_>) -> Result<u8, Failure> {
    match &spec.root {
        Root::Tree(tree) => run(spec, session, None).map_err(|failure| explain(failure, spec, tree)),
        Root::Branches(branches) => {
            let scratch = Scratch::create(&[])?;
            let stacks = vec![Stack::of_branches(branches, scratch.init(Path::new("/"))?, spec)];
            run_on_unions(spec, session, &scratch, &[Path::new("/")], (stacks, None))
        }
        Root::Image { layers, top, .. } => {
            // The top shows as the root of the image, so it looks like that of the topmost layer.
            let parts = layers.iter().take(1).map(PathBuf::as_path).collect();
            // The directory of the top may be kept, or be one that only the daemon sees: this is another.
            let own = Scratch::create(&[])?;
            let init = own.init(Path::new("/"))?;
            let stack = |spec: &Spec, scratch: &Scratch, part: &Path, is_kept| {
                Ok(Stack::over_layers(&scratch.top(part), layers, is_kept, init.clone(), spec))
            };
            run_with_tops(spec, session, parts, top, stack)
        }
        Root::HostCopy { submounts, top, .. } => {
            submounts.iter().for_each(tell);
            let parts = parts(submounts);
            let stack = |spec: &Spec, scratch: &Scratch, part: &Path, is_kept| {
                let stack = Stack::over_the_host(&scratch.top(part), part, is_kept);
                // Mount points in a top that is thrown away hurt nobody.
                match Contents::missing_in(part, &parts, &spec.volumes).filter(|_| is_kept) {
                    Some(contents) => Ok(stack.with_init_branch(scratch.init(part)?, contents)),
                    None => Ok(stack),
                }
            };
            run_with_tops(spec, session, parts.clone(), top, stack)
        }
    }
}

/// A command that could not be executed because its user may not even look at the root.
fn explain(failure: Failure, spec: &Spec, tree: &Path) -> Failure {
    if failure.status != CANNOT_EXECUTE || spec.confinement.user.is_none() {
        return failure;
    }
    // Only to explain: without the table, it stays as it is.
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    match mount_table::is_private(&mount_table::parse(&table), tree) {
        true => failure.remedy(
            "the root is a FUSE file system that only the user who has mounted it may use: mount it with -o allow_other, \
             or leave --user out",
        ),
        false => failure,
    }
}

/// Runs on unions of a top over each part; `stack` makes one of the top, the part, and whether what is written is kept.
fn run_with_tops(
    spec: &Spec,
    session: &mut Session<'_>,
    parts: Vec<&Path>,
    top: &Top,
    stack: impl Fn(&Spec, &Scratch, &Path, bool) -> Result<Stack, Failure>,
) -> Result<u8, Failure> {
    let (scratch, is_kept) = match top {
        Top::OnDisk => match session.entry.place_for_files()? {
            Some(own) => (Scratch::keep(&own, false, &parts)?, true),
            None => (Scratch::create(&parts)?, false),
        },
        Top::InMemory(_) => (Scratch::create(&[])?, false),
        Top::Kept { path, force } => (Scratch::keep(path, *force, &parts)?, true),
    };
    let with_volumes = match &spec.root {
        // What is written in memory is all there.
        Root::Image { layers, volumes, .. } if !matches!(top, Top::InMemory(_)) && !volumes.is_empty() => {
            Some(Spec { volumes: image::volumes::add(&spec.volumes, volumes, layers, &scratch)?, ..spec.clone() })
        }
        _ => None,
    };
    let spec = with_volumes.as_ref().unwrap_or(spec);
    let stacks = parts.iter().map(|part| stack(spec, &scratch, part, is_kept)).collect::<Result<Vec<_>, Failure>>()?;
    let memory = match top {
        Top::InMemory(size) => Some(Memory { size, parts: parts.clone() }),
        Top::OnDisk | Top::Kept { .. } => None,
    };
    let places = if matches!(spec.root, Root::Image { .. }) { vec![Path::new("/")] } else { parts };
    run_on_unions(spec, session, &scratch, &places, (stacks, memory))
}

/// For people to read, and for those who look for what the container has written.
fn in_words(places: &[&Path], stacks: &[Stack]) -> BTreeMap<String, Vec<Word>> {
    let branch =
        |branch: &BranchSpec| Word::from(unionfs::options::branches::print(std::slice::from_ref(branch)).as_os_str());
    let words = |stack: &Stack| stack.branches.iter().map(branch).collect();
    places.iter().zip(stacks).map(|(place, stack)| (place.display().to_string(), words(stack))).collect()
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

/// Runs on unions, each at its place, with tops in memory where there is some.
fn run_on_unions(
    spec: &Spec,
    session: &mut Session<'_>,
    scratch: &Scratch,
    places: &[&Path],
    (stacks, memory): (Vec<Stack>, Option<Memory<'_>>),
) -> Result<u8, Failure> {
    session.entry.record.unions = in_words(places, &stacks);
    let socket = requests::socket_in(session.entry.running());
    let named_top = match &spec.root {
        Root::Branches(branches) => branches.first().map(|top| top.path.as_path()),
        _ => None,
    };
    let plan = Plan { stacks, places, scratch: scratch.path(), memory, named_top, socket };
    let devices = plan.stacks.iter().map(|_| open_device()).collect::<Result<Vec<_>, _>>()?;
    // In this order, so that they go in the other: the directory is removed once nobody writes there any more.
    let mut daemon = Daemon::start(&plan, &devices, session.cgroups)?;
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

/// The device of the file system that tells a container what it may use, where it is to have one and can: the container
/// itself may use no such device any more.
fn open_view(view: &ProcView) -> Result<Option<(&ProcView, OwnedFd)>, Failure> {
    let Some(is_needed) = view.is_served() else { return Ok(None) };
    match unionfs::mount::open_device().doing("open /dev/fuse to show the container its limits in /proc") {
        Err(failure) if is_needed => Err(failure.remedy(steps::WITHOUT_FUSE)),
        device => Ok(device.ok().map(|device| (view, device))),
    }
}

/// What a container on unions needs of its launcher.
struct Unions<'a> {
    devices: Vec<OwnedFd>,
    scratch: &'a Scratch,
    daemon: &'a mut Daemon,
}

fn namespaces_failed(errno: Errno) -> Failure {
    let failure = Failure::because("make the container's namespaces", errno.desc());
    match errno {
        Errno::EPERM => failure.remedy(
            "root needs CAP_SYS_ADMIN for that, which a container around rlaunch may not have; an ordinary user does without",
        ),
        Errno::ENOSPC => failure.remedy("there may be no more of them: see user.max_mnt_namespaces and the like of sysctl"),
        _ => failure,
    }
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
    let mut view = spec.proc_view.as_ref().map(open_view).transpose()?.flatten();
    let (mut devices, mount_point, daemon) = match unions {
        Some(unions) => (unions.devices, Some(unions.scratch.mount_point()), Some(unions.daemon)),
        None => (Vec::new(), None, None),
    };
    // The child works on its own copy of this memory: what it takes stays here, and what it drops closes only its own
    // descriptors. It drops the launcher's end, so that it notices when the launcher ends.
    let birthplace = session.cgroups.birthplace();
    let mut namespaces = spec.namespaces.made_with_the_process();
    namespaces.set(CloneFlags::CLONE_NEWUSER, spec.id_maps.is_some());
    let init = process::clone_into(namespaces, birthplace, || {
        drop(ours.take());
        let channel = theirs.take();
        let devices = std::mem::take(&mut devices).into_iter();
        let (view, mount_point) = (view.take().map(|(_, device)| device), mount_point.clone());
        let child =
            channel.map(|channel| Child { steps: &steps, signals, channel, adopts, devices, view, mount_point });
        child.map_or(OWN_FAILURE, Child::run)
    })
    .map_err(namespaces_failed)?;
    let process::Started { pid: init, is_in_cgroup } = init;
    let mapped = spec.id_maps.as_ref().map_or(Ok(()), |maps| maps.give_to(init));
    let admitted = if is_in_cgroup { Ok(()) } else { session.cgroups.admit(init) };
    let connect = || {
        let is_connected = spec.namespaces.net == Network::Pasta;
        is_connected.then(|| network::connect(init, &spec.published, signals)).transpose()
    };
    let pasta = match mapped.and(admitted).and_then(|()| connect()) {
        Ok(pasta) => pasta,
        Err(failure) => {
            // It has not been told to go on, and ends with the channel.
            drop(ours);
            return process::wait_for(init).doing("wait for the container's first process").and(Err(failure));
        }
    };
    restrict_helper().doing("keep others from tracing the launcher")?;
    // The daemon and the child have theirs. A device that is open here would outlive the daemon.
    drop((devices, theirs));
    let Some(channel) = ours else { return Ok(OWN_FAILURE) };
    let serving = daemon.as_ref().map(|daemon| daemon.pid());
    let Session { entry, started, .. } = session;
    let name = entry.record.name.clone();
    let record = || {
        // Neither has been waited for, so they are there, ended or not.
        let first = Process::of(init).doing("look at the container's first process")?;
        let server = serving.map(Process::of).transpose().doing("look at the union's daemon")?;
        entry.begin(first, server).doing("keep a record of the container")
    };
    let supervisor = Supervisor::new(&steps, signals, init, channel, daemon).of_all(session.cgroups);
    let supervisor = supervisor.telling(view);
    let result = supervisor.run(record, || started(&name));
    drop(pasta);
    if adopts {
        process::end_children(serving).doing("end what the container has left")?;
    }
    result
}
