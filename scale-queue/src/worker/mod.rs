//! The worker: fetches jobs, runs their handlers, says how they ended.
//!
//! | when | then |
//! | --- | --- |
//! | a handler returns `Ok` | the job is gone |
//! | it does, and is one of a [chain](crate::Queue::chain) | the next one is pushed first, then the job is gone; who dies in between pushes it once all the same |
//! | it returns an error, panics or takes too long | it is tried again by the job's [`Retry`](crate::Retry), and dead after its last attempt |
//! | it returns [`Discard`](crate::Discard), in whatever wrapper | dead at once |
//! | it returns [`Later`](crate::Later), in whatever wrapper | tried again then, the attempt not counted |
//! | no handler of that name is here, or its format is newer | it waits for a worker that has one, no attempt counted; dead after [`hand_back_for`](Worker::hand_back_for) |
//! | the job's content does not fit its type | handed back with a growing delay, no attempt counted: another worker may be newer; dead after [`hand_back_for`](Worker::hand_back_for), with the reason |
//! | the worker is told to stop | what has not begun is handed back at once; what runs may end until the deadline, then it is handed back |
//! | the worker dies | its jobs wait again when its lease has run out; one attempt is counted of those whose handler had begun, or could have begun since the worker last spoke to the store, and they become suspects: with jobs of a millisecond that may be hundreds |
//! | a job is a suspect | it is tried alone: its worker begins no other until all that run have run for 250 ms, and for as long again; four times as long after each further crash, 16 s at most. Should the worker die meanwhile, the attempt is counted of this one alone |
//! | a job kills its worker later than that | those that had begun beside it pay too, until its time alone is longer |
//! | a job's workers died under it, and its attempts are used up | it is dead, once it has been tried five times at the least; a crash counts like a failure |
//! | the network is cut for longer than a lease | the jobs are somebody else's: their handlers are cancelled, and what they still report is refused |
//! | a job is [cancelled](crate::Queue::cancel) | its handler's future is dropped, and it lies among the dead with the reason `cancelled` |
//! | its [batch](crate::Queue::batch) was cancelled before it began | it ends unrun, and counts as done |
//! | its [limits](crate::Job::limits) have no room | it waits in their line, the attempt not counted: the table of [`Limit`](crate::Limit) |
//! | payloads are large, or the link is slow | a fetch ends after 4 MiB, and sooner after an answer that was late |
//! | jobs are held by nobody that lives | a worker looks for them at its start and every five minutes, and takes them back |
//! | the store fails | the worker waits, 50 ms at first and 2 s at most, and goes on; nothing is lost |
//!
//! A [`Context`] tells a handler that is to stop [why](crate::Context::cancel_reason).

mod admission;
mod background;
mod engine;
mod exchange;
mod handler;
mod lane;
mod places;

use std::future::Future;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use tower::{Layer, Service};

use self::handler::Routes;
pub use self::handler::{Delivery, Handler};
pub use crate::context::CancelReason;
use crate::context::Context;
use crate::error::Error;
use crate::job::Job;
use crate::limit::LONGEST;
pub use crate::outcome::BoxError;
use crate::queue::{Queue, checked};

/// How a worker chooses between queues that have something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The first queue named that has something. A busy one starves those after it.
    #[default]
    Strict,
    /// Each queue that has something gets a share of the places by its weight, none starves.
    Weighted,
    /// The same, weighted by how late each queue is, looked at every 2 s: the later, the larger its share.
    Balanced,
}

const MOST_PLACES: usize = 100_000;

/// Runs handlers. Name its queues, give it handlers, then [`run`](Worker::run) it.
///
/// ```
/// # use scale_queue::{Context, Job, Queue, Worker};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct SendReceipt { order: i64 }
/// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_queue::Error> {
/// # let queue = Queue::memory();
/// # queue.push(SendReceipt { order: 7 }).await?;
/// # let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// # let stop = std::sync::Mutex::new(Some(stop));
/// Worker::new(&queue)
///     .queues(["high", "default", "low"])
///     .concurrency(16)
///     .handle(move |job: SendReceipt, context: Context| {
///         println!("receipt for order {}, attempt {}", job.order, context.attempt);
/// #       drop(stop.lock().unwrap().take());
///         async { Ok::<(), std::io::Error>(()) }
///     })
///     .run(async { stopped.await.ok(); })
///     .await?;
/// # assert_eq!(queue.stats("default").await?.done_total, 1);
/// # Ok(()) }
/// ```
#[must_use = "a worker does nothing until it runs"]
#[derive(Debug)]
pub struct Worker {
    queue: Queue,
    name: String,
    lanes: Vec<(String, u32)>,
    order: Order,
    concurrency: usize,
    /// By queue: places kept for it, places it may have.
    bounds: Vec<(String, usize, usize)>,
    lease: Duration,
    grace: Duration,
    hand_back_for: Duration,
    routes: Routes,
}

impl Worker {
    /// A worker of the queue `default`, 10 jobs at a time.
    pub fn new(queue: &Queue) -> Self {
        Self {
            queue: queue.clone(),
            name: "worker".into(),
            lanes: vec![("default".into(), 1)],
            order: Order::Strict,
            concurrency: 10,
            bounds: Vec::new(),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(25),
            hand_back_for: Duration::from_hours(24),
            routes: Routes::default(),
        }
    }

    /// A label; it need not be unique: a worker's identity is drawn anew at each start.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.chars().filter(char::is_ascii_graphic).take(64).collect();
        self
    }

    /// The queues it works on, the most urgent first.
    pub fn queues<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.lanes = distinct(names.into_iter().map(|name| (name.into(), 1)));
        self.order = Order::Strict;
        self
    }

    /// The queues it works on, each with its weight: of ten places, `[("high", 7), ("low", 3)]` gives three to `low`, however long jobs
    /// take. Who has nothing leaves its places to the others.
    pub fn weighted<N: Into<String>>(mut self, queues: impl IntoIterator<Item = (N, u32)>) -> Self {
        self.lanes = distinct(queues.into_iter().map(|(name, weight)| (name.into(), weight.clamp(1, 1_000_000))));
        self.order = Order::Weighted;
        self
    }

    /// The queues it works on, each with a share of the places that follows how late it is; between the bounds of
    /// [`concurrency_of`](Worker::concurrency_of).
    pub fn balanced<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.lanes = distinct(names.into_iter().map(|name| (name.into(), 1)));
        self.order = Order::Balanced;
        self
    }

    /// How many jobs run at a time, at most 100,000. Default: 10.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs.clamp(1, MOST_PLACES);
        self
    }

    /// How many jobs of one of its queues run at a time: never more than the range's end, and so many places as its beginning says are
    /// kept free for it, whatever else there is to do. Default: `0..`, whatever there is a place for.
    ///
    /// `("reports", ..=2)` keeps long jobs from taking every place, `("mail", 3..)` keeps three for what must not wait. A worker has at
    /// least as many places as it keeps. This bounds one worker; a bound for all of them together is a [`Limit`](crate::Limit).
    ///
    /// ```
    /// # use scale_queue::{Queue, Worker};
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue).balanced(["mail", "reports"]).concurrency(16).concurrency_of("mail", 3..).concurrency_of("reports", 1..=8);
    /// ```
    pub fn concurrency_of(mut self, queue: &str, jobs: impl RangeBounds<usize>) -> Self {
        let least = match jobs.start_bound() {
            Bound::Included(least) => *least,
            Bound::Excluded(less) => less.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let most = match jobs.end_bound() {
            Bound::Included(most) => *most,
            Bound::Excluded(more) => more.saturating_sub(1),
            Bound::Unbounded => usize::MAX,
        };
        self.bounds.push((queue.into(), least.min(MOST_PLACES), most.max(least).max(1)));
        self
    }

    /// How long the store waits for a sign of life before it gives the worker's jobs to others; one is given three times as often.
    /// Default: 30 s. It bounds nothing about a job: that may run for hours.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_millis(100), LONGEST);
        self
    }

    /// How long running jobs may take to end once the worker is told to stop. Default: 25 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace.min(LONGEST);
        self
    }

    /// How long jobs that this worker cannot handle or read are handed back to others before they are dead: a kind without a handler, a
    /// newer format, a payload that does not fit its type. Default: a day, which a rolling deploy does not take. Zero: dead at once.
    pub fn hand_back_for(mut self, time: Duration) -> Self {
        self.hand_back_for = time.min(LONGEST);
        self
    }

    /// A function that handles one kind of job.
    pub fn handle<J, F, Fut, E>(mut self, function: F) -> Self
    where
        J: Job,
        F: Fn(J, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.routes.add::<J>(handler::function(function));
        self
    }

    /// A tower service that handles one kind of job.
    pub fn service<J, S>(mut self, service: S) -> Self
    where
        J: Job,
        S: Service<(J, Context), Response = ()> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
    {
        self.routes.add::<J>(handler::service(service));
        self
    }

    /// Puts a tower layer around every handler given so far.
    pub fn layer<L>(mut self, layer: &L) -> Self
    where
        L: Layer<Handler>,
        L::Service: Service<Delivery, Response = ()> + Clone + Send + Sync + 'static,
        <L::Service as Service<Delivery>>::Future: Send + 'static,
        <L::Service as Service<Delivery>>::Error: Into<BoxError>,
    {
        self.routes.wrap(layer);
        self
    }

    /// Works until `stop` ends, then shuts down as described in the [module's table](self). Dropping the future is like a crash:
    /// handlers are cancelled, and the jobs come back when the lease has run out.
    ///
    /// # Errors
    /// [`Error::Name`] for a queue's name that is none, [`Error::NotServed`] for a bound of a queue that is not among the worker's. Errors of
    /// the store do not end it.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        for (name, _) in &self.lanes {
            checked(name)?;
        }
        if let Some((other, ..)) = self.bounds.iter().find(|(name, ..)| self.lanes.iter().all(|(lane, _)| lane != name)) {
            return Err(Error::NotServed(other.clone()));
        }
        engine::Engine::new(self).run(stop).await;
        Ok(())
    }
}

/// A queue that is named twice is one.
fn distinct(queues: impl Iterator<Item = (String, u32)>) -> Vec<(String, u32)> {
    let mut known: Vec<(String, u32)> = Vec::new();
    for (name, weight) in queues {
        if known.iter().all(|(other, _)| *other != name) {
            known.push((name, weight));
        }
    }
    known
}
