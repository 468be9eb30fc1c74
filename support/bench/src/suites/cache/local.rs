//! The first level compared with bare in-process caches: one thread, keys formatted for each call,
//! values of 100 bytes behind an `Arc`.

use std::fmt::Write;
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use multi_tier_cache::{CacheStrategy, CacheSystem};
use scale_cache::{Cache, Space};
use testkit::Redis;

use super::{KEYS, fill, value};
use crate::Effort;
use crate::measure::{Better, Case};
use crate::report::Report;

/// Capacity of the peers, larger than the number of entries.
const CAPACITY: usize = 1_000_000;

async fn ours(space: &Space<String>, count: usize) -> Result<f64> {
    let start = Instant::now();
    for n in 0..count {
        let value =
            space.get_or_load(n % KEYS, |_| ready(Ok::<_, std::io::Error>(value()))).await?;
        std::hint::black_box(value);
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

/// Returns nanoseconds per hit.
fn hits(count: usize, get: impl Fn(&str) -> Option<Arc<String>>) -> Result<f64> {
    let start = Instant::now();
    let mut key = String::new();
    for n in 0..count {
        key.clear();
        write!(key, "l1:{}", n % KEYS)?;
        anyhow::ensure!(std::hint::black_box(get(&key)).is_some(), "a miss");
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

async fn cachet(cache: &cachet::Cache<String, Arc<String>>, count: usize) -> Result<f64> {
    let start = Instant::now();
    let mut key = String::new();
    for n in 0..count {
        key.clear();
        write!(key, "l1:{}", n % KEYS)?;
        let entry = cache.get(key.as_str()).await.map_err(|e| anyhow::anyhow!("{e}"))?;
        anyhow::ensure!(std::hint::black_box(entry).is_some(), "a miss");
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

async fn multi_tier(cache: &CacheSystem, count: usize) -> Result<f64> {
    let manager = cache.cache_manager();
    let start = Instant::now();
    let mut key = String::new();
    for n in 0..count {
        key.clear();
        write!(key, "l1:{}", n % KEYS)?;
        let bytes = manager
            .get_or_compute_with(&key, CacheStrategy::MediumTerm, || {
                ready(Ok(Bytes::from(value())))
            })
            .await?;
        anyhow::ensure!(!std::hint::black_box(bytes).is_empty(), "a miss");
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

pub(super) async fn run(effort: Effort, server: &Redis, report: &mut Report) -> Result<()> {
    let cache = Cache::memory();
    let space = &cache.space("l1").ttl(Duration::from_hours(1));
    fill(space).await?;
    let moka = &moka::sync::Cache::new(CAPACITY as u64);
    let quick = &quick_cache::sync::Cache::new(CAPACITY);
    let foyer = &foyer_memory::CacheBuilder::new(CAPACITY).build::<foyer_memory::CacheProperties>();
    let cached = &cached::ShardedLruCache::new(CAPACITY);
    let cachet_cache = &cachet::Cache::builder(tick::Clock::new_tokio())
        .memory()
        .ttl(Duration::from_hours(1))
        .build();
    let tiers = &CacheSystem::with_redis_url(&server.url()).await?;
    for n in 0..KEYS {
        let (key, value) = (format!("l1:{n}"), Arc::new(value()));
        moka.insert(key.clone(), Arc::clone(&value));
        quick.insert(key.clone(), Arc::clone(&value));
        foyer.insert(key.clone(), Arc::clone(&value));
        cached.set(key.clone(), Arc::clone(&value));
        cachet_cache.insert(key, value).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    }
    let count = 500_000 * effort.scale;
    Case::new("l1_hit", "ns", Better::Lower)
        .subject("scale-cache", move || ours(space, count))
        .subject("moka", move || ready(hits(count, |key| moka.get(key))))
        .target(0.66)
        .subject("quick_cache", move || ready(hits(count, |key| quick.get(key))))
        .subject("foyer", move || {
            ready(hits(count, |key| foyer.get(key).map(|entry| Arc::clone(entry.value()))))
        })
        .subject("cached", move || ready(hits(count, |key| cached.get(key))))
        .subject("cachet", move || cachet(cachet_cache, count))
        .subject("multi-tier-cache", move || multi_tier(tiers, count))
        .measure(effort, report)
        .await;
    Ok(())
}
