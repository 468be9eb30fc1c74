//! Metrics that are sampled.
//!
//! | metric | meaning |
//! | --- | --- |
//! | `process_*` | CPU time, memory, threads and open files of the process |
//! | `shop_database_connections` | connections of this process, by `node` (`primary`, `replica`) and `state` (`idle`, `busy`) |
//! | `shop_database_statements` | statements of this process that run, by `node` |
//! | `scale_queue_*` | see [`Queue::observe`](scale_queue::Queue::observe): from workers only |

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use metrics_process::Collector;

use super::health::Role;
use crate::app::App;

/// Time between two samples.
const EVERY: Duration = Duration::from_secs(5);
/// Time in which a backlog of jobs is to be worked off: `scale_queue_desired_workers` is as many
/// as that takes.
const BACKLOG: Duration = Duration::from_secs(60);

/// Describes the metrics. Counters that alerts watch begin at zero: a rate does not see the first
/// value of a series.
pub(super) fn describe() {
    Collector::default().describe();
    for during in ["load", "save"] {
        metrics::counter!("scale_session_errors_total", "during" => during).absolute(0);
    }
    for priority in ["critical", "normal", "low"] {
        metrics::counter!("scale_limit_shed_total", "priority" => priority).absolute(0);
    }
}

/// Samples until it is dropped.
pub(super) async fn keep(app: App, role: Role, metrics: PrometheusHandle) {
    let queues = async {
        match role {
            Role::Web => std::future::pending().await,
            Role::Worker | Role::Alone => app.queue.observe(BACKLOG).await,
        }
    };
    let process = Collector::default();
    let rest = async {
        let mut clock = tokio::time::interval(EVERY);
        loop {
            clock.tick().await;
            // Without it, histograms that nobody reads would grow.
            metrics.run_upkeep();
            process.collect();
            connections(&app).await;
        }
    };
    tokio::join!(queues, rest);
}

async fn connections(app: &App) {
    let count = |node: &'static str, pools: &[sqlx::Pool<sqlx::Any>]| {
        let idle = pools.iter().map(sqlx::Pool::num_idle).sum::<usize>();
        let all = pools.iter().map(sqlx::Pool::size).sum::<u32>();
        let busy = f64::from(all) - idle as f64;
        for (state, count) in [("idle", idle as f64), ("busy", busy.max(0.0))] {
            metrics::gauge!("shop_database_connections", "node" => node, "state" => state)
                .set(count);
        }
    };
    let primary = app.db.primary_pool().await;
    count("primary", &primary.into_iter().collect::<Vec<_>>());
    count("replica", &app.db.replica_pools());
    for node in app.db.nodes() {
        metrics::gauge!("shop_database_statements", "node" => node.number.to_string())
            .set(f64::from(node.in_flight));
    }
}
