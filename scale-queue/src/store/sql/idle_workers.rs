//! Idle workers of this process.

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::store::{Wake, WorkerId};

#[derive(Debug, Default)]
pub(super) struct IdleWorkers(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By queue; the last to fall asleep is woken first.
    asleep: HashMap<String, Vec<WorkerId>>,
    listeners: HashMap<WorkerId, mpsc::UnboundedSender<Wake>>,
}

impl IdleWorkers {
    pub(super) fn listen(&self, worker: &WorkerId) -> BoxStream<'static, Wake> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().listeners.insert(worker.clone(), sender);
        stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|wake| (wake, receiver)) }).boxed()
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
            if listeners.get(&worker).is_some_and(|listener| listener.send(Wake::Queue(queue.to_owned())).is_ok()) {
                count -= 1;
            } else {
                listeners.remove(&worker);
            }
        }
    }

    /// Whoever holds the job ends it.
    pub(super) fn cancel(&self, tag: &[u8]) {
        self.0.lock().listeners.retain(|_, listener| listener.send(Wake::Cancel(tag.to_vec())).is_ok());
    }

    /// News may have been missed.
    pub(super) fn wake_all(&self) {
        let mut inner = self.0.lock();
        inner.asleep.clear();
        inner.listeners.retain(|_, listener| listener.send(Wake::Unsure).is_ok());
    }
}
