//! The state of everything, once a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::Cluster;
use super::customers::Account;
use crate::fleet::Traffic;

/// State of the fleet.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct State {
    pub(super) requests_per_second: f64,
    pub(super) failures_per_second: f64,
    pub(super) parts: Vec<Part>,
    pub(super) account: Account,
    /// The last action, and its result.
    pub(super) last: String,
}

/// A process or a server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) is_well: bool,
}

pub(super) type Watched = watch::Receiver<State>;

/// Looks once a second until the cluster is gone.
pub(super) fn begin(cluster: &Arc<Cluster>) -> Watched {
    let (state, watched) = watch::channel(State::default());
    let cluster = cluster.clone();
    tokio::spawn(async move {
        let (mut before, mut at) = (Traffic::default(), Instant::now());
        while !state.is_closed() {
            let traffic = cluster.fleet.balancer.traffic().await.unwrap_or(before);
            let took = at.elapsed().as_secs_f64();
            at = Instant::now();
            let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / took;
            let (parts, primary) = (parts(&cluster).await, cluster.primary().await);
            let account = cluster.customers.account(&cluster.fleet.postgres, primary).await;
            state.send_modify(|state| {
                state.requests_per_second = rate(traffic.requests, before.requests);
                state.failures_per_second = rate(traffic.failures, before.failures);
                state.parts = parts;
                state.account = account.unwrap_or(state.account);
                state.last = cluster.last();
            });
            before = traffic;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    watched
}

async fn parts(cluster: &Cluster) -> Vec<Part> {
    let fleet = &cluster.fleet;
    let states = fleet.balancer.states().await.unwrap_or_default();
    let mut parts = Vec::new();
    for web in &fleet.webs {
        let state = states.iter().find(|(name, _)| name == web.name());
        let state = state.map_or_else(|| "unknown".to_owned(), |(_, state)| state.clone());
        let is_well = web.is_running() && state.starts_with("UP");
        let state = if web.is_running() { state } else { "killed".into() };
        let state = format!("{state}, process {} ({})", web.pid(), web.starts());
        parts.push(Part { name: web.name().to_owned(), state, is_well });
    }
    for worker in &fleet.workers {
        let is_well = worker.is_running();
        let state = if is_well { "UP" } else { "killed" };
        let state = format!("{state}, process {} ({})", worker.pid(), worker.starts());
        parts.push(Part { name: worker.name().to_owned(), state, is_well });
    }
    for (number, node) in fleet.postgres.nodes().iter().enumerate() {
        let ask = node.sql(
            "select case when pg_is_in_recovery() then 'replica, ' || coalesce(round(extract(epoch \
             from now() - pg_last_xact_replay_timestamp()) * 1000), 0) || ' ms since the last \
             change' else 'primary' end",
        );
        let answer = tokio::time::timeout(Duration::from_millis(500), ask).await;
        let (state, is_well) = match answer {
            Ok(Ok(state)) => (state, true),
            Ok(Err(_)) => ("away".to_owned(), false),
            Err(_) => ("no answer".to_owned(), false),
        };
        parts.push(Part { name: format!("postgres-{number}"), state, is_well });
    }
    let master = fleet.redis.master_port().await.unwrap_or(0);
    for number in 0..2 {
        let server = fleet.redis.server(number);
        let ask = server.command(&["PING"]);
        let is_well = tokio::time::timeout(Duration::from_millis(500), ask)
            .await
            .is_ok_and(|answer| answer.is_ok());
        let role = if server.port() == master { "master" } else { "replica" };
        let state = if is_well { role.to_owned() } else { format!("{role}, away") };
        parts.push(Part { name: format!("redis-{number}"), state, is_well });
    }
    parts
}
