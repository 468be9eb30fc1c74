//! `limitador-peer PORT COUNT`: checks per second against one limit of 1,000 users, 200 under way;
//! prints one number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use limitador::AsyncRateLimiter;
use limitador::limit::Limit;
use limitador::storage::redis::AsyncRedisStorage;
use tokio::task::JoinSet;

/// Number of concurrent checks.
const TASKS: usize = 200;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [port, count] = &words[..] else { bail!("limitador-peer PORT COUNT") };
    let (url, count) = (format!("redis://127.0.0.1:{port}"), count.parse::<usize>()?);
    let limiter = Arc::new(
        AsyncRateLimiter::new_with_storage(Box::new(AsyncRedisStorage::new(&url).await?))
    );
    limiter.add_limit(Limit::new("bench", 1_000_000_000, 60, vec![], vec!["user".try_into()?]));
    let (next, start) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (limiter, next) = (Arc::clone(&limiter), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Relaxed);
                if n >= count {
                    return anyhow::Ok(());
                }
                let values = HashMap::from(
                    [("user".to_owned(), format!("203.0.113.{}", n % 1_000))]
                );
                let answer = limiter.check_rate_limited_and_update(
                    &"bench".into(), &values.into(), 1,
                ).await;
                let answer = answer.map_err(|error| anyhow!("{error:?}"))?;
                ensure!(!answer.limited, "denied");
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    println!("{}", count as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
