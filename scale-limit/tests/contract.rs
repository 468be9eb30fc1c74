//! What every store must do, on every store.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_limit::{Limiter, Policy};

async fn contract(limiter: Limiter) -> Result<()> {
    let limiter = limiter.patience(Duration::from_secs(2));
    let policy = Policy::per_hour("burst", 10).burst(3);
    for left in [2, 1, 0] {
        let decision = limiter.check(&policy, "a").await;
        assert!(decision.admitted);
        assert_eq!(decision.outcomes()[0].remaining, left);
    }
    let denied = limiter.check(&policy, "a").await;
    assert!(!denied.admitted);
    let wait = denied.retry_after().unwrap();
    assert!(wait > Duration::from_secs(350) && wait <= Duration::from_mins(6), "{wait:?}");
    assert!(limiter.check(&policy, "b").await.admitted, "another key is not touched");

    // All or none.
    let (tight, wide) = (Policy::per_hour("tight", 1), Policy::per_hour("wide", 100));
    assert!(limiter.check_all(&[(&wide, "user:1", 1), (&tight, "ip:1", 1)]).await.admitted);
    for _ in 0..20 {
        let decision = limiter.check_all(&[(&wide, "user:1", 1), (&tight, "ip:1", 1)]).await;
        assert!(!decision.admitted && decision.outcomes()[0].admitted && !decision.outcomes()[1].admitted);
    }
    assert_eq!(limiter.check(&wide, "user:1").await.outcomes()[0].remaining, 98);

    // Cost, and a cost that can never pass.
    let costly = Policy::per_hour("costly", 10);
    assert_eq!(limiter.check_all(&[(&costly, "c", 7)]).await.outcomes()[0].remaining, 3);
    assert!(!limiter.check_all(&[(&costly, "c", 4)]).await.admitted);
    assert!(limiter.check_all(&[(&costly, "c", 3)]).await.admitted);
    assert_eq!(limiter.check_all(&[(&costly, "d", 11)]).await.retry_after(), None);

    // What is given back can be taken again, and a bucket is never fuller than full.
    let back = Policy::per_hour("back", 2);
    assert!(limiter.check(&back, "r").await.admitted && limiter.check(&back, "r").await.admitted);
    assert!(!limiter.check(&back, "r").await.admitted);
    assert!(limiter.refund(&[(&back, "r", 1)]).await);
    assert!(limiter.check(&back, "r").await.admitted);
    for _ in 0..10 {
        assert!(limiter.refund(&[(&back, "r", 1)]).await);
    }
    assert!(limiter.check(&back, "r").await.admitted && limiter.check(&back, "r").await.admitted);
    assert!(!limiter.check(&back, "r").await.admitted);

    // A dry run counts and lets pass.
    let dry = Policy::per_hour("dry", 1).dry_run();
    for _ in 0..3 {
        assert!(limiter.check(&dry, "e").await.admitted);
    }

    // Refills at its rate.
    let fast = Policy::per_second("fast", 50).burst(1);
    assert!(limiter.check(&fast, "f").await.admitted);
    let denied = limiter.check(&fast, "f").await;
    if let Some(wait) = denied.retry_after().filter(|w| !w.is_zero()) {
        tokio::time::sleep(wait).await;
        assert!(limiter.check(&fast, "f").await.admitted, "who waits as told passes");
    }

    // Odd keys.
    let long = "x".repeat(10_000);
    for key in ["", "{braces}", "a b\r\nc", "ключ", &long] {
        assert!(limiter.check(&policy, key).await.admitted, "{key:.20}");
    }

    // Exact under concurrency.
    let shared = Policy::per_hour("shared", 100);
    let tasks: Vec<_> = (0..400)
        .map(|_| {
            let (limiter, shared) = (limiter.clone(), shared.clone());
            tokio::spawn(async move { limiter.check(&shared, "g").await.admitted })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += u32::from(task.await?);
    }
    assert_eq!(admitted, 100);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() -> Result<()> {
    contract(Limiter::memory()).await
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use scale_limit::OnError;
    use testkit::{Proxy, Redis, RedisCluster, eventually};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() -> Result<()> {
        let server = Redis::start().await?;
        contract(Limiter::connect(&server.url(), "test").await?).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() -> Result<()> {
        let cluster = RedisCluster::start().await?;
        contract(Limiter::connect(&cluster.url(), "test").await?).await
    }

    #[tokio::test]
    async fn one_round_trip_whatever_the_number_of_policies_and_keys_expire() -> Result<()> {
        let server = Redis::start().await?;
        let limiter = Limiter::connect(&server.url(), "test").await?.patience(Duration::from_secs(2));
        let policies: Vec<_> = (0..5).map(|n| Policy::per_second(&format!("p{n}"), 1_000)).collect();
        let charges: Vec<_> = policies.iter().map(|p| (p, "k", 1)).collect();
        limiter.check_all(&charges).await;
        server.command(&["CONFIG", "RESETSTAT"]).await?;
        for _ in 0..10 {
            limiter.check_all(&charges).await;
        }
        assert_eq!(server.calls(&["evalsha", "eval"]).await?, 10);
        eventually("every key to expire", async || (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())).await
    }

    #[tokio::test]
    async fn two_processes_share_one_quota_and_scripts_survive_a_flush() -> Result<()> {
        let server = Redis::start().await?;
        let a = Limiter::connect(&server.url(), "test").await?.patience(Duration::from_secs(2));
        let b = Limiter::connect(&server.url(), "test").await?.patience(Duration::from_secs(2));
        let policy = Policy::per_hour("p", 10);
        let mut admitted = 0;
        for n in 0..30 {
            if n == 5 {
                server.command(&["SCRIPT", "FLUSH"]).await?;
            }
            admitted += u32::from(a.check(&policy, "k").await.admitted) + u32::from(b.check(&policy, "k").await.admitted);
        }
        assert_eq!(admitted, 10);
        Ok(())
    }

    #[tokio::test]
    async fn a_cut_store_costs_the_patience_and_each_policy_has_its_own_rule() -> Result<()> {
        let server = Redis::start().await?;
        let proxy = Proxy::start(server.port()).await?;
        let patience = Duration::from_millis(20);
        let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?.patience(patience);
        let open = Policy::per_hour("open", 1).on_error(OnError::Allow);
        let closed = Policy::per_hour("closed", 1_000).on_error(OnError::Deny);
        let local = Policy::per_hour("local", 10).on_error(OnError::Local(0.2));
        proxy.cut();
        let start = std::time::Instant::now();
        for _ in 0..5 {
            assert!(limiter.check(&open, "k").await.admitted);
        }
        assert!(start.elapsed() < patience * 5 * 5, "{:?}", start.elapsed());
        assert!(!limiter.check(&closed, "k").await.admitted);
        let mut admitted = 0;
        for _ in 0..10 {
            admitted += u32::from(limiter.check(&local, "k").await.admitted);
        }
        assert_eq!(admitted, 2, "a fifth of ten");
        proxy.heal();
        eventually("the store to be asked again", async || limiter.check(&closed, "k").await.admitted.then_some(())).await
    }
}
