//! Control groups: what a container may use of the machine, and what it has used.
//!
//! A container has one cgroup in each hierarchy that counts or limits something, `/rlaunch/ID` below the hierarchy's
//! root. They are made, and all limits written, before any process joins; the container's first process is started in the
//! one of v2, and joins those of v1 before it does anything else. Whatever happens then, they are removed with the value [`Cgroups`], and what a
//! killed launcher left behind by the next start.
//!
//! The daemon of a union works for one container, so it shares the container's CPU time and the rates of its disks; but
//! it has a bound of its own on memory, without which a container could fill the page cache through its union, and it is
//! never stopped, for whoever waits for it could not be stopped either. So a container with a union has three cgroups:
//!
//! ```text
//! ID              what both use together
//! ├── container   the container
//! └── fuse        the daemon
//! ```
//!
//! | File | Question |
//! |---|---|
//! | [`options`], [`limits`] | what was asked for |
//! | [`detect`] | which hierarchies there are, and which controllers are in them |
//! | [`cpu`], [`cpuset`], [`memory`], [`pids`], [`io`], [`devices`], [`network`] | what a limit is called on v1 and on v2, as plain values |
//! | `device_filter` | the list of devices for v2: a program in the kernel's BPF |
//! | `setting`, `directory` | one value for one file; one cgroup and its files |
//! | `hierarchy`, `v1`, `v2` | making the cgroups of a container in one hierarchy |
//! | `freezer`, [`statistics`], [`view`] | stopping and killing; what was used; what the container sees |
//! | `report` | the words for what cannot be limited, and what helps |

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, Hasher as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Pid;

pub mod cpu;
pub mod cpuset;
pub mod detect;
pub(crate) mod device_filter;
pub mod devices;
pub mod io;
pub mod limits;
pub mod memory;
pub mod network;
pub mod options;
pub mod pids;
pub mod statistics;
pub mod view;

pub(crate) mod directory;
mod freezer;
mod hierarchy;
mod report;
mod setting;
mod v1;
mod v2;

use self::detect::{Controller, Mounted, Version};
use self::device_filter::DeviceFilter;
use self::devices::DeviceRule;
use self::directory::Directory;
pub(crate) use self::directory::join;
use self::hierarchy::{Hierarchy, Wanted};
use self::limits::Limits;
use self::setting::{Place, Setting};
use self::statistics::Statistics;
use self::view::View;
use crate::failure::{Doing as _, Failure};
use crate::message::warn;

/// Where a container on v1 has cgroups that limit nothing. Each is a tree of its own there, which costs a tenth of a
/// millisecond to make and to remove; on v2 one cgroup has them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// Everywhere: what it uses is counted, and limits can be set later.
    Everything,
    /// Nowhere: nobody is going to ask.
    Nothing,
}

/// The cgroups of one container. Removed on drop by whoever has made them.
#[derive(Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// Hierarchies in which no cgroup could be made, and why; ESRCH where a container was started without one.
    refused: Vec<(Mounted, Errno)>,
    /// The list of devices, where v1 has none.
    device_filter: Option<DeviceFilter>,
    is_best_effort: bool,
    is_owner: bool,
}

impl Cgroups {
    /// Makes them, and writes the limits; with a `union`, also those for its daemon. `id` must be a file name.
    ///
    /// # Errors
    /// Where a limit that was asked for cannot be set.
    pub fn create(limits: &Limits, id: &str, union: bool, counting: Counting) -> Result<Cgroups, Failure> {
        let wanted = Wanted { parent: limits.parent.as_deref(), id, union, has_limits: limits.is_some() };
        let mut cgroups = Cgroups {
            hierarchies: Vec::new(),
            refused: Vec::new(),
            device_filter: None,
            is_best_effort: limits.is_best_effort,
            is_owner: true,
        };
        let mut in_use = HashSet::new();
        for mounted in v2_first(detect::observe()?) {
            hierarchy::remove_stale(&mounted, wanted.parent, &mut in_use);
            if !is_useful(&mounted, limits, counting, || cgroups.life().is_ok()) {
                continue;
            }
            match Hierarchy::create(&mounted, &wanted) {
                Ok(hierarchy) => cgroups.hierarchies.push(hierarchy),
                Err(errno) => cgroups.refused.push((mounted, errno)),
            }
        }
        cgroups.write_limits(limits)?;
        if let Some(v2) = cgroups.v2().filter(|_| cgroups.hierarchy(Controller::Devices).is_none()) {
            let filter = DeviceFilter::attach(v2.container(), &devices::USUAL);
            cgroups.device_filter = filter.doing("limit the container's devices")?;
        }
        Ok(cgroups)
    }

    /// Removes what launchers that were killed have left.
    ///
    /// # Errors
    /// Where the mount table cannot be read.
    pub fn remove_stale() -> Result<(), Failure> {
        let mut in_use = HashSet::new();
        detect::observe()?.iter().for_each(|mounted| hierarchy::remove_stale(mounted, None, &mut in_use));
        Ok(())
    }

    fn write_limits(&self, limits: &Limits) -> Result<(), Failure> {
        let limits = Limits { pinned: self.choose_cpus(limits), ..limits.clone() };
        let devices = devices::settings(self.version(Controller::Devices));
        self.apply(&[limits.settings(|controller| self.version(controller)), devices].concat())
    }

    /// Opens the cgroups of a container that another process has started, by its first process and its name.
    ///
    /// # Errors
    /// Where the mount table cannot be read.
    pub fn of(init: Pid, id: &str) -> Result<Cgroups, Failure> {
        let mounted = detect::observe_of(&init.to_string())?;
        let (hierarchies, refused, device_filter) = (Vec::new(), Vec::new(), None);
        let mut cgroups = Cgroups { hierarchies, refused, device_filter, is_best_effort: false, is_owner: false };
        for mounted in mounted {
            match Hierarchy::open(mounted.clone(), id) {
                Some(hierarchy) => cgroups.hierarchies.push(hierarchy),
                None => cgroups.refused.push((mounted, Errno::ESRCH)),
            }
        }
        Ok(cgroups)
    }

    /// Makes sure that all cgroups of the container can be seen from here: one that cannot be joined limits nothing.
    ///
    /// # Errors
    /// Where one cannot.
    pub fn are_all_of(&self, init: Pid, id: &str) -> Result<(), Failure> {
        let doing = "enter the container's cgroups";
        let groups = detect::names_below(init, id).doing(doing)?;
        let missing = groups.into_iter().find(|names| !self.hierarchies.iter().any(|own| own.mounted.names == *names));
        let Some(names) = missing else { return Ok(()) };
        let name = if names.is_empty() { "v2".to_owned() } else { names.join(",") };
        let failure = Failure::because(doing, format!("the hierarchy {name} is not mounted here"));
        Err(failure.remedy("use the mount namespace in which the container was started"))
    }

    /// Changes the limits that are given; the others stay as they are.
    ///
    /// # Errors
    /// Where one cannot be set. Those before it are.
    pub fn update(&self, limits: &Limits) -> Result<(), Failure> {
        let limits = Limits { pinned: self.choose_cpus(limits), ..limits.clone() };
        self.apply(&limits.settings(|controller| self.version(controller)))
    }

    /// Lets the container use one device more, before it runs.
    ///
    /// # Errors
    /// Where there is a list of devices that cannot be changed.
    pub fn allow(&mut self, rule: &DeviceRule) -> Result<(), Failure> {
        let allowed = if let Some(filter) = &mut self.device_filter {
            filter.allow(*rule)
        } else if self.hierarchy(Controller::Devices).is_some() {
            self.write(&devices::allow(rule))
        } else {
            Ok(())
        };
        allowed.doing(&format!("allow the device {rule}"))
    }

    /// Whether the usual list of devices is enforced, and no longer one. Where it is not, the container must not be able to
    /// make nodes.
    #[must_use]
    pub fn devices_are_limited(&self) -> bool {
        // The kernel says so itself: in a container around us, the list may be one that we cannot write.
        let list = self.hierarchy(Controller::Devices).map(|hierarchy| hierarchy.container().read("devices.list"));
        self.device_filter.is_some() || list.is_some_and(|list| list.is_ok_and(|list| devices::is_usual(&list)))
    }

    /// Moves a process into the container's cgroups, which takes several milliseconds; see `birthplace`.
    ///
    /// # Errors
    /// Where it cannot join one of them.
    pub fn admit(&self, process: Pid) -> Result<(), Failure> {
        self.admit_to(Place::Container, process)
    }

    /// Moves the union's daemon into its cgroups.
    ///
    /// # Errors
    /// Where it cannot join one of them.
    pub fn admit_daemon(&self, process: Pid) -> Result<(), Failure> {
        self.admit_to(Place::Daemon, process)
    }

    fn admit_to(&self, place: Place, process: Pid) -> Result<(), Failure> {
        for directory in self.hierarchies.iter().filter_map(|hierarchy| hierarchy.directory(place)) {
            match directory.admit(process) {
                // It has ended already, which is found out by whoever waits for it.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(report::cannot_join(directory.path(), errno)),
            }
        }
        Ok(())
    }

    /// Where a process of the container is started: its cgroup of v2.
    #[must_use]
    pub(crate) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace_at(Place::Container)
    }

    /// Where the union's daemon is started.
    #[must_use]
    pub(crate) fn birthplace_of_daemon(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace_at(Place::Daemon)
    }

    fn birthplace_at(&self, place: Place) -> Option<BorrowedFd<'_>> {
        self.v2()?.directory(place).map(Directory::as_fd)
    }

    /// The cgroups of v1 that a process of the container has to [`join`].
    #[must_use]
    pub(crate) fn to_join(&self) -> Vec<PathBuf> {
        self.to_join_at(Place::Container)
    }

    /// Those that the union's daemon has to.
    #[must_use]
    pub(crate) fn to_join_as_daemon(&self) -> Vec<PathBuf> {
        self.to_join_at(Place::Daemon)
    }

    fn to_join_at(&self, place: Place) -> Vec<PathBuf> {
        let v1 = self.hierarchies.iter().filter(|hierarchy| hierarchy.mounted.version == Version::V1);
        v1.filter_map(|hierarchy| hierarchy.directory(place)).map(Directory::tasks).collect()
    }

    /// What the container sees of them; nothing where there are none.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        View::of(self.hierarchies.iter().map(|hierarchy| &hierarchy.mounted))
    }

    /// The container's cgroups by the names of their controllers; v2 has an empty name.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let path = |hierarchy: &Hierarchy| (hierarchy.mounted.names.join(","), hierarchy.container().path().to_owned());
        self.hierarchies.iter().map(path).collect()
    }

    /// Stops the container; its union's daemon goes on.
    ///
    /// # Errors
    /// Where it does not stop in time, and then goes on; or where this machine cannot do that.
    pub fn freeze(&self) -> Result<(), Failure> {
        let (directory, version) = self.life()?;
        freezer::freeze(directory, version).doing("pause the container")
    }

    /// Stops the container as long as this process is stopped itself; false where that is better not done. Whoever is
    /// stopped by v1 cannot be killed, and nobody would be left to let it go on where this process is killed meanwhile.
    pub(crate) fn freeze_killable(&self) -> bool {
        self.life()
            .is_ok_and(|(directory, version)| version == Version::V2 && freezer::freeze(directory, version).is_ok())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn thaw(&self) -> Result<(), Failure> {
        let (directory, version) = self.life()?;
        freezer::thaw(directory, version).doing("let the container go on")
    }

    /// Whether it is stopped.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.life().is_ok_and(|(directory, version)| freezer::is_frozen(directory, version).unwrap_or(false))
    }

    /// Kills everybody in the container.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&self) -> Result<(), Failure> {
        let (directory, version) = self.life()?;
        freezer::kill(directory, version).doing("kill the container's processes")
    }

    /// The cgroup by which the container is stopped and killed: v2, whatever controllers it has, else the freezer of v1.
    fn life(&self) -> Result<(&Directory, Version), Failure> {
        let v2 = self.v2().filter(|v2| v2.container().read("cgroup.freeze").is_ok());
        let hierarchy = v2.or_else(|| self.hierarchy(Controller::Freezer));
        let hierarchy = hierarchy.ok_or_else(report::no_freezer)?;
        Ok((hierarchy.container(), hierarchy.mounted.version))
    }

    /// What it has used so far, its union's daemon included in CPU time and disks.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        for hierarchy in &self.hierarchies {
            let version = hierarchy.mounted.version;
            for controller in &hierarchy.mounted.controllers {
                let is_common = matches!(controller, Controller::Cpu | Controller::CpuAccounting | Controller::Io);
                let directory = if is_common { hierarchy.common() } else { hierarchy.container() };
                statistics.read(*controller, directory, version);
            }
        }
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| hierarchy.mounted.version == Version::V2) {
            statistics.read_cpu_time_of_v2(hierarchy.common());
        }
        statistics
    }

    /// What is to be said of processes that were killed because memory was used up, once the container has ended.
    #[must_use]
    pub fn memory_report(&self) -> Option<String> {
        let hierarchy = self.hierarchy(Controller::Memory)?;
        let kills = |place| {
            let directory = hierarchy.directory(place);
            directory.map_or(0, |directory| memory::kills(directory, hierarchy.mounted.version))
        };
        let (container, daemon) = (kills(Place::Container), kills(Place::Daemon));
        let limit = if container + daemon == 0 { None } else { self.statistics().memory_limit };
        report::memory_kills(container, daemon, limit)
    }

    fn apply(&self, settings: &[Setting]) -> Result<(), Failure> {
        let mut later = Vec::new();
        let mut given_up = Vec::new();
        for setting in settings {
            match self.write(setting) {
                // Some values depend on each other, as memory and swap on v1: the order is right one way or the other.
                Err(Errno::EINVAL) => later.push(setting),
                result => self.accept(setting, result, &mut given_up)?,
            }
        }
        later.into_iter().try_for_each(|setting| self.accept(setting, self.write(setting), &mut given_up))
    }

    fn write(&self, setting: &Setting) -> Result<(), Errno> {
        let hierarchy = self.hierarchy(setting.controller).ok_or(Errno::EOPNOTSUPP)?;
        // There is no daemon that could be limited.
        hierarchy.directory(setting.place).map_or(Ok(()), |directory| setting.write(directory))
    }

    /// A limit that is not set is a failure, unless nobody asked for it, or the caller said to go on.
    fn accept(
        &self,
        setting: &Setting,
        result: Result<(), Errno>,
        given_up: &mut Vec<&'static str>,
    ) -> Result<(), Failure> {
        let Err(errno) = result else { return Ok(()) };
        if setting.is_implied || given_up.contains(&setting.option) {
            return Ok(());
        }
        let refusal = report::cannot_limit(setting, errno, self.why_without(setting.controller));
        if !self.is_best_effort {
            return Err(refusal.into_failure());
        }
        given_up.push(setting.option);
        warn(format_args!("{}; going on without it", refusal.failure));
        Ok(())
    }

    fn hierarchy(&self, controller: Controller) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
    }

    fn v2(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.mounted.version == Version::V2)
    }

    fn version(&self, controller: Controller) -> Version {
        self.hierarchy(controller).map_or(Version::V1, |hierarchy| hierarchy.mounted.version)
    }

    /// Why there is no cgroup with this controller, where that is known: the cgroup that cannot have it, and the error.
    fn why_without(&self, controller: Controller) -> Option<(&Path, Errno)> {
        let refused = self.refused.iter().find(|(mounted, _)| mounted.controllers.contains(&controller));
        let refused = refused.map(|(mounted, errno)| (mounted.root.as_path(), *errno));
        refused.or_else(|| {
            let mut withheld = self.hierarchies.iter().flat_map(|hierarchy| &hierarchy.withheld);
            let withheld = withheld.find(|withheld| withheld.controller == controller)?;
            Some((withheld.place.as_path(), withheld.errno))
        })
    }

    /// The CPUs that the container is to see, if that is fewer than there are.
    fn choose_cpus(&self, limits: &Limits) -> Option<cpuset::CpuList> {
        let directory = self.hierarchy(Controller::Cpuset)?.common();
        let files = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"];
        let cpus: cpuset::CpuList = files.into_iter().find_map(|file| directory.read(file).ok()?.parse().ok())?;
        cpus.choose(limits.visible_cpus?, std::process::id() as usize)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        for hierarchy in &self.hierarchies {
            if let Err(errno) = hierarchy.remove() {
                warn(format_args!(
                    "cannot remove the cgroup {}: {}",
                    hierarchy.common().path().display(),
                    errno.desc()
                ));
            }
        }
    }
}

/// A name for a container that was given none.
#[must_use]
pub fn unused_name() -> String {
    // The standard library seeds its hash tables at random.
    let number = RandomState::new().build_hasher().finish();
    format!("{:012x}", number >> 16)
}

/// v2 decides whether the freezer of v1 is needed.
fn v2_first(mut mounted: Vec<Mounted>) -> Vec<Mounted> {
    mounted.sort_by_key(|mounted| mounted.version == Version::V1);
    mounted
}

/// Whether a container has a cgroup in this hierarchy. `has_life`: it can be stopped and killed by another one.
fn is_useful(mounted: &Mounted, limits: &Limits, counting: Counting, has_life: impl FnOnce() -> bool) -> bool {
    match mounted.controllers.as_slice() {
        [Controller::NetworkClass] => limits.net_class.is_some(),
        [Controller::Freezer] => !has_life(),
        _ if mounted.version == Version::V2 || counting == Counting::Everything || limits.is_some() => true,
        controllers => controllers.contains(&Controller::Devices) || controllers.contains(&Controller::Freezer),
    }
}

#[cfg(test)]
mod tests;
