//! The command line: what may be said, and who does it.
//!
//! A refusal is one line on standard error and exit status 1; wrong usage is 2.

mod apply;
mod arguments;
mod check;
mod completions;
mod daemon;
mod diff;
mod doctor;
mod export;
mod flush;
mod log;
#[cfg(test)]
mod manual;
mod mount;
mod notify;
mod overlay;
mod serve;
mod setup;
mod show;
mod signals;
mod stats;
mod umount;
mod union;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use unionfs::completions::Shell;
use unionfs::mount::MountError;
use unionfs::options::words;

const BRANCHES_HELP: &str = "\
Branches: PATH=ATTRIBUTES, separated by colons, the top first; \\: \\= and \\\\ stand for themselves.
  rw                     changes are written here
  ro                     never written; whiteouts in it hide nothing
  rr                     the same, and nobody else changes it either
  +wh                    with ro and rr: whiteouts and opaque marks in it hide what is below
  +ovl                   with ro and rr: a layer in the form of overlayfs
  +init                  with ro: files of this branch are changed in place, nothing is added
  +nolwh                 with rw: accepted, as in AuFS
Without attributes the first branch is rw and the others are ro.

";

const MOUNT_USAGE: &str = "runionfs mount [OPTIONS] BRANCHES MOUNTPOINT
       runionfs mount [OPTIONS] -o br=BRANCHES MOUNTPOINT
       runionfs mount [OPTIONS] -o lowerdir=DIR[:DIR]...,upperdir=DIR,workdir=DIR MOUNTPOINT";

const HELPER: &str = "\n
For mount(8) and fstab the subcommand may be left out: 'runionfs BRANCHES MOUNTPOINT [-o ...]', and
the same under the names mount.runionfs and mount.fuse.runionfs, with the exit statuses of mount(8).";

const EXIT_STATUS: &str = "\n\nExit status: 0 when it is mounted and serves; 1 when it was refused; 2 for wrong usage.";

const FLUSH_HELP: &str = "\
When one name of a hard-linked file below is changed, the file is copied up, and a record in the work area joins the
copy with its other names, which still stand below. This makes each of them a hard link to the copy, and takes the
record away, so that the branch carries all of them alone, as a layer. Work in the union goes on meanwhile. What was
written to the branches is on disk afterwards (syncfs).

Exit status: 0 when no record is left; 1 when it was refused, or when names are left below, each of them still joined.";

const PODMAN_HELP: &str = "\
Writes one line, mount_program in [storage.options.overlay], and keeps all else of the file: /etc/containers/storage.conf,
with --rootless ~/.config/containers/storage.conf, or what CONTAINERS_STORAGE_CONF names, as podman reads it. The file is
replaced as a whole. A file that is not there yet begins as a copy of the distribution's, for podman reads only one.

Exit status: 0 when it is so, or was already; 1 when it was refused; 2 for wrong usage.";

const CHECK_STATUS: &str = "\
Each finding is one line: its path, what is wrong, and what to do. What a crash may leave is a note.

Exit status: 0 when there is no problem; 1 when there is one; 2 for wrong usage.";

const DOCTOR_STATUS: &str = "\
Exit status: 0 when this user can mount unions here; 1 when not; 2 for wrong usage.";

/// A union of directories: writable on top, the branches below never change
#[derive(Debug, Parser)]
#[command(name = "runionfs", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a union of branches
    #[command(override_usage = MOUNT_USAGE, after_long_help = format!("{BRANCHES_HELP}{}{HELPER}{EXIT_STATUS}", words::help()))]
    Mount(MountArgs),
    /// Unmount a union, and wait until its branches are free
    Umount(UmountArgs),
    /// Show the branches of a mounted union and what its daemon negotiated
    Show(ShowArgs),
    /// Tell what a union's daemon was asked for and how long that took, copy-ups, caches, and room in its branches
    Stats(StatsArgs),
    /// List what the writable branches on top change: A added, C changed, D deleted
    Diff(DiffArgs),
    /// Make what joins hard links over branches real hard links in the writable branches
    #[command(after_long_help = FLUSH_HELP)]
    Flush(FlushArgs),
    /// Write the top branch out as a layer of an OCI image: a tar archive
    Export(ExportArgs),
    /// Unpack a layer of an OCI image into a branch, whole or not at all
    Apply(ApplyArgs),
    /// Look for what is wrong in the bookkeeping of the writable branches; nothing is changed
    #[command(after_help = CHECK_STATUS)]
    Check(CheckArgs),
    /// Have other programs use runionfs
    Setup(SetupArgs),
    /// Write the script that teaches a shell this command line
    Completions(CompletionsArgs),
    /// Show what this kernel and this user can do, what it gives, and what to change; nothing is left behind
    #[command(after_help = DOCTOR_STATUS)]
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
struct SetupArgs {
    #[command(subcommand)]
    command: SetupCommand,
}

#[derive(Debug, Subcommand)]
enum SetupCommand {
    /// Name runionfs as the mount program of podman and buildah, in storage.conf
    #[command(after_long_help = PODMAN_HELP)]
    Podman(PodmanArgs),
}

#[derive(Debug, Args)]
struct PodmanArgs {
    /// For podman of this user, not of root: ~/.config/containers/storage.conf
    #[arg(long)]
    rootless: bool,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Undo it: what was named before is named again
    #[arg(long, conflicts_with = "program")]
    remove: bool,
    /// The program to name, instead of the one that runs
    #[arg(long, value_name = "PATH")]
    program: Option<OsString>,
}

#[derive(Debug, Args)]
struct MountArgs {
    /// The branches, top first; or the mount point, where -o br= names the branches
    #[arg(value_name = "BRANCHES")]
    first: OsString,
    /// The directory to mount on
    #[arg(value_name = "MOUNTPOINT")]
    second: Option<OsString>,
    /// Options, separated by commas (see --help for all)
    #[arg(short = 'o', value_name = "OPTION[,OPTION]...")]
    options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    log: log::LogArgs,
    /// Do everything but mount, for mount(8)
    #[arg(long, hide = true)]
    fake: bool,
    /// mount(8) asks
    #[arg(long, hide = true)]
    helper: bool,
    /// Ignore unknown options, for mount(8)
    #[arg(long, hide = true)]
    sloppy: bool,
}

#[derive(Debug, Args)]
struct UmountArgs {
    /// Where the union is mounted
    mountpoint: OsString,
    /// Take it away at once, though files in it are in use, and do not wait
    #[arg(short, long)]
    lazy: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Where the union is mounted
    mountpoint: OsString,
    /// Show it as JSON; what is not UTF-8 is a list of bytes
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatsArgs {
    /// Where the union is mounted; without it, all that are mounted
    mountpoint: Option<OsString>,
    /// Tell it as JSON, one line for each union
    #[arg(long)]
    json: bool,
    /// Tell it as Prometheus scrapes it
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

#[derive(Debug, Args)]
struct DiffArgs {
    /// Where the union is mounted, or its branches
    #[arg(value_name = "MOUNTPOINT|BRANCHES")]
    union: OsString,
}

#[derive(Debug, Args)]
struct FlushArgs {
    /// Where the union is mounted, or its branches
    #[arg(value_name = "MOUNTPOINT|BRANCHES")]
    union: OsString,
    /// Of branches that are not mounted: what they are mounted with (workdir=DIR, whiteout=overlay)
    #[arg(short = 'o', value_name = "OPTION[,OPTION]...")]
    options: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Where the union is mounted, or its branches; a single path is a branch that stands alone
    #[arg(value_name = "MOUNTPOINT|BRANCHES")]
    union: OsString,
    /// Where to write it, instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
    /// Of branches that are not mounted: their workdir, if they are mounted with one
    #[arg(long, value_name = "DIR")]
    workdir: Option<OsString>,
}

#[derive(Debug, Args)]
struct ApplyArgs {
    /// The layer: a tar archive, plain or compressed by gzip or zstd; - is standard input
    layer: OsString,
    /// The directory that becomes a branch: not there yet, or empty
    branch: OsString,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Where the union is mounted, or its branches
    #[arg(value_name = "MOUNTPOINT|BRANCHES")]
    union: OsString,
    /// Tell problems only, no notes
    #[arg(short, long)]
    quiet: bool,
    /// Of branches that are not mounted: their workdir, if they are mounted with one
    #[arg(long, value_name = "DIR")]
    workdir: Option<OsString>,
}

#[derive(Debug, Args)]
struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// Directories that may become branches: what their file systems can do
    #[arg(value_name = "DIR")]
    directories: Vec<OsString>,
    /// Show it as JSON
    #[arg(long)]
    json: bool,
}

/// Why the command did not do what was asked.
#[derive(Debug)]
enum Failure {
    /// The words do not fit together: status 2.
    Usage(String),
    /// It was refused: one line, status 1.
    Refused(Box<dyn Error>),
    /// It was said already why, by another process for instance.
    Said(u8),
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Refused(error.into())
    }
}

/// What its exit statuses mean to whoever runs the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statuses {
    /// 1 for a refusal, 2 for wrong usage.
    Command,
    /// fuse-overlayfs's: 1 for both.
    Overlay,
    /// mount(8)'s: 1 for wrong usage, 2 where the system lacks something, 32 for a mount that failed.
    Helper,
}

impl Statuses {
    fn usage(self) -> u8 {
        if self == Statuses::Command { 2 } else { 1 }
    }

    fn refused(self, error: &(dyn Error + 'static)) -> u8 {
        let lacks = matches!(error.downcast_ref(), Some(MountError::Device(_) | MountError::NoTable(_)));
        match self {
            Statuses::Helper if lacks => 2,
            Statuses::Helper => 32,
            Statuses::Command | Statuses::Overlay => 1,
        }
    }
}

/// Does what the command line says.
pub(crate) fn run() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let name = words.first().cloned().unwrap_or_default();
    let helper = arguments::is_helper(Some(&name)) || overlay::is_helper(&name);
    if overlay::is_meant(&words) {
        let statuses = if helper { Statuses::Helper } else { Statuses::Overlay };
        return finish(overlay::run(&words, helper), statuses);
    }
    let statuses = if helper { Statuses::Helper } else { Statuses::Command };
    match Cli::try_parse_from(arguments::complete(words.into_iter())) {
        Ok(cli) => finish(carry_out(cli.command), statuses),
        Err(error) => told(&error, statuses),
    }
}

fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Flush(args) => flush::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Setup(args) => match args.command {
            SetupCommand::Podman(args) => setup::podman(&args),
        },
        Command::Completions(args) => completions::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}

/// Tells what went wrong, and the exit status.
fn finish(done: Result<(), Failure>, statuses: Statuses) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) if statuses == Statuses::Overlay => {
            complain(&message);
            ExitCode::from(statuses.usage())
        }
        Err(Failure::Usage(message)) => told(&usage_error(&message), statuses),
        Err(Failure::Refused(error)) => {
            complain(&error.to_string());
            ExitCode::from(statuses.refused(&*error))
        }
        Err(Failure::Said(status)) => ExitCode::from(status),
    }
}

/// Tells what clap has to say: help and version are no failures.
fn told(error: &clap::Error, statuses: Statuses) -> ExitCode {
    // there is nowhere to say that it could not be said
    drop(error.print());
    if error.use_stderr() { ExitCode::from(statuses.usage()) } else { ExitCode::SUCCESS }
}

/// Only `mount` has words that clap cannot check.
fn usage_error(message: &str) -> clap::Error {
    let mut command = Cli::command();
    command.build();
    match command.find_subcommand_mut("mount") {
        Some(mount) => mount.error(ErrorKind::ArgumentConflict, message),
        None => command.error(ErrorKind::ArgumentConflict, message),
    }
}

/// Says it in one line, whatever bytes a path in it has.
fn complain(message: &str) {
    eprintln!("runionfs: {}", printable(message));
}

/// The text without line ends and what else moves a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Prints what was asked for. A reader that has seen enough is no failure.
fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
