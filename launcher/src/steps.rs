//! How a container is made: a list of steps, decided before anything is done.
//!
//! The child does them in order. A step that fails is told to the parent by its number, so the words for what was
//! being done and what helps live here and nowhere else.

use std::ffi::{CString, OsString};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::cgroup::view::View;
use crate::confine::{Account, Confinement, HostDevice, READ_ONLY, WantedUser};
use crate::failure::{CANNOT_EXECUTE, Failure, NOT_FOUND};
use crate::host::StandardStreams;
use crate::init_branch;
use crate::mount_table::{Shown, Submount};
use crate::namespace::{ClockOffsets, Network, Share, Target};
use crate::network::OwnFile;
use crate::proc_view::ProcView;
use crate::spec::{Root, Spec};
use crate::volume::{Propagation, Tmpfs, Volume, VolumeOptions};

/// One thing to do in the child. Paths are absolute in the container, unless they are said to be the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Join a cgroup, by the file in it that is for that.
    JoinCgroup(PathBuf),
    /// Enter a container that runs.
    Join(Rc<Target>),
    /// Become root of the user namespace, whose ids the launcher has mapped.
    BecomeRoot,
    /// Cut off mount propagation to the host.
    Isolate,
    /// Make the container's cgroups the root of what it sees of them.
    IsolateCgroups,
    /// Show them, read-only.
    ShowCgroups(View),
    /// Mount the file system that tells what the container may use; whether it cannot do without.
    MountProcView(bool),
    /// Lay its files over those of the machine.
    ShowProcView(Box<ProcView>),
    /// Make a directory of the host the new root.
    BindRoot(PathBuf),
    /// Mount the next union, as the new root or in it, and wait until it serves.
    MountUnion(PathBuf, MsFlags),
    /// Mount a fresh file system.
    Mount(FileSystem),
    /// Show what the host has at this path, read-only.
    Bind(PathBuf),
    /// Make a directory, where it is not there.
    Directory(PathBuf, u32),
    /// Make character devices that everybody may use, in this directory.
    Devices(&'static str, Vec<Device>),
    /// Make symbolic links in this directory: their names, and what they point to.
    Links(&'static str, Vec<(&'static str, &'static str)>),
    /// Hold on to what of the host is to be shared, as long as that can be.
    OpenShared(Volume),
    /// Show a directory or file of the host.
    Volume(Volume),
    /// Mount an empty file system in memory.
    Memory(Tmpfs),
    /// Lay files of the container's own over those of the root.
    OwnFiles(Vec<OwnFile>),
    /// The same for those of which the root shows something else.
    HiddenFiles(Vec<OwnFile>),
    /// Make what is mounted there read-only.
    ReadOnly(PathBuf),
    /// Make clocks of the container's own.
    Clocks(ClockOffsets),
    /// Switch the loopback interface on.
    Loopback,
    /// Make a file.
    File(PathBuf, Vec<u8>),
    /// Set the host name.
    Hostname(OsString),
    /// Make the new root `/`, and let go of the old one.
    EnterRoot,
    /// Make devices inert in all that the root shows now.
    DisableDevices,
    /// Make a device of the host appear.
    HostDevice(HostDevice),
    /// Hide what the kernel tells at this path, where it is there.
    Mask(PathBuf),
    /// Make what is at this path read-only, where it is there.
    Protect(PathBuf),
    /// Find out who the command runs as: the user and groups that were named.
    FindUser(Option<WantedUser>, Vec<Account>),
    /// Change the working directory.
    ChangeDirectory(PathBuf),
    /// Change the working directory, and make it where it is missing.
    MakeAndChangeDirectory(PathBuf),
    /// Set how readily the kernel ends the container when memory runs out.
    OomScore(i32),
    /// Restrict what pid 1, and so all of the container, may do; the command's own part comes right before it runs.
    Restrict(Box<Confinement>),
    /// Give the standard streams that are named a terminal of the container's own.
    OpenTerminal(StandardStreams),
    /// Run the command, with this environment.
    Execute(Vec<CString>, Vec<CString>),
}

/// A file system to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Its type, which serves as the source as well.
    pub kind: &'static str,
    /// Where; the directory is made where it is missing.
    pub at: &'static str,
    /// The flags of the mount.
    pub flags: MsFlags,
    /// Its own options.
    pub data: &'static str,
}

/// A character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its name, in /dev of the host as well.
    pub name: &'static str,
    /// The major number.
    pub major: u64,
    /// The minor number.
    pub minor: u64,
}

/// One action, and whether the container can do without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// What follows if it fails; a failure ends the start where there is nothing.
    pub otherwise: Option<&'static str>,
}

/// The steps for a container, in order. The last one is always [`Action::Execute`].
#[must_use]
pub fn plan(spec: &Spec) -> Vec<Step> {
    let is_shared = |volume: &&Volume| volume.propagation == Propagation::Shared;
    let shared: Vec<_> = spec.volumes.volume.iter().filter(is_shared).collect();
    let mut steps = join_cgroups(&spec.joins);
    let served = spec.proc_view.as_ref().and_then(ProcView::is_served);
    steps.extend(shared.iter().map(|volume| must(Action::OpenShared((*volume).clone()))));
    steps.extend(spec.id_maps.is_some().then(|| must(Action::BecomeRoot)));
    steps.push(must(Action::Isolate));
    steps.extend(spec.namespaces.clocks().map(|offsets| must(Action::Clocks(offsets))));
    let clocks = spec.proc_view.as_ref().and_then(|view| view.clocks);
    steps.extend(clocks.map(|offsets| may(Action::Clocks(offsets), "ps(1) there shows wrong start times")));
    if spec.namespaces.net != Network::Host {
        steps.push(must(Action::Loopback));
    }
    match &spec.root {
        Root::Tree(tree) => steps.push(must(Action::BindRoot(tree.clone()))),
        Root::Branches(_) | Root::Image { .. } => steps.push(must(Action::MountUnion("/".into(), MsFlags::empty()))),
        Root::HostCopy { submounts, .. } => {
            steps.push(must(Action::MountUnion("/".into(), MsFlags::empty())));
            steps.extend(submounts.iter().map(submount));
        }
    }
    let confinement = &spec.confinement;
    steps.extend(confinement.devices_in_dev_only.then(|| must(Action::DisableDevices)));
    steps.extend(kernel_interfaces());
    // Its first answers come while the rest is made.
    steps.extend(served.map(|is_needed| must(Action::MountProcView(is_needed))));
    if let Some(view) = &spec.cgroups {
        steps.push(may(Action::IsolateCgroups, "the container sees the names of the cgroups around it"));
        steps.push(may(Action::ShowCgroups(view.clone()), "there is no /sys/fs/cgroup in the container"));
    }
    steps.extend(devices());
    steps.extend(confinement.devices.iter().map(|device| must(Action::HostDevice(device.clone()))));
    if spec.namespaces.ipc == Share::Host {
        steps.push(must(Action::Volume(shared_memory())));
    }
    if let Root::HostCopy { files, .. } = &spec.root {
        steps.extend(volatile_directories());
        for (path, content) in files {
            let parents = path.parent().unwrap_or(Path::new("/")).to_owned();
            steps.push(may(Action::Directory(parents, 0o755), "a file is missing in the container"));
            steps.push(may(Action::File(path.clone(), content.clone()), "it is missing in the container"));
        }
    }
    steps.extend(own_files(spec));
    steps.extend(volumes(spec));
    steps.extend(spec.proc_view.clone().map(|view| must(Action::ShowProcView(Box::new(view)))));
    steps.extend(kernel_files(confinement));
    // From here on nothing of ours may be mounted in them.
    steps.extend(shared.into_iter().map(|one| volume(spec, one)));
    steps.extend(spec.hostname.clone().map(|name| must(Action::Hostname(name))));
    steps.push(must(Action::EnterRoot));
    steps.extend(confine(spec));
    steps.extend(spec.terminal.map(|streams| must(Action::OpenTerminal(streams))));
    steps.push(must(Action::Execute(spec.command.clone(), spec.environment.clone())));
    steps
}

/// One more command for a container that runs.
#[derive(Debug)]
pub struct Further {
    /// Cgroups that it has to join by itself.
    pub joins: Vec<PathBuf>,
    /// The container.
    pub target: Target,
    /// Where the command starts.
    pub directory: PathBuf,
    /// Whether that was asked for; else `/` will do where it is not there.
    pub needs_directory: bool,
    /// Which standard streams are to be a terminal of the container's own.
    pub terminal: Option<StandardStreams>,
    /// What the command may do.
    pub confinement: Confinement,
    /// The command and its arguments.
    pub command: Vec<CString>,
    /// `NAME=VALUE`, all of it.
    pub environment: Vec<CString>,
}

/// The steps for one more command in a container that runs.
///
/// What this process may do at most is cut down as soon as it is in there; what it needs to become the command's user goes
/// right before the command runs, as at every start.
#[must_use]
pub fn plan_exec(further: Further) -> Vec<Step> {
    let confinement = further.confinement;
    // This process is not in the /proc of the container.
    let score =
        confinement.oom_score.map(|score| may(Action::OomScore(score), "its out-of-memory score is the caller's"));
    let mut steps = join_cgroups(&further.joins);
    steps.extend(score);
    steps.push(must(Action::Join(Rc::new(further.target))));
    steps.push(must(Action::Restrict(Box::new(confinement.clone()))));
    steps.extend(find_user_of(&confinement));
    steps.push(match further.needs_directory {
        true => must(Action::ChangeDirectory(further.directory)),
        false => may(Action::ChangeDirectory(further.directory), "starting in / instead"),
    });
    steps.extend(further.terminal.map(|streams| must(Action::OpenTerminal(streams))));
    steps.push(must(Action::Execute(further.command, further.environment)));
    steps
}

/// Before anything else, so that all that is done is done within the limits.
fn join_cgroups(joins: &[PathBuf]) -> Vec<Step> {
    joins.iter().map(|tasks| must(Action::JoinCgroup(tasks.clone()))).collect()
}

/// With an init branch, they are in that already, unless the top hides them.
fn own_files(spec: &Spec) -> Option<Step> {
    let has_init = match &spec.root {
        Root::Branches(branches) => init_branch::is_added(branches),
        Root::Image { .. } => true,
        Root::Tree(_) | Root::HostCopy { .. } => false,
    };
    let files: Vec<_> = spec.files.iter().filter(|file| !has_init || file.is_made).cloned().collect();
    let action = if has_init { Action::HiddenFiles } else { Action::OwnFiles };
    (!files.is_empty()).then(|| must(action(files)))
}

fn find_user_of(confinement: &Confinement) -> Option<Step> {
    let is_named = confinement.user.is_some() || !confinement.groups.is_empty();
    is_named.then(|| must(Action::FindUser(confinement.user.clone(), confinement.groups.clone())))
}

/// Once everything else is mounted, so that they can lie in it.
fn volumes(spec: &Spec) -> Vec<Step> {
    let VolumeOptions { volume: volumes, tmpfs, read_only } = &spec.volumes;
    let mut steps: Vec<Step> = tmpfs.iter().map(|tmpfs| must(Action::Memory(tmpfs.clone()))).collect();
    let own = volumes.iter().filter(|volume| volume.propagation != Propagation::Shared);
    steps.extend(own.map(|one| volume(spec, one)));
    if *read_only {
        let unions = match &spec.root {
            Root::HostCopy { submounts, .. } => submounts.as_slice(),
            Root::Tree(_) | Root::Branches(_) | Root::Image { .. } => &[],
        };
        let unions = unions.iter().filter(|submount| matches!(submount.shown, Shown::Union(_)));
        let paths = unions.map(|submount| submount.path.clone()).chain([PathBuf::from("/")]);
        steps.extend(paths.map(|path| must(Action::ReadOnly(path))));
    }
    steps
}

/// Where no list of devices is enforced, a device in it would be the host's.
fn volume(spec: &Spec, volume: &Volume) -> Step {
    let is_without = spec.confinement.devices_in_dev_only && !volume.devices;
    let more = if is_without { MsFlags::MS_NODEV } else { MsFlags::empty() };
    must(Action::Volume(Volume { flags: volume.flags | more, ..volume.clone() }))
}

/// With the host's queues and semaphores goes what the C library keeps as files.
fn shared_memory() -> Volume {
    let path = PathBuf::from("/dev/shm");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Volume { flags, ..Volume::new(path.clone(), path) }
}

fn submount(submount: &Submount) -> Step {
    match submount.shown {
        Shown::Union(flags) => must(Action::MountUnion(submount.path.clone(), flags)),
        Shown::Bound | Shown::FarAway(_) => may(Action::Bind(submount.path.clone()), "it is empty in the container"),
    }
}

fn must(action: Action) -> Step {
    Step { action, otherwise: None }
}

fn may(action: Action, otherwise: &'static str) -> Step {
    Step { action, otherwise: Some(otherwise) }
}

/// For containers that want a file system for their limits, where it cannot be had.
pub(crate) const WITHOUT_FUSE: &str = "use --proc-view=static, which does without FUSE";

const PRIVATE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const INERT: MsFlags = PRIVATE.union(MsFlags::MS_NOEXEC);

fn file_system(kind: &'static str, at: &'static str, flags: MsFlags, data: &'static str) -> Action {
    Action::Mount(FileSystem { kind, at, flags, data })
}

fn kernel_interfaces() -> [Step; 2] {
    [
        must(file_system("proc", "/proc", INERT, "")),
        may(file_system("sysfs", "/sys", INERT.union(MsFlags::MS_RDONLY), ""), "there is no /sys in the container"),
    ]
}

/// What of them is hidden or read-only. Once the command runs, it has not the right to unmount anything.
fn kernel_files(confinement: &Confinement) -> Vec<Step> {
    let mut steps: Vec<Step> = confinement.masked.iter().map(|path| must(Action::Mask(path.clone()))).collect();
    if !confinement.writes_kernel_files {
        steps.extend(READ_ONLY.map(|path| must(Action::Protect(path.into()))));
    }
    steps
}

/// What is done once the root is entered, to keep the command in it.
fn confine(spec: &Spec) -> Vec<Step> {
    let confinement = &spec.confinement;
    let mut steps: Vec<Step> = find_user_of(confinement).into_iter().collect();
    steps.push(match spec.makes_directory {
        true => must(Action::MakeAndChangeDirectory(spec.directory.clone())),
        false => may(Action::ChangeDirectory(spec.directory.clone()), "starting in / instead"),
    });
    steps.extend(confinement.oom_score.map(|score| must(Action::OomScore(score))));
    steps.push(must(Action::Restrict(Box::new(confinement.clone()))));
    steps
}

/// What the OCI runtime specification asks for in /dev.
fn devices() -> Vec<Step> {
    const NODES: [(&str, u64, u64); 6] =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    const LINKS: [(&str, &str); 5] = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    let dev = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    let pty = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let nodes = NODES.map(|(name, major, minor)| Device { name, major, minor });
    vec![
        must(file_system("tmpfs", "/dev", dev, "mode=755,size=64m")),
        must(Action::Devices("/dev", nodes.into())),
        must(Action::Links("/dev", LINKS.into())),
        must(file_system("devpts", "/dev/pts", pty, "newinstance,ptmxmode=0666,mode=0620,gid=5")),
        must(file_system("tmpfs", "/dev/shm", PRIVATE, "mode=1777")),
        may(file_system("mqueue", "/dev/mqueue", INERT, ""), "there are no POSIX message queues in the container"),
    ]
}

/// What every boot starts empty.
fn volatile_directories() -> [Step; 3] {
    [
        must(file_system("tmpfs", "/run", PRIVATE, "mode=755")),
        // Debian's /var/lock; package managers want it.
        must(Action::Directory("/run/lock".into(), 0o1777)),
        must(file_system("tmpfs", "/tmp", PRIVATE, "mode=1777")),
    ]
}

fn find_user(user: Option<&WantedUser>, groups: &[Account]) -> String {
    let name = |account: &Account| match account {
        Account::Id(id) => id.to_string(),
        Account::Name(name) => name.clone(),
    };
    let user = user.map(|wanted| match &wanted.group {
        Some(group) => format!("{}:{}", name(&wanted.user), name(group)),
        None => name(&wanted.user),
    });
    let names: Vec<String> = user.into_iter().chain(groups.iter().map(name)).collect();
    format!("find {} in /etc/passwd and /etc/group of the container", names.join(", "))
}

impl Action {
    /// What the action does, to be read after "cannot".
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Action::JoinCgroup(tasks) => {
                let cgroup = tasks.parent().unwrap_or(tasks);
                format!("put the container into the cgroup {}", cgroup.display())
            }
            Action::Join(_) => "enter the container".into(),
            Action::BecomeRoot => "become root of the container's user namespace".into(),
            Action::Isolate => "separate the container's mounts from the host's".into(),
            Action::IsolateCgroups => "separate the container's cgroups from the host's".into(),
            Action::ShowCgroups(_) => "show the container its cgroups".into(),
            Action::MountProcView(_) | Action::ShowProcView(_) => "show the container its limits in /proc".into(),
            Action::BindRoot(tree) => format!("make {} the root of the container", tree.display()),
            Action::MountUnion(path, _) => format!("mount the union at {} of the container", path.display()),
            Action::Mount(file_system) => format!("mount {} at {} of the container", file_system.kind, file_system.at),
            Action::Bind(path) => format!("show the host's {} read-only in the container", path.display()),
            Action::Volume(Volume { source, target, .. }) | Action::OpenShared(Volume { source, target, .. }) => {
                format!("show the host's {} at {} of the container", source.display(), target.display())
            }
            Action::Memory(tmpfs) => format!("mount tmpfs at {} of the container", tmpfs.target.display()),
            Action::OwnFiles(_) | Action::HiddenFiles(_) => "give the container files of its own in /etc".into(),
            Action::ReadOnly(path) => format!("make {} of the container read-only", path.display()),
            Action::Clocks(_) => "give the container clocks of its own".into(),
            Action::Loopback => "switch the container's loopback interface on".into(),
            Action::Directory(path, _) => format!("make the directory {} in the container", path.display()),
            Action::Devices(directory, _) => format!("make the devices in {directory} of the container"),
            Action::Links(directory, _) => format!("make the links in {directory} of the container"),
            Action::File(path, _) => format!("make the file {} in the container", path.display()),
            Action::Hostname(name) => format!("set the host name {}", name.display()),
            Action::EnterRoot => "enter the root of the container".into(),
            Action::DisableDevices => "keep devices out of the container's root".into(),
            Action::HostDevice(device) => format!("show the device {} in the container", device.target.display()),
            Action::Mask(path) => format!("hide {} from the container", path.display()),
            Action::Protect(path) => format!("make {} of the container read-only", path.display()),
            Action::FindUser(user, groups) => find_user(user.as_ref(), groups),
            Action::ChangeDirectory(path) | Action::MakeAndChangeDirectory(path) => {
                format!("enter the working directory {}", path.display())
            }
            Action::OomScore(score) => format!("set the out-of-memory score {score}"),
            Action::Restrict(_) => "restrict what the container may do".into(),
            Action::OpenTerminal(_) => "open a terminal in the container".into(),
            Action::Execute(command, _) => {
                let program = command.first().map(|word| word.to_string_lossy()).unwrap_or_default();
                format!("run '{program}' in the container")
            }
        }
    }

    /// What to do about an error, where that is known.
    fn remedy(&self, errno: Errno) -> Option<&'static str> {
        match (self, errno) {
            (Action::Mount(_) | Action::MountUnion(..) | Action::Bind(_) | Action::Directory(..), Errno::ELOOP) => {
                Some(
                    "it is a symbolic link or lies behind one, which could lead out of the container; replace it by a \
                      directory",
                )
            }
            (Action::JoinCgroup(_), Errno::EINVAL) => {
                Some("a process with a real-time policy cannot join: start from an ordinary one")
            }
            (Action::JoinCgroup(_), Errno::EACCES) => Some("both its cgroup and the one it leaves have to be yours"),
            (Action::Mount(_), Errno::EROFS) => {
                Some("the directory is missing and the root is read-only; make it there first")
            }
            (Action::Mount(_) | Action::Bind(_), Errno::ENOTDIR) => Some("something else has that name in the root"),
            (Action::BindRoot(_), Errno::EACCES) => Some(
                "the container's root, an ordinary user of this machine, has to get there: see the modes of the directories above",
            ),
            (Action::Clocks(_), Errno::EINVAL) => Some("this kernel has no time namespaces; leave the option out"),
            (Action::Clocks(_), Errno::ERANGE) => Some("a clock would go below zero, or too far"),
            (Action::OpenShared(_), Errno::EINVAL) => Some(
                "it does not lie on a shared mount, and for an ordinary user nothing does; make it one with mount \
                 --make-rshared, or leave rshared out",
            ),
            (Action::OpenShared(_), Errno::ENOSYS) => Some("sharing mounts takes Linux 5.2"),
            (Action::Volume(volume), Errno::EBUSY) if volume.propagation == Propagation::Shared => {
                Some("its target lies in another volume that is shared, so that it would appear on the host")
            }
            (Action::Volume(volume), Errno::EINVAL) if volume.propagation == Propagation::Slave => Some(
                "it lies on a mount that is neither shared nor a slave; make it shared with mount --make-rshared, or leave \
                 rslave out",
            ),
            (Action::Volume(_) | Action::Memory(_), Errno::EACCES) => {
                Some("the target may not lie in /proc, also not behind a link")
            }
            (Action::Volume(_), Errno::ENOENT) => Some("the source must be there; make it first"),
            (Action::Memory(_), Errno::EINVAL) => Some("a word behind the path is none that tmpfs takes"),
            (Action::Volume(_) | Action::Memory(_), Errno::EROFS) => {
                Some("the target is missing and the root is read-only; make it there first")
            }
            (Action::OpenTerminal(_), Errno::ENOENT) => Some("leave out what covers its /dev, or use --tty=never"),
            (Action::Execute(..), Errno::ENOEXEC) => {
                Some("it is neither a program for this machine nor a script that begins with #!")
            }
            (Action::Execute(..), Errno::EAGAIN) => {
                Some("there may be no more processes; --pids-limit and --ulimit nproc count the container's pid 1, too")
            }
            (Action::FindUser(..), Errno::ENOENT) => Some("it is not there; a number needs no entry"),
            (Action::OomScore(_), Errno::EACCES) => Some("to lower it, the launcher needs CAP_SYS_RESOURCE"),
            (Action::Restrict(_), Errno::EACCES) => {
                Some("without no-new-privileges, a filter for system calls needs CAP_SYS_ADMIN")
            }
            (Action::Restrict(_), Errno::ENOSYS) => {
                Some("this kernel has no filters for system calls; do without by --security-opt seccomp=unconfined")
            }
            (Action::MountProcView(_) | Action::ShowProcView(_), _) => Some(WITHOUT_FUSE),
            (Action::Isolate, Errno::EINVAL) => Some("/ is not a mount point; leave the chroot first"),
            _ => None,
        }
    }
}

impl Step {
    /// The failure that ends the start.
    #[must_use]
    pub fn failure(&self, errno: Errno) -> Failure {
        let status = match (&self.action, errno) {
            (Action::Execute(..), Errno::ENOENT | Errno::ENOTDIR) => NOT_FOUND,
            // Of execve(2) or of the fork before it: the command itself is not to blame.
            (Action::Execute(..), Errno::EAGAIN) => return self.explain(errno),
            (Action::Execute(..), _) => CANNOT_EXECUTE,
            _ => return self.explain(errno),
        };
        self.explain(errno).with_status(status)
    }

    /// The warning for a step that the container can do without.
    #[must_use]
    pub fn warning(&self, errno: Errno) -> String {
        format!("{}; {}", self.explain(errno), self.otherwise.unwrap_or("going on without it"))
    }

    fn explain(&self, errno: Errno) -> Failure {
        let failure = Failure::because(&self.action.describe(), errno.desc());
        match self.action.remedy(errno) {
            Some(remedy) => failure.remedy(remedy),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests;
