//! Replicas that come and go: found by name, or by whatever the application asks.
//!
//! | when | then |
//! | --- | --- |
//! | a new address is found | a node of it is made; it gets reads once the monitor has seen it well |
//! | an address is found no more | it gets no new statements; running ones end |
//! | whoever is asked does not answer within the interval (5 s at least), or panics | what was found before stays |
//! | the name cannot be resolved, or to nothing | what was found before stays |
//! | a found node is promoted | it is the primary, as a listed one would be |

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

/// Time that whoever is asked for addresses has at least.
const LONGEST: Duration = Duration::from_secs(5);

/// Answers the addresses of the replicas that there are now.
#[derive(Clone)]
pub(crate) struct Discover(Arc<dyn Fn() -> BoxFuture<'static, io::Result<Vec<String>>> + Send + Sync>);

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

    /// All IP addresses of the host in this address, each put in its place.
    pub(crate) fn dns(url: String) -> Self {
        Self::with(move || {
            let url = url.clone();
            async move {
                // Neither error shows the address: it may hold a password.
                let unreadable =
                    || io::Error::new(io::ErrorKind::InvalidInput, "the address to discover replicas by cannot be read");
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

/// Looks again and again, until the last handle is gone.
pub(crate) async fn run<DB: Backend>(inner: Weak<Inner<DB>>, discover: Discover) {
    loop {
        let Some(interval) = inner.upgrade().map(|i| i.config.discovery_interval) else { return };
        tokio::time::sleep(interval).await;
        let Some(inner) = inner.upgrade().filter(|inner| !inner.closed.load(Ordering::Relaxed)) else { return };
        if look(&inner, &discover).await {
            inner.wake.notify_one();
        }
    }
}

/// Makes the nodes what was found. Whether anything is new.
pub(crate) async fn look<DB: Backend>(inner: &Inner<DB>, discover: &Discover) -> bool {
    let find = std::panic::AssertUnwindSafe(async { (discover.0)().await }).catch_unwind();
    let found = tokio::time::timeout(inner.config.discovery_interval.max(LONGEST), find).await;
    let found = match found
        .unwrap_or_else(|_| Ok(Err(io::ErrorKind::TimedOut.into())))
        .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
    {
        Ok(mut found) if !found.is_empty() => {
            found.sort();
            found.dedup();
            found
        }
        Ok(_) => {
            tracing::warn!("no replica was found; the known ones stay");
            return false;
        }
        Err(error) => {
            tracing::warn!(%error, "replicas cannot be looked for; the known ones stay");
            return false;
        }
    };
    let old = inner.nodes.load_full();
    let gone = |node: &Arc<crate::node::Node<DB>>| node.found.as_ref().is_some_and(|url| !found.contains(url));
    let known = |url: &String| old.iter().any(|node| node.found.as_ref() == Some(url));
    let mut nodes: Vec<_> = old.iter().filter(|node| !gone(node)).cloned().collect();
    let mut number = old.iter().map(|node| node.number).max().unwrap_or_default();
    for url in found.iter().filter(|url| !known(url)) {
        number += 1;
        match inner.pools.found(&inner.config, number, &Replica::new(url)) {
            Ok(node) => nodes.push(Arc::new(node)),
            Err(error) => tracing::warn!(%error, "a replica that was found is not used"),
        }
    }
    let changed = nodes.len() != old.len() || number > old.iter().map(|node| node.number).max().unwrap_or_default();
    if changed {
        tracing::info!(nodes = nodes.len(), "the database nodes have changed");
        inner.nodes.store(Arc::new(nodes));
        for node in old.iter().filter(|node| gone(node)) {
            let node = Arc::clone(node);
            node.eject();
            // Waits for what is running there.
            tokio::spawn(async move { node.close().await });
        }
    }
    changed
}
