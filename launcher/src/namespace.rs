//! Namespaces: which ones a container gets, and how its mount tree is cut off and entered.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::CLONE_NEWTIME;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_dumpable;
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use crate::failure::{Failure, errno_of};
use crate::idmap::{IdMaps, IdRange};
use crate::message::warn;
use crate::mount_table::{self, Mount};
use crate::rootfs::Rootfs;
use crate::state::{Handle, Process};

/// Which namespaces a container has of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Namespaces")]
pub struct NamespaceOptions {
    /// Which processes it sees: its own, or those of the host as well
    #[arg(long, value_name = "WHOSE", default_value = "private")]
    pub pid: Share,

    /// Whose host name it has
    #[arg(long, value_name = "WHOSE", default_value = "private")]
    pub uts: Share,

    /// Whose message queues, semaphores and shared memory it has
    #[arg(long, value_name = "WHOSE", default_value = "private")]
    pub ipc: Share,

    /// Whose network it has: the host's, none but the loopback interface, or its own with a way out by pasta(1)
    #[arg(long, visible_alias = "network", value_name = "WHICH", default_value = "host")]
    pub net: Network,

    /// Users of the container are these of the machine, in a user namespace of its own; may be repeated
    #[arg(long, value_name = "CONTAINER:HOST:SIZE")]
    pub uidmap: Vec<IdRange>,

    /// The same for groups; without it, they are mapped as the users are
    #[arg(long, value_name = "CONTAINER:HOST:SIZE")]
    pub gidmap: Vec<IdRange>,

    /// Whose clocks of the time since the start it has
    #[arg(long, value_name = "WHOSE", default_value = "host")]
    pub time: Share,

    /// Seconds to add to CLOCK_MONOTONIC; makes clocks of its own
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub monotonic: Option<i64>,

    /// Seconds to add to CLOCK_BOOTTIME; makes clocks of its own
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub boottime: Option<i64>,
}

/// Whose a namespace is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Share {
    /// The container's own.
    #[default]
    Private,
    /// The host's.
    Host,
}

/// Which network a container has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// One of its own with nothing but the loopback interface.
    None,
    /// One of its own, with the host's addresses and a way out through sockets of the host.
    Pasta,
}

/// What is added to the host's clocks; see time_namespaces(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockOffsets {
    /// Seconds on CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// Seconds on CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl NamespaceOptions {
    /// Who its users and groups are, where that was said.
    ///
    /// # Errors
    /// Where it cannot be so.
    pub fn id_maps(&self) -> Result<Option<IdMaps>, Failure> {
        IdMaps::new(&self.uidmap, &self.gidmap)
    }

    /// The offsets of the container's own clocks, if it has such.
    #[must_use]
    pub fn clocks(&self) -> Option<ClockOffsets> {
        let is_private = self.time == Share::Private || self.monotonic.is_some() || self.boottime.is_some();
        let (monotonic, boottime) = (self.monotonic.unwrap_or(0), self.boottime.unwrap_or(0));
        is_private.then_some(ClockOffsets { monotonic, boottime })
    }

    /// Those that are made with the process. The others are entered by it: of cgroups, because it has to be in its cgroup
    /// first, and of clocks, because they are set from inside.
    pub(crate) fn made_with_the_process(&self) -> CloneFlags {
        let mut flags = CloneFlags::CLONE_NEWNS;
        flags.set(CloneFlags::CLONE_NEWPID, self.pid == Share::Private);
        flags.set(CloneFlags::CLONE_NEWUTS, self.uts == Share::Private);
        flags.set(CloneFlags::CLONE_NEWIPC, self.ipc == Share::Private);
        flags.set(CloneFlags::CLONE_NEWNET, self.net != Network::Host);
        flags
    }
}

/// From here on the cgroups of this process are the root of all that it sees of cgroups, so it must be in them already.
pub(crate) fn isolate_cgroups() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWCGROUP)
}

/// Gives this process clocks of its own, which all that it starts will have as well.
pub(crate) fn separate_clocks(offsets: &ClockOffsets) -> Result<(), Errno> {
    let time = CloneFlags::from_bits_retain(CLONE_NEWTIME);
    unshare(time)?;
    // Only while the namespace has no process yet, and this one enters it with the last call.
    let text = format!("monotonic {} 0\nboottime {} 0\n", offsets.monotonic, offsets.boottime);
    std::fs::write("/proc/self/timens_offsets", text).map_err(|error| errno_of(&error))?;
    let namespace = open("/proc/self/ns/time_for_children", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    setns(namespace, time)
}

/// What has to be entered to be in a container: its first process, and the namespaces that are not ours already.
#[derive(Debug)]
pub struct Target {
    process: Handle,
    root: OwnedFd,
    namespaces: CloneFlags,
    /// Those that are not ours, one by one, for kernels that enter only one at a time.
    each: Vec<(OwnedFd, CloneFlags)>,
}

/// One process is another only if it is the same descriptor.
impl PartialEq for Target {
    fn eq(&self, other: &Target) -> bool {
        self.process.as_fd().as_raw_fd() == other.process.as_fd().as_raw_fd()
    }
}

impl Eq for Target {}

impl Target {
    /// Opens everything while nothing is entered yet.
    pub(crate) fn open(init: &Process, process: Handle) -> std::io::Result<Target> {
        const KINDS: [(&str, CloneFlags); 8] = [
            ("user", CloneFlags::CLONE_NEWUSER),
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("net", CloneFlags::CLONE_NEWNET),
            ("pid", CloneFlags::CLONE_NEWPID),
            ("time", CloneFlags::from_bits_retain(CLONE_NEWTIME)),
            ("mnt", CloneFlags::CLONE_NEWNS),
        ];
        let mut each = Vec::new();
        for (kind, flag) in KINDS {
            let path = format!("/proc/{}/ns/{kind}", init.pid);
            let theirs = std::fs::read_link(&path);
            if theirs.is_ok_and(|theirs| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok() != Some(theirs)) {
                each.push((std::fs::File::open(path)?.into(), flag));
            }
        }
        let root = open(format!("/proc/{}/root", init.pid).as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let namespaces = each.iter().map(|(_, flag)| *flag).collect();
        Ok(Target { process, root, namespaces, each })
    }

    /// Enters them, and the root, as one whom nobody in there may trace. What this process starts from now on is in the
    /// container.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        set_dumpable(false)?;
        match setns(&self.process, self.namespaces) {
            // Before Linux 5.8 there is no way to enter them all at once, and this is no descriptor for that before 5.3.
            Err(Errno::EINVAL | Errno::EBADF) => {
                self.each.iter().try_for_each(|(namespace, flag)| setns(namespace, *flag))?
            }
            result => result?,
        }
        fchdir(&self.root)?;
        chroot(".")?;
        chdir("/")
    }
}

/// From here on no mount of ours reaches the host. Its unmounts still reach us, so that we keep nothing of it busy.
pub(crate) fn isolate_mounts() -> Result<(), Errno> {
    change_propagation(Path::new("/"), MsFlags::MS_SLAVE)
}

/// Makes a directory a mount of its own, which pivot_root(2) asks for, and opens it.
pub(crate) fn bind_root(tree: &Path) -> Result<Rootfs, Errno> {
    mount(Some(tree), tree, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    change_propagation(tree, MsFlags::MS_PRIVATE)?;
    Rootfs::open(tree)
}

fn change_propagation(path: &Path, kind: MsFlags) -> Result<(), Errno> {
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_REC | kind, None::<&str>)
}

/// Makes the new root `/` and detaches the old one.
pub(crate) fn enter(root: &Rootfs) -> Result<(), Errno> {
    let old = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    fchdir(root.directory())?;
    match pivot_root(".", ".") {
        // The root of an initramfs can neither be moved nor left.
        Err(Errno::EINVAL) => return cover(root, &old),
        result => result?,
    }
    // The old root now lies on the new one: see pivot_root(2), "pivot_root(".", ".")". It is a slave, so detaching it
    // detaches nothing of the host's.
    fchdir(&old)?;
    change_propagation(Path::new("."), MsFlags::MS_SLAVE)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Moves the new root over the old one, where that cannot be exchanged, as switch_root(8) does. No `..` leads below an
/// uppermost mount, which the root of an initramfs is; from another one, as in a chroot, it leads up to the host's files.
/// Only what is in the old root itself cannot be detached, so all that is mounted there is: an unmasked /proc, above
/// all, would let a process in a user namespace of its own mount another one.
fn cover(root: &Rootfs, old: &OwnedFd) -> Result<(), Errno> {
    let table = mount_table::parse(&std::fs::read("/proc/self/mountinfo").map_err(|error| errno_of(&error))?);
    let (old, new) = (mount_of(old)?, mount_of(root.directory())?);
    // The uppermost mount is said to lie on itself.
    if !table.iter().any(|mount| mount.id == old && mount.parent == old) {
        warn(
            "the root of this process cannot be exchanged, for it is a chroot; the container is held by chroot only, which a \
             privileged process can leave",
        );
    }
    let others = directories_on(old, &table, new);
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    for other in others {
        fchdir(&other)?;
        match umount2(".", MntFlags::MNT_DETACH) {
            // A user namespace keeps together what it was given, and can mount no more than that shows.
            Ok(()) | Err(Errno::EINVAL) => {}
            result => return result,
        }
    }
    fchdir(root.directory())?;
    chroot(".")?;
    chdir("/")
}

/// Opens what is mounted right on a mount, but for one.
fn directories_on(mount: u32, table: &[Mount], but: u32) -> Vec<OwnedFd> {
    let others = table.iter().filter(|other| other.parent == mount && ![mount, but].contains(&other.id));
    // Files lie there as well, and cannot be detached like this; nor can what lies under another mount at the same place.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    others.filter_map(|other| open(&other.target, flags, Mode::empty()).ok()).collect()
}

/// The number of the mount on which an open file lies.
pub(crate) fn mount_of(file: &OwnedFd) -> Result<u32, Errno> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = std::fs::read_to_string(path).map_err(|error| errno_of(&error))?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()).ok_or(Errno::EBADF)
}

/// Whether what is at a path lies on another mount than the directory that it is in; not where nothing is.
pub(crate) fn lies_on_another_mount(path: &Path) -> Result<bool, Errno> {
    let open = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let Some(parent) = path.parent() else { return Ok(true) };
    match open(path) {
        Err(Errno::ENOENT) => Ok(false),
        found => Ok(mount_of(&found?)? != mount_of(&open(parent)?)?),
    }
}
