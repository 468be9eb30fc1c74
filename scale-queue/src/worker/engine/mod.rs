//! Main loop of a worker. One task makes all decisions; handlers run in separate tasks and only
//! report how they ended.
//!
//! At most one round trip to the store is under way. Jobs that end meanwhile are reported with the
//! next one, so that calls are batched under load. A round trip is never dropped half way. If its
//! answer is lost, the worker first asks the store which jobs it holds.

mod fetch;
mod membership;
mod settle;
mod trial;
mod wake_ups;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use self::fetch::MOST_BYTES;
use self::trial::Alone;
use super::CancelReason;
use super::admission::{Held, PassedOn, PermitTerms, TakeOver};
use super::death::OnDeath;
use super::event::Listeners;
use super::handler::{Delivery, Routes, StartOptions, attempt};
use super::queue_state::QueueState;
use super::quiet::Quiet;
use super::round_trip::Answer;
use super::slots::Slots;
use super::{Order, Worker};
use crate::checkpoint::{Holder, Run};
use crate::context::{Cancelled, Context};
use crate::encryption::PayloadEncryption;
use crate::ended::KeepEnded;
use crate::format::Envelope;
use crate::job::JobId;
use crate::log::JobLog;
use crate::outcome::{Ending, plain_failures};
use crate::queue::Queue;
use crate::registry;
use crate::result;
use crate::retry::Retry;
use crate::store::{Store, WorkerId};

/// Number of crashes after which a job is assumed to be their cause, unless its retry policy allows
/// more attempts.
const MAX_CRASHES: u16 = 5;
const CRASHED: &str = "its worker died, and its attempts are used up";
/// Delay before a failed heartbeat is repeated.
const BEAT_AGAIN: Duration = Duration::from_millis(100);
/// Longest pause of a stopping worker: it has only its grace period to store how its jobs ended.
const LONGEST_LAST_PAUSE: Duration = Duration::from_millis(100);
/// Interval at which a worker asks the store which jobs it holds, even without a known fault.
const AUDIT: Duration = Duration::from_mins(1);
/// Interval at which [`Order::Balanced`] reads the lag of its queues.
const WEIGH: Duration = Duration::from_secs(2);
/// Time after the grace period for which a stopping worker keeps trying to reach the store.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Engine {
    store: Arc<dyn Store>,
    worker: WorkerId,
    lanes: Vec<QueueState>,
    slots: Slots,
    lease: Duration,
    grace: Duration,
    hand_back_for: Duration,
    terms: Arc<PermitTerms>,
    routes: Routes,
    listeners: Listeners,
    on_death: Option<OnDeath>,
    quiet: Quiet,
    waits: Vec<(String, Duration)>,
    keep_logs: Option<Duration>,
    keep_ended: Option<KeepEnded>,
    #[cfg(feature = "opentelemetry")]
    continues_traces: bool,
    queue: Queue,
    holder: Arc<Holder>,
    encryption: Option<PayloadEncryption>,
    running: HashMap<JobId, Running>,
    /// A suspect that runs alone, or will.
    alone: Option<Alone>,
    /// True if the round trip under way reports the trial's state.
    telling_trial: bool,
    /// Jobs that were next in line when a job of this worker ended.
    taken_over: Option<mpsc::UnboundedReceiver<PassedOn>>,
    /// Tags of jobs taken over since the round trip under way began: its answer does not include
    /// them.
    taken_since: HashSet<Vec<u8>>,
    /// Permits of the jobs taken over, until they begin.
    held: HashMap<JobId, Held>,
    /// Byte limit of the next fetch.
    max_bytes: usize,
    last_round_trip: Instant,
    /// Start of the last round trip that the store answered.
    heard: Instant,
    /// Times of the first and the last failure, or delay of more than a lease, in the current
    /// series.
    trouble: Option<(Instant, Instant)>,
    /// Time before which no round trip is made after a failure, and the length of the pause.
    pause: Option<(Instant, Duration)>,
    /// Time of the last registration, and what it reported: the number of running jobs, and whether
    /// the worker is quiet.
    registered: Option<(Instant, (usize, bool))>,
    started_ms: u64,
    finished: mpsc::UnboundedSender<(JobId, Ending)>,
    /// Receives each queue at which the worker is no longer listed as idle.
    unlisted: mpsc::UnboundedSender<usize>,
}

struct Running {
    lane: usize,
    /// Name of the job.
    name: &'static str,
    run: Arc<Run>,
    /// True if its end is only an acknowledgement: no unique key to release, no chain or batch to
    /// continue.
    plain: bool,
    retry: Retry,
    since: Instant,
    cancel: Cancelled,
    /// True if its cancellation was requested.
    withdrawn: bool,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // No permit is passed on to a worker that ends.
        self.terms.stopping.cancel();
        for running in self.running.values() {
            running.cancel.cancel(CancelReason::Shutdown);
        }
    }
}

impl Engine {
    pub(super) fn new(worker: Worker) -> Self {
        let now = Instant::now();
        let (finished, _) = mpsc::unbounded_channel();
        let (unlisted, _) = mpsc::unbounded_channel();
        let mut lanes: Vec<_> =
            worker.lanes.iter().map(|(name, weight)| QueueState::new(name, *weight, now)).collect();
        for (name, least, most) in worker.bounds {
            for lane in lanes.iter_mut().filter(|lane| *lane.name == *name) {
                (lane.least, lane.most) = (least, most);
            }
        }
        let concurrency = worker.concurrency.max(lanes.iter().map(|lane| lane.least).sum());
        let id: WorkerId = format!("{}-{}", worker.name, Uuid::now_v7().simple()).into();
        let (passed_on, taken_over) = mpsc::unbounded_channel();
        let terms = PermitTerms {
            worker: Arc::clone(&id),
            life: worker.lease.clamp(Duration::from_secs(2), Duration::from_secs(30)),
            order: worker.lanes.iter().map(|(name, _)| name.clone()).collect(),
            strict: worker.order == Order::Strict,
            lease: worker.lease,
            passed_on,
            stopping: CancellationToken::new(),
            full: worker.lanes.iter().map(|_| AtomicBool::new(false)).collect(),
            take_over: worker.lanes.iter().map(|_| AtomicU8::new(TakeOver::Closed as u8)).collect(),
            passing: AtomicUsize::new(0),
        };
        let holder = Holder {
            worker: Some(Arc::clone(&id)),
            stopping: terms.stopping.clone(),
            encryption: worker.queue.encryption().cloned(),
        };
        Self {
            store: Arc::clone(worker.queue.store()),
            worker: id,
            lanes,
            slots: Slots { order: worker.order, concurrency },
            lease: worker.lease,
            grace: worker.grace,
            hand_back_for: worker.hand_back_for,
            terms: Arc::new(terms),
            routes: worker.routes,
            listeners: worker.listeners,
            on_death: worker.on_death,
            quiet: worker.quiet,
            waits: worker.waits,
            keep_logs: worker.keep_logs,
            keep_ended: worker.keep_ended,
            #[cfg(feature = "opentelemetry")]
            continues_traces: worker.continues_traces,
            queue: worker.queue.clone(),
            holder: Arc::new(holder),
            encryption: worker.queue.encryption().cloned(),
            running: HashMap::new(),
            alone: None,
            telling_trial: false,
            taken_over: Some(taken_over),
            taken_since: HashSet::new(),
            held: HashMap::new(),
            max_bytes: MOST_BYTES,
            last_round_trip: now,
            heard: now,
            trouble: None,
            pause: None,
            registered: None,
            started_ms: worker.queue.store().now_ms(),
            finished,
            unlisted,
        }
    }

    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        let (sender, mut finished) = mpsc::unbounded_channel();
        self.finished = sender;
        let (sender, mut unlisted) = mpsc::unbounded_channel();
        self.unlisted = sender;
        let Some(mut taken_over) = self.taken_over.take() else { return };
        let mut wakes = self.store.wake_ups(&self.worker).fuse();
        let mut round_trip: OptionFuture<BoxFuture<'static, Answer>> = None.into();
        let mut busy = false;
        let mut beats: OptionFuture<BoxFuture<'static, Vec<(usize, Option<bool>)>>> = None.into();
        let mut beat = tokio::time::interval(self.lease / 3);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut audit = tokio::time::interval_at(Instant::now() + AUDIT, AUDIT);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = pin!(stop.fuse());
        let mut deadline: Option<Instant> = None;
        let mut leaving: OptionFuture<BoxFuture<'static, ()>> = None.into();
        let mut left = false;
        let mut endings = Vec::with_capacity(256);
        let mut weights: OptionFuture<BoxFuture<'static, Vec<u32>>> = None.into();
        let mut registering: OptionFuture<BoxFuture<'static, ()>> = None.into();
        // Aborted when this future ends.
        let mut background = JoinSet::new();
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        background
            .spawn(super::background::reclaim_orphans(Arc::clone(&self.store), names.clone()));
        background.spawn(super::background::keep_history(Arc::clone(&self.store), names));
        let (worker, quiet) = (self.worker.clone(), self.quiet.clone());
        background.spawn(super::quiet::ask(Arc::clone(&self.store), worker, quiet));
        if !self.waits.is_empty() {
            let (waits, listeners) = (std::mem::take(&mut self.waits), self.listeners.clone());
            let store = Arc::clone(&self.store);
            background.spawn(super::background::tell_waits(store, waits, listeners));
        }
        let mut quiet = self.quiet.watch();
        if self.quiet.is_quiet() {
            self.stop_sleeping();
        }
        let mut registry_tick = tokio::time::interval(registry::MIN_HEARTBEAT_INTERVAL);
        registry_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rebalance_tick = tokio::time::interval(WEIGH);
        rebalance_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match deadline {
                None => {
                    if self.quiet.is_quiet() {
                        self.hand_back();
                    } else {
                        self.start_jobs();
                    }
                    self.set_doors();
                    self.pass_alarms_on();
                }
                Some(deadline) => {
                    self.hand_back();
                    let now = Instant::now();
                    if now >= deadline {
                        self.running.values().for_each(|r| r.cancel.cancel(CancelReason::Shutdown));
                    }
                    let is_settled =
                        left && !busy && taken_over.is_empty() && self.has_settled_all();
                    if is_settled || now >= deadline + FINAL_FLUSH_TIMEOUT {
                        // Wake-ups that arrived at the last moment.
                        while let Some(Some(wake)) = wakes.next().now_or_never() {
                            self.wake(wake, true);
                        }
                        if is_settled {
                            let _ =
                                tokio::time::timeout(FINAL_FLUSH_TIMEOUT, self.leave_for_good())
                                    .await;
                        }
                        return;
                    }
                }
            }
            if !busy && let Some(ask) = self.next_ask(deadline.is_some()) {
                round_trip = Some(self.round_trip(ask)).into();
                busy = true;
            }
            let alarm = self.alarm(busy, deadline);
            tokio::select! {
                _ = finished.recv_many(&mut endings, 256) => {
                    for (id, ending) in endings.drain(..) {
                        self.end(id, ending);
                    }
                }
                Some(lane) = unlisted.recv() => self.lanes[lane].wake(),
                Some(hand_over) = taken_over.recv() => self.take_over(hand_over),
                Some(answer) = &mut round_trip, if busy => {
                    round_trip = None.into();
                    busy = false;
                    self.learn(answer);
                }
                Some(wake) = wakes.next() => self.wake(wake, deadline.is_some()),
                _ = rebalance_tick.tick(), if self.slots.order == Order::Balanced => {
                    weights = Some(self.weigh()).into();
                }
                Some(new) = &mut weights => {
                    weights = None.into();
                    self.lanes.iter_mut().zip(new).for_each(|(lane, weight)| lane.weight = weight);
                }
                _ = registry_tick.tick(), if deadline.is_none() => {
                    registering = self.register().into();
                }
                Some(()) = &mut registering => registering = None.into(),
                // If a lease was granted in an answer that was lost, the audit finds it at the
                // latest.
                _ = audit.tick(), if deadline.is_none() => {
                    self.lanes.iter_mut().for_each(|lane| lane.unsure = true);
                }
                Ok(()) = quiet.changed() => {
                    if quiet.borrow_and_update().is_quiet() {
                        self.stop_sleeping();
                    } else {
                        self.lanes.iter_mut().for_each(QueueState::wake);
                    }
                }
                _ = beat.tick() => beats = Some(self.beat()).into(),
                Some(alive) = &mut beats => {
                    beats = None.into();
                    if !self.note_heartbeats(alive) {
                        beat.reset_after(BEAT_AGAIN.min(self.lease / 3));
                    }
                }
                () = &mut stop, if deadline.is_none() => {
                    deadline = Some(self.begin_shutdown());
                    registering = None.into();
                    leaving = Some(self.leave()).into();
                    left = false;
                }
                Some(()) = &mut leaving => {
                    leaving = None.into();
                    left = true;
                }
                () = sleep_until(alarm) => {}
            }
        }
    }

    /// Stops taking jobs; returns the time at which running jobs are cancelled.
    fn begin_shutdown(&mut self) -> Instant {
        let now = Instant::now();
        let soon = now + LONGEST_LAST_PAUSE;
        self.pause = self.pause.map(|(until, _)| (until.min(soon), LONGEST_LAST_PAUSE));
        self.terms.stopping.cancel();
        now + self.grace
    }

    /// Returns whether no job runs and the store knows how each job ended.
    fn has_settled_all(&self) -> bool {
        let is_clear =
            |lane: &QueueState| !lane.has_news() && !lane.unsure && lane.missing.is_empty();
        self.terms.passing.load(SeqCst) == 0
            && self.running.is_empty()
            && self.lanes.iter().all(is_clear)
    }

    fn room(&self, lane: usize) -> usize {
        self.slots.room(&self.lanes, lane)
    }

    fn may_look(&self, lane: usize) -> bool {
        self.alone.is_none() && !self.quiet.is_quiet() && self.room(lane) > 0
    }

    /// Updates which queues take over jobs that are next in line: those with a slot, if no queue of
    /// higher priority may have jobs.
    fn set_doors(&self) {
        let now = Instant::now();
        let running: usize = self.lanes.iter().map(|lane| lane.running).sum();
        let mut urgent = self.alone.is_some() || self.quiet.is_quiet();
        for (n, lane) in self.lanes.iter().enumerate() {
            let door = match () {
                () if urgent => TakeOver::Closed,
                () if running < self.slots.concurrency
                    && lane.running + lane.ready().len() < lane.most =>
                {
                    TakeOver::Open
                }
                () => TakeOver::Swap,
            };
            self.terms.set_door(n, door);
            self.terms.full[n].store(lane.running >= lane.most, Relaxed);
            urgent |= self.terms.strict && (!lane.ready().is_empty() || lane.wants_look(now));
        }
    }

    /// Begins all jobs that can begin.
    fn start_jobs(&mut self) {
        if self.tend_trial() {
            return;
        }
        while let Some(lane) = self.slots.next(&self.lanes)
            && let Some((envelope, bytes)) = self.lanes[lane].next()
        {
            self.start(lane, envelope, bytes);
        }
    }

    fn start(&mut self, lane: usize, envelope: Envelope, bytes: Vec<u8>) {
        let Envelope { id, failed, pushed_ms, body, .. } = envelope;
        let held = self.held.remove(&id);
        // `take` has already checked that there is a handler.
        let Some((name, route)) = self.routes.find_named(&body.name) else { return };
        let mut runner = route.runner.clone();
        if let Some(ms) = body.extra.timeout_ms {
            runner.timeout = Duration::from_millis(ms);
        }
        let retry = route.retry;
        let retry = body.extra.attempts.map_or(retry, |attempts| retry.attempts(attempts));
        // A job gets beyond its last attempt only by crashes.
        let plain_failures = plain_failures(failed, &body.options.by_rule);
        if plain_failures >= MAX_CRASHES && retry.is_over(plain_failures) {
            tracing::error!(
                job = body.name, %id, failed,
                "the workers of a job died while it ran, and its attempts are used up; it is dead",
            );
            return self.give_up(lane, bytes, CRASHED);
        }
        let cancel = held.as_ref().map_or_else(Cancelled::default, |held| held.cancelled.clone());
        let is_kept = result::is_kept_with(&body.options);
        let start = (!body.options.is_empty()).then(|| {
            Box::new(StartOptions {
                expires_ms: body.options.expires_ms,
                begins_ms: body.options.begins_ms,
                releases: body.unique.clone().filter(|_| body.options.unique_until_start),
                is_kept,
            })
        });
        let plain = body.unique.is_none() && body.then.is_empty() && body.extra.batch.is_none();
        let plain = plain && !is_kept && body.options.group.is_none();
        let run = Arc::new(Run::new(Arc::clone(&self.holder), bytes));
        let mut context = Context {
            id,
            queue: Arc::clone(&self.lanes[lane].name),
            attempt: failed.saturating_add(1),
            waited: Duration::from_millis(self.store.now_ms().saturating_sub(pushed_ms)),
            last_error: body.last_error,
            metadata: body.extra.metadata,
            batch: body.extra.batch.as_ref().map(|place| place.id.clone()),
            place: body.extra.batch,
            store: Arc::clone(&self.store),
            cancelled: cancel.clone(),
            run: Arc::clone(&run),
            log: None,
        };
        context.log = self.keep_logs.map(|life| JobLog::new(&context, name, life));
        self.running.insert(
            id,
            Running {
                lane,
                name,
                run,
                plain,
                retry,
                since: Instant::now(),
                cancel,
                withdrawn: false,
            },
        );
        self.lanes[lane].running += 1;
        let span = tracing::info_span!(
            "job",
            messaging.system = "scale-queue",
            messaging.operation.type = "process",
            messaging.destination.name = %context.queue,
            messaging.message.id = %id,
            otel.kind = "consumer",
            otel.status_code = tracing::field::Empty,
            job = body.name,
            attempt = context.attempt,
        );
        #[cfg(feature = "opentelemetry")]
        crate::trace::follow(&span, &context.metadata, self.continues_traces);
        let delivery =
            Delivery { name: body.name, payload: body.payload, job: None, context, start };
        let (finished, encryption, terms) =
            (self.finished.clone(), self.encryption.clone(), Arc::clone(&self.terms));
        let work = attempt(runner, encryption, terms, held, delivery).map(move |ending| {
            let _ = finished.send((id, ending));
        });
        tokio::spawn(work.instrument(span));
    }

    /// Returns whether the job is running here, or is about to.
    fn is_here(&self, id: &JobId) -> bool {
        self.running.contains_key(id) || self.lanes.iter().any(|lane| lane.has(id))
    }
}
