//! What is done to containers that are there: looking at them, stopping them, and running more in them.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;

use crate::cgroup::Cgroups;
use crate::copy::{self, CopyOptions};
use crate::failure::{Doing as _, Failure};
use crate::process::number::SignalNumber;
use crate::run;
use crate::state::{self, Handle, Process, Record};
use crate::written::Written;
use crate::{rootless, scratch};

mod exec;
mod inspect;
mod logs;
mod resources;
mod stuck;
mod table;

use self::exec::ExecOptions;
use self::logs::LogOptions;
pub(crate) use self::resources::cgroups;
use self::resources::{StatsOptions, UpdateOptions};

/// How long a container may take to end once it was killed, and after what was in its way has ended.
const ENDING: Duration = Duration::from_secs(5);

/// How often it is looked whether a container that is being made is there.
const LOOKING: Duration = Duration::from_millis(5);

/// What can be done to containers.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Lifecycle {
    /// Run a command in a container that runs
    Exec(ExecOptions),
    /// List containers
    #[command(alias = "list")]
    Ps,
    /// Print what is known of a container, as JSON
    Inspect(Named),
    /// Stop a container: SIGTERM, and SIGKILL when it does not end
    Stop {
        /// How long it may take to end by itself
        #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
        time: u16,
        /// The container
        name: String,
    },
    /// Send a signal to a container
    Kill {
        /// The signal, by name or number
        #[arg(short, long, default_value = "KILL")]
        signal: SignalNumber,
        /// The container
        name: String,
    },
    /// Start a container that has ended and was kept, as it was started first
    Start {
        /// Stay in the foreground, connected to its streams
        #[arg(short, long)]
        attach: bool,
        /// The container
        name: String,
    },
    /// Wait for the end of a container; the exit status is its command's
    Wait(Named),
    /// Print what a container in the background has printed
    Logs(LogOptions),
    /// Copy files to or from a container that runs: `cp SOURCE NAME:TARGET`, `cp NAME:SOURCE TARGET`
    Cp(CopyOptions),
    /// List what a container has added, changed and deleted (A, C, D) over its image or its branches
    Diff(Named),
    /// Show what this kernel and this user can do, what it gives, and what to change; the same as runionfs doctor
    Doctor {
        /// Show it as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the processes of a container
    Top(Named),
    /// Stop all processes of a container where they are
    Pause(Named),
    /// Let a paused container go on
    #[command(alias = "unpause")]
    Resume(Named),
    /// Print what containers use, each second
    Stats(StatsOptions),
    /// Change limits of a container
    Update(Box<UpdateOptions>),
    /// Forget containers that have ended
    Rm {
        /// Kill those that have not
        #[arg(short, long)]
        force: bool,
        /// Accepted for those who know it from elsewhere: what a container has of its own always goes with it
        #[arg(short, long)]
        volumes: bool,
        /// Remove what launchers that were killed have left
        #[arg(long)]
        stale: bool,
        /// The containers
        #[arg(required_unless_present = "stale")]
        names: Vec<String>,
    },
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Named {
    /// The container
    name: String,
}

/// Does it; the exit status.
pub(crate) fn act(what: Lifecycle) -> Result<u8, Failure> {
    match what {
        Lifecycle::Exec(options) => exec::run(options),
        Lifecycle::Ps => print(&table::containers(&state::all()?)?),
        Lifecycle::Inspect(Named { name }) => print(&inspect::details(&find(&name)?)?),
        Lifecycle::Stop { time, name } => stop(&find(&name)?, Duration::from_secs(time.into())),
        Lifecycle::Kill { signal, name } => send(&find(&name)?, signal),
        Lifecycle::Start { attach, name } => run::start_again(find(&name)?, attach),
        Lifecycle::Wait(Named { name }) => wait(&find(&name)?),
        Lifecycle::Logs(options) => logs::run(&options),
        Lifecycle::Cp(options) => copy::run(options),
        Lifecycle::Diff(Named { name }) => diff(&name),
        Lifecycle::Doctor { json } => {
            let report = unionfs::doctor::examine(&[]).doing("look at this machine")?;
            let text = if json {
                report.to_json().map_err(std::io::Error::other).doing("write JSON")?
            } else {
                report.to_text()
            };
            print(&text).map(|status| if report.unions { status } else { 1 })
        }
        Lifecycle::Top(Named { name }) => print(&table::processes(&find(&name)?)?),
        Lifecycle::Pause(Named { name }) => resources::pause(&find(&name)?),
        Lifecycle::Resume(Named { name }) => resources::resume(&find(&name)?),
        Lifecycle::Stats(options) => resources::stats(&options),
        Lifecycle::Update(options) => resources::update(*options),
        Lifecycle::Rm { force, stale, names, volumes: _ } => remove(&names, force, stale),
    }
}

fn diff(name: &str) -> Result<u8, Failure> {
    // What was written may belong to users whom only the namespace of the container knew.
    rootless::enter(None)?;
    let text = Written::by(&find(name)?)?.changes()?;
    std::io::stdout().write_all(&text).doing("print")?;
    Ok(0)
}

fn print(text: &str) -> Result<u8, Failure> {
    std::io::stdout().write_all(text.as_bytes()).doing("print")?;
    Ok(0)
}

pub(crate) fn find(name: &str) -> Result<Record, Failure> {
    let mut tries = ENDING.as_millis() / LOOKING.as_millis();
    loop {
        let record = state::find(name)?.ok_or_else(|| Failure::no_container(name))?;
        // The launcher writes it down while the container is made already, so its command may have been heard before.
        let comes = record.init.is_none() && record.open_launcher().doing("look at the container")?.is_some();
        if !comes || tries == 0 {
            return Ok(record);
        }
        tries -= 1;
        std::thread::sleep(LOOKING);
    }
}

/// The first process of a container that runs.
fn running(record: &Record) -> Result<(Process, Handle), Failure> {
    let doing = format!("reach the container {}", record.name);
    let descriptor = record.open_init().doing(&doing)?;
    record.init.zip(descriptor).ok_or_else(|| Failure::new(format!("the container {} does not run", record.name)))
}

fn send(record: &Record, signal: SignalNumber) -> Result<u8, Failure> {
    let (_, init) = running(record)?;
    signal_to(&init, signal)?;
    if signal == Signal::SIGKILL.into() {
        let_go_on(record)?;
    }
    Ok(0)
}

/// Who is paused does not end before it goes on.
fn let_go_on(record: &Record) -> Result<(), Failure> {
    match resources::cgroups(record) {
        Ok(cgroups) if cgroups.is_frozen() => match cgroups.thaw() {
            // On v2 a signal kills those who are paused, too, and their cgroup may be gone already.
            Err(_) if !table::runs(record)? => Ok(()),
            result => result,
        },
        // It has ended, or this machine has no control groups.
        _ => Ok(()),
    }
}

fn signal_to(process: &Handle, signal: impl Into<SignalNumber>) -> Result<(), Failure> {
    process.signal(signal.into()).doing("send a signal to the container")
}

/// TERM, or what the image says instead, KILL and, where a process waits for a union that does not answer, the end of the union.
fn stop(record: &Record, patience: Duration) -> Result<u8, Failure> {
    let launcher = record.open_launcher().doing("wait for the launcher")?;
    let (process, init) = match (running(record), &launcher) {
        // It ends by itself just now.
        (Err(_), Some(launcher)) if record.init.is_some() => return ends(launcher, ENDING).map(|_| 0),
        // Or it has ended since its record was read.
        (Err(_), None) if record.status.is_none() && has_ended(&record.name)? => return Ok(0),
        (found, _) => found?,
    };
    // A record is ours, so a number that is there is one of a signal.
    let asks = record.stop_signal.and_then(SignalNumber::known);
    signal_to(&init, asks.unwrap_or(Signal::SIGTERM.into()))?;
    let_go_on(record)?;
    if !ends(&init, patience)? {
        kill(record, process, &init)?;
    }
    // So that its name is free, and nothing of it is left.
    launcher.map_or(Ok(true), |launcher| ends(&launcher, ENDING))?;
    Ok(0)
}

/// Whether it is said of one how it has ended, or nothing any more.
fn has_ended(name: &str) -> Result<bool, Failure> {
    Ok(state::find(name)?.is_none_or(|record| record.status.is_some()))
}

fn kill(record: &Record, process: Process, init: &Handle) -> Result<(), Failure> {
    // It may have ended already.
    let unions = stuck::Unions::of(process.pid, record.unions.keys().map(Path::new)).ok();
    signal_to(init, Signal::SIGKILL)?;
    let_go_on(record)?;
    if ends(init, ENDING)? {
        return Ok(());
    }
    if let Some(daemon) = record.open_daemon().doing("end the union's daemon")? {
        // With it goes the device, and with that the connection, and whoever waits for an answer gets an error.
        signal_to(&daemon, Signal::SIGKILL)?;
        if ends(init, ENDING)? {
            return Ok(());
        }
    }
    unions.map_or(Ok(()), |unions| unions.abort())?;
    match ends(init, ENDING)? {
        true => Ok(()),
        false => Err(Failure::new(format!("the container {} does not end", record.name))
            .remedy("a file system that it uses does not answer: see to whoever serves that")),
    }
}

/// Waits for the end of a process; false when it takes longer.
fn ends(process: &Handle, patience: Duration) -> Result<bool, Failure> {
    process.ends(Some(patience)).doing("wait for the container")
}

fn wait(record: &Record) -> Result<u8, Failure> {
    if let Some(launcher) = record.open_launcher().doing("wait for the container")? {
        launcher.ends(None).doing("wait for the container")?;
    }
    let gone = || Failure::new(format!("the container {} has ended, and nobody was to remember how", record.name));
    state::find(&record.name)?.and_then(|record| record.status).ok_or_else(gone)
}

/// Forgets one; false where its launcher goes on and on. Somebody who cleans up may have it for a moment.
fn forgets(name: &str) -> Result<bool, Failure> {
    for _ in 0..ENDING.as_millis() / LOOKING.as_millis() {
        if state::forget(name)? {
            return Ok(true);
        }
        std::thread::sleep(LOOKING);
    }
    Ok(false)
}

fn remove(names: &[String], force: bool, stale: bool) -> Result<u8, Failure> {
    if stale {
        state::forget_stale()?;
        scratch::remove_stale();
        Cgroups::remove_stale()?;
    }
    // All of them first: a word that is none shows that something else was meant.
    let records = names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
    if records.iter().any(|record| record.files.is_some()) {
        // What was written may belong to users whom only the namespace of the container knew.
        rootless::enter(None)?;
    }
    for record in &records {
        if let Ok((process, init)) = running(record) {
            if !force {
                let failure = Failure::new(format!("the container {} runs", record.name));
                return Err(failure.remedy("stop it first, or say --force"));
            }
            kill(record, process, &init)?;
        }
        if let Some(launcher) = record.open_launcher().doing("wait for the launcher")? {
            ends(&launcher, ENDING)?;
        }
        if !forgets(&record.name)? {
            return Err(Failure::new(format!("the launcher of {} still works on its end", record.name)));
        }
    }
    Ok(0)
}
