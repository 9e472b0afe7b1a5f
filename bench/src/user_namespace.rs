//! Measuring as root of a user namespace, who has no right at all outside of it.
//!
//! A FUSE file system that is mounted there can be used only by processes of that namespace, and a process with several
//! threads cannot move into one. So the whole measurement is made by this program once more, in a namespace where every
//! id stands for itself: branches have the owners that they have for everybody else, and rows can be compared.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::cell::{Cell, Measured};
use crate::contender;
use crate::options::Options;
use crate::requests::Counter;
use crate::sandbox::Sandbox;
use crate::watchdog::Watchdog;
use crate::workload;

/// What the process inside says when it is in its namespace.
const READY: &str = "ready";
/// Every id stands for itself: first inside, first outside, how many.
const ALL_IDS: &str = "0 0 4294967295";
/// The one inside gives up first, and has something to say.
const GRACE: Duration = Duration::from_secs(30);

/// Measures the cell in a namespace of its own.
///
/// # Errors
/// What went wrong, in one line.
pub(crate) fn measure(cell: &Cell<'_>) -> Result<Measured, String> {
    let watchdog = Watchdog::start(cell.sandbox.limit + GRACE, Vec::new());
    let said = outside(cell);
    if watchdog.expired() {
        return Err(format!("given up after {} s", (cell.sandbox.limit + GRACE).as_secs()));
    }
    let said = said.map_err(|error| format!("user namespace: {error}"))?;
    let answer: Result<Result<Measured, String>, _> = serde_json::from_str(&said);
    answer.unwrap_or_else(|_| Err("user namespace: the process inside has ended without an answer".to_owned()))
}

fn outside(cell: &Cell<'_>) -> io::Result<String> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments(cell))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let said = converse(&mut child);
    child.wait()?;
    said
}

/// The arguments of this process, and which cell it is about.
fn arguments(cell: &Cell<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words = ["--cell", cell.workload.name, "--contender", &cell.contender.name];
    arguments.extend(words.map(OsString::from));
    if cell.counter.is_some() {
        arguments.push("--count".into());
    }
    arguments
}

/// Gives it its ids when it is there, and waits for its last line.
fn converse(child: &mut Child) -> io::Result<String> {
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the process inside has no pipes"));
    };
    let mut lines = BufReader::new(output).lines();
    if lines.next().transpose()?.as_deref() != Some(READY) {
        return Err(io::Error::other("the kernel gives no user namespace"));
    }
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), ALL_IDS)?;
    }
    writeln!(input)?;
    drop(input);
    let last = lines.try_fold(String::new(), |_, line| line)?;
    Ok(last)
}

/// The process inside: measures the cell that its options name, and says what came out as one line of JSON.
pub(crate) fn inside(options: &Options) -> io::Result<()> {
    // Daemons go into the background; they become children of this process, which waits for them.
    nix::sys::prctl::set_child_subreaper(true)?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    println!("{READY}");
    io::stdin().lock().read_line(&mut String::new())?;
    let measured = cell(options);
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn cell(options: &Options) -> Result<Measured, String> {
    let sandbox = Sandbox::join(options).map_err(|error| error.to_string())?;
    let workload = *workload::select(&options.cell)?.first().ok_or("no such workload")?;
    let contender = contender::named(options, &options.contender)?;
    let counter = if options.count { Counter::join(sandbox.key).ok() } else { None };
    Cell { sandbox: &sandbox, contender: &contender, workload, counter: counter.as_ref() }.measure_here()
}
