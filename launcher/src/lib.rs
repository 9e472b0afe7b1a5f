//! `rlaunch`: runs a command in a container.
//!
//! A container is a process with namespaces and a root of its own. The root is a directory (`--rootfs`), a union of
//! directories (`--branches`), or a throw-away copy of this machine: unions of new directories on disk over the host's `/`
//! and over what is mounted below, gone when the command has ended.
//!
//! # The story of a start
//!
//! ```text
//! options ─> Spec (what) ─> Steps (how, a list) ─> run
//!
//! launcher ───────────────┬── channel ──┬─> child, pid 1: does the steps, then reaps ──> the command
//!   hears, passes on,     │             │
//!   waits, cleans up      └── channel ──┴─> unions' daemon, outside of all namespaces (roots of unions only)
//! ```
//!
//! The child is cloned straight into its namespaces and does one step after the other. A failure is told by number:
//! both sides have the same list. When the channel ends without one, the command runs, for the channel closes on exec.
//!
//! # Invariants
//!
//! - Nothing is changed in the host's mount table, ever; nothing of a container outlives its launcher, also when that is
//!   killed (but for the directory on disk, which the next start removes).
//! - Until the root is entered, paths in it are walked from its descriptor, and no link is followed.
//! - The launcher has one thread.
//! - The exit status is the command's, 128 + n when signal n ended it, 127 when it is not there, 126 when it cannot be
//!   executed, 125 when we failed.
//!
//! # Files
//!
//! | File | Question |
//! |---|---|
//! | [`options`], [`host`], [`spec`] | what was asked for, what is there, what it comes to |
//! | [`run`] | one start, from the options to the exit status |
//! | [`confine`] | what the command may do: user, capabilities, system calls, limits, devices |
//! | [`steps`] | how it is done, and the words for what fails |
//! | [`namespace`], [`volume`], [`network`] | the container's own: kernel's views, files of the host, names |
//! | [`cgroup`] | what it may use of the machine |
//! | `child`, `rootfs`, `terminal` | doing the steps |
//! | [`idmap`] | which users of the machine its users are |
//! | `rootless`, `apt`, `delegation` | root of a user namespace, for ordinary users; what apt needs there; a cgroup of theirs |
//! | `union`, `scratch`, [`mount_table`] | unions, and the throw-away copy of the host |
//! | `init_branch`, `written` | what is a container's own in a union of an image; what it has written there |
//! | [`proc_view`] | what `/proc` tells a container of the machine |
//! | [`image`] | images: where they are kept, how they get there, how they are run |
//! | `process` | clone and fork, channel, signals, pid 1, supervisor; the only `unsafe` code |
//! | [`lifecycle`], [`state`], `folders`, `lock`, `detach`, `pausing`, `copy` | containers that are there, what is known of them, and those in the background |
//! | [`completions`] | what a shell completes of the command line |
//! | [`failure`], `message` | exit statuses and what is told |
#![deny(unsafe_code)]

pub mod cgroup;
pub mod completions;
pub mod confine;
pub mod failure;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod host;
pub mod idmap;
pub mod image;
pub mod lifecycle;
pub mod mount_table;
pub mod namespace;
pub mod network;
pub mod options;
pub mod proc_view;
pub mod run;
pub mod spec;
pub mod state;
pub mod steps;
pub mod volume;

mod apt;
mod child;
mod copy;
mod delegation;
mod detach;
mod folders;
mod init_branch;
mod lock;
#[cfg(test)]
mod manual;
mod message;
mod pausing;
#[allow(unsafe_code)]
mod process;
mod rootfs;
mod rootless;
mod scratch;
mod terminal;
mod union;
mod written;

use std::process::ExitCode;

use crate::failure::OWN_FAILURE;
use crate::options::Command;

/// The program that speaks with registries: `rlaunch-registry image pull`, which `rlaunch image pull` executes, and the
/// like. It is one of its own so that HTTP and TLS are no part of what every start of a container maps and relocates.
#[must_use]
pub fn registry_main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let words = words.split_first().filter(|(first, _)| *first == image::WORD).map_or(&[][..], |(_, rest)| rest);
    match image::parse(words) {
        Ok(what) => conclude(image::run_registry(&what)),
        Err(error) => print(&error),
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let result = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => run::start(*options),
        Ok(Command::Image(what)) => image::run(&what),
        Ok(Command::Completions(what)) => completions::run(what),
        Ok(Command::Manage(what, words)) => lifecycle::act(what).map_err(|failure| match failure.is_about_a_name {
            true => failure.remedy(&options::hint(&words)),
            false => failure,
        }),
        Err(error) => return print(&error),
    };
    conclude(result)
}

/// What the command line is answered by itself.
fn print(error: &clap::Error) -> ExitCode {
    // Help and version are no failures. With the stream closed there is nobody to tell.
    drop(error.print());
    if error.use_stderr() { ExitCode::from(OWN_FAILURE) } else { ExitCode::SUCCESS }
}

fn conclude(result: Result<u8, failure::Failure>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            message::say(&failure);
            ExitCode::from(failure.status)
        }
    }
}
