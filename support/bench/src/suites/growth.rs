//! Growth: cost of one operation while a quantity grows on which it should not depend.
//!
//! | case | grows | one operation |
//! | --- | --- | --- |
//! | `queue_backlog` | jobs that wait behind | a job done, Redis, concurrency 100 |
//! | `session_count` | sessions in Redis | a request that reads its session, 200 under way |
//! | `cache_tags` | tags of an entry | a hit of the second level, 64 under way |
//! | `limit_keys` | counted keys, checked in random order; from 917,504 on, each new key needs an eviction | a check in process |
//! | `db_replicas` | replicas of the primary | a read, 32 under way; **on two cores, which all servers share**, so this does not show the throughput of separate machines |
//!
//! The first size is the subject, the others are compared with it: a ratio of 0.9 means that an
//! operation costs a tenth more.

use std::future::ready;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use scale_cache::{Cache, Options};
use scale_limit::{Limiter, Policy};
use testkit::Redis;

use super::{db, queue, session};
use crate::Effort;
use crate::measure::{Better, Case, concurrently};
use crate::report::Report;

/// Converts operations per second to microseconds per operation.
async fn us(rate: impl Future<Output = Result<f64>>) -> Result<f64> {
    Ok(1e6 / rate.await?)
}

fn sizes(effort: Effort, all: &[usize]) -> Vec<usize> {
    // A quick run omits sizes that take long to fill.
    all[..if effort.scale > 1 { all.len() } else { all.len() - 1 }].to_vec()
}

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("growth");
    queue_backlog(effort, &mut report).await?;
    session_count(effort, &mut report).await?;
    cache_tags(effort, &mut report).await?;
    limit_keys(effort, &mut report).await;
    db::replicas(effort, &mut report).await?;
    Ok(report)
}

async fn queue_backlog(effort: Effort, report: &mut Report) -> Result<()> {
    let mut servers = Vec::new();
    for size in sizes(effort, &[1_000, 10_000, 100_000, 1_000_000]) {
        servers.push((size, Redis::start_with(&["--appendonly", "no"]).await?));
    }
    let mut case = Case::new("queue_backlog", "us", Better::Lower);
    for (size, server) in &servers {
        let count = 25_000 * effort.scale;
        case = case
            .subject(&size.to_string(), move || us(queue::process_behind(server, *size, count)));
    }
    case.turns(effort.turns.min(5)).measure(effort, report).await;
    Ok(())
}

async fn session_count(effort: Effort, report: &mut Report) -> Result<()> {
    let mut subjects = Vec::new();
    for size in sizes(effort, &[1_000, 10_000, 100_000, 1_000_000]) {
        let server = Redis::start_with(&["--appendonly", "no"]).await?;
        subjects.push((size, session::Subject::filled(&server, size).await?, server));
    }
    let mut case = Case::new("session_count", "us", Better::Lower);
    for (size, subject, _) in &subjects {
        case = case
            .subject(&size.to_string(), move || us(subject.rate("/read", 50_000 * effort.scale)));
    }
    case.turns(effort.turns.min(5)).measure(effort, report).await;
    Ok(())
}

async fn cache_tags(effort: Effort, report: &mut Report) -> Result<()> {
    const KEYS: usize = 1_000;
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let cache = Cache::builder(&server.url()).max_bytes(0).connect("growth").await?;
    let mut case = Case::new("cache_tags", "us", Better::Lower);
    for tags in [0, 1, 3, 10, 30] {
        let names = (0..tags).map(|n| format!("tag{n}"));
        let space = cache
            .space::<String>(&format!("tags{tags}"))
            .options(Options::ttl(Duration::from_hours(1)).tags(names));
        for n in 0..KEYS {
            space
                .get_or_load(n, |_| ready(Ok::<_, std::io::Error>("seven and ".repeat(10))))
                .await?;
        }
        case = case.subject(&tags.to_string(), move || {
            let space = space.clone();
            us(concurrently(64, 50_000 * effort.scale, move |n| {
                let space = space.clone();
                async move {
                    ensure!(space.get(n % KEYS).await.is_some(), "a miss");
                    Ok(())
                }
            }))
        });
    }
    case.turns(effort.turns.min(5)).measure(effort, report).await;
    Ok(())
}

async fn limit_keys(effort: Effort, report: &mut Report) {
    let policy = &Policy::per_hour("growth", 1_000_000_000);
    let mut case = Case::new("limit_keys", "ns", Better::Lower);
    for size in sizes(effort, &[1_000, 10_000, 100_000, 1_000_000]) {
        let (limiter, keys) =
            (Limiter::memory(), (0..size).map(|n| format!("user:{n}")).collect::<Vec<_>>());
        case = case.subject(&size.to_string(), move || {
            let (limiter, keys) = (limiter.clone(), keys.clone());
            async move {
                let count = 500_000 * effort.scale;
                let start = Instant::now();
                for n in 0..count {
                    ensure!(
                        limiter.check(policy, &keys[(n * 7_919) % keys.len()]).await.admitted,
                        "denied"
                    );
                }
                Ok(start.elapsed().as_nanos() as f64 / count as f64)
            }
        });
    }
    case.turns(effort.turns.min(5)).measure(effort, report).await;
}
