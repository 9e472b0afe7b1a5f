//! One more command in a container that runs.
//!
//! It is a start with fewer steps: the child enters the namespaces of the container's first process and its root, and then
//! looks after the command as every first process does. Nothing of the caller's environment comes along.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt as _;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::{ExecOptions, find, running};
use crate::cgroup::Cgroups;
use crate::child::Child;
use crate::confine::{Confinement, seal};
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::host::StandardStreams;
use crate::namespace::Target;
use crate::options::When;
use crate::process;
use crate::process::channel::Channel;
use crate::process::signals::Signals;
use crate::process::supervisor::Supervisor;
use crate::spec::c_string;
use crate::steps;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn run(options: ExecOptions) -> Result<u8, Failure> {
    process::close_all_descriptors().doing("close what was left open for this program")?;
    seal::ensure()?;
    let record = find(&options.name)?;
    let (init, descriptor) = running(&record)?;
    let target = Target::open(&init, descriptor).doing(&format!("look at the container {}", record.name))?;
    let terminals = StandardStreams::that_are_terminals();
    let terminal = match options.streams.tty {
        When::Auto => terminals.wants_terminal().then_some(terminals),
        When::Always => Some(StandardStreams { input: true, output: true, error: true }),
        When::Never => None,
    };
    let environment = environment(&options.env)?;
    let command = options.command.into_iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
    let confinement = Confinement::of_container(init.pid, terminals, terminal.is_some())?;
    let cgroups = Cgroups::of(Pid::from_raw(init.pid), &record.name)?;
    cgroups.are_all_of(Pid::from_raw(init.pid), &record.name)?;
    let joins = cgroups.to_join();
    let steps = steps::plan_exec(&joins, target, options.workdir, terminal, confinement, command, environment);
    if cgroups.is_frozen() {
        let failure = Failure::new(format!("the container {} is paused", record.name));
        return Err(failure.remedy(&format!("let it go on with rlaunch resume {}", record.name)));
    }
    let signals = Signals::take_over().doing("take over signals")?;
    let (ours, theirs) = Channel::pair().doing("make a channel to the command")?;
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    let child = process::clone_into(CloneFlags::empty(), cgroups.birthplace(), || {
        drop(ours.take());
        let child = theirs.take().map(|channel| Child {
            steps: &steps,
            signals: &signals,
            channel,
            adopts: false,
            devices: Vec::new().into_iter(),
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
        Some(channel) => Supervisor::new(&steps, &signals, child, channel, None).run(|| Ok(())),
        None => Ok(OWN_FAILURE),
    }
}

/// The usual one, and what was asked for: `NAME=VALUE`, or `NAME` for the caller's value.
fn environment(wanted: &[String]) -> Result<Vec<CString>, Failure> {
    let mut environment = vec![OsString::from(DEFAULT_PATH), "HOME=/root".into()];
    environment.extend(std::env::var_os("TERM").map(|term| [OsString::from("TERM="), term].into_iter().collect()));
    for word in wanted {
        let name = word.split('=').next().unwrap_or_default().to_owned() + "=";
        let variable = match word.contains('=') {
            true => Some(OsString::from(word)),
            false => std::env::var_os(word).map(|value| [OsString::from(&name), value].into_iter().collect()),
        };
        environment.retain(|other| !other.as_encoded_bytes().starts_with(name.as_bytes()));
        environment.extend(variable);
    }
    environment.into_iter().map(|text| c_string(OsString::from_vec(text.into_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_replace_the_usual_ones() {
        let wanted = ["PATH=/x", "A=1=2", "A=3"].map(str::to_owned);
        let environment = environment(&wanted).unwrap();
        assert!(environment.contains(&c"PATH=/x".to_owned()) && environment.contains(&c"HOME=/root".to_owned()));
        assert_eq!(environment.iter().filter(|text| text.to_bytes().starts_with(b"A=")).collect::<Vec<_>>(), [c"A=3"]);
    }
}
