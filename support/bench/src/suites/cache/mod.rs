//! Caches: hits of the first level against bare in-process caches, hits of the second against a
//! bare `GET`.
//!
//! | case | subject | set up as | what it promises |
//! | --- | --- | --- | --- |
//! | `l1_hit` | `scale-cache` | 128 MiB, a value of 100 bytes, 1,000 keys | expiry, tags, cross-process invalidation checked on each hit |
//! | | `moka`, `quick_cache`, `foyer`, `cached` | room for a million, `Arc` values; `cached` as its sharded LRU | eviction only |
//! | | `cachet` | its memory tier with a TTL | expiry |
//! | | `multi-tier-cache` | its defaults, moka before Redis, `get_or_compute_with`; values are `Bytes` | expiry; on other servers a removed value stays for its TTL |
//! | `l2_hit` | `redis-get` | the same client, a pipelined connection, the same bytes, 64 under way | nothing |
//! | `l2_tagged_hit` | `l2_hit` | `scale-cache` with three tags and without tags | |
//! | `tagged_get` | `scale-cache` | no first level, three tags, 64 under way | a hit checked against its tags |
//! | | `laravel` | Debian's, with phpredis, three tags; one request at a time, because a PHP process has no more | the same |
//! | | `bentocache` | no first level, three tags, 64 under way, pipelined | the same |
//! | | `cache-manager` | on `@keyv/redis`, 64 under way, pipelined: **no tags**, so a plain `GET` and JSON | expiry |
//! | `invalidate_1m` | `laravel` | a tag of a **tenth** of the entries: filling it takes longest | the same |
//! | `flood_10m` | `configured` | memory allocated and touched after ten million keys, each loaded once, compared with the limit of the first level; not in quick runs | |
//! | `coherence_p99` | | from the return of an invalidation on one node until another one misses | |

mod local;

use std::future::ready;
use std::time::{Duration, Instant};

use anyhow::Result;
use redis::AsyncCommands;
use scale_cache::{Cache, Options, Space};
use testkit::Redis;

use crate::Effort;
use crate::measure::{Better, Case, concurrently, each_task, memory};
use crate::peer;
use crate::report::Report;

const KEYS: usize = 1_000;
/// Number of concurrent requests.
const TASKS: usize = 64;

fn value() -> String {
    "seven and ".repeat(10)
}

const TAGS: &[&str] = &["a", "b", "c"];

fn options(tags: &[&str]) -> Options {
    Options::ttl(Duration::from_hours(1)).tags(tags.iter().copied())
}

async fn fill(space: &Space<String>) -> Result<()> {
    for n in 0..KEYS {
        space.get_or_load(n, |_| ready(Ok::<_, std::io::Error>(value()))).await?;
    }
    Ok(())
}

/// Size of a first level without room, so that every hit is of the second level.
async fn shared(url: &str) -> Result<Cache> {
    Ok(Cache::builder(url).max_bytes(0).connect("bench").await?)
}

/// Returns hits per second. Each turn has a new connection, so that the processor that serves it is
/// chosen again.
async fn second_level_hits(url: &str, name: &str, tags: &[&str], count: usize) -> Result<f64> {
    let space = shared(url).await?.space::<String>(name).options(options(tags));
    concurrently(TASKS, count, move |n| {
        let space = space.clone();
        async move {
            anyhow::ensure!(space.get(n % KEYS).await.is_some(), "a miss");
            Ok(())
        }
    })
    .await
}

async fn bare_gets(url: &str, count: usize) -> Result<f64> {
    let redis = scale_redis::Redis::connect(url).await?;
    concurrently(TASKS, count, move |n| {
        let mut redis = redis.clone();
        async move {
            let value: Option<Vec<u8>> = redis.get(format!("bare:{}", n % KEYS)).await?;
            anyhow::ensure!(value.is_some(), "a miss");
            Ok(())
        }
    })
    .await
}

/// Returns the time to invalidate a tag in ms, as the median of several. It does not depend on the
/// number of entries with the tag, nor on their validity.
async fn invalidations(cache: &Cache, count: usize) -> Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        cache.invalidate_tags(["wide"]).await;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[count / 2])
}

/// Returns the time to flush a tag of Laravel in ms; measured once, because filling takes longest.
async fn laravel_flush(port: u16, entries: usize) -> Result<f64> {
    peer::laravel("cache.php", ["flush".into(), port.to_string(), entries.to_string()]).await
}

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("cache");
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    local::run(effort, &server, &mut report).await?;

    let (url, count) = (server.url(), 100_000 * effort.scale);
    let url = url.as_str();
    let plain = shared(url).await?.space::<String>("plain").options(options(&[]));
    fill(&plain).await?;
    fill(&shared(url).await?.space("tagged").options(options(TAGS))).await?;
    let mut redis = scale_redis::Redis::connect(url).await?;
    let bytes: Vec<u8> = redis.get("bench:cache:{plain:1}:e").await?;
    for n in 0..KEYS {
        redis.set::<_, _, ()>(format!("bare:{n}"), &bytes).await?;
    }
    let plain = move || second_level_hits(url, "plain", &[], count);
    let tagged = move || second_level_hits(url, "tagged", TAGS, count);
    Case::new("l2_hit", "hits/s", Better::Higher)
        .subject("scale-cache", plain)
        .subject("redis-get", move || bare_gets(url, count))
        .target(0.85)
        .measure(effort, &mut report)
        .await;
    Case::new("l2_tagged_hit", "hits/s", Better::Higher)
        .subject("scale-cache", tagged)
        .subject("l2_hit", plain)
        .target(0.8)
        .measure(effort, &mut report)
        .await;
    let port = server.port();
    // Enough that each takes about a second, so that the start of the peers' runtimes does not
    // matter.
    let arguments =
        |subject: &str, gets: usize| vec![subject.to_owned(), port.to_string(), gets.to_string()];
    Case::new("tagged_get", "hits/s", Better::Higher)
        .subject("scale-cache", tagged)
        .subject("laravel", || peer::laravel("cache.php", arguments("tagged_get", count / 40)))
        .subject("bentocache", || peer::node("cache.js", arguments("bentocache", count / 20)))
        .subject("cache-manager", || peer::node("cache.js", arguments("cache-manager", count)))
        .measure(effort, &mut report)
        .await;

    // The cost of a tag does not depend on the number of its entries; here a million.
    let wide = Cache::builder(&server.url()).max_bytes(4 << 30).connect("wide").await?;
    let many = wide.space::<u8>("many").options(Options::ttl(Duration::from_hours(1)).tag("wide"));
    let entries = if effort.scale > 1 { 1_000_000 } else { 100_000 };
    let stored = many.clone();
    concurrently(TASKS, entries, move |n| {
        let many = stored.clone();
        async move {
            Ok(many
                .get_or_load(n * 7_919 + n, |_| ready(Ok::<_, std::io::Error>(1_u8)))
                .await
                .map(drop)?)
        }
    })
    .await?;
    let wide_ref = &wide;
    Case::new("invalidate_1m", "ms", Better::Lower)
        .subject("scale-cache", move || invalidations(wide_ref, 1_001))
        .subject("laravel", move || laravel_flush(port, entries / 10))
        .turns(3)
        .measure(effort, &mut report)
        .await;

    if effort.scale > 1 {
        Case::new("flood_10m", "MB", Better::Lower)
            .subject("scale-cache", || peer::myself(["flood", "scale-cache"]))
            .subject("configured", || ready(Ok(FLOODED as f64 / 1e6)))
            .target(0.91)
            .turns(1)
            .measure(effort, &mut report)
            .await;
    }

    // From the return of an invalidation on one node until another one misses.
    let (a, b) =
        (Cache::connect(&server.url(), "two").await?, Cache::connect(&server.url(), "two").await?);
    let (a_ref, b_ref) = (&a, &b);
    Case::new("coherence_p99", "ms", Better::Lower)
        .subject("scale-cache", move || coherence(a_ref, b_ref, 200 * effort.scale))
        .turns(1)
        .measure(effort, &mut report)
        .await;
    Ok(report)
}

/// Size of the first level in the flood, bytes.
const FLOODED: u64 = 64 << 20;

/// Returns the memory in MB after ten million keys were loaded, each once, with values of 100
/// bytes; in a separate process.
pub(crate) async fn flooded() -> f64 {
    let before = memory("RssAnon");
    let space = Cache::builder("memory:")
        .max_bytes(FLOODED)
        .connect("flood")
        .await
        .map(|cache| cache.space::<String>("flood"));
    let Ok(space) = space else { return f64::NAN };
    let loads = each_task(TASKS, 10_000_000, move |task, count| {
        let space = space.clone();
        async move {
            for n in 0..count {
                space
                    .get_or_load(n * TASKS + task, |_| ready(Ok::<_, std::io::Error>(value())))
                    .await?;
            }
            Ok(())
        }
    });
    if loads.await.is_ok() { memory("RssAnon") - before } else { f64::NAN }
}

async fn coherence(a: &Cache, b: &Cache, count: usize) -> Result<f64> {
    let options = Options::ttl(Duration::from_hours(1)).tag("t");
    let theirs = b.space::<u32>("s").options(options);
    let mut times = Vec::new();
    for n in 0..count {
        theirs.get_or_load(1, move |_| ready(Ok::<_, std::io::Error>(n as u32))).await?;
        a.invalidate_tags(["t"]).await;
        let start = Instant::now();
        while theirs.get(1).await.is_some_and(|v| *v == n as u32) {
            tokio::task::yield_now().await;
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[(times.len() - 1) * 99 / 100])
}
