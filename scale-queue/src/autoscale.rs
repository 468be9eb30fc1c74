//! Load forecast of a queue, from two samples of its counters.
//!
//! Little's law (J. D. C. Little, *A Proof for the Queuing Formula L = λW*, 1961): running jobs =
//! jobs completed per second × seconds per job. So the counters alone give the time of a job,
//! without a timer for each job.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::queue::Queue;
use crate::store::Stats;

/// Load forecast of a queue.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Forecast {
    /// Jobs pushed per second.
    pub arrivals: f64,
    /// Jobs completed or failed per second.
    pub departures: f64,
    /// Seconds per job; `None` if no job ended.
    pub service_seconds: Option<f64>,
    /// Expected waiting time of a job pushed now, in seconds; `None` if jobs wait and none ended.
    pub wait_seconds: Option<f64>,
    /// Number of jobs to run at a time so that the backlog is processed within the target and new
    /// jobs do not wait. If no job ended, so that their duration is unknown: as many as run, and
    /// twice as many, at least one, if jobs wait. Zero if there are none.
    pub desired: u64,
}

/// Computes the forecast from two samples taken `over` apart.
fn forecast(before: &Stats, after: &Stats, over: Duration, target: Duration) -> Forecast {
    let seconds = over.as_secs_f64().max(1e-3);
    let ended = (after.done_total + after.failed_total)
        .saturating_sub(before.done_total + before.failed_total) as f64;
    let stock = |s: &Stats| (s.waiting + s.leased) as f64;
    let departures = ended / seconds;
    let arrivals = ((stock(after) - stock(before) + ended) / seconds).max(0.0);
    let running = (before.leased + after.leased) as f64 / 2.0;
    let service = (ended > 0.0).then(|| (running / departures).max(1e-6));
    let wait = match after.waiting {
        0 => Some(0.0),
        waiting if departures > 0.0 => Some(waiting as f64 / departures),
        _ => None,
    };
    let desired = match service {
        Some(service) => {
            let rate = arrivals + after.waiting as f64 / target.as_secs_f64().max(1.0);
            (rate * service).ceil() as u64
        }
        None if after.waiting > 0 => (2 * after.leased).max(1),
        None => after.leased,
    };
    Forecast { arrivals, departures, service_seconds: service, wait_seconds: wait, desired }
}

impl Queue {
    /// Takes two samples of a queue, `over` apart, and returns how many jobs should run at a time
    /// for its backlog to be processed within `target`.
    pub async fn forecast(
        &self,
        queue: &str,
        over: Duration,
        target: Duration,
    ) -> Result<Forecast, Error> {
        let (before, start) = (self.stats(queue).await?, Instant::now());
        tokio::time::sleep(over).await;
        Ok(forecast(&before, &self.stats(queue).await?, start.elapsed(), target))
    }

    /// Exports the counts, lag and forecast of every queue as metrics, for dashboards and
    /// autoscalers. Samples every 10 s for as long as the future is polled. Run it in one process.
    ///
    /// The metrics are `scale_queue_waiting_jobs`, `scale_queue_leased_jobs`,
    /// `scale_queue_dead_jobs`, `scale_queue_lag_seconds`, `scale_queue_expected_wait_seconds`
    /// (infinite if jobs wait and none ended) and `scale_queue_desired_workers`
    /// ([`Forecast::desired`], with which an autoscaler also comes from zero workers and back),
    /// each with the label `queue`.
    pub async fn observe(&self, target: Duration) {
        const EVERY: Duration = Duration::from_secs(10);
        let mut known: std::collections::HashMap<String, (Stats, Instant)> =
            std::collections::HashMap::new();
        loop {
            for name in self.queues().await.unwrap_or_default() {
                let Ok(stats) = self.stats(&name).await else { continue };
                let label = || [("queue", name.clone())];
                metrics::gauge!("scale_queue_waiting_jobs", &label()).set(stats.waiting as f64);
                metrics::gauge!("scale_queue_leased_jobs", &label()).set(stats.leased as f64);
                metrics::gauge!("scale_queue_dead_jobs", &label()).set(stats.dead as f64);
                metrics::gauge!("scale_queue_lag_seconds", &label()).set(stats.lag_ms as f64 / 1e3);
                if let Some((before, at)) = known.insert(name.clone(), (stats, Instant::now())) {
                    let forecast = forecast(&before, &stats, at.elapsed(), target);
                    // Always set: an old value would stay for ever.
                    metrics::gauge!("scale_queue_expected_wait_seconds", &label())
                        .set(forecast.wait_seconds.unwrap_or(f64::INFINITY));
                    metrics::gauge!("scale_queue_desired_workers", &label())
                        .set(forecast.desired as f64);
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(waiting: u64, leased: u64, done_total: u64) -> Stats {
        Stats { waiting, leased, done_total, ..Stats::default() }
    }

    #[test]
    fn counts_alone_say_how_long_a_job_takes() {
        let second = Duration::from_secs(1);
        // Ten jobs at a time and 20 per second: half a second per job. 20 jobs arrive per second,
        // and 600 wait: processing them within a minute needs 30 jobs per second.
        let seen = forecast(&stats(600, 10, 0), &stats(600, 10, 200), second * 10, second * 60);
        assert!(
            (seen.service_seconds.unwrap() - 0.5).abs() < 1e-9
                && (seen.arrivals - 20.0).abs() < 1e-9
        );
        assert!((seen.wait_seconds.unwrap() - 30.0).abs() < 1e-9);
        assert_eq!(seen.desired, 15);
        let idle = forecast(&stats(0, 0, 5), &stats(0, 0, 5), second, second);
        assert_eq!((idle.desired, idle.wait_seconds), (0, Some(0.0)));
        let long = forecast(&stats(0, 3, 5), &stats(0, 3, 5), second, second);
        assert_eq!(long.desired, 3, "those that run");
        let stuck = forecast(&stats(9, 3, 5), &stats(9, 3, 5), second, second);
        assert_eq!((stuck.desired, stuck.wait_seconds), (6, None), "no job ends: unknown");
        let asleep = forecast(&stats(9, 0, 5), &stats(9, 0, 5), second, second);
        assert_eq!(asleep.desired, 1, "the first worker");
    }
}
