//! The table of a measurement, and its chart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Size of the chart, and the places of its scales.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 50.0;

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Browse,
    Search,
    Cart,
    Checkout,
    Staff,
    LogIn,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Browse => "browse",
            Self::Search => "search",
            Self::Cart => "cart",
            Self::Checkout => "checkout",
            Self::Staff => "staff",
            Self::LogIn => "log-in",
        }
    }
}

/// Measurement at one rate.
#[derive(Default)]
pub(crate) struct Tally {
    latencies: BTreeMap<Kind, Latencies>,
    /// Reasons of failures.
    failures: BTreeMap<String, u64>,
    /// Time from the first arrival to the last answer.
    pub(super) took: Duration,
}

/// Latencies in microseconds.
struct Latencies(Histogram<u64>);

/// Largest latency that is told apart, in microseconds: a minute.
const LONGEST: u64 = 60_000_000;

impl Default for Latencies {
    #[allow(clippy::expect_used)]
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("constant bounds are valid"))
    }
}

impl Latencies {
    fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

impl Tally {
    pub(super) fn record(
        &mut self,
        kind: Kind,
        latency: Duration,
        failure: Option<&anyhow::Error>,
    ) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST);
        self.latencies.entry(kind).or_default().0.saturating_record(micros);
        if let Some(failure) = failure {
            *self.failures.entry(format!("{failure:#}")).or_default() += 1;
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        for (kind, latencies) in other.latencies {
            // Both have the same bounds.
            let _ = self.latencies.entry(kind).or_default().0.add(latencies.0);
        }
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.all().0.len()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.values().sum()
    }

    fn all(&self) -> Latencies {
        let mut all = Latencies::default();
        for latencies in self.latencies.values() {
            let _ = all.0.add(&latencies.0);
        }
        all
    }

    fn per_second(&self) -> f64 {
        self.all().0.len() as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Measurements of all shops and rates.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

struct Row {
    shop: String,
    per_second: f64,
    /// Percentiles in ms: 50, 95, 99.
    latencies: [f64; 3],
}

impl Report {
    /// Adds a measurement, and prints it.
    #[allow(clippy::print_stdout)]
    pub(super) fn add(&mut self, shop: &str, rate: u32, tally: Tally) {
        let (all, per_second) = (tally.all(), tally.per_second());
        if !self.rows.iter().any(|row| row.shop == shop) {
            println!(
                "\n| {shop}: asked/s | answered/s | failed | p50 ms | p95 ms | p99 ms | max ms |"
            );
            println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        }
        let failed = tally.failures();
        let latencies = [0.5, 0.95, 0.99].map(|quantile| all.ms(quantile));
        let [p50, p95, p99] = latencies;
        println!(
            "| {rate} | {per_second:.0} | {failed} | {p50:.2} | {p95:.2} | {p99:.2} | {:.1} |",
            all.0.max() as f64 / 1e3
        );
        for (kind, latencies) in &tally.latencies {
            tracing::info!(
                "{:>8}: {:>7} requests, p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms",
                kind.name(),
                latencies.0.len(),
                latencies.ms(0.5),
                latencies.ms(0.95),
                latencies.ms(0.99)
            );
        }
        for (reason, count) in &tally.failures {
            tracing::warn!("{count} failed: {reason}");
        }
        self.rows.push(Row { shop: shop.to_owned(), per_second, latencies });
    }

    /// Draws the latencies over the answered requests per second: a line for each shop and
    /// percentile, on a logarithmic scale from 0.1 ms to 10 s.
    pub(super) fn svg(&self) -> String {
        let most = self.rows.iter().map(|row| row.per_second).fold(1.0, f64::max) * 1.05;
        let x = |per_second: f64| LEFT + (WIDTH - LEFT - 20.0) * per_second / most;
        let y = |ms: f64| {
            let share = (ms.clamp(0.1, 10_000.0).log10() + 1.0) / 5.0;
            HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 20.0) * share
        };
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' \
             font-family='sans-serif' font-size='12'>\n\
             <rect width='100%' height='100%' fill='#fff'/>\n"
        );
        for (ms, label) in [
            (0.1, "0.1 ms"),
            (1.0, "1 ms"),
            (10.0, "10 ms"),
            (100.0, "100 ms"),
            (1e3, "1 s"),
            (1e4, "10 s"),
        ] {
            let at = y(ms);
            let _ = writeln!(
                svg,
                "<path d='M{LEFT} {at}H{}' stroke='#ddd'/><text x='{}' y='{}' \
                 text-anchor='end'>{label}</text>",
                WIDTH - 20.0,
                LEFT - 6.0,
                at + 4.0
            );
        }
        for step in 0..=4 {
            let per_second = most * f64::from(step) / 4.0;
            let _ = writeln!(
                svg,
                "<text x='{}' y='{}' text-anchor='middle'>{per_second:.0}</text>",
                x(per_second),
                HEIGHT - BOTTOM + 18.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x='{}' y='{}' text-anchor='middle'>answered requests per second</text>",
            WIDTH / 2.0,
            HEIGHT - 12.0
        );
        let mut shops: Vec<&str> = self.rows.iter().map(|row| &*row.shop).collect();
        shops.dedup();
        for (shop, ink) in shops.into_iter().zip(["#7a4b2b", "#3d6470", "#48624a"]) {
            let lines = [(0, "p50", "1"), (1, "p95", "0.7"), (2, "p99", "0.4")];
            for (at, name, opacity) in lines {
                let mut points = String::new();
                let mut end = (LEFT, HEIGHT);
                for row in self.rows.iter().filter(|row| row.shop == shop) {
                    end = (x(row.per_second), y(row.latencies[at]));
                    let _ = write!(points, "{:.1},{:.1} ", end.0, end.1);
                }
                let _ = writeln!(
                    svg,
                    "<polyline points='{points}' fill='none' stroke='{ink}' stroke-width='2' \
                     opacity='{opacity}'/><text x='{:.1}' y='{:.1}' fill='{ink}' \
                     text-anchor='end'>{shop} {name}</text>",
                    end.0,
                    end.1 - 6.0
                );
            }
        }
        svg + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_a_row_and_a_line() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        for ms in 1..=100 {
            one.record(Kind::Browse, Duration::from_millis(ms), None);
        }
        let failure = anyhow::anyhow!("cart 503");
        two.record(Kind::Cart, Duration::from_millis(500), Some(&failure));
        one.add(two);
        one.took = Duration::from_secs(1);
        assert_eq!(one.failures, BTreeMap::from([("cart 503".to_owned(), 1)]));
        assert!((one.per_second() - 101.0).abs() < 1e-9);
        let p95 = one.all().ms(0.95);
        assert!((95.0..97.0).contains(&p95), "{p95}");
        let mut report = Report::default();
        report.add("embedded", 100, one);
        let svg = report.svg();
        assert!(svg.contains("embedded p95") && svg.ends_with("</svg>\n"), "{svg}");
    }
}
