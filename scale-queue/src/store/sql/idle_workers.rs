//! Idle workers of this process.

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::store::{WakeUp, WorkerId};

#[derive(Debug, Default)]
pub(super) struct IdleWorkers(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Idle workers by queue; the last one added is woken first.
    asleep: HashMap<String, Vec<WorkerId>>,
    listeners: HashMap<WorkerId, mpsc::UnboundedSender<WakeUp>>,
}

impl IdleWorkers {
    pub(super) fn listen(&self, worker: &WorkerId) -> BoxStream<'static, WakeUp> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().listeners.insert(worker.clone(), sender);
        stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|wake| (wake, receiver))
        })
        .boxed()
    }

    pub(super) fn sleep(&self, queue: &str, worker: &WorkerId) {
        let mut inner = self.0.lock();
        let asleep = inner.asleep.entry(queue.to_owned()).or_default();
        asleep.retain(|w| w != worker);
        asleep.push(worker.clone());
    }

    pub(super) fn rise(&self, queue: &str, worker: &WorkerId) {
        if let Some(asleep) = self.0.lock().asleep.get_mut(queue) {
            asleep.retain(|w| w != worker);
        }
    }

    pub(super) fn wake(&self, queue: &str, mut count: usize) {
        let Inner { asleep, listeners } = &mut *self.0.lock();
        while count > 0
            && let Some(worker) = asleep.get_mut(queue).and_then(Vec::pop)
        {
            if listeners
                .get(&worker)
                .is_some_and(|listener| listener.send(WakeUp::Queue(queue.to_owned())).is_ok())
            {
                count -= 1;
            } else {
                listeners.remove(&worker);
            }
        }
    }

    /// Returns the queues for which a worker is idle.
    pub(super) fn queues(&self) -> Vec<String> {
        let inner = self.0.lock();
        inner
            .asleep
            .iter()
            .filter(|(_, workers)| !workers.is_empty())
            .map(|(queue, _)| queue.clone())
            .collect()
    }

    /// Sends a cancellation to all workers; the one that holds the job ends it.
    pub(super) fn cancel(&self, tag: &[u8]) {
        self.0
            .lock()
            .listeners
            .retain(|_, listener| listener.send(WakeUp::Cancel(tag.to_vec())).is_ok());
    }

    /// Wakes all workers, because wake-ups may have been missed.
    pub(super) fn wake_all(&self) {
        let mut inner = self.0.lock();
        inner.asleep.clear();
        inner.listeners.retain(|_, listener| listener.send(WakeUp::Resync).is_ok());
    }
}
