//! The loop of one worker. One task decides everything; handlers run in tasks of their own and only report how they ended.
//!
//! At most one exchange with the store is under way: what ends meanwhile is told with the next, which batches by itself under load. An
//! exchange is never dropped half way. If its answer is lost, what was leased is asked for before anything else.

mod ending;
mod trial;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture, join_all};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use self::trial::Alone;
use super::CancelReason;
use super::admission::{Door, HandOver, Held, TakenOver, Terms};
use super::exchange::{Answer, Ask, exchange};
use super::handler::{Delivery, Routes, attempt};
use super::lane::Lane;
use super::places::Places;
use super::{Order, Worker};
use crate::context::{Cancelled, Context};
use crate::envelope::{Envelope, Unreadable, tag_of};
use crate::error::Error;
use crate::job::JobId;
use crate::outcome::Ending;
use crate::presence::{self, Kind, WorkerStatus};
use crate::retry::Retry;
use crate::seal::Sealer;
use crate::store::{CANCELLED, Destination, Settlement, Stats, Store, Trial, Wake, WorkerId};

/// A job whose workers died so often is taken to be what kills them, unless it may be tried more often.
const MAX_CRASHES: u16 = 5;
const CRASHED: &str = "its worker died, and its attempts are used up";
/// Leases after which a store that is always late is no reason any more to leave the jobs of dead workers alone.
const OUTAGE: u32 = 10;
/// So long after a failure of the store nothing is taken back.
const CALM: Duration = Duration::from_secs(2);
/// So long a lease is seen to have run out before its jobs are taken back.
const CONFIRM: Duration = Duration::from_millis(400);
/// When a sign of life that failed is given again.
const BEAT_AGAIN: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause of a worker that stops: it has no more than its grace to tell how its jobs ended.
const LONGEST_LAST_PAUSE: Duration = Duration::from_millis(100);
/// How often a worker asks what it holds, though nothing went wrong that it knows of.
const AUDIT: Duration = Duration::from_mins(1);
/// How often [`Order::Balanced`] looks how late its queues are.
const WEIGH: Duration = Duration::from_secs(2);
/// How long a worker that stops goes on trying to tell the store, after its grace.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Bytes of jobs in one fetch, at most and at the least.
const MOST_BYTES: usize = 4 * 1024 * 1024;
const LEAST_BYTES: usize = 64 * 1024;
/// An answer that took longer was late: the next one is to be shorter.
const LATE: Duration = Duration::from_millis(250);

pub(super) struct Engine {
    store: Arc<dyn Store>,
    worker: WorkerId,
    lanes: Vec<Lane>,
    places: Places,
    lease: Duration,
    grace: Duration,
    hand_back_for: Duration,
    terms: Arc<Terms>,
    routes: Routes,
    sealer: Option<Sealer>,
    running: HashMap<JobId, Running>,
    /// A suspect that is to run alone, or does.
    alone: Option<Alone>,
    /// The store is being told of it.
    telling_trial: bool,
    /// Jobs that were next in line when one of ours ended.
    taken_over: Option<mpsc::UnboundedReceiver<HandOver>>,
    /// Tags of those that came since the exchange under way began: what it says of what we hold does not know of them.
    taken_since: HashSet<Vec<u8>>,
    /// The permits that they took over, until they begin.
    held: HashMap<JobId, Held>,
    /// Bytes of jobs that the next fetch asks for.
    max_bytes: usize,
    last_exchange: Instant,
    /// When the store last answered.
    heard: Instant,
    /// Since when, and when last, the store has failed or was late by a lease.
    trouble: Option<(Instant, Instant)>,
    /// The store failed: no exchange before that.
    pause: Option<(Instant, Duration)>,
    /// When it last said that it is there, and how many jobs it ran then.
    announced: Option<(Instant, usize)>,
    started_ms: u64,
    finished: mpsc::UnboundedSender<(JobId, Ending)>,
}

struct Running {
    lane: usize,
    bytes: Vec<u8>,
    /// Its end is no more than an acknowledgement: no key to free, no chain to go on with.
    plain: bool,
    retry: Retry,
    since: Instant,
    cancel: Cancelled,
    /// Somebody asked for its end.
    withdrawn: bool,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // No permit is passed on to a worker that is gone.
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
        let mut lanes: Vec<_> = worker.lanes.iter().map(|(name, weight)| Lane::new(name, *weight, now)).collect();
        for (name, least, most) in worker.bounds {
            for lane in lanes.iter_mut().filter(|lane| *lane.name == *name) {
                (lane.least, lane.most) = (least, most);
            }
        }
        let concurrency = worker.concurrency.max(lanes.iter().map(|lane| lane.least).sum());
        let id: WorkerId = format!("{}-{}", worker.name, Uuid::now_v7().simple()).into();
        let (passed_on, taken_over) = mpsc::unbounded_channel();
        let terms = Terms {
            worker: Arc::clone(&id),
            life: worker.lease.clamp(Duration::from_secs(2), Duration::from_secs(30)),
            order: worker.lanes.iter().map(|(name, _)| name.clone()).collect(),
            strict: worker.order == Order::Strict,
            lease: worker.lease,
            passed_on,
            stopping: CancellationToken::new(),
            full: worker.lanes.iter().map(|_| AtomicBool::new(false)).collect(),
            doors: worker.lanes.iter().map(|_| AtomicU8::new(Door::Closed as u8)).collect(),
            passing: AtomicUsize::new(0),
        };
        Self {
            store: Arc::clone(worker.queue.store()),
            worker: id,
            lanes,
            places: Places { order: worker.order, concurrency },
            lease: worker.lease,
            grace: worker.grace,
            hand_back_for: worker.hand_back_for,
            terms: Arc::new(terms),
            routes: worker.routes,
            sealer: worker.queue.sealer().cloned(),
            running: HashMap::new(),
            alone: None,
            telling_trial: false,
            taken_over: Some(taken_over),
            taken_since: HashSet::new(),
            held: HashMap::new(),
            max_bytes: MOST_BYTES,
            last_exchange: now,
            heard: now,
            trouble: None,
            pause: None,
            announced: None,
            started_ms: worker.queue.store().now_ms(),
            finished,
        }
    }

    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        let (sender, mut finished) = mpsc::unbounded_channel();
        self.finished = sender;
        let Some(mut taken_over) = self.taken_over.take() else { return };
        let mut wakes = self.store.wakes(&self.worker).fuse();
        let mut exchange: OptionFuture<BoxFuture<'static, Answer>> = None.into();
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
        let mut said: OptionFuture<BoxFuture<'static, ()>> = None.into();
        // Ended with this future.
        let mut background = JoinSet::new();
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        background.spawn(super::background::reclaim_orphans(Arc::clone(&self.store), names.clone()));
        background.spawn(super::background::keep_history(Arc::clone(&self.store), names));
        let mut roll_call = tokio::time::interval(presence::SOONEST);
        roll_call.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut scales = tokio::time::interval(WEIGH);
        scales.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match deadline {
                None => {
                    self.start_jobs();
                    self.set_doors();
                    self.pass_alarms_on();
                }
                Some(deadline) => {
                    self.hand_back();
                    let now = Instant::now();
                    if now >= deadline {
                        self.running.values().for_each(|r| r.cancel.cancel(CancelReason::Shutdown));
                    }
                    let settled = self.terms.passing.load(SeqCst) == 0 && taken_over.is_empty();
                    let is_clear = |lane: &Lane| !lane.has_news() && !lane.unsure && lane.missing.is_empty();
                    let told = settled && left && !busy && self.running.is_empty() && self.lanes.iter().all(is_clear);
                    if told || now >= deadline + LAST_WORDS {
                        // Wakes that came at the last moment.
                        while let Some(Some(wake)) = wakes.next().now_or_never() {
                            self.wake(wake, true);
                        }
                        if told {
                            let _ = tokio::time::timeout(LAST_WORDS, self.leave_for_good()).await;
                        }
                        return;
                    }
                }
            }
            if !busy && let Some(ask) = self.next_ask(deadline.is_some()) {
                exchange = Some(self.exchange(ask)).into();
                busy = true;
            }
            let alarm = self.alarm(busy, deadline);
            tokio::select! {
                _ = finished.recv_many(&mut endings, 256) => {
                    for (id, ending) in endings.drain(..) {
                        self.end(id, ending);
                    }
                }
                Some(hand_over) = taken_over.recv() => self.take_over(hand_over),
                Some(answer) = &mut exchange, if busy => {
                    exchange = None.into();
                    busy = false;
                    self.learn(answer);
                }
                Some(wake) = wakes.next() => self.wake(wake, deadline.is_some()),
                _ = scales.tick(), if self.places.order == Order::Balanced => weights = Some(self.weigh()).into(),
                Some(new) = &mut weights => {
                    weights = None.into();
                    self.lanes.iter_mut().zip(new).for_each(|(lane, weight)| lane.weight = weight);
                }
                _ = roll_call.tick(), if deadline.is_none() => said = self.announce().into(),
                Some(()) = &mut said => said = None.into(),
                // Should a lease have been granted whose answer was lost, it is found here at the latest.
                _ = audit.tick(), if deadline.is_none() => self.lanes.iter_mut().for_each(|lane| lane.unsure = true),
                _ = beat.tick() => beats = Some(self.beat()).into(),
                Some(alive) = &mut beats => {
                    beats = None.into();
                    for (lane, alive) in alive {
                        match alive {
                            Some(alive) => self.lanes[lane].unsure |= !alive && self.lanes[lane].holds() > 0,
                            None => beat.reset_after(BEAT_AGAIN.min(self.lease / 3)),
                        }
                    }
                }
                () = &mut stop, if deadline.is_none() => {
                    let now = Instant::now();
                    deadline = Some(now + self.grace);
                    self.pause = self.pause.map(|(until, _)| (until.min(now + LONGEST_LAST_PAUSE), LONGEST_LAST_PAUSE));
                    self.terms.stopping.cancel();
                    said = None.into();
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

    fn room(&self, lane: usize) -> usize {
        self.places.room(&self.lanes, lane)
    }

    fn may_look(&self, lane: usize) -> bool {
        self.alone.is_none() && self.room(lane) > 0
    }

    /// Something has become due, and this worker has no place for it: another one is woken. Should that fail, it is found by the next look.
    fn pass_alarms_on(&mut self) {
        let now = Instant::now();
        for n in 0..self.lanes.len() {
            if !self.may_look(n) && self.lanes[n].rings(now) {
                self.lanes[n].disarm();
                let (store, worker, name) = (Arc::clone(&self.store), self.worker.clone(), Arc::clone(&self.lanes[n].name));
                tokio::spawn(async move { store.pass_on(&name, Some(&worker)).await });
            }
        }
    }

    /// When to look around if nothing happens.
    fn alarm(&self, busy: bool, deadline: Option<Instant>) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_mins(1);
        let end = deadline.map(|end| if now < end { end } else { end + LAST_WORDS });
        let exchange = match self.pause {
            _ if busy => None,
            Some((until, _)) => Some(until),
            None => {
                let may_fetch = |n| deadline.is_none() && self.may_look(n);
                self.lanes.iter().enumerate().filter_map(|(n, lane)| lane.alarm(may_fetch(n))).min()
            }
        };
        // A permit that is being passed on may bring another job.
        let passing = (deadline.is_some() && self.terms.passing.load(SeqCst) > 0).then(|| now + Duration::from_millis(10));
        exchange.into_iter().chain(end).chain(self.trial_alarm()).chain(passing).min().unwrap_or(far)
    }

    /// Says which queues take over jobs that are next in line: those that have a place, if no more urgent queue may have something.
    fn set_doors(&self) {
        let now = Instant::now();
        let running: usize = self.lanes.iter().map(|lane| lane.running).sum();
        let mut urgent = self.alone.is_some();
        for (n, lane) in self.lanes.iter().enumerate() {
            let door = match () {
                () if urgent => Door::Closed,
                () if running < self.places.concurrency && lane.running + lane.ready().len() < lane.most => Door::Open,
                () => Door::Swap,
            };
            self.terms.set_door(n, door);
            self.terms.full[n].store(lane.running >= lane.most, Relaxed);
            urgent |= self.terms.strict && (!lane.ready().is_empty() || lane.wants_look(now));
        }
    }

    /// Begins what can begin.
    fn start_jobs(&mut self) {
        if self.tend_trial() {
            return;
        }
        while let Some(lane) = self.places.next(&self.lanes)
            && let Some((envelope, bytes)) = self.lanes[lane].next()
        {
            self.start(lane, envelope, bytes);
        }
    }

    fn start(&mut self, lane: usize, envelope: Envelope, bytes: Vec<u8>) {
        let Envelope { id, failed, pushed_ms, body, .. } = envelope;
        let held = self.held.remove(&id);
        // Whoever took it has looked for its handler.
        let Some(mut route) = self.routes.find(&body.name).cloned() else { return };
        if let Some(ms) = body.extra.timeout_ms {
            route.timeout = Duration::from_millis(ms);
        }
        let retry = route.retry;
        let retry = body.extra.attempts.map_or(retry, |attempts| retry.attempts(attempts));
        // Nothing else gets beyond its last attempt.
        if failed >= MAX_CRASHES && retry.is_over(failed) {
            tracing::error!(job = body.name, %id, failed, "a job is dead: its workers died");
            return self.give_up(lane, bytes, CRASHED);
        }
        let cancel = held.as_ref().map_or_else(Cancelled::default, |held| held.cancelled.clone());
        let plain = body.unique.is_none() && body.then.is_empty() && body.extra.batch.is_none();
        let context = Context {
            id,
            queue: Arc::clone(&self.lanes[lane].name),
            attempt: failed.saturating_add(1),
            waited: Duration::from_millis(self.store.now_ms().saturating_sub(pushed_ms)),
            last_error: body.last_error,
            carried: body.extra.carried,
            batch: body.extra.batch.as_ref().map(|place| place.id.clone()),
            place: body.extra.batch,
            store: Arc::clone(&self.store),
            cancelled: cancel.clone(),
        };
        self.running.insert(id, Running { lane, bytes, plain, retry, since: Instant::now(), cancel, withdrawn: false });
        self.lanes[lane].running += 1;
        let span = tracing::info_span!(
            "job",
            messaging.system = "scale-queue",
            messaging.operation.type = "process",
            messaging.destination.name = %context.queue,
            messaging.message.id = %id,
            job = body.name,
            attempt = context.attempt,
        );
        let delivery = Delivery { name: body.name, payload: body.payload, job: None, context };
        let (finished, sealer, terms) = (self.finished.clone(), self.sealer.clone(), Arc::clone(&self.terms));
        let work = async move {
            let _ = finished.send((id, attempt(route, sealer, terms, held, delivery).await));
        };
        tokio::spawn(work.instrument(span));
    }

    /// What to talk to the store about now, if anything.
    fn next_ask(&mut self, stopping: bool) -> Option<Ask> {
        let now = Instant::now();
        if self.pause.is_some_and(|(until, _)| now < until) {
            return None;
        }
        let urgent = (0..self.lanes.len()).find(|n| {
            let lane = &self.lanes[*n];
            lane.is_urgent(now)
                || !stopping && lane.is_held_up() && self.alone.is_none() && self.places.may_begin(&self.lanes, *n)
        });
        let lane = urgent.or_else(|| {
            if stopping || self.alone.is_some() { None } else { self.places.choose(&self.lanes, now, fastrand::f64()) }
        });
        let lane = lane.or_else(|| {
            // Else it is told with the next fetch, or when it has waited for long enough.
            let news = self.lanes.iter().position(Lane::has_news);
            news.filter(|_| stopping)
        })?;
        // Beside a job that is to run alone, no other is taken.
        let looks = !stopping && self.alone.is_none() && self.lanes[lane].wants_look(now);
        let max = if looks { self.places.portion(&self.lanes, lane, now) } else { 0 };
        let free = self.places.concurrency.saturating_sub(self.lanes.iter().map(|lane| lane.running).sum());
        let trial = match &self.alone {
            Some(alone) if alone.lane == lane && alone.is_announced => Trial::Running(*alone.id.bytes()),
            Some(alone) if alone.lane == lane => Trial::Waiting(*alone.id.bytes()),
            Some(alone) if alone.is_announced => Trial::Elsewhere,
            Some(_) => Trial::None,
            None if stopping => Trial::None,
            None => Trial::Next,
        };
        let (max_bytes, unhandled_for) = (self.max_bytes, self.hand_back_for);
        let may_reclaim = self.may_reclaim(lane, now);
        let state = &mut self.lanes[lane];
        state.begin_look(now);
        self.telling_trial = std::mem::take(&mut state.tell_trial);
        Some(Ask {
            lane,
            queue: Arc::clone(&state.name),
            done: state.take_done(),
            settlements: std::mem::take(&mut state.settlements),
            doubtful: now - self.heard > self.lease / 2,
            may_reclaim,
            max,
            max_bytes,
            begins: free.saturating_sub(state.ready().len()),
            trial,
            lines: state.handler_lines.clone(),
            unhandled_for,
            unsure: std::mem::take(&mut state.unsure),
            missing: std::mem::take(&mut state.missing),
        })
    }

    /// After an outage, which this worker may have slept through, the leases of the living have run out too: they get a moment to renew
    /// them. An outage that has no end is none.
    fn may_reclaim(&self, lane: usize, now: Instant) -> bool {
        let is_calm = |(first, last)| now - last >= self.lease.min(CALM) || now - first >= self.lease * OUTAGE;
        // What was seen long ago is no news: a full worker has not looked since.
        let is_sure = |(first, last)| now - first >= CONFIRM && now - last < self.lease.max(CALM);
        self.trouble.is_none_or(is_calm) && self.lanes[lane].expired.is_some_and(is_sure)
    }

    /// What an exchange tells of the store itself.
    fn note_health(&mut self, now: Instant, is_answered: bool) {
        if is_answered {
            self.heard = self.last_exchange;
        }
        if !is_answered || now - self.last_exchange > self.lease {
            let goes_on = |(_, last): &(Instant, Instant)| self.last_exchange - *last < self.lease.max(CALM);
            let first = self.trouble.filter(goes_on).map_or(now, |(first, _)| first);
            self.trouble = Some((first, now));
        }
    }

    /// Until when not to talk to a store that failed again.
    fn longer_pause(&self, now: Instant) -> (Instant, Duration) {
        let longest = if self.terms.stopping.is_cancelled() { LONGEST_LAST_PAUSE } else { LONGEST_PAUSE };
        let wait = self.pause.map_or(FIRST_PAUSE, |(_, last)| (last * 2).min(longest));
        (now + wait.mul_f64(0.5 + fastrand::f64() / 2.0), wait)
    }

    fn exchange(&mut self, ask: Ask) -> BoxFuture<'static, Answer> {
        self.last_exchange = Instant::now();
        self.taken_since.clear();
        self.lanes.iter_mut().for_each(|lane| lane.ended = 0);
        Box::pin(exchange(Arc::clone(&self.store), self.worker.clone(), self.lease, ask))
    }

    /// Takes in what an exchange brought.
    fn learn(&mut self, answer: Answer) {
        let Answer { ask, held, found, fetched, refused, untold } = answer;
        let now = Instant::now();
        let took = now - self.last_exchange;
        self.note_health(now, fetched.is_ok());
        if fetched.is_err() && self.telling_trial {
            self.lanes[ask.lane].tell_trial = true;
        }
        self.telling_trial = false;
        self.places.look_ahead(&mut self.lanes);
        metrics::histogram!("scale_queue_exchange_seconds").record(took.as_secs_f64());
        if let Some(held) = held {
            self.reconcile(ask.lane, held, &ask.done);
        }
        match found {
            Some(found) => self.take_missing(ask.lane, ask.missing, found),
            None => self.lanes[ask.lane].missing.extend(ask.missing),
        }
        let ready = self.lanes[ask.lane].ready().len();
        let longer_pause = self.longer_pause(now);
        let lane = &mut self.lanes[ask.lane];
        lane.settlements.extend(ask.settlements);
        let (mut fenced, total) = (refused, ask.done.len());
        match fetched {
            Ok(fetched) => {
                self.pause = match self.pause {
                    _ if untold => Some(longer_pause),
                    // It has said what we hold; whether it gives more again is still to be seen.
                    Some((_, wait)) if ask.unsure => Some((now, wait)),
                    _ => None,
                };
                lane.unsure |= untold && ask.unsure;
                fenced += total.saturating_sub(fetched.acknowledged);
                // Whatever was at hand before this answer may begin.
                lane.cleared = ready;
                if ask.max > 0 && fetched.expired.is_some() {
                    let known = lane.expired.filter(|(_, last)| self.last_exchange - *last < self.lease.max(CALM));
                    lane.expired = Some((known.map_or(now, |(first, _)| first), now));
                    lane.look_by(now + CONFIRM);
                } else if ask.max > 0 {
                    lane.expired = None;
                }
                if ask.max > 0 {
                    lane.handler_lines = fetched.lines.into_iter().filter(|line| handles(&self.routes, line)).collect();
                    if fetched.armed && lane.handler_lines.is_empty() {
                        lane.arm(fetched.look_again, now, fastrand::f64());
                    } else {
                        lane.disarm();
                    }
                    self.max_bytes = adapted(self.max_bytes, took, fetched.jobs.iter().map(Vec::len).sum());
                }
                for bytes in fetched.jobs {
                    let tag = tag_of(&bytes);
                    if fetched.cancelled.iter().any(|known| known == tag) {
                        self.give_up(ask.lane, bytes, CANCELLED);
                    } else if fetched.overdue.iter().any(|known| known == tag) {
                        let reason = format!("no worker could handle it within {:?}", self.hand_back_for);
                        self.give_up(ask.lane, bytes, &reason);
                    } else {
                        self.take(ask.lane, bytes, fetched.suspect);
                    }
                }
                let lane = &mut self.lanes[ask.lane];
                lane.cleared = lane.ready().len().min(ready + ask.begins);
            }
            Err(error) => {
                lane.keep_done(ask.done, now);
                // Whether the store leased something to us before it fell silent is unknown.
                lane.unsure |= ask.max > 0 || ask.unsure;
                lane.disarm();
                self.max_bytes = (self.max_bytes / 2).max(LEAST_BYTES);
                self.pause = Some(longer_pause);
                tracing::warn!(%error, queue = &*ask.queue, "the queue's store failed; the worker goes on");
                metrics::counter!("scale_queue_store_errors_total").increment(1);
            }
        }
        if fenced > 0 {
            metrics::counter!("scale_queue_fenced_total").increment(fenced as u64);
        }
    }

    /// Weights for [`Order::Balanced`]: shares go by how late each queue is.
    fn weigh(&self) -> BoxFuture<'static, Vec<u32>> {
        let store = Arc::clone(&self.store);
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        Box::pin(async move {
            // One that cannot be looked at keeps a share.
            let weight = |stats: Result<Stats, Error>| stats.map_or(1, |s| 1 + (s.lag_ms / 10).min(10_000) as u32);
            join_all(names.iter().map(|name| store.stats(name))).await.into_iter().map(weight).collect()
        })
    }

    /// Whether the job runs here, or is about to.
    fn is_here(&self, id: &JobId) -> bool {
        self.running.contains_key(id) || self.lanes.iter().any(|lane| lane.has(id))
    }

    fn take(&mut self, lane: usize, bytes: Vec<u8>, is_suspect: bool) {
        let line = match Envelope::decode(&bytes) {
            // Lost and leased to us again while it is still here: once will do.
            Ok(envelope) if self.is_here(&envelope.id) => return,
            Ok(envelope) if self.routes.handles(&envelope.body.name) => {
                // One that waited for its limit comes like any other.
                if is_suspect || envelope.suspect {
                    return self.try_alone(lane, envelope, bytes, is_suspect);
                }
                return self.lanes[lane].push(envelope, bytes);
            }
            Ok(envelope) => format!("kind:{}", envelope.body.name),
            Err(Unreadable::Version(version)) => format!("format:{version}"),
            Err(reason) => {
                tracing::error!(%reason, "a job is dead");
                let tag = tag_of(&bytes).to_vec();
                let to = Destination::Dead { bytes, reason: reason.to_string(), has_failed: false };
                self.lanes[lane].settlements.push(Settlement { tag, unique: None, to }.into());
                return;
            }
        };
        if self.hand_back_for.is_zero() {
            return self.give_up(lane, bytes, &format!("no handler for `{line}` on this worker"));
        }
        tracing::warn!(line, "no handler for a job on this worker: it waits for one that has it");
        metrics::counter!("scale_queue_unhandled_total", "queue" => Arc::clone(&self.lanes[lane].name)).increment(1);
        let settlement = Settlement { tag: tag_of(&bytes).to_vec(), unique: None, to: Destination::Unhandled(line) };
        self.lanes[lane].settlements.push(settlement.into());
    }

    /// Takes in a job that was next in line when one of ours ended, before all others: it has begun as far as the store knows.
    fn take_over(&mut self, hand_over: HandOver) {
        let TakenOver { queue, bytes, permit } = match hand_over {
            HandOver::Job(job) => job,
            HandOver::Unknown(queues) => {
                let lanes = self.lanes.iter_mut().filter(|lane| queues.iter().any(|queue| **queue == *lane.name));
                return lanes.for_each(|lane| lane.unsure = true);
            }
        };
        let Some(lane) = self.lanes.iter().position(|lane| *lane.name == *queue) else { return };
        self.taken_since.insert(tag_of(&bytes).to_vec());
        match Envelope::decode(&bytes) {
            Ok(envelope) if self.routes.handles(&envelope.body.name) && !self.running.contains_key(&envelope.id) => {
                permit.and_then(|held| self.held.insert(envelope.id, held));
                if envelope.suspect {
                    self.try_alone(lane, envelope, bytes, false);
                    // Another is tried: the permit is given back.
                    return self.drop_unused_permits();
                }
                self.lanes[lane].push_first(envelope, bytes);
            }
            // The permit is given back.
            _ => self.take(lane, bytes, false),
        }
    }

    /// Sets right what we hold by what the store says we hold.
    fn reconcile(&mut self, lane: usize, held: Vec<Vec<u8>>, told: &[Vec<u8>]) {
        let since = std::mem::take(&mut self.taken_since);
        let theirs: HashSet<&[u8]> = held.iter().chain(&since).map(Vec::as_slice).collect();
        self.lanes[lane].retain(|bytes| theirs.contains(tag_of(bytes)));
        self.drop_unused_permits();
        for running in self.running.values().filter(|r| r.lane == lane && !theirs.contains(tag_of(&r.bytes))) {
            running.cancel.cancel(CancelReason::LeaseLost);
        }
        let known = &mut self.lanes[lane];
        if known.suspect.as_ref().is_some_and(|(_, bytes)| !theirs.contains(tag_of(bytes))) {
            known.suspect = None;
            self.end_alone();
        }
        let known = &self.lanes[lane];
        let ours: HashSet<Vec<u8>> = known
            .ready()
            .iter()
            .chain(&known.suspect)
            .map(|(_, bytes)| tag_of(bytes).to_vec())
            .chain(self.running.values().map(|r| tag_of(&r.bytes).to_vec()))
            .chain(known.settlements.iter().map(|ended| ended.settlement.tag.clone()))
            .chain(known.done().iter().chain(told).cloned())
            .collect();
        self.lanes[lane].missing = held.into_iter().filter(|tag| !ours.contains(tag)).collect();
    }

    /// Gives back permits that were taken over for jobs which are not here to begin any more.
    pub(super) fn drop_unused_permits(&mut self) {
        let lanes = &self.lanes;
        self.held.retain(|id, _| lanes.iter().any(|lane| lane.has(id)));
    }

    /// Jobs that were ours without our knowing; what did not fit the answer is asked for with the next exchange.
    fn take_missing(&mut self, lane: usize, asked: Vec<Vec<u8>>, found: Vec<Vec<u8>>) {
        if !found.is_empty() {
            let got: HashSet<Vec<u8>> = found.iter().map(|bytes| tag_of(bytes).to_vec()).collect();
            self.lanes[lane].missing.extend(asked.into_iter().filter(|tag| !got.contains(tag)));
        }
        for bytes in found {
            self.take(lane, bytes, false);
        }
    }

    fn wake(&mut self, wake: Wake, stopping: bool) {
        match wake {
            Wake::Cancel(tag) => self.cancel(&tag),
            Wake::Unsure => self.lanes.iter_mut().for_each(Lane::wake),
            Wake::Queue(name) => {
                let lane = self.lanes.iter().position(|lane| *lane.name == *name);
                if let Some(lane) = lane {
                    self.lanes[lane].wake();
                }
                // The store has woken us for a job, and nobody else: who cannot take it must pass it on.
                if stopping || self.alone.is_some() || lane.is_none_or(|lane| self.room(lane) == 0) {
                    let store = Arc::clone(&self.store);
                    // Should it fail, the job is found by the next who looks. It may arrive after this worker has fallen asleep again:
                    // then this is a worker like any other.
                    tokio::spawn(async move { store.pass_on(&name, None).await });
                }
            }
        }
    }

    /// While a job is tried alone nothing is fetched: nobody is to wake us, and what we were woken for is somebody else's.
    pub(super) fn stop_sleeping(&mut self) {
        self.lanes.iter_mut().for_each(Lane::disarm);
        let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        // Should it fail, a wake that comes is passed on.
        tokio::spawn(async move { join_all(names.iter().map(|name| store.pass_on(name, Some(&worker)))).await });
    }

    /// Nothing more is taken: whatever we were woken for and have not fetched is somebody else's.
    fn leave(&self) -> BoxFuture<'static, ()> {
        let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        Box::pin(async move {
            join_all(names.iter().map(|name| store.pass_on(name, Some(&worker)))).await;
            presence::withdraw(&*store, Kind::Worker, &worker).await;
        })
    }

    /// Nothing of this worker stays in the store.
    async fn leave_for_good(&self) {
        join_all(self.lanes.iter().map(|lane| self.store.leave(&lane.name, &self.worker))).await;
    }

    /// Says that it is there, if that is news or has not been said for a while.
    fn announce(&mut self) -> Option<BoxFuture<'static, ()>> {
        let (now, running) = (Instant::now(), self.running.len());
        if self.announced.is_some_and(|(at, then)| then == running && now < at + presence::EVERY) {
            return None;
        }
        self.announced = Some((now, running));
        let about = WorkerStatus {
            id: String::new(),
            queues: self.lanes.iter().map(|lane| lane.name.to_string()).collect(),
            concurrency: self.places.concurrency,
            running,
            started_ms: self.started_ms,
            process: std::process::id(),
        };
        let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
        Some(Box::pin(async move { presence::announce(&*store, Kind::Worker, &worker, &about).await }))
    }

    /// A sign of life for every queue that we hold jobs of.
    fn beat(&mut self) -> BoxFuture<'static, Vec<(usize, Option<bool>)>> {
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
                async move { (n, store.beat(&name, worker, lease).await.ok()) }
            });
            join_all(beats).await
        })
    }
}

/// Whether jobs of that line can be handled here.
fn handles(routes: &Routes, line: &str) -> bool {
    match line.split_once(':') {
        Some(("kind", name)) => routes.handles(name),
        Some(("format", version)) => version.parse().is_ok_and(|version: u8| Envelope::can_read(version)),
        _ => false,
    }
}

/// Bytes that the next fetch asks for, by how the last one went.
fn adapted(max_bytes: usize, took: Duration, got: usize) -> usize {
    if took > LATE && got > LEAST_BYTES {
        (max_bytes.min(got) / 2).max(LEAST_BYTES)
    } else if took < LATE / 2 {
        (max_bytes + max_bytes / 4).min(MOST_BYTES)
    } else {
        max_bytes
    }
}
