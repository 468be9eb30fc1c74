//! Adaptive concurrency: finds how many requests to process at once from their latency.
//!
//! The method follows Netflix' concurrency-limits (its gradient limit) and Envoy's adaptive
//! concurrency filter, with three differences:
//!
//! - A request is compared with what its own [class](Typical) takes under light load, so that a
//!   change of the mix from cheap to expensive pages does not count as overload.
//! - Only requests that were processed while the limit was nearly used up say anything about the
//!   limit.
//! - Rising latency does not reveal its cause. So when latency has doubled, the limit is halved for
//!   a moment. If requests become faster, too many were being processed, and the lower limit stays;
//!   if not, the work itself takes longer, and that is the new normal. The same probe runs
//!   regularly while nothing seems wrong, because the first measurement may have been made under
//!   overload.
//!
//! In between, the limit is adjusted in windows of a tenth of a second: while latency is normal and
//! the limit is used up, it grows by its square root; as latency rises, it shrinks in proportion,
//! down to what the service can do plus a short queue.

use std::time::Duration;

/// Maximum number of samples per window; beyond it samples are dropped at random.
const SAMPLES: usize = 512;
/// Minimum number of samples for a conclusion.
const FEWEST: usize = 10;
/// Number of windows without a slow one after which the service is not the bottleneck.
const CALM: u32 = 10;
/// Factor of the normal latency that, in two consecutive windows, starts a probe.
const DOUBLED: f64 = 2.0;
/// Latency has improved if it is below this share of its previous value.
const IMPROVED: f64 = 0.8;
/// Maximum time for which the limit is halved if there are no requests.
const LONGEST_LOOK: Duration = Duration::from_secs(2);
/// Share by which the normal latency follows a slower or faster request: the first and the maximum
/// step.
const STEP: f64 = 0.015;
const LONGEST_STEP: f64 = 0.25;
/// Delay before the first probe for a new normal latency.
const FIRST_PROBE: Duration = Duration::from_millis(500);
/// Maximum number of classes.
const CLASSES: usize = 256;

/// A concurrency limit that follows latency. It is pure: the caller passes the times.
///
/// ```
/// use scale_limit::load::AdaptiveConcurrency;
///
/// let limit = AdaptiveConcurrency::default().starting_at(10).at_most(500);
/// assert_eq!(limit.limit(), 10);
/// ```
#[derive(Clone, Debug)]
pub struct AdaptiveConcurrency {
    limit: f64,
    least: usize,
    most: usize,
    tolerance: f64,
    window: Duration,
    probe_every: Duration,
    typical: Typical,
    samples: Vec<Sample>,
    seen: usize,
    /// Maximum concurrency in this window.
    busiest: usize,
    /// Number of windows since the last one that was slower than tolerated.
    calm: u32,
    /// `true` if the last window took twice as long as normal.
    doubled: bool,
    /// `true` if no window has been slow yet, so that the limit grows in large steps.
    starting: bool,
    window_ends: Option<Duration>,
    probe_at: Option<Duration>,
    /// Delay before the next probe: short at first, when little is known.
    probe_in: Duration,
    look: Option<Look>,
}

/// Latency of one request, relative to its class.
#[derive(Clone, Copy, Debug)]
struct Sample {
    ratio: f64,
    /// `true` if the limit was nearly used up.
    full: bool,
}

/// A probe: the limit is halved for a moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Start of the probe: requests that began before are ignored.
    since: Duration,
    limit: f64,
    ratio: f64,
}

/// Latency of requests of each class under light load: a median that is followed step by step.
#[derive(Clone, Debug)]
struct Typical {
    classes: Box<[Class]>,
    /// Moving average, over recent requests, of the normal latency of their class, in seconds.
    overall: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Class {
    /// Normal latency in seconds; 0: unknown.
    normal: f64,
    /// Number of consecutive requests that were slower (positive) or faster (negative) under light
    /// load.
    run: i32,
    /// Total seconds and number of requests in this window.
    now: (f64, u32),
}

impl Default for AdaptiveConcurrency {
    /// Starts at 10, with limits of the number of processors and 1,000; tolerates 30 % more than
    /// the normal latency; probes for a new normal every half minute.
    fn default() -> Self {
        Self {
            limit: 10.0,
            least: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            most: 1_000,
            tolerance: 1.3,
            window: Duration::from_millis(100),
            probe_every: Duration::from_secs(30),
            typical: Typical { classes: vec![Class::default(); CLASSES].into(), overall: None },
            samples: Vec::new(),
            seen: 0,
            busiest: 0,
            calm: CALM,
            doubled: false,
            starting: true,
            window_ends: None,
            probe_at: None,
            probe_in: FIRST_PROBE,
            look: None,
        }
    }
}

impl AdaptiveConcurrency {
    /// Creates a constant limit.
    pub fn fixed(limit: usize) -> Self {
        Self::default().starting_at(limit).at_least(limit).at_most(limit)
    }

    /// Sets the initial limit.
    pub fn starting_at(self, limit: usize) -> Self {
        Self { limit: limit.max(1) as f64, ..self }
    }

    /// Sets the minimum. Use 1 for a service that can process fewer requests at once than there are
    /// processors: otherwise two of its requests always wait for each other.
    pub fn at_least(self, least: usize) -> Self {
        Self { least: least.max(1), most: self.most.max(least), ..self }
    }

    /// Sets the maximum.
    pub fn at_most(self, most: usize) -> Self {
        Self { most: most.max(1), least: self.least.min(most.max(1)), ..self }
    }

    /// Sets how much slower than normal a request may be before the limit shrinks: 1.3 means 30 %.
    pub fn tolerance(self, tolerance: f64) -> Self {
        Self {
            tolerance: if tolerance.is_nan() { 1.3 } else { tolerance.clamp(1.0, 10.0) },
            ..self
        }
    }

    /// Sets the interval of probes for a new normal latency. During a probe, about two tenths of a
    /// second, fewer requests are processed.
    pub fn probe_every(self, time: Duration) -> Self {
        Self { probe_every: time.max(self.window * 10), ..self }
    }

    /// Returns the current limit.
    pub fn limit(&self) -> usize {
        (self.limit as usize).clamp(self.least, self.most)
    }

    /// Returns the normal latency of recent requests; `None` at first.
    pub fn best(&self) -> Option<Duration> {
        self.typical.overall.map(Duration::from_secs_f64)
    }

    /// Returns whether requests wait for the service, and not for this limit.
    pub fn is_saturated(&self) -> bool {
        self.calm < CALM || self.least == self.most
    }

    /// Records an answered request: the time `now` since a fixed start, its latency, and the number
    /// of requests in progress, including itself.
    pub fn answered(&mut self, now: Duration, took: Duration, at_once: usize) {
        self.answered_in(0, now, took, at_once);
    }

    /// Does the same for a request of a class. Requests of one class take about the same time under
    /// light load.
    pub fn answered_in(&mut self, class: u64, now: Duration, took: Duration, at_once: usize) {
        if let Some(look) = self.look {
            if now > look.since + LONGEST_LOOK {
                (self.limit, self.look) = (look.limit, None);
                self.begin_window();
            } else if now.saturating_sub(took) < look.since {
                return;
            }
        }
        self.busiest = self.busiest.max(at_once);
        self.seen += 1;
        let limit = self.limit();
        let Some(ratio) = self.typical.compare(class, took, at_once <= limit.max(2) / 2) else {
            return;
        };
        let sample = Sample { ratio, full: at_once >= limit - limit / 4 };
        if self.samples.len() < SAMPLES {
            self.samples.push(sample);
        } else {
            // Each sample of the window is kept with the same probability.
            let n = fastrand::usize(..self.seen);
            if n < SAMPLES {
                self.samples[n] = sample;
            }
        }
        let probe_at = *self.probe_at.get_or_insert(now + self.probe_in.min(self.probe_every));
        let window = if self.starting { self.window / 5 } else { self.window };
        let ends = *self.window_ends.get_or_insert(now + window);
        if now < ends || self.samples.len() < FEWEST {
            return;
        }
        let all = median(self.samples.iter().map(|sample| sample.ratio).collect());
        let full: Vec<f64> =
            self.samples.iter().filter(|sample| sample.full).map(|sample| sample.ratio).collect();
        let full = if full.len() < FEWEST / 2 { None } else { median(full) };
        match (self.look, all, full) {
            (Some(look), Some(ratio), _) => self.looked(now, look, ratio),
            (None, _, Some(ratio)) => self.window_ended(now, ratio, now >= probe_at),
            _ => {
                self.calm = self.calm.saturating_add(1);
                self.doubled = false;
            }
        }
        self.begin_window();
    }

    fn begin_window(&mut self) {
        self.samples.clear();
        self.typical.begin_window();
        (self.seen, self.busiest, self.window_ends) = (0, 0, None);
    }

    /// Adjusts the limit after a window in which it was nearly used up; `ratio` is the latency
    /// relative to the normal one.
    fn window_ended(&mut self, now: Duration, ratio: f64, probe: bool) {
        let used_up = self.busiest >= self.limit();
        let gradient = (self.tolerance / ratio).clamp(0.5, 1.0);
        self.calm = if gradient < 1.0 { 0 } else { self.calm.saturating_add(1) };
        if ratio < IMPROVED {
            // Faster than normal even under high load: the normal latency is outdated.
            self.typical.take_what_is_seen();
        }
        // The first measurement may have been made under overload: if the limit is used up, a probe
        // starts at once.
        let first = self.starting && used_up && gradient < 1.0;
        let doubled = ratio >= DOUBLED && self.doubled;
        self.doubled = ratio >= DOUBLED;
        self.starting &= gradient >= 1.0;
        if (probe || first || doubled) && self.least < self.most {
            return self.halve(now, ratio);
        }
        // While requests do not get slower there is room to grow. Once they do, less than half of
        // that is enough for a queue, and nothing for a limit of one.
        let room = match gradient {
            gradient if gradient < 1.0 => (self.limit.sqrt() - 1.0).max(0.0) / 2.0,
            _ if self.starting => self.limit,
            _ => self.limit.sqrt(),
        };
        let next = self.limit * gradient + room;
        // A limit that was not reached has not been tested, so it does not grow.
        if next < self.limit || used_up {
            self.limit = f64::midpoint(self.limit, next).clamp(self.least as f64, self.most as f64);
        }
    }

    fn halve(&mut self, now: Duration, ratio: f64) {
        if self.limit() == self.least {
            // There is no lower limit to compare with.
            self.typical.take_what_is_seen();
            self.doubled = false;
            return self.probe_later(now);
        }
        self.look = Some(Look { since: now, limit: self.limit, ratio });
        self.limit = (self.limit / 2.0).max(self.least as f64);
    }

    /// Evaluates a probe; `ratio` is the latency with half the limit, relative to the normal one.
    fn looked(&mut self, now: Duration, look: Look, ratio: f64) {
        self.look = None;
        let was = if look.ratio >= DOUBLED { look.ratio } else { 1.0 };
        if ratio < was * IMPROVED {
            // The limit was too high, and perhaps still is.
            if look.ratio < DOUBLED {
                self.typical.take_what_is_seen();
                self.halve(now, 1.0);
            } else if ratio >= DOUBLED {
                self.halve(now, ratio);
            }
            return;
        }
        if ratio > self.tolerance {
            self.typical.take_what_is_seen();
        }
        self.limit = look.limit;
        self.doubled = false;
        self.probe_later(now);
    }

    fn probe_later(&mut self, now: Duration) {
        self.probe_in = (self.probe_in * 4).min(self.probe_every);
        self.probe_at = Some(now + self.probe_in);
    }
}

impl Typical {
    /// Returns the ratio of a request's time to the normal latency of its class. Under light load,
    /// the time updates the normal latency. Returns `None` for the first request.
    fn compare(&mut self, class: u64, took: Duration, little_to_do: bool) -> Option<f64> {
        let took = took.as_secs_f64().clamp(1e-7, 3_600.0);
        let class = &mut self.classes[class as usize % CLASSES];
        class.now = (class.now.0 + took, class.now.1 + 1);
        let first = class.normal == 0.0;
        let ratio = took / if first { took } else { class.normal };
        if first {
            class.normal = took;
        } else if little_to_do {
            // The estimate settles where half of the requests are slower and half are faster. The
            // longer all requests are on one side, the larger the steps.
            class.run =
                if took > class.normal { class.run.max(0) + 1 } else { class.run.min(0) - 1 };
            let step = (STEP * 1.3_f64.powi(class.run.abs())).min(LONGEST_STEP);
            class.normal *= if took > class.normal { 1.0 + step } else { 1.0 - step };
        }
        let overall = self.overall.get_or_insert(class.normal);
        *overall += (class.normal - *overall) * 0.05;
        (!first).then_some(ratio)
    }

    fn begin_window(&mut self) {
        for class in &mut self.classes {
            class.now = (0.0, 0);
        }
    }

    /// Sets the normal latencies to the times of this window.
    fn take_what_is_seen(&mut self) {
        for class in self.classes.iter_mut().filter(|class| class.now.1 > 0) {
            class.normal = class.now.0 / f64::from(class.now.1);
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that can process `capacity` requests at once, each in 10 ms; more requests share
    /// the capacity.
    fn after(
        limit: &mut AdaptiveConcurrency,
        from: f64,
        seconds: f64,
        capacity: f64,
        offered: usize,
    ) {
        let mut now = from;
        while now < from + seconds {
            let at_once = limit.limit().min(offered);
            let took = 0.010 * (at_once as f64 / capacity).max(1.0);
            now += took / at_once as f64;
            limit.answered(Duration::from_secs_f64(now), Duration::from_secs_f64(took), at_once);
        }
    }

    #[test]
    fn it_settles_a_little_over_what_the_service_can_do() {
        for capacity in [2.0, 10.0, 100.0, 400.0] {
            let mut limit = AdaptiveConcurrency::default().at_least(1);
            after(&mut limit, 0.0, 25.0, capacity, usize::MAX);
            let (least, most) = (capacity * 0.9, capacity * 1.3 + 2.0 * capacity.sqrt() + 1.0);
            let found = limit.limit() as f64;
            assert!(found >= least && found <= most, "capacity {capacity}: {found}");
        }
    }

    #[test]
    fn it_follows_when_the_service_gets_slower_and_recovers() {
        let mut limit = AdaptiveConcurrency::default();
        after(&mut limit, 0.0, 20.0, 100.0, usize::MAX);
        let before = limit.limit();
        after(&mut limit, 20.0, 9.0, 20.0, usize::MAX);
        assert!(limit.limit() < before / 2, "{} of {before}", limit.limit());
        after(&mut limit, 29.0, 30.0, 100.0, usize::MAX);
        assert!(limit.limit() > before / 2, "{} of {before}", limit.limit());
    }

    #[test]
    fn it_does_not_grow_while_nobody_comes_near() {
        let mut limit = AdaptiveConcurrency::default();
        after(&mut limit, 0.0, 20.0, 100.0, 5);
        assert!(limit.limit() <= 30, "{}", limit.limit());
    }

    /// A service that was overloaded at first: the first latency is not the normal one.
    #[test]
    fn a_bad_first_impression_is_corrected() {
        let mut limit =
            AdaptiveConcurrency::default().starting_at(40).probe_every(Duration::from_secs(2));
        after(&mut limit, 0.0, 60.0, 10.0, usize::MAX);
        assert!(limit.limit() <= 25, "{}", limit.limit());
    }

    #[test]
    fn a_fixed_limit_stays() {
        let mut limit = AdaptiveConcurrency::fixed(7);
        after(&mut limit, 0.0, 60.0, 2.0, usize::MAX);
        assert_eq!(limit.limit(), 7);
    }
}
