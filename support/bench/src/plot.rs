//! Curves as SVG, one for each case whose subjects are sizes.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::report::Report;

/// Draws every case into `folder`.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut rows = &report.rows[..];
    while let Some(first) = rows.first() {
        let (case, rest) =
            rows.split_at(rows.iter().take_while(|row| row.case == first.case).count());
        rows = rest;
        let points: Vec<(f64, f64)> =
            case.iter().filter_map(|row| Some((row.subject.parse().ok()?, row.value))).collect();
        let file = folder.join(format!("{}.svg", first.case));
        curve(&file, &format!("{}, {}", first.case, first.unit), &points)
            .map_err(|error| anyhow!("{error}"))?;
    }
    Ok(())
}

fn curve(
    file: &Path,
    title: &str,
    points: &[(f64, f64)],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(()) };
    let highest = points.iter().map(|point| point.1).fold(0.0, f64::max) * 1.2;
    let root = SVGBackend::new(file, (640, 360)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root);
    chart
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(32)
        .y_label_area_size(56);
    let size = |size: &f64| format!("{size:.0}");
    // Sizes that grow by factors of ten get a logarithmic axis.
    if last.0 >= 1_000.0 {
        let mut chart = chart.build_cartesian_2d((first.0..last.0).log_scale(), 0.0..highest)?;
        chart.configure_mesh().x_label_formatter(&size).draw()?;
        chart.draw_series(
            LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)).point_size(3),
        )?;
    } else {
        let mut chart = chart.build_cartesian_2d(first.0..last.0, 0.0..highest)?;
        chart.configure_mesh().x_label_formatter(&size).draw()?;
        chart.draw_series(
            LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)).point_size(3),
        )?;
    }
    root.present()?;
    Ok(())
}
