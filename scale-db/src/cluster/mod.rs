//! Nodes of a cluster: their roles, their lag, and the choice among them.

pub(crate) mod balance;
pub(crate) mod capabilities;
pub(crate) mod choose;
pub(crate) mod discover;
pub(crate) mod lag;
pub(crate) mod monitor;
pub(crate) mod node;
pub(crate) mod primary;
pub(crate) mod replica_source;
pub(crate) mod role;

pub use self::node::NodeStatus;
pub use self::role::Role;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::backend::Backend;
use crate::cluster::node::Node;
use crate::cluster::primary::{Election, PrimaryTracker};
use crate::config::Config;
use crate::dialect::{Dialect, Probe};
use crate::error::Error;
use crate::log::Log;
use crate::pool::Pools;
use crate::router::Router;

/// State that all handles of a database share.
pub(crate) struct Cluster<DB: Backend> {
    /// Distinguishes the handles of one process, for sticky scopes.
    pub(crate) id: usize,
    pub(crate) dialect: Dialect,
    pub(crate) pools: Pools<DB>,
    pub(crate) nodes: ArcSwap<Vec<Arc<Node<DB>>>>,
    pub(crate) router: Router,
    pub(crate) config: Config,
    pub(crate) tracker: Arc<PrimaryTracker>,
    /// Log of the primary, from the last probe round that found one.
    pub(crate) primary_log: ArcSwapOption<Log>,
    /// True if the last probe round found a primary, and every node answered.
    pub(crate) all_seen: AtomicBool,
    cluster: Mutex<Option<String>>,
    rivals: Mutex<Vec<usize>>,
    /// Permits to read from the primary what a replica would serve.
    pub(crate) spill: Arc<Semaphore>,
    pub(crate) closed: AtomicBool,
    /// Wakes the monitor for a probe round now.
    pub(crate) wake: Arc<Notify>,
    /// Notified after each probe round.
    pub(crate) looked: Notify,
}

impl<DB: Backend> Cluster<DB> {
    /// Creates the state. Its nodes are not probed yet.
    pub(crate) fn new(config: Config, pools: Pools<DB>, nodes: Vec<Node<DB>>) -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            dialect: pools.dialect,
            nodes: ArcSwap::from_pointee(nodes.into_iter().map(Arc::new).collect()),
            router: Router::new(pools.dialect, config.safe_functions.iter().cloned()),
            tracker: Arc::clone(&pools.tracker),
            pools,
            primary_log: ArcSwapOption::empty(),
            all_seen: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            cluster: Mutex::new(None),
            rivals: Mutex::default(),
            spill: Arc::new(Semaphore::new(config.max_connections.div_ceil(2).max(1) as usize)),
            config,
            wake: Arc::new(Notify::new()),
            looked: Notify::new(),
        })
    }

    pub(crate) fn primary_number(&self) -> Option<usize> {
        self.tracker.primary()
    }

    pub(crate) fn primary_node(&self) -> Option<Arc<Node<DB>>> {
        let number = self.primary_number()?;
        self.nodes.load().iter().find(|node| node.number == number).cloned()
    }

    /// Connects once by hand to find the cause of an error: a pool that timed out does not say why
    /// its connections failed.
    pub(crate) async fn cause_of(&self, error: sqlx::Error) -> sqlx::Error {
        let (sqlx::Error::PoolTimedOut, Some(node)) = (&error, self.nodes.load().first().cloned())
        else {
            return error;
        };
        let options = node.pool().connect_options();
        let attempt = <DB::Connection as sqlx::Connection>::connect_with(&options);
        match tokio::time::timeout(self.config.acquire_timeout, attempt).await {
            Ok(Err(cause)) => cause,
            _ => error,
        }
    }

    /// Returns the nodes that take writes with equal rights, if that leaves no primary.
    pub(crate) fn rivals(&self) -> Vec<usize> {
        self.rivals.lock().clone()
    }

    pub(crate) fn no_primary(&self) -> Error {
        match self.rivals() {
            rivals if rivals.is_empty() => Error::NoPrimary(self.nodes.load().len()),
            nodes => Error::TwoPrimaries { nodes },
        }
    }

    /// Applies the outcome of an election.
    pub(crate) fn set_primary(&self, election: &Election) {
        let (rivals, undecided) = match election {
            Election::Undecided(nodes) => (nodes.clone(), nodes.clone()),
            Election::Primary { rivals, .. } => (rivals.clone(), Vec::new()),
            Election::Nobody => (Vec::new(), Vec::new()),
        };
        if !rivals.is_empty() {
            tracing::error!(
                nodes = ?rivals,
                "several database nodes take writes: stop all but one",
            );
        }
        metrics::gauge!("scale_db_rival_primaries").set(rivals.len() as f64);
        *self.rivals.lock() = undecided;
        // Before any statement can write to it.
        if let Election::Primary { number, .. } = election {
            self.nodes
                .load()
                .iter()
                .filter(|node| node.number == *number)
                .for_each(|node| node.depose(false));
        }
        match self.tracker.accept(election) {
            (old, new) if old == new => {}
            (_, None) => tracing::error!("no database primary: no writes until one is found"),
            (old, Some(new)) => {
                let nodes = self.nodes.load();
                nodes.iter().filter(|node| node.number != new).for_each(|node| node.depose(true));
                if old.is_some() {
                    tracing::warn!(node = new, "the database primary has changed");
                } else {
                    tracing::info!(node = new, "found the database primary");
                }
            }
        }
    }

    /// Returns whether a node belongs to another cluster than the first node that named its
    /// cluster.
    pub(crate) fn is_stranger(&self, probe: &Probe) -> bool {
        let Some(theirs) = &probe.cluster else { return false };
        self.cluster.lock().get_or_insert_with(|| theirs.clone()) != theirs
    }
}
