//! Other calls of a space: several keys at once, metadata of a hit, sliding expiry, compact
//! encodings.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_cache::store::SharedMemory;
use scale_cache::{Cache, Config, Error, Level, LoadContext, LoadError, Options, Space};
use serde::{Deserialize, Serialize};
use testkit::eventually;

type Io = std::io::Error;

async fn two(store: &SharedMemory) -> Result<[Cache; 2]> {
    let caches = [(); 2].map(|()| Cache::with_store(store.clone(), &Config::new("memory:")));
    for cache in &caches {
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
    }
    Ok(caches)
}

/// Records the keys of each call of the loader; a third of all keys have no value.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Vec<u32>>>>);

impl Calls {
    async fn load(
        &self,
        space: &Space<String>,
        keys: impl IntoIterator<Item = u32>,
    ) -> Result<Vec<Option<Arc<String>>>, Error> {
        let calls = Arc::clone(&self.0);
        space
            .load_many(keys, move |mut missing: Vec<u32>| {
                missing.sort_unstable();
                calls.lock().push(missing.clone());
                std::future::ready(Ok::<_, Io>(
                    missing
                        .into_iter()
                        .filter(|n| n % 3 != 0)
                        .map(|n| (n, format!("v{n}")))
                        .collect::<HashMap<_, _>>(),
                ))
            })
            .await
    }

    fn take(&self) -> Vec<Vec<u32>> {
        std::mem::take(&mut *self.0.lock())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_is_loaded_together() -> Result<()> {
    let store = SharedMemory::new();
    let [a, b] = two(&store).await?;
    for cache in [Cache::memory(), a.clone()] {
        let (space, calls) = (cache.space::<String>("many"), Calls::default());
        let found = calls.load(&space, [1, 2, 3, 4, 2]).await?;
        let texts: Vec<_> = found.iter().map(|v| v.as_deref().map(String::as_str)).collect();
        assert_eq!(texts, [Some("v1"), Some("v2"), None, Some("v4"), Some("v2")]);
        assert_eq!(calls.take(), [[1, 2, 3, 4]], "one call, each key once");
        // Cached keys are not loaded again; keys without a value are.
        calls.load(&space, [4, 5, 3]).await?;
        assert_eq!(calls.take(), [[3, 5]]);
        cache.space::<String>("many").remove(4).await;
        calls.load(&space, 1..6).await?;
        assert_eq!(calls.take(), [[3, 4]]);
        let none = calls.load(&space, []).await?;
        assert!(none.is_empty() && calls.take().is_empty());
    }
    // Another node finds them in the second level.
    let calls = Calls::default();
    assert_eq!(calls.load(&b.space("many"), [1, 2]).await?.iter().flatten().count(), 2);
    assert_eq!(calls.take(), [[0_u32; 0]; 0]);
    // All callers receive a failure, and it is not cached.
    let space = a.space::<String>("failing");
    let failed = space
        .load_many([1, 2], |_| {
            std::future::ready(Err::<HashMap<u32, String>, _>(Io::other("down")))
        })
        .await;
    assert!(
        matches!(&failed, Err(Error::Load(cause)) if cause.to_string() == "down"),
        "{failed:?}"
    );
    assert_eq!(calls.load(&space, [1]).await?.len(), 1);
    Ok(())
}

/// An application's own error, which is no `std::error::Error`.
#[derive(Debug, PartialEq)]
enum Failed {
    NotFound(u32),
}

#[tokio::test]
async fn the_loaders_own_error_comes_back_to_all_that_waited() -> Result<()> {
    let space = Cache::memory().space::<String>("own");
    let load = |_: LoadContext| async {
        tokio::task::yield_now().await;
        Err::<String, _>(Failed::NotFound(7))
    };
    let (one, another) =
        tokio::join!(space.get_or_try_load(7, load), space.get_or_try_load(7, load));
    let (Err(LoadError::Load(one)), Err(LoadError::Load(another))) = (one, another) else {
        panic!("not the loader's error");
    };
    assert_eq!(*one, Failed::NotFound(7));
    assert!(Arc::ptr_eq(&one, &another), "one load");
    // A caller with another type of error that waits for the same load.
    let other = |_: LoadContext| async { Err::<String, _>(Io::other("down")) };
    let (own, erased) = tokio::join!(space.get_or_try_load(7, load), space.get_or_load(7, other));
    assert!(matches!(own, Err(LoadError::Load(_))));
    assert_eq!(erased.unwrap_err().to_string(), "load failed: NotFound(7)");
    let (erased, own) = tokio::join!(space.get_or_load(8, other), space.get_or_try_load(8, load));
    assert!(matches!(erased, Err(Error::Load(cause)) if cause.is::<Io>()));
    assert!(matches!(own, Err(LoadError::Cache(Error::Load(cause))) if cause.is::<Io>()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_fenced_as_one_is() -> Result<()> {
    let [a, _] = two(&SharedMemory::new()).await?;
    let space = a.space::<String>("fenced");
    let (read, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let loading = {
        let (space, read, go) = (space.clone(), Arc::clone(&read), Arc::clone(&go));
        tokio::spawn(async move {
            space
                .load_many([1, 2], move |keys: Vec<u32>| {
                    let (read, go) = (Arc::clone(&read), Arc::clone(&go));
                    async move {
                        read.notify_one();
                        go.notified().await;
                        Ok::<_, Io>(
                            keys.into_iter()
                                .map(|n| (n, "old".to_owned()))
                                .collect::<HashMap<_, _>>(),
                        )
                    }
                })
                .await
        })
    };
    read.notified().await;
    space.remove(1).await;
    go.notify_one();
    loading.await??;
    assert_eq!(space.get(1).await, None, "removed while it was loaded");
    assert_eq!(space.get(2).await.as_deref().map(String::as_str), Some("old"));
    Ok(())
}

#[tokio::test]
async fn a_hit_tells_where_and_how_old_it_is() -> Result<()> {
    let [a, b] = two(&SharedMemory::new()).await?;
    let space = |cache: &Cache| {
        cache.space::<u32>("hits").options(Options::ttl(Duration::from_mins(5)).jitter(0.0))
    };
    assert!(space(&a).get_hit(1).await.is_none());
    space(&a).get_or_load(1, |_| async { Ok::<_, Io>(7) }).await?;
    let made = std::time::Instant::now();
    let here = space(&a).get_hit(1).await.unwrap();
    assert_eq!((*here.value, here.level, here.is_stale), (7, Level::First, false));
    eventually("some age", async || (made.elapsed() > Duration::from_millis(30)).then_some(()))
        .await?;
    let there = space(&b).get_hit(1).await.unwrap();
    assert_eq!(there.level, Level::Second);
    assert!(
        there.age >= Duration::from_millis(25) && there.age < Duration::from_mins(1),
        "{:?}",
        there.age
    );
    assert!(there.left < Duration::from_mins(5), "another node does not restart its TTL");
    assert_eq!(space(&b).get_hit(1).await.unwrap().level, Level::First);
    // A stale entry kept for errors says so.
    let brief =
        Options::ttl(Duration::from_millis(20)).jitter(0.0).stale_if_error(Duration::from_mins(1));
    let brief = a.space::<u32>("brief").options(brief);
    brief.set(1, 7).await?;
    let stale =
        eventually("its end", async || brief.get_hit(1).await.filter(|hit| hit.is_stale)).await?;
    assert_eq!((stale.left, *stale.value), (Duration::ZERO, 7));
    assert_eq!(brief.get(1).await, None);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn time_starts_anew_by_a_touch_or_by_use() -> Result<()> {
    let cache = Cache::memory();
    let minute = || Options::ttl(Duration::from_mins(1)).jitter(0.0);
    let (plain, sliding) = (
        cache.space::<u32>("plain").options(minute()),
        cache.space::<u32>("slides").options(minute().sliding()),
    );
    assert!(!plain.touch(1).await);
    for space in [&plain, &sliding] {
        space.set(1, 7).await?;
        space.set(2, 7).await?;
    }
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(40)).await;
        plain.touch(1).await;
        sliding.get_or_load(1, |_| async { Err::<u32, _>(Io::other("not to be loaded")) }).await?;
        tokio::task::yield_now().await;
    }
    assert!(plain.get(1).await.is_some() && sliding.get(1).await.is_some());
    assert!(plain.get(2).await.is_none() && sliding.get(2).await.is_none(), "unused: expired");
    assert!(!plain.touch(2).await, "what has expired does not come back");
    cache.invalidate_tags(["x"]).await;
    plain.remove(1).await;
    assert!(!plain.touch(1).await && plain.get(1).await.is_none());
    Ok(())
}

async fn touched_everywhere(a: &Cache, b: &Cache) -> Result<()> {
    let space = |cache: &Cache| {
        cache
            .space::<u32>("touched")
            .options(Options::ttl(Duration::from_secs(2)).jitter(0.0).tag("t"))
    };
    space(a).get_or_load(1, |_| async { Ok::<_, Io>(7) }).await?;
    let before = space(a).get_hit(1).await.unwrap().left;
    let later = async || {
        space(a).get_hit(1).await.filter(|hit| hit.left + Duration::from_millis(300) < before)
    };
    eventually("some time", later).await?;
    assert!(space(a).touch(1).await);
    for (cache, level) in [(a, Level::First), (b, Level::Second)] {
        let hit = space(cache).get_hit(1).await.unwrap();
        assert!(
            hit.level == level && hit.left + Duration::from_millis(250) > before,
            "{hit:?} {before:?}"
        );
    }
    // An invalidated entry remains invalid, touched or not.
    a.invalidate_tags(["t"]).await;
    space(a).touch(1).await;
    assert!(space(a).get(1).await.is_none() && space(b).get(1).await.is_none());
    assert!(!space(a).touch("never there").await);
    Ok(())
}

#[tokio::test]
async fn a_touch_counts_on_every_node() -> Result<()> {
    let [a, b] = two(&SharedMemory::new()).await?;
    touched_everywhere(&a, &b).await
}

/// A type that loses data in its encoding.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Leaky {
    kept: u32,
    #[serde(skip)]
    lost: u32,
}

/// A type that cannot be decoded.
#[derive(Serialize)]
struct OneWay(u32);

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("never"))
    }
}

#[tokio::test]
async fn a_strict_cache_shows_what_another_process_would_see() -> Result<()> {
    let load = || async { Ok::<_, Io>(Leaky { kept: 1, lost: 2 }) };
    let lenient = Cache::memory().space::<Leaky>("x").get_or_load(1, move |_| load()).await?;
    assert_eq!(lenient.lost, 2);
    let strict = Cache::strict();
    let shown = strict.space::<Leaky>("x").get_or_load(1, move |_| load()).await?;
    assert_eq!(*shown, Leaky { kept: 1, lost: 0 });
    strict.space::<Leaky>("x").set(2, Leaky { kept: 1, lost: 2 }).await?;
    assert_eq!(strict.space::<Leaky>("x").get(2).await.unwrap().lost, 0);
    let one_way = strict.space::<OneWay>("y");
    assert!(matches!(one_way.set(1, OneWay(1)).await, Err(Error::Decode(_))));
    assert!(matches!(
        one_way.get_or_load(1, |_| async { Ok::<_, Io>(OneWay(1)) }).await,
        Err(Error::Decode(_))
    ));
    Ok(())
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;

    async fn node(server: &testkit::Redis) -> Result<Cache> {
        let cache = Cache::builder(&server.url())
            .store_timeout(Duration::from_secs(5))
            .connect("test")
            .await?;
        eventually("the link", async || cache.is_healthy().then_some(())).await?;
        Ok(cache)
    }

    #[tokio::test]
    async fn a_touch_counts_on_every_node() -> Result<()> {
        let server = testkit::Redis::start().await?;
        touched_everywhere(&node(&server).await?, &node(&server).await?).await
    }

    #[cfg(feature = "compress")]
    #[tokio::test]
    async fn large_values_are_small_in_redis() -> Result<()> {
        let server = testkit::Redis::start().await?;
        let (a, b) = (node(&server).await?, node(&server).await?);
        let text = "the same words again and again ".repeat(10_000);
        a.space::<String>("large").set(1, text.clone()).await?;
        a.space::<String>("small").set(1, "tiny".into()).await?;
        let size: usize =
            server.command(&["STRLEN", "test:cache:{large:1}:e"]).await?.trim().parse()?;
        assert!(size < text.len() / 20, "{size} bytes");
        assert_eq!(*b.space::<String>("large").get(1).await.unwrap(), text);
        assert_eq!(*b.space::<String>("small").get(1).await.unwrap(), "tiny");
        // Corrupt bytes are a miss.
        server.command(&["SETRANGE", "test:cache:{large:1}:e", "80", "xxxxxxxxxxxx"]).await?;
        let c = node(&server).await?;
        let again = c.space::<String>("large").get(1).await;
        assert!(again.is_none_or(|value| value.len() == text.len()));
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_nodes_load_many_once() -> Result<()> {
        let server = testkit::Redis::start().await?;
        let mut nodes = Vec::new();
        for _ in 0..4 {
            nodes.push(node(&server).await?);
        }
        let loads = Arc::new(AtomicUsize::new(0));
        let asks: Vec<_> = (0..40)
            .map(|n| {
                let (space, loads) = (nodes[n % 4].space::<u32>("fleet"), Arc::clone(&loads));
                tokio::spawn(async move {
                    space
                        .load_many(0..50, move |keys: Vec<u32>| {
                            loads.fetch_add(keys.len(), SeqCst);
                            async move {
                                Ok::<_, Io>(
                                    keys.into_iter().map(|n| (n, n * 2)).collect::<HashMap<_, _>>(),
                                )
                            }
                        })
                        .await
                })
            })
            .collect();
        for ask in asks {
            let found = ask.await??;
            assert!(found.iter().enumerate().all(|(n, v)| **v.as_ref().unwrap() == n as u32 * 2));
        }
        assert_eq!(loads.load(SeqCst), 50, "each key once, for 40 callers on 4 nodes");
        Ok(())
    }
}

#[tokio::test]
async fn a_tag_out_of_a_request_reaches_none_of_the_caches_own() -> Result<()> {
    let cache = Cache::memory();
    let users = cache.space::<u32>("user");
    users.set(7, 1).await?;
    let tagged = Options::default().tag("\0user");
    cache.get_or_load("k", &tagged, |_| ready(Ok::<_, std::io::Error>(1_u32))).await?;
    cache.invalidate_tags(["\0", "\0user", "\u{1}http:0"]).await;
    assert!(users.get(7).await.is_some(), "neither all, nor all of a space");
    assert!(cache.space::<u32>("").get("k").await.is_none(), "what carries the tag is gone");
    Ok(())
}
