//! A plot for each family: ratios to overlayfs as bars, on a logarithmic scale.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use super::{Report, ReportRow};
use crate::contender::OVERLAY;

/// Pixels that a bar is high.
const BAR: u32 = 12;
/// Pixels for the title, the legend and the scale.
const FRAME: u32 = 90;
const WIDTH: u32 = 900;

/// A bar: which row, which place in the row, and the ratio.
type Bar = (usize, usize, f64);

/// Writes `FAMILY.svg` for each family that has ratios.
pub(super) fn draw(report: &Report, folder: &Path) -> Result<(), Box<dyn Error>> {
    let compared: Vec<usize> =
        (0..report.contenders.len()).filter(|index| report.contenders[*index] != OVERLAY).collect();
    for family in report.families() {
        let rows: Vec<&ReportRow> = report.rows.iter().filter(|row| row.family == family).collect();
        let bars = bars(&rows, &compared);
        if !bars.is_empty() {
            let names: Vec<&str> = compared.iter().map(|index| report.contenders[*index].as_str()).collect();
            family_plot(&folder.join(format!("{family}.svg")), family, &rows, &names, &bars)?;
        }
    }
    Ok(())
}

fn bars(rows: &[&ReportRow], compared: &[usize]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (row_index, row) in rows.iter().enumerate() {
        for (place, contender) in compared.iter().enumerate() {
            if let Some(ratio) = row.cells[*contender].to_overlay.filter(|ratio| *ratio > 0.0) {
                bars.push((row_index, place, ratio));
            }
        }
    }
    bars
}

fn family_plot(
    file: &Path,
    family: &str,
    rows: &[&ReportRow],
    names: &[&str],
    bars: &[Bar],
) -> Result<(), Box<dyn Error>> {
    let rows_high = u32::try_from(rows.len() * (names.len() + 1))?;
    let area = SVGBackend::new(file, (WIDTH, rows_high * BAR + FRAME)).into_drawing_area();
    area.fill(&WHITE)?;
    let ratios = bars.iter().map(|bar| bar.2);
    let smallest = ratios.clone().fold(0.5_f64, f64::min) / 1.2;
    let largest = ratios.fold(2.0_f64, f64::max) * 1.2;
    // Upside down, so that the first row is at the top; each row is one unit high.
    let height = f64::from(u32::try_from(rows.len())?);
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{family}: ratio to kernel overlayfs"), ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(130)
        .build_cartesian_2d((smallest..largest).log_scale(), height..0.0)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().y_labels(0).draw()?;

    let step = 1.0 / (f64::from(u32::try_from(names.len())?) + 1.0);
    for (place, name) in names.iter().enumerate() {
        let color = Palette99::pick(place).to_rgba();
        let own = bars.iter().filter(|bar| bar.1 == place);
        let rectangles = own.map(|(row, place, ratio)| {
            let top = *row as f64 + (*place as f64 + 0.5) * step;
            Rectangle::new([(1.0, top), (*ratio, top + step)], color.filled())
        });
        let legend = move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled());
        chart.draw_series(rectangles)?.label(*name).legend(legend);
    }
    chart.draw_series(std::iter::once(PathElement::new([(1.0, 0.0), (1.0, height)], BLACK)))?;
    for (row, report_row) in rows.iter().enumerate() {
        let middle = chart.backend_coord(&(smallest, row as f64 + 0.5));
        area.draw(&Text::new(report_row.name, (8, middle.1 - 6), ("sans-serif", 13)))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ReportCell;
    use crate::workload::Unit;

    #[test]
    fn only_what_was_compared_has_a_bar() {
        let ratio = |to_overlay| ReportCell { to_overlay, ..ReportCell::default() };
        let row = ReportRow {
            name: "stat-cold",
            family: "metadata",
            about: "",
            unit: Unit::Seconds,
            cells: vec![ratio(Some(1.0)), ratio(Some(5.0)), ratio(None)],
        };
        assert_eq!(bars(&[&row], &[1, 2]), [(0, 0, 5.0)]);
    }
}
