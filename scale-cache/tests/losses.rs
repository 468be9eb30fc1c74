//! Redis loses what it has acknowledged: in a crash what came after the last snapshot, in a fail-over what the replica did not get. What
//! was invalidated is not served again all the same.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
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

/// The ways to get rid of the value 1 under the key `k`.
const WAYS: [&str; 4] = ["remove", "set", "tag", "clear"];

/// Several cases at once, each with servers of its own.
async fn each<const N: usize>(ways: [&str; N], case: impl AsyncFn(&str) -> Result<()>) -> Result<()> {
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

/// The bound that the crate's docs state.
const BOUND: Duration = Duration::from_millis(4_500);

/// Nobody serves the value, whenever it asks: the first one here got rid of it, the others were there, and some come only now.
async fn nobody_has_it(there: &[&Cache], url: &str, way: &str) -> Result<()> {
    let began = tokio::time::Instant::now();
    while began.elapsed() < BOUND + Duration::from_secs(1) {
        for (n, cache) in there.iter().enumerate() {
            // Others may not have heard of it: Redis died before it had told them.
            let asked = began.elapsed();
            let found = space(cache).get("k").await;
            assert!(found.as_deref() != Some(&1) || (n > 0 && asked < BOUND), "{way}: process {n} after {asked:?}");
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
    // And the second level is of use again.
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

/// Everybody who remembers is gone, too.
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
            (group.server(1).command(&["EXISTS", "test:cache:{u:k}:e"]).await.ok()? == "1").then_some(())
        })
        .await?;
        // The replica falls behind.
        group.server(1).pause()?;
        group.server(0).command(&["CLIENT", "KILL", "TYPE", "replica"]).await?;
        assert_eq!(get_rid(&cache, way).await?, Reach::Everywhere);
        group.server(0).kill()?;
        group.server(1).resume()?;
        eventually("the fail-over", async || (group.master_port().await.ok()? == group.server(1).port()).then_some(())).await?;
        nobody_has_it(&[&cache, &other], &group.url(), way).await
    })
    .await
}

/// A restart that loses nothing costs nothing: what is stored is of use to processes that come afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_loses_nothing_leaves_the_second_level_warm() -> Result<()> {
    let server = Redis::start_with(&["--appendfsync", "always"]).await?;
    let cache = linked(&server.url()).await?;
    space(&cache).set("k", 1).await?;
    eventually("a mark of a later moment", async || {
        let mark = server.command(&["GET", "test:cache:whole"]).await.ok()?;
        let at: u64 = mark.split(' ').nth(1)?.parse().ok()?;
        let time = server.command(&["TIME"]).await.ok()?;
        let now: u64 = time.lines().next()?.parse().ok()?;
        // So long before the last mark nothing is told again: no removal of the key.
        (at / 1_000_000 >= now.saturating_sub(1) && at > 0).then_some(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.restart().await?;
    let fresh = Cache::builder(&server.url()).connect_lazy("test")?;
    eventually("the value", async || space(&fresh).get("k").await.filter(|value| **value == 1)).await?;
    Ok(())
}

/// An invalidation has been told once the replicas have it, if that is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_waits_for_replicas() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let cache = Cache::builder(&group.url()).replicas(1, Duration::from_millis(300)).connect("test").await?;
    eventually("the link", async || cache.is_healthy().then_some(())).await?;
    space(&cache).set("k", 1).await?;
    assert_eq!(space(&cache).remove("k").await, Reach::Everywhere);
    assert_eq!(cache.invalidate_tags(["t"]).await, Reach::Everywhere);
    group.server(1).pause()?;
    assert_eq!(space(&cache).remove("k").await, Reach::Here);
    assert_eq!(cache.invalidate_tags(["t"]).await, Reach::Here);
    // Nobody else is kept from Redis.
    assert!(cache.is_healthy());
    group.server(1).resume()?;
    tokio::time::timeout(Duration::from_secs(20), cache.flush()).await?;
    assert_eq!(space(&cache).remove("k").await, Reach::Everywhere);
    Ok(())
}

/// Redis restarts from the old snapshot once more while everybody tells again what it had lost the first time.
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
        eventually("it to be told again", async || (server.calls(&["publish"]).await.ok()? > 0).then_some(())).await?;
        server.restart().await?;
        nobody_has_it(&[&cache, &other], &server.url(), way).await
    })
    .await
}

/// One whose link was cut when Redis crashed comes back when the others have settled it without knowing what that one had removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_late_tells_what_it_knows() -> Result<()> {
    let server = Redis::start_with(&["--appendonly", "no", "--save", "3600 1"]).await?;
    let (first, second) = (Proxy::start(server.port()).await?, Proxy::start(server.port()).await?);
    let url = |proxy: &Proxy| format!("redis://127.0.0.1:{}", proxy.port());
    let (stays, removes) = (linked(&url(&first)).await?, linked(&url(&second)).await?);
    space(&removes).set("k", 1).await?;
    server.command(&["SAVE"]).await?;
    // The one that settles does not hear of the removal.
    first.cut();
    assert_eq!(space(&removes).remove("k").await, Reach::Everywhere);
    second.refuse();
    server.kill()?;
    first.heal();
    server.restart().await?;
    eventually("it to be settled by the other", async || {
        let value = space(&stays).get("k").await;
        (stays.is_healthy() && (value.is_some() || server.calls(&["set"]).await.ok()? > 1)).then_some(())
    })
    .await?;
    second.heal();
    let until = tokio::time::Instant::now() + BOUND;
    while tokio::time::Instant::now() < until {
        assert_ne!(space(&removes).get("k").await.as_deref(), Some(&1), "the one that removed it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for cache in [&stays, &linked(&server.url()).await?] {
        assert_ne!(space(cache).get("k").await.as_deref(), Some(&1), "once it is back, nobody has it");
    }
    Ok(())
}

/// A server that followed another one for a while is not what it was, though it was never restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_back_brings_nothing_back() -> Result<()> {
    let (a, b) = (Redis::start().await?, Redis::start().await?);
    let follow = async |who: &Redis, whom: &Redis| {
        who.command(&["REPLICAOF", "127.0.0.1", &whom.port().to_string()]).await?;
        eventually("the replica to follow", async || {
            who.command(&["INFO", "replication"]).await.ok()?.contains("master_link_status:up").then_some(())
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
