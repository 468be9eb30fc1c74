//! Permissions of users, on two servers that share sessions and a cache.
#![cfg(all(feature = "auth", feature = "redis"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use common::{action, send};
use http::header::{COOKIE, SET_COOKIE};
use http::{Request, Response};
use parking_lot::Mutex;
use scale_cache::{Cache, Options, Space};
use scale_session::auth::Permissions;
use scale_session::auth::permissions::Granted;
use scale_session::{Config, SessionLayer};
use testkit::{Redis, eventually};
use tower::{Layer, ServiceExt, service_fn};

/// Users, with their permissions.
type Database = Arc<Mutex<HashMap<String, Vec<&'static str>>>>;

struct Server {
    sessions: SessionLayer,
    cache: Cache,
    permissions: Permissions,
}

impl Server {
    /// As in an application: permissions from the database, through a cache that fails closed.
    async fn start(redis: &Redis, database: &Database) -> Result<Self> {
        let cache = Cache::connect(&redis.url(), "rights").await?;
        let rights: Space<Option<Granted>> =
            cache.space("rights").options(Options::ttl(Duration::from_mins(1)).fail_closed());
        let database = Arc::clone(database);
        let permissions = Permissions::new(move |user: String| {
            let (rights, database) = (rights.clone(), Arc::clone(&database));
            async move {
                let load = {
                    let user = user.clone();
                    move |load: scale_cache::LoadContext| async move {
                        load.tag(format!("user:{user}"));
                        let granted = database
                            .lock()
                            .get(&user)
                            .map(|rights| rights.iter().copied().collect());
                        Ok::<_, Infallible>(granted)
                    }
                };
                let granted = rights.get_or_load(user, load).await?;
                Ok::<_, scale_cache::Error>((*granted).clone().map(Arc::new))
            }
        });
        Ok(Self {
            sessions: SessionLayer::connect(&redis.url(), "shop", Config::default()).await?,
            cache,
            permissions,
        })
    }

    /// Sends a request that needs a permission, and returns its status and whether the cookie was
    /// cleared.
    async fn ask(&self, cookie: Option<&str>, permission: &str) -> (u16, bool) {
        let handler =
            service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
        let service = self.sessions.layer(self.permissions.require(permission).layer(handler));
        let mut request = Request::new(());
        if let Some(cookie) = cookie {
            request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
        }
        let answer = service.oneshot(request).await.unwrap();
        let cleared = answer
            .headers()
            .get(SET_COOKIE)
            .is_some_and(|set| set.to_str().unwrap().contains("Max-Age=0"));
        (answer.status().as_u16(), cleared)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_taken_away_and_a_deleted_user_count_on_all_servers() -> Result<()> {
    let redis = Redis::start().await?;
    let database = Database::default();
    database.lock().insert("ann".into(), vec!["orders.*"]);
    let (a, b) = (Server::start(&redis, &database).await?, Server::start(&redis, &database).await?);
    let sign_in = action(|session| async move {
        session.sign_in("ann", "browser").await?;
        Ok(String::new())
    });
    let half_way = action(|session| async move {
        session.await_second_factor("ann").await?;
        Ok(String::new())
    });
    let cookie = send(&a.sessions, None, sign_in).await.2.unwrap();
    let pending = send(&a.sessions, None, half_way).await.2.unwrap();
    for server in [&a, &b] {
        assert_eq!(server.ask(None, "orders.refund").await, (401, false));
        assert_eq!(
            server.ask(Some(&pending), "orders.refund").await,
            (401, false),
            "half-way in is not in"
        );
        assert_eq!(server.ask(Some(&cookie), "orders.refund").await, (200, false));
        assert_eq!(server.ask(Some(&cookie), "users.delete").await, (403, false));
    }

    // Withdrawn on one server: refused there at once, and on the other server as soon as it
    // receives the invalidation.
    database.lock().insert("ann".into(), vec!["orders.read"]);
    a.cache.invalidate_tags(["user:ann"]).await;
    assert_eq!(a.ask(Some(&cookie), "orders.refund").await, (403, false));
    eventually("the other server to refuse", async || {
        (b.ask(Some(&cookie), "orders.refund").await.0 == 403).then_some(())
    })
    .await?;
    assert_eq!(b.ask(Some(&cookie), "orders.read").await, (200, false));

    // Deleted: the session ends with the first request.
    database.lock().remove("ann");
    a.cache.invalidate_tags(["user:ann"]).await;
    assert_eq!(a.ask(Some(&cookie), "orders.read").await, (401, true));
    assert_eq!(b.ask(Some(&cookie), "orders.read").await.0, 401);
    assert_eq!(
        send(&b.sessions, Some(&cookie), common::get("user")).await,
        (http::StatusCode::OK, "none".into(), None)
    );
    Ok(())
}

#[tokio::test]
async fn nobody_is_let_through_on_a_guess() {
    let sessions = SessionLayer::memory(Config::default());
    let sign_in = action(|session| async move {
        session.sign_in("ann", "browser").await?;
        Ok(String::new())
    });
    let cookie = send(&sessions, None, sign_in).await.2.unwrap();
    let permissions = Permissions::new(|_| async { Err("the database is away") });
    let handler =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    let service = sessions.layer(permissions.require("orders.refund").layer(handler));
    let mut request = Request::new(());
    request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
    let answer = service.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().get(SET_COOKIE).is_none(), "it stays signed in");
    let outside = permissions.require("orders.refund").layer(handler);
    assert_eq!(
        outside.oneshot(Request::new(())).await.unwrap().status(),
        503,
        "without sessions no request is admitted"
    );
}
