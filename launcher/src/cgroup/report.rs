//! The words for what cannot be limited, and what helps.

use std::path::Path;

use nix::errno::Errno;

use super::detect::{Controller, Version};
use super::memory::show_size;
use super::setting::Setting;
use crate::failure::Failure;

/// Why a limit was not set, and what helps.
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    pub(crate) remedy: String,
}

impl Refusal {
    fn new(setting: &Setting, cause: impl std::fmt::Display, remedy: impl Into<String>) -> Refusal {
        Refusal { failure: Failure::because(&format!("apply {}", setting.option), cause), remedy: remedy.into() }
    }

    /// For a caller who insists on the limit.
    pub(crate) fn into_failure(self) -> Failure {
        self.failure.remedy(&format!("{}, or go on without the limit by --best-effort-limits", self.remedy))
    }
}

/// A limit that was not set. `why` says for which cgroup the controller was not to be had, and with which error; without
/// it, the kernel or the machine has none.
pub(crate) fn cannot_limit(setting: &Setting, errno: Errno, why: Option<(&Path, Errno)>) -> Refusal {
    match (errno, why) {
        (Errno::EOPNOTSUPP, Some((path, errno))) => withheld(setting, path, errno),
        (Errno::EOPNOTSUPP, None) => absent(setting),
        (Errno::ENOENT, _) => {
            Refusal::new(setting, format!("this kernel has no {}", setting.file_names()), "take a kernel that has it")
        }
        (Errno::EBUSY, _) if setting.controller == Controller::Memory => {
            Refusal::new(setting, "the container uses more than that now", "choose a higher limit")
        }
        (Errno::EACCES | Errno::EINVAL | Errno::ERANGE | Errno::ENOSPC, _)
            if setting.controller == Controller::Cpuset =>
        {
            let remedy = "name some that are there, and that the cgroup around it may use";
            Refusal::new(setting, "the CPUs or memory nodes are not to be had", remedy)
        }
        (Errno::ENODEV, _) => Refusal::new(setting, "the kernel knows no such disk", "name a whole disk"),
        (errno, _) => {
            let cause = format!("{}, says {}", errno.desc(), setting.file_names());
            Refusal::new(setting, cause, "choose another value")
        }
    }
}

fn absent(setting: &Setting) -> Refusal {
    let (v1, v2) = (setting.controller.name(Version::V1), setting.controller.name(Version::V2));
    let cause = match setting.controller {
        Controller::NetworkClass => format!("the {v1} controller of cgroup v1 is not mounted"),
        _ => format!("no mounted control group hierarchy has the {v2} controller"),
    };
    let remedy = format!("if /proc/cgroups lists {v1}, mount it by mount -t cgroup -o {v1} cgroup DIRECTORY");
    Refusal::new(setting, cause, remedy)
}

fn withheld(setting: &Setting, path: &Path, errno: Errno) -> Refusal {
    if errno == Errno::ENODEV {
        let name = setting.controller.name(Version::V2);
        let cause = format!("the cgroup {} was not given the {name} controller", path.display());
        let remedy = format!(
            "have root write +{name} to cgroup.subtree_control of each cgroup above it, or, where systemd does that, set \
             Delegate=cpu cpuset io memory pids for user@.service"
        );
        return Refusal::new(setting, cause, remedy);
    }
    if errno == Errno::ESRCH {
        let cause = format!("the container has no cgroup in {}", path.display());
        return Refusal::new(setting, cause, "on v1, start it with a name, in the background or with any limit");
    }
    let remedy = match errno {
        Errno::EACCES | Errno::EPERM => {
            "start it by systemd-run --user --scope -p Delegate=yes, which gives an ordinary user a cgroup of v2; on v1 \
             limits are for root"
        }
        Errno::EROFS => "mount it writable",
        Errno::EBUSY => {
            "processes live in it, so it cannot give controllers to cgroups below it: move them to a cgroup below, or name \
             another by --cgroup-parent"
        }
        Errno::EEXIST => "choose another name, for a container of this one runs",
        Errno::ENOSPC | Errno::EAGAIN => "remove some cgroups, for there are too many",
        _ => "see whether cgroups can be made there by mkdir",
    };
    Refusal::new(setting, format!("no cgroup for it can be had in {}: {}", path.display(), errno.desc()), remedy)
}

/// A process that may not enter its cgroup.
pub(crate) fn cannot_join(path: &Path, errno: Errno) -> Failure {
    let failure = Failure::because(&format!("put the container into the cgroup {}", path.display()), errno.desc());
    match errno {
        Errno::EINVAL => failure.remedy("a process with a real-time policy cannot join: start from an ordinary one"),
        Errno::EACCES => failure.remedy("both its cgroup and the one it leaves have to be yours"),
        _ => failure,
    }
}

/// A machine that cannot stop processes.
pub(crate) fn no_freezer() -> Failure {
    Failure::new(
        "the container has neither a cgroup of v2 nor one of the freezer, by which it could be stopped and killed",
    )
    .remedy("mount cgroup2")
}

/// What the kernel killed for want of memory, in the container and in its union.
pub(crate) fn memory_kills(container: u64, daemon: u64, limit: Option<u64>) -> Option<String> {
    let limit = limit.map_or("all of the machine's".to_owned(), show_size);
    let processes = |count| if count == 1 { "1 process".to_owned() } else { format!("{count} processes") };
    match (container, daemon) {
        (0, 0) => None,
        (0, _) => Some(format!(
            "the union's daemon was killed because its memory was used up; the container had {limit} (give it more by --memory)"
        )),
        (count, _) => {
            let killed = processes(count);
            Some(format!(
                "{killed} of the container killed because its memory was used up: {limit} (give it more by --memory)"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::Place;

    #[test]
    fn every_failure_names_the_option_and_what_helps() {
        let setting =
            |controller| Setting::new("--memory", controller, Place::Container, vec![("memory.max", String::new())]);
        let place = Path::new("/sys/fs/cgroup");
        for (controller, errno, why, words) in [
            (Controller::Memory, Errno::EOPNOTSUPP, None, "has the memory controller"),
            (Controller::NetworkClass, Errno::EOPNOTSUPP, None, "mount -t cgroup -o net_cls"),
            (Controller::Memory, Errno::EOPNOTSUPP, Some((place, Errno::EACCES)), "Delegate=yes"),
            (Controller::Memory, Errno::EOPNOTSUPP, Some((place, Errno::EBUSY)), "--cgroup-parent"),
            (Controller::Memory, Errno::EOPNOTSUPP, Some((place, Errno::EROFS)), "mount it writable"),
            (Controller::Memory, Errno::EOPNOTSUPP, Some((place, Errno::ENODEV)), "write +memory to"),
            (Controller::Memory, Errno::EOPNOTSUPP, Some((place, Errno::ESRCH)), "start it with a name"),
            (Controller::Io, Errno::ENOENT, None, "no memory.max"),
            (Controller::Memory, Errno::EBUSY, None, "uses more than that now"),
            (Controller::Cpuset, Errno::EINVAL, None, "are not to be had"),
        ] {
            let text = cannot_limit(&setting(controller), errno, why).into_failure().to_string();
            assert!(text.ends_with(", or go on without the limit by --best-effort-limits)"), "{text}");
            assert!(text.starts_with("cannot apply --memory: ") && text.contains(words), "{text}");
        }
    }

    #[test]
    fn kills_are_told_with_the_limit() {
        assert_eq!(memory_kills(0, 0, Some(1)), None);
        let text = memory_kills(1, 0, Some(50 << 20)).unwrap();
        assert!(text.starts_with("1 process of the container killed") && text.contains("50 MiB"), "{text}");
        assert!(memory_kills(3, 1, None).unwrap().starts_with("3 processes"));
        assert!(memory_kills(0, 1, None).unwrap().starts_with("the union's daemon"));
    }
}
