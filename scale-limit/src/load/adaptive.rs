//! How many at once: found by watching latency.
//!
//! After Netflix' concurrency-limits (its gradient limit) and Envoy's adaptive concurrency filter, with three differences:
//!
//! - A request is compared with what its own [class](Typical) takes while there is little to do, so that a change of the mix, from cheap
//!   pages to dear ones, is no overload.
//! - Only requests that were worked on while the limit was nearly used up say something of the limit.
//! - Latency that rises does not say why. So when it has doubled, the limit is halved for a moment: if that makes requests faster, too many
//!   were being worked on, and it stays; if not, the work itself takes longer, and that is the new normal. The same is tried now and then
//!   while all seems well, since the first impression may have been one of overload.
//!
//! In between, in windows of a tenth of a second: while latency is normal and the limit is used up, it grows by its square root; as latency
//! rises, it shrinks in proportion, down to what the service can do and a short queue.

use std::time::Duration;

/// Samples of one window at most; more are thinned out at random.
const SAMPLES: usize = 512;
/// Fewer say nothing.
const FEWEST: usize = 10;
/// After so many windows without a slow one the service is not what requests wait for.
const CALM: u32 = 10;
/// So many times the normal latency, in two windows, is looked into.
const DOUBLED: f64 = 2.0;
/// Below that share of what it was latency has improved.
const IMPROVED: f64 = 0.8;
/// The longest time for which the limit is halved, if nobody comes.
const LONGEST_LOOK: Duration = Duration::from_secs(2);
/// By which share the normal latency follows a request that was slower or faster, at first and at most.
const STEP: f64 = 0.015;
const LONGEST_STEP: f64 = 0.25;
/// How long after the first request a new normal latency is looked for, for the first time.
const FIRST_PROBE: Duration = Duration::from_millis(500);
/// Classes that are told apart.
const CLASSES: usize = 256;

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
    typical: Typical,
    samples: Vec<Sample>,
    seen: usize,
    /// The most at once in this window.
    busiest: usize,
    /// Windows since the last one that was slower than tolerated.
    calm: u32,
    /// The last window took twice as long as normal.
    doubled: bool,
    /// No window has been slow yet: it grows in leaps.
    starting: bool,
    window_ends: Option<Duration>,
    probe_at: Option<Duration>,
    /// The next probe comes that long after one: soon at first, when little is known.
    probe_in: Duration,
    look: Option<Look>,
}

/// One request, compared with what its class takes.
#[derive(Clone, Copy, Debug)]
struct Sample {
    ratio: f64,
    /// The limit was nearly used up.
    full: bool,
}

/// The limit is halved for a moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// What has begun before says nothing.
    since: Duration,
    limit: f64,
    ratio: f64,
}

/// The time of requests of each class while there is little to do: a median, followed step by step.
#[derive(Clone, Debug)]
struct Typical {
    classes: Box<[Class]>,
    /// Of all classes, as they come; seconds.
    overall: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Class {
    /// Seconds; 0: never seen.
    normal: f64,
    /// How many in a row were slower (over 0) or faster (under 0) with little to do.
    run: i32,
    /// In this window: seconds in all, and how often.
    now: (f64, u32),
}

impl Default for AdaptiveConcurrency {
    /// Starts at 10, between the number of processors and 1,000; tolerates three tenths more than the normal latency; looks for a new normal
    /// every half minute.
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

    /// How much slower than normal a request may be before the limit shrinks: 1.3 is three tenths.
    pub fn tolerance(self, tolerance: f64) -> Self {
        Self { tolerance: if tolerance.is_nan() { 1.3 } else { tolerance.clamp(1.0, 10.0) }, ..self }
    }

    /// How often a new normal latency is looked for; for two tenths of a second or so fewer requests are worked on.
    pub fn probe_every(self, time: Duration) -> Self {
        Self { probe_every: time.max(self.window * 10), ..self }
    }

    /// How many at once, now.
    pub fn limit(&self) -> usize {
        (self.limit as usize).clamp(self.least, self.most)
    }

    /// The normal latency of what has been answered lately; `None` at first.
    pub fn best(&self) -> Option<Duration> {
        self.typical.overall.map(Duration::from_secs_f64)
    }

    /// Whether the service, and not this limit, is what requests wait for.
    pub fn is_saturated(&self) -> bool {
        self.calm < CALM || self.least == self.most
    }

    /// A request has been answered: `now` since some beginning, how long it took, how many were under way with it.
    pub fn answered(&mut self, now: Duration, took: Duration, at_once: usize) {
        self.answered_in(0, now, took, at_once);
    }

    /// The same of a request of a class: those of one class take about as long as each other while there is little to do.
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
        let Some(ratio) = self.typical.compare(class, took, at_once <= limit.max(2) / 2) else { return };
        let sample = Sample { ratio, full: at_once >= limit - limit / 4 };
        if self.samples.len() < SAMPLES {
            self.samples.push(sample);
        } else {
            // Each sample of the window is kept with the same chance.
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
        let full: Vec<f64> = self.samples.iter().filter(|sample| sample.full).map(|sample| sample.ratio).collect();
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

    /// The limit was nearly used up, and latency was so many times the normal one.
    fn window_ended(&mut self, now: Duration, ratio: f64, probe: bool) {
        let used_up = self.busiest >= self.limit();
        let gradient = (self.tolerance / ratio).clamp(0.5, 1.0);
        self.calm = if gradient < 1.0 { 0 } else { self.calm.saturating_add(1) };
        if ratio < IMPROVED {
            // Even with much to do faster than normal: so that is not normal any more.
            self.typical.take_what_is_seen();
        }
        // A first impression may be one of overload: when there is nothing to spare, it is looked into at once.
        let first = self.starting && used_up && gradient < 1.0;
        let doubled = ratio >= DOUBLED && self.doubled;
        self.doubled = ratio >= DOUBLED;
        self.starting &= gradient >= 1.0;
        if (probe || first || doubled) && self.least < self.most {
            return self.halve(now, ratio);
        }
        // While requests do not get slower there is room; once they do, less than half of that will do for a queue, and none for one at a time.
        let room = match gradient {
            gradient if gradient < 1.0 => (self.limit.sqrt() - 1.0).max(0.0) / 2.0,
            _ if self.starting => self.limit,
            _ => self.limit.sqrt(),
        };
        let next = self.limit * gradient + room;
        // A limit that nobody has reached says nothing by not hurting.
        if next < self.limit || used_up {
            self.limit = f64::midpoint(self.limit, next).clamp(self.least as f64, self.most as f64);
        }
    }

    fn halve(&mut self, now: Duration, ratio: f64) {
        if self.limit() == self.least {
            // There is nothing less to compare it with.
            self.typical.take_what_is_seen();
            self.doubled = false;
            return self.probe_later(now);
        }
        self.look = Some(Look { since: now, limit: self.limit, ratio });
        self.limit = (self.limit / 2.0).max(self.least as f64);
    }

    /// With half as many at once latency was so many times the normal one.
    fn looked(&mut self, now: Duration, look: Look, ratio: f64) {
        self.look = None;
        let was = if look.ratio >= DOUBLED { look.ratio } else { 1.0 };
        if ratio < was * IMPROVED {
            // Too many at once; perhaps still.
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
    /// Returns the ratio of a request's time to the normal latency of its class; with little to do, what it took counts as normal. `None`: the first.
    fn compare(&mut self, class: u64, took: Duration, little_to_do: bool) -> Option<f64> {
        let took = took.as_secs_f64().clamp(1e-7, 3_600.0);
        let class = &mut self.classes[class as usize % CLASSES];
        class.now = (class.now.0 + took, class.now.1 + 1);
        let first = class.normal == 0.0;
        let ratio = took / if first { took } else { class.normal };
        if first {
            class.normal = took;
        } else if little_to_do {
            // Half of them slower and half faster: there it stays. The longer they are all on one side, the longer are the steps.
            class.run = if took > class.normal { class.run.max(0) + 1 } else { class.run.min(0) - 1 };
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

    /// Takes the times of this window for normal from now on.
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
