//! Workers: they fetch jobs, run their handlers, and store the outcomes.
//!
//! | when | then |
//! | --- | --- |
//! | a handler returns `Ok` | the job is removed |
//! | a handler of a [chain](crate::Queue::chain)'s job returns `Ok` | the next job is pushed, then this one is removed; the next job is pushed once even if the worker dies in between |
//! | a handler returns an error, panics or takes too long | the job is retried by its [`Retry`](crate::Retry), and is dead after its last attempt |
//! | a handler returns [`Discard`](crate::outcome::Discard), in any wrapper | the job is dead at once |
//! | a handler returns [`Snooze`](crate::outcome::Snooze), in any wrapper | the job is run again after that delay, the attempt not counted |
//! | this worker has no handler of that name, or the job's format is newer | the job waits for a worker that can handle it, no attempt counted; dead after [`hand_back_for`](Worker::hand_back_for) |
//! | the job's payload does not fit its type | the job is handed back with a growing delay, no attempt counted, because another worker may be newer; dead after [`hand_back_for`](Worker::hand_back_for), with the reason |
//! | the worker is stopped | jobs that have not begun are handed back at once; running jobs may end until the deadline, then they are handed back |
//! | the worker dies | its jobs wait again when its lease has expired; an attempt is counted for jobs whose handler had begun, or could have begun since the worker's last round trip, and they become suspects: with jobs of a millisecond that may be hundreds |
//! | a job is a suspect | it is tried alone: its worker begins no other job until all running jobs have run for 250 ms, and then for 250 ms more; four times as long after each further crash, at most 16 s. If the worker dies meanwhile, the attempt is counted for this job alone |
//! | a job kills its worker later than that | an attempt is also counted for jobs that had begun beside it, until its time alone is longer |
//! | a job's workers died, and its attempts are used up | it is dead, after at least five attempts; a crash counts like a failure |
//! | the network is cut for longer than a lease | the jobs belong to other workers: their handlers are cancelled, and late outcomes are refused |
//! | a job is [cancelled](crate::Queue::cancel) | its handler's future is dropped, and the job is dead with the reason `cancelled` |
//! | a job's [batch](crate::Queue::batch) was cancelled before the job began | it ends without a run, and counts as done |
//! | a job's [limits](crate::Job::limits) have no room | it waits in their line, the attempt not counted: see the table of [`Limit`](crate::Limit) |
//! | payloads are large, or the link is slow | a fetch ends after 4 MiB, and earlier after an answer that was late |
//! | jobs are held by no live worker | a worker looks for them at its start and every five minutes, and reclaims them |
//! | the store fails | the worker waits, 50 ms at first and at most 2 s, and continues; nothing is lost |
//!
//! The job's [`Context`] has the [reason](crate::Context::cancel_reason) of a cancellation.

mod admission;
mod background;
mod death;
mod engine;
mod event;
mod extract;
mod handler;
mod queue_state;
mod quiet;
mod round_trip;
mod slots;

use std::future::Future;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use tower::{Layer, Service};

pub use self::death::Died;
use self::death::OnDeath;
use self::event::Listeners;
pub use self::event::{Ended, Event, Outcome};
pub use self::extract::{FromDelivery, FromRef, HandlerResult, JobHandler, State};
use self::handler::Routes;
pub use self::handler::{Delivery, Handler};
pub use self::quiet::Quiet;
pub use crate::checkpoint::{CheckpointError, Step};
pub use crate::context::CancelReason;
use crate::context::Context;
use crate::ended::KeepEnded;
use crate::error::Error;
use crate::job::Job;
use crate::limit::LONGEST;
use crate::options::IntoPush;
pub use crate::outcome::BoxError;
use crate::queue::{Queue, checked};

/// Policy by which a worker chooses between queues that have jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// The first named queue that has jobs. A busy queue starves those after it.
    #[default]
    Strict,
    /// Each queue that has jobs gets a share of the slots by its weight; none starves.
    Weighted,
    /// Like `Weighted`, with weights from the lag of each queue, read every 2 s: the larger the
    /// lag, the larger the share.
    Balanced,
}

const MOST_PLACES: usize = 100_000;

/// Fetches jobs and runs their handlers. Set the queues, add handlers, then call
/// [`run`](Worker::run).
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
pub struct Worker<S = ()> {
    queue: Queue,
    name: String,
    lanes: Vec<(String, u32)>,
    order: Order,
    concurrency: usize,
    /// For each queue, the number of slots kept for it, and the number it may use.
    bounds: Vec<(String, usize, usize)>,
    lease: Duration,
    grace: Duration,
    hand_back_for: Duration,
    routes: Routes,
    listeners: Listeners,
    on_death: Option<OnDeath>,
    quiet: Quiet,
    /// Longest wait of the jobs of a queue before an event is told.
    waits: Vec<(String, Duration)>,
    /// Time for which log lines of jobs are kept.
    keep_logs: Option<Duration>,
    /// Bounds on ended jobs that are kept.
    keep_ended: Option<KeepEnded>,
    #[cfg(feature = "opentelemetry")]
    continues_traces: bool,
    state: S,
}

impl Worker {
    /// Creates a worker of the queue `default` that runs 10 jobs at a time.
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
            listeners: Listeners::default(),
            on_death: None,
            quiet: Quiet::new(),
            waits: Vec::new(),
            keep_logs: None,
            keep_ended: None,
            #[cfg(feature = "opentelemetry")]
            continues_traces: false,
            state: (),
        }
    }
}

impl<S: Clone + Send + Sync + 'static> Worker<S> {
    /// Sets the state that handlers added from now on can take as [`State`]. Handlers added before
    /// keep the previous one.
    pub fn with_state<T: Clone + Send + Sync + 'static>(self, state: T) -> Worker<T> {
        let Self { queue, name, lanes, order, concurrency, bounds, .. } = self;
        let Self { lease, grace, hand_back_for, routes, listeners, on_death, .. } = self;
        let Self { quiet, waits, keep_logs, keep_ended, .. } = self;
        Worker {
            #[cfg(feature = "opentelemetry")]
            continues_traces: self.continues_traces,
            queue,
            name,
            lanes,
            order,
            concurrency,
            bounds,
            lease,
            grace,
            hand_back_for,
            routes,
            listeners,
            on_death,
            quiet,
            waits,
            keep_logs,
            keep_ended,
            state,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn queue_names(&self) -> Vec<String> {
        self.lanes.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Sets a label. It need not be unique, because each start draws a new identity.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.chars().filter(char::is_ascii_graphic).take(64).collect();
        self
    }

    /// Sets the worker's queues, by decreasing priority.
    pub fn queues<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.lanes = distinct(names.into_iter().map(|name| (name.into(), 1)));
        self.order = Order::Strict;
        self
    }

    /// Sets the worker's queues and their weights: of ten slots, `[("high", 7), ("low", 3)]` gives
    /// three to `low`, whatever the duration of jobs. The slots of a queue without jobs are used by
    /// the others.
    pub fn weighted<N: Into<String>>(mut self, queues: impl IntoIterator<Item = (N, u32)>) -> Self {
        self.lanes = distinct(
            queues.into_iter().map(|(name, weight)| (name.into(), weight.clamp(1, 1_000_000))),
        );
        self.order = Order::Weighted;
        self
    }

    /// Sets the worker's queues, each with a share of the slots that follows its lag, within the
    /// bounds of [`concurrency_of`](Worker::concurrency_of).
    pub fn balanced<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.lanes = distinct(names.into_iter().map(|name| (name.into(), 1)));
        self.order = Order::Balanced;
        self
    }

    /// Sets how many jobs run at a time, at most 100,000. Default: 10.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs.clamp(1, MOST_PLACES);
        self
    }

    /// Sets how many jobs of one of its queues run at a time. The end of the range is the maximum;
    /// its beginning is the number of slots kept free for this queue, even if other queues have
    /// jobs. Default: `0..`, no bounds of its own.
    ///
    /// `("reports", ..=2)` keeps long jobs from taking every slot; `("mail", 3..)` keeps three
    /// slots for urgent jobs. A worker has at least as many slots as it keeps. The bounds are per
    /// worker; a [`Limit`](crate::Limit) bounds the jobs of the whole fleet.
    ///
    /// ```
    /// # use scale_queue::{Queue, Worker};
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue)
    ///     .balanced(["mail", "reports"])
    ///     .concurrency(16)
    ///     .concurrency_of("mail", 3..)
    ///     .concurrency_of("reports", 1..=8);
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

    /// Sets how long the store waits for a heartbeat before it gives the worker's jobs to others.
    /// Heartbeats are sent at a third of this interval. Default: 30 s. The lease does not limit the
    /// duration of a job, which may be hours.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_millis(100), LONGEST);
        self
    }

    /// Makes the push of a job the parent of the job's span, so that both are in one trace.
    /// Default: the span begins a trace of its own, with a link to the push: see
    /// [`trace`](crate::trace).
    #[cfg(feature = "opentelemetry")]
    pub fn continue_traces(mut self) -> Self {
        self.continues_traces = true;
        self
    }

    /// Keeps jobs of each queue that are done or dead: the newest `most`, no longer than `age`.
    /// Costs a call to the store for each job: see [`ended`](crate::ended). Default: a job that is
    /// done is removed.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # use std::time::Duration;
    /// #[derive(Serialize, Deserialize)]
    /// struct Invoice { customer: u32 }
    ///
    /// impl Job for Invoice {
    ///     const NAME: &'static str = "invoice";
    ///
    ///     fn tags(&self) -> Vec<String> {
    ///         vec![format!("customer:{}", self.customer)]
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue).keep_ended(10_000, Duration::from_hours(24));
    /// let worker = worker.handle(async |_: Invoice| {});
    /// queue.push_many((1..=3).map(|customer| Invoice { customer })).await?;
    /// # tokio::spawn(worker.run(std::future::pending::<()>()));
    /// # while queue.stats("default").await?.done_total < 3 { tokio::task::yield_now().await; }
    /// let ended = queue.ended_with_tag("default", "customer:2", 0, 10).await?;
    /// assert_eq!((ended.len(), ended[0].reason.as_deref()), (1, None));
    /// # Ok(()) }
    /// ```
    pub fn keep_ended(mut self, most: usize, age: Duration) -> Self {
        self.keep_ended = Some(KeepEnded { most: most.max(1), age: age.min(LONGEST) });
        self
    }

    /// Keeps the log lines of jobs for this time after the last one: see [`log`](crate::log).
    pub fn keep_logs(mut self, time: Duration) -> Self {
        self.keep_logs = Some(time);
        self
    }

    /// Sets how long running jobs may continue after the worker is stopped. Default: 25 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace.min(LONGEST);
        self
    }

    /// Sets how long jobs that this worker cannot handle are handed back to others before they are
    /// dead: those without a handler, with a newer format, or with a payload that does not fit
    /// their type. Default: a day, which is longer than a rolling deployment. Zero: dead at once.
    pub fn hand_back_for(mut self, time: Duration) -> Self {
        self.hand_back_for = time.min(LONGEST);
        self
    }

    /// Adds a function that handles one type of job. Its arguments are the job and, in any order,
    /// up to five others: the [`Context`], a [`State`], types that implement [`FromDelivery`].
    ///
    /// ```
    /// # use scale_queue::{Context, Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Resize { image: u32 }
    /// # impl Job for Resize { const NAME: &'static str = "resize"; }
    /// # #[derive(Serialize, Deserialize)] struct Publish { image: u32 }
    /// # impl Job for Publish { const NAME: &'static str = "publish"; }
    /// # let queue = Queue::memory();
    /// async fn publish(context: Context, job: Publish) -> std::io::Result<()> {
    ///     println!("image {}, attempt {}", job.image, context.attempt);
    ///     Ok(())
    /// }
    ///
    /// let worker = Worker::new(&queue)
    ///     .handle(|job: Resize| async move { println!("image {}", job.image) })
    ///     .handle(publish);
    /// ```
    pub fn handle<A, H: JobHandler<A, S>>(mut self, function: H) -> Self {
        self.routes.add::<H::Job>(handler::function(function, self.state.clone()));
        self
    }

    /// Calls a function at each [`Event`]: the end of an attempt, a job that no handler is for. The
    /// function runs in the worker's task, so it must not block; a panic is caught. It may hear of
    /// an end that is not stored afterwards, because the store failed or the lease was lost: then
    /// the job runs again.
    ///
    /// ```
    /// # use scale_queue::{Queue, Worker};
    /// use scale_queue::worker::{Event, Outcome};
    ///
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue).on_event(|event| {
    ///     if let Event::Ended(ended) = event
    ///         && let Outcome::Dead { reason } = &ended.outcome
    ///     {
    ///         eprintln!("{} is dead: {reason}", ended.name);
    ///     }
    /// });
    /// ```
    pub fn on_event(mut self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listeners.add(listener);
        self
    }

    /// Returns a switch that makes the worker quiet: it begins no more jobs, hands back those that
    /// have not begun, and finishes the others. Readiness of a process that is about to be replaced
    /// can follow it. [`Queue::set_quiet`] does the same from another process.
    pub fn quiet(&self) -> Quiet {
        self.quiet.clone()
    }

    /// Tells [`Event::WaitsLong`] when the oldest waiting job of one of the worker's queues was
    /// pushed that long ago, and [`Event::WaitIsOver`] when the wait is half as long again. Delays
    /// count, so watch queues whose jobs have none. One
    /// worker of the fleet tells it. Queues are looked at about every 5 s.
    pub fn tell_wait(mut self, queue: &str, wait: Duration) -> Self {
        self.waits.push((queue.to_owned(), wait));
        self
    }

    /// Pushes a job when this worker makes a job dead, if the function returns one. It is pushed
    /// before the death is stored, and once for each job within ten minutes; if the push fails,
    /// both are tried again. The function runs in the worker's task, so it must not block.
    ///
    /// A job that is drained, expired or undecodable dies without it, and in a database also one
    /// that is [cancelled](Queue::cancel) before a worker has fetched it.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct TellAdmin { what: String }
    /// # impl Job for TellAdmin { const NAME: &'static str = "tell-admin"; }
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue).on_death(|died| {
    ///     // Not for the death of the message itself.
    ///     let what = format!("{} is dead: {}", died.name, died.reason);
    ///     (died.name != TellAdmin::NAME).then_some(TellAdmin { what })
    /// });
    /// ```
    pub fn on_death<P: IntoPush>(
        mut self,
        follow: impl Fn(&Died) -> Option<P> + Send + Sync + 'static,
    ) -> Self {
        self.on_death = Some(OnDeath(Arc::new(move |queue, died| {
            let Some(job) = follow(died) else { return Ok(None) };
            let (job, options) = job.into_push();
            queue.encoded(&job, &options).map(Some)
        })));
        self
    }

    /// Adds a tower service that handles one type of job.
    pub fn service<J, H>(mut self, service: H) -> Self
    where
        J: Job,
        H: Service<(J, Context), Response = ()> + Clone + Send + Sync + 'static,
        H::Future: Send + 'static,
        H::Error: Into<BoxError>,
    {
        self.routes.add::<J>(handler::service(service));
        self
    }

    /// Wraps all handlers of this worker in a tower layer, also those added later. The layer added
    /// first is the outermost. Around all of them the worker checks limits, the timeout and
    /// cancellation, and catches panics.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Handler> + Send + Sync + 'static,
        L::Service: Service<Delivery, Response = ()> + Clone + Send + Sync + 'static,
        <L::Service as Service<Delivery>>::Future: Send + 'static,
        <L::Service as Service<Delivery>>::Error: Into<BoxError>,
    {
        self.routes.wrap(None, layer);
        self
    }

    /// Wraps the handler of one type of job in a tower layer, inside the layers of all handlers.
    pub fn layer_for<J, L>(mut self, layer: L) -> Self
    where
        J: Job,
        L: Layer<Handler> + Send + Sync + 'static,
        L::Service: Service<Delivery, Response = ()> + Clone + Send + Sync + 'static,
        <L::Service as Service<Delivery>>::Future: Send + 'static,
        <L::Service as Service<Delivery>>::Error: Into<BoxError>,
    {
        self.routes.wrap(Some(J::NAME), layer);
        self
    }

    /// Runs until `stop` completes, then shuts down as described in the [module's table](self).
    /// Dropping the future is like a crash: handlers are cancelled, and other workers get the jobs
    /// when the lease has expired.
    ///
    /// # Errors
    /// [`Error::Name`] for an invalid queue name, [`Error::NotServed`] for a bound of a queue that
    /// is not among the worker's, [`Error::Handlers`] if a job has two handlers, or a layer but no
    /// handler. Errors of the store do not end the worker.
    pub async fn run<T>(self, stop: impl Future<Output = T>) -> Result<(), Error> {
        let mut worker = self.with_state(());
        worker.routes.finish()?;
        let stop = async { drop(stop.await) };
        worker.run_until(stop).await
    }
}

impl Worker {
    async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        for (name, _) in &self.lanes {
            checked(name)?;
        }
        let named = self.bounds.iter().map(|(name, ..)| name);
        let named = named.chain(self.waits.iter().map(|(name, _)| name));
        for name in named {
            if self.lanes.iter().all(|(lane, _)| lane != name) {
                return Err(Error::NotServed(name.clone()));
            }
        }
        engine::Engine::new(self).run(stop).await;
        Ok(())
    }
}

/// Removes queues that are named twice.
fn distinct(queues: impl Iterator<Item = (String, u32)>) -> Vec<(String, u32)> {
    let mut known: Vec<(String, u32)> = Vec::new();
    for (name, weight) in queues {
        if known.iter().all(|(other, _)| *other != name) {
            known.push((name, weight));
        }
    }
    known
}
