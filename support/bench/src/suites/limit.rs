//! Limits: a check in process against bare governor, a check on Redis against a bare one-`GET` script of the same client.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::Result;
use governor::{Quota, RateLimiter};
use scale_limit::{Limiter, Policy};
use testkit::Redis;

use crate::Effort;
use crate::measure::{Better, Case, concurrently};
use crate::report::Report;

/// Requests under way at once.
const TASKS: usize = 200;

async fn check_local(limiter: &Limiter, policy: &Policy, keys: &[String], count: usize) -> Result<f64> {
    let start = Instant::now();
    for n in 0..count {
        std::hint::black_box(limiter.check(policy, &keys[n % keys.len()]).await);
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("limit");
    let keys: Vec<String> = (0..1_000).map(|n| format!("203.0.113.{n}")).collect();
    let policy = Policy::per_second("bench", 1_000_000_000);
    let limiter = Limiter::memory();
    let governed = RateLimiter::keyed(Quota::per_second(NonZeroU32::MAX));
    let count = 500_000 * effort.scale;
    let (l, p, k, g) = (&limiter, &policy, &keys, &governed);
    Case::new("check_local", "ns", Better::Lower)
        .subject("scale-limit", move || check_local(l, p, k, count))
        .subject("governor", move || {
            let start = Instant::now();
            for n in 0..count {
                let _ = std::hint::black_box(g.check_key(&k[n % k.len()]));
            }
            std::future::ready(Ok(start.elapsed().as_nanos() as f64 / count as f64))
        })
        .target(0.66)
        .measure(effort.rounds, &mut report)
        .await;

    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let redis = scale_redis::Redis::connect(&server.url()).await?;
    let shared = Limiter::redis(redis.clone(), "bench").patience(Duration::from_secs(2));
    let count = 50_000 * effort.scale;
    let policies: Vec<Policy> = (0..3).map(|n| Policy::per_second(&format!("p{n}"), 1_000_000)).collect();
    let with = |number: usize| {
        let (shared, policies) = (shared.clone(), policies[..number].to_vec());
        move || {
            let (shared, policies) = (shared.clone(), policies.clone());
            concurrently(TASKS, count, move |n| {
                let (shared, policies) = (shared.clone(), policies.clone());
                async move {
                    let key = format!("user:{}", n % 1_000);
                    let charges: Vec<_> = policies.iter().map(|p| (p, key.as_str(), 1)).collect();
                    anyhow::ensure!(shared.check_all(&charges).await.admitted, "denied");
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
                    let key = format!("bench:limit:{{user:{}}}:p0", n % 1_000);
                    std::hint::black_box(script.key(key).invoke_async::<Option<Vec<u8>>>(&mut redis).await?);
                    Ok(())
                }
            })
        }
    };
    Case::new("check_redis", "checks/s", Better::Higher)
        .subject("scale-limit", with(1))
        .subject("evalsha", bare())
        .target(0.5)
        .measure(effort.rounds, &mut report)
        .await;
    Case::new("check_redis_3", "checks/s", Better::Higher)
        .subject("scale-limit", with(3))
        .subject("evalsha", bare())
        .target(0.3)
        .measure(effort.rounds, &mut report)
        .await;
    Ok(report)
}
