//! Tests of code that pushes jobs, and of handlers. Feature `testing`; enable it as a development
//! dependency.
//!
//! [`FakeQueue`] is a queue in memory that records pushes and runs nothing. It encodes, encrypts
//! and checks jobs as every queue does, and has nothing in common with any other, so tests run side
//! by side. [`FakeQueue::run_pending`] runs what was pushed with the application's own worker, on a
//! clock that jumps to the next delay or retry.
//!
//! ```
//! use scale_queue::testing::FakeQueue;
//! use scale_queue::worker::Outcome;
//! use scale_queue::{Job, Queue, Worker};
//! # use serde::{Deserialize, Serialize};
//! # use std::time::Duration;
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendReceipt { order: i64 }
//! # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
//!
//! // Code under test: it gets a `Queue`.
//! async fn check_out(queue: &Queue) -> Result<(), scale_queue::Error> {
//!     queue.push(SendReceipt { order: 7 }).delay(Duration::from_hours(1)).await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), scale_queue::Error> {
//! let queue = FakeQueue::new();
//! check_out(&queue).await?;
//! queue.assert_pushed::<SendReceipt>(|pushed| pushed.job.order == 7);
//!
//! // The hour passes at once.
//! let worker = Worker::new(&queue).handle(|job: SendReceipt| async move {
//!     assert_eq!(job.order, 7);
//! });
//! let report = queue.run_pending(worker).await?;
//! assert_eq!(report.outcomes::<SendReceipt>(), [&Outcome::Done]);
//! # Ok(()) }
//! ```
//!
//! [`Queue::push_in`] pushes at once: what the test sees is as if the transaction was committed.
//! For a rollback, use a queue in a database.
//!
//! A handler is an async function: call it, with a context of [`TestContext`] if it takes one.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Holder, Run};
use crate::context::{Cancelled, Context};
use crate::error::Error;
use crate::format::{Body, Envelope, Place};
use crate::job::{Job, JobId, Priority};
use crate::queue::Queue;
use crate::result;
use crate::store::MemoryStore;
use crate::store::Recorded;
use crate::worker::{CancelReason, Ended, Event, Outcome, Worker};

/// Maximum number of runs of [`FakeQueue::run_pending`]: a job that always pushes itself again must
/// not hang a test.
const MOST_RUNS: usize = 10_000;
/// Time in which a permit of a job that has ended is given back.
const GIVEN_BACK: Duration = Duration::from_millis(50);

/// A queue for tests: see the [module](self). It dereferences to [`Queue`].
#[derive(Clone, Debug)]
pub struct FakeQueue {
    queue: Queue,
    store: Arc<MemoryStore>,
}

/// A job that was pushed, with its options.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PushedJob<J> {
    /// Id of the job.
    pub id: JobId,
    /// The job.
    pub job: J,
    /// Queue to which it was pushed.
    pub queue: String,
    /// Delay of the push.
    pub delay: Duration,
    /// Unique key of the job.
    pub unique_key: Option<String>,
    /// False if another job held its unique key, so that it was not stored.
    pub is_new: bool,
    /// Number of attempts, if that is not the one of its type.
    pub attempts: Option<u16>,
    /// Timeout, if that is not the one of its type.
    pub timeout: Option<Duration>,
    /// Priority in its queue.
    pub priority: Priority,
    /// Metadata of the job.
    pub metadata: Vec<(String, String)>,
    /// Tags of the job.
    pub tags: Vec<String>,
    /// Batch to which the job belongs.
    pub batch: Option<String>,
    /// Names of the jobs that follow in its chain.
    pub chain: Vec<String>,
}

/// Attempts that [`FakeQueue::run_pending`] has run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Ends of attempts, in order.
    pub ended: Vec<Ended>,
    /// Lines of jobs for which the worker has no handler: `kind:` and the job's name.
    pub unhandled: Vec<String>,
    /// Time by which the clock was moved forward.
    pub skipped: Duration,
}

impl Report {
    /// Returns the outcomes of attempts of one type of job, in order.
    pub fn outcomes<J: Job>(&self) -> Vec<&Outcome> {
        let ended = self.ended.iter().filter(|ended| ended.name == J::NAME);
        ended.map(|ended| &ended.outcome).collect()
    }
}

impl Default for FakeQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for FakeQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl FakeQueue {
    /// Creates a queue of its own.
    pub fn new() -> Self {
        let store = Arc::new(MemoryStore::recording());
        Self { queue: Queue::faked(Arc::clone(&store)), store }
    }

    /// Configures the queue as the application does, for example with
    /// [`encrypted`](Queue::encrypted) or [`propagating`](Queue::propagating).
    pub fn configured(mut self, configure: impl FnOnce(Queue) -> Queue) -> Self {
        self.queue = configure(self.queue);
        self
    }

    /// Returns the pushes of one type of job, in order, also those by other jobs, chains and
    /// batches.
    ///
    /// # Panics
    /// If a payload of that name does not fit the type.
    #[track_caller]
    pub fn pushed<J: Job>(&self) -> Vec<PushedJob<J>> {
        let recorded = self.store.recorded();
        recorded.into_iter().filter_map(|recorded| self.pushed_job(recorded)).collect()
    }

    #[track_caller]
    #[expect(clippy::panic, reason = "the assertion of a test")]
    fn pushed_job<J: Job>(&self, recorded: Recorded) -> Option<PushedJob<J>> {
        let Envelope { id, priority, body, .. } = Envelope::decode(&recorded.entry.bytes).ok()?;
        if body.name != J::NAME {
            return None;
        }
        let payload = match self.queue.encryption() {
            Some(encryption) => encryption.decrypt(&body.name, &body.payload),
            None => Ok(body.payload),
        };
        let job = payload.and_then(|payload| Ok(serde_json::from_slice(&payload)?));
        Some(PushedJob {
            id,
            job: match job {
                Ok(job) => job,
                Err(error) => panic!("a pushed `{}` cannot be read: {error}", J::NAME),
            },
            queue: recorded.queue,
            delay: recorded.entry.delay,
            unique_key: body.unique,
            is_new: recorded.is_new,
            attempts: body.extra.attempts,
            timeout: body.extra.timeout_ms.map(Duration::from_millis),
            priority,
            tags: body.options.tags.clone(),
            metadata: body.extra.metadata,
            batch: body.extra.batch.map(|place| place.id),
            chain: body.then.into_iter().map(|link| link.name).collect(),
        })
    }

    /// Asserts that a job was pushed for which the condition holds.
    ///
    /// # Panics
    /// If there is none; the message lists the jobs that were pushed.
    #[track_caller]
    pub fn assert_pushed<J: Job>(&self, condition: impl Fn(&PushedJob<J>) -> bool) {
        let pushed = self.pushed::<J>();
        assert!(
            pushed.iter().any(condition),
            "expected a push of `{}` that meets the condition; {} of that name, pushed were: {}",
            J::NAME,
            pushed.len(),
            self.all_pushed()
        );
    }

    /// Asserts that jobs of a type were pushed this often.
    ///
    /// # Panics
    /// If not; the message lists the jobs that were pushed.
    #[track_caller]
    pub fn assert_pushed_times<J: Job>(&self, times: usize) {
        let count = self.pushed::<J>().len();
        assert!(
            count == times,
            "expected {times} pushes of `{}`, found {count}; pushed were: {}",
            J::NAME,
            self.all_pushed()
        );
    }

    /// Asserts that no job of a type was pushed.
    ///
    /// # Panics
    /// If one was.
    #[track_caller]
    pub fn assert_not_pushed<J: Job>(&self) {
        self.assert_pushed_times::<J>(0);
    }

    /// Asserts that no job was pushed.
    ///
    /// # Panics
    /// If one was; the message lists the jobs that were pushed.
    #[track_caller]
    pub fn assert_nothing_pushed(&self) {
        assert!(
            self.store.recorded().is_empty(),
            "expected no push; pushed were: {}",
            self.all_pushed()
        );
    }

    /// Forgets the pushes so far. The jobs stay in the queue.
    pub fn forget_pushed(&self) {
        self.store.forget_recorded();
    }

    /// Lists all pushes: name and payload, those of an encrypted queue without payload.
    fn all_pushed(&self) -> String {
        let all = self.store.recorded().into_iter().map(|recorded| {
            Envelope::decode(&recorded.entry.bytes).map_or_else(
                |error| error.to_string(),
                |envelope| {
                    let payload = match self.queue.encryption() {
                        Some(_) => "(encrypted)".into(),
                        None => String::from_utf8_lossy(&envelope.body.payload).into_owned(),
                    };
                    format!("{} {payload} to {}", envelope.body.name, recorded.queue)
                },
            )
        });
        let all: Vec<_> = all.collect();
        if all.is_empty() { "none".into() } else { all.join(", ") }
    }

    /// Returns the current time of the queue: ms since 1970.
    pub fn now_ms(&self) -> u64 {
        self.store.time_ms()
    }

    /// Moves the queue's clock forward: jobs become due, and keys expire.
    pub fn advance(&self, time: Duration) {
        self.store.advance(time);
    }

    /// Runs jobs with this worker until none is left that it can run: those that wait, those that
    /// they push, and those that become due, for which the clock is moved forward. Delays and
    /// retries take no time; handlers take as long as they do.
    ///
    /// # Errors
    /// The errors of [`Worker::run`]; [`Error::Setting`] after 10,000 attempts, and for a quiet
    /// worker.
    pub async fn run_pending<S>(&self, worker: Worker<S>) -> Result<Report, Error>
    where
        S: Clone + Send + Sync + 'static,
    {
        self.run(worker, true).await
    }

    /// Runs jobs with this worker until none waits, without moving the clock forward.
    ///
    /// # Errors
    /// The errors of [`run_pending`](Self::run_pending).
    pub async fn run_due<S>(&self, worker: Worker<S>) -> Result<Report, Error>
    where
        S: Clone + Send + Sync + 'static,
    {
        self.run(worker, false).await
    }

    async fn run<S>(&self, worker: Worker<S>, jumps: bool) -> Result<Report, Error>
    where
        S: Clone + Send + Sync + 'static,
    {
        if worker.quiet().is_quiet() {
            return Err(Error::Setting("a quiet worker runs no jobs"));
        }
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let told = Arc::clone(&events);
        let worker = worker.on_event(move |event| told.lock().push(event.clone()));
        let queues = worker.queue_names();
        let stop = CancellationToken::new();
        let work = worker.run(stop.clone().cancelled_owned());
        let mut skipped = Duration::ZERO;
        let drive = async {
            let is_long = || events.lock().len() > MOST_RUNS;
            loop {
                self.store.until(|| is_long() || self.store.pending(&queues).now == 0).await;
                if is_long() {
                    return Err(Error::Setting("more than 10,000 attempts: a job repeats itself"));
                }
                // A permit that is given back lets the next job of its limit begin.
                let blocked = self.store.pending(&queues).blocked;
                if blocked > 0 && self.store.changes_within(GIVEN_BACK).await {
                    continue;
                }
                match self.store.next_due(&queues) {
                    Some(wait) if jumps || wait.is_zero() => {
                        skipped += wait;
                        self.store.advance(wait);
                    }
                    _ => return Ok(()),
                }
            }
        };
        let driven = async {
            let driven = drive.await;
            stop.cancel();
            driven
        };
        let (ran, driven) = tokio::join!(work, driven);
        ran.and(driven)?;
        let (mut ended, mut unhandled) = (Vec::new(), BTreeSet::new());
        for event in events.lock().drain(..) {
            match event {
                Event::Ended(end) => ended.push(end),
                Event::Unhandled { line, .. } => _ = unhandled.insert(line),
                Event::WaitsLong { .. } | Event::WaitIsOver { .. } => {}
            }
        }
        Ok(Report { ended, unhandled: unhandled.into_iter().collect(), skipped })
    }

    /// Runs each job when it is pushed: until the returned guard is dropped, a push without delay
    /// returns when its job has ended or waits for a retry. Jobs that handlers push run inside.
    /// Must be called within a tokio runtime.
    pub fn inline<S>(&self, worker: Worker<S>) -> Inline
    where
        S: Clone + Send + Sync + 'static,
    {
        self.store.set_inline(worker.queue_names());
        let stop = CancellationToken::new();
        let work = worker.concurrency(MOST_RUNS).run(stop.clone().cancelled_owned());
        let store = Arc::clone(&self.store);
        let task = tokio::spawn(async move {
            let ran = work.await;
            // A worker that is refused runs nothing: no push must wait for it.
            store.set_inline(Vec::new());
            ran
        });
        Inline { store: Arc::clone(&self.store), stop, task }
    }
}

/// Guard of [`FakeQueue::inline`].
#[must_use = "jobs run inline until this is dropped"]
#[derive(Debug)]
pub struct Inline {
    store: Arc<MemoryStore>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Inline {
    /// Ends the inline mode, and waits for jobs that still run.
    ///
    /// # Errors
    /// The errors of [`Worker::run`].
    pub async fn stop(mut self) -> Result<(), Error> {
        self.stop.cancel();
        (&mut self.task).await.map_err(Error::store)?
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        self.stop.cancel();
        self.store.set_inline(Vec::new());
    }
}

/// Builder of a [`Context`], for a handler that is called without a worker.
///
/// ```
/// use scale_queue::Context;
/// use scale_queue::testing::TestContext;
///
/// async fn handler(order: i64, context: Context) -> Result<(), std::io::Error> {
///     if context.attempt > 1 { Ok(()) } else { Err(std::io::Error::other("not yet")) }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert!(handler(7, TestContext::new().context()).await.is_err());
/// assert!(handler(7, TestContext::new().attempt(2).context()).await.is_ok());
/// # }
/// ```
#[must_use]
#[derive(Clone, Debug)]
pub struct TestContext(Context);

impl Default for TestContext {
    fn default() -> Self {
        Self::new()
    }
}

impl TestContext {
    /// Creates the context of a first attempt in the queue `default`.
    pub fn new() -> Self {
        let job = Envelope {
            id: JobId::new(),
            failed: 0,
            suspect: false,
            pushed_ms: 0,
            priority: Priority::Normal,
            group: None,
            body: Body::default(),
        };
        let (worker, stopping, encryption) = (None, CancellationToken::new(), None);
        let holder = Arc::new(Holder { worker, stopping, encryption });
        let run = Run::new(holder, job.encode());
        let store = Arc::new(MemoryStore::new());
        Self(Context::new(job.id, "default".into(), store, Arc::new(run)))
    }

    /// Sets the number of the attempt, from 1.
    pub fn attempt(mut self, attempt: u16) -> Self {
        self.0.attempt = attempt.max(1);
        self
    }

    /// Sets the error of the previous attempt.
    pub fn last_error(mut self, error: &str) -> Self {
        self.0.last_error = Some(error.to_owned());
        self
    }

    /// Sets the queue from which the job was taken.
    pub fn queue(mut self, queue: &str) -> Self {
        self.0.queue = queue.into();
        self
    }

    /// Adds an entry of metadata.
    pub fn metadata(mut self, name: &str, value: &str) -> Self {
        self.0.metadata.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets what a job of the same workflow has returned, for [`Context::output`].
    ///
    /// # Panics
    /// If the value cannot be encoded as JSON.
    #[expect(clippy::expect_used, reason = "a fault of the test")]
    pub fn output(mut self, node: &str, value: &impl Serialize) -> Self {
        let mut job = self.0.run.envelope().expect("the job of a test can be decoded");
        let place = Place { id: "test".to_owned(), number: u32::MAX };
        let options = job.body.options.node.get_or_insert_default();
        let number = options.after.len() as u32;
        options.after.push((node.to_owned(), number));
        job.body.extra.batch = Some(place.clone());
        let value = serde_json::to_vec(value).expect("an output that can be encoded");
        let (key, note) = result::output(&Place { number, ..place.clone() }, value);
        let put = self.0.store.put_note(&key, &note, Duration::from_hours(1)).now_or_never();
        put.expect("the store is in memory").expect("the store is in memory");
        (self.0.batch, self.0.place) = (Some(place.id.clone()), Some(place));
        self.0.run = Arc::new(Run::new(Arc::clone(&self.0.run.holder), job.encode()));
        self
    }

    /// Lets the worker be about to stop: the next checkpoint stores the cursor and fails.
    pub fn stopping(self) -> Self {
        self.0.run.holder.stopping.cancel();
        self
    }

    /// Cancels the job with a reason.
    pub fn cancelled(self, reason: CancelReason) -> Self {
        let cancelled: &Cancelled = &self.0.cancelled;
        cancelled.cancel(reason);
        self
    }

    /// Returns the context.
    pub fn context(self) -> Context {
        self.0
    }
}
