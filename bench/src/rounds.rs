//! The order of the measurements: for each workload, round after round over all contenders.

use std::error::Error;
use std::time::{Duration, Instant};

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
#[derive(Debug, Clone, Default)]
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
    let counter = if options.quick { None } else { counter(plan.sandbox) };
    let pace = Pace::of(options);
    let row_length = |rounds: u32| plan.contenders.len() as u64 * u64::from(rounds);
    let bar = bar(row_length(pace.least() + u32::from(!options.quick)) * plan.workloads.len() as u64);
    let mut rows = Vec::new();
    for workload in plan.workloads {
        let failure = plan.broken.get(workload.name).cloned();
        let columns = vec![Column { failure, ..Column::default() }; plan.contenders.len()];
        let mut row = Row { workload, columns };
        let start = Instant::now();
        if !options.quick {
            pass(plan, &mut row, Pass::WarmUp, counter.as_ref(), &bar);
        }
        let rounds = pace.rounds(start.elapsed(), plan.workloads.len() - rows.len());
        bar.inc_length(row_length(rounds - pace.least()));
        for _ in 0..rounds {
            pass(plan, &mut row, Pass::Counts, None, &bar);
        }
        rows.push(row);
        tell(&rows)?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn counter(sandbox: &Sandbox) -> Option<Counter> {
    Counter::open(sandbox.key).map_err(|error| eprintln!("bench: requests are not counted: {error}")).ok()
}

/// How many rounds that count a row gets.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// So many.
    Fixed(u32),
    /// As many as there is time for.
    Until(Instant),
}

/// Fewer have no median that says something.
const LEAST: u32 = 3;
/// More do not make it better.
const MOST: u32 = 9;

impl Pace {
    fn of(options: &Options) -> Pace {
        match options.minutes {
            _ if options.quick => Pace::Fixed(1),
            None => Pace::Fixed(options.rounds),
            Some(minutes) => Pace::Until(Instant::now() + Duration::from_secs(60 * minutes)),
        }
    }

    fn least(self) -> u32 {
        if let Pace::Fixed(rounds) = self { rounds } else { LEAST }
    }

    /// `warm_up` is how long one round of this row has taken; `rows` are still to be measured, this one included.
    fn rounds(self, warm_up: Duration, rows: usize) -> u32 {
        match self {
            Pace::Fixed(rounds) => rounds,
            Pace::Until(end) => rounds_within(end.saturating_duration_since(Instant::now()), rows, warm_up),
        }
    }
}

/// Each row may have its share of the time that is left; what a cheap one does not need is left for the others.
fn rounds_within(left: Duration, rows: usize, round: Duration) -> u32 {
    let share = left.as_secs_f64() / rows.max(1) as f64;
    let rounds = share / round.as_secs_f64().max(1e-3);
    // Between two small numbers, so nothing is cut off.
    rounds.clamp(f64::from(LEAST), f64::from(MOST)) as u32
}

/// Whether a round counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    WarmUp,
    Counts,
}

/// One round over all contenders.
fn pass(plan: &Plan<'_>, row: &mut Row, pass: Pass, counter: Option<&Counter>, bar: &ProgressBar) {
    let Plan { sandbox, contenders, .. } = *plan;
    let workload = row.workload;
    for (contender, column) in contenders.iter().zip(&mut row.columns) {
        bar.set_message(format!("{} on {}", workload.name, contender.name));
        measure(&Cell { sandbox, contender, workload, counter }, pass, column);
        bar.inc(1);
    }
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
fn bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of {duration} {msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_rows_get_more_rounds_and_none_gets_too_few() {
        let rounds = |left, rows, round| rounds_within(Duration::from_secs(left), rows, Duration::from_millis(round));
        assert_eq!(rounds(60, 6, 10), MOST);
        assert_eq!(rounds(60, 6, 2000), 5);
        assert_eq!(rounds(60, 6, 30_000), LEAST);
        assert_eq!(rounds(0, 6, 10), LEAST);
        assert_eq!(rounds(60, 6, 0), MOST);
    }
}
