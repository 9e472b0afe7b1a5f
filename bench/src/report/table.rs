//! The tables and plots for the project's README, from several runs: what is said of speed in short.

use std::collections::HashSet;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use super::lines::{DATA, LAUNCH, Line, MODES, TIMES};
use super::markdown::{factor, quantity, write_head, write_row};
use super::merged::{Found, Merged, Way};
use super::plot::Chart;
use crate::contender::{
    BWRAP, CRUN, FUSE_OVERLAYFS, FUSE_OVERLAYFS_ROOTLESS, NO_PASSTHROUGH, OVERLAY, RLAUNCH, ROOTLESS, RUNIONFS, UNSHARE,
};
use crate::workload::Unit;

/// What makes all of this again.
const COMMAND: &str = "cargo run --release -p bench -- --readme";

/// A column: what is above it, whose it is, beside whom, and how it was measured.
struct Column {
    title: &'static str,
    contender: &'static str,
    beside: &'static str,
    way: Way,
}

const fn column(title: &'static str, contender: &'static str, way: Way) -> Column {
    Column { title, contender, beside: OVERLAY, way }
}

const BOTH_WAYS: &[Column] = &[
    Column { title: "overlayfs", contender: OVERLAY, beside: RUNIONFS, way: Way::Quiet },
    column("runionfs", RUNIONFS, Way::Quiet),
    column("fuse-overlayfs 2", FUSE_OVERLAYFS, Way::Quiet),
    column("runionfs, 1 CPU", RUNIONFS, Way::OneCpu),
    column("fuse-overlayfs 2, 1 CPU", FUSE_OVERLAYFS, Way::OneCpu),
];
const ONE_WAY: &[Column] = BOTH_WAYS.split_at(3).0;
const OTHER_MODES: &[Column] = &[
    Column { title: "overlayfs", contender: OVERLAY, beside: ROOTLESS, way: Way::Quiet },
    column("runionfs without passthrough", NO_PASSTHROUGH, Way::Quiet),
    column("runionfs rootless", ROOTLESS, Way::Quiet),
    column("fuse-overlayfs 2 rootless", FUSE_OVERLAYFS_ROOTLESS, Way::Quiet),
];

const LAUNCHERS: &[Column] = &[
    Column { title: "rlaunch", contender: RLAUNCH, beside: BWRAP, way: Way::Quiet },
    Column { title: "bubblewrap", contender: BWRAP, beside: RLAUNCH, way: Way::Quiet },
    Column { title: "crun", contender: CRUN, beside: RLAUNCH, way: Way::Quiet },
    Column { title: "unshare(1)", contender: UNSHARE, beside: RLAUNCH, way: Way::Quiet },
];

/// Writes `table.md` and `plots/*.svg` into a folder.
pub(crate) fn write(merged: &Merged, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder.join("plots"))?;
    fs::write(folder.join("table.md"), page(merged))?;
    let plot = |name: &str, title: &str, lines: &[Line], columns| {
        chart(merged, title, lines, columns).draw(&folder.join("plots").join(format!("{name}.svg")))
    };
    for (name, title, lines) in TIMES {
        plot(name, &format!("{title}: time, kernel overlayfs = 1"), lines, BOTH_WAYS)?;
    }
    let bandwidths = |line: &&Line| line.row.starts_with("fio-");
    let (data, rest): (Vec<&Line>, Vec<&Line>) = DATA.iter().partition(bandwidths);
    let owned = |lines: Vec<&Line>| lines.into_iter().copied().collect::<Vec<Line>>();
    plot("data", "data: bandwidth, kernel overlayfs = 1, more is better", &owned(data), ONE_WAY)?;
    plot("copy-up", "copy-up and mount: kernel overlayfs = 1", &owned(rest), ONE_WAY)?;
    let times = |line: &&Line| !line.row.starts_with("fio-");
    let modes: Vec<Line> = MODES.iter().filter(times).copied().collect();
    plot("modes", "other modes: time, kernel overlayfs = 1", &modes, OTHER_MODES)
}

fn page(merged: &Merged) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    write_page(&mut page, merged).unwrap_or_default();
    page
}

fn write_page(page: &mut String, merged: &Merged) -> fmt::Result {
    heading(page, merged)?;
    writeln!(page, "\nTime as a ratio to kernel overlayfs, whose own time stands in its column; less is better.\n")?;
    let lines: Vec<Line> = TIMES.iter().flat_map(|(_, _, lines)| lines.iter().copied()).collect();
    rows(page, merged, &lines, BOTH_WAYS, ratio)?;
    writeln!(page, "\nData, copy-up, mounting and memory, with the ratio to overlayfs. MiB/s: more is better.\n")?;
    rows(page, merged, DATA, ONE_WAY, amount)?;
    writeln!(page, "\nWithout passthrough, and rootless in a user namespace. MiB/s: more is better.\n")?;
    rows(page, merged, MODES, OTHER_MODES, ratio)?;
    writeln!(page, "\nTo start a container and see its end, with the ratio to bubblewrap; less is better.\n")?;
    rows(page, merged, LAUNCH, LAUNCHERS, amount)
}

/// Under which conditions each run was made.
fn heading(page: &mut String, merged: &Merged) -> fmt::Result {
    let mut told = HashSet::new();
    for report in &merged.0 {
        let (least, most) = report.rounds();
        let rounds = if least == most { least.to_string() } else { format!("{least} to {most}") };
        let line = format!(
            "- {}, Linux {}, {}, tops on {}, medians of {rounds} interleaved rounds{}",
            report.machine,
            report.kernel,
            report.cpus_used(),
            report.top,
            if report.quick { " **(a quick run: its numbers mean nothing)**" } else { "" },
        );
        if told.insert(line.clone()) {
            writeln!(page, "{line}")?;
        }
    }
    writeln!(page, "\nMade by `{COMMAND}`.")
}

fn rows(
    page: &mut String,
    merged: &Merged,
    lines: &[Line],
    columns: &[Column],
    show: fn(&Column, Found<'_>) -> String,
) -> fmt::Result {
    let titles = columns.iter().map(|column| column.title.to_owned());
    write_head(page, &std::iter::once("workload".to_owned()).chain(titles).collect::<Vec<_>>())?;
    for line in lines {
        let cell = |column: &Column| match merged.find(column.way, column.contender, column.beside, line.row) {
            Some(found) if found.cell.failure.is_some() => "failed".to_owned(),
            Some(found) => show(column, found),
            None => "—".to_owned(),
        };
        let cells: Vec<String> = std::iter::once(line.label.to_owned()).chain(columns.iter().map(cell)).collect();
        write_row(page, &cells)?;
    }
    Ok(())
}

/// Who others are compared with.
pub(super) fn is_reference(contender: &str) -> bool {
    contender == OVERLAY || contender == BWRAP
}

/// Overlayfs itself, memory, and what cannot be compared, is shown as it is.
fn ratio(column: &Column, found: Found<'_>) -> String {
    match found.cell.to_overlay.filter(|_| !is_reference(column.contender) && found.unit != Unit::Mebibytes) {
        Some(ratio) => factor(ratio),
        None => found.cell.summary.map_or_else(|| "—".to_owned(), |summary| quantity(summary.median, found.unit)),
    }
}

fn amount(column: &Column, found: Found<'_>) -> String {
    let Some(summary) = found.cell.summary else { return "—".to_owned() };
    let amount = quantity(summary.median, found.unit);
    match found.cell.to_overlay.filter(|_| !is_reference(column.contender) && found.unit != Unit::Mebibytes) {
        Some(ratio) => format!("{amount} ({})", factor(ratio)),
        None => amount,
    }
}

fn chart<'a>(merged: &Merged, title: &str, lines: &'a [Line], columns: &'a [Column]) -> Chart<'a> {
    let compared: Vec<&Column> = columns.iter().filter(|column| column.contender != OVERLAY).collect();
    let mut bars = Vec::new();
    for (row, line) in lines.iter().enumerate() {
        for (place, column) in compared.iter().enumerate() {
            let found = merged.find(column.way, column.contender, column.beside, line.row);
            bars.extend(found.and_then(|found| found.cell.to_overlay).map(|ratio| (row, place, ratio)));
        }
    }
    Chart {
        title: title.to_owned(),
        rows: lines.iter().map(|line| line.label).collect(),
        series: compared.iter().map(|column| column.title).collect(),
        bars,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Report, ReportCell, ReportRow};
    use super::*;
    use crate::statistics::Summary;

    fn report(pinned_to: Option<usize>, median: f64, ratio: f64) -> Report {
        let cell = |median, ratio| ReportCell {
            summary: Some(Summary { median, best: median, spread: 0.0 }),
            samples: vec![Some(median)],
            to_overlay: Some(ratio),
            ..ReportCell::default()
        };
        let failed = ReportCell { failure: Some("given up".to_owned()), ..ReportCell::default() };
        Report {
            pinned_to,
            contenders: [OVERLAY, RUNIONFS, FUSE_OVERLAYFS].map(str::to_owned).into(),
            rows: vec![ReportRow {
                name: "stat-cold".to_owned(),
                family: "metadata".to_owned(),
                about: String::new(),
                unit: Unit::Seconds,
                cells: vec![cell(0.02, 1.0), cell(median, ratio), failed],
            }],
            ..Report::default()
        }
    }

    #[test]
    fn a_line_has_both_ways() {
        let page = page(&Merged(vec![report(None, 0.1, 5.0), report(Some(0), 0.05, 2.5)]));
        let line = page.lines().find(|line| line.starts_with("| stat of 20,000, cold mount")).unwrap();
        assert_eq!(line, "| stat of 20,000, cold mount | 20.0 ms | 5.00 | failed | 2.50 | failed |");
    }

    #[test]
    fn an_amount_has_its_ratio() {
        let report = report(None, 0.1, 5.0);
        let cells = &report.rows[0].cells;
        let shown =
            |index: usize, cell: usize| amount(&ONE_WAY[index], Found { cell: &cells[cell], unit: Unit::Seconds });
        assert_eq!(shown(0, 0), "20.0 ms");
        assert_eq!(shown(1, 1), "100 ms (5.00)");
    }
}
