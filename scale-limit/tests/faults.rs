//! A store that is dead, slow, or failing over.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::poll;
use scale_limit::guard::login::Attempt;
use scale_limit::{Limiter, LoginGuard, OnError, Policy};
use testkit::{Proxy, Redis, RedisCluster, RedisSentinel, eventually};

#[tokio::test]
async fn a_cut_store_costs_the_patience_and_each_policy_has_its_own_rule() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let store_timeout = Duration::from_millis(20);
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test")
        .await?
        .store_timeout(store_timeout);
    let open = Policy::per_hour("open", 1).on_error(OnError::Allow);
    let closed = Policy::per_hour("closed", 1_000).on_error(OnError::Deny);
    let local = Policy::per_hour("local", 10).on_error(OnError::Local(0.2));
    let places = Policy::concurrency("places", 10).on_error(OnError::Local(0.2));
    proxy.cut();
    let start = Instant::now();
    for _ in 0..200 {
        assert!(limiter.check(&open, "k").await.admitted);
    }
    // Five requests wait for the timeout; then one request in a tenth of a second does.
    assert!(start.elapsed() < store_timeout * 50, "{:?} for 200 requests", start.elapsed());
    assert!(!limiter.check(&closed, "k").await.admitted);
    let mut admitted = 0;
    for _ in 0..10 {
        admitted += u32::from(limiter.check(&local, "k").await.admitted);
    }
    assert_eq!(admitted, 2, "a fifth of ten");
    let (first, second) = (limiter.check(&places, "k").await, limiter.check(&places, "k").await);
    assert!(first.admitted && second.admitted && !limiter.check(&places, "k").await.admitted);
    drop(first);
    assert!(limiter.check(&places, "k").await.admitted);
    // A policy that denies without the store does not affect the others.
    let spared = Policy::per_hour("spared", 1).on_error(OnError::Local(1.0));
    for _ in 0..5 {
        assert!(!limiter.check_all(&[(&spared, "k", 1), (&closed, "k", 1)]).await.admitted);
    }
    assert!(limiter.check(&spared, "k").await.admitted);
    proxy.heal();
    eventually("the store to be asked again", async || {
        limiter.check(&closed, "k").await.admitted.then_some(())
    })
    .await
}

#[tokio::test]
async fn a_slow_store_adds_its_patience_at_most() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let policy = Policy::per_hour("p", 1_000).on_error(OnError::Allow);
    limiter.check(&policy, "k").await;
    proxy.delay(Duration::from_secs(1));
    let start = Instant::now();
    for _ in 0..20 {
        assert!(limiter.check(&policy, "k").await.admitted);
    }
    // 5 × 20 ms, and the overhead of this machine; without the timeout it would be 20 s.
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    Ok(())
}

/// The store is 50 ms away, a lease lasts for a second: after the first leases no request waits.
#[tokio::test]
async fn a_key_in_demand_does_not_wait_for_its_next_lump() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test")
        .await?
        .store_timeout(Duration::from_secs(5));
    let lease = Duration::from_secs(1);
    let hot = Policy::per_second("hot", 1_000_000).leased(lease);
    proxy.delay(Duration::from_millis(50));
    let (start, mut last, mut waits) = (Instant::now(), Instant::now(), 0);
    while start.elapsed() < lease * 5 {
        // If the machine stalls, a lease may expire.
        let stalled = last.elapsed() > lease / 10;
        let mut check = pin!(limiter.check(&hot, "everybody"));
        if poll!(&mut check).is_pending() {
            waits += usize::from(start.elapsed() > lease * 2 && !stalled);
            assert!(check.await.admitted);
        }
        last = Instant::now();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(waits, 0, "checks that waited");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_is_survived_and_loses_no_script() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let limiter =
        Limiter::connect(&group.url(), "test").await?.store_timeout(Duration::from_millis(200));
    let policy = Policy::per_hour("p", 1_000_000).on_error(OnError::Deny);
    assert!(limiter.check(&policy, "k").await.admitted);
    let master = group.master_port().await?;
    for n in 0..2 {
        if group.server(n).port() == master {
            group.server(n).kill()?;
        }
    }
    eventually("the new master to rule", async || {
        (group.master_port().await.ok()? != master && limiter.check(&policy, "k").await.admitted)
            .then_some(())
    })
    .await
}

/// Other limits, which wait for only 20 ms, give up on a slow store, and a guard with a longer
/// timeout still uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_does_not_loosen_because_the_store_is_late() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let guard = LoginGuard::new(&limiter, "login");
    let guesses = async |from: u32| {
        let mut looked_at = 0;
        for n in 0..40_u32 {
            let address = format!("203.0.{from}.{n}");
            let attempt = Attempt { account: "ann", address: &address, known_device: None };
            looked_at += u32::from(guard.begin(attempt).await.is_ok());
        }
        looked_at
    };
    let mut looked_at = guesses(1).await;
    assert_eq!(looked_at, 40);
    // Slow: each response takes 150 ms, and the circuit breakers of other limits have opened long
    // before.
    proxy.delay(Duration::from_millis(75));
    let site = Policy::per_hour("site", 1_000_000);
    for _ in 0..10 {
        limiter.check(&site, "k").await;
    }
    looked_at += guesses(2).await;
    assert_eq!(looked_at, 50, "by the store itself, although slow");
    // Dead: this process continues with the count of attempts that it has admitted.
    proxy.cut();
    looked_at += guesses(3).await;
    assert_eq!(looked_at, 50);
    proxy.delay(Duration::ZERO);
    proxy.heal();
    looked_at += guesses(4).await;
    assert_eq!(looked_at, 50, "calls to the dead store are not admitted afterwards");
    Ok(())
}

/// A store that dies while a guard has admitted fewer attempts than its limit.
#[tokio::test]
async fn a_guard_goes_on_from_what_it_has_let_through() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let guard = LoginGuard::new(&limiter, "login");
    let mut looked_at = 0;
    for n in 0..30 {
        let address = format!("203.0.113.{n}");
        looked_at += u32::from(
            guard
                .begin(Attempt { account: "ann", address: &address, known_device: None })
                .await
                .is_ok(),
        );
    }
    // Attempts admitted meanwhile are not counted in the store.
    for _ in 0..20 {
        let own = Attempt { account: "ben", address: "198.51.100.1", known_device: None };
        guard.begin(own).await.unwrap().succeeded().await;
    }
    proxy.cut();
    for n in 30..120 {
        let address = format!("203.0.113.{n}");
        looked_at += u32::from(
            guard
                .begin(Attempt { account: "ann", address: &address, known_device: None })
                .await
                .is_ok(),
        );
    }
    assert_eq!(looked_at, 50);
    for _ in 0..3 {
        assert!(
            guard
                .begin(Attempt { account: "ben", address: "198.51.100.1", known_device: None })
                .await
                .is_ok()
        );
    }
    Ok(())
}

/// Acquires all permits, within a shorter time than an unreleased permit would be held.
async fn all_are_free(limiter: &Limiter, policy: &Policy) {
    let start = Instant::now();
    let all = [(policy, "k", policy.quota())];
    while !limiter.check_all(&all).await.admitted {
        assert!(start.elapsed() < Duration::from_secs(12), "permits without a holder stay taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_callers_that_went_away_are_free_in_a_cluster_too() -> Result<()> {
    let cluster = RedisCluster::start().await?;
    let limiter =
        Limiter::connect(&cluster.url(), "test").await?.store_timeout(Duration::from_secs(5));
    let policy = Policy::concurrency("jobs", 20).on_error(OnError::Deny);
    for turn in 0..300 {
        let check = limiter.check(&policy, "k");
        let _ = tokio::time::timeout(Duration::from_micros(60 + turn), check).await;
    }
    all_are_free(&limiter, &policy).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_answers_that_came_too_late_are_free() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let policy = Policy::concurrency("jobs", 20).on_error(OnError::Deny);
    assert!(limiter.check(&policy, "k").await.admitted);
    proxy.delay(Duration::from_millis(40));
    for _ in 0..60 {
        limiter.check(&policy, "k").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    proxy.delay(Duration::ZERO);
    all_are_free(&limiter.store_timeout(Duration::from_secs(5)), &policy).await;
    Ok(())
}

/// A limiter that is used on a second runtime, which shuts down during calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_ends_takes_nothing_with_it() -> Result<()> {
    let server = Redis::start().await?;
    let limiter =
        Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(5));
    let policy = Policy::per_hour("p", 1_000).on_error(OnError::Deny);
    let places = Policy::concurrency("places", 1);
    assert!(limiter.check(&policy, "k").await.admitted);
    server.pause()?;
    let (other, of_other) = (limiter.clone(), policy.clone());
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        for n in 0..4 {
            let (limiter, policy) = (other.clone(), of_other.clone());
            runtime.spawn(async move { limiter.check(&policy, &n.to_string()).await });
        }
        // The calls are under way once the store has not responded for a while.
        std::thread::sleep(Duration::from_millis(200));
        runtime.shutdown_background();
    })
    .await?;
    server.resume()?;
    eventually("checks to be answered", async || {
        limiter.check(&policy, "k").await.admitted.then_some(())
    })
    .await?;
    let held = limiter.check(&places, "k").await;
    assert!(held.admitted && !limiter.check(&places, "k").await.admitted);
    Ok(())
}

/// Charges of the local fallback are refunded to the fallback, and not to the store.
#[tokio::test]
async fn what_is_given_back_goes_to_whoever_was_charged() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let limiter = Limiter::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let limiter = limiter.store_timeout(Duration::from_millis(200));
    let policy = Policy::per_hour("p", 100);
    for _ in 0..60 {
        assert!(limiter.check(&policy, "k").await.admitted);
    }
    proxy.cut();
    let mut decisions = Vec::new();
    for _ in 0..20 {
        decisions.push(limiter.check(&policy, "k").await);
    }
    assert!(decisions.iter().all(|decision| decision.admitted), "by the stand-in");
    proxy.heal();
    let closed = Policy::per_hour("closed", 1_000).on_error(OnError::Deny);
    eventually("the store to answer", async || {
        limiter.check(&closed, "k").await.admitted.then_some(())
    })
    .await?;
    for decision in &decisions {
        assert!(limiter.refund(decision, &[(&policy, "k", 1)]).await);
    }
    // As before the cut, except for the calls that were under way at the cut: they may still
    // arrive.
    let left = limiter.check(&policy, "k").await.outcomes()[0].remaining();
    assert!((30..=39).contains(&left), "{left}");
    Ok(())
}
