//! One more command in a container that runs.
//!
//! It is a start with fewer steps: the child enters the namespaces of the container's first process and its root, and then
//! looks after the command as every first process does. Nothing of the caller's environment comes along.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::Args;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::{find, running};
use crate::cgroup::Cgroups;
use crate::child::Child;
use crate::confine::{self, Umask, WantedUser, seal};
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::host::{self, StandardStreams};
use crate::namespace::Target;
use crate::options::{StreamOptions, When};
use crate::process;
use crate::process::channel::Channel;
use crate::process::signals::Signals;
use crate::process::supervisor::Supervisor;
use crate::spec::c_string;
use crate::state::{Record, Word};
use crate::steps::{self, Further, Step};

/// A command for a container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ExecOptions {
    /// How its standard streams are connected.
    #[command(flatten)]
    streams: StreamOptions,
    /// Run it as this user of the container, `NAME|UID[:GROUP|GID]`; without it, as the container's command
    #[arg(short, long, value_parser = confine::parse_user)]
    user: Option<WantedUser>,
    /// Set a variable beside those of the container, `NAME=VALUE`, or take over the caller's, `NAME`
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<OsString>,
    /// Set the variables in a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Where it starts; without it, where the container's command did
    #[arg(short, long, value_name = "DIR", value_parser = confine::absolute())]
    workdir: Option<PathBuf>,
    /// Which permissions its files do not get, as octal digits; without it, as those of the container's command
    #[arg(long, value_name = "MODE", value_parser = str::parse::<Umask>)]
    umask: Option<Umask>,
    /// The container
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(options: ExecOptions) -> Result<u8, Failure> {
    process::close_all_descriptors().doing("close what was left open for this program")?;
    host::check_streams()?;
    seal::ensure()?;
    let record = find(&options.name)?;
    let (init, descriptor) = running(&record)?;
    let target = Target::open(&init, descriptor).doing(&format!("look at the container {}", record.name))?;
    let cgroups = Cgroups::of(Pid::from_raw(init.pid), &record.id)?;
    cgroups.are_all_of(Pid::from_raw(init.pid), &record.id)?;
    if cgroups.is_frozen() {
        let failure = Failure::new(format!("the container {} is paused", record.name));
        return Err(failure.remedy(&format!("let it go on with rlaunch resume {}", record.name)));
    }
    let further = Further { joins: cgroups.to_join(), ..further(options, &record, target, init.pid)? };
    run_in(&steps::plan_exec(further), &cgroups)
}

fn further(options: ExecOptions, record: &Record, target: Target, init: i32) -> Result<Further, Failure> {
    let streams = StandardStreams::that_are_terminals();
    let terminal = match options.streams.tty {
        When::Auto => streams.wants_terminal().then_some(streams),
        When::Always => Some(StandardStreams { input: true, output: true, error: true }),
        When::Never => None,
    };
    let variables = confine::variables(&options.env_file, &options.env, |name: &OsStr| std::env::var_os(name))?;
    let names_home = variables.iter().any(|(name, _)| name == "HOME");
    let (user, umask) = (options.user, options.umask);
    let further = confine::Further { user, names_home, umask, streams, gets_terminal: terminal.is_some() };
    let needs_directory = options.workdir.is_some();
    Ok(Further {
        joins: Vec::new(),
        target,
        directory: options.workdir.unwrap_or_else(|| record.settings.directory.path()),
        needs_directory,
        terminal,
        confinement: record.settings.confinement.confine(init, further)?,
        command: options.command.into_iter().map(c_string).collect::<Result<_, _>>()?,
        environment: environment(&record.settings.environment, variables, std::env::var_os("TERM"))?,
    })
}

/// Starts a process that does the steps, in the container's cgroups, and looks after it; the exit status is the command's.
fn run_in(steps: &[Step], cgroups: &Cgroups) -> Result<u8, Failure> {
    let signals = Signals::take_over().doing("take over signals")?;
    let (ours, theirs) = Channel::pair().doing("make a channel to the command")?;
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    let child = process::clone_into(CloneFlags::empty(), cgroups.birthplace(), || {
        drop(ours.take());
        let child = theirs.take().map(|channel| Child {
            steps,
            signals: &signals,
            channel,
            adopts: false,
            devices: Vec::new().into_iter(),
            view: None,
            mount_point: None,
        });
        child.map_or(OWN_FAILURE, Child::run)
    })
    .doing("start a process for the command")?;
    let process::Started { pid: child, is_in_cgroup } = child;
    if let Err(failure) = if is_in_cgroup { Ok(()) } else { cgroups.admit(child) } {
        drop(ours);
        return process::wait_for(child).doing("wait for the command").and(Err(failure));
    }
    drop(theirs);
    match ours {
        Some(channel) => Supervisor::new(steps, &signals, child, channel, None).run(|| Ok(()), || Ok(())),
        None => Ok(OWN_FAILURE),
    }
}

/// That of the container's command, with the caller's kind of terminal, and what was asked for.
fn environment(
    container: &[Word],
    wanted: Vec<(OsString, OsString)>,
    term: Option<OsString>,
) -> Result<Vec<CString>, Failure> {
    let mut environment: Vec<CString> = container.iter().filter_map(Word::c_string).collect();
    let term = term.map(|term| (OsString::from("TERM"), term));
    for (mut variable, value) in term.into_iter().chain(wanted) {
        variable.push("=");
        environment.retain(|other| !other.to_bytes().starts_with(variable.as_bytes()));
        variable.push(value);
        environment.push(c_string(variable)?);
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_replace_the_containers() {
        let container = ["PATH=/bin", "HOME=/root", "TERM=vt100", "A=0"].map(|text| Word::from(OsStr::new(text)));
        let wanted = [("PATH", "/x"), ("A", "1=2"), ("A", "3")].map(|(name, value)| (name.into(), value.into()));
        let environment = environment(&container, wanted.to_vec(), Some("xterm".into())).unwrap();
        assert_eq!(environment, [c"HOME=/root", c"TERM=xterm", c"PATH=/x", c"A=3"].map(CString::from));
    }
}
