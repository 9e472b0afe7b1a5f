//! `bench` measures runionfs beside its peers.
//!
//! A *workload* knows only a path, a *contender* only how to mount. Every cell of the table is one workload on one
//! contender: an empty top, the same lower trees, a fresh mount, the work, the unmount. Cells of one workload are taken
//! in interleaved rounds (A B C, A B C, …), because the machine's speed drifts; ratios are taken within a round.
//!
//! | File | Question it answers |
//! |---|---|
//! | `options` | what the command line asks for |
//! | `sandbox` | where the measuring happens: a mount namespace of its own, the scratch file systems, the CPU |
//! | `medium` | the file systems that branches lie on |
//! | `tree`, `tree/*` | the lower trees: made once, kept between runs, read-only while contenders run |
//! | `contender`, `contender/*` | who is measured and how it mounts |
//! | `mounted` | one mount and its daemon: taken away whatever state they are in |
//! | `watchdog` | how a hung daemon cannot hang the bench |
//! | `installed` | what `bench/setup` and cargo have put where |
//! | `workload`, `workload/*` | what is measured, a family per file |
//! | `cell` | one measurement: mount, prepare, run, read the result |
//! | `user_namespace` | the same as root of a user namespace |
//! | `requests` | what the kernel asked a daemon for during a workload |
//! | `rounds` | the order of the cells, and the progress shown |
//! | `statistics` | median, best, spread, ratio |
//! | `report`, `report/*` | the table as Markdown, JSON and SVG, and README's tables of several runs |
//! | `readme` | the runs that README's tables are made of |

#![forbid(unsafe_code)]

mod cell;
mod contender;
mod installed;
mod medium;
mod mounted;
mod options;
mod readme;
mod report;
mod requests;
mod rounds;
mod sandbox;
mod statistics;
mod tree;
mod user_namespace;
mod watchdog;
mod workload;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;

use crate::options::Options;
use crate::report::Report;
use crate::rounds::Plan;
use crate::sandbox::Sandbox;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let workloads = workload::select(&options.only)?;
    if options.list {
        print!("{}", workload::list(&workloads));
        return Ok(ExitCode::SUCCESS);
    }
    if !options.readme.is_empty() {
        return readme::make(&options.readme, options);
    }
    if !options.merge.is_empty() {
        readme::merge(&options.merge, options)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.inside {
        return Ok(sandbox::run_inside()?);
    }
    if !options.cell.is_empty() {
        user_namespace::inside(options)?;
        return Ok(ExitCode::SUCCESS);
    }
    let sandbox = Sandbox::set_up(options)?;
    let contenders = contender::find(options)?;
    let broken = tree::prepare(&sandbox, &workloads);
    sandbox.protect_lower_trees()?;

    let mut report = Report::new(&[], &contenders, options);
    let plan = Plan { sandbox: &sandbox, contenders: &contenders.present, workloads: &workloads, broken: &broken };
    rounds::run(&plan, options, |rows| {
        report = Report::new(rows, &contenders, options);
        report.write(&options.output)
    })?;
    print!("{}", report::markdown::page(&report));
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
