//! Contract of all stores. The cases are those of `scale_limit::testing`; each is a test of its
//! own: `cargo test --all-features --test contract redis::debited_units_are_owed`.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

use scale_limit::store_contract;

store_contract!(memory, crate::stores::memory);
store_contract!(key_value, crate::stores::key_value);
#[cfg(feature = "redis")]
store_contract!(redis, crate::stores::redis);
#[cfg(feature = "redis")]
store_contract!(redis_cluster, crate::stores::redis_cluster);

/// Limiters, each with an application name of its own, on a server that all cases share.
mod stores {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::SystemTime;

    use anyhow::Result;
    use parking_lot::Mutex;
    use scale_limit::store::{Change, KeyValueStore, Write};
    use scale_limit::{Error, Limiter};
    #[cfg(feature = "redis")]
    use testkit::Shared;

    /// The limiters of two processes.
    type OnStore = ([Limiter; 2], ());

    pub(crate) async fn memory(app: &str) -> Result<OnStore> {
        let limiter = Limiter::connect("memory:", app).await?;
        Ok(([limiter.clone(), limiter], ()))
    }

    /// The shortest store of one's own.
    #[derive(Clone, Debug, Default)]
    struct Table(Arc<Mutex<HashMap<String, Vec<u8>>>>);

    #[async_trait::async_trait]
    impl KeyValueStore for Table {
        async fn update(&self, keys: &[String], change: &mut Change<'_>) -> Result<(), Error> {
            let mut table = self.0.lock();
            let states: Vec<_> = keys.iter().map(|key| table.get(key).cloned()).collect();
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            for (key, write) in keys.iter().zip(change.apply(now, &states)) {
                match write {
                    Write::Keep => {}
                    Write::Set { state, .. } => drop(table.insert(key.clone(), state)),
                    Write::Remove => drop(table.remove(key)),
                }
            }
            Ok(())
        }
    }

    pub(crate) async fn key_value(app: &str) -> Result<OnStore> {
        let table = Table::default();
        let limiter = || Limiter::with_store(table.clone(), app);
        Ok(([limiter(), limiter()], ()))
    }

    #[cfg(feature = "redis")]
    async fn two_on(url: &str, app: &str) -> Result<OnStore> {
        Ok(([Limiter::connect(url, app).await?, Limiter::connect(url, app).await?], ()))
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        two_on(&SERVER.get(testkit::Redis::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        two_on(&SERVER.get(testkit::RedisCluster::start).await?.url(), app).await
    }
}

#[cfg(feature = "redis")]
mod redis_alone {
    use std::time::Duration;

    use anyhow::Result;
    use scale_limit::{Limiter, Policy};
    use testkit::{Redis, eventually};

    #[tokio::test]
    async fn one_round_trip_whatever_the_number_of_policies_and_keys_expire() -> Result<()> {
        let server = Redis::start().await?;
        let limiter =
            Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(2));
        let policies: Vec<_> =
            (0..5).map(|n| Policy::per_second(&format!("p{n}"), 1_000)).collect();
        let charges: Vec<_> = policies.iter().map(|p| (p, "k", 1)).collect();
        limiter.check_all(&charges).await;
        server.command(&["CONFIG", "RESETSTAT"]).await?;
        for _ in 0..10 {
            limiter.check_all(&charges).await;
        }
        assert_eq!(server.calls(&["evalsha", "eval"]).await?, 10);
        eventually("every key to expire", async || {
            (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())
        })
        .await
    }

    #[tokio::test]
    async fn two_processes_share_one_quota_and_scripts_survive_a_flush() -> Result<()> {
        let server = Redis::start().await?;
        let a =
            Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(2));
        let b =
            Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(2));
        let policy = Policy::per_hour("p", 10);
        let mut admitted = 0;
        for n in 0..30 {
            if n == 5 {
                server.command(&["SCRIPT", "FLUSH"]).await?;
            }
            admitted += u32::from(a.check(&policy, "k").await.admitted)
                + u32::from(b.check(&policy, "k").await.admitted);
        }
        assert_eq!(admitted, 10);
        Ok(())
    }
}
