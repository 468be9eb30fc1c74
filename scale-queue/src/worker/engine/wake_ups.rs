//! Wake-ups and alarms: those of this worker, and those it passes on to others.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, FINAL_FLUSH_TIMEOUT};
use crate::store::WakeUp;
use crate::worker::queue_state::QueueState;

impl Engine {
    /// Returns when the loop continues if nothing happens.
    pub(super) fn alarm(&self, busy: bool, deadline: Option<Instant>) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_mins(1);
        let end = deadline.map(|end| if now < end { end } else { end + FINAL_FLUSH_TIMEOUT });
        let round_trip = match self.pause {
            _ if busy => None,
            Some((until, _)) => Some(until),
            None => {
                let may_fetch = |n| deadline.is_none() && self.may_look(n);
                self.lanes.iter().enumerate().filter_map(|(n, lane)| lane.alarm(may_fetch(n))).min()
            }
        };
        // A permit that is being passed on may bring another job.
        let passing = (deadline.is_some() && self.terms.passing.load(SeqCst) > 0)
            .then(|| now + Duration::from_millis(10));
        round_trip
            .into_iter()
            .chain(end)
            .chain(self.trial_alarm())
            .chain(passing)
            .min()
            .unwrap_or(far)
    }

    /// Wakes another worker for queues where a job is due and this worker has no slot. If that
    /// fails, the next look finds the job.
    pub(super) fn pass_alarms_on(&mut self) {
        let now = Instant::now();
        for n in 0..self.lanes.len() {
            if !self.may_look(n) && self.lanes[n].rings(now) {
                self.stop_idling(n);
            }
        }
    }

    /// Lets another worker look at a queue, and removes this one from the list of idle workers. By
    /// the time that is done, this worker may have looked and be listed again, so it looks once
    /// more.
    pub(super) fn stop_idling(&mut self, lane: usize) {
        self.lanes[lane].disarm();
        let (store, worker, name) =
            (Arc::clone(&self.store), self.worker.clone(), Arc::clone(&self.lanes[lane].name));
        let unlisted = self.unlisted.clone();
        tokio::spawn(async move {
            // If this fails, a wake-up that arrives is passed on.
            let _ = store.pass_on(&name, Some(&worker)).await;
            let _ = unlisted.send(lane);
        });
    }

    pub(super) fn wake(&mut self, wake: WakeUp, stopping: bool) {
        match wake {
            WakeUp::Cancel(tag) => self.cancel(&tag),
            WakeUp::Resync => self.lanes.iter_mut().for_each(QueueState::wake),
            WakeUp::Queue(name) => {
                let lane = self.lanes.iter().position(|lane| *lane.name == *name);
                if let Some(lane) = lane {
                    self.lanes[lane].wake();
                }
                // The store woke only this worker for a job: if this worker cannot take the job, it
                // passes the wake-up on.
                if stopping || lane.is_none_or(|lane| !self.may_look(lane)) {
                    self.wake_another(name);
                }
            }
        }
    }

    /// Passes on a wake-up that arrived during a look, if there is no room for another job: the
    /// look may not have seen the job.
    pub(super) fn pass_wake_on(&mut self, lane: usize) {
        if !self.may_look(lane) && self.lanes[lane].take_wake() {
            self.wake_another(self.lanes[lane].name.to_string());
        }
    }

    /// Wakes another worker. If that fails, the next look of any worker finds the job. The wake-up
    /// may arrive at this worker itself, if it is idle again by then.
    pub(super) fn wake_another(&self, queue: String) {
        let store = Arc::clone(&self.store);
        tokio::spawn(async move { store.pass_on(&queue, None).await });
    }

    /// Stops wake-ups while a job is tried alone, because nothing is fetched then; wake-ups already
    /// received are passed on.
    pub(super) fn stop_sleeping(&mut self) {
        (0..self.lanes.len()).for_each(|lane| self.stop_idling(lane));
    }
}
