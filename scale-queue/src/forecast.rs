//! How many workers does a queue need? From two looks at its counts.
//!
//! Little's law (J. D. C. Little, *A Proof for the Queuing Formula L = λW*, 1961): jobs under way = jobs done per second × seconds a job takes.
//! So the counts alone say how long a job takes, without anybody timing one.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::queue::Queue;
use crate::store::Stats;

/// What a queue's last moments say of its next.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Forecast {
    /// Jobs that came, per second.
    pub arrivals: f64,
    /// Jobs that were done or failed, per second.
    pub departures: f64,
    /// How long a job takes, seconds; `None` while nothing ends.
    pub service_seconds: Option<f64>,
    /// How long a job that is pushed now will wait, seconds; `None` if nothing ends while something waits.
    pub wait_seconds: Option<f64>,
    /// Jobs to be run at a time, so that the backlog is gone within the target and new ones do not wait; `None` while nothing ends.
    pub desired: Option<u64>,
}

/// From two looks, `over` apart.
fn forecast(before: &Stats, after: &Stats, over: Duration, target: Duration) -> Forecast {
    let seconds = over.as_secs_f64().max(1e-3);
    let ended = (after.done_total + after.failed_total).saturating_sub(before.done_total + before.failed_total) as f64;
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
    let desired = service.map(|service| {
        let rate = arrivals + after.waiting as f64 / target.as_secs_f64().max(1.0);
        (rate * service).ceil() as u64
    });
    Forecast { arrivals, departures, service_seconds: service, wait_seconds: wait, desired }
}

impl Queue {
    /// Looks at a queue twice, `over` apart, and says how many jobs should run at a time for its backlog to be gone within `target`.
    pub async fn forecast(&self, queue: &str, over: Duration, target: Duration) -> Result<Forecast, Error> {
        let (before, start) = (self.stats(queue).await?, Instant::now());
        tokio::time::sleep(over).await;
        Ok(forecast(&before, &self.stats(queue).await?, start.elapsed(), target))
    }

    /// Shows every queue's counts, lag and forecast as metrics, for dashboards and autoscalers, as long as it is polled: run it in one
    /// process. Looks every 10 s.
    ///
    /// `scale_queue_waiting_jobs`, `scale_queue_leased_jobs`, `scale_queue_dead_jobs`, `scale_queue_lag_seconds`,
    /// `scale_queue_expected_wait_seconds` and `scale_queue_desired_workers` (jobs at a time, to clear the backlog within `target`), by queue.
    pub async fn observe(&self, target: Duration) {
        const EVERY: Duration = Duration::from_secs(10);
        let mut known: std::collections::HashMap<String, (Stats, Instant)> = std::collections::HashMap::new();
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
                    if let Some(wait) = forecast.wait_seconds {
                        metrics::gauge!("scale_queue_expected_wait_seconds", &label()).set(wait);
                    }
                    if let Some(desired) = forecast.desired {
                        metrics::gauge!("scale_queue_desired_workers", &label()).set(desired as f64);
                    }
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
        // Ten at a time, twenty a second: half a second each. Twenty come a second, and 600 wait: within a minute means thirty a second.
        let seen = forecast(&stats(600, 10, 0), &stats(600, 10, 200), second * 10, second * 60);
        assert!((seen.service_seconds.unwrap() - 0.5).abs() < 1e-9 && (seen.arrivals - 20.0).abs() < 1e-9);
        assert!((seen.wait_seconds.unwrap() - 30.0).abs() < 1e-9);
        assert_eq!(seen.desired, Some(15));
        let idle = forecast(&stats(0, 0, 5), &stats(0, 0, 5), second, second);
        assert_eq!((idle.desired, idle.wait_seconds), (None, Some(0.0)));
        let stuck = forecast(&stats(9, 3, 5), &stats(9, 3, 5), second, second);
        assert_eq!((stuck.desired, stuck.wait_seconds), (None, None), "nothing ends: nobody knows");
    }
}
