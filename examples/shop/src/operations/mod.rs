//! Operations: metrics and health checks of a process, at an address of their own that visitors do
//! not reach.
//!
//! | path | answer |
//! | --- | --- |
//! | `/metrics` | metrics of the process, in the text format of Prometheus |
//! | `/health/live`, `/health/ready` | see [`health`] |

pub(crate) mod health;
pub(crate) mod requests;
mod samples;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use self::health::Health;
use crate::app::App;
use crate::serve::connections;

/// Upper bounds of the buckets of all histograms, in seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Time that operators' clients have for a request, and for the rest of it after the stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// Metrics of this process, and the address that shows them.
pub(crate) struct Operations {
    listener: Option<TcpListener>,
    metrics: PrometheusHandle,
}

impl Operations {
    /// Collects metrics from now on. Without an address they are shown nowhere.
    pub(crate) async fn listen(address: Option<SocketAddr>) -> Result<Self> {
        let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS).context("buckets")?;
        let metrics = recorder.install_recorder().context("metrics recorder")?;
        samples::describe();
        let listener = match address {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .with_context(|| format!("operations: listening on {address}"))?,
            ),
            None => None,
        };
        Ok(Self { listener, metrics })
    }

    /// Runs the work of the process, and shows its state until the work has ended: what is measured
    /// while a process leaves matters most.
    pub(crate) async fn during(
        self,
        app: App,
        health: Health,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let Self { listener, metrics } = self;
        let samples = samples::keep(app, health.role(), metrics.clone());
        let Some(listener) = listener else {
            return tokio::select! { ended = work => ended, () = samples => Ok(()) };
        };
        announce(listener.local_addr()?);
        let routes = Router::new()
            .route("/metrics", get(move || std::future::ready(metrics.render())))
            .merge(health::routes(health));
        let never = std::future::pending();
        tokio::select! {
            ended = work => ended,
            () = connections::serve(listener, routes, PATIENCE, never, PATIENCE) => Ok(()),
            () = samples => Ok(()),
        }
    }
}

#[allow(clippy::print_stdout)]
fn announce(address: SocketAddr) {
    println!("For operators: http://{address}/metrics");
}
