//! Discovery of replicas, by DNS or by a function of the application.
//!
//! | when | then |
//! | --- | --- |
//! | a new address is found | a node is created for it; it gets reads once a probe has found it usable |
//! | an address is no longer found | after a probe round in which another node is the primary, it gets no new statements; running ones are allowed to finish |
//! | discovery does not answer within the interval (at least 5 s), or panics | the known replicas stay |
//! | the name cannot be resolved, or resolves to nothing | the known replicas stay |
//! | a discovered node is promoted | it becomes the primary, as a listed one would, and stays it when the name lists replicas alone |

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::cluster::replica_source::ReplicaSource;
use crate::cluster::role::Role;
use crate::replica::Replica;

/// Minimum time limit of a discovery.
const LONGEST: Duration = Duration::from_secs(5);

/// Runs discovery repeatedly until the last handle is dropped.
pub(crate) async fn run<DB: Backend>(cluster: Weak<Cluster<DB>>, source: ReplicaSource) {
    loop {
        let Some(interval) = cluster.upgrade().map(|cluster| cluster.config.discovery_interval)
        else {
            return;
        };
        tokio::time::sleep(interval).await;
        let Some(cluster) =
            cluster.upgrade().filter(|cluster| !cluster.closed.load(Ordering::Relaxed))
        else {
            return;
        };
        if look(&cluster, &source).await {
            cluster.wake.notify_one();
        }
    }
}

/// Adds discovered nodes, and marks those that are not found any more. Returns whether there was a
/// change.
pub(crate) async fn look<DB: Backend>(cluster: &Cluster<DB>, source: &ReplicaSource) -> bool {
    let limit = cluster.config.discovery_interval.max(LONGEST);
    let found = tokio::time::timeout(limit, source.addresses()).await;
    let found = match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
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
    let old = cluster.nodes.load_full();
    let mut changed = false;
    for node in old.iter() {
        let is_gone = node.found.as_ref().is_some_and(|url| !found.contains(url));
        changed |= node.is_gone.swap(is_gone, Ordering::Relaxed) != is_gone;
    }
    let known = |url: &String| old.iter().any(|node| node.found.as_ref() == Some(url));
    let mut nodes: Vec<_> = old.to_vec();
    let mut number = old.iter().map(|node| node.number).max().unwrap_or_default();
    for url in found.iter().filter(|url| !known(url)) {
        number += 1;
        match cluster.pools.found(&cluster.config, number, &Replica::new(url)) {
            Ok(node) => nodes.push(Arc::new(node)),
            Err(error) => tracing::warn!(%error, "a discovered replica cannot be used"),
        }
    }
    if nodes.len() > old.len() {
        changed = true;
        tracing::info!(nodes = nodes.len(), "found database nodes");
        cluster.nodes.store(Arc::new(nodes));
    }
    changed
}

/// Removes nodes that discovery did not find any more before the last probe round: `gone`, by their
/// numbers. A node that was promoted has left the name of the replicas, and is the primary.
pub(crate) fn remove_gone<DB: Backend>(cluster: &Cluster<DB>, gone: &[usize]) {
    let old = cluster.nodes.load_full();
    let primary = cluster.primary_node().filter(|node| node.role() == Role::Primary);
    let is_over = |node: &Arc<Node<DB>>| {
        gone.contains(&node.number)
            && node.is_gone.load(Ordering::Relaxed)
            && node.role() != Role::Primary
            // As long as there is no primary, the node may be the one that is being promoted.
            && primary.as_ref().is_some_and(|other| other.number != node.number)
    };
    let (gone, left): (Vec<_>, Vec<_>) = old.iter().cloned().partition(is_over);
    if gone.is_empty() {
        return;
    }
    tracing::info!(nodes = left.len(), gone = gone.len(), "database nodes are gone");
    cluster.nodes.store(Arc::new(left));
    for node in gone {
        node.eject();
        // Waits for running statements.
        tokio::spawn(async move { node.close().await });
    }
}
