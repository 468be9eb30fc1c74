//! Periodic probes of all nodes: roles, health, lag.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::cluster::lag::History;
use crate::cluster::node::Node;
use crate::cluster::primary::Election;
use crate::cluster::role::Role;
use crate::cluster::{capabilities, discover};
use crate::dialect::{Dialect, Probe};
use crate::failure::is_broken;
use crate::log::{Lineage, Log};

/// Time that the other nodes get to answer after one has taken over: another one may have, too.
const MOMENT: Duration = Duration::from_millis(100);

/// Minimum time between two probe rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until the last handle is dropped.
pub(crate) async fn run<DB: Backend>(
    cluster: Weak<Cluster<DB>>,
    mut history: History,
    interval: Duration,
) {
    loop {
        let Some(wake) = cluster.upgrade().map(|cluster| cluster.wake.clone()) else { return };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = wake.notified() => {}
        }
        let Some(cluster) =
            cluster.upgrade().filter(|cluster| !cluster.closed.load(Ordering::Relaxed))
        else {
            return;
        };
        round(&cluster, &mut history).await;
        // Limits the rate of probe rounds, even if forged marks wake the monitor all the time.
        tokio::time::sleep(PAUSE.min(interval)).await;
    }
}

/// Probes all nodes concurrently. Returns the last error, for a start without any answer.
pub(crate) async fn round<DB: Backend>(
    cluster: &Cluster<DB>,
    history: &mut History,
) -> Option<sqlx::Error> {
    let nodes = cluster.nodes.load_full();
    let is_gone = |node: &&Arc<Node<DB>>| node.is_gone.load(Ordering::Relaxed);
    let gone: Vec<usize> = nodes.iter().filter(is_gone).map(|node| node.number).collect();
    let answers = all_answers(cluster, &nodes).await;
    let now = Instant::now();
    // In order: the first node that names its cluster defines it.
    for (node, answer) in nodes.iter().zip(&answers) {
        if let Some(Ok(probe)) = answer {
            node.recognise(cluster.is_stranger(probe));
        }
    }
    let candidates = candidates(&nodes, &answers);
    let election = cluster.tracker.elect(&candidates);
    // A primary whose answer was late once is treated as slow, as long as no other node has taken
    // over.
    let is_slow = |number: usize| {
        let late = |answer: &Option<Result<Probe, sqlx::Error>>| {
            matches!(answer, Some(Err(sqlx::Error::PoolTimedOut)))
        };
        nodes
            .iter()
            .zip(&answers)
            .any(|(node, answer)| node.number == number && late(answer) && node.has_answered())
    };
    if election != Election::Nobody || !cluster.primary_number().is_some_and(is_slow) {
        cluster.set_primary(&election);
    }
    // A replica of a rival on the same timeline cannot be distinguished from one of the primary.
    let contested = matches!(&election, Election::Primary { rivals, .. } if !rivals.is_empty());
    let primary = candidates
        .iter()
        .find(|(number, _)| cluster.primary_number() == Some(*number))
        .map(|(_, probe)| probe.log.clone());
    // Without a primary, replicas are compared with the last known one.
    if let Some(log) = &primary {
        history.record(log, now);
        cluster.primary_log.store(Some(Arc::new(log.clone())));
    }
    let primary = cluster.primary_log.load_full();
    let mut error = None;
    for (node, answer) in nodes.iter().zip(answers) {
        match answer.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(probe) => {
                let (fit, lag) = judge(cluster, node, &probe, primary.as_deref(), history, now);
                let fit = fit
                    && !(contested
                        && probe.role == Role::Replica
                        && matches!(probe.log, Log::Wal { .. }));
                let shown = lag.map_or(f64::NAN, |lag| lag.as_secs_f64());
                metrics::gauge!("scale_db_replica_lag_seconds", "node" => node.number.to_string())
                    .set(shown);
                if fit {
                    node.log_change(None);
                } else if probe.role == Role::Replica {
                    let most = cluster.config.max_replica_lag;
                    let reason = match lag {
                        _ if node.is_stranger() => "it belongs to another cluster".into(),
                        _ if contested => "several nodes take writes".into(),
                        Some(lag) if lag <= most => "its history is not the primary's".into(),
                        Some(lag) => format!("its lag is {lag:.0?}, at most {most:?} is allowed"),
                        None => "its lag is unknown".into(),
                    };
                    node.log_change(Some(&reason));
                }
                node.saw(probe.role, probe.log, lag, fit);
            }
            Err(cause) => {
                match &cause {
                    sqlx::Error::PoolTimedOut => node.log_change(Some(&"no answer in time")),
                    cause => node.log_change(Some(cause)),
                }
                node.down(matches!(cause, sqlx::Error::PoolTimedOut));
                error = Some(cause);
            }
        }
        metrics::gauge!("scale_db_node_up_ratio", "node" => node.number.to_string())
            .set(f64::from(u8::from(node.status().fit)));
    }
    cluster
        .all_seen
        .store(error.is_none() && cluster.primary_number().is_some(), Ordering::Relaxed);
    discover::remove_gone(cluster, &gone);
    cluster.looked.notify_waiters();
    error
}

/// Answers of the nodes so far.
type Answers = Vec<Option<Result<Probe, sqlx::Error>>>;

/// Probes all nodes. A primary that has taken over gets writes shortly after its answer, even if
/// another node does not answer.
async fn all_answers<DB: Backend>(cluster: &Cluster<DB>, nodes: &[Arc<Node<DB>>]) -> Answers {
    let ask = |at: usize| async move { (at, probe(cluster, &nodes[at]).await) };
    let mut asked: FuturesUnordered<_> = (0..nodes.len()).map(ask).collect();
    let mut answers: Answers = nodes.iter().map(|_| None).collect();
    let mut elected = false;
    loop {
        let succeeded = !elected
            && candidates(nodes, &answers)
                .iter()
                .any(|(number, probe)| cluster.tracker.is_succeeded_by(*number, probe));
        let moment = async {
            if succeeded { tokio::time::sleep(MOMENT).await } else { std::future::pending().await }
        };
        tokio::select! {
            answer = asked.next() => match answer {
                Some((at, answer)) => answers[at] = Some(answer),
                None => return answers,
            },
            () = moment => {
                cluster.set_primary(&cluster.tracker.elect(&candidates(nodes, &answers)));
                cluster.looked.notify_waiters();
                elected = true;
            }
        }
    }
}

/// Returns the nodes that report to take writes.
fn candidates<'a, DB: Backend>(
    nodes: &[Arc<Node<DB>>],
    answers: &'a Answers,
) -> Vec<(usize, &'a Probe)> {
    let takes_writes =
        |(node, answer): (&Arc<Node<DB>>, &'a Option<Result<Probe, sqlx::Error>>)| {
            let probe = answer.as_ref()?.as_ref().ok()?;
            (probe.role == Role::Primary && !node.is_stranger()).then_some((node.number, probe))
        };
    nodes.iter().zip(answers).filter_map(takes_writes).collect()
}

/// Returns whether a node that has answered is usable, and its lag.
fn judge<DB: Backend>(
    cluster: &Cluster<DB>,
    node: &Node<DB>,
    probe: &Probe,
    primary: Option<&Log>,
    history: &History,
    now: Instant,
) -> (bool, Option<Duration>) {
    if probe.role == Role::Primary {
        let fit = cluster.primary_number() == Some(node.number);
        return (fit, fit.then_some(Duration::ZERO));
    }
    let lag = probe.lag.or_else(|| history.lag(&probe.log, now));
    let same = primary.is_none_or(|primary| probe.log.lineage(primary) == Lineage::Same);
    (
        same && !node.is_stranger() && lag.is_some_and(|lag| lag <= cluster.config.max_replica_lag),
        lag,
    )
}

async fn probe<DB: Backend>(cluster: &Cluster<DB>, node: &Node<DB>) -> Result<Probe, sqlx::Error> {
    let look = async {
        match ask(cluster, node).await {
            // The kept connection may be broken although the node is healthy, so probe once more on
            // a new one.
            Err(error) if is_broken(&error) => ask(cluster, node).await,
            answer => answer,
        }
    };
    let mut probe = match tokio::time::timeout(cluster.config.look_limit(), look).await {
        Ok(answer) => answer?,
        Err(_) => return Err(sqlx::Error::PoolTimedOut),
    };
    node.remember_timeline(&mut probe);
    Ok(probe)
}

async fn ask<DB: Backend>(cluster: &Cluster<DB>, node: &Node<DB>) -> Result<Probe, sqlx::Error> {
    if cluster.dialect == Dialect::Sqlite {
        // On SQLite the pool decides whether a connection may write, and an in-memory database
        // exists only in its connection.
        let mut connection = node.pool().acquire().await?;
        return capabilities::ask::<DB>(cluster.dialect, &mut connection, &node.asked).await;
    }
    let mut connection = node.watch().await?;
    let start = Instant::now();
    let probe = capabilities::ask::<DB>(cluster.dialect, &mut connection, &node.asked).await?;
    node.took(start.elapsed());
    node.watched(Some(connection));
    Ok(probe)
}
