//! An invalidated value is never served again, and nothing else is lost: one mechanism at a time.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::error::Error as _;
use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use scale_cache::{Cache, Config, Error, LoadContext, Options, Reach};
use testkit::eventually;
use tokio::sync::Notify;

type Io = std::io::Error;

fn hour() -> Options {
    Options::ttl(Duration::from_hours(1))
}

/// A loader that names its own tag, signals that it has read, and waits.
struct Held {
    value: Arc<AtomicU32>,
    has_read: Arc<Notify>,
    goes_on: Arc<Notify>,
}

impl Held {
    fn new() -> Self {
        Self {
            value: Arc::new(AtomicU32::new(1)),
            has_read: Arc::default(),
            goes_on: Arc::default(),
        }
    }

    async fn ask(&self, cache: &Cache) -> Result<u32> {
        let (value, has_read, goes_on) =
            (Arc::clone(&self.value), Arc::clone(&self.has_read), Arc::clone(&self.goes_on));
        let load = move |load: LoadContext| async move {
            load.tag("role:clerk");
            let read = value.load(SeqCst);
            has_read.notify_one();
            goes_on.notified().await;
            Ok::<_, Io>(read)
        };
        Ok(*cache.get_or_load("ann", &hour().fail_closed(), load).await?)
    }
}

#[tokio::test]
async fn who_asks_after_a_revocation_does_not_join_a_load_from_before_it() -> Result<()> {
    let (cache, held) = (Cache::memory(), Held::new());
    let first = held.ask(&cache);
    tokio::pin!(first);
    tokio::select! {
        _ = &mut first => anyhow::bail!("it waits"),
        () = held.has_read.notified() => {}
    }
    held.value.store(0, SeqCst);
    assert_eq!(cache.invalidate_tags(["role:clerk"]).await, Reach::Everywhere);
    let later = held.ask(&cache);
    tokio::pin!(later);
    // It joins: the tags of the value are not known yet.
    assert!(futures_util::poll!(&mut later).is_pending());
    held.goes_on.notify_one();
    assert_eq!(first.await?, 1, "an earlier caller may get the old right");
    tokio::select! {
        _ = &mut later => anyhow::bail!("it must wait for a new load"),
        () = held.has_read.notified() => {}
    }
    held.goes_on.notify_one();
    assert_eq!(later.await?, 0);
    Ok(())
}

/// The load has ended, and its value is being passed to the waiters: a read after an invalidation
/// does not receive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_after_a_revocation_is_not_given_what_has_just_been_loaded() -> Result<()> {
    let cache = Cache::memory();
    let current = Arc::new(AtomicU32::new(0));
    // Large, so that encoding takes time after the loader has ended.
    let read = {
        let (cache, current) = (cache.clone(), Arc::clone(&current));
        async move |ended: Option<Arc<Notify>>| {
            let current = Arc::clone(&current);
            let load = move |load: LoadContext| async move {
                load.tag("t");
                let value = (current.load(SeqCst), vec!["x".to_owned(); 20_000]);
                if let Some(ended) = ended {
                    ended.notify_one();
                }
                Ok::<_, Io>(value)
            };
            cache
                .get_or_load::<(u32, Vec<String>), _, _, _>("k", &hour(), load)
                .await
                .map(|value| value.0)
        }
    };
    for round in 1..=30 {
        cache.clear().await;
        let ended = Arc::new(Notify::new());
        let first = tokio::spawn({
            let (read, ended) = (read.clone(), Arc::clone(&ended));
            async move { read(Some(ended)).await }
        });
        ended.notified().await;
        current.store(round, SeqCst);
        cache.invalidate_tags(["t"]).await;
        assert_eq!(read(None).await?, round);
        first.await??;
    }
    Ok(())
}

#[tokio::test]
async fn an_old_tag_found_late_is_no_reason_not_to_keep_a_value() -> Result<()> {
    let cache = Cache::memory();
    let loads = Arc::new(AtomicU32::new(0));
    for round in 1..=3 {
        cache.invalidate_tags(["t"]).await;
        for _ in 0..10 {
            let loads = Arc::clone(&loads);
            let load = move |load: LoadContext| {
                loads.fetch_add(1, SeqCst);
                load.tag("t");
                ready(Ok::<_, Io>(1))
            };
            cache.get_or_load("k", &hour(), load).await?;
        }
        assert_eq!(loads.load(SeqCst), round);
    }
    Ok(())
}

#[tokio::test]
async fn writes_to_other_keys_lose_nothing() -> Result<()> {
    let space = Cache::builder("memory:")
        .max_bytes(1 << 30)
        .connect("test")
        .await?
        .space::<u32>("n")
        .options(hour());
    for n in 0..30_000 {
        space.set(n, n).await?;
    }
    for n in 30_000..150_000 {
        space.remove(n).await;
    }
    for n in 0..30_000 {
        assert_eq!(space.get(n).await.as_deref(), Some(&n));
    }
    Ok(())
}

#[tokio::test]
async fn tags_of_their_own_lose_nothing() -> Result<()> {
    let cache = Cache::builder("memory:").max_bytes(1 << 30).connect("test").await?;
    let space = cache.space::<u32>("n");
    for n in 0..1_000 {
        space
            .get_or_load_with(n, &hour().tag(format!("t{n}")), move |_| ready(Ok::<_, Io>(n)))
            .await?;
    }
    // More tags than are remembered without an entry that depends on them.
    for n in 0..300_000 {
        cache.invalidate_tags([format!("other{n}")]).await;
    }
    for n in 0..1_000 {
        assert_eq!(space.get(n).await.as_deref(), Some(&n));
    }
    cache.invalidate_tags(["t7"]).await;
    assert_eq!(space.get(7).await, None);
    Ok(())
}

/// Outside a runtime no value is loaded, and no state is damaged; the same holds for a runtime that
/// shuts down during a load.
#[test]
fn a_key_outlives_calls_outside_a_runtime_and_runtimes() {
    use futures_util::FutureExt;
    let cache = Cache::memory();
    let now = cache.get_or_load("k", &hour(), |_| ready(Ok::<_, Io>(1))).now_or_never();
    assert!(matches!(now, Some(Err(Error::NoRuntime))), "{now:?}");
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    assert_eq!(
        *runtime().block_on(cache.get_or_load("k", &hour(), |_| ready(Ok::<_, Io>(2)))).unwrap(),
        2
    );

    let (first, began) = (runtime(), Arc::new(Notify::new()));
    let (loads, tells) = (cache.clone(), Arc::clone(&began));
    first.spawn(async move {
        let load = move |_| {
            tells.notify_one();
            pending::<Result<u32, Io>>()
        };
        loads.get_or_load("hangs", &hour(), load).await
    });
    first.block_on(began.notified());
    // A waiter on another runtime continues with a load of its own.
    let (second, waits) = (runtime(), cache.clone());
    let waiting = second
        .spawn(async move { waits.get_or_load("hangs", &hour(), |_| ready(Ok::<_, Io>(3))).await });
    first.shutdown_background();
    assert_eq!(*second.block_on(waiting).unwrap().unwrap(), 3);
    assert_eq!(
        *second.block_on(cache.get_or_load("hangs", &hour(), |_| ready(Ok::<_, Io>(4)))).unwrap(),
        3
    );
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_is_told_so() -> Result<()> {
    let cache = Cache::memory();
    let inner = cache.clone();
    let began = Instant::now();
    let load = move |_| async move {
        let inmost = inner.clone();
        // Through another key.
        let other = move |_| async move {
            inmost.get_or_load("a", &hour(), |_| ready(Ok::<_, Io>(1))).await.map(|value| *value)
        };
        inner.get_or_load("b", &hour(), other).await.map(|value| *value)
    };
    let error = cache.get_or_load("a", &hour(), load).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "it is said at once");
    let mut causes = std::iter::successors(error.source(), |error| (*error).source());
    assert!(
        causes.any(|cause| {
            let cause = cause.downcast_ref::<Error>();
            matches!(cause, Some(Error::Cycle(key)) if key.ends_with('a'))
        }),
        "{error}"
    );
    // Through `load_many`, too.
    let (space, inner) = (cache.space::<u32>("many"), cache.clone());
    let many = space.load_many([1, 2], move |keys: Vec<u32>| {
        let inner = inner.clone();
        async move {
            inner.space::<u32>("many").get_or_load(keys[0], |_| ready(Ok::<_, Io>(1))).await?;
            Ok::<_, Error>(std::collections::HashMap::new())
        }
    });
    assert!(tokio::time::timeout(Duration::from_secs(5), many).await?.is_err());
    // The same key in another cache is a different key.
    let (first, second) = (Cache::memory(), Cache::memory());
    let load = move |_| async move {
        second.get_or_load("a", &hour(), |_| ready(Ok::<_, Io>(1))).await.map(|value| *value)
    };
    assert_eq!(*first.get_or_load("a", &hour(), load).await?, 1);
    Ok(())
}

#[tokio::test]
async fn no_time_is_too_long() -> Result<()> {
    let cache = Cache::builder("memory:")
        .max_staleness_offline(Duration::MAX)
        .store_timeout(Duration::MAX)
        .connect("test")
        .await?;
    for (n, options) in [
        Options::ttl(Duration::MAX),
        Options::ttl(Duration::from_secs(1)).stale_if_error(Duration::MAX),
        Options::ttl(Duration::from_secs(1)).throttle(Duration::MAX),
        Options::ttl(Duration::from_secs(1))
            .hard_timeout(Duration::MAX)
            .soft_timeout(Duration::MAX),
        Options::ttl(Duration::from_secs(1)).jitter(f64::NAN),
        Options::ttl(Duration::MAX).sliding(),
    ]
    .into_iter()
    .enumerate()
    {
        let load = |load: LoadContext| {
            load.ttl(Duration::MAX);
            ready(Ok::<_, Io>(1))
        };
        assert_eq!(*cache.get_or_load(&n.to_string(), &options, load).await?, 1);
        let space = cache.space::<u32>("s").options(options);
        space.set(n, 1).await?;
        assert_eq!(space.get(n).await.as_deref(), Some(&1));
        assert!(space.touch(n).await);
    }
    Ok(())
}

/// A loop of hits on one thread gives the timer a chance to run.
#[tokio::test]
async fn a_loop_of_hits_yields() -> Result<()> {
    let space = Cache::memory().space::<u32>("n").options(hour());
    space.set(1, 1).await?;
    let reader = space.clone();
    let reads = tokio::spawn(async move { while reader.get(1).await.is_some() {} });
    tokio::time::timeout(Duration::from_secs(10), async {
        tokio::task::yield_now().await;
        space.remove(1).await;
        reads.await
    })
    .await??;
    Ok(())
}

/// Values that the encoding would change are refused by a strict cache; values that only seem to be
/// at risk are not changed.
#[tokio::test]
async fn what_would_come_back_changed_is_noticed() -> Result<()> {
    use serde::{Deserialize, Serialize};
    #[derive(Serialize, Deserialize)]
    struct Flat {
        id: u32,
        #[serde(flatten)]
        rest: Rest,
    }
    #[derive(Serialize, Deserialize)]
    struct Rest {
        address: std::net::IpAddr,
    }
    #[derive(Serialize, Deserialize)]
    #[serde(tag = "type")]
    enum Tagged {
        Address { address: std::net::IpAddr },
    }
    #[derive(Serialize, Deserialize)]
    #[serde(tag = "type")]
    enum Large {
        Number { number: i128 },
    }
    let cache = Cache::strict();
    let address = "10.0.0.1".parse().unwrap();
    cache.space::<Flat>("a").set(1, Flat { id: 1, rest: Rest { address } }).await?;
    cache.space::<Tagged>("b").set(1, Tagged::Address { address }).await?;
    cache.space::<Option<u32>>("c").set(1, Some(1)).await?;
    assert!(matches!(
        cache.space::<Option<()>>("d").set(1, Some(())).await,
        Err(Error::Altered(_))
    ));
    assert!(matches!(
        cache.space::<Option<Option<u32>>>("e").set(1, Some(None)).await,
        Err(Error::Altered(_))
    ));
    assert!(matches!(
        cache.space::<Large>("f").set(1, Large::Number { number: 1 }).await,
        Err(Error::Decode(_))
    ));
    let loaded = cache.get_or_load("g", &hour(), |_| ready(Ok::<_, Io>(Some(())))).await;
    assert!(matches!(loaded, Err(Error::Altered(_))));
    Ok(())
}

#[cfg(feature = "redis")]
mod on_redis {
    use super::*;
    use testkit::{Proxy, Redis, RedisCluster};

    async fn linked(url: &str) -> Result<Cache> {
        let cache = Cache::connect(url, "test").await?;
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
        Ok(cache)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_old_tag_found_late_is_kept_right_after_its_invalidation() -> Result<()> {
        let server = Redis::start().await?;
        let cache = linked(&server.url()).await?;
        let loads = Arc::new(AtomicU32::new(0));
        for round in 0..5 {
            cache.invalidate_tags(["t"]).await;
            for _ in 0..20 {
                let loads = Arc::clone(&loads);
                let load = move |load: LoadContext| {
                    loads.fetch_add(1, SeqCst);
                    load.tag("t");
                    ready(Ok::<_, Io>(1))
                };
                cache.get_or_load("k", &hour(), load).await?;
            }
            assert_eq!(loads.load(SeqCst), round + 1, "one load for each invalidation");
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn writes_of_one_key_at_once_leave_what_redis_has() -> Result<()> {
        let server = Redis::start().await?;
        let (cache, other) = (linked(&server.url()).await?, linked(&server.url()).await?);
        let space = cache.space::<u32>("n").options(hour());
        for key in 0..300 {
            futures_util::future::try_join_all(
                (0..4).map(|value| {
                    let space = space.clone();
                    async move {
                        tokio::spawn(async move { space.set(key, value).await }).await.unwrap()
                    }
                }),
            )
            .await?;
            let seen = space.get(key).await;
            let fresh = other.space::<u32>("n").options(hour());
            eventually("both to have the same", async || {
                (fresh.get(key).await == space.get(key).await).then_some(())
            })
            .await?;
            assert!(seen.is_some());
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_value_kept_for_bad_times_is_not_touched_back_to_life() -> Result<()> {
        let server = Redis::start().await?;
        let (cache, other) = (linked(&server.url()).await?, linked(&server.url()).await?);
        let options = Options::ttl(Duration::from_millis(100))
            .jitter(0.0)
            .stale_if_error(Duration::from_mins(1));
        let space = |cache: &Cache| cache.space::<u32>("n").options(options.clone());
        space(&cache).set(1, 1).await?;
        eventually("its end", async || space(&cache).get(1).await.is_none().then_some(())).await?;
        assert!(!space(&cache).touch(1).await);
        assert_eq!((space(&cache).get(1).await, space(&other).get(1).await), (None, None));
        Ok(())
    }

    /// A read after the staleness bound does not join a load that began before the connection was
    /// lost.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_old_load_is_not_joined_when_nobody_hears_any_more() -> Result<()> {
        let server = Redis::start().await?;
        let proxy = Proxy::start(server.port()).await?;
        let cache = linked(&format!("redis://127.0.0.1:{}", proxy.port())).await?;
        let (goes_on, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let first = tokio::spawn({
            let (cache, goes_on, began) = (cache.clone(), Arc::clone(&goes_on), Arc::clone(&began));
            async move {
                let load = move |_| async move {
                    began.notify_one();
                    goes_on.notified().await;
                    Ok::<_, Io>(1)
                };
                cache.get_or_load("k", &hour().tag("t"), load).await
            }
        });
        began.notified().await;
        proxy.cut();
        linked(&server.url()).await?.invalidate_tags(["t"]).await;
        tokio::time::sleep(Duration::from_millis(4_600)).await;
        assert_eq!(*cache.get_or_load("k", &hour().tag("t"), |_| ready(Ok::<_, Io>(2))).await?, 2);
        goes_on.notify_one();
        assert_eq!(*first.await??, 1);
        Ok(())
    }

    /// A tag that the store has forgotten gets a new version there, and all nodes learn it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_tag_that_expired_does_not_part_the_fleet() -> Result<()> {
        let server = Redis::start().await?;
        let old = linked(&server.url()).await?;
        let loads = Arc::new(AtomicU32::new(0));
        let read = async |cache: &Cache, key: u32| {
            let loads = Arc::clone(&loads);
            let load = move |_| {
                loads.fetch_add(1, SeqCst);
                ready(Ok::<_, Io>(1))
            };
            cache.space::<u32>("n").options(hour()).get_or_load(key, load).await.map(drop)
        };
        read(&old, 0).await?;
        server
            .command(&[
                "EVAL",
                "return redis.call('DEL', unpack(redis.call('KEYS', 'test:cache:tag:*')))",
                "0",
            ])
            .await?;
        let new = linked(&server.url()).await?;
        let mut key = 0;
        eventually("one load for all of them", async || {
            key += 1;
            let before = loads.load(SeqCst);
            for cache in [&old, &new, &old, &new] {
                read(cache, key).await.ok()?;
            }
            (loads.load(SeqCst) == before + 1).then_some(())
        })
        .await?;
        // And when all data is gone at once.
        server.command(&["FLUSHALL"]).await?;
        eventually("one load for all of them", async || {
            key += 1;
            let before = loads.load(SeqCst);
            for cache in [&old, &new, &old, &new] {
                read(cache, key).await.ok()?;
            }
            (loads.load(SeqCst) == before + 1).then_some(())
        })
        .await
    }

    /// An error of Redis for one key does not affect the others.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bad_key_or_a_full_redis_keeps_nobody_from_what_is_there() -> Result<()> {
        let server = Redis::start_with(&[
            "--appendonly", "no", "--maxmemory", "8mb", "--maxmemory-policy", "noeviction",
        ])
        .await?;
        let cache = Cache::builder(&server.url()).max_bytes(0).connect("test").await?;
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
        let space = cache.space::<u32>("").options(hour());
        space.set("good", 1).await?;
        server.command(&["LPUSH", "test:cache:{:bad}:e", "x"]).await?;
        for _ in 0..100 {
            assert_eq!(space.get("bad").await, None);
            assert_eq!(space.get("good").await.as_deref(), Some(&1));
        }
        server.command(&["DEBUG", "POPULATE", "20000", "junk", "500"]).await?;
        for n in 0..100 {
            space.set(n, 2).await?;
            assert_eq!(space.get("good").await.as_deref(), Some(&1));
        }
        assert_eq!(cache.invalidate_tags(["any"]).await, Reach::Everywhere);
        Ok(())
    }

    /// Tens of thousands of removals made while Redis was unreachable are sent in seconds, and
    /// callers can wait for that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pending_removals_are_told_together() -> Result<()> {
        let server = Redis::start().await?;
        let cache = linked(&server.url()).await?;
        let space = cache.space::<u32>("n");
        server.kill()?;
        eventually("it to be noticed", async || (!cache.is_healthy()).then_some(())).await?;
        for n in 0..20_000 {
            assert_eq!(space.remove(n).await, Reach::Here);
        }
        server.restart().await?;
        tokio::time::timeout(Duration::from_secs(30), cache.flush()).await?;
        assert!(server.calls(&["publish"]).await? >= 20_000);
        assert_eq!(space.remove(0).await, Reach::Everywhere);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_without_redis_heals() -> Result<()> {
        let server = Redis::start().await?;
        let url = server.url();
        server.kill()?;
        assert!(matches!(Cache::connect(&url, "test").await, Err(Error::Store(_))));
        let cache = Config::new(&url).connect_lazy("test")?;
        assert_eq!(*cache.get_or_load("k", &hour(), |_| ready(Ok::<_, Io>(1))).await?, 1);
        assert!(!cache.is_healthy());
        server.restart().await?;
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
        let space = cache.space::<u32>("n").options(hour());
        let other = linked(&url).await?.space::<u32>("n").options(hour());
        eventually("the second level", async || {
            space.set(1, 1).await.ok()?;
            other.get(1).await
        })
        .await?;
        assert!(matches!(
            Config::new("redis+ring://a").connect_lazy("test"),
            Err(Error::Address(_))
        ));
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cut_bus_of_a_cluster_loses_no_invalidation() -> Result<()> {
        let cluster = RedisCluster::start().await?;
        let (cache, other) = (linked(&cluster.url()).await?, linked(&cluster.url()).await?);
        let space = |cache: &Cache| cache.space::<u32>("n");
        for n in 0..30 {
            let options = hour().tag(format!("t{n}"));
            space(&cache).get_or_load_with(n, &options, move |_| ready(Ok::<_, Io>(1))).await?;
        }
        cluster.cut_bus();
        for n in 0..30 {
            let reach = if n % 2 == 0 {
                other.invalidate_tags([format!("t{n}")]).await
            } else {
                space(&other).remove(n).await
            };
            assert_eq!(reach, Reach::Everywhere);
        }
        for n in 0..30 {
            eventually("the news", async || space(&cache).get(n).await.is_none().then_some(()))
                .await?;
        }
        assert!(cache.is_healthy());
        cluster.heal_bus();
        Ok(())
    }

    /// The runtime on which the cache was created shuts down; on another runtime the cache receives
    /// no events for no longer than the bound, and then receives them again.
    #[test]
    fn a_cache_outlives_its_runtime() -> Result<()> {
        let runtime =
            || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let servers = runtime()?;
        let server = servers.block_on(Redis::start())?;
        let first = runtime()?;
        let cache = first.block_on(linked(&server.url()))?;
        let space = cache.space::<u32>("n").options(hour());
        let second = runtime()?;
        second.block_on(space.get_or_load(1, |_| ready(Ok::<_, Io>(1))))?;
        drop(first);
        assert!(!cache.is_healthy(), "no task listens");
        second.block_on(async {
            let other = linked(&server.url()).await?;
            let removed = Instant::now();
            assert_eq!(other.space::<u32>("n").remove(1).await, Reach::Everywhere);
            while removed.elapsed() < Duration::from_millis(4_500) && space.get(1).await.is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(space.get(1).await, None);
            eventually("the link", async || {
                // The next read detects it.
                space.get(2).await;
                cache.is_healthy().then_some(())
            })
            .await?;
            space.get_or_load(1, |_| ready(Ok::<_, Io>(2))).await?;
            other.space::<u32>("n").remove(1).await;
            eventually("the news", async || space.get(1).await.is_none().then_some(())).await
        })
    }

    #[test]
    fn helper_that_is_frozen() -> Result<()> {
        let Ok(url) = std::env::var("FROZEN_CACHE") else { return Ok(()) };
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let cache = linked(&url).await?;
            let space = cache.space::<u32>("n").options(hour());
            space.get_or_load(1, |_| ready(Ok::<_, Io>(1))).await?;
            println!("ready");
            let mut last = Instant::now();
            loop {
                let gap = last.elapsed();
                last = Instant::now();
                if gap > Duration::from_secs(2) {
                    let (healthy, found) = (cache.is_healthy(), space.get(1).await);
                    println!("woke {healthy} {}", found.is_some());
                    return Ok(());
                }
                assert!(space.get(1).await.is_some());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    }

    /// A process that was stopped does not serve an earlier entry unchecked, whether its connection
    /// was cut meanwhile or not.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_frozen_process_serves_nothing_old() -> Result<()> {
        use std::io::BufRead;
        for cut in [false, true] {
            let server = Redis::start().await?;
            let proxy = Proxy::start(server.port()).await?;
            let mut helper = testkit::helper("on_redis::helper_that_is_frozen")?;
            let mut child = helper
                .env("FROZEN_CACHE", format!("redis://127.0.0.1:{}", proxy.port()))
                .spawn()?;
            let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
            let mut said = move |word: &'static str| loop {
                let line =
                    lines.next().unwrap_or_else(|| Ok(String::from("nothing"))).unwrap_or_default();
                if line.contains(word) || line == "nothing" {
                    return line;
                }
            };
            let ready = tokio::task::spawn_blocking(move || (said("ready"), said)).await?;
            let (_, mut said) = ready;
            let signal = |name: &str| {
                std::process::Command::new("kill").args([name, &child.id().to_string()]).status()
            };
            signal("-STOP")?;
            if cut {
                proxy.cut();
            }
            let other = linked(&server.url()).await?;
            assert_eq!(other.space::<u32>("n").remove(1).await, Reach::Everywhere);
            // Longer than any entry may be served unchecked.
            tokio::time::sleep(Duration::from_millis(5_500)).await;
            signal("-CONT")?;
            let woke =
                tokio::task::spawn_blocking(move || (said("woke"), said("test result"))).await?.0;
            assert!(woke.ends_with("woke false false"), "cut: {cut}: {woke}");
            child.wait()?;
        }
        Ok(())
    }
}
