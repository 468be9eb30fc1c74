//! Scheduled jobs: cron expressions in a time zone, or fixed periods.
//!
//! | when | then |
//! | --- | --- |
//! | several processes run the same schedule | the job of each run is pushed once: the store remembers a key of the schedule's name and the run's time |
//! | all processes were down at the time of a run | nothing, or one job for the last missed run, if it is within [`Scheduler::catch_up`] |
//! | a process is stopped for a while, or its machine sleeps | one job for the last missed run, however many were missed |
//! | the store fails | the push is retried until the next run |
//! | clocks of processes differ | the first process pushes; the others find the key |
//! | clocks change for daylight saving | a fixed hour that does not exist runs at the next existing time; an hour that occurs twice runs once |
//! | two schedules have the same name | of runs at the same time only one job is pushed: keep names unique |

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use croner::Cron;
use futures_util::future::{BoxFuture, join_all};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use tokio::time::Instant;

use crate::error::Error;
use crate::job::Job;
use crate::limit::bounded_key;
use crate::options::IntoPush;
use crate::push::Encoded;
use crate::queue::Queue;
use crate::registry::{self, Kind, ScheduleStatus};
use crate::store::Entry;

/// Minimum time for which the store remembers completed runs.
const REMEMBERED: Duration = Duration::from_hours(24);

/// Reason why a schedule is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The cron expression is invalid.
    #[error(
        "invalid cron expression `{expression}`: {reason}; expected `minute hour day month \
         weekday` (0-59, 0-23, 1-31, 1-12, 0-7), with seconds before them if wanted"
    )]
    Cron {
        /// Expression as given.
        expression: String,
        /// Error of the parser.
        reason: String,
    },
    /// The period is too short.
    #[error("the period of schedule `{0}` is shorter than a millisecond")]
    Period(String),
    /// The time zone is unknown.
    #[error("unknown time zone `{0}`: expected an IANA name like `Europe/Zurich` or `UTC`")]
    Zone(String),
}

/// Rule for the times at which a job is due. Pure: the current time is a parameter.
#[derive(Clone)]
enum Rule {
    Cron(Box<Cron>, TimeZone),
    /// Whole multiples of the period since 1970, so that all processes agree.
    Every(Duration),
}

impl Rule {
    /// Returns the first run after `moment`.
    fn after(&self, moment: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron, zone) => cron
                .find_next_occurrence(&Zoned::new(moment, zone.clone()), false)
                .ok()
                .map(|z| z.timestamp()),
            Self::Every(period) => {
                let period = i64::try_from(period.as_millis()).ok()?.max(1);
                Timestamp::from_millisecond(
                    (moment.as_millisecond().div_euclid(period) + 1).checked_mul(period)?,
                )
                .ok()
            }
        }
    }

    /// Returns the last run in `(from, until]`.
    fn last(&self, from: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut last = None;
        let mut at = from;
        // Enough for a rule that fires every second over a day.
        for _ in 0..100_000 {
            match self.after(at) {
                Some(next) if next <= until => {
                    last = Some(next);
                    at = next;
                }
                _ => break,
            }
        }
        last
    }
}

type Make = Arc<dyn Fn(&Queue) -> Result<(String, Entry), Error> + Send + Sync>;

#[derive(Clone)]
struct Task {
    name: String,
    rule: Rule,
    make: Make,
    /// Registered details; the time of the next run is filled in later.
    about: ScheduleStatus,
}

/// Pushes jobs when they are due. Run it in every process: the job of each run is still pushed only
/// once.
///
/// ```
/// # use scale_queue::{Job, Queue, Scheduler};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct Report;
/// # impl Job for Report { const NAME: &'static str = "report"; }
/// # #[derive(Serialize, Deserialize)] struct Sweep;
/// # impl Job for Sweep { const NAME: &'static str = "sweep"; }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let queue = Queue::memory();
/// Scheduler::new(&queue)
///     .cron("daily-report", "0 9 * * MON-FRI", "Europe/Zurich", || Report)?
///     .every("sweep", Duration::from_mins(5), || Sweep)?
///     .catch_up(Duration::from_hours(1))
///     .run(async { /* completes at shutdown */ })
///     .await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a scheduler does nothing until it runs"]
pub struct Scheduler {
    queue: Queue,
    tasks: Vec<Task>,
    catch_up: Duration,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.tasks.iter().map(|task| &task.name).collect();
        f.debug_struct("Scheduler").field("tasks", &names).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Creates a scheduler without schedules.
    pub fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), tasks: Vec::new(), catch_up: Duration::ZERO }
    }

    /// Adds a schedule by a cron expression of five fields (six with seconds), in a time zone given
    /// by its IANA name.
    pub fn cron<P: IntoPush>(
        self,
        name: &str,
        expression: &str,
        zone: &str,
        job: impl Fn() -> P + Send + Sync + 'static,
    ) -> Result<Self, ScheduleError> {
        let wrong = |reason: String| ScheduleError::Cron { expression: expression.into(), reason };
        let cron: Cron = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Optional)
            .year(croner::parser::Year::Disallowed)
            .build()
            .parse(expression)
            .map_err(|e| wrong(e.to_string()))?;
        let zone_name = zone;
        let zone = TimeZone::get(zone).map_err(|_| ScheduleError::Zone(zone.into()))?;
        let rule = Rule::Cron(Box::new(cron), zone);
        if rule.after(Timestamp::now()).is_none() {
            return Err(wrong("the expression never fires".into()));
        }
        Ok(self.task(name, rule, format!("{expression} ({zone_name})"), job))
    }

    /// Adds a schedule with a fixed period of at least a millisecond. It runs at whole multiples of
    /// the period since 1970 (UTC).
    ///
    /// # Errors
    /// [`ScheduleError::Period`] for a shorter period.
    pub fn every<P: IntoPush>(
        self,
        name: &str,
        period: Duration,
        job: impl Fn() -> P + Send + Sync + 'static,
    ) -> Result<Self, ScheduleError> {
        if period < Duration::from_millis(1) {
            return Err(ScheduleError::Period(name.into()));
        }
        Ok(self.task(name, Rule::Every(period), format!("every {period:?}"), job))
    }

    /// Sets how far back the scheduler looks for missed runs when it starts; the job of the last
    /// missed run is then pushed. Default: zero. Maximum: a day.
    pub fn catch_up(mut self, window: Duration) -> Self {
        self.catch_up = window.min(REMEMBERED);
        self
    }

    fn task<P: IntoPush>(
        mut self,
        name: &str,
        rule: Rule,
        words: String,
        job: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Arc::new(move |queue| {
            let (job, options) = job().into_push();
            let Encoded { queue, entry, .. } = queue.encoded(&job, &options)?;
            Ok((queue, entry))
        });
        let about = ScheduleStatus {
            name: String::new(),
            rule: words,
            job: <P::Job as Job>::NAME.into(),
            queue: <P::Job as Job>::QUEUE.into(),
            next_ms: 0,
        };
        self.tasks.push(Task { name: name.into(), rule, make, about });
        self
    }

    /// Pushes due jobs until `stop` completes.
    pub async fn run<T>(self, stop: impl Future<Output = T>) {
        let start = self.now();
        let from = start
            .checked_sub(SignedDuration::try_from(self.catch_up).unwrap_or_default())
            .unwrap_or(start);
        let tasks: Vec<BoxFuture<'_, ()>> =
            self.tasks.iter().map(|task| Box::pin(self.keep(task, from, start)) as _).collect();
        let work = async {
            join_all(tasks).await;
            // Without schedules, or when none fires any more, this still waits for `stop`.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = stop => {}
            () = work => {}
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.queue.store().now_ms() as i64)
            .unwrap_or_else(|_| Timestamp::now())
    }

    async fn keep(&self, task: &Task, from: Timestamp, start: Timestamp) {
        let mut at = start;
        if let Some(missed) = task.rule.last(from, start) {
            self.fire(task, missed, start + SignedDuration::from_mins(1)).await;
        }
        let mut said: Option<Instant> = None;
        while let Some(next) = task.rule.after(at) {
            loop {
                let left = next.as_millisecond() - self.queue.store().now_ms() as i64;
                if left <= 0 {
                    break;
                }
                if said.is_none_or(|at| at.elapsed() >= registry::MIN_HEARTBEAT_INTERVAL) {
                    said = Some(Instant::now());
                    self.register(task, next);
                }
                // In steps, so that a change of the clock is noticed.
                tokio::time::sleep(Duration::from_millis(left as u64).min(Duration::from_mins(1)))
                    .await;
            }
            // The process may have been suspended, or the store unavailable. Only the last of the
            // missed runs is made up for, and only before the run that follows it, plus `catch_up`.
            let now = self.now();
            let moment = task.rule.last(next, now).unwrap_or(next);
            let until = task.rule.after(moment).unwrap_or(moment + SignedDuration::from_mins(1));
            let late = SignedDuration::try_from(self.catch_up).unwrap_or_default();
            if moment == next || until.checked_add(late).is_ok_and(|end| now <= end) {
                self.fire(task, moment, until).await;
            }
            at = moment;
        }
    }

    /// Registers the schedule in a separate task, so that a slow store does not delay a job.
    fn register(&self, task: &Task, next: Timestamp) {
        let about =
            ScheduleStatus { next_ms: next.as_millisecond().max(0) as u64, ..task.about.clone() };
        let (store, name) = (Arc::clone(self.queue.store()), task.name.clone());
        tokio::spawn(
            async move { registry::register(&*store, Kind::Schedule, &name, &about).await },
        );
    }

    /// Pushes the job of a run, with retries until the next run.
    async fn fire(&self, task: &Task, moment: Timestamp, until: Timestamp) {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.push(task, moment).await {
                Ok(is_new) => {
                    tracing::debug!(
                        schedule = task.name, %moment, is_new, "a scheduled job is due",
                    );
                    metrics::counter!(
                        "scale_queue_scheduled_total", "schedule" => task.name.clone(),
                    )
                    .increment(u64::from(is_new));
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        %error, schedule = task.name,
                        "could not push a scheduled job; trying again until the next run",
                    );
                }
            }
            if self.queue.store().now_ms() as i64 >= until.as_millisecond() {
                tracing::error!(
                    schedule = task.name, %moment,
                    "could not push a scheduled job before its next run; the run is skipped",
                );
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    async fn push(&self, task: &Task, moment: Timestamp) -> Result<bool, Error> {
        let (queue, mut entry) = (task.make)(&self.queue)?;
        let key = bounded_key(format!("schedule:{}:{}", task.name, moment.as_millisecond()));
        entry.once = Some((key, REMEMBERED * 2));
        Ok(self
            .queue
            .store()
            .push(&queue, &[entry])
            .await?
            .into_iter()
            .all(|holder| holder.is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(expression: &str, zone: &str) -> Rule {
        Rule::Cron(Box::new(expression.parse().unwrap()), TimeZone::get(zone).unwrap())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn moments_are_those_of_the_time_zone() {
        let nine = cron("0 9 * * *", "Europe/Zurich");
        assert_eq!(
            nine.after(at("2026-01-15T00:00:00Z")),
            Some(at("2026-01-15T08:00:00Z")),
            "winter"
        );
        assert_eq!(
            nine.after(at("2026-07-15T00:00:00Z")),
            Some(at("2026-07-15T07:00:00Z")),
            "summer"
        );
    }

    #[test]
    fn daylight_saving_neither_skips_nor_doubles_a_day() {
        let half_past_two = cron("30 2 * * *", "Europe/Zurich");
        // The night of 29 March 2026 has no half past two; that of 25 October has two.
        for (from, to, days) in [
            ("2026-03-27T12:00:00Z", "2026-03-31T12:00:00Z", 4),
            ("2026-10-23T12:00:00Z", "2026-10-27T12:00:00Z", 4),
        ] {
            let (mut moment, end, mut count) = (at(from), at(to), 0);
            while let Some(next) = half_past_two.after(moment).filter(|next| *next <= end) {
                (moment, count) = (next, count + 1);
            }
            assert_eq!(count, days, "from {from}");
        }
    }

    #[test]
    fn periods_are_multiples_that_all_agree_on() {
        let rule = Rule::Every(Duration::from_mins(5));
        assert_eq!(rule.after(at("2026-01-01T10:04:59.999Z")), Some(at("2026-01-01T10:05:00Z")));
        assert_eq!(rule.after(at("2026-01-01T10:05:00Z")), Some(at("2026-01-01T10:10:00Z")));
        assert_eq!(
            rule.last(at("2026-01-01T10:00:00Z"), at("2026-01-01T10:17:00Z")),
            Some(at("2026-01-01T10:15:00Z"))
        );
        assert_eq!(rule.last(at("2026-01-01T10:15:00Z"), at("2026-01-01T10:17:00Z")), None);
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Nothing;
        impl Job for Nothing {
            const NAME: &'static str = "nothing";
        }
        let scheduler = || Scheduler::new(&Queue::memory());
        for (expression, zone, word) in [
            ("61 * * * *", "UTC", "invalid cron"),
            ("", "UTC", "invalid cron"),
            ("0 0 30 2 *", "UTC", "never"),
            ("* * * * *", "Mars/Olympus", "unknown time zone"),
        ] {
            let error =
                scheduler().cron("x", expression, zone, || Nothing).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = scheduler().every("x", Duration::ZERO, || Nothing).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
    }
}
