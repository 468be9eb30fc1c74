//! Contract of a cache, on every arrangement of levels. The cases are those of
//! `scale_cache::testing`; each is a test of its own:
//! `cargo test --all-features --test contract redis::late_tags_are_fenced`.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

#[cfg(feature = "redis")]
use scale_cache::store_calls_contract;
use scale_cache::{Config, cache_contract, store_contract};

cache_contract!(one_level, crate::arrangements::one_level);
store_contract!(three_nodes_in_memory, crate::arrangements::shared_memory);
#[cfg(feature = "redis")]
store_calls_contract!(redis_calls, crate::arrangements::redis_stores);
#[cfg(feature = "redis")]
store_calls_contract!(redis_cluster_calls, crate::arrangements::redis_cluster_stores);
#[cfg(feature = "redis")]
cache_contract!(redis, crate::arrangements::redis);
#[cfg(feature = "redis")]
cache_contract!(redis_cluster, crate::arrangements::redis_cluster);
#[cfg(feature = "redis")]
cache_contract!(redis_sentinel, crate::arrangements::redis_sentinel);

/// Caches, each with an application name of its own, on a server that all cases share.
mod arrangements {
    use anyhow::Result;
    use scale_cache::Cache;
    #[cfg(feature = "redis")]
    use scale_cache::store::RedisStore;
    use scale_cache::store::SharedMemory;
    #[cfg(feature = "redis")]
    use testkit::Shared;

    /// One cache, used as two.
    pub(crate) async fn one_level(app: &str) -> Result<Vec<Cache>> {
        let cache = Cache::connect("memory:", app).await?;
        Ok(vec![cache.clone(), cache])
    }

    pub(crate) async fn shared_memory(_: &str) -> Result<[SharedMemory; 3]> {
        let store = SharedMemory::new();
        Ok([store.clone(), store.clone(), store])
    }

    #[cfg(feature = "redis")]
    async fn three_on(url: &str, app: &str) -> Result<Vec<Cache>> {
        let mut caches = Vec::new();
        for _ in 0..3 {
            // A busy machine must not look like an unresponsive store.
            let patient = Cache::builder(url).store_timeout(std::time::Duration::from_secs(5));
            caches.push(patient.connect(app).await?);
        }
        Ok(caches)
    }

    #[cfg(feature = "redis")]
    async fn three_stores(url: &str, app: &str) -> Result<[RedisStore; 3]> {
        let store = async || -> Result<RedisStore> {
            Ok(RedisStore::new(scale_redis::Redis::connect(url).await?, app))
        };
        Ok([store().await?, store().await?, store().await?])
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_stores(app: &str) -> Result<[RedisStore; 3]> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        three_stores(&SERVER.get(testkit::Redis::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster_stores(app: &str) -> Result<[RedisStore; 3]> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        three_stores(&SERVER.get(testkit::RedisCluster::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str) -> Result<Vec<Cache>> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        three_on(&SERVER.get(testkit::Redis::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str) -> Result<Vec<Cache>> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        three_on(&SERVER.get(testkit::RedisCluster::start).await?.url(), app).await
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_sentinel(app: &str) -> Result<Vec<Cache>> {
        static SERVER: Shared<testkit::RedisSentinel> = Shared::new();
        three_on(&SERVER.get(testkit::RedisSentinel::start).await?.url(), app).await
    }
}

#[tokio::test]
async fn the_first_level_stays_within_its_bytes() {
    let cache = Config::new("memory:").max_bytes(1 << 20).connect("test").await.unwrap();
    let space = cache.space::<Vec<u8>>("flood");
    for n in 0..20_000 {
        space.set(n, vec![0; 500]).await.unwrap();
    }
    let (entries, bytes) = cache.local_size();
    assert!(bytes <= 1 << 20 && entries < 2_000, "{entries} entries of {bytes} bytes");
}
