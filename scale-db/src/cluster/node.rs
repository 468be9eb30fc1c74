//! One server: its pool and its health.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use sqlx::{Database, Pool};
use tokio::sync::Notify;

use crate::backend::Backend;
use crate::cluster::role::Role;
use crate::dialect::{Dialect, Probe};
use crate::log::Log;
use crate::pool::liveness::Liveness;
use crate::position::Position;

/// Status of one node, for health pages and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Number of the node; 0 is the first address given.
    pub number: usize,
    /// Role at the last probe.
    pub role: Role,
    /// True if statements are sent to the node.
    pub fit: bool,
    /// Position to which the node has written or replayed, where nodes report it.
    pub position: Position,
    /// Replication lag; `None` if unknown.
    pub lag: Option<Duration>,
    /// Number of statements of this process that run there.
    pub in_flight: u32,
}

/// State of a node's probes.
#[derive(Debug, Default)]
pub(crate) struct ProbeState {
    pub(crate) probe: usize,
    started: Option<String>,
    timeline: u64,
}

/// Value of an unknown lag.
const UNKNOWN: u64 = u64::MAX;

/// Minimum time between two renewals of a node's pool.
const RENEWAL: Duration = Duration::from_secs(2);

/// Initial latency (ns) of a node that becomes usable; after about fifty statements the measured
/// latency dominates.
const SLOW_START: u64 = 50_000_000;

/// Minimum time between two lines of the log about a node's usability.
const QUIET: Duration = Duration::from_secs(10);

pub(crate) struct Node<DB: Database> {
    pub(crate) number: usize,
    /// Host and port for the log, without a password; empty for a pool that is not this crate's
    /// own.
    pub(crate) place: String,
    /// Usability of the node as last logged, and the time of that line.
    logged: Mutex<(bool, Option<Instant>)>,
    pool: ArcSwap<Pool<DB>>,
    /// Time of the last renewal; `None` for a pool that is not this crate's own and is never
    /// replaced.
    renewed: Option<Mutex<Instant>>,
    /// True if a probe was not answered in time.
    was_late: AtomicBool,
    liveness: Liveness,
    /// Connection of the monitor, outside of the pool, so that an exhausted pool does not look like
    /// an unhealthy node.
    watch: Mutex<Option<DB::Connection>>,
    /// Weight of the node's share of reads.
    weight: f64,
    /// Address by which the node was discovered.
    pub(crate) found: Option<String>,
    /// True if discovery does not find its address any more.
    pub(crate) is_gone: AtomicBool,
    role: AtomicU8,
    fit: AtomicBool,
    /// True if the node belongs to another database cluster; then it is never used.
    stranger: AtomicBool,
    /// Log that the node has written or replayed.
    log: ArcSwap<Log>,
    lag_ms: AtomicU64,
    /// Index of the probe that the node answers, and the highest timeline seen since the node
    /// started.
    pub(crate) asked: Arc<Mutex<ProbeState>>,
    /// Wakes tasks that wait for an answer of the node when it is found down.
    lost: Notify,
    /// True if another node has become the primary instead.
    deposed: AtomicBool,
    /// True if its idle connections are being cleared of prepared statements.
    forgetting: AtomicBool,
    /// Number of consecutive probes without an answer.
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
    pub(crate) fn new(
        number: usize,
        pool: Pool<DB>,
        liveness: Liveness,
        asked: Arc<Mutex<ProbeState>>,
        weight: f64,
    ) -> Self {
        Self {
            number,
            place: String::new(),
            logged: Mutex::new((true, None)),
            pool: ArcSwap::from_pointee(pool),
            renewed: Some(Mutex::new(Instant::now())),
            was_late: AtomicBool::new(false),
            liveness,
            watch: Mutex::new(None),
            weight,
            found: None,
            is_gone: AtomicBool::new(false),
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

    /// Creates a node of an existing pool.
    pub(crate) fn of_pool(number: usize, pool: Pool<DB>) -> Self {
        Self { renewed: None, ..Self::new(number, pool, Liveness::default(), Arc::default(), 1.0) }
    }

    /// Returns the pool of its connections.
    pub(crate) fn pool(&self) -> Pool<DB> {
        Pool::clone(&self.pool.load())
    }

    /// Replaces the pool, after the node or some of its connections stopped answering. sqlx pings
    /// returned connections without a limit, so silent ones would occupy the old pool until TCP
    /// gives up. Running statements continue, and their connections are closed afterwards.
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
        tracing::warn!(
            node = self.number,
            "connections to a database node stopped answering; replacing its pool"
        );
        let options = Arc::unwrap_or_clone(old.connect_options());
        self.pool.store(Arc::new(old.options().clone().connect_lazy_with(options)));
        tokio::spawn(async move { old.close().await });
    }

    /// Closes the node's connections, and waits for those in use.
    pub(crate) async fn close(&self) {
        self.pool().close().await;
    }

    /// Opens the minimum number of connections: the pool itself would open them only when the first
    /// ones expire.
    pub(crate) async fn fill(&self) {
        let kept = self.pool().options().get_min_connections();
        futures_util::future::join_all((0..kept).map(|_| self.pool().acquire())).await;
    }

    /// Returns the monitor's connection, which is not of the pool. Give it [back](Self::watched) if
    /// it is still usable.
    pub(crate) async fn watch(&self) -> Result<DB::Connection, sqlx::Error> {
        let kept = self.watch.lock().take();
        if let Some(connection) = kept {
            return Ok(connection);
        }
        // Its role may have been granted more permissions meanwhile.
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

    /// Returns whether the node may serve reads that need not see a particular write.
    pub(crate) fn is_fit_replica(&self) -> bool {
        self.fit.load(Relaxed) && self.role.load(Relaxed) == Role::Replica as u8
    }

    /// Returns the log that the node had written or replayed at the last probe.
    pub(crate) fn log(&self) -> Guard<Arc<Log>> {
        self.log.load()
    }

    /// Sets the timeline of a replica, which reports it only while it receives and after its next
    /// restart point: in between, it is on the highest one seen.
    pub(crate) fn remember_timeline(&self, probe: &mut Probe) {
        let (Log::Wal { timeline, .. }, Role::Replica) = (&mut probe.log, probe.role) else {
            return;
        };
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
            // The node may have come back with empty caches, so it starts with a small share of
            // reads, and gets more as it answers fast.
            self.latency.fetch_max(SLOW_START, Relaxed);
        }
        self.fit.store(fit, Relaxed);
    }

    /// Logs that the node has become unusable for this reason, or usable again (`None`): once per
    /// change, and at most every [`QUIET`].
    pub(crate) fn log_change(&self, reason: Option<&dyn std::fmt::Display>) {
        let mut logged = self.logged.lock();
        let (was_usable, at) = *logged;
        if was_usable == reason.is_none() || at.is_some_and(|at| at.elapsed() < QUIET) {
            return;
        }
        *logged = (reason.is_none(), Some(Instant::now()));
        let (node, place) = (self.number, &self.place);
        if let Some(reason) = reason {
            tracing::warn!(node, %place, %reason, "a database node gets no statements");
        } else {
            tracing::info!(node, %place, "a database node gets statements again");
        }
    }

    fn set_lag(&self, lag: Option<Duration>) {
        self.lag_ms.store(lag.map_or(UNKNOWN, |lag| lag.as_millis() as u64), Relaxed);
    }

    /// Takes the node out of service until a probe finds it usable again.
    pub(crate) fn eject(&self) {
        self.doubt();
        self.fit.store(false, Relaxed);
    }

    /// Marks the node's connections as doubtful after one was found broken.
    pub(crate) fn doubt(&self) {
        self.liveness.doubt();
    }

    /// Clears the prepared statements of idle connections, because a table has changed.
    pub(crate) fn forget_plans(self: &Arc<Self>)
    where
        DB: Backend,
    {
        if self.forgetting.swap(true, Relaxed) {
            return;
        }
        let (node, pool) = (Arc::clone(self), self.pool());
        tokio::spawn(async move {
            // Connections in use may be missed; their statements are repeated too.
            let idle: Vec<_> =
                std::iter::from_fn(|| pool.try_acquire()).take(pool.size() as usize).collect();
            node.forgetting.store(false, Relaxed);
            for mut connection in idle {
                let _ = DB::forget_plans(&mut connection).await;
            }
        });
    }

    /// Sets whether another node has become the primary instead of this one.
    pub(crate) fn depose(&self, deposed: bool) {
        self.deposed.store(deposed, Relaxed);
        if deposed {
            self.lost.notify_waiters();
        }
    }

    /// Waits until another node has become the primary instead of this one.
    pub(crate) async fn deposed(&self) {
        loop {
            let lost = self.lost.notified();
            if self.deposed.load(Relaxed) {
                return;
            }
            lost.await;
        }
    }

    /// Returns whether the node is healthy and all its connections are in use.
    pub(crate) fn is_full(&self) -> bool {
        let pool = self.pool();
        self.unanswered.load(Relaxed) == 0
            && pool.size() >= pool.options().get_max_connections()
            && pool.num_idle() == 0
    }

    pub(crate) fn is_stranger(&self) -> bool {
        self.stranger.load(Relaxed)
    }

    pub(crate) fn recognise(&self, stranger: bool) {
        if stranger && !self.stranger.swap(stranger, Relaxed) {
            tracing::error!(
                node = self.number,
                "a database node belongs to another cluster; it is not used"
            );
        }
        self.stranger.store(stranger, Relaxed);
    }

    /// Records a probe without an answer. `late` means that the node may only be slow; tasks that
    /// wait for it are woken after two late probes in a row.
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

    /// Returns whether the node answered the previous probe.
    pub(crate) fn has_answered(&self) -> bool {
        self.unanswered.load(Relaxed) == 0
    }

    /// Waits until the node is found down by two probes, or by one that was not just late.
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
        f64::from(self.in_flight.load(Relaxed) + 1) * self.latency.load(Relaxed) as f64
            / self.weight
    }

    /// Updates the moving average of latency: one eighth of the new value, seven eighths of the
    /// old.
    pub(crate) fn took(&self, time: Duration) {
        let new = time.as_nanos().min(u128::from(u64::MAX / 16)) as u64;
        let old = self.latency.load(Relaxed);
        self.latency.store(old - old / 8 + new / 8, Relaxed);
    }
}

/// Guard that counts a statement as running on a node until dropped.
#[derive(Debug)]
pub(crate) struct InFlight<DB: Database> {
    pub(crate) node: Arc<Node<DB>>,
    start: Instant,
}

impl<DB: Database> InFlight<DB> {
    pub(crate) fn new(node: Arc<Node<DB>>) -> Self {
        node.in_flight.fetch_add(1, Relaxed);
        Self { node, start: Instant::now() }
    }

    /// Records the time of the first answer as the node's latency, however slowly the rest is read.
    pub(crate) fn answered(&self, dialect: Dialect, sql: &str, slow: Duration) {
        let took = self.start.elapsed();
        self.node.took(took);
        crate::observe::saw(dialect, sql, self.node.number, took, slow);
    }
}

impl<DB: Database> Drop for InFlight<DB> {
    fn drop(&mut self) {
        self.node.in_flight.fetch_sub(1, Relaxed);
    }
}
