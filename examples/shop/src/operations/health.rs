//! Answers for load balancers and orchestrators.
//!
//! | path | 200 | 503 |
//! | --- | --- | --- |
//! | `/health/live` | the process runs | never |
//! | `/health/ready` | the process can do its work | it starts, it is about to stop, or what its [`Role`] needs does not answer within a second |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::Mutex;

use crate::app::App;

/// Work of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Serves pages, and needs a database. Redis is not asked: without it the catalogue is still
    /// served, and if all processes were taken out of the balancer, nothing would be.
    Web,
    /// Runs jobs, and needs their store.
    Worker,
    /// Does both, as the only process.
    Alone,
}

/// Health of this process.
#[derive(Clone)]
pub(crate) struct Health {
    app: App,
    role: Role,
    /// `true` from the moment at which the process does its work until it is asked to stop.
    is_open: Arc<AtomicBool>,
    /// The last answer, and its time: anybody may ask, as often as they like.
    last: Arc<Mutex<Option<(Instant, bool)>>>,
}

/// Time for which an answer is repeated.
const REPEATED: Duration = Duration::from_millis(200);

impl Health {
    pub(crate) fn new(app: &App, role: Role) -> Self {
        Self { app: app.clone(), role, is_open: Arc::default(), last: Arc::default() }
    }

    /// From now on the process is ready, if what it needs answers.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Relaxed);
    }

    /// From now on the process is not ready, while it still answers.
    pub(crate) fn leave(&self) {
        self.is_open.store(false, Relaxed);
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    async fn works(&self) -> Result<()> {
        let answer = async {
            match self.role {
                Role::Web | Role::Alone => self.app.asks_database().await,
                Role::Worker => self.app.asks_queue().await,
            }
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), answer).await;
        answer.context("no answer within a second")?
    }
}

pub(crate) fn routes(health: Health) -> Router {
    Router::new()
        .route("/health/live", get(|| async { "alive\n" }))
        .route("/health/ready", get(ready))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if !health.is_open.load(Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting, or leaving\n");
    }
    // One asks at a time; those who waited get its answer.
    let mut last = health.last.lock().await;
    let known = last.filter(|(at, _)| at.elapsed() < REPEATED).map(|(_, works)| works);
    let works = match known {
        Some(works) => works,
        None => {
            let works = health.works().await;
            if let Err(error) = &works {
                tracing::warn!("not ready: {}", crate::told(error));
            }
            *last = Some((Instant::now(), works.is_ok()));
            works.is_ok()
        }
    };
    if works {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
