//! Contract of a second level, for the tests of stores written outside of this crate. Feature
//! `testing`.
//!
//! [`store_contract!`](crate::store_contract) makes a `#[tokio::test]` of each case, for a store
//! that an async function returns. The crate that uses it needs `tokio` with the features `macros`
//! and `rt-multi-thread`.
//!
//! ```
//! # #[cfg(test)] mod tests {
//! use scale_cache::store::SharedMemory;
//!
//! /// Returns a new handle of the store under test, and another server's data for each `case`.
//! async fn connect(case: &str) -> std::io::Result<[SharedMemory; 3]> {
//!     let store = SharedMemory::new();
//!     Ok([store.clone(), store.clone(), store])
//! }
//!
//! scale_cache::store_contract!(my_store, crate::connect);
//! # }
//! ```
//!
//! A case that does not hold panics. [`store::format`](crate::store::format) describes the bytes
//! of an entry.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a case that fails panics")]

use std::collections::HashSet;
use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use tokio::sync::{Notify, oneshot};

use crate::format::{ENDS, VERSION, ends};
use crate::store::{Store, StoreEvent};
use crate::{Cache, Config, Error, LoadContext, Options, Space};

/// Result of a case.
pub type Result = std::result::Result<(), Box<dyn StdError + Send + Sync>>;

/// Makes a module of tests for a store of your own: `caches` with the cases of
/// [`cache_contract!`](crate::cache_contract), and `calls` with those of
/// [`store_calls_contract!`](crate::store_calls_contract). The second argument is the path of an
/// async function from the name of the case to three handles of the store, each for a process of
/// its own, on data that no other case uses.
#[macro_export]
macro_rules! store_contract {
    ($module:ident, $connect:path) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::cache_contract!(caches, async |case: &str| {
                $connect(case).await.map($crate::testing::caches_on)
            });
            $crate::store_calls_contract!(calls, $connect);
        }
    };
}

/// Makes a module of tests, one for each case about single calls to a store. The arguments are
/// those of [`store_contract!`](crate::store_contract).
#[macro_export]
macro_rules! store_calls_contract {
    ($module:ident, $connect:path) => {
        $crate::store_calls_contract! { @cases $module, $connect;
            leases,
            versions,
            touches,
            keys_are_distinct,
            events_arrive_or_a_loss_is_reported,
        }
    };
    (@cases $module:ident, $connect:path; $($case:ident),* $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let [one, other, _] = $connect(stringify!($case)).await.expect("a store");
                    $crate::testing::$case(&one, &other).await.expect("the case failed");
                }
            )*
        }
    };
}

/// Makes a module of tests, one for each case, for an arrangement of caches. The second argument is
/// an async function or closure from the name of the case to the caches.
#[macro_export]
macro_rules! cache_contract {
    ($module:ident, $caches:expr) => {
        $crate::cache_contract! { @cases $module, $caches;
            a_value_is_loaded_once_and_shared,
            invalidated_tags_are_gone_everywhere,
            removed_keys_are_gone_everywhere,
            a_load_from_before_an_invalidation_brings_nothing_back,
            a_load_from_before_a_removal_brings_nothing_back,
            late_tags_are_fenced,
            spaces_are_cleared_at_once,
            set_replaces_everywhere,
            many_misses_are_one_load,
            a_dropped_caller_ends_no_load,
            failures_are_told_or_survived,
            types_and_sizes,
        }
    };
    (@cases $module:ident, $caches:expr; $($case:ident),* $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let caches = $caches;
                    let caches = caches(stringify!($case)).await.expect("caches");
                    $crate::testing::connected(&caches).await.expect("the subscription");
                    $crate::testing::$case(&caches).await.expect("the case failed");
                }
            )*
        }
    };
}

/// Returns caches on these handles of one store.
pub fn caches_on<S: Store>(stores: [S; 3]) -> Vec<Cache> {
    // A busy machine must not look like an unresponsive store.
    let config = || Config::new("memory:").store_timeout(Duration::from_secs(5));
    stores.into_iter().map(|store| Cache::with_store(store, &config())).collect()
}

/// Waits until all caches receive the events of their store.
///
/// # Errors
/// If one does not within 10 s.
pub async fn connected(caches: &[Cache]) -> Result {
    for cache in caches {
        eventually("the subscription", async || cache.is_healthy().then_some(())).await?;
    }
    Ok(())
}

/// Waits for a condition, at most 10 s.
async fn eventually(what: &str, condition: impl AsyncFn() -> Option<()>) -> Result {
    let wait = async {
        while condition().await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let late = |_| format!("{what}: not within 10 s").into();
    tokio::time::timeout(Duration::from_secs(10), wait).await.map_err(late)
}

/// A load lease has one holder, can be renewed while it is held, and ends when it is released, when
/// its time is over, or when the key is written or removed.
///
/// # Errors
/// An error of the store under test.
pub async fn leases(one: &impl Store, other: &impl Store) -> Result {
    let minute = Duration::from_mins(1);
    assert!(one.begin("lease", 1, minute).await?.won, "a free lease is granted");
    assert!(!other.begin("lease", 2, minute).await?.won, "a held lease is not");
    assert!(one.renew("lease", 1, minute).await?);
    assert!(!other.renew("lease", 2, minute).await?, "only its holder renews it");
    other.release("lease", 2).await?;
    assert!(!other.begin("lease", 2, minute).await?.won, "only its holder releases it");
    assert!(!other.fill("lease", 2, b"theirs", minute).await?, "only its holder stores a value");
    assert!(one.fill("lease", 1, b"ours", minute).await?);
    assert_eq!(other.get("lease").await?.as_deref(), Some(&b"ours"[..]));
    let begun = other.begin("lease", 3, minute).await?;
    assert!(begun.won, "a stored value ends the lease");
    assert_eq!(begun.entry.as_deref(), Some(&b"ours"[..]), "the entry is returned with it");
    one.remove("lease").await?;
    assert!(!other.fill("lease", 3, b"old", minute).await?, "a removal ends the lease");
    assert_eq!(one.get("lease").await?, None);
    assert!(one.begin("lease", 4, minute).await?.won);
    other.set("lease", b"set", minute).await?;
    assert!(!one.fill("lease", 4, b"old", minute).await?, "a write ends the lease");
    assert_eq!(one.get("lease").await?.as_deref(), Some(&b"set"[..]));
    assert!(one.begin("short", 5, Duration::from_millis(20)).await?.won);
    eventually("the end of a lease", async || {
        other.begin("short", 6, minute).await.ok()?.won.then_some(())
    })
    .await?;
    assert!(!one.renew("short", 5, minute).await?, "a lease that has ended is not renewed");
    // Time has to pass: a look would take the lease.
    assert!(one.begin("late", 7, Duration::from_millis(20)).await?.won);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!one.fill("late", 7, b"late", minute).await?, "a lease that has ended fills nothing");
    assert_eq!(one.get("late").await?, None);
    assert!(one.begin("released", 8, minute).await?.won);
    one.release("released", 8).await?;
    assert!(other.begin("released", 9, minute).await?.won, "a released lease is free");
    one.set("set briefly", b"x", Duration::from_millis(20)).await?;
    assert!(one.begin("filled briefly", 10, minute).await?.won);
    assert!(one.fill("filled briefly", 10, b"x", Duration::from_millis(20)).await?);
    for key in ["set briefly", "filled briefly"] {
        eventually("the end of an entry", async || {
            other.get(key).await.ok()?.is_none().then_some(())
        })
        .await?;
    }
    Ok(())
}

/// Versions of a tag are later than all of its earlier versions, the latest position is kept, and
/// every handle sees the same version.
///
/// # Errors
/// An error of the store under test.
pub async fn versions(one: &impl Store, other: &impl Store) -> Result {
    let (first, now_us) = one.version("tag").await?;
    assert!(first.at_us <= now_us && first.position.is_none());
    assert_eq!(other.version("tag").await?.0, first, "a version stays");
    let (early, late): (Arc<[u8]>, Arc<[u8]>) = ([1, 2][..].into(), [1, 3][..].into());
    let mut last = first.at_us;
    for (position, expected) in
        [(None, None), (Some(&late), Some(&late)), (Some(&early), Some(&late))]
    {
        let version = other.invalidate("tag", position).await?;
        assert!(version.at_us > last, "a later version is greater");
        assert_eq!(version.position.as_ref(), expected, "the latest position is kept");
        assert_eq!(one.version("tag").await?.0, version);
        last = version.at_us;
    }
    // Whatever the clocks of the processes say.
    for n in 0..200 {
        let at_us = if n % 2 == 0 {
            one.invalidate("tag", None).await?.at_us
        } else {
            other.invalidate("tag", None).await?.at_us
        };
        assert!(at_us > last, "a version never goes back");
        last = at_us;
    }
    // An entry may still have a version of a tag that the store has lost: the new one is later.
    let (_, now_us) = one.version("tag").await?;
    let (unknown, _) = other.version("never used before").await?;
    assert!(unknown.at_us + 1_000_000 > now_us, "a new tag counts as invalidated just now");
    Ok(())
}

/// A touch moves both end times of an entry that is fresh, and brings none back.
///
/// # Errors
/// An error of the store under test.
pub async fn touches(one: &impl Store, other: &impl Store) -> Result {
    let minute = Duration::from_mins(1);
    let now_us = one.version("clock").await?.1;
    let at = |seconds: u64| now_us + seconds * 1_000_000;
    let mut bytes = vec![0; 64];
    bytes[0] = VERSION;
    bytes[ENDS].copy_from_slice(&ends(at(60), at(60)));
    one.set("touched", &bytes, Duration::from_secs(2)).await?;
    let later = ends(at(3_600), at(7_200));
    assert!(other.touch("touched", later, minute).await?, "a fresh entry is touched");
    let touched = one.get("touched").await?.ok_or("the entry is gone")?;
    assert_eq!(touched[ENDS], later);
    assert_eq!((touched[0], &touched[ENDS.end..]), (VERSION, &bytes[ENDS.end..]), "nothing else");
    assert!(!one.touch("never set", later, minute).await?);
    assert_eq!(one.get("never set").await?, None);
    one.set("removed", &bytes, minute).await?;
    one.remove("removed").await?;
    assert!(!other.touch("removed", later, minute).await?, "a removed entry stays so");
    assert_eq!(one.get("removed").await?, None);
    bytes[ENDS].copy_from_slice(&ends(now_us - 1, at(60)));
    one.set("expired", &bytes, minute).await?;
    assert!(!other.touch("expired", later, minute).await?, "an expired entry is not fresh");
    // It is kept as long as the touch says.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(one.get("touched").await?.is_some());
    Ok(())
}

/// Keys that differ have entries of their own, whatever their length, case and characters.
///
/// # Errors
/// An error of the store under test.
pub async fn keys_are_distinct(one: &impl Store, other: &impl Store) -> Result {
    let minute = Duration::from_mins(1);
    let long = "x".repeat(300);
    let odd = ["Key", "kEY", "key", "key ", " key", "k:ey", "k{e}y", "ключ", "k\0ey", "k\ney", "*"];
    let odd = odd.into_iter().map(str::to_owned);
    let ends = (0..4).map(|n| format!("{long}{n}"));
    let many = (0..6_000).map(|n| format!("key:{n}"));
    let keys: Vec<String> = odd.chain(ends).chain(many).collect();
    for keys in keys.chunks(100) {
        let sets = keys.iter().map(|key| one.set(key, key.as_bytes(), minute));
        for set in join_all(sets).await {
            set?;
        }
    }
    for keys in keys.chunks(100) {
        for (key, found) in keys.iter().zip(join_all(keys.iter().map(|key| other.get(key))).await) {
            assert!(found?.as_deref() == Some(key.as_bytes()), "another entry under `{key}`");
        }
    }
    Ok(())
}

/// Every invalidation and change by another process arrives, or the store says that some were lost,
/// however late the events are read.
///
/// # Errors
/// An error of the store under test, or events that do not arrive within 10 s.
pub async fn events_arrive_or_a_loss_is_reported(one: &impl Store, other: &impl Store) -> Result {
    const COUNT: usize = 2_000;
    let mut events = other.events();
    let wait = Duration::from_secs(10);
    let next = async |events: &mut BoxStream<'static, StoreEvent>| {
        let event = tokio::time::timeout(wait, events.next()).await;
        event.map_err(|_| "no event within 10 s")?.ok_or("the events have ended")
    };
    while next(&mut events).await? != StoreEvent::Restored {}
    let names: Vec<String> = (0..COUNT).map(|n| format!("n{n}")).collect();
    for names in names.chunks(100) {
        for told in join_all(names.iter().map(|name| one.invalidate(name, None))).await {
            told?;
        }
        for removed in join_all(names.iter().map(|name| one.remove(name))).await {
            removed?;
        }
    }
    let (mut tags, mut keys) = (HashSet::new(), HashSet::new());
    while tags.len() < COUNT || keys.len() < COUNT {
        match next(&mut events).await? {
            StoreEvent::Invalidated(tag, version) => {
                assert!(version.at_us > 0);
                tags.insert(tag);
            }
            StoreEvent::Changed(key) => drop(keys.insert(key)),
            StoreEvent::Lost => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

type Io = std::io::Error;
/// Result of a loader.
type Loaded = std::result::Result<u32, Io>;

/// A loader that counts its calls.
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

    fn loader(&self) -> impl FnOnce(LoadContext) -> std::future::Ready<Loaded> + Send + 'static {
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

/// Returns a loader that has read its value and waits until it is released.
fn held(
    source: &Source,
) -> (
    impl FnOnce(LoadContext) -> futures_util::future::BoxFuture<'static, Loaded> + Send + 'static,
    Arc<Notify>,
    oneshot::Receiver<()>,
) {
    let (go, (read, has_read)) = (Arc::new(Notify::new()), oneshot::channel());
    let (source, gate) = (source.clone(), Arc::clone(&go));
    let load = move |_: LoadContext| -> futures_util::future::BoxFuture<'static, Loaded> {
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

fn minutes() -> Options {
    Options::ttl(Duration::from_mins(5))
}

/// A value is loaded once, found by the other caches, and loaded again after its TTL.
///
/// # Errors
/// An error of the store under test.
pub async fn a_value_is_loaded_once_and_shared(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
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
    assert_eq!(source.get(a, "short", &short).await, 1, "its TTL is over");
    Ok(())
}

/// After the invalidation of a tag no cache returns an entry with that tag from before it.
///
/// # Errors
/// An error of the store under test.
pub async fn invalidated_tags_are_gone_everywhere(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
    let source = Source::default();
    let options = minutes().tags(["tag:1", "tag:2"]);
    source.get(a, "tagged", &options).await;
    source.get(b, "tagged", &options).await;
    source.get(a, "untagged", &minutes()).await;
    for (value, tag) in [(1, "tag:1"), (2, "tag:2")] {
        source.set(value);
        a.invalidate_tags([tag]).await;
        assert_eq!(source.get(a, "tagged", &options).await, value, "here at once");
        eventually("the other node", async || {
            (source.get(b, "tagged", &options).await == value).then_some(())
        })
        .await?;
    }
    assert_eq!(source.get(a, "untagged", &minutes()).await, 0);
    a.clear().await;
    assert_eq!(source.get(a, "untagged", &minutes()).await, 2);
    Ok(())
}

/// After the removal of a key no cache returns its entry.
///
/// # Errors
/// An error of the store under test.
pub async fn removed_keys_are_gone_everywhere(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
    let space = |cache: &Cache| cache.space::<u32>("removed");
    let source = Source::default();
    space(a).get_or_load(1, source.loader()).await?;
    space(b).get_or_load(1, source.loader()).await?;
    source.set(1);
    space(a).remove(1).await;
    assert_eq!(space(a).get(1).await, None);
    assert_eq!(*space(a).get_or_load(1, source.loader()).await?, 1);
    eventually("the other node", async || {
        (*space(b).get_or_load(1, source.loader()).await.ok()? == 1).then_some(())
    })
    .await?;
    Ok(())
}

/// A load that began before the invalidation of its tag does not store its value.
///
/// # Errors
/// An error of the store under test.
pub async fn a_load_from_before_an_invalidation_brings_nothing_back(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
    let (source, options) = (Source::default(), minutes().tag("fence"));
    let (load, go, has_read) = held(&source);
    let (cache, opts) = (a.clone(), options.clone());
    let early = tokio::spawn(async move { cache.get_or_load("fenced", &opts, load).await });
    has_read.await?;
    source.set(1);
    a.invalidate_tags(["fence"]).await;
    // A read after the invalidation does not join the load from before it.
    let (cache, opts, loader) = (a.clone(), options.clone(), source.loader());
    let later = tokio::spawn(async move { cache.get_or_load("fenced", &opts, loader).await });
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(*early.await??, 0, "an earlier caller gets the old value");
    assert_eq!(*later.await??, 1);
    assert_eq!(source.get(a, "fenced", &options).await, 1);
    eventually("the other node", async || {
        (source.get(b, "fenced", &options).await == 1).then_some(())
    })
    .await?;
    Ok(())
}

/// A load that began before the removal of its key does not store its value.
///
/// # Errors
/// An error of the store under test.
pub async fn a_load_from_before_a_removal_brings_nothing_back(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
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
        eventually("the new value", async || {
            (*space.get_or_load(1, source.loader()).await.ok()? == 1).then_some(())
        })
        .await?;
        remover.space::<u32>("fenced-key").remove(1).await;
    }
    Ok(())
}

/// A tag that is known only after the load protects the value as the others do.
///
/// # Errors
/// An error of the store under test.
pub async fn late_tags_are_fenced(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
    let source = Source::default();
    let load = |gate: Option<(oneshot::Sender<()>, Arc<Notify>)>| {
        let source = source.clone();
        move |load: LoadContext| async move {
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
    // Some time after the invalidation the value is kept, and the tag works.
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

/// A cleared space is empty, and other spaces keep their entries.
///
/// # Errors
/// An error of the store under test.
pub async fn spaces_are_cleared_at_once(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
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

/// A value that is set replaces the entry in all caches.
///
/// # Errors
/// An error of the store under test.
pub async fn set_replaces_everywhere(caches: &[Cache]) -> Result {
    let (a, b) = (&caches[0], &caches[caches.len() - 1]);
    let (ours, theirs): (Space<String>, Space<String>) = (a.space("set"), b.space("set"));
    for round in 0..5 {
        ours.set("k", format!("value {round}")).await?;
        assert_eq!(*ours.get("k").await.unwrap(), format!("value {round}"));
        eventually("the other node", async || {
            (*theirs.get("k").await? == format!("value {round}")).then_some(())
        })
        .await?;
    }
    Ok(())
}

/// 10,000 concurrent misses of one key cause one load.
///
/// # Errors
/// An error of the store under test.
pub async fn many_misses_are_one_load(caches: &[Cache]) -> Result {
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

/// A load continues when its caller is dropped.
///
/// # Errors
/// An error of the store under test.
pub async fn a_dropped_caller_ends_no_load(caches: &[Cache]) -> Result {
    let cache = &caches[0];
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
    assert_eq!(source.get(cache, "dropped", &minutes()).await, 0, "joined, or found its value");
    assert_eq!(source.loads(), 1);
    Ok(())
}

/// Errors of the loader reach the caller, or a stale value is returned where permitted.
///
/// # Errors
/// An error of the store under test.
pub async fn failures_are_told_or_survived(caches: &[Cache]) -> Result {
    let cache = &caches[0];
    let fail = |_: LoadContext| async { Err::<u32, _>(Io::other("no database")) };
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
    assert!(
        cache.get_or_load("safe", &safe, fail).await.is_err(),
        "an invalidated value is not served, even if loads fail"
    );

    let closed = safe.clone().fail_closed();
    source.get(cache, "closed", &closed).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(cache.get_or_load("closed", &closed, fail).await.is_err());

    let hang = |_: LoadContext| std::future::pending::<Loaded>();
    let quick = minutes().hard_timeout(Duration::from_millis(20));
    assert!(matches!(cache.get_or_load("hanging", &quick, hang).await, Err(Error::TimedOut(_))));
    let panic = |_: LoadContext| async { if true { panic!("boom") } else { Ok::<u32, Io>(1) } };
    assert!(matches!(
        cache.get_or_load("panicking", &minutes(), panic).await,
        Err(Error::Panicked)
    ));
    Ok(())
}

/// A value of another type is a miss, and `None` is cached.
///
/// # Errors
/// An error of the store under test.
pub async fn types_and_sizes(caches: &[Cache]) -> Result {
    let cache = &caches[0];
    let source = Source::default();
    source.get(cache, "typed", &minutes()).await;
    let text = cache
        .get_or_load("typed", &minutes(), |_| async { Ok::<_, Io>("text".to_owned()) })
        .await?;
    assert_eq!(*text, "text", "another type is a miss");
    let nothing = |load: LoadContext| async move {
        load.ttl(Duration::from_secs(5));
        Ok::<Option<u32>, Io>(None)
    };
    assert_eq!(*cache.get_or_load("none", &minutes(), nothing).await?, None);
    assert_eq!(
        *cache.get_or_load("none", &minutes(), |_| async { Ok::<_, Io>(Some(1_u32)) }).await?,
        None,
        "the absence of a value is cached too"
    );
    Ok(())
}
