//! Settings: nodes and limits.

use std::time::Duration;

use serde::Deserialize;

use crate::cluster::replica_source::ReplicaSource;
use crate::replica::{Options, Replica};

/// Behaviour of reads when no replica is usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoReplica {
    /// Reads go to the primary.
    #[default]
    UsePrimary,
    /// Reads fail with [`Error::NoReplica`](crate::Error::NoReplica); the primary is kept for
    /// writes.
    Refuse,
}

/// Settings of a [`Db`](crate::Db), for configuration files and environment variables.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of any node; with `replicas`, normally that of the primary.
    pub url: String,
    /// Further nodes. Their roles are observed, not assumed.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Address whose host name stands for all replicas: each IP address to which it resolves is a
    /// replica, now and later. Certificates are then verified against the IP address; where that
    /// matters, list replicas by name.
    #[serde(default)]
    pub discover: Option<String>,
    /// Interval at which replicas are discovered. Default: 5 s.
    #[serde(default = "defaults::discovery", with = "humantime_serde")]
    pub discovery_interval: Duration,
    /// Options of the first node, instead of its address.
    #[serde(skip)]
    pub(crate) options: Option<Options>,
    #[serde(skip)]
    pub(crate) discover_with: Option<ReplicaSource>,
    /// Maximum number of connections to each node, without the monitor's own one. Default: 10.
    #[serde(default = "defaults::connections")]
    pub max_connections: u32,
    /// Number of connections to each node that are kept open even if idle. Default: 0.
    #[serde(default)]
    pub min_connections: u32,
    /// Longest wait for a connection. Default: 3 s.
    #[serde(default = "defaults::acquire", with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// Maximum lag of a replica that gets reads. Default: 5 s.
    #[serde(default = "defaults::lag", with = "humantime_serde")]
    pub max_replica_lag: Duration,
    /// Interval at which every node is asked for its role and position. Default: 500 ms.
    #[serde(default = "defaults::interval", with = "humantime_serde")]
    pub monitor_interval: Duration,
    /// Longest wait of a write while there is no primary. Default: 0; the write fails at once.
    #[serde(default, with = "humantime_serde")]
    pub primary_wait: Duration,
    /// Maximum duration of a statement. The server ends a statement that runs longer (MySQL: a
    /// read); two seconds later the client stops waiting for the answer. Zero disables both. Not
    /// supported on SQLite. Default: 30 s.
    #[serde(default = "defaults::statement", with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// Longest wait for a lock (SQLite: for the writer). Default: 5 s.
    #[serde(default = "defaults::lock", with = "humantime_serde")]
    pub lock_timeout: Duration,
    /// Duration of the first answer above which a statement is logged, without its values. Default:
    /// 500 ms.
    #[serde(default = "defaults::slow", with = "humantime_serde")]
    pub slow_query: Duration,
    /// Behaviour of reads when no replica is usable.
    #[serde(default)]
    pub no_replica: NoReplica,
    /// Functions of the application that neither write nor lock.
    #[serde(default)]
    pub safe_functions: Vec<String>,
}

mod defaults {
    use std::time::Duration;

    pub(super) fn connections() -> u32 {
        10
    }
    pub(super) fn acquire() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) fn lag() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn discovery() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn interval() -> Duration {
        Duration::from_millis(500)
    }
    pub(super) fn statement() -> Duration {
        Duration::from_secs(30)
    }
    pub(super) fn slow() -> Duration {
        Duration::from_millis(500)
    }
    pub(super) fn lock() -> Duration {
        Duration::from_secs(5)
    }
}

impl Config {
    /// Creates the default settings for an address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            replicas: Vec::new(),
            discover: None,
            discovery_interval: defaults::discovery(),
            options: None,
            discover_with: None,
            max_connections: defaults::connections(),
            min_connections: 0,
            acquire_timeout: defaults::acquire(),
            max_replica_lag: defaults::lag(),
            monitor_interval: defaults::interval(),
            primary_wait: Duration::ZERO,
            statement_timeout: defaults::statement(),
            lock_timeout: defaults::lock(),
            slow_query: defaults::slow(),
            no_replica: NoReplica::default(),
            safe_functions: Vec::new(),
        }
    }

    /// Returns the time within which a node has to answer a probe.
    pub(crate) fn look_limit(&self) -> Duration {
        self.acquire_timeout.min(self.monitor_interval.max(Duration::from_secs(1)))
    }
}

impl std::fmt::Debug for Config {
    /// Omits the addresses, because they may contain passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("nodes", &(1 + self.replicas.len())).finish_non_exhaustive()
    }
}
