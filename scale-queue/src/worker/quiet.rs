//! Quiet workers: they begin no jobs, and finish those that run.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::Error;
use crate::queue::Queue;
use crate::store::Store;

/// Interval at which a worker asks whether it is to be quiet.
const ASK: Duration = Duration::from_secs(5);
/// Longest time for which a worker stays quiet by a request from elsewhere.
const LONGEST: Duration = Duration::from_hours(24);

/// Switch that makes a worker quiet: see [`Worker::quiet`](crate::Worker::quiet).
#[derive(Clone, Debug)]
pub struct Quiet(watch::Sender<State>);

/// Requests to be quiet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    here: bool,
    elsewhere: bool,
}

impl State {
    pub(super) fn is_quiet(self) -> bool {
        self.here || self.elsewhere
    }
}

impl Quiet {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// Lets the worker begin no more jobs, or begin jobs again. A quiet worker hands back the jobs
    /// that have not begun, finishes the others, and keeps their leases.
    pub fn set(&self, quiet: bool) {
        self.0.send_modify(|state| state.here = quiet);
    }

    /// Returns whether the worker is quiet, by this switch or by [`Queue::set_quiet`].
    pub fn is_quiet(&self) -> bool {
        self.0.borrow().is_quiet()
    }
}

/// Asks the store from time to time whether the worker is to be quiet.
pub(super) async fn ask(store: Arc<dyn Store>, worker: Arc<str>, quiet: Quiet) {
    loop {
        tokio::time::sleep(ASK.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        // If the store does not answer, the worker stays as it is.
        if let Ok(note) = store.read_note(&note_of(&worker)).await {
            let elsewhere = note.is_some_and(|note| note == b"1");
            quiet.0.send_if_modified(|state| {
                let changed = state.elsewhere != elsewhere;
                state.elsewhere = elsewhere;
                changed
            });
        }
    }
}

fn note_of(worker: &str) -> String {
    format!("quiet:{worker}")
}

impl Queue {
    /// Makes a worker quiet, by its [id](crate::status::WorkerStatus::id), or ends that. The worker
    /// hears of it within 7 s. It is quiet for a day at most.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn set_quiet(&self, worker: &str, quiet: bool) -> Result<(), Error> {
        let value = if quiet { b"1" } else { b"0" };
        self.store().put_note(&note_of(worker), value, LONGEST).await
    }
}
