//! How many at once: found by watching latency.
//!
//! After Netflix' concurrency-limits (its gradient limit) and Envoy's adaptive concurrency filter. In windows of a tenth of a second the
//! median latency is compared with the best one known. While they are alike, the limit grows by its square root; as latency rises, it
//! shrinks in proportion, down to what the service can do and a short queue. The best latency is forgotten now and then: the limit is halved for a
//! window, and again for as long as that makes requests much faster, and what is seen then counts.

use std::time::Duration;

/// Samples of one window at most; more are thinned out at random.
const SAMPLES: usize = 512;
/// Fewer say nothing.
const FEWEST: usize = 10;
/// After so many windows without a slow one the service is not what requests wait for.
const CALM: u32 = 10;

/// A limit that follows latency. Pure: times are given to it.
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
    /// The best median known.
    base: Option<Duration>,
    samples: Vec<Duration>,
    seen: usize,
    /// The most at once in this window.
    busiest: usize,
    /// Windows since the last one that was slower than tolerated.
    calm: u32,
    /// No window has been slow yet: it grows in leaps.
    starting: bool,
    window_ends: Option<Duration>,
    probe_at: Option<Duration>,
    probing: Probe,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Probe {
    No,
    /// The limit was halved; what is under way is of before. The limit and the median as they were.
    Draining(f64, Duration),
    /// What is seen now counts.
    Looking(f64, Duration),
}

impl Default for AdaptiveConcurrency {
    /// Starts at 10, between the number of processors and 1,000; tolerates three tenths more than the best latency; looks for a new best every half minute.
    fn default() -> Self {
        Self {
            limit: 10.0,
            least: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            most: 1_000,
            tolerance: 1.3,
            window: Duration::from_millis(100),
            probe_every: Duration::from_secs(30),
            base: None,
            samples: Vec::new(),
            seen: 0,
            busiest: 0,
            calm: CALM,
            starting: true,
            window_ends: None,
            probe_at: None,
            probing: Probe::No,
        }
    }
}

impl AdaptiveConcurrency {
    /// Always the same number.
    pub fn fixed(limit: usize) -> Self {
        Self::default().starting_at(limit).at_least(limit).at_most(limit)
    }

    /// The limit before anything is known.
    pub fn starting_at(self, limit: usize) -> Self {
        Self { limit: limit.max(1) as f64, ..self }
    }

    /// Never fewer at once. Say 1 for a service that works on fewer than there are processors: it is found out then, instead of two of its
    /// requests waiting for each other.
    pub fn at_least(self, least: usize) -> Self {
        Self { least: least.max(1), most: self.most.max(least), ..self }
    }

    /// Never more at once.
    pub fn at_most(self, most: usize) -> Self {
        Self { most: most.max(1), least: self.least.min(most.max(1)), ..self }
    }

    /// How much slower than the best a request may be before the limit shrinks: 1.3 is three tenths.
    pub fn tolerance(self, tolerance: f64) -> Self {
        Self { tolerance: tolerance.clamp(1.0, 10.0), ..self }
    }

    /// How often a new best latency is looked for; for two tenths of a second or so fewer requests are worked on.
    pub fn probe_every(self, time: Duration) -> Self {
        Self { probe_every: time.max(self.window * 10), ..self }
    }

    /// How many at once, now.
    pub fn limit(&self) -> usize {
        (self.limit as usize).clamp(self.least, self.most)
    }

    /// The best latency known; `None` at first.
    pub fn best(&self) -> Option<Duration> {
        self.base
    }

    /// Whether the service, and not this limit, is what requests wait for.
    pub fn is_saturated(&self) -> bool {
        self.calm < CALM || self.least == self.most
    }

    /// A request has been answered: `now` since some beginning, how long it took, how many were under way with it.
    pub fn answered(&mut self, now: Duration, took: Duration, at_once: usize) {
        self.busiest = self.busiest.max(at_once);
        self.seen += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push(took);
        } else {
            // Each sample of the window is kept with the same chance.
            let n = fastrand::usize(..self.seen);
            if n < SAMPLES {
                self.samples[n] = took;
            }
        }
        let probe_at = *self.probe_at.get_or_insert(now + self.probe_every);
        let window = if self.starting { self.window / 5 } else { self.window };
        let ends = *self.window_ends.get_or_insert(now + window);
        if now < ends || self.samples.len() < FEWEST {
            return;
        }
        let middle = self.samples.len() / 2;
        let median = *self.samples.select_nth_unstable(middle).1;
        let busiest = self.busiest;
        self.samples.clear();
        (self.seen, self.busiest, self.window_ends) = (0, 0, None);
        self.window_ended(now, median, busiest, now >= probe_at);
    }

    fn window_ended(&mut self, now: Duration, median: Duration, busiest: usize, probe: bool) {
        match self.probing {
            Probe::Draining(limit, median) => {
                self.probing = Probe::Looking(limit, median);
                return;
            }
            Probe::Looking(before, slower) => {
                self.base = Some(median);
                // Fewer at once were much faster: the best is further down, and so is the limit.
                if median.mul_f64(1.25) < slower && self.limit() > self.least {
                    self.halve(median);
                    return;
                }
                self.limit = before;
                self.probing = Probe::No;
                self.probe_at = Some(now + self.probe_every);
                return;
            }
            Probe::No => {}
        }
        let first = self.base.is_none();
        let base = *self.base.insert(self.base.map_or(median, |base| base.min(median)));
        let gradient = (self.tolerance * base.as_secs_f64() / median.as_secs_f64().max(1e-9)).clamp(0.5, 1.0);
        self.calm = if gradient < 1.0 { 0 } else { self.calm.saturating_add(1) };
        // While requests do not get slower there is room; once they do, less than half of that will do for a queue, and none for one at a time.
        // A first impression may be one of overload: when there is nothing to spare, it is looked into at once.
        let slow = self.starting && (gradient < 1.0 || first) && busiest >= self.limit();
        let probe = probe || slow;
        self.starting &= gradient >= 1.0;
        let room = match gradient {
            gradient if gradient < 1.0 => (self.limit.sqrt() - 1.0).max(0.0) / 2.0,
            _ if self.starting => self.limit,
            _ => self.limit.sqrt(),
        };
        let next = self.limit * gradient + room;
        // A limit that nobody comes near says nothing by not hurting.
        if next < self.limit || busiest * 2 > self.limit() {
            self.limit = f64::midpoint(self.limit, next).clamp(self.least as f64, self.most as f64);
        }
        if probe && self.least < self.most {
            self.halve(median);
        }
    }

    fn halve(&mut self, median: Duration) {
        self.probing = Probe::Draining(self.limit, median);
        self.limit = (self.limit / 2.0).max(self.least as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that can work on `capacity` at once, each for 10 ms; more share it.
    fn after(limit: &mut AdaptiveConcurrency, from: f64, seconds: f64, capacity: f64, offered: usize) {
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

    /// A service that was overloaded when first seen: the first best latency is not the real one.
    #[test]
    fn a_bad_first_impression_is_corrected() {
        let mut limit = AdaptiveConcurrency::default().starting_at(40).probe_every(Duration::from_secs(2));
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
