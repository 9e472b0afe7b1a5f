//! The table for README.

use std::fmt::{self, Write as _};

use super::table::is_reference;
use super::{Report, ReportCell, ReportRow};
use crate::contender::FUSE_OVERLAYFS;
use crate::requests::Requests;
use crate::workload::Unit;

/// Everything as one page.
pub(crate) fn page(report: &Report) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    write_page(&mut page, report).unwrap_or_default();
    page
}

fn write_page(page: &mut String, report: &Report) -> fmt::Result {
    heading(page, report)?;
    for family in report.families() {
        writeln!(page, "\n### {family}\n")?;
        let rows: Vec<&ReportRow> = report.rows.iter().filter(|row| row.family == family).collect();
        ratios(page, report, &rows)?;
    }
    writeln!(page, "\n## Medians (best, spread)\n")?;
    medians(page, report)?;
    requests(page, report)?;
    failures(page, report)
}

fn heading(page: &mut String, report: &Report) -> fmt::Result {
    let (least, most) = report.rounds();
    let rounds = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let Report { machine, kernel, top, .. } = report;
    writeln!(page, "{machine}, Linux {kernel}, {}, tops on {top}, {rounds} interleaved rounds.", report.cpus_used())?;
    if report.quick {
        writeln!(page, "\n**A quick run on small trees: it shows that everything works; its numbers mean nothing.**")?;
    }
    for (name, reason) in &report.missing {
        writeln!(page, "\n{name} is missing: {reason}.")?;
    }
    Ok(())
}

/// Ratios to overlayfs, or to bubblewrap, of those who have a part in the family; the column `÷ fuse-overlayfs` beside each of ours compares it with that.
fn ratios(page: &mut String, report: &Report, rows: &[&ReportRow]) -> fmt::Result {
    let has_a_part = |index: &usize| rows.iter().any(|row| row.cells[*index].is_anything());
    let columns: Vec<usize> = (0..report.contenders.len()).filter(has_a_part).collect();
    let compared = |name: &String| report.ours.contains(name) && report.contenders.iter().any(|n| n == FUSE_OVERLAYFS);
    let mut header = vec!["workload".to_owned()];
    for name in columns.iter().map(|index| &report.contenders[*index]) {
        header.push(name.clone());
        if compared(name) {
            header.push(format!("÷ {FUSE_OVERLAYFS}"));
        }
    }
    write_head(page, &header)?;
    for row in rows {
        let mut cells = vec![format!("{}: {}{}", row.name, row.about, hint(row.unit))];
        for (name, cell) in columns.iter().map(|index| (&report.contenders[*index], &row.cells[*index])) {
            cells.push(ratio_cell(name, cell, row.unit));
            if compared(name) {
                cells.push(cell.to_fuse_overlayfs.map_or_else(|| "—".to_owned(), factor));
            }
        }
        write_row(page, &cells)?;
    }
    Ok(())
}

fn hint(unit: Unit) -> &'static str {
    if unit == Unit::MebibytesPerSecond { " (bandwidth: more is better)" } else { "" }
}

/// Overlayfs and bubblewrap themselves, and what cannot be compared with them, is shown as it is.
fn ratio_cell(name: &str, cell: &ReportCell, unit: Unit) -> String {
    match (cell.to_overlay.filter(|_| !is_reference(name)), &cell.summary) {
        (Some(ratio), _) => factor(ratio),
        (None, Some(summary)) => quantity(summary.median, unit),
        (None, None) => nothing(cell),
    }
}

fn nothing(cell: &ReportCell) -> String {
    if cell.failure.is_some() { "failed".to_owned() } else { "—".to_owned() }
}

/// Two digits that count.
pub(super) fn factor(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 0.1 => format!("{ratio:.3}"),
        ratio if ratio < 10.0 => format!("{ratio:.2}"),
        ratio if ratio < 100.0 => format!("{ratio:.1}"),
        ratio => format!("{ratio:.0}"),
    }
}

pub(super) fn quantity(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value < 1.0 => format!("{} ms", factor(value * 1e3)),
        Unit::Seconds => format!("{} s", factor(value)),
        Unit::Microseconds => format!("{} µs", factor(value)),
        Unit::MebibytesPerSecond => format!("{value:.0} MiB/s"),
        Unit::Mebibytes => format!("{value:.0} MiB"),
    }
}

fn medians(page: &mut String, report: &Report) -> fmt::Result {
    let header: Vec<String> = std::iter::once("workload".to_owned()).chain(report.contenders.iter().cloned()).collect();
    write_head(page, &header)?;
    for row in &report.rows {
        let mut cells = vec![row.name.clone()];
        cells.extend(row.cells.iter().map(|cell| match &cell.summary {
            None => nothing(cell),
            Some(summary) => format!(
                "{} ({}, {:.0} %)",
                quantity(summary.median, row.unit),
                quantity(summary.best, row.unit),
                summary.spread * 100.0
            ),
        }));
        write_row(page, &cells)?;
    }
    Ok(())
}

fn requests(page: &mut String, report: &Report) -> fmt::Result {
    if report.rows.iter().all(|row| row.cells.iter().all(|cell| cell.requests.is_none())) {
        return Ok(());
    }
    writeln!(page, "\n## Requests to the daemon\n")?;
    write_head(page, &["workload".to_owned(), "contender".to_owned(), "requests".to_owned()])?;
    for row in &report.rows {
        for (name, cell) in report.contenders.iter().zip(&row.cells) {
            if let Some(requests) = &cell.requests {
                write_row(page, &[row.name.clone(), name.clone(), sentence(requests)])?;
            }
        }
    }
    Ok(())
}

/// The most frequent first.
fn sentence(requests: &Requests) -> String {
    let mut sorted: Vec<(&String, &u64)> = requests.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<String> = sorted.into_iter().map(|(name, count)| format!("{name} {count}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn failures(page: &mut String, report: &Report) -> fmt::Result {
    let failed = report.rows.iter().flat_map(|row| {
        let cells = report.contenders.iter().zip(&row.cells);
        cells.filter_map(|(name, cell)| Some((&row.name, name, cell.failure.as_ref()?)))
    });
    for (index, (workload, name, failure)) in failed.enumerate() {
        if index == 0 {
            writeln!(page, "\n## Failures\n")?;
        }
        writeln!(page, "- {workload} on {name}: {failure}")?;
    }
    Ok(())
}

/// The first two lines of a table.
pub(super) fn write_head(page: &mut String, titles: &[String]) -> fmt::Result {
    write_row(page, titles)?;
    write_row(page, &vec!["---".to_owned(); titles.len()])
}

pub(super) fn write_row(page: &mut String, cells: &[String]) -> fmt::Result {
    writeln!(page, "| {} |", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Summary;

    fn report() -> Report {
        let cell = |median, to_overlay, to_fuse_overlayfs| ReportCell {
            summary: Some(Summary { median, best: median / 2.0, spread: 0.25 }),
            to_overlay,
            to_fuse_overlayfs,
            ..ReportCell::default()
        };
        let mut ours = cell(0.1, Some(5.0), Some(0.5));
        ours.requests = Some([("LOOKUP".to_owned(), 7), ("OPEN".to_owned(), 9)].into());
        let failed = ReportCell { failure: Some("given up after 20 s".to_owned()), ..ReportCell::default() };
        Report {
            contenders: ["overlay", "runionfs", "fuse-overlayfs", "mergerfs"].map(str::to_owned).into(),
            ours: vec!["runionfs".to_owned()],
            missing: vec![("unionfs-fuse".to_owned(), "not found".to_owned())],
            rows: vec![ReportRow {
                name: "stat-cold".to_owned(),
                family: "metadata".to_owned(),
                about: "stat".to_owned(),
                unit: Unit::Seconds,
                cells: vec![cell(0.02, Some(1.0), Some(0.1)), ours, cell(0.2, Some(10.0), Some(1.0)), failed],
            }],
            ..Report::default()
        }
    }

    #[test]
    fn the_page_shows_ratios_and_what_they_are_ratios_of() {
        let page = page(&report());
        for line in [
            "| workload | overlay | runionfs | ÷ fuse-overlayfs | fuse-overlayfs | mergerfs |",
            "| stat-cold: stat | 20.0 ms | 5.00 | 0.50 | 10.0 | failed |",
            "| stat-cold | 20.0 ms (10.0 ms, 25 %) | 100 ms (50.0 ms, 25 %) | 200 ms (100 ms, 25 %) | failed |",
            "| stat-cold | runionfs | OPEN 9, LOOKUP 7 |",
            "- stat-cold on mergerfs: given up after 20 s",
            "unionfs-fuse is missing: not found.",
        ] {
            assert!(page.lines().any(|candidate| candidate == line), "{line:?} is not in\n{page}");
        }
    }

    #[test]
    fn a_run_is_sound_when_only_others_fail() {
        let mut report = report();
        assert!(report.is_sound());
        report.rows[0].cells[1].failure = Some("wrong".to_owned());
        assert!(!report.is_sound());
    }

    #[test]
    fn numbers_have_two_or_three_digits_that_count() {
        let shown = [0.0123, 0.75, 5.0, 12.34, 640.0].map(factor);
        assert_eq!(shown, ["0.012", "0.75", "5.00", "12.3", "640"]);
        assert_eq!(quantity(2.5, Unit::Seconds), "2.50 s");
        assert_eq!(quantity(0.0025, Unit::Seconds), "2.50 ms");
        assert_eq!(quantity(5122.4, Unit::MebibytesPerSecond), "5122 MiB/s");
    }
}
