//! Sessions: cost of a request that does not use its session, reads it, or writes it; and memory of
//! a session in Redis.
//!
//! | subject | set up as | what it promises |
//! | --- | --- | --- |
//! | `scale-session` | Redis, the defaults: idle timeout of 2 h, renewed once in 6 minutes, ids stored hashed | fields written separately, only if the session exists; atomic updates |
//! | `tower-sessions` | 0.14 with its Redis store (fred, a pool of 6), unsigned, `OnInactivity` of 2 h, ids stored unhashed | the whole session written at each change; concurrent requests of a session overwrite each other |
//! | `tower-sessions-sliding` | the same with `with_always_save`: without it, a session that is only read ends 2 h after its last change | as above |
//! | `axum_session` | 0.22 with its pool on Redis and its defaults: **sessions are kept in the process for an hour**, so a read needs no Redis, and another server's writes are not seen. (Without this, concurrent requests of one session were observed to lose it.) | less than the others |
//! | `session-guard` | 0.3 with its Valkey store; **it stores only the identity of a user**, so it has no writes | a token that rotates, a score for each request |
//! | `actix-session` | 0.11 on Redis, two threads with one service each, as usual for actix, 100 concurrent requests each, in a separate process | the whole session written at each change |
//! | `express-session` | with `connect-redis`, one process, called through `light-my-request` | the same; renewed at each request |
//! | `laravel` | Debian's, a store as created by its middleware, loaded and saved; one request at a time, **without the rest of a request** | the whole session written at each request |
//! | `redis-hgetall` | the same client as scale-session, the same hash | nothing |
//!
//! All run in process: an axum router is called as a service, 200 requests at a time, each with the
//! cookie of one of 1,000 sessions of three fields. `untouched` is the time that the layer adds to
//! the same router without a layer; it needs no Redis.
//!
//! `devices_1m` is the p99 of two thousand lists among a million sessions (a tenth of that in quick
//! runs). `revoke_10k` ends all sessions of a user with ten thousand, right after as many log-ins,
//! compared with a user with one session. `login_storm_p99` is the delay of other requests during
//! five hundred concurrent log-ins, all of which wait for their turn; `login_storm_memory` is the
//! maximum memory of these log-ins. `log_in_timing` and `reset_timing` test whether answers that
//! must not differ can be distinguished by their time.

mod large;
mod peers;
mod storm;
mod timing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::{Router, routing::get};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderValue, Request};
use redis::AsyncCommands;
use scale_session::{Config, Session, SessionLayer};
use testkit::Redis;
use tower::ServiceExt;

use crate::Effort;
use crate::measure::{Better, Case, concurrently};
use crate::peer;
use crate::report::Report;

const SESSIONS: usize = 1_000;
const TASKS: usize = 200;

/// Returns a value that differs at each write.
fn next() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:030}", COUNT.fetch_add(1, Relaxed))
}

/// Routes of one subject; only the name of the session type differs.
macro_rules! routes {
    ($session:ty) => {
        Router::new()
            .route("/untouched", get(|| async { "hello" }))
            .route(
                "/read",
                get(|session: $session| async move {
                    let user: Option<String> = session.get("user").await.unwrap_or_default();
                    user.unwrap_or_default()
                }),
            )
            .route(
                "/write",
                get(|session: $session| async move {
                    let seen: Option<String> = session.get("last").await.unwrap_or_default();
                    let wrote = session.insert("last", &next()).await.is_ok();
                    if wrote { seen.unwrap_or_default() } else { String::new() }
                }),
            )
            .route(
                "/begin",
                get(|session: $session| async move {
                    let _ = session.insert("user", "somebody@example.org").await;
                    let _ = session.insert("theme", "dark").await;
                    let _ = session.insert("last", &next()).await;
                }),
            )
    };
}
use routes;

/// Returns the cookie that a route sets.
async fn cookie_of(app: &Router, path: &str) -> Result<HeaderValue> {
    let response = app.clone().oneshot(Request::get(path).body(Body::empty())?).await?;
    let mut pairs = response
        .headers()
        .get_all(SET_COOKIE)
        .iter()
        .filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
    // Some subjects also set another, empty cookie.
    Ok(pairs.rfind(|pair| !pair.ends_with('=')).context("no cookie was set")?.parse()?)
}

pub(super) struct Subject {
    app: Router,
    cookies: Arc<Vec<HeaderValue>>,
}

impl Subject {
    async fn new(app: Router, sessions: usize) -> Result<Self> {
        let mut cookies = Vec::with_capacity(sessions);
        for _ in 0..sessions {
            cookies.push(cookie_of(&app, "/begin").await?);
        }
        Ok(Self { app, cookies: Arc::new(cookies) })
    }

    /// Returns requests per second.
    pub(super) async fn rate(&self, path: &'static str, count: usize) -> Result<f64> {
        let (app, cookies) = (self.app.clone(), Arc::clone(&self.cookies));
        concurrently(TASKS, count, move |n| {
            let (app, cookie) = (app.clone(), cookies[(n * 7_919) % cookies.len()].clone());
            async move {
                let request = Request::get(path).header(COOKIE, cookie).body(Body::empty())?;
                let response = app.oneshot(request).await?;
                let body = axum::body::to_bytes(response.into_body(), 1_000).await?;
                ensure!(!body.is_empty(), "the session was not found");
                Ok(())
            }
        })
        .await
    }

    /// Creates scale-session with this number of sessions, and a thousand more whose requests are
    /// measured.
    pub(super) async fn filled(server: &Redis, sessions: usize) -> Result<Self> {
        let app = ours(server).await?;
        let all = app.clone();
        concurrently(TASKS, sessions, move |_| {
            let app = all.clone();
            async move { cookie_of(&app, "/begin").await.map(drop) }
        })
        .await?;
        Self::new(app, SESSIONS).await
    }

    /// Returns nanoseconds per request that does not use its session.
    async fn untouched(&self, count: usize) -> Result<f64> {
        let start = Instant::now();
        for n in 0..count {
            let cookie = self.cookies[n % self.cookies.len()].clone();
            let request = Request::get("/untouched").header(COOKIE, cookie).body(Body::empty())?;
            std::hint::black_box(self.app.clone().oneshot(request).await?);
        }
        Ok(start.elapsed().as_nanos() as f64 / count as f64)
    }
}

async fn ours(server: &Redis) -> Result<Router> {
    Ok(routes!(Session)
        .layer(SessionLayer::connect(&server.url(), "bench", Config::default()).await?))
}

async fn used_bytes(server: &Redis) -> Result<f64> {
    let info = server.command(&["INFO", "memory"]).await?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .context("no used_memory")?;
    Ok(line.trim().parse()?)
}

/// Returns the bytes of Redis memory of a session with three fields.
async fn bytes(peer: bool) -> Result<f64> {
    const COUNT: usize = 10_000;
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let app =
        if peer { peers::tower_sessions(&server, false).await? } else { ours(&server).await? };
    // Scripts and buffers that the first session adds are not part of a session.
    Subject::new(app.clone(), 100).await?;
    let before = used_bytes(&server).await?;
    Subject::new(app, COUNT).await?;
    Ok((used_bytes(&server).await? - before) / COUNT as f64)
}

pub(crate) use storm::memory;

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("session");
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let (mine, theirs, sliding) = (
        &Subject::new(ours(&server).await?, SESSIONS).await?,
        &Subject::new(peers::tower_sessions(&server, false).await?, SESSIONS).await?,
        &Subject::new(peers::tower_sessions(&server, true).await?, SESSIONS).await?,
    );
    let (axum, guard) = (
        &Subject::new(peers::axum_session(&server).await?, SESSIONS).await?,
        &Subject::new(peers::session_guard(&server).await?, SESSIONS).await?,
    );
    let arguments =
        |case: &str, count: usize| [case.to_owned(), server.port().to_string(), count.to_string()];
    let bare = &Subject { app: routes!(Session), cookies: Arc::clone(&mine.cookies) };

    ensure!(cookie_of(&mine.app, "/untouched").await.is_err(), "a cookie for nothing");
    let count = 50_000 * effort.scale;
    Case::new("untouched", "ns", Better::Lower)
        .subject("scale-session", move || async move {
            Ok(mine.untouched(count).await? - bare.untouched(count).await?)
        })
        .subject("tower-sessions", move || async move {
            Ok(theirs.untouched(count).await? - bare.untouched(count).await?)
        })
        .target(2.0)
        .subject("axum_session", move || async move {
            Ok(axum.untouched(count).await? - bare.untouched(count).await?)
        })
        .measure(effort, &mut report)
        .await;

    let handle = scale_redis::Redis::connect(&server.url()).await?;
    let keys: Vec<String> = handle.clone().keys("bench:session:*").await?;
    let keys = &Arc::new(keys);
    let count = 50_000 * effort.scale;
    let (many, few) = (arguments("", count), arguments("", count / 10));
    let for_case =
        |case: &str, [_, port, count]: &[String; 3]| [case.to_owned(), port.clone(), count.clone()];
    let actix = |case: &'static str| {
        let [case, port, count] = for_case(case, &many);
        peer::rust(["actix".to_owned(), case, port, count])
    };
    let express = |case: &'static str| peer::node("session.js", for_case(case, &few));
    let laravel = |case: &'static str| peer::laravel("session.php", for_case(case, &few));
    let (actix, express, laravel) = (&actix, &express, &laravel);
    Case::new("read", "requests/s", Better::Higher)
        .subject("scale-session", move || mine.rate("/read", count))
        .subject("tower-sessions", move || theirs.rate("/read", count))
        .target(1.0)
        .subject("tower-sessions-sliding", move || sliding.rate("/read", count))
        .target(1.8)
        .subject("session-guard", move || guard.rate("/read", count / 2))
        .target(3.0)
        .subject("axum_session", move || axum.rate("/read", count / 2))
        .subject("actix-session", move || actix("read"))
        .subject("express-session", move || express("read"))
        .subject("laravel", move || laravel("read"))
        .subject("redis-hgetall", move || {
            let (handle, keys) = (handle.clone(), Arc::clone(keys));
            concurrently(TASKS, count, move |n| {
                let (mut handle, keys) = (handle.clone(), Arc::clone(&keys));
                async move {
                    let found: redis::Value =
                        handle.hgetall(&keys[(n * 7_919) % keys.len()]).await?;
                    ensure!(
                        matches!(&found, redis::Value::Map(fields) if !fields.is_empty()),
                        "no session"
                    );
                    Ok(())
                }
            })
        })
        .measure(effort, &mut report)
        .await;
    Case::new("read_write", "requests/s", Better::Higher)
        .subject("scale-session", move || mine.rate("/write", count))
        .subject("tower-sessions", move || theirs.rate("/write", count))
        .subject("axum_session", move || axum.rate("/write", count / 2))
        .subject("actix-session", move || actix("write"))
        .subject("express-session", move || express("write"))
        .subject("laravel", move || laravel("write"))
        .measure(effort, &mut report)
        .await;
    Case::new("bytes", "bytes", Better::Lower)
        .subject("scale-session", || bytes(false))
        .subject("tower-sessions", || bytes(true))
        .turns(2)
        .measure(effort, &mut report)
        .await;
    signed_in(effort, &server, &mut report).await?;
    large::run(effort, &mut report).await?;
    storm::run(effort, &mut report).await?;
    timing::run(effort, &mut report).await?;
    Ok(report)
}

/// Measures a session with an owner, which is read with the owner's revocations in one step,
/// compared with an anonymous session.
async fn signed_in(effort: Effort, server: &Redis, report: &mut Report) -> Result<()> {
    let layer = SessionLayer::connect(&server.url(), "signed", Config::default()).await?;
    let app = routes!(Session)
        .route(
            "/user",
            get(|session: Session| async move {
                session.user().await.unwrap_or_default().unwrap_or_default()
            }),
        )
        .route(
            "/in",
            get(|session: Session| async move {
                session.sign_in(&next(), "bench").await.is_ok().to_string()
            }),
        )
        .layer(layer);
    let mut cookies = Vec::new();
    for _ in 0..SESSIONS {
        cookies.push(cookie_of(&app, "/in").await?);
    }
    let (somebody, nobody) = (
        &Subject { app: app.clone(), cookies: Arc::new(cookies) },
        &Subject::new(app, SESSIONS).await?,
    );
    let count = 50_000 * effort.scale;
    Case::new("read_signed_in", "requests/s", Better::Higher)
        .subject("scale-session", move || somebody.rate("/user", count))
        .subject("anonymous", move || nobody.rate("/read", count))
        .measure(effort, report)
        .await;
    Ok(())
}
