//! What a container may do: user, capabilities, system calls, limits, and what it sees of the kernel's files.
//!
//! | When | What |
//! |---|---|
//! | before the root is entered | paths of `/proc` and `/sys` are hidden or read-only, devices appear in `/dev` |
//! | in pid 1, before there is a command | not dumpable, a keyring of its own, bounding set, no_new_privs, filter |
//! | in pid 1, once the command's process is there | a capability to send signals, and no other |
//! | in the command, once pid 1 has done that | limits, user and groups, capabilities |
//!
//! The order matters: at no moment is there a command that could reach into a pid 1 that still has more than itself.

mod capabilities;
mod devices;
mod environment;
mod paths;
mod recorded;
mod rlimits;
pub(crate) mod seal;
mod seccomp;
mod umask;
mod user;

use std::ffi::{CString, OsStr, OsString};
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_keepcaps, set_no_new_privs};

pub use capabilities::Capabilities;
pub use devices::HostDevice;
pub(crate) use environment::{set as set_variables, variables};
pub(crate) use paths::READ_ONLY;
pub(crate) use recorded::Further;
pub use recorded::Recorded;
pub use rlimits::Limit;
use seccomp::Exception;
pub use seccomp::Filter;
pub(crate) use seccomp::Instruction;
pub use umask::Umask;
pub use user::{Account, Wanted as WantedUser};
pub(crate) use user::{Identity, home_variable, is_alone, parse as parse_user};

use crate::failure::{Doing as _, Failure};
use crate::host::StandardStreams;
use crate::message::warn;
use crate::process::kernel_calls as kernel;

/// What the command may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ConfineOptions {
    /// Run the command as this user of the container, `NAME|UID[:GROUP|GID]`
    #[arg(short, long, value_parser = user::parse, help_heading = "Confinement")]
    pub user: Option<WantedUser>,

    /// One more group for the command, by name or number
    #[arg(long, value_name = "GROUP", value_parser = user::account, help_heading = "Confinement")]
    pub group_add: Vec<Account>,

    /// Give a capability beyond the default ones, or `ALL`
    #[arg(long, value_name = "CAPABILITY", value_parser = capabilities::parse, help_heading = "Confinement")]
    pub cap_add: Vec<Capabilities>,

    /// Take away a default capability, or `ALL`
    #[arg(long, value_name = "CAPABILITY", value_parser = capabilities::parse, help_heading = "Confinement")]
    pub cap_drop: Vec<Capabilities>,

    /// `no-new-privileges=false` lets set-id programs such as sudo work; `seccomp=unconfined|FILE` replaces the filter for
    /// system calls
    #[arg(long, value_name = "OPTION", value_parser = security_option, help_heading = "Confinement")]
    pub security_opt: Vec<SecurityOption>,

    /// Hand out what the launcher may do: all capabilities, no filter, nothing hidden. It is no boundary any more
    #[arg(long, help_heading = "Confinement")]
    pub privileged: bool,

    /// A resource limit of the command, `NAME=SOFT[:HARD]`, such as `nofile=1024`
    #[arg(long, value_name = "LIMIT", value_parser = rlimits::parse, help_heading = "Confinement")]
    pub ulimit: Vec<Limit>,

    /// How readily the kernel ends the container when memory runs out, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, help_heading = "Confinement")]
    #[arg(value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,

    /// Show a device of the host, `SOURCE[:TARGET][:ACCESS]`
    #[arg(long, value_name = "DEVICE", value_parser = devices::parse, help_heading = "Confinement")]
    pub device: Vec<devices::Wanted>,

    /// Set a variable, `NAME=VALUE`, or take it over, `NAME`
    #[arg(short, long, value_name = "VARIABLE", help_heading = "Command")]
    pub env: Vec<OsString>,

    /// Set the variables in a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    pub env_file: Vec<PathBuf>,

    /// Where the command starts; made where it is missing
    #[arg(short, long, value_name = "DIR", value_parser = absolute(), help_heading = "Command")]
    pub workdir: Option<PathBuf>,

    /// Which permissions files of the command do not get, as octal digits; without it 0022, and in a copy of this machine the
    /// caller's
    #[arg(long, value_name = "MODE", value_parser = str::parse::<Umask>, help_heading = "Command")]
    pub umask: Option<Umask>,

    /// A program to run, with the command, if there is one, as its arguments
    #[arg(long, value_name = "PROGRAM", help_heading = "Command")]
    pub entrypoint: Option<OsString>,

    /// The host name in the container
    #[arg(long, value_name = "NAME", value_parser = host_name, help_heading = "Command")]
    pub hostname: Option<OsString>,

    /// `--init=false` runs the command as pid 1
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(overrides_with = "no_init", help_heading = "Command")]
    pub init: Option<bool>,

    /// The same as `--init=false`
    #[arg(long, overrides_with = "init", help_heading = "Command")]
    pub no_init: bool,
}

/// `--security-opt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityOption {
    /// Whether programs can give more than their caller has.
    NoNewPrivileges(bool),
    /// No filter for system calls.
    Unconfined,
    /// docker's filter, the default.
    DefaultFilter,
    /// A filter in the OCI form.
    FilterFile(PathBuf),
}

fn security_option(text: &str) -> Result<SecurityOption, String> {
    let (name, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    Ok(match (name, value) {
        ("no-new-privileges", "" | "true") => SecurityOption::NoNewPrivileges(true),
        ("no-new-privileges", "false") => SecurityOption::NoNewPrivileges(false),
        ("seccomp", "unconfined") => SecurityOption::Unconfined,
        ("seccomp", "builtin") => SecurityOption::DefaultFilter,
        ("seccomp", file) if !file.is_empty() => SecurityOption::FilterFile(file.into()),
        _ => return Err("it must be no-new-privileges[=true|false] or seccomp=unconfined|builtin|FILE".into()),
    })
}

pub(crate) fn absolute() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| match PathBuf::from(text) {
        path if path.is_absolute() => Ok(path),
        _ => Err("it must be an absolute path in the container"),
    })
}

/// See gethostname(2); the characters are those of hostname(7), and the underscore that is widely used.
fn host_name(text: &str) -> Result<OsString, String> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if text.is_empty() || text.len() > 64 || text.starts_with(['-', '.']) || !text.bytes().all(is_valid) {
        return Err("a host name has 1 to 64 letters, digits, dots, hyphens and underscores".into());
    }
    Ok(text.into())
}

/// What was found around the launcher that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// What the launcher may do, and so the most that it can give.
    pub capabilities: Capabilities,
    /// The profile that was named last, with its path.
    pub profile: Option<(PathBuf, Vec<u8>)>,
    /// Variables that were asked for.
    pub variables: Vec<(OsString, OsString)>,
    /// Devices that were asked for.
    pub devices: Vec<HostDevice>,
    /// Paths to hide.
    pub masked: Vec<PathBuf>,
    /// Whether there is one user only, so that nothing can be given to another.
    pub is_alone: bool,
}

impl Surroundings {
    /// Looks at what the options name; `lookup` finds the caller's variables.
    ///
    /// # Errors
    /// Where a file or a device that is named cannot be used.
    pub(crate) fn observe(
        options: &ConfineOptions,
        lookup: impl Fn(&OsStr) -> Option<OsString>,
    ) -> Result<Surroundings, Failure> {
        let profile = match options.security_opt.iter().rev().find(|option| option.is_about_the_filter()) {
            Some(SecurityOption::FilterFile(path)) => {
                let text = std::fs::read(path).doing(&format!("read the seccomp profile {}", path.display()))?;
                Some((path.clone(), text))
            }
            _ => None,
        };
        Ok(Surroundings {
            capabilities: Capabilities::of_this_process().doing("read the launcher's own capabilities")?,
            profile,
            variables: environment::variables(&options.env_file, &options.env, lookup)?,
            devices: options.device.iter().map(devices::Wanted::observe).collect::<Result<_, _>>()?,
            masked: if options.privileged { Vec::new() } else { paths::masked() },
            is_alone: user::is_alone("self").doing("look at the users that there are")?,
        })
    }
}

impl SecurityOption {
    fn is_about_the_filter(&self) -> bool {
        !matches!(self, SecurityOption::NoNewPrivileges(_))
    }
}

/// Which system calls are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filtering {
    /// None.
    Nothing,
    /// By docker's list; pid 1 has the same.
    Docker(Filter),
    /// The command by a profile of the user's, pid 1 by docker's list, so that it can do its work in any case.
    Own {
        /// The user's.
        command: Filter,
        /// docker's.
        init: Filter,
    },
}

/// What a container may do, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// The most that any process of the container can have.
    pub bounding: Capabilities,
    /// What a command that does not run as root has nevertheless: what was added by name.
    pub ambient: Capabilities,
    /// Whether set-id programs and file capabilities give nothing.
    pub no_new_privileges: bool,
    /// Which system calls are looked at.
    pub filtering: Filtering,
    /// Who the command runs as; root, where nobody was named.
    pub user: Option<WantedUser>,
    /// Groups that were named in addition.
    pub groups: Vec<Account>,
    /// Whether HOME is what somebody has said, and not that of the user who was named.
    pub names_home: bool,
    /// Limits of the command.
    pub limits: Vec<Limit>,
    /// How readily the kernel ends the container when memory runs out.
    pub oom_score: Option<i32>,
    /// Which permissions the command's files do not get.
    pub umask: Umask,
    /// Whether our init is pid 1; else the command is.
    pub init: bool,
    /// Whether devices work nowhere but in `/dev`.
    pub devices_in_dev_only: bool,
    /// The right to make nodes, where docker gives it and nobody took it away. It is given only once a list of devices is
    /// known to be enforced: without one, who makes a node of a device has the device.
    pub nodes: Capabilities,
    /// Paths to hide.
    pub masked: Vec<PathBuf>,
    /// Devices of the host.
    pub devices: Vec<HostDevice>,
    /// Whether the kernel's files that docker protects can be written.
    pub writes_kernel_files: bool,
}

impl Confinement {
    /// Decides what the options leave open.
    ///
    /// # Errors
    /// Where a profile cannot be used.
    pub(crate) fn decide(
        options: &ConfineOptions,
        surroundings: &Surroundings,
        streams: StandardStreams,
        gets_terminal: bool,
    ) -> Result<Confinement, Failure> {
        let privileged = options.privileged;
        let (bounding, nodes) = bounding_set(options, surroundings);
        let added = options.cap_add.iter().fold(Capabilities::NONE, |all, one| all.with(*one));
        let shares_terminal = !gets_terminal && (streams.input || streams.output || streams.error);
        let exceptions = Exception::all(shares_terminal, surroundings.is_alone);
        let names_home = surroundings.variables.iter().any(|(name, _)| name == "HOME");
        let no_new_privileges = options.security_opt.iter().rev().find_map(|option| match option {
            SecurityOption::NoNewPrivileges(on) => Some(*on),
            _ => None,
        });
        Ok(Confinement {
            bounding,
            ambient: added.and(bounding),
            no_new_privileges: no_new_privileges.unwrap_or(!privileged),
            filtering: filtering(options, surroundings, bounding, exceptions)?,
            user: options.user.clone(),
            groups: options.group_add.clone(),
            names_home,
            limits: options.ulimit.clone(),
            oom_score: options.oom_score_adj,
            umask: options.umask.unwrap_or_default(),
            init: options.init.unwrap_or(!options.no_init),
            devices_in_dev_only: !privileged,
            nodes,
            masked: surroundings.masked.clone(),
            devices: surroundings.devices.clone(),
            writes_kernel_files: privileged,
        })
    }

    /// Whether HOME is that of the user who was named.
    pub(crate) fn sets_home(&self) -> bool {
        self.user.is_some() && !self.names_home
    }

    /// A device controller keeps the container from devices that were not given to it, so nodes are only names of them.
    pub(crate) fn rely_on_device_list(&mut self) {
        self.bounding = self.bounding.with(self.nodes);
        self.devices_in_dev_only = false;
    }

    /// Clamps limits to what the launcher may give, with a word about each.
    pub(crate) fn clamp_limits(&mut self, capabilities: Capabilities) -> Result<(), Failure> {
        if capabilities.contains(Capabilities::named("SYS_RESOURCE")) {
            return Ok(());
        }
        for limit in &mut self.limits {
            let (clamped, is_less) = limit.clamped().doing("look at the launcher's own limits")?;
            if is_less {
                let (name, hard) = (limit.name(), clamped.hard());
                warn(format_args!("the limit {name} is {hard}, the launcher's own hard limit, which it may not raise"));
            }
            *limit = clamped;
        }
        Ok(())
    }

    /// Restricts pid 1, before there is a command; what it runs inherits all of this but the first.
    pub(crate) fn restrict(&self) -> Result<(), Errno> {
        set_dumpable(false)?;
        kernel::leave_keyring()?;
        self.bounding.bound()?;
        if self.no_new_privileges {
            set_no_new_privs()?;
        }
        match &self.filtering {
            Filtering::Docker(filter) => kernel::install_filter(filter.program()),
            Filtering::Nothing | Filtering::Own { .. } => Ok(()),
        }
    }

    /// Takes from pid 1 what it does not need once the command is on its way.
    pub(crate) fn restrict_init(&self) -> Result<(), Errno> {
        set_no_new_privs()?;
        if let Filtering::Own { init, .. } = &self.filtering {
            kernel::install_filter(init.program())?;
        }
        // To pass signals on to a command that runs as another user. The kernel keeps them in this pid namespace.
        Capabilities::named("KILL").and(Capabilities::of_this_process()?).take(Capabilities::NONE)
    }

    /// Makes this process what the command is to be. The user's filter comes last, or it could refuse the rest; without
    /// no_new_privs it takes a capability to install one, so then it comes before those are given up.
    pub(crate) fn become_command(&self, identity: &Identity) -> Result<(), Errno> {
        self.limits.iter().try_for_each(|limit| limit.set())?;
        self.umask.set();
        if !self.no_new_privileges {
            self.install_own_filter()?;
        }
        set_keepcaps(true)?;
        identity.assume()?;
        let available = Capabilities::of_this_process()?.and(self.bounding);
        let (set, ambient) = match identity.user {
            0 => (available, Capabilities::NONE),
            _ => (available.and(self.ambient), available.and(self.ambient)),
        };
        set.take(ambient)?;
        set_keepcaps(false)?;
        if self.no_new_privileges {
            self.install_own_filter()?;
        }
        Ok(())
    }

    fn install_own_filter(&self) -> Result<(), Errno> {
        match &self.filtering {
            Filtering::Own { command, .. } => kernel::install_filter(command.program()),
            Filtering::Nothing | Filtering::Docker(_) => Ok(()),
        }
    }
}

/// The most that the container can have, and what comes to it with a list of devices.
fn bounding_set(options: &ConfineOptions, surroundings: &Surroundings) -> (Capabilities, Capabilities) {
    let available = surroundings.capabilities;
    let union = |sets: &[Capabilities]| sets.iter().fold(Capabilities::NONE, |all, one| all.with(*one));
    let (added, dropped) = (union(&options.cap_add), union(&options.cap_drop));
    let everything = options.privileged || added == Capabilities::ALL;
    let nodes = Capabilities::named("MKNOD");
    let default = Capabilities::docker().without(nodes);
    // As docker: what is added by name wins over `--cap-drop ALL`, what is dropped by name over `--cap-add ALL`.
    let wanted = match (everything, dropped == Capabilities::ALL) {
        (true, true) => Capabilities::NONE,
        (true, false) => Capabilities::ALL.without(dropped),
        (false, true) => added,
        (false, false) => default.with(added).without(dropped),
    };
    let missing = added.and(wanted).without(available);
    if !everything && !missing.is_empty() {
        warn(format_args!("{missing} cannot be given to the container: the launcher itself does not have it"));
    }
    let gets_nodes = !everything && dropped.and(nodes).is_empty();
    (wanted.and(available), if gets_nodes { nodes.and(available) } else { Capabilities::NONE })
}

fn filtering(
    options: &ConfineOptions,
    surroundings: &Surroundings,
    bounding: Capabilities,
    exceptions: Vec<Exception>,
) -> Result<Filtering, Failure> {
    let docker = Filter::docker(bounding, exceptions);
    let last = options.security_opt.iter().rev().find(|option| option.is_about_the_filter());
    Ok(match (last, &surroundings.profile) {
        (Some(SecurityOption::FilterFile(_)), Some((path, text))) => {
            Filtering::Own { command: Filter::from_text(path, text, bounding)?, init: docker }
        }
        (Some(SecurityOption::Unconfined), _) => Filtering::Nothing,
        (None, _) if options.privileged => Filtering::Nothing,
        _ => Filtering::Docker(docker),
    })
}

/// For the processes of ours that look after a container from outside: nothing in it can trace them, and what they start
/// is no more than they are.
pub(crate) fn restrict_helper() -> Result<(), Errno> {
    set_dumpable(false)?;
    set_no_new_privs()
}

/// The same for one that from here on only reads files that everybody may read, and answers on what it has open.
pub(crate) fn restrict_reader() -> Result<(), Errno> {
    restrict_helper()?;
    Capabilities::NONE.take(Capabilities::NONE)?;
    match kernel::install_filter(Filter::reading().program()) {
        // A kernel without filters, or one around us that allows no more of them.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => Ok(()),
        result => result,
    }
}

/// The environment with the user's HOME in it.
pub(crate) fn with_home(environment: &[CString], identity: &Identity) -> Vec<CString> {
    let others = environment.iter().filter(|variable| !variable.to_bytes().starts_with(b"HOME="));
    let home = identity.home.as_ref().and_then(home_variable).unwrap_or_else(|| c"HOME=/".to_owned());
    others.cloned().chain([home]).collect()
}

#[cfg(test)]
mod tests;
