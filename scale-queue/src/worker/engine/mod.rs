//! The loop of one worker. One task decides everything; handlers run in tasks of their own and only report how they ended.
//!
//! At most one exchange with the store is under way: what ends meanwhile is told with the next, which batches by itself under load. An
//! exchange is never dropped half way. If its answer is lost, what was leased is asked for before anything else.

mod ending;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture, join_all};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::exchange::{Answer, Ask, exchange};
use super::handler::{Delivery, Routes, attempt};
use super::lane::Lane;
use super::places::Places;
use super::{Order, Worker};
use crate::context::Context;
use crate::envelope::{Envelope, tag_of};
use crate::error::Error;
use crate::job::JobId;
use crate::outcome::Ending;
use crate::presence::{self, Kind, WorkerStatus};
use crate::retry::Retry;
use crate::seal::Sealer;
use crate::store::{CANCELLED, Destination, Settlement, Stats, Store, Wake, WorkerId};

/// A job whose workers died so often is taken to be what kills them, unless it may be tried more often.
const MAX_CRASHES: u16 = 20;
const CRASHED: &str = "its workers died too often";
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often [`Order::Balanced`] looks how late its queues are.
const WEIGH: Duration = Duration::from_secs(2);
/// How long a worker that stops goes on trying to tell the store, after its grace.
const LAST_WORDS: Duration = Duration::from_secs(3);

pub(super) struct Engine {
    store: Arc<dyn Store>,
    worker: WorkerId,
    lanes: Vec<Lane>,
    places: Places,
    lease: Duration,
    grace: Duration,
    routes: Routes,
    sealer: Option<Sealer>,
    running: HashMap<JobId, Running>,
    last_exchange: Instant,
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
    cancel: CancellationToken,
    /// Somebody asked for its end.
    withdrawn: bool,
}

impl Drop for Engine {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.cancel.cancel();
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
        Self {
            store: Arc::clone(worker.queue.store()),
            worker: format!("{}-{}", worker.name, Uuid::now_v7().simple()).into(),
            lanes,
            places: Places { order: worker.order, concurrency },
            lease: worker.lease,
            grace: worker.grace,
            routes: worker.routes,
            sealer: worker.queue.sealer().cloned(),
            running: HashMap::new(),
            last_exchange: now,
            pause: None,
            announced: None,
            started_ms: worker.queue.store().now_ms(),
            finished,
        }
    }

    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        let (sender, mut finished) = mpsc::unbounded_channel();
        self.finished = sender;
        let mut wakes = self.store.wakes(&self.worker).fuse();
        let mut exchange: OptionFuture<BoxFuture<'static, Answer>> = None.into();
        let mut busy = false;
        let mut beats: OptionFuture<BoxFuture<'static, Vec<(usize, bool)>>> = None.into();
        let mut beat = tokio::time::interval(self.lease / 3);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = pin!(stop.fuse());
        let mut deadline: Option<Instant> = None;
        let mut leaving: OptionFuture<BoxFuture<'static, ()>> = None.into();
        let mut left = false;
        let mut endings = Vec::with_capacity(256);
        let mut weights: OptionFuture<BoxFuture<'static, Vec<u32>>> = None.into();
        let mut said: OptionFuture<BoxFuture<'static, ()>> = None.into();
        let mut roll_call = tokio::time::interval(presence::SOONEST);
        roll_call.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut scales = tokio::time::interval(WEIGH);
        scales.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match deadline {
                None => self.start_jobs(),
                Some(deadline) => {
                    self.hand_back();
                    let now = Instant::now();
                    if now >= deadline {
                        self.running.values().for_each(|r| r.cancel.cancel());
                    }
                    let told = left && !busy && self.running.is_empty() && self.lanes.iter().all(|lane| !lane.has_news());
                    if told || now >= deadline + LAST_WORDS {
                        // Wakes that came at the last moment.
                        while let Some(Some(wake)) = wakes.next().now_or_never() {
                            self.wake(wake, true);
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
                _ = beat.tick() => beats = Some(self.beat()).into(),
                Some(alive) = &mut beats => {
                    beats = None.into();
                    for (lane, alive) in alive {
                        self.lanes[lane].unsure |= !alive && self.lanes[lane].holds() > 0;
                    }
                }
                () = &mut stop, if deadline.is_none() => {
                    deadline = Some(Instant::now() + self.grace);
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

    /// When to look around if nothing happens.
    fn alarm(&self, busy: bool, deadline: Option<Instant>) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_mins(1);
        let end = deadline.map(|end| if now < end { end } else { end + LAST_WORDS });
        let exchange = match self.pause {
            _ if busy => None,
            Some((until, _)) => Some(until),
            None => {
                let may_fetch = |n| deadline.is_none() && self.room(n) > 0;
                self.lanes.iter().enumerate().filter_map(|(n, lane)| lane.alarm(may_fetch(n))).min()
            }
        };
        exchange.into_iter().chain(end).min().unwrap_or(far)
    }

    /// Begins what can begin.
    fn start_jobs(&mut self) {
        while let Some(lane) = self.places.next(&self.lanes)
            && let Some((envelope, bytes)) = self.lanes[lane].ready.pop_front()
        {
            self.start(lane, envelope, bytes);
        }
    }

    fn start(&mut self, lane: usize, envelope: Envelope, bytes: Vec<u8>) {
        let Envelope { id, failed, pushed_ms, body } = envelope;
        let mut route = self.routes.find(&body.name).cloned();
        if let (Some(route), Some(ms)) = (&mut route, body.extra.timeout_ms) {
            route.timeout = Duration::from_millis(ms);
        }
        let retry = route.as_ref().map_or(Retry::exponential(10), |r| r.retry);
        let retry = body.extra.attempts.map_or(retry, |attempts| retry.attempts(attempts));
        // Nothing else gets beyond its last attempt.
        if failed >= MAX_CRASHES && retry.is_over(failed) {
            tracing::error!(job = body.name, %id, failed, "a job is dead: its workers died");
            return self.give_up(lane, bytes, CRASHED);
        }
        let cancel = CancellationToken::new();
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
            turn: body.extra.turn,
            store: Arc::clone(&self.store),
            cancelled: cancel.clone(),
        };
        self.running.insert(id, Running { lane, bytes, plain, retry, cancel, withdrawn: false });
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
        let delivery = Delivery { name: body.name, payload: body.payload, context };
        let (finished, sealer) = (self.finished.clone(), self.sealer.clone());
        let work = async move {
            let _ = finished.send((id, attempt(route, sealer, delivery).await));
        };
        tokio::spawn(work.instrument(span));
    }

    /// What to talk to the store about now, if anything.
    fn next_ask(&mut self, stopping: bool) -> Option<Ask> {
        let now = Instant::now();
        if self.pause.is_some_and(|(until, _)| now < until) {
            return None;
        }
        let urgent = self.lanes.iter().position(|lane| lane.is_urgent(now));
        let lane = urgent.or_else(|| if stopping { None } else { self.places.choose(&self.lanes, now, fastrand::f64()) });
        let lane = lane.or_else(|| {
            let news = self.lanes.iter().position(Lane::has_news);
            news.filter(|_| stopping || self.places.starved(&self.lanes))
        })?;
        let looks = !stopping && self.lanes[lane].wants_look(now);
        let max = if looks { self.places.portion(&self.lanes, lane, now) } else { 0 };
        let state = &mut self.lanes[lane];
        state.begin_look();
        Some(Ask {
            lane,
            queue: Arc::clone(&state.name),
            done: state.take_done(),
            settlements: std::mem::take(&mut state.settlements),
            max,
            holding: state.held() > 0,
            unsure: std::mem::take(&mut state.unsure),
        })
    }

    fn exchange(&mut self, ask: Ask) -> BoxFuture<'static, Answer> {
        self.last_exchange = Instant::now();
        self.lanes.iter_mut().for_each(|lane| lane.ended = 0);
        Box::pin(exchange(Arc::clone(&self.store), self.worker.clone(), self.lease, ask))
    }

    /// Takes in what an exchange brought.
    fn learn(&mut self, answer: Answer) {
        let Answer { ask, held, fetched, refused, untold } = answer;
        let now = Instant::now();
        let took = now - self.last_exchange;
        self.places.look_ahead(&mut self.lanes);
        metrics::histogram!("scale_queue_exchange_seconds").record(took.as_secs_f64());
        if let Some(held) = held {
            self.reconcile(ask.lane, held, &ask.done);
        }
        let lane = &mut self.lanes[ask.lane];
        lane.settlements.extend(ask.settlements);
        let (mut fenced, total) = (refused, ask.done.len());
        match fetched {
            Ok(fetched) => {
                self.pause = untold.then(|| longer_pause(self.pause, now));
                lane.unsure |= untold && ask.unsure;
                fenced += total.saturating_sub(fetched.acknowledged);
                if ask.max > 0 {
                    if fetched.armed {
                        lane.arm(fetched.look_again, now, fastrand::f64());
                    } else {
                        lane.disarm();
                    }
                }
                for bytes in fetched.jobs {
                    if fetched.cancelled.iter().any(|tag| tag == tag_of(&bytes)) {
                        self.give_up(ask.lane, bytes, CANCELLED);
                    } else {
                        self.take(ask.lane, bytes);
                    }
                }
            }
            Err(error) => {
                lane.keep_done(ask.done, now);
                // Whether the store leased something to us before it fell silent is unknown.
                lane.unsure |= ask.max > 0 || ask.unsure;
                lane.disarm();
                self.pause = Some(longer_pause(self.pause, now));
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

    fn take(&mut self, lane: usize, bytes: Vec<u8>) {
        match Envelope::decode(&bytes) {
            // Lost and leased to us again while it still runs here: the run at hand will do.
            Ok(envelope) if self.running.contains_key(&envelope.id) => {}
            Ok(envelope) => self.lanes[lane].ready.push_back((envelope, bytes)),
            Err(reason) => {
                tracing::error!(%reason, "a job is dead");
                let tag = tag_of(&bytes).to_vec();
                let to = Destination::Dead(bytes, reason.to_string());
                self.lanes[lane].settlements.push(Settlement { tag, unique: None, to }.into());
            }
        }
    }

    /// Sets right what we hold by what the store says we hold.
    fn reconcile(&mut self, lane: usize, held: Vec<Vec<u8>>, told: &[Vec<u8>]) {
        let theirs: HashSet<&[u8]> = held.iter().map(|bytes| tag_of(bytes)).collect();
        self.lanes[lane].ready.retain(|(_, bytes)| theirs.contains(tag_of(bytes)));
        for running in self.running.values().filter(|r| r.lane == lane && !theirs.contains(tag_of(&r.bytes))) {
            running.cancel.cancel();
        }
        let known = &self.lanes[lane];
        let ours: HashSet<Vec<u8>> = known
            .ready
            .iter()
            .map(|(_, bytes)| tag_of(bytes).to_vec())
            .chain(self.running.values().map(|r| tag_of(&r.bytes).to_vec()))
            .chain(known.settlements.iter().map(|ended| ended.settlement.tag.clone()))
            .chain(known.done().iter().chain(told).cloned())
            .collect();
        for bytes in held {
            if !ours.contains(tag_of(&bytes)) {
                self.take(lane, bytes);
            }
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
                if stopping || lane.is_none_or(|lane| self.room(lane) == 0) {
                    let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
                    // Should it fail, the job is found by the next who looks.
                    tokio::spawn(async move { store.pass_on(&name, &worker).await });
                }
            }
        }
    }

    /// Nothing more is taken: whatever we were woken for and have not fetched is somebody else's.
    fn leave(&self) -> BoxFuture<'static, ()> {
        let (store, worker) = (Arc::clone(&self.store), self.worker.clone());
        let names: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.name)).collect();
        Box::pin(async move {
            join_all(names.iter().map(|name| store.pass_on(name, &worker))).await;
            presence::withdraw(&*store, Kind::Worker, &worker).await;
        })
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
    fn beat(&self) -> BoxFuture<'static, Vec<(usize, bool)>> {
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
                async move { (n, store.beat(&name, worker, lease).await.unwrap_or(true)) }
            });
            join_all(beats).await
        })
    }
}

/// Until when not to talk to a store that failed again.
fn longer_pause(last: Option<(Instant, Duration)>, now: Instant) -> (Instant, Duration) {
    let wait = last.map_or(FIRST_PAUSE, |(_, last)| (last * 2).min(LONGEST_PAUSE));
    (now + wait.mul_f64(0.5 + fastrand::f64() / 2.0), wait)
}
