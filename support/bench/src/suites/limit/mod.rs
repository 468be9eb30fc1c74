//! Limits.
//!
//! | case | scale-limit | compared with |
//! | --- | --- | --- |
//! | `check_local` | one policy, 1,000 keys in turn, in process; returns remaining units and the time until the next | governor's keyed `check_key`, which returns admitted or not; limitador in memory, which reads its expressions at each check |
//! | `layer` | axum's router with one route and one policy by peer address, `RateLimit` headers on each answer, bodies kept by `preserve_body`; called in process | tower_governor, by peer address, with its headers: one quota, but no period and no time until the next unit. `layer_quiet`: both without headers |
//! | `layer_over_service` | the layer over a service that does nothing, minus that service | the target of 400 ns |
//! | `check_redis`, `check_redis_3` | one policy, three in one step; 200 requests under way, one process | the same client's bare one-`GET` script; limitador's async Redis store (200 under way); rate-limiter-flexible (200 under way, pipelined); Laravel's `RateLimiter::attempt` (one at a time, as PHP does: three round trips) |
//! | `check_leased` | the same load, leased for half a second | `check_redis`, whose checks share script calls; a plain GCRA script, a call for each check |
//! | `flood_10m` | memory allocated and touched after ten million keys, each seen once | governor, which keeps all of them |
//! | `overload` | requests per second answered within 250 ms, at three times the capacity of the service; each needs 2 ms of its only thread, which is configured by `at_least(1)` | the capacity of the service with two requests at a time (`peak`); three times as many requests without the layer |

mod http;
mod overload;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::Result;
use governor::{Quota, RateLimiter};
use scale_limit::{Limiter, Policy};
use testkit::Redis;

use crate::Effort;
use crate::measure::{Better, Case, concurrently, each_task, memory};
use crate::peer;
use crate::report::Report;

/// Number of concurrent requests.
const TASKS: usize = 200;

async fn check_local(
    limiter: &Limiter,
    policy: &Policy,
    keys: &[String],
    count: usize,
) -> Result<f64> {
    let start = Instant::now();
    for n in 0..count {
        std::hint::black_box(limiter.check(policy, &keys[n % keys.len()]).await);
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("limit");
    local(effort, &mut report).await;
    http::run(effort, &mut report).await;
    shared(effort, &mut report).await?;
    flood(effort, &mut report).await;
    overload::run(effort, &mut report).await;
    Ok(report)
}

async fn local(effort: Effort, report: &mut Report) {
    let keys: Vec<String> = (0..1_000).map(|n| format!("203.0.113.{n}")).collect();
    let policy = Policy::per_second("bench", 100_000_000);
    let limiter = Limiter::memory();
    let governed = RateLimiter::keyed(Quota::per_second(NonZeroU32::MAX));
    let theirs = limitador::RateLimiter::new(10_000);
    if let Ok(user) = "user".try_into() {
        theirs.add_limit(limitador::limit::Limit::new(
            "bench",
            1_000_000_000,
            60,
            vec![],
            vec![user],
        ));
    }
    let count = 500_000 * effort.scale;
    let (limiter, policy, keys, governed, theirs) = (&limiter, &policy, &keys, &governed, &theirs);
    Case::new("check_local", "ns", Better::Lower)
        .subject("scale-limit", move || check_local(limiter, policy, keys, count))
        .subject("governor", move || {
            let start = Instant::now();
            for n in 0..count {
                let _ = std::hint::black_box(governed.check_key(&keys[n % keys.len()]));
            }
            std::future::ready(Ok(start.elapsed().as_nanos() as f64 / count as f64))
        })
        .target(0.66)
        .subject("limitador", move || {
            let start = Instant::now();
            for n in 0..count / 4 {
                let values = std::collections::HashMap::from([(
                    "user".to_owned(),
                    keys[n % keys.len()].clone(),
                )]);
                let _ = std::hint::black_box(theirs.check_rate_limited_and_update(
                    &"bench".into(),
                    &values.into(),
                    1,
                ));
            }
            std::future::ready(Ok(start.elapsed().as_nanos() as f64 / (count / 4) as f64))
        })
        .measure(effort, report)
        .await;
}

async fn shared(effort: Effort, report: &mut Report) -> Result<()> {
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let redis = scale_redis::Redis::connect(&server.url()).await?;
    let limiter = Limiter::redis(redis.clone(), "bench").store_timeout(Duration::from_secs(2));
    let count = 50_000 * effort.scale;
    let keys: std::sync::Arc<[String]> = (0..1_000).map(|n| format!("user:{n}")).collect();
    let policies: Vec<Policy> =
        (0..3).map(|n| Policy::per_second(&format!("p{n}"), 1_000_000)).collect();
    let ours = |policies: &[Policy], count: usize| {
        let (limiter, policies, keys) = (limiter.clone(), policies.to_vec(), keys.clone());
        move || {
            let (limiter, policies, keys) = (limiter.clone(), policies.clone(), keys.clone());
            // Each task clones its handles once: otherwise the reference counts, which all threads
            // share, would be measured instead of the check.
            each_task(TASKS, count, move |task, count| {
                let (limiter, policies, keys) = (limiter.clone(), policies.clone(), keys.clone());
                async move {
                    for n in 0..count {
                        let key = &keys[(task * 31 + n) % keys.len()];
                        let admitted = match &policies[..] {
                            [policy] => limiter.check(policy, key).await.admitted,
                            all => {
                                limiter
                                    .check_all(
                                        &all.iter()
                                            .map(|p| (p, key.as_str(), 1))
                                            .collect::<Vec<_>>(),
                                    )
                                    .await
                                    .admitted
                            }
                        };
                        anyhow::ensure!(admitted, "denied");
                    }
                    Ok(())
                }
            })
        }
    };
    let script = redis::Script::new("return redis.call('GET', KEYS[1])");
    let bare = || {
        let (redis, script) = (redis.clone(), script.clone());
        move || {
            let (redis, script) = (redis.clone(), script.clone());
            concurrently(TASKS, count, move |n| {
                let (mut redis, script) = (redis.clone(), script.clone());
                async move {
                    let key = format!("bench:limit:{{user:{}}}:buckets", n % 1_000);
                    std::hint::black_box(
                        script.key(key).invoke_async::<Option<Vec<u8>>>(&mut redis).await?,
                    );
                    Ok(())
                }
            })
        }
    };
    let port = server.port().to_string();
    let arguments = |count: usize| vec![port.clone(), count.to_string()];
    Case::new("check_redis", "checks/s", Better::Higher)
        .subject("scale-limit", ours(&policies[..1], count))
        .subject("evalsha", bare())
        .target(0.5)
        .subject("limitador", || peer::limitador(arguments(count)))
        .subject("rate-limiter-flexible", || peer::node("limit.js", arguments(count)))
        .target(1.0)
        .subject("laravel", || peer::laravel("limit.php", arguments(count / 40)))
        .target(30.0)
        .measure(effort, report)
        .await;
    Case::new("check_redis_3", "checks/s", Better::Higher)
        .subject("scale-limit", ours(&policies, count))
        .subject("evalsha", bare())
        .target(0.3)
        .measure(effort, report)
        .await;
    let leased = Policy::per_second("leased", 1_000_000).leased(Duration::from_millis(500));
    let plain = redis::Script::new(include_str!("plain.lua"));
    let plain = || {
        let (redis, script) = (redis.clone(), plain.clone());
        concurrently(TASKS, count, move |n| {
            let (mut redis, script) = (redis.clone(), script.clone());
            async move {
                let mut call = script.key(format!("plain:{}", n % 1_000));
                anyhow::ensure!(
                    call.arg(1).arg(1_000_000).invoke_async::<i64>(&mut redis).await? == 1,
                    "denied"
                );
                Ok(())
            }
        })
    };
    Case::new("check_leased", "checks/s", Better::Higher)
        .subject("scale-limit", ours(&[leased], count * 80))
        .subject("check_redis", ours(&policies[..1], count))
        .target(50.0)
        .subject("plain-gcra", plain)
        .target(50.0)
        .subject("limitador", || {
            std::future::ready(Err(anyhow::anyhow!(
                "its cached store (0.14) did not end with 1,000 counters; see check_redis"
            )))
        })
        .measure(effort, report)
        .await;
    Ok(())
}

/// Measures the memory after ten million keys, in a separate process, because memory returned to
/// the allocator is not returned to the system.
pub(crate) async fn flooded(subject: &str) -> f64 {
    const KEYS: usize = 10_000_000;
    let before = memory("RssAnon");
    if subject == "governor" {
        let governed = RateLimiter::keyed(Quota::per_minute(NonZeroU32::MIN));
        for n in 0..KEYS {
            let _ = governed.check_key(&format!("203.0.113.{n}"));
        }
        return memory("RssAnon") - before;
    }
    let (limiter, policy) = (Limiter::memory(), Policy::per_minute("flood", 10));
    for n in 0..KEYS {
        limiter.check(&policy, &format!("203.0.113.{n}")).await;
    }
    memory("RssAnon") - before
}

async fn flood(effort: Effort, report: &mut Report) {
    Case::new("flood_10m", "MB", Better::Lower)
        .subject("scale-limit", || peer::myself(["flood", "scale-limit"]))
        .subject("governor", || peer::myself(["flood", "governor"]))
        .turns(1)
        .measure(effort, report)
        .await;
}
