//! Redis slow, dead, restarted, cut off: the cache continues, and forgets no invalidation.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use scale_cache::{Cache, Options};
use testkit::{Proxy, Redis, eventually};

type Io = std::io::Error;

fn options() -> Options {
    Options::ttl(Duration::from_mins(5)).tag("t")
}

async fn get(cache: &Cache, key: &str, truth: &Arc<AtomicU64>) -> Result<u64> {
    let truth = Arc::clone(truth);
    Ok(*cache.get_or_load(key, &options(), move |_| ready(Ok::<_, Io>(truth.load(SeqCst)))).await?)
}

async fn linked(cache: &Cache) -> Result<()> {
    eventually("the link", async || cache.is_healthy().then_some(())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_redis_costs_next_to_nothing_and_no_invalidation() -> Result<()> {
    let server = Redis::start().await?;
    let (a, b) = (
        Cache::connect(&server.url(), "test").await?,
        Cache::connect(&server.url(), "test").await?,
    );
    linked(&a).await?;
    linked(&b).await?;
    let truth = Arc::new(AtomicU64::new(1));
    for n in 0..100 {
        assert_eq!(
            (get(&a, &format!("k{n}"), &truth).await?, get(&b, &format!("k{n}"), &truth).await?),
            (1, 1)
        );
    }
    server.kill()?;
    eventually("it to be noticed", async || (!a.is_healthy()).then_some(())).await?;
    // Hits are still served.
    truth.store(2, SeqCst);
    for n in 0..100 {
        assert_eq!(get(&a, &format!("k{n}"), &truth).await?, 1);
    }
    // Invalidations take effect here at once, and misses do not wait for Redis.
    a.invalidate_tags(["t"]).await;
    let start = Instant::now();
    for n in 0..100 {
        assert_eq!(get(&a, &format!("k{n}"), &truth).await?, 2);
        assert_eq!(get(&a, &format!("new{n}"), &truth).await?, 2);
    }
    assert!(start.elapsed() < Duration::from_millis(500), "200 misses took {:?}", start.elapsed());
    a.space::<u64>("").remove("k0").await;

    server.restart().await?;
    let back = Instant::now();
    eventually("the other node to hear", async || {
        (get(&b, "k1", &truth).await.ok()? == 2).then_some(())
    })
    .await?;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    for n in 0..100 {
        assert_eq!(
            (get(&a, &format!("k{n}"), &truth).await?, get(&b, &format!("k{n}"), &truth).await?),
            (2, 2)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_refetch_the_first_level() -> Result<()> {
    let server = Redis::start_with(&["--appendfsync", "always"]).await?;
    let cache = Cache::connect(&server.url(), "test").await?;
    linked(&cache).await?;
    let loads = Arc::new(AtomicU64::new(0));
    let read = async |n: u64| -> Result<()> {
        let loads = Arc::clone(&loads);
        let load = move |_| {
            loads.fetch_add(1, SeqCst);
            ready(Ok::<_, Io>(n))
        };
        cache.get_or_load(&format!("k{n}"), &options(), load).await?;
        Ok(())
    };
    for n in 0..200 {
        read(n).await?;
    }
    server.restart().await?;
    linked(&cache).await?;
    for n in 0..200 {
        read(n).await?;
    }
    assert_eq!(loads.load(SeqCst), 200, "checked against the second level, not loaded again");
    Ok(())
}

/// An entry that was found while the subscription was being established is read again, and does not
/// count as a miss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_while_the_link_comes_up_misses_nothing() -> Result<()> {
    let server = Redis::start().await?;
    // A machine that is busy with other tests must not look like an unresponsive store.
    let patient = || Cache::builder(&server.url()).store_timeout(Duration::from_secs(20));
    let first = patient().connect("test").await?.space::<u64>("s").options(options());
    for n in 0..64 {
        first.get_or_load(n, move |_| ready(Ok::<_, Io>(n))).await?;
    }
    for _ in 0..50 {
        let begun = patient().connect("test").await?.space::<u64>("s").options(options());
        let reads: Vec<_> = (0..64)
            .map(|n| {
                let begun = begun.clone();
                tokio::spawn(async move { begun.get(n).await.map(|found| *found) })
            })
            .collect();
        for (n, read) in reads.into_iter().enumerate() {
            assert_eq!(read.await?, Some(n as u64));
        }
    }
    Ok(())
}

/// A new store is initialised before values are loaded, however slowly it answers: its first
/// invalidation would end them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_loaded_after_connecting_to_a_slow_store_is_found_there() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    proxy.delay(Duration::from_millis(150));
    let slow = Cache::builder(&format!("redis://127.0.0.1:{}", proxy.port()))
        .store_timeout(Duration::from_secs(20))
        .connect("test")
        .await?;
    proxy.heal();
    let truth = Arc::new(AtomicU64::new(1));
    assert_eq!(get(&slow, "k", &truth).await?, 1);
    linked(&slow).await?;
    let other = Cache::connect(&server.url(), "test").await?;
    truth.store(2, SeqCst);
    assert_eq!(get(&other, "k", &truth).await?, 1, "found in the store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_redis_costs_the_patience_once() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let store_timeout = Duration::from_millis(50);
    let cache = Cache::builder(&format!("redis://127.0.0.1:{}", proxy.port()))
        .store_timeout(store_timeout)
        .connect("test")
        .await?;
    linked(&cache).await?;
    let truth = Arc::new(AtomicU64::new(1));
    proxy.delay(Duration::from_secs(2));
    let start = Instant::now();
    for n in 0..20 {
        assert_eq!(get(&cache, &format!("k{n}"), &truth).await?, 1);
    }
    assert!(
        start.elapsed() < store_timeout * 10,
        "20 misses took {:?}: the breaker is open",
        start.elapsed()
    );
    proxy.heal();
    Ok(())
}

/// The bound in the docs: with a node's connection cut, it serves an invalidated value for at most
/// `max_staleness_offline` + 1.5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_bounds_staleness() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let max_staleness_offline = Duration::from_millis(500);
    let near = Cache::connect(&server.url(), "test").await?;
    let far = Cache::builder(&format!("redis://127.0.0.1:{}", proxy.port()))
        .max_staleness_offline(max_staleness_offline)
        .connect("test")
        .await?;
    linked(&near).await?;
    linked(&far).await?;
    let truth = Arc::new(AtomicU64::new(1));
    assert_eq!((get(&near, "k", &truth).await?, get(&far, "k", &truth).await?), (1, 1));
    proxy.cut();
    truth.store(2, SeqCst);
    near.invalidate_tags(["t"]).await;
    let start = Instant::now();
    eventually("the cut-off node to stop believing", async || {
        (get(&far, "k", &truth).await.ok()? == 2).then_some(())
    })
    .await?;
    let bound = max_staleness_offline + Duration::from_millis(1_500);
    assert!(start.elapsed() < bound + Duration::from_millis(500), "{:?}", start.elapsed());
    // Although cut off, the node still loads and caches, within `max_staleness_offline`.
    truth.store(3, SeqCst);
    assert_eq!(get(&far, "k", &truth).await?, 2);
    eventually("the next look", async || (get(&far, "k", &truth).await.ok()? == 3).then_some(()))
        .await?;
    proxy.heal();
    linked(&far).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_or_poisoned_redis_is_no_error() -> Result<()> {
    let server =
        Redis::start_with(&["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]).await?;
    let cache = Cache::connect(&server.url(), "test").await?;
    linked(&cache).await?;
    let space = cache.space::<String>("big").ttl(Duration::from_mins(1));
    for n in 0..100 {
        let text = space.get_or_load(n, |_| ready(Ok::<_, Io>("x".repeat(50_000)))).await?;
        assert_eq!(text.len(), 50_000);
    }
    cache.invalidate_tags(["t"]).await;

    let server = Redis::start().await?;
    let cache = Cache::connect(&server.url(), "test").await?;
    linked(&cache).await?;
    let truth = Arc::new(AtomicU64::new(7));
    for (n, junk) in
        ["", "x", "\u{1}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"].iter().enumerate()
    {
        server.command(&["SET", &format!("test:cache:{{:junk{n}}}:e"), junk]).await?;
        assert_eq!(get(&cache, &format!("junk{n}"), &truth).await?, 7);
    }
    // A key with a value of another type.
    server.command(&["LPUSH", "test:cache:{:list}:e", "x"]).await?;
    assert_eq!(get(&cache, "list", &truth).await?, 7);
    Ok(())
}

/// Tags are evicted: entries with such a tag become misses, and no old entry becomes valid again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_tag_revives_nothing() -> Result<()> {
    let server = Redis::start().await?;
    let truth = Arc::new(AtomicU64::new(1));
    let old = Cache::connect(&server.url(), "test").await?;
    linked(&old).await?;
    assert_eq!(get(&old, "k", &truth).await?, 1);
    let entry = server.command(&["DUMP", "test:cache:{:k}:e"]).await?;
    assert!(!entry.is_empty());
    truth.store(2, SeqCst);
    old.invalidate_tags(["t"]).await;
    server.command(&["DEL", "test:cache:tag:t"]).await?;
    // A node that has never seen the tag finds the old entry in the second level, and a tag without
    // a version.
    let new = Cache::connect(&server.url(), "test").await?;
    linked(&new).await?;
    assert_eq!(get(&new, "k", &truth).await?, 2);
    Ok(())
}
