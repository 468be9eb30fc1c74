//! Contract of sessions, on every store. The cases are those of `scale_session::testing`; each is a
//! test of its own: `cargo test --all-features --test contract postgres::a_logout_is_final`.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use scale_session::{Config, SessionLayer, store_contract};

use common::{Action, action, get, login, put, send};

store_contract!(memory, crate::stores::memory);
#[cfg(feature = "redis")]
store_contract!(redis, crate::stores::redis);
#[cfg(feature = "redis")]
store_contract!(redis_cluster, crate::stores::redis_cluster);
#[cfg(feature = "redis")]
store_contract!(redis_sentinel, crate::stores::redis_sentinel);
#[cfg(feature = "sqlite")]
store_contract!(sqlite, crate::stores::sqlite);
#[cfg(feature = "postgres")]
store_contract!(postgres, crate::stores::postgres);
#[cfg(feature = "postgres")]
store_contract!(pgbouncer, crate::stores::pgbouncer);
#[cfg(feature = "mysql")]
store_contract!(mariadb, crate::stores::mariadb);

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

    async fn connect(url: &str, app: &str, config: Config) -> Result<OnStore> {
        Ok((SessionLayer::connect(url, app, config).await?, None))
    }

    #[cfg(feature = "sql")]
    async fn migrated(url: &str, app: &str, config: Config, options: &Options) -> Result<OnStore> {
        let database = Database::connect(url, options).await?;
        migrate(database.clone()).await?;
        Ok((SessionLayer::with_pool(database, app, config).await?, None))
    }

    pub(crate) async fn memory(app: &str, config: Config) -> Result<OnStore> {
        connect("memory:", app, config).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str, config: Config) -> Result<OnStore> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        connect(&SERVER.get(testkit::Redis::start).await?.url(), app, config).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str, config: Config) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        connect(&SERVER.get(testkit::RedisCluster::start).await?.url(), app, config).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_sentinel(app: &str, config: Config) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisSentinel> = Shared::new();
        connect(&SERVER.get(testkit::RedisSentinel::start).await?.url(), app, config).await
    }

    #[cfg(feature = "sqlite")]
    pub(crate) async fn sqlite(app: &str, config: Config) -> Result<OnStore> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}/sessions.db?mode=rwc", folder.path().display());
        Ok((connect(&url, app, config).await?.0, Some(folder)))
    }

    #[cfg(feature = "postgres")]
    pub(crate) async fn postgres(app: &str, config: Config) -> Result<OnStore> {
        static SERVER: Shared<testkit::Postgres> = Shared::new();
        let server = SERVER.get(|| testkit::Postgres::start(0)).await?;
        migrated(&server.node(0).url(), app, config, &Options::default()).await
    }

    /// Behind a pooler that runs each transaction on another connection.
    #[cfg(feature = "postgres")]
    pub(crate) async fn pgbouncer(app: &str, config: Config) -> Result<OnStore> {
        static SERVER: Shared<(testkit::Postgres, testkit::Pooler)> = Shared::new();
        let start = || async {
            let server = testkit::Postgres::start(0).await?;
            let pooler = testkit::Pooler::pgbouncer_by_transactions(server.node(0).port()).await?;
            Ok((server, pooler))
        };
        let (_, pooler) = SERVER.get(start).await?;
        let mut options = Options::default();
        options.transaction_pooling = true;
        migrated(&pooler.url(), app, config, &options).await
    }

    #[cfg(feature = "mysql")]
    pub(crate) async fn mariadb(app: &str, config: Config) -> Result<OnStore> {
        static SERVER: Shared<testkit::MariaDb> = Shared::new();
        let server = SERVER.get(|| testkit::MariaDb::start(0)).await?;
        migrated(&server.node(0).url(), app, config, &Options::default()).await
    }
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
