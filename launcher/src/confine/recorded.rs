//! What of a container's confinement further commands in it need to know, as its record keeps it.
//!
//! Docker's filter is not kept: it follows from the capabilities, and from whose terminal a command has.

use std::fs;

use serde::{Deserialize, Serialize};

use super::{
    Account, Capabilities, Confinement, Exception, Filter, Filtering, Limit, Umask, WantedUser, rlimits, user,
};
use crate::failure::{Doing as _, Failure};
use crate::host::StandardStreams;

/// The confinement of a container, without what its first process alone needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    bounding: Capabilities,
    ambient: Capabilities,
    no_new_privileges: bool,
    filter: RecordedFilter,
    user: Option<WantedUser>,
    groups: Vec<Account>,
    names_home: bool,
    limits: Vec<Limit>,
    oom_score: Option<i32>,
    /// Records of earlier versions have none.
    #[serde(default)]
    umask: Umask,
}

/// Which filter for system calls a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum RecordedFilter {
    Nothing,
    Docker,
    Own(Filter),
}

/// What one further command adds to it.
#[derive(Debug, Clone)]
pub(crate) struct Further {
    /// Who it runs as; whoever the container's command runs as, where nobody was named.
    pub(crate) user: Option<WantedUser>,
    /// Whether its environment names HOME.
    pub(crate) names_home: bool,
    /// Which permissions its files do not get; the same as those of the container's command, where nothing was said.
    pub(crate) umask: Option<Umask>,
    /// Which of its streams are the caller's terminal.
    pub(crate) streams: StandardStreams,
    pub(crate) gets_terminal: bool,
}

impl Recorded {
    /// Takes it down. A launcher that gains no privileges itself starts no container that does.
    pub(crate) fn of(confinement: &Confinement) -> Result<Recorded, nix::errno::Errno> {
        let filter = match &confinement.filtering {
            Filtering::Nothing => RecordedFilter::Nothing,
            Filtering::Docker(_) => RecordedFilter::Docker,
            Filtering::Own { command, .. } => RecordedFilter::Own(command.clone()),
        };
        Ok(Recorded {
            bounding: confinement.bounding,
            ambient: confinement.ambient,
            no_new_privileges: confinement.no_new_privileges || nix::sys::prctl::get_no_new_privs()?,
            filter,
            user: confinement.user.clone(),
            groups: confinement.groups.clone(),
            names_home: confinement.names_home,
            limits: confinement.limits.clone(),
            oom_score: confinement.oom_score,
            umask: confinement.umask,
        })
    }

    /// What a further command in the container may do: not more than its command, and not more than what the first
    /// process is bounded by now.
    ///
    /// That process says nothing of no_new_privs: our init has it in any case, and its command need not.
    pub(crate) fn confine(&self, init: i32, further: Further) -> Result<Confinement, Failure> {
        let doing = "look at what the container may do";
        let status = fs::read_to_string(format!("/proc/{init}/status")).doing(doing)?;
        let most = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let most = most.and_then(|text| Capabilities::from_hexadecimal(text.trim()));
        let most = most.ok_or_else(|| Failure::because(doing, "the kernel does not tell its capabilities"))?;
        let own = Capabilities::of_this_process().doing(doing)?;
        let bounding = self.bounding.and(most).and(own);
        let text = fs::read_to_string(format!("/proc/{init}/limits")).doing(doing)?;
        let mut limits = rlimits::of_process(&text);
        limits.extend_from_slice(&self.limits);
        let mut confinement = Confinement {
            bounding,
            nodes: Capabilities::NONE,
            ambient: self.ambient.and(bounding),
            no_new_privileges: self.no_new_privileges,
            filtering: self.filtering(bounding, &further, user::is_alone(&init.to_string()).doing(doing)?),
            user: further.user.or_else(|| self.user.clone()),
            groups: self.groups.clone(),
            names_home: self.names_home || further.names_home,
            limits,
            oom_score: self.oom_score,
            umask: further.umask.unwrap_or(self.umask),
            init: true,
            devices_in_dev_only: false,
            masked: Vec::new(),
            devices: Vec::new(),
            writes_kernel_files: false,
        };
        if !own.contains(Capabilities::named("SYS_RESOURCE")) {
            confinement.limits = rlimits::clamped(&confinement.limits).doing(doing)?;
        }
        Ok(confinement)
    }

    fn filtering(&self, bounding: Capabilities, further: &Further, is_alone: bool) -> Filtering {
        let StandardStreams { input, output, error } = further.streams;
        let shares_terminal = !further.gets_terminal && (input || output || error);
        let docker = || Filter::docker(bounding, Exception::all(shares_terminal, is_alone));
        match &self.filter {
            RecordedFilter::Nothing => Filtering::Nothing,
            RecordedFilter::Docker => Filtering::Docker(docker()),
            RecordedFilter::Own(command) => Filtering::Own { command: command.clone(), init: docker() },
        }
    }
}
