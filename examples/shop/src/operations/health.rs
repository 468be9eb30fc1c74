//! Answers for load balancers and orchestrators.
//!
//! | path | 200 | 503 |
//! | --- | --- | --- |
//! | `/health/live` | the process runs | never |
//! | `/health/ready` | requests may come | the process is about to stop, or no database answers |
//!
//! Redis is not asked: without it the catalogue is still served, and if all processes were taken
//! out of the balancer, nothing would be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::app::App;

/// State of the process, for its load balancer.
#[derive(Clone, Default)]
pub(super) struct Leaving(Arc<AtomicBool>);

impl Leaving {
    /// From now on the process is not ready, while it still answers.
    pub(super) fn begin(&self) {
        self.0.store(true, Relaxed);
    }
}

pub(super) fn routes(app: App, leaving: Leaving) -> Router {
    Router::new()
        .route("/health/live", get(|| async { "alive\n" }))
        .route("/health/ready", get(ready))
        .with_state((app, leaving))
}

async fn ready(State((app, leaving)): State<(App, Leaving)>) -> (StatusCode, &'static str) {
    if leaving.0.load(Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "leaving\n");
    }
    match app.ready().await {
        Ok(()) => (StatusCode::OK, "ready\n"),
        Err(error) => {
            tracing::warn!("not ready: {error:#}");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}
