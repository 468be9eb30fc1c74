//! What a cache promises, on every arrangement of levels.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use scale_cache::store::SharedMemory;
use scale_cache::{Cache, Config, Error, Load, Options, Space};
use testkit::eventually;
use tokio::sync::{Notify, oneshot};

type Io = std::io::Error;

/// A loader that counts.
#[derive(Clone, Default)]
struct Source {
    value: Arc<AtomicU32>,
    loads: Arc<AtomicU32>,
}

impl Source {
    fn set(&self, value: u32) {
        self.value.store(value, SeqCst);
    }

    fn loads(&self) -> u32 {
        self.loads.load(SeqCst)
    }

    fn loader(&self) -> impl FnOnce(Load) -> std::future::Ready<Result<u32, Io>> + Send + 'static {
        let this = self.clone();
        move |_| {
            this.loads.fetch_add(1, SeqCst);
            std::future::ready(Ok(this.value.load(SeqCst)))
        }
    }

    async fn get(&self, cache: &Cache, key: &str, options: &Options) -> u32 {
        *cache.get_or_load(key, options, self.loader()).await.unwrap()
    }
}

/// A loader that has read and waits to be let go.
fn held(
    source: &Source,
) -> (
    impl FnOnce(Load) -> futures_util::future::BoxFuture<'static, Result<u32, Io>> + Send + 'static,
    Arc<Notify>,
    oneshot::Receiver<()>,
) {
    let (go, (read, has_read)) = (Arc::new(Notify::new()), oneshot::channel());
    let (source, gate) = (source.clone(), Arc::clone(&go));
    let load = move |_: Load| -> futures_util::future::BoxFuture<'static, Result<u32, Io>> {
        Box::pin(async move {
            source.loads.fetch_add(1, SeqCst);
            let value = source.value.load(SeqCst);
            let _ = read.send(());
            gate.notified().await;
            Ok(value)
        })
    };
    (load, go, has_read)
}

async fn contract(caches: &[Cache]) -> Result<()> {
    for cache in caches {
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
    }
    let (a, b) = (&caches[0], caches.last().unwrap());
    a_value_is_loaded_once_and_shared(a, b).await?;
    invalidated_tags_are_gone_everywhere(a, b).await?;
    removed_keys_are_gone_everywhere(a, b).await?;
    a_load_from_before_an_invalidation_brings_nothing_back(a, b).await?;
    a_load_from_before_a_removal_brings_nothing_back(a, b).await?;
    late_tags_are_fenced(a, b).await?;
    spaces_are_cleared_at_once(a, b).await?;
    set_replaces_everywhere(a, b).await?;
    many_misses_are_one_load(caches).await?;
    a_dropped_caller_ends_no_load(a).await?;
    failures_are_told_or_survived(a).await?;
    types_and_sizes(a).await?;
    Ok(())
}

fn minutes() -> Options {
    Options::ttl(Duration::from_mins(5))
}

async fn a_value_is_loaded_once_and_shared(a: &Cache, b: &Cache) -> Result<()> {
    let source = Source::default();
    for _ in 0..10 {
        assert_eq!(source.get(a, "once", &minutes()).await, 0);
        assert_eq!(source.get(b, "once", &minutes()).await, 0);
    }
    assert_eq!(source.loads(), 1);
    let short = Options::ttl(Duration::from_millis(30)).jitter(0.0).refresh_ahead(false);
    source.get(a, "short", &short).await;
    tokio::time::sleep(Duration::from_millis(40)).await;
    source.set(1);
    assert_eq!(source.get(a, "short", &short).await, 1, "its time is over");
    Ok(())
}

async fn invalidated_tags_are_gone_everywhere(a: &Cache, b: &Cache) -> Result<()> {
    let source = Source::default();
    let options = minutes().tags(["tag:1", "tag:2"]);
    source.get(a, "tagged", &options).await;
    source.get(b, "tagged", &options).await;
    source.get(a, "untagged", &minutes()).await;
    for (value, tag) in [(1, "tag:1"), (2, "tag:2")] {
        source.set(value);
        a.invalidate_tags([tag]).await;
        assert_eq!(source.get(a, "tagged", &options).await, value, "here at once");
        eventually("the other node", async || (source.get(b, "tagged", &options).await == value).then_some(())).await?;
    }
    assert_eq!(source.get(a, "untagged", &minutes()).await, 0);
    a.clear().await;
    assert_eq!(source.get(a, "untagged", &minutes()).await, 2);
    Ok(())
}

async fn removed_keys_are_gone_everywhere(a: &Cache, b: &Cache) -> Result<()> {
    let space = |cache: &Cache| cache.space::<u32>("removed");
    let source = Source::default();
    space(a).get_or_load(1, source.loader()).await?;
    space(b).get_or_load(1, source.loader()).await?;
    source.set(1);
    space(a).remove(1).await;
    assert_eq!(space(a).get(1).await, None);
    assert_eq!(*space(a).get_or_load(1, source.loader()).await?, 1);
    eventually("the other node", async || (*space(b).get_or_load(1, source.loader()).await.ok()? == 1).then_some(())).await?;
    Ok(())
}

async fn a_load_from_before_an_invalidation_brings_nothing_back(a: &Cache, b: &Cache) -> Result<()> {
    let (source, options) = (Source::default(), minutes().tag("fence"));
    let (load, go, has_read) = held(&source);
    let (cache, opts) = (a.clone(), options.clone());
    let early = tokio::spawn(async move { cache.get_or_load("fenced", &opts, load).await });
    has_read.await?;
    source.set(1);
    a.invalidate_tags(["fence"]).await;
    // Who comes after the invalidation does not join the load from before it.
    let (cache, opts, loader) = (a.clone(), options.clone(), source.loader());
    let later = tokio::spawn(async move { cache.get_or_load("fenced", &opts, loader).await });
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(*early.await??, 0, "who asked before gets what was true then");
    assert_eq!(*later.await??, 1);
    assert_eq!(source.get(a, "fenced", &options).await, 1);
    eventually("the other node", async || (source.get(b, "fenced", &options).await == 1).then_some(())).await?;
    Ok(())
}

async fn a_load_from_before_a_removal_brings_nothing_back(a: &Cache, b: &Cache) -> Result<()> {
    for remover in [a, b] {
        let source = Source::default();
        let (load, go, has_read) = held(&source);
        let space = a.space::<u32>("fenced-key");
        let early = tokio::spawn({
            let space = space.clone();
            async move { space.get_or_load(1, load).await }
        });
        has_read.await?;
        source.set(1);
        remover.space::<u32>("fenced-key").remove(1).await;
        go.notify_one();
        assert_eq!(*early.await??, 0);
        eventually("the new value", async || (*space.get_or_load(1, source.loader()).await.ok()? == 1).then_some(())).await?;
        remover.space::<u32>("fenced-key").remove(1).await;
    }
    Ok(())
}

async fn late_tags_are_fenced(a: &Cache, b: &Cache) -> Result<()> {
    let source = Source::default();
    let load = |gate: Option<(oneshot::Sender<()>, Arc<Notify>)>| {
        let source = source.clone();
        move |load: Load| async move {
            source.loads.fetch_add(1, SeqCst);
            let value = source.value.load(SeqCst);
            if let Some((read, go)) = gate {
                let _ = read.send(());
                go.notified().await;
            }
            load.tag("late");
            Ok::<_, Io>(value)
        }
    };
    let (go, (read, has_read)) = (Arc::new(Notify::new()), oneshot::channel());
    let early = tokio::spawn({
        let (cache, load) = (a.clone(), load(Some((read, Arc::clone(&go)))));
        async move { cache.get_or_load("late", &minutes(), load).await }
    });
    has_read.await?;
    source.set(1);
    b.invalidate_tags(["late"]).await;
    go.notify_one();
    assert_eq!(*early.await??, 0);
    assert_eq!(*a.get_or_load("late", &minutes(), load(None)).await?, 1, "it was not kept");
    // Once some time has passed since the invalidation, the value is kept, and the tag works.
    eventually("the value to be kept", async || {
        let before = source.loads();
        a.get_or_load("late", &minutes(), load(None)).await.ok()?;
        (source.loads() == before).then_some(())
    })
    .await?;
    source.set(2);
    a.invalidate_tags(["late"]).await;
    assert_eq!(*a.get_or_load("late", &minutes(), load(None)).await?, 2);
    Ok(())
}

async fn spaces_are_cleared_at_once(a: &Cache, b: &Cache) -> Result<()> {
    let source = Source::default();
    let (one, other) = (a.space::<u32>("one"), a.space::<u32>("other"));
    for n in 0..50 {
        one.get_or_load(n, source.loader()).await?;
        other.get_or_load(n, source.loader()).await?;
    }
    source.set(1);
    one.clear().await;
    let found = other.get_many([1, 77, 2]).await;
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    for n in 0..50 {
        assert_eq!(one.get(n).await, None);
        assert_eq!(other.get(n).await.as_deref(), Some(&0));
    }
    let theirs = b.space::<u32>("one");
    eventually("the other node", async || theirs.get(1).await.is_none().then_some(())).await
}

async fn set_replaces_everywhere(a: &Cache, b: &Cache) -> Result<()> {
    let (ours, theirs): (Space<String>, Space<String>) = (a.space("set"), b.space("set"));
    for round in 0..5 {
        ours.set("k", format!("value {round}")).await?;
        assert_eq!(*ours.get("k").await.unwrap(), format!("value {round}"));
        eventually("the other node", async || (*theirs.get("k").await? == format!("value {round}")).then_some(())).await?;
    }
    Ok(())
}

async fn many_misses_are_one_load(caches: &[Cache]) -> Result<()> {
    let source = Source::default();
    source.set(7);
    let (load, go, has_read) = held(&source);
    let first = tokio::spawn({
        let cache = caches[0].clone();
        async move { cache.get_or_load("herd", &minutes(), load).await }
    });
    has_read.await?;
    let herd: Vec<_> = (0..10_000)
        .map(|n| {
            let (cache, loader) = (caches[n % caches.len()].clone(), source.loader());
            tokio::spawn(async move { cache.get_or_load("herd", &minutes(), loader).await })
        })
        .collect();
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(*first.await??, 7);
    for one in herd {
        assert_eq!(*one.await??, 7);
    }
    assert_eq!(source.loads(), 1);
    Ok(())
}

async fn a_dropped_caller_ends_no_load(cache: &Cache) -> Result<()> {
    let source = Source::default();
    let (load, go, has_read) = held(&source);
    let caller = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load("dropped", &minutes(), load).await }
    });
    has_read.await?;
    caller.abort();
    let _ = caller.await;
    source.set(1);
    go.notify_one();
    assert_eq!(source.get(cache, "dropped", &minutes()).await, 0, "joined, or found what it left");
    assert_eq!(source.loads(), 1);
    Ok(())
}

async fn failures_are_told_or_survived(cache: &Cache) -> Result<()> {
    let fail = |_: Load| async { Err::<u32, _>(Io::other("no database")) };
    let error = cache.get_or_load("failing", &minutes(), fail).await.unwrap_err();
    assert!(matches!(&error, Error::Load(cause) if cause.to_string() == "no database"), "{error}");
    let source = Source::default();
    assert_eq!(source.get(cache, "failing", &minutes()).await, 0, "an error is not cached");

    let safe = Options::ttl(Duration::from_millis(20))
        .jitter(0.0)
        .stale_if_error(Duration::from_mins(1))
        .throttle(Duration::from_mins(1))
        .tag("safe");
    source.get(cache, "safe", &safe).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(*cache.get_or_load("safe", &safe, fail).await?, 0, "stale, not failing");
    let before = source.loads();
    source.get(cache, "safe", &safe).await;
    assert_eq!(source.loads(), before, "throttled");
    cache.invalidate_tags(["safe"]).await;
    assert!(cache.get_or_load("safe", &safe, fail).await.is_err(), "what was invalidated is not served, come what may");

    let closed = safe.clone().fail_closed();
    source.get(cache, "closed", &closed).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(cache.get_or_load("closed", &closed, fail).await.is_err());

    let hang = |_: Load| std::future::pending::<Result<u32, Io>>();
    let quick = minutes().hard_timeout(Duration::from_millis(20));
    assert!(matches!(cache.get_or_load("hanging", &quick, hang).await, Err(Error::TimedOut(_))));
    let panic = |_: Load| async { if true { panic!("boom") } else { Ok::<u32, Io>(1) } };
    assert!(matches!(cache.get_or_load("panicking", &minutes(), panic).await, Err(Error::Panicked)));
    Ok(())
}

async fn types_and_sizes(cache: &Cache) -> Result<()> {
    let source = Source::default();
    source.get(cache, "typed", &minutes()).await;
    let text = cache.get_or_load("typed", &minutes(), |_| async { Ok::<_, Io>("text".to_owned()) }).await?;
    assert_eq!(*text, "text", "another type is a miss");
    let nothing = |load: Load| async move {
        load.ttl(Duration::from_secs(5));
        Ok::<Option<u32>, Io>(None)
    };
    assert_eq!(*cache.get_or_load("none", &minutes(), nothing).await?, None);
    assert_eq!(
        *cache.get_or_load("none", &minutes(), |_| async { Ok::<_, Io>(Some(1_u32)) }).await?,
        None,
        "that there is none is cached too"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_level() -> Result<()> {
    let cache = Cache::memory();
    contract(&[cache.clone(), cache]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_in_memory() -> Result<()> {
    let store = SharedMemory::new();
    let caches: Vec<_> = (0..3).map(|_| Cache::with_store(store.clone(), &Config::new("memory:"))).collect();
    contract(&caches).await
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

#[cfg(feature = "redis")]
mod redis {
    use super::*;

    async fn on(url: &str) -> Result<()> {
        let mut caches = Vec::new();
        for _ in 0..3 {
            // What a loaded machine does to a patience of 100 ms is not what is asked here.
            caches.push(Cache::builder(url).patience(Duration::from_secs(5)).connect("test").await?);
        }
        contract(&caches).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() -> Result<()> {
        on(&testkit::Redis::start().await?.url()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sentinel() -> Result<()> {
        on(&testkit::RedisSentinel::start().await?.url()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() -> Result<()> {
        on(&testkit::RedisCluster::start().await?.url()).await
    }
}
