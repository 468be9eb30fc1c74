//! Five hundred concurrent log-ins: the delay of other requests, and the memory of the log-ins.

use std::future::ready;
use std::time::Duration;

use anyhow::{Result, ensure};
use axum::{Router, body::Body, routing::get};
use http::header::COOKIE;
use http::{HeaderValue, Request};
use scale_session::auth::{Passwords, password::Cost};
use scale_session::{Config, Session, SessionLayer};
use tokio::time::Instant;
use tower::ServiceExt;

use super::cookie_of;
use crate::Effort;
use crate::measure::{self, Better, Case};
use crate::peer;
use crate::report::Report;

const LOG_INS: usize = 500;

/// Number of concurrent hashes, as by default.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1))
}

/// Runs all log-ins, which wait for their turn; none is refused.
async fn storm() -> Result<()> {
    let passwords = Passwords::new().at_once(at_once(), LOG_INS);
    let log_ins: Vec<_> = (0..LOG_INS)
        .map(|_| {
            let passwords = passwords.clone();
            tokio::spawn(async move { passwords.verify("a guess", None).await })
        })
        .collect();
    for log_in in log_ins {
        ensure!(!log_in.await??.is_yes(), "a guess got in");
    }
    Ok(())
}

/// Returns the p99 in ms of other requests, of which one is due each ms until `meanwhile` has
/// ended, from the due time to the answer.
async fn neighbour(
    app: &Router,
    cookie: &HeaderValue,
    meanwhile: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<f64> {
    let meanwhile = tokio::spawn(meanwhile);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut answers = Vec::new();
    while !meanwhile.is_finished() {
        let due = tick.tick().await;
        let request = Request::get("/read").header(COOKIE, cookie).body(Body::empty())?;
        let answer = app.clone().oneshot(request);
        answers.push(tokio::spawn(async move {
            let answered = answer.await.is_ok();
            (answered, (Instant::now() - due).as_secs_f64() * 1e3)
        }));
    }
    meanwhile.await??;
    let mut times = Vec::new();
    for answer in answers {
        let (answered, took) = answer.await?;
        ensure!(answered, "no answer");
        times.push(took);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[(times.len() - 1) * 99 / 100])
}

/// Returns the maximum of resident memory in MB during the storm, minus the memory before; in a
/// separate process.
pub(crate) async fn memory() -> f64 {
    let before = measure::memory("VmRSS");
    if storm().await.is_err() {
        return f64::NAN;
    }
    measure::memory("VmHWM") - before
}

pub(super) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let app = Router::new()
        .route(
            "/in",
            get(|session: Session| async move {
                session.insert("user", "ann").await.is_ok().to_string()
            }),
        )
        .route(
            "/read",
            get(|session: Session| async move {
                session.get::<String>("user").await.unwrap_or_default().unwrap_or_default()
            }),
        )
        .layer(SessionLayer::memory(Config::default()));
    let cookie = cookie_of(&app, "/in").await?;
    let (app, cookie) = (&app, &cookie);
    Case::new("login_storm_p99", "ms", Better::Lower)
        .subject("scale-session", move || neighbour(app, cookie, storm()))
        .subject("idle", move || {
            neighbour(app, cookie, async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                Ok(())
            })
        })
        .target(0.5)
        .turns(effort.turns.min(5))
        .measure(effort, report)
        .await;
    let allowed = at_once() as f64 * f64::from(Cost::default().memory) * 1_024.0 / 1e6
        + 32.0 * 1_048_576.0 / 1e6;
    Case::new("login_storm_memory", "MB", Better::Lower)
        .subject("scale-session", || peer::myself(["storm", "scale-session"]))
        .subject("limit", move || ready(Ok(allowed)))
        .target(1.0)
        .turns(1)
        .measure(effort, report)
        .await;
    Ok(())
}
