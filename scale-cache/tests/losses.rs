//! Redis loses acknowledged data: in a crash the writes after the last snapshot, in a fail-over the
//! writes that the replica did not receive. An invalidated value is still never served again.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_cache::store::{RedisStore, Store};
use scale_cache::{Cache, Options, Reach, Space};
use testkit::{Proxy, Redis, RedisSentinel, eventually};

async fn linked(url: &str) -> Result<Cache> {
    let cache = Cache::connect(url, "test").await?;
    eventually("the link", async || cache.is_healthy().then_some(())).await?;
    Ok(cache)
}

fn space(cache: &Cache) -> Space<u32> {
    cache.space("u").options(Options::ttl(Duration::from_hours(1)).tag("t"))
}

/// The ways to invalidate the value 1 under the key `k`.
const WAYS: [&str; 4] = ["remove", "set", "tag", "clear"];

/// Runs several cases concurrently, each with servers of its own.
async fn each<const N: usize>(
    ways: [&str; N],
    case: impl AsyncFn(&str) -> Result<()>,
) -> Result<()> {
    futures_util::future::try_join_all(ways.iter().map(|way| case(way))).await.map(drop)
}

async fn get_rid(cache: &Cache, way: &str) -> Result<Reach> {
    Ok(match way {
        "remove" => space(cache).remove("k").await,
        "set" => {
            space(cache).set("k", 2).await?;
            Reach::Everywhere
        }
        "tag" => cache.invalidate_tags(["t"]).await,
        _ => space(cache).clear().await,
    })
}

/// The bound in the crate's docs.
const BOUND: Duration = Duration::from_millis(4_500);

/// Checks that no node serves the value at any time: the first node here invalidated it, others
/// were running, and some start only now.
async fn nobody_has_it(there: &[&Cache], url: &str, way: &str) -> Result<()> {
    let began = tokio::time::Instant::now();
    while began.elapsed() < BOUND + Duration::from_secs(1) {
        for (n, cache) in there.iter().enumerate() {
            // Other nodes may not have received it: Redis died before it had sent the event.
            let asked = began.elapsed();
            let found = space(cache).get("k").await;
            assert!(
                found.as_deref() != Some(&1) || (n > 0 && asked < BOUND),
                "{way}: process {n} after {asked:?}"
            );
        }
        let fresh = Cache::builder(url).connect_lazy("test")?;
        tokio::time::timeout(Duration::from_millis(200), async {
            while !fresh.is_healthy() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .ok();
        assert_ne!(space(&fresh).get("k").await.as_deref(), Some(&1), "{way}: a fresh process");
    }
    // And the second level is usable again.
    for cache in there {
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
    }
    let fresh = linked(url).await?;
    eventually("a value through the second level", async || {
        space(there[0]).set("other", 7).await.ok()?;
        space(&fresh).get("other").await
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_brings_nothing_back() -> Result<()> {
    each(WAYS, async |way| {
        let server = Redis::start_with(&["--appendonly", "no", "--save", "3600 1"]).await?;
        let (cache, other) = (linked(&server.url()).await?, linked(&server.url()).await?);
        space(&cache).set("k", 1).await?;
        assert_eq!(space(&other).get("k").await.as_deref(), Some(&1));
        server.command(&["SAVE"]).await?;
        assert_eq!(get_rid(&cache, way).await?, Reach::Everywhere);
        server.restart().await?;
        nobody_has_it(&[&cache, &other], &server.url(), way).await
    })
    .await
}

/// All nodes that remember the invalidation are gone, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_all_brings_nothing_back() -> Result<()> {
    each(WAYS, async |way| {
        let server = Redis::start_with(&["--appendonly", "no", "--save", "3600 1"]).await?;
        let cache = linked(&server.url()).await?;
        space(&cache).set("k", 1).await?;
        server.command(&["SAVE"]).await?;
        assert_eq!(get_rid(&cache, way).await?, Reach::Everywhere);
        drop(cache);
        server.restart().await?;
        let new = Cache::builder(&server.url()).connect_lazy("test")?;
        nobody_has_it(&[&new], &server.url(), way).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_brings_nothing_back() -> Result<()> {
    each(["remove", "tag"], async |way| {
        let group = RedisSentinel::start().await?;
        let (cache, other) = (linked(&group.url()).await?, linked(&group.url()).await?);
        space(&cache).set("k", 1).await?;
        assert_eq!(space(&other).get("k").await.as_deref(), Some(&1));
        eventually("the replica to have it", async || {
            (group.server(1).command(&["EXISTS", "test:cache:{u:k}:e"]).await.ok()? == "1")
                .then_some(())
        })
        .await?;
        // The replica falls behind.
        group.server(1).pause()?;
        group.server(0).command(&["CLIENT", "KILL", "TYPE", "replica"]).await?;
        assert_eq!(get_rid(&cache, way).await?, Reach::Everywhere);
        group.server(0).kill()?;
        group.server(1).resume()?;
        eventually("the fail-over", async || {
            (group.master_port().await.ok()? == group.server(1).port()).then_some(())
        })
        .await?;
        nobody_has_it(&[&cache, &other], &group.url(), way).await
    })
    .await
}

/// A restart without data loss costs nothing: stored entries are usable by processes that start
/// afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_loses_nothing_leaves_the_second_level_warm() -> Result<()> {
    let server = Redis::start_with(&["--appendfsync", "always"]).await?;
    let cache = linked(&server.url()).await?;
    space(&cache).set("k", 1).await?;
    let time = server.command(&["TIME"]).await?;
    let was_set: u64 = time.lines().next().unwrap_or_default().parse()?;
    eventually("a mark of a later moment", async || {
        let mark = server.command(&["GET", "test:cache:whole"]).await.ok()?;
        let at: u64 = mark.split(' ').nth(1)?.parse().ok()?;
        // Invalidations from long before the last mark are not sent again: the key is not removed
        // again.
        (at / 1_000_000 >= was_set + 4).then_some(())
    })
    .await?;
    server.restart().await?;
    let fresh = Cache::builder(&server.url()).connect_lazy("test")?;
    eventually("the value", async || space(&fresh).get("k").await.filter(|value| **value == 1))
        .await?;
    Ok(())
}

/// An invalidation is confirmed when the replicas have it, if that is configured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_waits_for_replicas() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let cache = Cache::builder(&group.url())
        .replicas(1, Duration::from_millis(300))
        .connect("test")
        .await?;
    eventually("the link", async || cache.is_healthy().then_some(())).await?;
    space(&cache).set("k", 1).await?;
    assert_eq!(space(&cache).remove("k").await, Reach::Everywhere);
    assert_eq!(cache.invalidate_tags(["t"]).await, Reach::Everywhere);
    group.server(1).pause()?;
    assert_eq!(space(&cache).remove("k").await, Reach::Here);
    assert_eq!(cache.invalidate_tags(["t"]).await, Reach::Here);
    // Other callers can still use Redis.
    assert!(cache.is_healthy());
    group.server(1).resume()?;
    tokio::time::timeout(Duration::from_secs(20), cache.flush()).await?;
    assert_eq!(space(&cache).remove("k").await, Reach::Everywhere);
    Ok(())
}

/// Redis restarts from the old snapshot again while all nodes resend the data of the first loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_crashes_in_a_row_bring_nothing_back() -> Result<()> {
    each(["remove", "tag"], async |way| {
        let server = Redis::start_with(&["--appendonly", "no", "--save", "3600 1"]).await?;
        let (cache, other) = (linked(&server.url()).await?, linked(&server.url()).await?);
        space(&cache).set("k", 1).await?;
        assert_eq!(space(&other).get("k").await.as_deref(), Some(&1));
        server.command(&["SAVE"]).await?;
        assert_eq!(get_rid(&cache, way).await?, Reach::Everywhere);
        server.restart().await?;
        eventually("it to be sent again", async || {
            (server.calls(&["publish"]).await.ok()? > 0).then_some(())
        })
        .await?;
        server.restart().await?;
        nobody_has_it(&[&cache, &other], &server.url(), way).await
    })
    .await
}

/// A node whose connection was cut when Redis crashed reconnects after the others have completed
/// the repair without knowing the removal of that node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_late_tells_what_it_knows() -> Result<()> {
    let server = Redis::start_with(&["--appendonly", "no", "--save", "3600 1"]).await?;
    let (first, second) = (Proxy::start(server.port()).await?, Proxy::start(server.port()).await?);
    let url = |proxy: &Proxy| format!("redis://127.0.0.1:{}", proxy.port());
    let (stays, removes) = (linked(&url(&first)).await?, linked(&url(&second)).await?);
    space(&removes).set("k", 1).await?;
    server.command(&["SAVE"]).await?;
    // The node that completes the repair does not receive the removal.
    first.cut();
    assert_eq!(space(&removes).remove("k").await, Reach::Everywhere);
    second.refuse();
    server.kill()?;
    first.heal();
    server.restart().await?;
    eventually("it to be settled by the other", async || {
        let value = space(&stays).get("k").await;
        (stays.is_healthy() && (value.is_some() || server.calls(&["set"]).await.ok()? > 1))
            .then_some(())
    })
    .await?;
    second.heal();
    let until = tokio::time::Instant::now() + BOUND;
    while tokio::time::Instant::now() < until {
        assert_ne!(space(&removes).get("k").await.as_deref(), Some(&1), "the one that removed it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for cache in [&stays, &linked(&server.url()).await?] {
        assert_ne!(
            space(cache).get("k").await.as_deref(),
            Some(&1),
            "once it is back, no node has it"
        );
    }
    Ok(())
}

/// A server that followed another server for a while has lost data, although it was never
/// restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_back_brings_nothing_back() -> Result<()> {
    let (a, b) = (Redis::start().await?, Redis::start().await?);
    let follow = async |who: &Redis, whom: &Redis| {
        who.command(&["REPLICAOF", "127.0.0.1", &whom.port().to_string()]).await?;
        eventually("the replica to follow", async || {
            who.command(&["INFO", "replication"])
                .await
                .ok()?
                .contains("master_link_status:up")
                .then_some(())
        })
        .await
    };
    let proxy = Proxy::start(a.port()).await?;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let cache = linked(&url).await?;
    space(&cache).set("k", 1).await?;
    follow(&b, &a).await?;
    // The replica takes over without the removal, and the old master follows it.
    b.promote().await?;
    assert_eq!(space(&cache).remove("k").await, Reach::Everywhere);
    proxy.refuse();
    follow(&a, &b).await?;
    a.promote().await?;
    proxy.heal();
    nobody_has_it(&[&cache], &url, "fail-back").await
}

/// The server's clock went back: its next version of a tag is still later than the last one.
#[tokio::test]
async fn a_clock_that_went_back_makes_no_version_earlier() -> Result<()> {
    let server = Redis::start().await?;
    let store = RedisStore::new(scale_redis::Redis::connect(&server.url()).await?, "test");
    let (first, _) = store.version("t").await?;
    // As if the version had been made an hour later.
    let later = first.at_us + 3_600_000_000;
    server.command(&["SET", "test:cache:tag:t", &later.to_string()]).await?;
    assert_eq!(store.invalidate("t", None).await?.at_us, later + 1);
    assert_eq!(store.version("t").await?.0.at_us, later + 1);
    Ok(())
}
