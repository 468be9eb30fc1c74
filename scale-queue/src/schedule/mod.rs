//! Scheduled jobs: cron expressions in a time zone, or fixed periods.
//!
//! | when | then |
//! | --- | --- |
//! | several processes run the same schedule | the job of each run is pushed once: the store remembers a key of the schedule's name and the run's time |
//! | all processes were down at the time of a run | nothing, or one job for the last missed run, if it is within [`Scheduler::catch_up`] |
//! | a process is stopped for a while, or its machine sleeps | one job for the last missed run, however many were missed |
//! | the store fails | the push is retried until the next run |
//! | clocks of processes differ | the first process pushes; the others find the key |
//! | clocks change for daylight saving | a single time of a day (`30 2 * * *`) that does not exist runs at the next existing time, and one that occurs twice runs once; several times of an hour (`*/15 2 * * *`, `0,30 2 * * *`) follow the clock: they do not run in an hour that does not exist, and run again in one that occurs twice |
//! | a schedule is [changed, paused or removed](Queue::put_schedule) at run time | all schedulers follow within 7 s; of a run in that time one job is pushed, by the old rule or the new one |
//! | a stored schedule has the name of one in code | the stored one applies until it is removed |
//! | a schedule is paused | its runs are left out, and are not made up for |
//! | two schedules have the same name | of runs at the same time only one job is pushed: keep names unique |

mod rule;
mod stored;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

pub use self::rule::{Rule, ScheduleError};

use crate::error::Error;
use crate::job::Job;
use crate::limit::bounded_key;
use crate::options::IntoPush;
use crate::push::Encoded;
use crate::queue::Queue;
use crate::registry::{self, Kind, ScheduleStatus};
use crate::store::Entry;

/// Interval at which changes of stored schedules are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// Minimum time for which the store remembers completed runs.
const REMEMBERED: Duration = Duration::from_hours(24);

type Make = Arc<dyn Fn(&Queue) -> Result<(String, Entry), Error> + Send + Sync>;

#[derive(Clone)]
struct Task {
    name: String,
    /// Beginning of the keys under which runs are pushed.
    key: String,
    rule: Rule,
    /// Time before which the schedule has no runs: that of its last change.
    begins: Timestamp,
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
    ///
    /// # Errors
    /// The errors of [`Rule::cron`].
    pub fn cron<P: IntoPush>(
        self,
        name: &str,
        expression: &str,
        zone: &str,
        job: impl Fn() -> P + Send + Sync + 'static,
    ) -> Result<Self, ScheduleError> {
        Ok(self.task(name, Rule::cron(expression, zone)?, job))
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
        let rule =
            Rule::every(period).map_err(|_| ScheduleError::Period(format!("schedule `{name}`")))?;
        Ok(self.task(name, rule, job))
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
        job: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Arc::new(move |queue| {
            let (job, options) = job().into_push();
            let Encoded { queue, entry, .. } = queue.encoded(&job, &options)?;
            Ok((queue.into_owned(), entry))
        });
        let about = ScheduleStatus {
            name: String::new(),
            rule: rule.to_string(),
            job: <P::Job as Job>::NAME.into(),
            queue: <P::Job as Job>::QUEUE.into(),
            next_ms: 0,
            paused: false,
        };
        let key = format!("schedule:{name}");
        let begins = Timestamp::MIN;
        self.tasks.push(Task { name: name.into(), key, rule, begins, make, about });
        self
    }

    /// Pushes due jobs until `stop` completes: those of this scheduler, and those of
    /// [stored schedules](Queue::put_schedule).
    pub async fn run<T>(self, stop: impl Future<Output = T>) {
        tokio::select! {
            _ = stop => {}
            () = self.work() => {}
        }
    }

    /// Keeps a task for each schedule, and follows the changes of stored ones.
    async fn work(self) {
        let runner = Arc::new(Runner { queue: self.queue, catch_up: self.catch_up });
        // Aborted when this future ends.
        let mut running = JoinSet::new();
        let mut known: HashMap<String, (String, AbortHandle)> = HashMap::new();
        let start = runner.now();
        let catch_up = SignedDuration::try_from(self.catch_up).unwrap_or_default();
        // Runs after this time are made up for.
        let mut since = start.checked_sub(catch_up).unwrap_or(start);
        let mut is_first = true;
        loop {
            let looked = runner.now();
            let stored = tokio::time::timeout(LOOK / 2, stored::load(&runner.queue)).await;
            // If the store does not answer, the known schedules go on, and those in code begin.
            let stored = match stored {
                Ok(Ok(stored)) => Some(stored),
                _ if known.is_empty() => Some(Vec::new()),
                _ => None,
            };
            if let Some(stored) = stored {
                let mut wanted: HashMap<String, (String, Task)> = HashMap::new();
                for task in &self.tasks {
                    wanted.insert(task.name.clone(), (String::new(), task.clone()));
                }
                for (version, task) in stored {
                    wanted.insert(task.name.clone(), (version, task));
                }
                known.retain(|name, (version, task)| {
                    let stays = wanted.get(name).is_some_and(|(wanted, _)| wanted == version);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                let is_first = std::mem::take(&mut is_first);
                for (name, (version, task)) in wanted {
                    known.entry(name).or_insert_with(|| {
                        // A schedule in code that takes the place of a stored one has no earlier
                        // runs: they may have been the other's.
                        let is_late = !is_first && version.is_empty();
                        let from = if is_late { looked } else { since.max(task.begins) };
                        let from = from.min(looked);
                        let keep = Arc::clone(&runner).keep(task, from, looked);
                        (version, running.spawn(keep))
                    });
                }
                since = looked;
            }
            while running.try_join_next().is_some() {}
            for task in &self.tasks {
                if let Err(error) = runner.run_if_asked(task).await {
                    tracing::debug!(%error, "could not look for requests to run a schedule");
                }
            }
            tokio::time::sleep(LOOK.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        }
    }
}

/// Runs schedules.
struct Runner {
    queue: Queue,
    catch_up: Duration,
}

impl Runner {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.queue.store().now_ms() as i64)
            .unwrap_or_else(|_| Timestamp::now())
    }

    /// Pushes the jobs of one schedule; first that of the last run in `(from, start]`.
    async fn keep(self: Arc<Self>, task: Task, from: Timestamp, start: Timestamp) {
        let task = &task;
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
        if registry::is_paused(&self.queue, &task.name).await? {
            return Ok(false);
        }
        self.push_as(task, &moment.as_millisecond().to_string()).await
    }

    /// Pushes the job of a task at once, if that was asked for.
    async fn run_if_asked(&self, task: &Task) -> Result<(), Error> {
        if let Some(request) = stored::request(&self.queue, &task.name).await? {
            self.push_as(task, &request).await?;
            stored::fulfil(&self.queue, &task.name, &request).await?;
        }
        Ok(())
    }

    /// Pushes the job of a run, once for all processes.
    async fn push_as(&self, task: &Task, run: &str) -> Result<bool, Error> {
        // The job is made by the application's code, which may panic.
        let make = std::panic::AssertUnwindSafe(|| (task.make)(&self.queue));
        let made = std::panic::catch_unwind(make);
        let (queue, mut entry) =
            made.unwrap_or_else(|_| Err(Error::store("the function that makes the job panicked")))?;
        let key = bounded_key(format!("{}:{run}", task.key));
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

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Tick;
    impl Job for Tick {
        const NAME: &'static str = "tick";
    }

    /// A panic of the application's function leaves out a run, not the schedule.
    #[tokio::test]
    async fn a_schedule_survives_a_panic() {
        let (queue, calls) = (Queue::memory(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let count = Arc::clone(&calls);
        let scheduler =
            Scheduler::new(&queue).every("tick", Duration::from_millis(20), move || {
                let call = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                assert!(call > 0, "the first call panics");
                Tick
            });
        let stop = testkit::eventually("a run", async || {
            (queue.stats("default").await.ok()?.pushed_total > 0).then_some(())
        });
        scheduler.unwrap().run(stop).await;
        assert!(queue.stats("default").await.unwrap().pushed_total > 0);
    }
}
