//! The handle: pushes jobs, and looks at what is there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;

use crate::batch;
use crate::builder::QueueBuilder;
use crate::envelope::{Body, Envelope, Extra, Failure, tag_of};
use crate::error::Error;
use crate::gather::Gather;
use crate::job::{Job, JobId};
use crate::push::{Push, Pushed, Terms, UNIQUE_FOR};
use crate::seal::Sealer;
use crate::store::{
    Cancellation, Corpse, Destination, End, Entry, Listed, MemoryStore, Resolution, Revival, Sample, Settlement, State, Stats,
    Store, WorkerId,
};

/// The largest encoded job, bytes.
pub(crate) const MAX_SIZE: usize = 1024 * 1024;
/// Dead jobs of one answer.
const PAGE: usize = 1_000;
/// Dead jobs taken out side by side.
const AT_ONCE: usize = 100;
/// How long a drain may take for a thousand jobs before what it took goes back.
const DRAIN_LEASE: Duration = Duration::from_secs(30);

/// All queues of one application. Cloning costs a few reference counts.
///
/// ```
/// # use scale_queue::{Job, Queue};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct SendReceipt { order: i64 }
/// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_queue::Error> {
/// use std::time::Duration;
///
/// let queue = Queue::connect("memory:", "shop").await?; // or "redis://…"
/// queue.push(SendReceipt { order: 7 }).await?;
/// queue.push(SendReceipt { order: 8 }).to("low").delay(Duration::from_mins(10)).await?;
/// assert_eq!(queue.stats("default").await?.waiting, 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    store: Arc<dyn Store>,
    gather: Arc<Gather>,
    carry: Option<Carry>,
    sealer: Option<Sealer>,
}

#[derive(Clone)]
struct Carry(Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>);

impl std::fmt::Debug for Carry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Carry")
    }
}

impl Queue {
    /// Jobs in a store of your choice.
    pub fn new(store: impl Store) -> Self {
        let store: Arc<dyn Store> = Arc::new(store);
        Self { gather: Gather::new(Arc::clone(&store)), store, carry: None, sealer: None }
    }

    /// Jobs of this process, gone with it.
    pub fn memory() -> Self {
        Self::new(MemoryStore::new())
    }

    /// Jobs shared by all that use the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str) -> Self {
        Self::new(crate::store::RedisStore::new(redis, app))
    }

    /// Picks the store by its address: `memory:`; with feature `redis` any address of `scale-redis`; with features `postgres` and `sqlite`
    /// a database, whose tables are made if they are not there.
    ///
    /// # Errors
    /// [`Error::Address`] for any other; [`Error::Store`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Self::builder(url, app).connect().await
    }

    /// The same with settings: time-outs, replicas that must have a push, how safe an SQLite file is.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_queue::Error> {
    /// use std::time::Duration;
    /// let queue = scale_queue::Queue::builder("memory:", "shop").response_timeout(Duration::from_secs(2)).connect().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(url: &str, app: &str) -> QueueBuilder {
        QueueBuilder::new(url, app)
    }

    /// Stores a job, to be done by a [`Worker`](crate::Worker). Pushes made at the same time share a round trip.
    ///
    /// # Errors
    /// When awaited: [`Error::Full`] or [`Error::TooLarge`], and nothing is stored; [`Error::Store`], and it may or may not be.
    pub fn push<J: Job>(&self, job: J) -> Push<'_, J> {
        Push::new(self, job)
    }

    /// Stores many jobs of one kind in their own queue: a round trip for every thousand jobs or 4 MiB, and each of these portions as a
    /// whole. After an error, earlier portions are stored.
    pub async fn push_many<J: Job>(&self, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Pushed>, Error> {
        let entries: Vec<_> = jobs.into_iter().map(|job| self.entry(&job, Terms::default())).collect::<Result<_, _>>()?;
        let (ids, entries): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        checked(J::QUEUE)?;
        let answers = self.store.push(J::QUEUE, &entries).await?;
        let pushed: Vec<_> = ids.into_iter().zip(answers).map(|(id, holder)| verdict(id, holder)).collect();
        count_pushed(J::QUEUE, pushed.iter().filter(|p| p.is_new).count());
        Ok(pushed)
    }

    /// Stores a job inside a transaction of the application's: it exists if that commits, and only then. If the queue's store is the same
    /// database, it lies there at once; if it is another one, Redis say, it goes through an outbox, which a
    /// [`Relay`](crate::store::Relay) empties.
    ///
    /// ```no_run
    /// # use scale_queue::{Job, Queue};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendReceipt { order: i64 }
    /// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
    /// # async fn example(pool: sqlx::PgPool, queue: Queue) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// sqlx::query("insert into orders (id) values (7)").execute(&mut *tx).await?;
    /// queue.push_in(&mut *tx, SendReceipt { order: 7 }).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As of [`push`](Self::push); the transaction is then best rolled back. [`Error::Store`] if the tables are not there: they are made
    /// by [`connect`](Self::connect) to that database, or by the relay.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub async fn push_in<J: Job>(&self, connection: &mut impl crate::store::Enlist, job: J) -> Result<Pushed, Error> {
        let (id, entry) = self.entry(&job, Terms::default())?;
        let queue = checked(J::QUEUE)?;
        if self.store.enlists() {
            self.store.make_known(queue).await?;
        }
        let holder = crate::store::sql::enlist(connection, self.store.app(), queue, &entry, self.store.enlists()).await?;
        let pushed = verdict(id, holder);
        count_pushed(queue, usize::from(pushed.is_new));
        Ok(pushed)
    }

    /// Whether jobs of [`push_in`](Self::push_in) lie in an outbox until a [`Relay`](crate::store::Relay) brings them over: then run one.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub fn needs_relay(&self) -> bool {
        !self.store.enlists()
    }

    /// What a queue holds, and how late it is.
    pub async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        self.store.stats(checked(queue)?).await
    }

    /// The names of all queues that ever held a job.
    pub async fn queues(&self) -> Result<Vec<String>, Error> {
        self.store.queues().await
    }

    /// Hands out no more of a queue, on all workers. Jobs that run go on; pushes are taken.
    pub async fn pause(&self, queue: &str) -> Result<(), Error> {
        self.store.pause(checked(queue)?, true).await
    }

    /// Goes on after [`pause`](Self::pause).
    pub async fn resume(&self, queue: &str) -> Result<(), Error> {
        self.store.pause(checked(queue)?, false).await
    }

    /// A queue's counts of the last day by minute, or of the last 90 days by hour, the oldest first. Workers keep them, a sample a minute;
    /// where none ran, there is a gap.
    pub async fn history(&self, queue: &str, resolution: Resolution) -> Result<Vec<Sample>, Error> {
        let since = self.store.now_ms().saturating_sub(resolution.step_ms() * resolution.most());
        self.store.history_of(checked(queue)?, resolution, since).await
    }

    /// Jobs given up, newest first: 1,000 at most, whatever the limit; fewer where they are large, none only where there are no more.
    pub async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Dead>, Error> {
        let queue = checked(queue)?;
        // More than any store keeps, and still a number to all of them.
        let offset = offset.min(i32::MAX as usize);
        let corpses = if limit == 0 { Vec::new() } else { self.store.dead(queue, offset, limit.min(PAGE)).await? };
        Ok(corpses.into_iter().map(|corpse| Dead::new(self, corpse)).collect())
    }

    /// Lets a dead job wait again, its attempts forgotten; it holds its unique key again. `false`: it was not there any more, or another
    /// job holds its key by now, and it stays dead.
    pub async fn revive(&self, queue: &str, dead: &Dead) -> Result<bool, Error> {
        self.take_dead(queue, dead, Fate::Again).await
    }

    /// Removes a dead job for good. `false`: it was not there any more.
    pub async fn forget(&self, queue: &str, dead: &Dead) -> Result<bool, Error> {
        self.take_dead(queue, dead, Fate::Gone).await
    }

    /// Lets all wait again that are dead by now, 100 at a time; returns how many. Those whose unique key another job holds stay dead. Should
    /// it fail or be dropped on the way, the rest stay dead: call it again.
    pub async fn revive_all(&self, queue: &str) -> Result<usize, Error> {
        self.take_all_dead(queue, Fate::Again).await
    }

    /// Removes all for good that are dead by now; otherwise as [`revive_all`](Self::revive_all).
    pub async fn forget_all(&self, queue: &str) -> Result<usize, Error> {
        self.take_all_dead(queue, Fate::Gone).await
    }

    /// Ends a job that is not dead yet. One that has not begun will not; of one that runs, the handler's future is dropped. It lies among
    /// the dead then, with the reason `cancelled`, and can be revived. `false`: the queue does not hold it. On Redis, which cannot search a
    /// list at a fair price, always `true`: a job that waits is ended when its time comes, unrun, if that is within 30 days.
    pub async fn cancel(&self, queue: &str, id: JobId) -> Result<bool, Error> {
        match self.store.cancel(checked(queue)?, id.bytes()).await? {
            Cancellation::Unknown => Ok(false),
            Cancellation::Asked => Ok(true),
            Cancellation::Buried(bytes) => {
                if let Some(place) = Envelope::decode(&bytes).ok().and_then(|envelope| envelope.body.extra.batch) {
                    batch::count(&*self.store, &place, End::Dead).await?;
                }
                Ok(true)
            }
        }
    }

    /// Jobs that are not dead, by where they are: 1,000 at most, whatever the limit; fewer where they are large, none only where there are
    /// no more.
    pub async fn jobs(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listing>, Error> {
        let offset = offset.min(i32::MAX as usize);
        let listed = self.store.list(checked(queue)?, state, offset, limit.min(PAGE)).await?;
        Ok(listed.into_iter().map(|listed| Listing::new(self, listed)).collect())
    }

    /// Removes every job that waits, is blocked or is scheduled, for good: none of them runs, none is among the dead. Returns how many. Jobs
    /// that run go on. Those of a batch count as dead.
    ///
    /// Each portion of up to a thousand is leased first, then counted, then removed with its unique keys in one step: should this process
    /// die on the way, what it had not removed waits again.
    pub async fn drain(&self, queue: &str) -> Result<usize, Error> {
        let (queue, mut count) = (checked(queue)?, 0);
        let worker: WorkerId = format!("drain-{}", uuid::Uuid::now_v7().simple()).into();
        // What follows a batch that the drain brings to its end stays.
        let (mut followers, mut back) = (HashSet::new(), Vec::new());
        loop {
            let jobs = self.store.take_all(queue, &worker, DRAIN_LEASE).await?;
            let (stays, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| followers.contains(tag_of(job)));
            back.extend(stays.iter().map(|job| Settlement { tag: tag_of(job).to_vec(), unique: None, to: Destination::Waiting }));
            if jobs.is_empty() {
                for settled in self.store.settle(queue, &worker, &back.iter().collect::<Vec<_>>()).await {
                    settled?;
                }
                self.store.leave(queue, &worker).await?;
                return Ok(count);
            }
            let mut settlements = Vec::with_capacity(jobs.len());
            for bytes in &jobs {
                let body = Envelope::decode(bytes).ok().map(|envelope| envelope.body);
                let (unique, place) = body.map_or((None, None), |body| (body.unique, body.extra.batch));
                if let Some(place) = place {
                    let pushed = batch::count(&*self.store, &place, End::Dead).await?;
                    followers.extend(pushed.into_iter().map(|id| id.bytes().to_vec()));
                }
                settlements.push(Settlement { tag: tag_of(bytes).to_vec(), unique, to: Destination::Removed });
            }
            let settlements: Vec<_> = settlements.iter().collect();
            for settled in self.store.settle(queue, &worker, &settlements).await {
                count += usize::from(settled?);
            }
        }
    }

    async fn take_dead(&self, queue: &str, dead: &Dead, fate: Fate) -> Result<bool, Error> {
        let revival = match fate {
            Fate::Gone => Revival::Gone,
            Fate::Again => Revival::Again(unique_of(&dead.corpse.bytes)),
        };
        self.store.take_dead(checked(queue)?, tag_of(&dead.corpse.bytes), dead.died_ms, &revival).await
    }

    async fn take_all_dead(&self, queue: &str, fate: Fate) -> Result<usize, Error> {
        let (mut count, mut skipped, mut newest) = (0, 0, None);
        loop {
            let page = self.dead(queue, skipped, AT_ONCE).await?;
            let Some(first) = page.first() else { return Ok(count) };
            // Those that died since are left, or a job that dies at once would keep us here.
            let newest = *newest.get_or_insert(first.died_ms);
            let (due, late): (Vec<_>, Vec<_>) = page.iter().partition(|dead| dead.died_ms <= newest);
            skipped += late.len();
            let done = try_join_all(due.into_iter().map(|dead| self.take_dead(queue, dead, fate))).await?;
            count += done.iter().filter(|done| **done).count();
            // Those that stay dead are passed over.
            skipped += done.iter().filter(|done| !**done).count();
        }
    }

    /// Gives every job that is pushed through this handle something on its way, which its handler finds in
    /// [`Context::carried`](crate::Context::carried): the trace it belongs to, a tenant, a language.
    ///
    /// ```
    /// # let queue = scale_queue::Queue::memory();
    /// let queue = queue.carrying(|| vec![("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into())]);
    /// ```
    pub fn carrying(mut self, what: impl Fn() -> Vec<(String, String)> + Send + Sync + 'static) -> Self {
        self.carry = Some(Carry(Arc::new(what)));
        self
    }

    pub(crate) fn carried(&self) -> Vec<(String, String)> {
        self.carry.as_ref().map_or_else(Vec::new, |carry| (carry.0)())
    }

    pub(crate) fn with_sealer(mut self, sealer: Sealer) -> Self {
        self.sealer = Some(sealer);
        self
    }

    pub(crate) fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_ref()
    }

    /// A payload for people to read.
    fn shown(&self, payload: &[u8]) -> String {
        if self.sealer.is_some() { "sealed".into() } else { String::from_utf8_lossy(payload).into_owned() }
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(crate) fn envelope<J: Job>(&self, job: &J, unique: Option<String>) -> Result<Envelope, Error> {
        let payload = serde_json::to_vec(job).map_err(|source| Error::Encode { job: J::NAME, source })?;
        if payload.len() > MAX_SIZE {
            return Err(Error::TooLarge { job: J::NAME, size: payload.len() });
        }
        let payload = match &self.sealer {
            Some(sealer) => sealer.0.seal(J::NAME, &payload).map_err(|source| Error::Seal { job: J::NAME, source })?,
            None => payload,
        };
        let extra = Extra { carried: self.carried(), ..Extra::default() };
        let group = job.limits().into_iter().next().map(|limit| limit.key);
        let body = Body { name: J::NAME.into(), payload, unique, last_error: None, then: Vec::new(), extra };
        Ok(Envelope { id: JobId::new(), failed: 0, suspect: false, pushed_ms: self.store.now_ms(), group, body })
    }

    pub(crate) async fn push_entry(&self, queue: &str, id: JobId, entry: Entry) -> Result<Pushed, Error> {
        let holder = self.gather.push(checked(queue)?, entry).await?;
        let pushed = verdict(id, holder);
        count_pushed(queue, usize::from(pushed.is_new));
        Ok(pushed)
    }
}

pub(crate) fn count_pushed(queue: &str, count: usize) {
    metrics::counter!("scale_queue_pushed_total", "queue" => queue.to_owned()).increment(count as u64);
}

fn verdict(id: JobId, holder: Option<Vec<u8>>) -> Pushed {
    match holder {
        None => Pushed { id, is_new: true },
        Some(holder) => Pushed { id: holder.try_into().map_or(id, JobId::from_bytes), is_new: false },
    }
}

/// A queue's name becomes part of keys, labels and addresses.
pub(crate) fn checked(queue: &str) -> Result<&str, Error> {
    let fine = (1..=64).contains(&queue.len())
        && queue.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        // Browsers take these out of an address.
        && !matches!(queue, "." | "..");
    if fine { Ok(queue) } else { Err(Error::Name(queue.chars().take(64).collect())) }
}

/// What becomes of a dead job that is taken out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Again,
    Gone,
}

/// The unique key that a job is to hold again, and for how long.
fn unique_of(bytes: &[u8]) -> Option<(String, Duration)> {
    let body = Envelope::decode(bytes).ok()?.body;
    Some((body.unique?, body.extra.unique_ms.map_or(UNIQUE_FOR, Duration::from_millis)))
}

/// A job that is not dead.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// Its id; `None` if its bytes cannot be read.
    pub id: Option<JobId>,
    /// What it is called; empty if its bytes cannot be read.
    pub name: String,
    /// Its content, as JSON text; not of a queue that is [sealed](Queue::sealed).
    pub payload: String,
    /// Attempts that have failed.
    pub failed: u16,
    /// Why the last one did.
    pub last_error: Option<String>,
    /// How the last ten of them did, the latest last.
    pub failures: Vec<Failure>,
    /// When it was pushed: ms since 1970.
    pub pushed_ms: u64,
    /// When it is due, of a scheduled one: ms since 1970.
    pub due_ms: Option<u64>,
    /// Who has it, of a leased one.
    pub worker: Option<String>,
    /// What it waits for, of a blocked one: `limit:` and the limit's key, `kind:` and a kind of job that no worker handles, or `format:`
    /// and a version.
    pub blocked_by: Option<String>,
}

impl Listing {
    fn new(queue: &Queue, listed: Listed) -> Self {
        let Listed { bytes, due_ms, worker, line } = listed;
        let envelope = Envelope::decode(&bytes).ok();
        let (id, failed) = (envelope.as_ref().map(|e| e.id), envelope.as_ref().map_or(0, |e| e.failed));
        let pushed_ms = envelope.as_ref().map_or(0, |e| e.pushed_ms);
        let body = envelope.map(|e| e.body);
        Self {
            id,
            name: body.as_ref().map(|b| b.name.clone()).unwrap_or_default(),
            payload: body.as_ref().map(|b| queue.shown(&b.payload)).unwrap_or_default(),
            failed,
            failures: body.as_ref().map(|b| b.extra.failures.clone()).unwrap_or_default(),
            last_error: body.and_then(|b| b.last_error),
            pushed_ms,
            due_ms,
            worker,
            blocked_by: line,
        }
    }
}

/// A job given up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dead {
    /// Its id; `None` if its bytes cannot be read.
    pub id: Option<JobId>,
    /// What it was called; empty if its bytes cannot be read.
    pub name: String,
    /// Its content, as JSON text; not of a queue that is [sealed](Queue::sealed).
    pub payload: String,
    /// Attempts that had failed.
    pub failed: u16,
    /// How the last ten of them did, the latest last.
    pub failures: Vec<Failure>,
    /// Why it was given up.
    pub reason: String,
    /// When: ms since 1970.
    pub died_ms: u64,
    corpse: Corpse,
}

impl Dead {
    fn new(queue: &Queue, corpse: Corpse) -> Self {
        let envelope = Envelope::decode(&corpse.bytes).ok();
        let body = envelope.as_ref().map(|e| &e.body);
        Self {
            id: envelope.as_ref().map(|e| e.id),
            name: body.map(|b| b.name.clone()).unwrap_or_default(),
            payload: body.map(|b| queue.shown(&b.payload)).unwrap_or_default(),
            failed: envelope.as_ref().map_or(0, |e| e.failed),
            failures: body.map(|b| b.extra.failures.clone()).unwrap_or_default(),
            reason: corpse.reason.clone(),
            died_ms: corpse.died_ms,
            corpse,
        }
    }
}
