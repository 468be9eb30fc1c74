//! One server: its pool, and what is known of its health.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::{Database, Pool};

use crate::alive::Alive;
use crate::dialect::Dialect;
use crate::position::Position;

/// What a node is, as it says itself.
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

/// What is known of one node, for health pages and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// 0 is the first address given.
    pub number: usize,
    /// Its role at the last look.
    pub role: Role,
    /// Whether statements go there.
    pub fit: bool,
    /// How far it has written or replayed.
    pub position: Position,
    /// How far it is behind, in time.
    pub lag: Duration,
    /// Statements running there for this process.
    pub in_flight: u32,
}

/// The latency (ns) a node is thought to have when it comes into use: fifty statements later it is known better.
const SLOW_START: u64 = 50_000_000;

pub(crate) struct Node<DB: Database> {
    pub(crate) number: usize,
    pub(crate) pool: Pool<DB>,
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
    position: AtomicU64,
    lag_ms: AtomicU64,
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
    pub(crate) fn new(number: usize, pool: Pool<DB>, alive: Alive, weight: f64, found: Option<String>) -> Self {
        Self {
            number,
            pool,
            alive,
            watch: Mutex::new(None),
            weight,
            found,
            role: AtomicU8::new(Role::Down as u8),
            fit: AtomicBool::new(false),
            stranger: AtomicBool::new(false),
            position: AtomicU64::new(0),
            lag_ms: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(1_000_000),
        }
    }

    /// A connection to look at the node through, not of its pool. Give it [back](Self::watched) if it is of use still.
    pub(crate) async fn watch(&self) -> Result<DB::Connection, sqlx::Error> {
        let kept = self.watch.lock().take();
        match kept {
            Some(connection) => Ok(connection),
            None => <DB::Connection as sqlx::Connection>::connect_with(&self.pool.connect_options()).await,
        }
    }

    pub(crate) fn watched(&self, connection: Option<DB::Connection>) {
        *self.watch.lock() = connection;
    }

    pub(crate) fn role(&self) -> Role {
        match self.role.load(Relaxed) {
            1 => Role::Primary,
            2 => Role::Replica,
            _ => Role::Down,
        }
    }

    /// Whether reads may go there.
    pub(crate) fn serves(&self, needed: Position) -> bool {
        self.fit.load(Relaxed) && self.role.load(Relaxed) == Role::Replica as u8 && self.position.load(Relaxed) >= needed.0
    }

    pub(crate) fn saw(&self, role: Role, position: Position, lag: Duration, fit: bool) {
        self.role.store(role as u8, Relaxed);
        self.position.store(position.0, Relaxed);
        self.lag_ms.store(lag.as_millis() as u64, Relaxed);
        if fit && !self.fit.swap(fit, Relaxed) {
            // Back, perhaps with empty caches: it begins with a small share, and earns more by being quick.
            self.latency.fetch_max(SLOW_START, Relaxed);
        }
        self.fit.store(fit, Relaxed);
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

    pub(crate) fn is_stranger(&self) -> bool {
        self.stranger.load(Relaxed)
    }

    pub(crate) fn recognise(&self, stranger: bool) {
        if stranger && !self.stranger.swap(stranger, Relaxed) {
            tracing::error!(node = self.number, "a database node belongs to another cluster and is not used");
        }
        self.stranger.store(stranger, Relaxed);
    }

    pub(crate) fn down(&self) {
        self.doubt();
        self.saw(Role::Down, Position(self.position.load(Relaxed)), Duration::ZERO, false);
    }

    pub(crate) fn status(&self) -> NodeStatus {
        NodeStatus {
            number: self.number,
            role: self.role(),
            fit: self.fit.load(Relaxed),
            position: Position(self.position.load(Relaxed)),
            lag: Duration::from_millis(self.lag_ms.load(Relaxed)),
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
