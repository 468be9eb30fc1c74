//! Figures and their output.

use serde::Serialize;
use serde_json::Value;

/// Largest difference between two runs that agree.
const AGREEMENT: f64 = 0.15;

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) suite: &'static str,
    pub(crate) rows: Vec<Row>,
    pub(crate) ratios: Vec<Ratio>,
    /// Peers that could not be measured, with the reason.
    pub(crate) missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) subject: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) spread: f64,
    /// Figures of all turns, in order.
    pub(crate) figures: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) case: String,
    pub(crate) against: String,
    pub(crate) ratio: f64,
    /// Target from the crate's issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Missing {
    pub(crate) case: String,
    pub(crate) subject: String,
    pub(crate) why: String,
}

impl Report {
    pub(crate) fn new(suite: &'static str) -> Self {
        Self { suite, rows: Vec::new(), ratios: Vec::new(), missing: Vec::new() }
    }

    /// A line for each row and each ratio.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        fn lines<T: Serialize>(all: &[T]) -> serde_json::Result<String> {
            let all: Vec<_> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
            Ok(if all.is_empty() {
                "[]".to_owned()
            } else {
                format!("[\n    {}\n  ]", all.join(",\n    "))
            })
        }
        let (suite, rows) = (serde_json::to_string(self.suite)?, lines(&self.rows)?);
        let (ratios, missing) = (lines(&self.ratios)?, lines(&self.missing)?);
        Ok(format!(
            "{{\n  \"suite\": {suite},\n  \"rows\": {rows},\n  \"ratios\": \
             {ratios},\n  \"missing\": {missing}\n}}\n"
        ))
    }

    #[allow(clippy::print_stdout)]
    pub(crate) fn print(&self) {
        println!("\n{}", self.suite);
        for row in &self.rows {
            println!(
                "  {:<16} {:<22} {:>14} {:<10} ±{:.0} %",
                row.case,
                row.subject,
                shown(row.value),
                row.unit,
                row.spread * 100.0
            );
        }
        for ratio in &self.ratios {
            let target = ratio
                .target
                .map(|t| format!("   target {t}{}", if ratio.ratio >= t { "" } else { "  MISSED" }))
                .unwrap_or_default();
            println!(
                "  {:<16} vs {:<19} {:>14.2} ×{target}",
                ratio.case, ratio.against, ratio.ratio
            );
        }
        for missing in &self.missing {
            println!("  {:<16} {:<22} missing: {}", missing.case, missing.subject, missing.why);
        }
    }

    /// Prints the difference of each ratio from that of an earlier run, whose JSON contains one
    /// report or several.
    #[allow(clippy::print_stdout)]
    pub(crate) fn print_against(&self, earlier: &Value) {
        let reports = earlier.as_array().map_or(std::slice::from_ref(earlier), Vec::as_slice);
        let Some(report) = reports.iter().find(|report| report["suite"] == self.suite) else {
            return;
        };
        let known = report["ratios"].as_array().map_or(&[][..], Vec::as_slice);
        println!("\n{} beside the earlier run", self.suite);
        for ratio in &self.ratios {
            let before = known
                .iter()
                .find(|known| known["case"] == *ratio.case && known["against"] == *ratio.against);
            let Some(before) = before.and_then(|known| known["ratio"].as_f64()) else { continue };
            let apart = (ratio.ratio / before).max(before / ratio.ratio) - 1.0;
            let mark = if apart > AGREEMENT { "   APART" } else { "" };
            println!(
                "  {:<16} vs {:<19} {before:>9.2} {:>9.2} {:>6.1} %{mark}",
                ratio.case,
                ratio.against,
                ratio.ratio,
                apart * 100.0
            );
        }
    }
}

fn shown(value: f64) -> String {
    match value {
        v if v >= 1_000_000.0 => format!("{:.2} M", v / 1e6),
        v if v >= 10_000.0 => format!("{:.1} k", v / 1e3),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}
