//! The order of the measurements: for each workload, round after round over all contenders.

use std::error::Error;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cell::{Cell, Measured};
use crate::contender::Contender;
use crate::options::Options;
use crate::requests::{Counter, Requests};
use crate::sandbox::Sandbox;
use crate::tree::Broken;
use crate::workload::Workload;

/// All measurements of one workload.
#[derive(Debug)]
pub(crate) struct Row {
    /// What was done.
    pub(crate) workload: &'static Workload,
    /// In the order of the contenders.
    pub(crate) columns: Vec<Column>,
}

/// All measurements of one workload on one contender.
#[derive(Debug, Default)]
pub(crate) struct Column {
    /// One per round; `None` where it failed or cannot be done.
    pub(crate) samples: Vec<Option<f64>>,
    /// What went wrong first. Nothing more was tried then.
    pub(crate) failure: Option<String>,
    /// What the daemon was asked for in the round that does not count.
    pub(crate) requests: Option<Requests>,
}

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Where.
    pub(crate) sandbox: &'a Sandbox,
    /// On whom.
    pub(crate) contenders: &'a [Contender],
    /// What.
    pub(crate) workloads: &'a [&'static Workload],
    /// Which of that cannot be measured.
    pub(crate) broken: &'a Broken,
}

/// Does it all, and tells after each row what there is until then: a run that is interrupted has not been in vain.
/// Failures are results, too.
pub(crate) fn run(
    plan: &Plan<'_>,
    options: &Options,
    mut tell: impl FnMut(&[Row]) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let Plan { sandbox, contenders, workloads, broken } = *plan;
    let counter = if options.quick { None } else { counter(sandbox) };
    let bar = bar(workloads.len() * contenders.len() * passes(options).len());
    let mut rows = Vec::new();
    for workload in workloads {
        let failure = broken.get(workload.name).cloned();
        let column = || Column { failure: failure.clone(), ..Column::default() };
        let mut columns: Vec<Column> = contenders.iter().map(|_| column()).collect();
        for pass in &passes(options) {
            for (contender, column) in contenders.iter().zip(&mut columns) {
                bar.set_message(format!("{} on {}", workload.name, contender.name));
                let counter = counter.as_ref().filter(|_| *pass == Pass::WarmUp);
                measure(&Cell { sandbox, contender, workload, counter }, *pass, column);
                bar.inc(1);
            }
        }
        rows.push(Row { workload, columns });
        tell(&rows)?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn counter(sandbox: &Sandbox) -> Option<Counter> {
    Counter::open(sandbox.key).map_err(|error| eprintln!("bench: requests are not counted: {error}")).ok()
}

/// Whether a round counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    WarmUp,
    Counts,
}

fn passes(options: &Options) -> Vec<Pass> {
    let warm_up = if options.quick { None } else { Some(Pass::WarmUp) };
    warm_up.into_iter().chain((0..options.rounds()).map(|_| Pass::Counts)).collect()
}

fn measure(cell: &Cell<'_>, pass: Pass, column: &mut Column) {
    let tried = column.failure.is_none() && cell.workload.suits(cell.contender);
    let measured = if tried { cell.measure().map(Some) } else { Ok(None) };
    let value = match measured {
        Ok(None) => None,
        Ok(Some(Measured { value, requests })) => {
            column.requests = requests.or(column.requests.take());
            Some(value)
        }
        Err(failure) => {
            column.failure = Some(failure);
            None
        }
    };
    if pass == Pass::Counts {
        column.samples.push(value);
    }
}

/// Drawn between measurements only: a thread that draws would disturb them. Hidden where nobody looks.
fn bar(length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of {duration} {msg}");
    ProgressBar::new(length as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
