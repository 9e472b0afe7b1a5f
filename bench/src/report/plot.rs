//! Ratios to overlayfs as bars, on a logarithmic scale.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::table::is_reference;
use super::{Report, ReportRow};
use crate::contender::RLAUNCH;

/// Pixels that a bar is high.
const BAR: u32 = 11;
/// Pixels for the title and the legend.
const HEAD: u32 = 50;
/// Pixels for the scale.
const FOOT: u32 = 40;
const WIDTH: u32 = 900;
/// Pixels for the names of the rows.
const NAMES: u32 = 250;

/// A bar: which row, which place in the row, and the ratio.
pub(super) type Bar = (usize, usize, f64);

/// One plot.
#[derive(Debug, PartialEq)]
pub(super) struct Chart<'a> {
    pub(super) title: String,
    /// From the top.
    pub(super) rows: Vec<&'a str>,
    /// What the bars of a row stand for.
    pub(super) series: Vec<&'a str>,
    pub(super) bars: Vec<Bar>,
}

/// Writes `FAMILY.svg` for each family that has ratios.
pub(super) fn draw(report: &Report, folder: &Path) -> Result<(), Box<dyn Error>> {
    for family in report.families() {
        family_chart(report, family).draw(&folder.join(format!("{family}.svg")))?;
    }
    Ok(())
}

fn family_chart<'a>(report: &'a Report, family: &str) -> Chart<'a> {
    let rows: Vec<&ReportRow> = report.rows.iter().filter(|row| row.family == family).collect();
    let is_compared = |index: &usize| {
        !is_reference(&report.contenders[*index]) && rows.iter().any(|row| row.cells[*index].to_overlay.is_some())
    };
    let compared: Vec<usize> = (0..report.contenders.len()).filter(is_compared).collect();
    let is_about_launchers = compared.iter().any(|index| report.contenders[*index] == RLAUNCH);
    let reference = if is_about_launchers { "bubblewrap" } else { "kernel overlayfs" };
    let mut bars = Vec::new();
    for (row_index, row) in rows.iter().enumerate() {
        for (place, contender) in compared.iter().enumerate() {
            bars.extend(row.cells[*contender].to_overlay.map(|ratio| (row_index, place, ratio)));
        }
    }
    Chart {
        title: format!("{family}: ratio to {reference}"),
        rows: rows.iter().map(|row| row.name.as_str()).collect(),
        series: compared.iter().map(|index| report.contenders[*index].as_str()).collect(),
        bars,
    }
}

impl Chart<'_> {
    /// Writes it as SVG; nothing where there is no bar. A logarithm has no place for a ratio of zero.
    pub(super) fn draw(&self, file: &Path) -> Result<(), Box<dyn Error>> {
        let bars: Vec<&Bar> = self.bars.iter().filter(|bar| bar.2 > 0.0).collect();
        if bars.is_empty() {
            return Ok(());
        }
        let rows_high = u32::try_from(self.rows.len() * (self.series.len() + 1))?;
        let area = SVGBackend::new(file, (WIDTH, rows_high * BAR + HEAD + FOOT)).into_drawing_area();
        area.fill(&WHITE)?;
        let smallest = bars.iter().fold(0.8_f64, |least, bar| least.min(bar.2)) / 1.2;
        let largest = bars.iter().fold(2.0_f64, |most, bar| most.max(bar.2)) * 1.2;
        // Upside down, so that the first row is at the top; each row is one unit high.
        let height = f64::from(u32::try_from(self.rows.len())?);
        let (head, body) = area.split_vertically(HEAD);
        self.draw_head(&head)?;
        let mut chart = ChartBuilder::on(&body)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(NAMES)
            .build_cartesian_2d((smallest..largest).log_scale(), height..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .x_labels(6)
            .light_line_style(TRANSPARENT)
            .draw()?;

        let step = 1.0 / (f64::from(u32::try_from(self.series.len())?) + 1.0);
        for place in 0..self.series.len() {
            let own = bars.iter().filter(|bar| bar.1 == place);
            chart.draw_series(own.map(|(row, place, ratio)| {
                let top = *row as f64 + (*place as f64 + 0.5) * step;
                Rectangle::new([(1.0, top), (*ratio, top + step)], color(*place).filled())
            }))?;
        }
        chart.draw_series(std::iter::once(PathElement::new([(1.0, 0.0), (1.0, height)], BLACK)))?;
        for (row, name) in self.rows.iter().enumerate() {
            let middle = chart.backend_coord(&(smallest, row as f64 + 0.5));
            body.draw(&Text::new(*name, (8, middle.1 - 6 - i32::try_from(HEAD)?), ("sans-serif", 13)))?;
        }
        area.present()?;
        Ok(())
    }

    /// The title, and what the colours stand for. A legend among the bars would hide some.
    fn draw_head(&self, head: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn Error>> {
        head.draw(&Text::new(self.title.as_str(), (8, 8), ("sans-serif", 16)))?;
        let mut left = 8;
        for (place, name) in self.series.iter().enumerate() {
            head.draw(&Rectangle::new([(left, 34), (left + 10, 44)], color(place).filled()))?;
            head.draw(&Text::new(*name, (left + 14, 33), ("sans-serif", 13)))?;
            // Wide enough for any letters of this size.
            left += 34 + 8 * i32::try_from(name.len())?;
        }
        Ok(())
    }
}

fn color(place: usize) -> RGBAColor {
    Palette99::pick(place).to_rgba()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::OVERLAY;
    use crate::report::ReportCell;

    #[test]
    fn only_what_was_compared_has_a_bar() {
        let ratio = |to_overlay| ReportCell { to_overlay, ..ReportCell::default() };
        let row = ReportRow {
            name: "stat-cold".to_owned(),
            family: "metadata".to_owned(),
            about: String::new(),
            unit: crate::workload::Unit::Seconds,
            cells: vec![ratio(Some(1.0)), ratio(Some(5.0)), ratio(None)],
        };
        let contenders = [OVERLAY, "runionfs", "mergerfs"].map(str::to_owned).into();
        let report = Report { contenders, rows: vec![row], ..Report::default() };
        let chart = family_chart(&report, "metadata");
        assert_eq!((chart.rows, chart.series), (vec!["stat-cold"], vec!["runionfs"]));
        assert_eq!(chart.bars, [(0, 0, 5.0)]);
    }
}
