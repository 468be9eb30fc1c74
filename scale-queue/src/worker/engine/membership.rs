//! Membership of the fleet: registration, heartbeats of leases, weights of queues, leaving.

use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::Instant;

use super::Engine;
use crate::error::Error;
use crate::registry::{self, Kind, WorkerStatus};
use crate::store::Stats;

impl Engine {
    /// Returns the weights for [`Order::Balanced`], from the lag of each queue.
    pub(super) fn weigh(&self) -> BoxFuture<'static, Vec<u32>> {
        let store = Arc::clone(&self.store);
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        Box::pin(async move {
            // A queue that cannot be read keeps a share.
            let weight = |stats: Result<Stats, Error>| {
                stats.map_or(1, |s| 1 + (s.lag_ms / 10).min(10_000) as u32)
            };
            join_all(names.iter().map(|name| store.stats(name)))
                .await
                .into_iter()
                .map(weight)
                .collect()
        })
    }

    /// Stops taking jobs; wake-ups whose jobs were not fetched are passed on.
    pub(super) fn leave(&self) -> BoxFuture<'static, ()> {
        let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        Box::pin(async move {
            join_all(names.iter().map(|name| store.pass_on(name, Some(&worker)))).await;
            registry::deregister(&*store, Kind::Worker, &worker).await;
        })
    }

    /// Removes all traces of this worker from the store.
    pub(super) async fn leave_for_good(&self) {
        join_all(self.lanes.iter().map(|lane| self.store.leave(&lane.name, &self.worker))).await;
    }

    /// Registers the worker, if its state changed or the heartbeat interval is over.
    pub(super) fn register(&mut self) -> Option<BoxFuture<'static, ()>> {
        let (now, state) = (Instant::now(), (self.running.len(), self.quiet.is_quiet()));
        let is_known = |(at, then)| then == state && now < at + registry::HEARTBEAT_INTERVAL;
        if self.registered.is_some_and(is_known) {
            return None;
        }
        self.registered = Some((now, state));
        let (running, quiet) = state;
        let about = WorkerStatus {
            id: String::new(),
            queues: self.lanes.iter().map(|lane| lane.name.to_string()).collect(),
            concurrency: self.slots.concurrency,
            running,
            started_ms: self.started_ms,
            process: std::process::id(),
            quiet,
        };
        let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
        Some(Box::pin(
            async move { registry::register(&*store, Kind::Worker, &worker, &about).await },
        ))
    }

    /// Sends a heartbeat for every queue of which this worker holds jobs.
    pub(super) fn beat(&mut self) -> BoxFuture<'static, Vec<(usize, Option<bool>)>> {
        self.drop_unused_permits();
        metrics::gauge!("scale_queue_running_jobs").set(self.running.len() as f64);
        let beats: Vec<_> = self
            .lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| lane.holds() > 0)
            .map(|(n, lane)| (n, Arc::clone(&lane.name)))
            .collect();
        let (store, worker, lease) = (Arc::clone(&self.store), self.worker.clone(), self.lease);
        Box::pin(async move {
            let beats = beats.into_iter().map(|(n, name)| {
                let (store, worker) = (&store, &worker);
                async move { (n, store.heartbeat(&name, worker, lease).await.ok()) }
            });
            join_all(beats).await
        })
    }

    /// Processes the answers to [`beat`](Self::beat). If the lease of a queue is missing although
    /// this worker holds jobs of it, the store is asked for the held jobs. Returns `false` if a
    /// heartbeat failed.
    pub(super) fn note_heartbeats(&mut self, alive: Vec<(usize, Option<bool>)>) -> bool {
        let mut all_answered = true;
        for (lane, alive) in alive {
            match alive {
                Some(alive) => self.lanes[lane].unsure |= !alive && self.lanes[lane].holds() > 0,
                None => all_answered = false,
            }
        }
        all_answered
    }
}
