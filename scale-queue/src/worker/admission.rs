//! Checks a job's limits before its handler begins, and renews its permits while it runs.
//!
//! A permit that cannot be renewed will soon be given to another job. The handler is cancelled
//! *before* the permit expires, by a margin, so that two jobs never run on one permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::CancelReason;
use crate::context::{Cancelled, Context};
use crate::error::Error;
use crate::limit::{Kind, Limit, line_of, strictest};
use crate::outcome::Blocked;
use crate::store::{Admission, PassOn, PermitRequest, RateRequest, Store, WorkerId};

/// Parameters of a worker's requests for permits.
#[derive(Debug)]
pub(crate) struct PermitTerms {
    pub(crate) worker: WorkerId,
    /// Time for which a permit is kept without a renewal.
    pub(crate) life: Duration,
    /// The worker's queues, by decreasing priority.
    pub(crate) order: Vec<String>,
    /// True if jobs of an earlier queue go first.
    pub(crate) strict: bool,
    pub(crate) lease: Duration,
    /// Receives the next job in line that takes over a permit; closed when the worker takes no more
    /// jobs.
    pub(crate) passed_on: mpsc::UnboundedSender<PassedOn>,
    pub(crate) stopping: CancellationToken,
    /// For each queue, whether a job that is next in line may be taken over.
    pub(crate) take_over: Vec<AtomicU8>,
    /// For each queue, whether this worker has no slot for it.
    pub(crate) full: Vec<AtomicBool>,
    /// Number of permits that are being passed on.
    pub(crate) passing: AtomicUsize,
}

/// Permission of a queue to take over jobs that are next in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TakeOver {
    Closed,
    /// Only as replacement of a job of the same queue that ends.
    Swap,
    Open,
}

/// Result of an attempt to pass a permit on.
#[derive(Debug)]
pub(crate) enum PassedOn {
    Job(TakenOver),
    /// The store did not answer: the first job in line of one of these queues may be leased to this
    /// worker.
    Unknown(Vec<String>),
}

/// A job that was next in line, leased to this worker, with the permit of the job that ended.
#[derive(Debug)]
pub(crate) struct TakenOver {
    pub(crate) queue: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) permit: Option<Held>,
}

/// A permit that is held before its job begins.
#[derive(Debug)]
pub(crate) struct Held {
    key: String,
    most: u32,
    permits: Permits,
    pub(crate) cancelled: Cancelled,
}

impl PermitTerms {
    pub(crate) fn set_door(&self, queue: usize, door: TakeOver) {
        if let Some(known) = self.take_over.get(queue) {
            known.store(door as u8, Relaxed);
        }
    }

    /// Returns the queues whose jobs may be taken over when a job of `ended` ends, by decreasing
    /// priority.
    fn open_to(&self, ended: &str) -> Vec<String> {
        let is_open = |(queue, door): &(&String, &AtomicU8)| {
            let door = door.load(Relaxed);
            door == TakeOver::Open as u8 || door == TakeOver::Swap as u8 && **queue == ended
        };
        self.order
            .iter()
            .zip(&self.take_over)
            .filter(is_open)
            .map(|(queue, _)| queue.clone())
            .collect()
    }

    /// Returns the queues whose jobs go first, without those for which this worker has no slot:
    /// their jobs are left to other workers.
    fn before(&self, queue: &str) -> Vec<String> {
        let place = self.order.iter().position(|name| name == queue).filter(|_| self.strict);
        let earlier = self.order.iter().zip(&self.full).take(place.unwrap_or(0));
        earlier.filter(|(_, full)| !full.load(Relaxed)).map(|(name, _)| name.clone()).collect()
    }
}

/// Permits of a running job; dropping this gives them back.
#[derive(Debug)]
pub(crate) struct Permits {
    #[expect(dead_code, reason = "its drop is what it is for")]
    ended: Option<DropGuard>,
    passes_on: Arc<AtomicBool>,
}

impl Permits {
    fn none() -> Self {
        Self { ended: None, passes_on: Arc::default() }
    }
}

/// Permits acquired so far.
#[derive(Default)]
struct Taken<'l> {
    permits: Vec<&'l str>,
    rates: Vec<(&'l str, Duration)>,
}

/// Acquires all that a job's limits require, when the job is about to begin. On `Err` the store did
/// not answer, and nothing is held.
pub(crate) async fn admit(
    terms: &Arc<PermitTerms>,
    context: &Context,
    limits: &[Limit],
    held: Option<Held>,
) -> Result<Result<Permits, Blocked>, Error> {
    let limits = &strictest(limits)[..];
    if limits.is_empty() {
        return Ok(Ok(Permits::none()));
    }
    if let Some(held) = held {
        // Otherwise the job needs more permits or other ones: the unused permit is given back, and
        // all limits are checked.
        if let [Limit { key, kind: Kind::Concurrent(most) }] = limits
            && (key, *most) == (&held.key, held.most)
        {
            held.permits.passes_on.store(true, Relaxed);
            return Ok(Ok(held.permits));
        }
    }
    let (store, queue) = (&context.store, &*context.queue);
    // Unique for each attempt, so that an attempt whose worker is thought dead does not share its
    // permit with this one.
    let holder = format!("{}/{}", terms.worker, context.id);
    let asked = Instant::now();
    let mut taken = Taken::default();
    let outcome = ask(&**store, terms, queue, &holder, limits, &mut taken).await;
    if !matches!(outcome, Ok(None)) {
        for (key, spacing) in &taken.rates {
            // If this fails, the next job of the rate begins later than it could.
            let _ = store.refund(key, *spacing).await;
        }
        let keys: Vec<String> = taken.permits.iter().map(|key| (*key).to_owned()).collect();
        if !keys.is_empty() {
            tokio::spawn(give_back(
                Arc::clone(store),
                Arc::clone(terms),
                vec![holder.clone()],
                keys,
            ));
        }
    }
    Ok(match outcome? {
        Some(blocked) => Err(blocked),
        None if taken.permits.is_empty() => Ok(Permits::none()),
        None => {
            let keys = taken.permits.iter().map(|key| (*key).to_owned()).collect();
            let ended = CancellationToken::new();
            let most = match limits {
                [Limit { kind: Kind::Concurrent(most), .. }] => Some(*most),
                _ => None,
            };
            let passes_on = Arc::new(AtomicBool::new(most.is_some()));
            let keeper = PermitRenewal {
                store: Arc::clone(store),
                terms: Arc::clone(terms),
                holder,
                keys,
                queue: queue.to_owned(),
                most: most.unwrap_or(0),
                cancelled: context.cancelled.clone(),
                ended: ended.clone(),
                passes_on: Arc::clone(&passes_on),
            };
            tokio::spawn(keeper.run(asked));
            Ok(Permits { ended: Some(ended.drop_guard()), passes_on })
        }
    })
}

async fn ask<'l>(
    store: &dyn Store,
    terms: &PermitTerms,
    queue: &str,
    holder: &str,
    limits: &'l [Limit],
    taken: &mut Taken<'l>,
) -> Result<Option<Blocked>, Error> {
    // Permits first, because a reserved rate slot is used up. But a permit that is given back wakes
    // the line of its key: if that is also the line of a full rate, its jobs would wake each other
    // until the rate has room.
    let is_concurrent = |key: &str| {
        limits.iter().any(|other| other.key == key && matches!(other.kind, Kind::Concurrent(_)))
    };
    for limit in limits.iter().filter(|limit| is_concurrent(&limit.key)) {
        if let Some(blocked) = reserve(store, terms, queue, limit, taken).await? {
            return Ok(Some(blocked));
        }
    }
    for limit in limits {
        if let Kind::Concurrent(most) = limit.kind {
            // If the answer is lost, the permit may be held: it is given back with the others.
            taken.permits.push(&limit.key);
            let request = PermitRequest { key: &limit.key, holder, queue, most, life: terms.life };
            if let Admission::Later(retry_in) = store.acquire(request).await? {
                taken.permits.pop();
                return Ok(Some(Blocked {
                    line: line_of(&limit.key),
                    retry_in,
                    pace: None,
                    permits: Some((limit.key.clone(), most)),
                }));
            }
        }
    }
    for limit in limits.iter().filter(|limit| !is_concurrent(&limit.key)) {
        if let Some(blocked) = reserve(store, terms, queue, limit, taken).await? {
            return Ok(Some(blocked));
        }
    }
    Ok(None)
}

/// Reserves a slot of a rate limit.
async fn reserve<'l>(
    store: &dyn Store,
    terms: &PermitTerms,
    queue: &str,
    limit: &'l Limit,
    taken: &mut Taken<'l>,
) -> Result<Option<Blocked>, Error> {
    let Kind::Rate { spacing, burst } = limit.kind else { return Ok(None) };
    let before = &terms.before(queue);
    let request = RateRequest { key: &limit.key, queue, spacing, burst, before };
    if let Admission::Later(retry_in) = store.admit(request).await? {
        let line = line_of(&limit.key);
        return Ok(Some(Blocked { line, retry_in, pace: Some(spacing), permits: None }));
    }
    taken.rates.push((&limit.key, spacing));
    Ok(None)
}

/// Gives permits back, and wakes the jobs that wait for them. Retries for as long as the store
/// would keep the permits.
async fn give_back(
    store: Arc<dyn Store>,
    terms: Arc<PermitTerms>,
    holders: Vec<String>,
    keys: Vec<String>,
) {
    let end = Instant::now() + terms.life;
    for key in &keys {
        for holder in &holders {
            let mut pause = Duration::from_millis(50);
            while store.release(key, holder, &terms.order).await.is_err() && Instant::now() < end {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// Renews the permits of a running job.
struct PermitRenewal {
    store: Arc<dyn Store>,
    terms: Arc<PermitTerms>,
    holder: String,
    keys: Vec<String>,
    /// Queue of the job.
    queue: String,
    /// Number of permits of the key.
    most: u32,
    cancelled: Cancelled,
    ended: CancellationToken,
    /// True if the permit is all that a job of its line needs, and was used: then the next job may
    /// take it over.
    passes_on: Arc<AtomicBool>,
}

impl PermitRenewal {
    /// Runs until the job ends or a permit is lost. `proven` is a time at which the permits were
    /// held; the store counts their life from a later time.
    fn run(self, proven: Instant) -> BoxFuture<'static, ()> {
        Box::pin(self.keep(proven))
    }

    async fn keep(self, mut proven: Instant) {
        let life = self.terms.life;
        let mut next = proven + life / 3;
        let mut lost = false;
        loop {
            let end = proven + life.mul_f64(0.8);
            tokio::select! {
                biased;
                () = self.ended.cancelled() => break,
                () = sleep_until(end) => {
                    lost = true;
                    break;
                }
                () = sleep_until(next) => {}
            }
            let asked = Instant::now();
            let renewed = tokio::select! {
                biased;
                () = self.ended.cancelled() => break,
                () = sleep_until(end) => {
                    lost = true;
                    break;
                }
                renewed = self.renew() => renewed,
            };
            match renewed {
                Ok(true) => {
                    proven = asked;
                    next = asked + life / 3;
                }
                Ok(false) => {
                    lost = true;
                    break;
                }
                // Try again soon, as long as the permits cannot have expired.
                Err(_) => next = Instant::now() + life / 20,
            }
        }
        let mut holders = vec![self.holder.clone()];
        if lost {
            self.lose();
        } else if self.passes_on.load(Relaxed) && !self.terms.stopping.is_cancelled() {
            self.terms.passing.fetch_add(1, SeqCst);
            let passed = self.pass_on(&mut holders).await;
            self.terms.passing.fetch_sub(1, SeqCst);
            if passed {
                return;
            }
        }
        give_back(self.store, self.terms, holders, self.keys).await;
    }

    /// Passes the permit on to the next job in line. Returns `false` if there is no such job or the
    /// result is unknown; in the latter case `holders` may have the permit.
    async fn pass_on(&self, holders: &mut Vec<String>) -> bool {
        let [key] = &self.keys[..] else { return false };
        let queues = self.terms.open_to(&self.queue);
        if queues.is_empty() {
            return false;
        }
        let next = format!("{}/{}", self.terms.worker, uuid::Uuid::now_v7().simple());
        let asked = Instant::now();
        let pass = PassOn {
            key,
            most: self.most,
            holder: &self.holder,
            next: &next,
            life: self.terms.life,
            queues: &queues,
            worker: &self.terms.worker,
            lease: self.terms.lease,
        };
        let passed = match self.store.pass_on_permit(pass).await {
            Ok(Some(passed)) => passed,
            Ok(None) => return false,
            Err(_) => {
                // The engine asks the store which jobs it holds, and so finds a leased one.
                let _ = self.terms.passed_on.send(PassedOn::Unknown(queues));
                holders.push(next);
                return false;
            }
        };
        let permit = passed.has_permit.then(|| {
            let (ended, cancelled) = (CancellationToken::new(), Cancelled::default());
            let passes_on = Arc::new(AtomicBool::new(false));
            let keeper = PermitRenewal {
                store: Arc::clone(&self.store),
                terms: Arc::clone(&self.terms),
                holder: next,
                keys: self.keys.clone(),
                queue: passed.queue.clone(),
                most: self.most,
                cancelled: cancelled.clone(),
                ended: ended.clone(),
                passes_on: Arc::clone(&passes_on),
            };
            tokio::spawn(keeper.run(asked));
            let permits = Permits { ended: Some(ended.drop_guard()), passes_on };
            Held { key: key.clone(), most: self.most, permits, cancelled }
        });
        let has_permit = permit.is_some();
        let taken = TakenOver { queue: passed.queue, bytes: passed.bytes, permit };
        // If the worker is gone, its lease expires, and the permit is given back when the message
        // is dropped.
        let _ = self.terms.passed_on.send(PassedOn::Job(taken));
        has_permit
    }

    async fn renew(&self) -> Result<bool, Error> {
        for key in &self.keys {
            if !self.store.renew(key, &self.holder, self.terms.life).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn lose(&self) {
        tracing::warn!(
            holder = self.holder,
            "could not renew a permit in time; its job is cancelled and handed back"
        );
        metrics::counter!("scale_queue_permits_lost_total").increment(1);
        self.cancelled.cancel(CancelReason::PermitLost);
    }
}
