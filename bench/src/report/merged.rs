//! The results of several runs, looked at as one.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use super::{Report, ReportCell};
use crate::workload::Unit;

/// Reports in the order in which they were given: what a later one has counts, so that one row can be measured again.
#[derive(Debug)]
pub(crate) struct Merged(pub(crate) Vec<Report>);

/// How a run used the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As a user has it.
    Quiet,
    /// Everything on one CPU.
    OneCpu,
}

/// One cell, and what its numbers count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    /// The cell.
    pub(crate) cell: &'a ReportCell,
    /// Of its row.
    pub(crate) unit: Unit,
}

impl Merged {
    /// Reads the `results.json` of each run.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Merged, Box<dyn Error>> {
        let mut reports = Vec::new();
        for file in files {
            let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            reports.push(serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.display()))?);
        }
        Ok(Merged(reports))
    }

    /// The cell of this contender, of the last run that measured it together with `beside`, whose ratios it shares.
    pub(crate) fn find(&self, way: Way, contender: &str, beside: &str, row: &str) -> Option<Found<'_>> {
        self.0.iter().rev().filter(|report| report.way() == way).find_map(|report| {
            let column = |name: &str| report.contenders.iter().position(|contender| contender == name);
            let (column, _) = (column(contender)?, column(beside)?);
            let row = report.rows.iter().find(|candidate| candidate.name == row)?;
            Some(Found { cell: row.cells.get(column)?, unit: row.unit })
        })
    }
}

impl Report {
    /// How it used the machine.
    pub(crate) fn way(&self) -> Way {
        if self.pinned_to.is_some() { Way::OneCpu } else { Way::Quiet }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ReportRow;
    use super::*;

    fn report(pinned_to: Option<usize>, contenders: &[&str], row: &str, ratios: &[f64]) -> Report {
        let cell = |ratio: &f64| ReportCell { to_overlay: Some(*ratio), ..ReportCell::default() };
        Report {
            pinned_to,
            contenders: contenders.iter().map(|name| (*name).to_owned()).collect(),
            rows: vec![ReportRow {
                name: row.to_owned(),
                family: "metadata".to_owned(),
                about: String::new(),
                unit: Unit::Seconds,
                cells: ratios.iter().map(cell).collect(),
            }],
            ..Report::default()
        }
    }

    fn ratio(merged: &Merged, way: Way, contender: &str, row: &str) -> Option<f64> {
        merged.find(way, contender, "overlay", row).and_then(|found| found.cell.to_overlay)
    }

    #[test]
    fn both_ways_are_kept_apart() {
        let merged = Merged(vec![
            report(None, &["overlay", "runionfs"], "stat", &[1.0, 5.0]),
            report(Some(0), &["overlay", "runionfs"], "stat", &[1.0, 2.5]),
        ]);
        assert_eq!(ratio(&merged, Way::Quiet, "runionfs", "stat"), Some(5.0));
        assert_eq!(ratio(&merged, Way::OneCpu, "runionfs", "stat"), Some(2.5));
        assert_eq!(ratio(&merged, Way::Quiet, "runionfs", "find"), None);
        assert_eq!(ratio(&merged, Way::Quiet, "mergerfs", "stat"), None);
    }

    #[test]
    fn a_row_that_was_measured_again_counts() {
        let merged = Merged(vec![
            report(None, &["overlay", "runionfs"], "stat", &[1.0, 5.0]),
            report(None, &["overlay", "runionfs"], "stat", &[1.0, 4.0]),
            report(None, &["overlay", "runionfs"], "find", &[1.0, 9.0]),
        ]);
        assert_eq!(ratio(&merged, Way::Quiet, "runionfs", "stat"), Some(4.0));
    }

    #[test]
    fn a_reference_is_that_of_the_same_run() {
        let merged = Merged(vec![
            report(None, &["overlay", "runionfs"], "stat", &[1.0, 5.0]),
            report(None, &["overlay", "runionfs-rootless"], "stat", &[1.1, 9.0]),
        ]);
        let overlay = |beside| merged.find(Way::Quiet, "overlay", beside, "stat").unwrap().cell.to_overlay;
        assert_eq!(overlay("runionfs"), Some(1.0));
        assert_eq!(overlay("runionfs-rootless"), Some(1.1));
    }
}
