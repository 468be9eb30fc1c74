//! Contract of sessions, on every store.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use scale_session::{Config, SessionLayer};

use common::{Action, action, get, login, put, send};

/// A test for each case on each store, so that each can be run alone:
/// `cargo test --all-features --test contract postgres::rotation`.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        on_store! { memory: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis_cluster: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis_sentinel: $($case),* }
        #[cfg(feature = "sqlite")]
        on_store! { sqlite: $($case),* }
        #[cfg(feature = "postgres")]
        on_store! { postgres: $($case),* }
        #[cfg(feature = "postgres")]
        on_store! { pgbouncer: $($case),* }
        #[cfg(feature = "mysql")]
        on_store! { mariadb: $($case),* }
    };
}

macro_rules! on_store {
    ($store:ident: $($case:ident),*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    let (layer, _folder) = crate::stores::$store(stringify!($case)).await?;
                    super::$case(&layer).await
                }
            )*
        }
    };
}

on_every_store! {
    nothing_touched_sets_no_cookie,
    a_flashed_message_is_read_once,
    a_write_makes_a_session,
    a_forged_id_is_never_adopted,
    writes_at_once_are_all_kept,
    any_number_of_fields_is_written_at_once,
    increments_are_exact,
    an_increment_may_come_first,
    a_field_is_pulled_or_removed,
    a_field_of_another_type_is_its_own_error,
    rotation,
    logout,
}

/// Layers, each with an application name of its own, on a server that all cases share.
mod stores {
    use anyhow::Result;
    #[cfg(feature = "sql")]
    use scale_session::store::{Database, Options, migrate};
    use scale_session::{Config, SessionLayer};
    #[cfg(any(feature = "redis", feature = "postgres", feature = "mysql"))]
    use testkit::Shared;

    /// A layer, and the directory of its file.
    type OnStore = (SessionLayer, Option<tempfile::TempDir>);

    async fn connect(url: &str, app: &str) -> Result<OnStore> {
        Ok((SessionLayer::connect(url, app, Config::default()).await?, None))
    }

    #[cfg(feature = "sql")]
    async fn migrated(url: &str, app: &str, options: &Options) -> Result<OnStore> {
        let database = Database::connect(url, options).await?;
        migrate(database.clone()).await?;
        Ok((SessionLayer::with_pool(database, app, Config::default()).await?, None))
    }

    pub(crate) async fn memory(app: &str) -> Result<OnStore> {
        connect("memory:", app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        connect(&SERVER.get(testkit::Redis::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        connect(&SERVER.get(testkit::RedisCluster::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_sentinel(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisSentinel> = Shared::new();
        connect(&SERVER.get(testkit::RedisSentinel::start).await?.url(), app).await
    }

    #[cfg(feature = "sqlite")]
    pub(crate) async fn sqlite(app: &str) -> Result<OnStore> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}/sessions.db?mode=rwc", folder.path().display());
        Ok((connect(&url, app).await?.0, Some(folder)))
    }

    #[cfg(feature = "postgres")]
    pub(crate) async fn postgres(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::Postgres> = Shared::new();
        let server = SERVER.get(|| testkit::Postgres::start(0)).await?;
        migrated(&server.node(0).url(), app, &Options::default()).await
    }

    /// Behind a pooler that runs each transaction on another connection.
    #[cfg(feature = "postgres")]
    pub(crate) async fn pgbouncer(app: &str) -> Result<OnStore> {
        static SERVER: Shared<(testkit::Postgres, testkit::Pooler)> = Shared::new();
        let start = || async {
            let server = testkit::Postgres::start(0).await?;
            let pooler = testkit::Pooler::pgbouncer_by_transactions(server.node(0).port()).await?;
            Ok((server, pooler))
        };
        let (_, pooler) = SERVER.get(start).await?;
        let mut options = Options::default();
        options.transaction_pooling = true;
        migrated(&pooler.url(), app, &options).await
    }

    #[cfg(feature = "mysql")]
    pub(crate) async fn mariadb(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::MariaDb> = Shared::new();
        let server = SERVER.get(|| testkit::MariaDb::start(0)).await?;
        migrated(&server.node(0).url(), app, &Options::default()).await
    }
}

/// An untouched session is not read and sets no cookie.
async fn nothing_touched_sets_no_cookie(layer: &SessionLayer) -> Result<()> {
    assert_eq!(send(layer, None, action(|_| async { Ok(String::new()) })).await.2, None);
    assert_eq!(send(layer, None, get("user")).await, (StatusCode::OK, "none".into(), None));
    Ok(())
}

/// A flash message is read once.
async fn a_flashed_message_is_read_once(layer: &SessionLayer) -> Result<()> {
    let flash = send(
        layer,
        None,
        action(|s| async move { Ok(s.flash("note", "saved").await.map(|()| String::new())?) }),
    )
    .await
    .2
    .unwrap();
    let read = action(|s| async move {
        Ok(s.flashed::<String>("note").await?.unwrap_or_else(|| "none".into()))
    });
    assert_eq!(send(layer, Some(&flash), Arc::clone(&read)).await.1, "saved");
    assert_eq!(send(layer, Some(&flash), read).await.1, "none");
    Ok(())
}

/// A write creates a session; later requests see the session and do not receive the cookie again.
async fn a_write_makes_a_session(layer: &SessionLayer) -> Result<()> {
    let cookie = login(layer).await;
    assert!(cookie.starts_with("__Host-session="));
    assert_eq!(send(layer, Some(&cookie), get("user")).await, (StatusCode::OK, "ann".into(), None));
    assert_eq!(send(layer, Some(&cookie), put("theme".into(), "dark")).await.2, None);
    assert_eq!(send(layer, Some(&cookie), get("theme")).await.1, "dark");
    Ok(())
}

/// An id that the server did not issue is never adopted: its cookie is cleared, or replaced by a
/// write.
async fn a_forged_id_is_never_adopted(layer: &SessionLayer) -> Result<()> {
    let forged = format!("__Host-session={}", "A".repeat(43));
    assert_eq!(
        send(layer, Some(&forged), get("user")).await,
        (StatusCode::OK, "none".into(), Some(String::new()))
    );
    let (_, _, drawn) = send(layer, Some(&forged), put("a".into(), "b")).await;
    assert!(drawn.is_some_and(|d| d != forged && !d.is_empty()));
    Ok(())
}

/// A hundred concurrent requests that each add a field: a hundred fields.
async fn writes_at_once_are_all_kept(layer: &SessionLayer) -> Result<()> {
    let cookie = login(layer).await;
    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let (layer, cookie) = (layer.clone(), cookie.clone());
            tokio::spawn(
                async move { send(&layer, Some(&cookie), put(format!("f{n}"), "x")).await.0 },
            )
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await?, StatusCode::OK);
    }
    let count = action(|s| async move {
        let mut found = 0;
        for n in 0..100 {
            found += usize::from(s.get::<String>(&format!("f{n}")).await?.is_some());
        }
        Ok(found.to_string())
    });
    assert_eq!(send(layer, Some(&cookie), count).await.1, "100");
    Ok(())
}

/// More than a hundred fields at once, in a new session and in an existing session.
async fn any_number_of_fields_is_written_at_once(layer: &SessionLayer) -> Result<()> {
    let fill = action(|s| async move {
        for n in 0..120 {
            s.insert(&format!("many{n}"), &n).await?;
        }
        Ok("filled".into())
    });
    let held = action(|s| async move {
        let mut found = 0;
        for n in 0..120 {
            found += usize::from(s.get::<i32>(&format!("many{n}")).await? == Some(n));
        }
        Ok(found.to_string())
    });
    let new = send(layer, None, Arc::clone(&fill)).await.2.unwrap();
    let old = login(layer).await;
    assert_eq!(send(layer, Some(&old), fill).await.0, StatusCode::OK);
    for cookie in [new, old] {
        assert_eq!(send(layer, Some(&cookie), Arc::clone(&held)).await.1, "120");
    }
    Ok(())
}

/// Increments are exact.
async fn increments_are_exact(layer: &SessionLayer) -> Result<()> {
    let cookie = login(layer).await;
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (layer, cookie) = (layer.clone(), cookie.clone());
            let add = action(|s| async move { Ok(s.increment("n", 1).await?.to_string()) });
            tokio::spawn(async move { send(&layer, Some(&cookie), add).await.0 })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await?, StatusCode::OK);
    }
    let read = action(|s| async move { Ok(format!("{:?}", s.get::<i64>("n").await?)) });
    assert_eq!(send(layer, Some(&cookie), read).await.1, "Some(200)");
    Ok(())
}

/// An increment may be a visitor's first write, and adds to the value that the request has set.
async fn an_increment_may_come_first(layer: &SessionLayer) -> Result<()> {
    let first = action(|s| async move {
        s.insert("n", &40).await?;
        Ok((s.increment("n", 1).await? + s.increment("n", 1).await?).to_string())
    });
    let (_, body, set) = send(layer, None, first).await;
    assert_eq!((body.as_str(), set.is_some()), ("83", true));
    Ok(())
}

/// `pull` and `remove`.
async fn a_field_is_pulled_or_removed(layer: &SessionLayer) -> Result<()> {
    let cookie = login(layer).await;
    send(layer, Some(&cookie), put("theme".into(), "dark")).await;
    let pull = action(|s| async move { Ok(format!("{:?}", s.pull::<String>("theme").await?)) });
    assert_eq!(send(layer, Some(&cookie), pull).await.1, "Some(\"dark\")");
    assert_eq!(send(layer, Some(&cookie), get("theme")).await.1, "none");
    Ok(())
}

/// A field of another type is an error for that field alone.
async fn a_field_of_another_type_is_its_own_error(layer: &SessionLayer) -> Result<()> {
    let cookie = login(layer).await;
    let wrong = action(|s| async move { Ok(format!("{:?}", s.get::<i64>("user").await.is_err())) });
    assert_eq!(send(layer, Some(&cookie), wrong).await.1, "true");
    Ok(())
}

async fn rotation(layer: &SessionLayer) -> Result<()> {
    let old = login(layer).await;
    let rotate = action(|s| async move {
        s.rotate().await?;
        s.insert("level", "admin").await?;
        Ok(String::new())
    });
    let new = send(layer, Some(&old), rotate.clone()).await.2.unwrap();
    assert_ne!(old, new);
    assert_eq!(send(layer, Some(&new), get("level")).await.1, "admin");
    assert_eq!(send(layer, Some(&new), get("user")).await.1, "ann");
    // Requests under way with the old id see the session, their writes are stored, and their
    // responses do not touch the cookie.
    assert_eq!(send(layer, Some(&old), get("level")).await, (StatusCode::OK, "admin".into(), None));
    assert_eq!(send(layer, Some(&old), put("late".into(), "kept")).await.2, None);
    assert_eq!(send(layer, Some(&new), get("late")).await.1, "kept");
    // A client that sends the old id does not know the new one, and its request rotates nothing.
    assert_eq!(send(layer, Some(&old), rotate.clone()).await.2, None);
    let newer = send(layer, Some(&new), rotate.clone()).await.2.unwrap();
    let newest = send(layer, Some(&newer), rotate.clone()).await.2.unwrap();
    assert_eq!(
        send(layer, Some(&old), get("user")).await.1,
        "ann",
        "three rotations back, within the grace"
    );
    // A logout with an old id ends the session, even after several rotations.
    let destroy = action(|s| async move {
        s.destroy().await?;
        Ok(String::new())
    });
    assert_eq!(send(layer, Some(&old), destroy).await.2, Some(String::new()));
    for id in [&old, &new, &newer, &newest] {
        assert_eq!(send(layer, Some(id), get("user")).await.1, "none");
    }
    Ok(())
}

async fn logout(layer: &SessionLayer) -> Result<()> {
    let destroy = || {
        action(|s| async move {
            s.destroy().await?;
            Ok(String::new())
        })
    };
    let cookie = login(layer).await;
    assert_eq!(
        send(layer, Some(&cookie), destroy()).await,
        (StatusCode::OK, String::new(), Some(String::new()))
    );
    assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "none");

    // A slow request that loaded the session before the logout and writes after it restores
    // nothing.
    for _ in 0..50 {
        let cookie = login(layer).await;
        let (loaded, wait) =
            (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let slow = {
            let (loaded, wait) = (Arc::clone(&loaded), Arc::clone(&wait));
            action(move |s| {
                let (loaded, wait) = (Arc::clone(&loaded), Arc::clone(&wait));
                async move {
                    s.get::<String>("user").await?;
                    loaded.notify_one();
                    wait.notified().await;
                    s.insert("user", "ann again").await?;
                    Ok(String::new())
                }
            })
        };
        let task = tokio::spawn({
            let (layer, cookie) = (layer.clone(), cookie.clone());
            async move { send(&layer, Some(&cookie), slow).await }
        });
        loaded.notified().await;
        send(layer, Some(&cookie), destroy()).await;
        wait.notify_one();
        assert_eq!(
            task.await?,
            (StatusCode::OK, String::new(), None),
            "no 500, and the cookie is that of the logout"
        );
        assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "none");
    }

    // `destroy` and a write in one request: a new id.
    let cookie = login(layer).await;
    let anew = action(|s| async move {
        s.destroy().await?;
        s.insert("user", "bob").await?;
        Ok(String::new())
    });
    let new = send(layer, Some(&cookie), anew).await.2.unwrap();
    assert_ne!(new, cookie);
    assert_eq!(send(layer, Some(&new), get("user")).await.1, "bob");
    assert_eq!(send(layer, Some(&cookie), get("user")).await.1, "none");
    Ok(())
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_expire_on_sqlite() -> Result<()> {
    let folder = tempfile::tempdir()?;
    sql_sessions_expire(&format!("sqlite://{}/sessions.db?mode=rwc", folder.path().display())).await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_expire_on_postgres() -> Result<()> {
    let server = testkit::Postgres::start(0).await?;
    common::migrate(&server.node(0).url()).await?;
    sql_sessions_expire(&server.node(0).url()).await
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_expire_on_mariadb() -> Result<()> {
    let server = testkit::MariaDb::start(0).await?;
    common::migrate(&server.node(0).url()).await?;
    sql_sessions_expire(&server.node(0).url()).await
}

/// Sessions end at their maximum age even if they are in use, and a second process sees the same
/// sessions.
#[cfg(feature = "sql")]
async fn sql_sessions_expire(url: &str) -> Result<()> {
    let short = Config::default().absolute_timeout(Duration::from_secs(2));
    let (one, other) = (
        SessionLayer::connect(url, "test", short.clone()).await?,
        SessionLayer::connect(url, "test", short).await?,
    );
    let cookie = login(&one).await;
    assert_eq!(send(&other, Some(&cookie), get("user")).await.1, "ann");
    testkit::eventually("the session to expire", async || {
        (send(&other, Some(&cookie), get("user")).await.1 == "none").then_some(())
    })
    .await?;
    Ok(())
}

#[cfg(feature = "redis")]
mod redis_alone {
    use super::*;
    use scale_session::OnStoreError;
    use testkit::{Redis, eventually};

    /// Commands that count as a round trip of an anonymous session; commands inside a script do not
    /// count.
    const TRIPS: [&str; 3] = ["evalsha", "eval", "hgetall"];

    #[tokio::test]
    async fn untouched_costs_nothing_a_read_one_command_a_write_one_more() -> Result<()> {
        let server = Redis::start().await?;
        let layer = SessionLayer::connect(&server.url(), "test", Config::default()).await?;
        let cookie = login(&layer).await;
        // Loads the scripts into the server.
        send(&layer, Some(&cookie), put("a".into(), "b")).await;
        let cost = async |act: Action| {
            server.command(&["CONFIG", "RESETSTAT"]).await?;
            for _ in 0..10 {
                send(&layer, Some(&cookie), Arc::clone(&act)).await;
            }
            server.calls(&TRIPS).await
        };
        send(&layer, Some(&cookie), get("user")).await;
        assert_eq!(cost(action(|_| async { Ok(String::new()) })).await?, 0);
        assert_eq!(cost(get("user")).await?, 10);
        assert_eq!(cost(put("a".into(), "b")).await?, 20);
        let malformed = [
            "",
            "x",
            "__Host-session=short",
            "__Host-session=!!!",
            &format!("__Host-session={}", "é".repeat(43)),
        ]
        .join("; ");
        server.command(&["CONFIG", "RESETSTAT"]).await?;
        assert_eq!(
            send(&layer, Some(malformed.replace('é', "=").as_str()), get("user")).await.1,
            "none"
        );
        assert_eq!(server.calls(&TRIPS).await?, 0, "a malformed id never reaches the store");
        Ok(())
    }

    #[tokio::test]
    async fn a_dump_of_the_store_logs_nobody_in() -> Result<()> {
        let server = Redis::start().await?;
        let layer = SessionLayer::connect(&server.url(), "test", Config::default()).await?;
        let cookie = login(&layer).await;
        let secret = cookie.split_once('=').unwrap().1;
        let keys = server.command(&["KEYS", "*"]).await?;
        let mut words: Vec<String> = keys.lines().map(str::to_owned).collect();
        for key in keys.lines() {
            words.extend(server.command(&["HGETALL", key]).await?.lines().map(str::to_owned));
        }
        assert!(words.len() > 3);
        for word in words {
            assert!(!word.contains(secret));
            for part in word.split([':', '{', '}']) {
                let cookie = format!("__Host-session={part}");
                if http::HeaderValue::try_from(&cookie).is_err() {
                    continue;
                }
                let (_, body, _) = send(&layer, Some(&cookie), get("user")).await;
                assert_eq!(body, "none", "{part} logged a user in");
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn sessions_expire_by_themselves() -> Result<()> {
        let server = Redis::start().await?;
        let config = Config::default().idle_timeout(Duration::from_millis(300));
        let layer = SessionLayer::connect(&server.url(), "test", config).await?;
        login(&layer).await;
        eventually("expiry", async || {
            (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())
        })
        .await
    }

    #[tokio::test]
    async fn a_dead_store_is_told_or_survived_as_configured_and_logs_nobody_out() -> Result<()> {
        let server = Redis::start().await?;
        let strict = SessionLayer::connect(&server.url(), "test", Config::default()).await?;
        let lenient = SessionLayer::connect(
            &server.url(),
            "test",
            Config::default().on_store_error(OnStoreError::Anonymous),
        )
        .await?;
        let cookie = login(&strict).await;
        server.kill()?;
        let dead = async || {
            (send(&strict, Some(&cookie), get("user")).await.0 == StatusCode::INTERNAL_SERVER_ERROR)
                .then_some(())
        };
        eventually("the store to be missed", dead).await?;
        assert_eq!(
            send(&lenient, Some(&cookie), get("user")).await,
            (StatusCode::OK, "none".into(), None)
        );
        assert_eq!(
            send(&lenient, Some(&cookie), put("a".into(), "b")).await.2,
            None,
            "the cookie stays"
        );
        assert_eq!(
            send(&strict, None, put("a".into(), "b")).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(
            send(&strict, Some(&cookie), action(|_| async { Ok("untouched".into()) })).await.1,
            "untouched"
        );
        server.restart().await?;
        let back =
            async || (send(&strict, Some(&cookie), get("user")).await.1 == "ann").then_some(());
        eventually("the session to be back", back).await
    }
}

#[tokio::test]
async fn a_wrong_address_is_named_by_its_scheme_alone() {
    for (url, said) in [
        ("", "an address without a scheme"),
        ("hunter2@host", "an address without a scheme"),
        ("mongodb://u:hunter2@h", "`mongodb`"),
    ] {
        let error =
            SessionLayer::connect(url, "test", Config::default()).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot use {said} as a session store"))
                && !error.contains("hunter2"),
            "{error}"
        );
    }
}
