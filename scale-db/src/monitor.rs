//! Looks at every node, again and again: who is the primary, who is well, who is behind.

use std::sync::Weak;
use std::time::{Duration, Instant};

use sqlx::SqlSafeStr;

use crate::backend::Backend;
use crate::db::{Inner, is_broken};
use crate::dialect::{Dialect, Probe};
use crate::lag::History;
use crate::node::{Node, Role};

/// Runs until the last handle is gone.
pub(crate) async fn run<DB: Backend>(inner: Weak<Inner<DB>>, mut history: History, interval: Duration) {
    loop {
        let Some(wake) = inner.upgrade().map(|i| i.wake.clone()) else { return };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = wake.notified() => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        round(&inner, &mut history).await;
    }
}

/// One look at all nodes at once. Returns the last error, for a start at which nobody answers.
pub(crate) async fn round<DB: Backend>(inner: &Inner<DB>, history: &mut History) -> Option<sqlx::Error> {
    let nodes = inner.nodes.load_full();
    let answers = futures_util::future::join_all(nodes.iter().map(|node| probe(inner, node))).await;
    let now = Instant::now();
    let mut error = None;
    let mut primary: Option<(usize, &Probe)> = None;
    for (node, answer) in nodes.iter().zip(&answers) {
        let Ok(probe) = answer else { continue };
        node.recognise(inner.is_stranger(probe));
        // Of two that take writes, one is a leftover of before a promotion. The higher timeline wins; where there are none, whoever is the
        // primary already, and at the start whoever has written more.
        let rank = |number, probe: &Probe| (probe.timeline, inner.primary_number() == Some(number), probe.position);
        let newer = primary.is_none_or(|(number, best)| rank(node.number, probe) > rank(number, best));
        if probe.role == Role::Primary && !node.is_stranger() && newer {
            primary = Some((node.number, probe));
        }
    }
    if let Some((number, probe)) = primary {
        history.record(probe.position, now);
        inner.set_primary(Some((number, probe.timeline)));
    } else {
        inner.set_primary(None);
    }
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Ok(probe) => {
                let lag = probe.lag.unwrap_or_else(|| history.lag(probe.position, now));
                let fit = !node.is_stranger()
                    && match probe.role {
                        Role::Primary => inner.primary_number() == Some(node.number),
                        _ => lag <= inner.config.max_replica_lag,
                    };
                node.saw(probe.role, probe.position, lag, fit);
                metrics::gauge!("scale_db_replica_lag_seconds", "node" => node.number.to_string()).set(lag.as_secs_f64());
            }
            Err(cause) => {
                tracing::debug!(node = node.number, error = %cause, "a database node does not answer");
                node.down();
                error = Some(cause);
            }
        }
        metrics::gauge!("scale_db_node_up_ratio", "node" => node.number.to_string()).set(f64::from(u8::from(node.status().fit)));
    }
    inner.looked.notify_waiters();
    error
}

async fn probe<DB: Backend>(inner: &Inner<DB>, node: &Node<DB>) -> Result<Probe, sqlx::Error> {
    let limit = inner.config.acquire_timeout.min(inner.config.monitor_interval.max(Duration::from_secs(1)));
    let look = async {
        let row = match ask(inner, node).await {
            // A connection that was kept may have broken while the node is well: that is for a new one to say.
            Err(error) if is_broken(&error) => ask(inner, node).await?,
            answer => answer?,
        };
        inner.dialect.read_probe(&row).ok_or_else(|| sqlx::Error::Protocol("a node's account of itself cannot be read".into()))
    };
    match tokio::time::timeout(limit, look).await {
        Ok(answer) => answer,
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

async fn ask<DB: Backend>(inner: &Inner<DB>, node: &Node<DB>) -> Result<Vec<Option<String>>, sqlx::Error> {
    let question = inner.dialect.probe_sql().into_sql_str();
    if inner.dialect == Dialect::Sqlite {
        // What a connection may do there is the pool's to say, and a database in memory is its connection.
        let mut connection = node.pool.acquire().await?;
        return DB::ask(&mut connection, question).await;
    }
    let mut connection = node.watch().await?;
    let start = Instant::now();
    let row = DB::ask(&mut connection, question).await?;
    node.took(start.elapsed());
    node.watched(Some(connection));
    Ok(row)
}
