//! Where a value of the container stands, and those of the cgroups around it: the lowest limit is the one that holds.

use std::fs;
use std::path::PathBuf;

use crate::cgroup::Cgroups;
use crate::cgroup::detect::{Controller, Version};
use crate::cgroup::directory::number_of;

/// The cgroups of a container that tell something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) memory: Option<Group>,
    pub(crate) cpu: Option<Group>,
    pub(crate) cpuset: Option<Group>,
    /// CPU time that was used.
    pub(crate) accounting: Option<Group>,
    pub(crate) io: Option<Group>,
    /// Who is in it.
    pub(crate) tasks: Option<Group>,
}

impl Groups {
    pub(crate) fn of(cgroups: &Cgroups) -> Groups {
        let levels = |controller| {
            let (version, levels) = cgroups.levels(controller)?;
            Some(Group { version, levels })
        };
        let group = |controller| levels(Some(controller)).or_else(|| levels(None));
        Groups {
            memory: group(Controller::Memory),
            cpu: group(Controller::Cpu),
            cpuset: group(Controller::Cpuset),
            accounting: group(Controller::CpuAccounting),
            // What its union reads and writes, it does for the container.
            io: group(Controller::Io).map(|group| group.around(cgroups.has_daemon())),
            tasks: levels(None).or_else(|| levels(Some(Controller::Pids))),
        }
    }
}

/// One cgroup and those around it, from the inside out, as far as they can be seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) version: Version,
    pub(crate) levels: Vec<PathBuf>,
}

impl Group {
    /// The same without the innermost, if that is wanted.
    fn around(mut self, is_wanted: bool) -> Group {
        if is_wanted && self.levels.len() > 1 {
            self.levels.remove(0);
        }
        self
    }

    /// A file of the container's own cgroup.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.levels.first()?.join(name)).ok()
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    pub(crate) fn number_of(&self, name: &str, key: &str) -> Option<u64> {
        number_of(&self.read(name)?, key)
    }

    /// The same file of all of them; nothing where one has it not.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<String>> + 'a {
        self.levels.iter().map(move |level| fs::read_to_string(level.join(name)).ok())
    }
}
