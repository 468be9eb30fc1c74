//! One server: its pool, and what is known of its health.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use sqlx::{Database, Pool};
use tokio::sync::Notify;

use crate::alive::Alive;
use crate::backend::Backend;
use crate::dialect::{Dialect, Probe};
use crate::log::Log;
use crate::position::Position;

/// Role of a node, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// It has not answered lately.
    Down = 0,
    /// It takes writes.
    Primary = 1,
    /// It follows a primary.
    Replica = 2,
}

/// Status of one node, for health pages and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// 0 is the first address given.
    pub number: usize,
    /// Its role at the last look.
    pub role: Role,
    /// Statements go there.
    pub fit: bool,
    /// Position to which it has written or replayed, where nodes say so.
    pub position: Position,
    /// Replication lag; `None` if it is not known.
    pub lag: Option<Duration>,
    /// Statements running there for this process.
    pub in_flight: u32,
}

/// Memory of a node between two looks.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) probe: usize,
    started: Option<String>,
    timeline: u64,
}

/// Stands for a lag that is not known.
const UNKNOWN: u64 = u64::MAX;

/// Between two new pools of one node at least.
const RENEWAL: Duration = Duration::from_secs(2);

/// The latency (ns) a node is thought to have when it comes into use: fifty statements later it is known better.
const SLOW_START: u64 = 50_000_000;

pub(crate) struct Node<DB: Database> {
    pub(crate) number: usize,
    pool: ArcSwap<Pool<DB>>,
    /// The pool is this crate's own, and may be replaced; when it was.
    renewed: Option<Mutex<Instant>>,
    /// A look had no answer in time.
    was_late: AtomicBool,
    alive: Alive,
    /// The monitor's own connection: a pool that is exhausted is no sign of illness.
    watch: Mutex<Option<DB::Connection>>,
    /// Its share of the reads, beside that of others.
    weight: f64,
    /// The address by which it was discovered.
    pub(crate) found: Option<String>,
    role: AtomicU8,
    fit: AtomicBool,
    /// It belongs to another database cluster: never used.
    stranger: AtomicBool,
    /// Log that it has written or replayed.
    log: ArcSwap<Log>,
    lag_ms: AtomicU64,
    /// Number of the dialect's probe that it answers, and the latest timeline it was seen on since it started.
    pub(crate) asked: Arc<Mutex<Asked>>,
    /// Wakes whoever waits for an answer of the node when it is found down.
    lost: Notify,
    /// Another node is the primary instead.
    deposed: AtomicBool,
    /// Its connections are being told to forget what they have prepared.
    forgetting: AtomicBool,
    /// Looks in a row that had no answer.
    unanswered: AtomicU32,
    in_flight: AtomicU32,
    /// Moving average, in nanoseconds.
    latency: AtomicU64,
}

impl<DB: Database> std::fmt::Debug for Node<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Node").field(&self.status()).finish()
    }
}

impl<DB: Database> Node<DB> {
    pub(crate) fn new(number: usize, pool: Pool<DB>, alive: Alive, asked: Arc<Mutex<Asked>>, weight: f64) -> Self {
        Self {
            number,
            pool: ArcSwap::from_pointee(pool),
            renewed: Some(Mutex::new(Instant::now())),
            was_late: AtomicBool::new(false),
            alive,
            watch: Mutex::new(None),
            weight,
            found: None,
            role: AtomicU8::new(Role::Down as u8),
            fit: AtomicBool::new(false),
            stranger: AtomicBool::new(false),
            log: ArcSwap::from_pointee(Log::Unknown),
            lag_ms: AtomicU64::new(UNKNOWN),
            asked,
            lost: Notify::new(),
            deposed: AtomicBool::new(false),
            forgetting: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(1_000_000),
        }
    }

    /// A node of which nothing is known, but its pool.
    pub(crate) fn of_pool(number: usize, pool: Pool<DB>) -> Self {
        Self { renewed: None, ..Self::new(number, pool, Alive::default(), Arc::default(), 1.0) }
    }

    /// Returns the pool of its connections.
    pub(crate) fn pool(&self) -> Pool<DB> {
        Pool::clone(&self.pool.load())
    }

    /// Takes a new pool, after the node or some of its connections fell silent: those that are asked whether they live when they go back
    /// keep their places in the old one for as long as TCP hopes. What runs there goes on, and its connections are closed after it.
    pub(crate) fn renew(&self) {
        let Some(renewed) = &self.renewed else { return };
        let old = self.pool();
        {
            let mut renewed = renewed.lock();
            if renewed.elapsed() < RENEWAL || old.is_closed() {
                return;
            }
            *renewed = Instant::now();
        }
        tracing::warn!(node = self.number, "connections to a database node fell silent; it gets new ones");
        let options = Arc::unwrap_or_clone(old.connect_options());
        self.pool.store(Arc::new(old.options().clone().connect_lazy_with(options)));
        tokio::spawn(async move { old.close().await });
    }

    /// Closes its connections, and waits for those in use.
    pub(crate) async fn close(&self) {
        self.pool().close().await;
    }

    /// Opens the connections that its pool is to keep: by itself, the pool would think of them when the first ones grow old.
    pub(crate) async fn fill(&self) {
        let kept = self.pool().options().get_min_connections();
        futures_util::future::join_all((0..kept).map(|_| self.pool().acquire())).await;
    }

    /// A connection to look at the node through, not of its pool. Give it [back](Self::watched) if it is of use still.
    pub(crate) async fn watch(&self) -> Result<DB::Connection, sqlx::Error> {
        let kept = self.watch.lock().take();
        if let Some(connection) = kept {
            return Ok(connection);
        }
        // Its role may have been granted more meanwhile.
        self.asked.lock().probe = 0;
        <DB::Connection as sqlx::Connection>::connect_with(&self.pool().connect_options()).await
    }

    pub(crate) fn watched(&self, connection: Option<DB::Connection>) {
        *self.watch.lock() = connection.filter(|_| !self.pool().is_closed());
    }

    pub(crate) fn role(&self) -> Role {
        match self.role.load(Relaxed) {
            1 => Role::Primary,
            2 => Role::Replica,
            _ => Role::Down,
        }
    }

    /// Returns whether reads that need to see no write in particular may go there.
    pub(crate) fn is_fit_replica(&self) -> bool {
        self.fit.load(Relaxed) && self.role.load(Relaxed) == Role::Replica as u8
    }

    /// Returns what it had written or replayed at the last look.
    pub(crate) fn log(&self) -> Guard<Arc<Log>> {
        self.log.load()
    }

    /// A replica says its timeline while it receives, and after its next restart point: in between, it is still on the one it was seen on.
    pub(crate) fn remember_timeline(&self, probe: &mut Probe) {
        let (Log::Wal { timeline, .. }, Role::Replica) = (&mut probe.log, probe.role) else { return };
        let mut asked = self.asked.lock();
        if asked.started != probe.started {
            asked.started.clone_from(&probe.started);
            asked.timeline = 0;
        }
        asked.timeline = asked.timeline.max(*timeline);
        *timeline = asked.timeline;
    }

    pub(crate) fn saw(&self, role: Role, log: Log, lag: Option<Duration>, fit: bool) {
        self.unanswered.store(0, Relaxed);
        if self.was_late.swap(false, Relaxed) {
            self.renew();
        }
        self.role.store(role as u8, Relaxed);
        self.log.store(Arc::new(log));
        self.set_lag(lag);
        if fit && !self.fit.swap(fit, Relaxed) {
            // Back, perhaps with empty caches: it begins with a small share, and earns more by being quick.
            self.latency.fetch_max(SLOW_START, Relaxed);
        }
        self.fit.store(fit, Relaxed);
    }

    fn set_lag(&self, lag: Option<Duration>) {
        self.lag_ms.store(lag.map_or(UNKNOWN, |lag| lag.as_millis() as u64), Relaxed);
    }

    /// Out of service until the monitor has seen it well again.
    pub(crate) fn eject(&self) {
        self.doubt();
        self.fit.store(false, Relaxed);
    }

    /// One of its connections was found broken.
    pub(crate) fn doubt(&self) {
        self.alive.doubt();
    }

    /// Lets idle connections forget what they have prepared: a table has changed.
    pub(crate) fn forget_plans(self: &Arc<Self>)
    where
        DB: Backend,
    {
        if self.forgetting.swap(true, Relaxed) {
            return;
        }
        let (node, pool) = (Arc::clone(self), self.pool());
        tokio::spawn(async move {
            // Those in use may be missed; whatever they run is repeated, too.
            let idle: Vec<_> = std::iter::from_fn(|| pool.try_acquire()).take(pool.size() as usize).collect();
            node.forgetting.store(false, Relaxed);
            for mut connection in idle {
                let _ = DB::forget_plans(&mut connection).await;
            }
        });
    }

    /// Another node has become the primary instead of this one, or this one the primary.
    pub(crate) fn depose(&self, deposed: bool) {
        self.deposed.store(deposed, Relaxed);
        if deposed {
            self.lost.notify_waiters();
        }
    }

    /// Waits until another node has become the primary instead.
    pub(crate) async fn deposed(&self) {
        loop {
            let lost = self.lost.notified();
            if self.deposed.load(Relaxed) {
                return;
            }
            lost.await;
        }
    }

    /// Returns whether it is well, but all of its connections are in use.
    pub(crate) fn is_full(&self) -> bool {
        let pool = self.pool();
        self.unanswered.load(Relaxed) == 0 && pool.size() >= pool.options().get_max_connections() && pool.num_idle() == 0
    }

    pub(crate) fn is_stranger(&self) -> bool {
        self.stranger.load(Relaxed)
    }

    pub(crate) fn recognise(&self, stranger: bool) {
        if stranger && !self.stranger.swap(stranger, Relaxed) {
            tracing::error!(node = self.number, "a database node belongs to another cluster and is not used");
        }
        self.stranger.store(stranger, Relaxed);
    }

    /// It does not answer. `late`: it may only be slow. Whoever waits for it goes elsewhere, if it is late twice in a row.
    pub(crate) fn down(&self, late: bool) {
        self.doubt();
        self.was_late.fetch_or(late, Relaxed);
        self.role.store(Role::Down as u8, Relaxed);
        self.fit.store(false, Relaxed);
        self.set_lag(None);
        if self.unanswered.fetch_add(1, Relaxed) > 0 || !late {
            self.unanswered.fetch_max(2, Relaxed);
            self.lost.notify_waiters();
        }
    }

    /// Returns whether it had answered the look before this one.
    pub(crate) fn has_answered(&self) -> bool {
        self.unanswered.load(Relaxed) == 0
    }

    /// Waits until the node is found down for good, if it is not.
    pub(crate) async fn lost(&self) {
        let lost = self.lost.notified();
        if self.unanswered.load(Relaxed) < 2 {
            lost.await;
        }
    }

    pub(crate) fn status(&self) -> NodeStatus {
        let lag = self.lag_ms.load(Relaxed);
        NodeStatus {
            number: self.number,
            role: self.role(),
            fit: self.fit.load(Relaxed),
            position: self.log.load().position().unwrap_or_default(),
            lag: (lag != UNKNOWN).then(|| Duration::from_millis(lag)),
            in_flight: self.in_flight.load(Relaxed),
        }
    }

    pub(crate) fn cost(&self) -> f64 {
        f64::from(self.in_flight.load(Relaxed) + 1) * self.latency.load(Relaxed) as f64 / self.weight
    }

    /// An eighth of the new, seven eighths of the old.
    pub(crate) fn took(&self, time: Duration) {
        let new = time.as_nanos().min(u128::from(u64::MAX / 16)) as u64;
        let old = self.latency.load(Relaxed);
        self.latency.store(old - old / 8 + new / 8, Relaxed);
    }
}

/// A statement's presence on a node: counted until dropped.
#[derive(Debug)]
pub(crate) struct Visit<DB: Database> {
    pub(crate) node: Arc<Node<DB>>,
    start: Instant,
}

impl<DB: Database> Visit<DB> {
    pub(crate) fn new(node: Arc<Node<DB>>) -> Self {
        node.in_flight.fetch_add(1, Relaxed);
        Self { node, start: Instant::now() }
    }

    /// The first answer is there: what counts as the node's speed, however slowly the rest is read.
    pub(crate) fn answered(&self, dialect: Dialect, sql: &str, slow: Duration) {
        let took = self.start.elapsed();
        self.node.took(took);
        crate::watch::saw(dialect, sql, self.node.number, took, slow);
    }
}

impl<DB: Database> Drop for Visit<DB> {
    fn drop(&mut self) {
        self.node.in_flight.fetch_sub(1, Relaxed);
    }
}
