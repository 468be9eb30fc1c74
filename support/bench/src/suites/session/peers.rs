//! Peers that are Rust crates, behind the same router.

use std::net::SocketAddr;

use anyhow::Result;
use axum::Extension;
use axum::extract::ConnectInfo;
use axum::{Router, routing::get};
use axum_session::{SessionConfig, SessionStore};
use axum_session_redispool::SessionRedisPool;
use session_guard::{AuthSession, Guard, GuardError, NewSession, Sessions, ValkeyStore};
use testkit::Redis;
use tower_sessions::cookie::time::Duration;
use tower_sessions::{Expiry, SessionManagerLayer};
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::{ClientLike, Config as FredConfig, Pool};

use super::next;

pub(super) async fn tower_sessions(server: &Redis, sliding: bool) -> Result<Router> {
    let pool = Pool::new(FredConfig::from_url(&server.url())?, None, None, None, 6)?;
    pool.init().await?;
    let layer = SessionManagerLayer::new(RedisStore::new(pool))
        .with_expiry(Expiry::OnInactivity(Duration::hours(2)));
    Ok(super::routes!(tower_sessions::Session).layer(layer.with_always_save(sliding)))
}

type Axum = axum_session::Session<SessionRedisPool>;

/// Creates axum_session with its defaults: with nothing kept in the process, concurrent requests of
/// one session lose it.
pub(super) async fn axum_session(server: &Redis) -> Result<Router> {
    let pool = redis_pool::RedisPool::from(redis::Client::open(server.url())?);
    let config = SessionConfig::default().with_table_name("axum").with_lifetime(Duration::hours(2));
    let store = SessionStore::<SessionRedisPool>::new(Some(pool.into()), config).await?;
    let routes = Router::new()
        .route("/untouched", get(|| async { "hello" }))
        .route(
            "/read",
            get(|session: Axum| async move { session.get::<String>("user").unwrap_or_default() }),
        )
        .route(
            "/write",
            get(|session: Axum| async move {
                let seen = session.get::<String>("last").unwrap_or_default();
                session.set("last", next());
                seen
            }),
        )
        .route(
            "/begin",
            get(|session: Axum| async move {
                session.set("user", "somebody@example.org");
                session.set("theme", "dark");
                session.set("last", next());
            }),
        );
    Ok(routes.layer(axum_session::SessionLayer::new(store)))
}

async fn subject(session: AuthSession<uuid::Uuid>) -> String {
    session.subject.to_string()
}

async fn log_in(sessions: Sessions<ValkeyStore>) -> Result<(NewSession, &'static str), GuardError> {
    Ok((sessions.login(&uuid::Uuid::new_v4()).await?, "begun"))
}

/// Creates session-guard, which stores only the identity of a user.
pub(super) async fn session_guard(server: &Redis) -> Result<Router> {
    let guard = Guard::new(ValkeyStore::connect(&server.url()).await?);
    let peer = ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 40_000)));
    let routes = Router::new()
        .route("/read", get(subject))
        .layer(guard.layer())
        .route("/begin", get(log_in));
    Ok(routes.with_state(guard).layer(Extension(peer)))
}
