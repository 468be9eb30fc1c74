//! A million sessions in one Redis: cost of one user's list of devices, and of ending all sessions
//! of a user with one session or ten thousand.

use std::future::ready;
use std::time::Instant;

use anyhow::{Result, ensure};
use axum::{Router, body::Body, extract::Query, routing::get};
use http::header::COOKIE;
use http::{HeaderValue, Request};
use scale_session::{Config, Session, SessionLayer};
use testkit::Redis;
use tower::ServiceExt;

use super::{TASKS, cookie_of};
use crate::Effort;
use crate::measure::{Better, Case, concurrently, each_task};
use crate::report::Report;

const EACH: usize = 10;

#[derive(serde::Deserialize)]
struct Who {
    user: String,
}

fn routes(layer: SessionLayer) -> Router {
    Router::new()
        .route(
            "/in",
            get(|session: Session, who: Query<Who>| async move {
                session.sign_in(&who.user, "bench").await.is_ok().to_string()
            }),
        )
        .route(
            "/devices",
            get(|session: Session| async move {
                session.devices().await.map_or(0, |all| all.len()).to_string()
            }),
        )
        .route(
            "/others",
            get(
                |session: Session| async move { session.revoke_others().await.is_ok().to_string() },
            ),
        )
        .layer(layer)
}

async fn sign_in(app: &Router, user: &str) -> Result<HeaderValue> {
    cookie_of(app, &format!("/in?user={user}")).await
}

/// Returns milliseconds, and the answer.
async fn ask(app: &Router, path: &str, cookie: &HeaderValue) -> Result<(f64, String)> {
    let start = Instant::now();
    let response =
        app.clone().oneshot(Request::get(path).header(COOKIE, cookie).body(Body::empty())?).await?;
    let body = axum::body::to_bytes(response.into_body(), 1_000).await?;
    Ok((start.elapsed().as_secs_f64() * 1e3, String::from_utf8_lossy(&body).into_owned()))
}

/// Returns the p99 of several lists.
async fn devices(app: &Router, users: usize, lists: usize) -> Result<f64> {
    let mut times = Vec::new();
    for n in 0..lists {
        let user = format!("user-{}", n * 37 % users);
        let cookie = sign_in(app, &user).await?;
        let (took, count) = ask(app, "/devices", &cookie).await?;
        ensure!(count.parse::<usize>()? > EACH, "{count} devices of {user}");
        times.push(took);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[times.len() * 99 / 100])
}

/// Returns the median time of ending all sessions of a user with the given number of sessions.
async fn revoke(app: &Router, sessions: usize, ends: usize) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..ends {
        times.push(revoke_once(app, sessions).await?);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[ends / 2])
}

async fn revoke_once(app: &Router, sessions: usize) -> Result<f64> {
    let user = format!("many-{sessions}-{}", super::next());
    let (all, name) = (app.clone(), user.clone());
    concurrently(TASKS.min(sessions), sessions, move |_| {
        let (app, user) = (all.clone(), name.clone());
        async move { sign_in(&app, &user).await.map(drop) }
    })
    .await?;
    let cookie = sign_in(app, &user).await?;
    let (took, done) = ask(app, "/others", &cookie).await?;
    let (_, left) = ask(app, "/devices", &cookie).await?;
    ensure!(done == "true" && left == "1", "{left} are left");
    Ok(took)
}

pub(super) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let app = routes(SessionLayer::connect(&server.url(), "large", Config::default()).await?);
    let sessions = if effort.scale > 1 { 1_000_000 } else { 100_000 };
    let filled = app.clone();
    each_task(TASKS, sessions, move |task, count| {
        let app = filled.clone();
        async move {
            for n in 0..count {
                sign_in(&app, &format!("user-{}", (n * TASKS + task) % (sessions / EACH))).await?;
            }
            Ok(())
        }
    })
    .await?;
    let app = &app;
    Case::new("devices_1m", "ms", Better::Lower)
        .subject("scale-session", move || devices(app, sessions / EACH, 2_000))
        .subject("limit", || ready(Ok(5.0)))
        .target(1.0)
        .measure(effort, report)
        .await;
    Case::new("revoke_10k", "ms", Better::Lower)
        .subject("scale-session", move || revoke(app, 10_000, 15))
        .subject("revoke_1", move || revoke(app, 1, 201))
        .measure(effort, report)
        .await;
    Ok(())
}
