//! Discovery of replicas, by DNS or by a function of the application.
//!
//! | when | then |
//! | --- | --- |
//! | a new address is found | a node is created for it; it gets reads once a probe has found it usable |
//! | an address is no longer found | it gets no new statements; running ones are allowed to finish |
//! | discovery does not answer within the interval (at least 5 s), or panics | the known replicas stay |
//! | the name cannot be resolved, or resolves to nothing | the known replicas stay |
//! | a discovered node is promoted | it becomes the primary, as a listed one would |

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use url::Url;

use crate::backend::Backend;
use crate::db::Inner;
use crate::replica::Replica;

/// Minimum time limit of a discovery.
const LONGEST: Duration = Duration::from_secs(5);

/// Returns the addresses of the current replicas.
#[derive(Clone)]
pub(crate) struct Discover(
    Arc<dyn Fn() -> BoxFuture<'static, io::Result<Vec<String>>> + Send + Sync>,
);

impl fmt::Debug for Discover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Discover")
    }
}

impl Discover {
    pub(crate) fn with<F>(find: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<String>>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(find())))
    }

    /// Discovers all IP addresses of the host in this address; each replaces the host.
    pub(crate) fn dns(url: String) -> Self {
        Self::with(move || {
            let url = url.clone();
            async move {
                // The error must not show the address, which may contain a password.
                let unreadable = || {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "the discovery address cannot be parsed",
                    )
                };
                let url = Url::parse(&url).map_err(|_| unreadable())?;
                let host = url.host_str().ok_or_else(unreadable)?.to_owned();
                let found = tokio::net::lookup_host((host, url.port().unwrap_or_default())).await?;
                let put = |address: std::net::SocketAddr| {
                    let mut url = url.clone();
                    url.set_ip_host(address.ip()).ok()?;
                    Some(url.into())
                };
                Ok(found.filter_map(put).collect())
            }
        })
    }
}

/// Runs discovery repeatedly until the last handle is dropped.
pub(crate) async fn run<DB: Backend>(inner: Weak<Inner<DB>>, discover: Discover) {
    loop {
        let Some(interval) = inner.upgrade().map(|i| i.config.discovery_interval) else { return };
        tokio::time::sleep(interval).await;
        let Some(inner) = inner.upgrade().filter(|inner| !inner.closed.load(Ordering::Relaxed))
        else {
            return;
        };
        if look(&inner, &discover).await {
            inner.wake.notify_one();
        }
    }
}

/// Updates the nodes to the discovered addresses. Returns whether there was a change.
pub(crate) async fn look<DB: Backend>(inner: &Inner<DB>, discover: &Discover) -> bool {
    let find = std::panic::AssertUnwindSafe(async { (discover.0)().await }).catch_unwind();
    let found = tokio::time::timeout(inner.config.discovery_interval.max(LONGEST), find).await;
    let found = match found
        .unwrap_or_else(|_| Ok(Err(io::ErrorKind::TimedOut.into())))
        .unwrap_or_else(|_| Err(io::Error::other("the discovery function panicked")))
    {
        Ok(mut found) if !found.is_empty() => {
            found.sort();
            found.dedup();
            found
        }
        Ok(_) => {
            tracing::warn!("discovery found no replica; keeping the known ones");
            return false;
        }
        Err(error) => {
            tracing::warn!(%error, "discovery of replicas failed; keeping the known ones");
            return false;
        }
    };
    let old = inner.nodes.load_full();
    let gone = |node: &Arc<crate::cluster::node::Node<DB>>| {
        node.found.as_ref().is_some_and(|url| !found.contains(url))
    };
    let known = |url: &String| old.iter().any(|node| node.found.as_ref() == Some(url));
    let mut nodes: Vec<_> = old.iter().filter(|node| !gone(node)).cloned().collect();
    let mut number = old.iter().map(|node| node.number).max().unwrap_or_default();
    for url in found.iter().filter(|url| !known(url)) {
        number += 1;
        match inner.pools.found(&inner.config, number, &Replica::new(url)) {
            Ok(node) => nodes.push(Arc::new(node)),
            Err(error) => tracing::warn!(%error, "a discovered replica cannot be used"),
        }
    }
    let changed = nodes.len() != old.len()
        || number > old.iter().map(|node| node.number).max().unwrap_or_default();
    if changed {
        tracing::info!(nodes = nodes.len(), "the set of database nodes has changed");
        inner.nodes.store(Arc::new(nodes));
        for node in old.iter().filter(|node| gone(node)) {
            let node = Arc::clone(node);
            node.eject();
            // Waits for running statements.
            tokio::spawn(async move { node.close().await });
        }
    }
    changed
}
