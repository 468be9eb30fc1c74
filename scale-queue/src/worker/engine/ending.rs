//! How jobs that this worker holds end: by their own attempt, handed back, or cancelled; and what is to be told of it.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Engine, Running};
use crate::chain;
use crate::envelope::{Envelope, tag_of};
use crate::job::JobId;
use crate::outcome::{Ending, Verdict};
use crate::store::{CANCELLED, Destination, End, Settlement};
use crate::worker::lane::Ended;

impl Engine {
    /// Notes what is to be told of an attempt that ended.
    pub(super) fn end(&mut self, id: JobId, ending: Ending) {
        let Some(Running { lane, bytes, plain, retry, withdrawn, .. }) = self.running.remove(&id) else { return };
        let lane = &mut self.lanes[lane];
        lane.running -= 1;
        lane.ended += 1;
        let label = ending.label();
        metrics::counter!("scale_queue_jobs_total", "queue" => Arc::clone(&lane.name), "ending" => label).increment(1);
        let tag = tag_of(&bytes).to_vec();
        if matches!(ending, Ending::Done) && plain {
            lane.keep_done([tag], Instant::now());
            return;
        }
        let Ok(mut envelope) = Envelope::decode(&bytes) else { return };
        let (mut next, mut counts) = (None, None);
        let skipped = matches!(ending, Ending::Skipped);
        let to = match ending.verdict(retry, envelope.failed.saturating_add(1), fastrand::f64()) {
            Verdict::Done => {
                next = chain::next(&envelope, &*self.store).filter(|_| !skipped);
                counts = Some(End::Done);
                Destination::Done
            }
            Verdict::HandBack if withdrawn => {
                counts = Some(End::Dead);
                Destination::Dead(bytes, CANCELLED.into())
            }
            Verdict::HandBack => Destination::Waiting(bytes),
            Verdict::Again { delay, counted, turn, reason } => {
                envelope.body.extra.turn = turn;
                if counted {
                    tracing::warn!(job = envelope.body.name, %id, attempt = envelope.failed + 1, ?delay, reason, "a job failed");
                    envelope.fail(&reason, self.store.now_ms());
                    envelope.body.last_error = Some(reason);
                }
                Destination::Scheduled(envelope.encode(), delay)
            }
            Verdict::Dead { reason } => {
                tracing::error!(job = envelope.body.name, %id, attempt = envelope.failed + 1, reason, "a job is dead");
                envelope.fail(&reason, self.store.now_ms());
                counts = Some(End::Dead);
                Destination::Dead(envelope.encode(), reason)
            }
        };
        let counts = envelope.body.extra.batch.zip(counts);
        let settlement = Settlement { tag, unique: envelope.body.unique, to };
        lane.settlements.push(Ended { settlement, next, counts });
    }

    /// Gives back what has not begun.
    pub(super) fn hand_back(&mut self) {
        for lane in &mut self.lanes {
            for (envelope, bytes) in lane.ready.drain(..).rev() {
                let tag = tag_of(&bytes).to_vec();
                lane.settlements.push(Settlement { tag, unique: envelope.body.unique, to: Destination::Waiting(bytes) }.into());
            }
        }
    }

    /// A job that is not to begin.
    pub(super) fn give_up(&mut self, lane: usize, bytes: Vec<u8>, reason: &str) {
        let (tag, envelope) = (tag_of(&bytes).to_vec(), Envelope::decode(&bytes).ok());
        let (unique, place) = envelope.map_or((None, None), |e| (e.body.unique, e.body.extra.batch));
        let settlement = Settlement { tag, unique, to: Destination::Dead(bytes, reason.into()) };
        let counts = place.map(|place| (place, End::Dead));
        self.lanes[lane].settlements.push(Ended { settlement, next: None, counts });
    }

    /// A job that we hold is cancelled.
    pub(super) fn cancel(&mut self, tag: &[u8]) {
        if let Some(running) = self.running.values_mut().find(|running| tag_of(&running.bytes) == tag) {
            running.withdrawn = true;
            running.cancel.cancel();
        }
        for lane in 0..self.lanes.len() {
            let ready = &mut self.lanes[lane].ready;
            if let Some(place) = ready.iter().position(|(_, bytes)| tag_of(bytes) == tag)
                && let Some((_, bytes)) = ready.remove(place)
            {
                self.give_up(lane, bytes, CANCELLED);
            }
        }
    }
}
