//! Counts the allocations of a hit in the first level: there are none.

use std::future::ready;
use std::time::Duration;

use allocation_counter::measure;
use futures_util::FutureExt;
use scale_cache::Cache;
use tokio::task::coop::unconstrained;

const HITS: u64 = 20_000;

/// moka applies its read log from time to time, during a random hit: these allocations are moka's
/// own.
#[tokio::test]
async fn a_hit_allocates_nothing() {
    let moka = moka::sync::Cache::<String, std::sync::Arc<String>>::new(1_000);
    moka.insert("key:7".into(), std::sync::Arc::default());
    let bare = measure(|| (0..HITS).for_each(|_| drop(moka.get("key:7")))).count_total;

    let space = Cache::memory().space::<String>("key").ttl(Duration::from_hours(1));
    let load = || space.get_or_load(7, |_| ready(Ok::<_, std::io::Error>("value".to_owned())));
    assert!(load().await.is_ok());
    let ours = measure(|| {
        for _ in 0..HITS {
            assert!(unconstrained(load()).now_or_never().is_some_and(|loaded| loaded.is_ok()));
            assert!(unconstrained(space.get(7)).now_or_never().flatten().is_some());
        }
    });
    assert!(
        ours.count_total <= 2 * bare + HITS / 1_000,
        "{} allocations in {} hits, moka's are {bare} in half as many",
        ours.count_total,
        2 * HITS
    );
}
