//! Contract of all stores.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_limit::overrides::{Overrides, Quota};
use scale_limit::policy::Algorithm;
use scale_limit::{Limiter, Policy};
use testkit::eventually;

/// A test for each case on each store, so that each can be run alone:
/// `cargo test --all-features --test contract redis::windows`.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        on_store! { memory: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis: $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis_cluster: $($case),* }
    };
}

macro_rules! on_store {
    ($store:ident: $($case:ident),*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    let limiter = crate::stores::$store(stringify!($case)).await?;
                    super::$case(&limiter.store_timeout(std::time::Duration::from_secs(2))).await
                }
            )*
        }
    };
}

on_every_store! {
    a_bucket_empties,
    all_policies_are_charged_or_none,
    a_request_has_a_cost,
    what_is_given_back_can_be_taken_again,
    what_has_flowed_back_is_not_given_twice,
    what_was_spent_is_owed,
    a_dry_run_lets_pass,
    a_bucket_refills_at_its_rate,
    odd_keys_are_keys,
    a_key_has_a_quota_of_its_own,
    every_algorithm_is_exact,
    windows,
    places,
}

/// Limiters, each with an application name of its own, on a server that all cases share.
mod stores {
    use anyhow::Result;
    use scale_limit::Limiter;
    #[cfg(feature = "redis")]
    use testkit::Shared;

    pub(crate) async fn memory(app: &str) -> Result<Limiter> {
        Ok(Limiter::connect("memory:", app).await?)
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str) -> Result<Limiter> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        Ok(Limiter::connect(&SERVER.get(testkit::Redis::start).await?.url(), app).await?)
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str) -> Result<Limiter> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        let server = SERVER.get(testkit::RedisCluster::start).await?;
        Ok(Limiter::connect(&server.url(), app).await?)
    }
}

/// An empty bucket denies, with the time to retry after.
async fn a_bucket_empties(limiter: &Limiter) -> Result<()> {
    let policy = Policy::per_hour("burst", 10).burst(3);
    for left in [2, 1, 0] {
        let decision = limiter.check(&policy, "a").await;
        assert!(decision.admitted);
        assert_eq!(decision.outcomes()[0].remaining(), left);
    }
    let denied = limiter.check(&policy, "a").await;
    assert!(!denied.admitted);
    let wait = denied.retry_after().unwrap();
    assert!(wait > Duration::from_secs(350) && wait <= Duration::from_mins(6), "{wait:?}");
    assert!(limiter.check(&policy, "b").await.admitted, "another key is not touched");
    Ok(())
}

/// All or none.
async fn all_policies_are_charged_or_none(limiter: &Limiter) -> Result<()> {
    let (tight, wide) = (Policy::per_hour("tight", 1), Policy::per_hour("wide", 100));
    assert!(limiter.check_all(&[(&wide, "user:1", 1), (&tight, "ip:1", 1)]).await.admitted);
    for _ in 0..20 {
        let decision = limiter.check_all(&[(&wide, "user:1", 1), (&tight, "ip:1", 1)]).await;
        assert!(
            !decision.admitted
                && decision.outcomes().iter().any(|o| o.policy() == "tight" && !o.admitted())
        );
    }
    assert_eq!(limiter.check(&wide, "user:1").await.outcomes()[0].remaining(), 98);
    Ok(())
}

/// The cost of a request, and a cost that can never be admitted.
async fn a_request_has_a_cost(limiter: &Limiter) -> Result<()> {
    let costly = Policy::per_hour("costly", 10);
    assert_eq!(limiter.check_all(&[(&costly, "c", 7)]).await.outcomes()[0].remaining(), 3);
    assert!(!limiter.check_all(&[(&costly, "c", 4)]).await.admitted);
    assert!(limiter.check_all(&[(&costly, "c", 3)]).await.admitted);
    assert_eq!(limiter.check_all(&[(&costly, "d", 11)]).await.retry_after(), None);
    Ok(())
}

/// Refunded units can be taken again, and a bucket never exceeds its capacity.
async fn what_is_given_back_can_be_taken_again(limiter: &Limiter) -> Result<()> {
    let back = Policy::per_hour("back", 2);
    let first = limiter.check(&back, "r").await;
    let second = limiter.check(&back, "r").await;
    let denied = limiter.check(&back, "r").await;
    assert!(first.admitted && second.admitted && !denied.admitted);
    // A denial has charged nothing.
    assert!(!limiter.refund(&denied, &[(&back, "r", 1)]).await);
    assert!(!limiter.check(&back, "r").await.admitted);
    assert!(limiter.refund(&first, &[(&back, "r", 1)]).await);
    // Not at once: the times of two connections to the store differ by microseconds.
    let third = eventually("it to be back", async || {
        Some(limiter.check(&back, "r").await).filter(|d| d.admitted)
    })
    .await?;
    // A decision is refunded once only.
    for _ in 0..10 {
        assert!(!limiter.refund(&first, &[(&back, "r", 1)]).await);
    }
    assert!(!limiter.check(&back, "r").await.admitted);
    for decision in [second, third] {
        assert!(limiter.refund(&decision, &[(&back, "r", 5)]).await);
    }
    eventually("both to be back", async || {
        limiter.check_all(&[(&back, "r", 2)]).await.admitted.then_some(())
    })
    .await?;
    assert!(!limiter.check(&back, "r").await.admitted);
    Ok(())
}

/// Units that have already been refilled are not refunded as well.
async fn what_has_flowed_back_is_not_given_twice(limiter: &Limiter) -> Result<()> {
    let quick = Policy::new("quick", 10, Duration::from_millis(100)).burst(1);
    let first = limiter.check(&quick, "r").await;
    tokio::time::sleep(Duration::from_millis(15)).await;
    assert!(limiter.check(&quick, "r").await.admitted, "it has refilled");
    assert!(limiter.refund(&first, &[(&quick, "r", 1)]).await);
    let slow = Policy::per_hour("slow", 10).burst(1);
    assert!(limiter.check(&slow, "r").await.admitted);
    assert!(!limiter.check(&slow, "r").await.admitted);
    Ok(())
}

/// Debited units are owed.
async fn what_was_spent_is_owed(limiter: &Limiter) -> Result<()> {
    let owed = Policy::per_hour("owed", 10);
    assert!(limiter.check(&owed, "o").await.admitted);
    assert!(limiter.debit(&[(&owed, "o", 29)]).await);
    let wait = limiter.check(&owed, "o").await.retry_after().unwrap();
    // But never for more than two periods.
    assert!(wait > Duration::from_hours(1) && wait <= Duration::from_hours(2), "{wait:?}");
    Ok(())
}

/// A dry run counts and admits.
async fn a_dry_run_lets_pass(limiter: &Limiter) -> Result<()> {
    let dry = Policy::per_hour("dry", 1).dry_run();
    for _ in 0..3 {
        assert!(limiter.check(&dry, "e").await.admitted);
    }
    Ok(())
}

/// A bucket is refilled at its rate.
async fn a_bucket_refills_at_its_rate(limiter: &Limiter) -> Result<()> {
    let fast = Policy::per_second("fast", 50).burst(1);
    assert!(limiter.check(&fast, "f").await.admitted);
    let denied = limiter.check(&fast, "f").await;
    if let Some(wait) = denied.retry_after().filter(|w| !w.is_zero()) {
        tokio::time::sleep(wait).await;
        assert!(limiter.check(&fast, "f").await.admitted, "a client that waits passes");
    }
    Ok(())
}

/// Odd keys.
async fn odd_keys_are_keys(limiter: &Limiter) -> Result<()> {
    let policy = Policy::per_hour("burst", 10).burst(3);
    let long = "x".repeat(10_000);
    for key in ["", "{braces}", "a b\r\nc", "ключ", &long] {
        assert!(limiter.check(&policy, key).await.admitted, "{key:.20}");
    }
    Ok(())
}

/// A tenant's own quota, replaced at run time; and no quota.
async fn a_key_has_a_quota_of_its_own(limiter: &Limiter) -> Result<()> {
    let policy = Policy::per_hour("burst", 10).burst(3);
    let tenants = Overrides::default();
    let api = Policy::per_hour("api", 1).overrides(&tenants);
    assert!(
        limiter.check(&api, "tenant").await.admitted
            && !limiter.check(&api, "tenant").await.admitted
    );
    tenants.replace([
        ("vip".to_owned(), Quota::unlimited()),
        ("big".to_owned(), Quota::new(3, Duration::from_hours(1))),
    ]);
    for _ in 0..10 {
        assert!(limiter.check_all(&[(&api, "vip", 5), (&policy, "vip-other", 0)]).await.admitted);
    }
    for left in [2, 1, 0] {
        assert_eq!(limiter.check(&api, "big").await.outcomes()[0].remaining(), left);
    }
    assert!(!limiter.check(&api, "big").await.admitted);
    Ok(())
}

async fn every_algorithm_is_exact(limiter: &Limiter) -> Result<()> {
    for algorithm in
        [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::Concurrency]
    {
        whatever_the_algorithm(limiter, algorithm).await?;
    }
    Ok(())
}

/// A period so long that no test sees two of them.
const AGE: Duration = Duration::from_hours(24 * 365);

async fn whatever_the_algorithm(limiter: &Limiter, algorithm: Algorithm) -> Result<()> {
    let policy = |name: &str, quota| {
        Policy::new(&format!("{name}-{algorithm:?}"), quota, AGE).algorithm(algorithm)
    };
    // Exact under concurrency.
    let shared = policy("shared", 100);
    let tasks: Vec<_> = (0..400)
        .map(|_| {
            let (limiter, shared) = (limiter.clone(), shared.clone());
            tokio::spawn(async move { limiter.check(&shared, "g").await })
        })
        .collect();
    let mut decisions = Vec::new();
    for task in tasks {
        decisions.push(task.await?);
    }
    assert_eq!(decisions.iter().filter(|d| d.admitted).count(), 100, "{algorithm:?}");

    // All or none, mixed with a bucket, whichever policy denies; a dry run denies no request.
    let (wide, tight, dry) = (policy("wide", 10), policy("tight", 1), policy("dry", 1).dry_run());
    let bucket = Policy::per_hour("mixed", 10);
    let key = format!("mixed-{algorithm:?}");
    let charges =
        [(&wide, key.as_str(), 1), (&bucket, &key, 1), (&dry, &key, 1), (&tight, &key, 1)];
    let held = limiter.check_all(&charges).await;
    assert!(held.admitted, "{held:?}");
    for _ in 0..5 {
        let denied = limiter.check_all(&charges).await;
        assert!(
            !denied.admitted
                && denied
                    .outcomes()
                    .iter()
                    .any(|o| !o.admitted() && o.policy().starts_with("tight")),
            "{denied:?}"
        );
    }
    let after = limiter.check_all(&charges[..3]).await;
    assert!(after.admitted);
    assert_eq!(
        (after.outcomes()[0].remaining(), after.outcomes()[1].remaining()),
        (8, 8),
        "{algorithm:?}"
    );
    Ok(())
}

async fn windows(limiter: &Limiter) -> Result<()> {
    for algorithm in [Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        let policy = Policy::new(&format!("window-{algorithm:?}"), 3, AGE).algorithm(algorithm);
        let first = limiter.check_all(&[(&policy, "w", 2)]).await;
        assert_eq!(first.outcomes()[0].remaining(), 1);
        assert_eq!(limiter.check(&policy, "w").await.outcomes()[0].remaining(), 0);
        let denied = limiter.check(&policy, "w").await;
        assert!(
            !denied.admitted
                && denied.retry_after().is_some_and(|w| w > Duration::ZERO && w <= AGE * 11 / 10),
            "{denied:?}"
        );
        assert_eq!(limiter.check_all(&[(&policy, "costly", 4)]).await.retry_after(), None);
        assert!(limiter.refund(&first, &[(&policy, "w", 2)]).await);
        assert!(limiter.check_all(&[(&policy, "w", 2)]).await.admitted);
        assert!(limiter.debit(&[(&policy, "debt", 5)]).await);
        assert!(!limiter.check(&policy, "debt").await.admitted);
        // A client that waits for the given time is admitted.
        let quick = Policy::new(&format!("quick-{algorithm:?}"), 2, Duration::from_millis(200))
            .algorithm(algorithm);
        limiter.check_all(&[(&quick, "w", 2)]).await;
        if let Some(wait) = limiter.check(&quick, "w").await.retry_after().filter(|w| !w.is_zero())
        {
            tokio::time::sleep(wait).await;
            assert!(limiter.check(&quick, "w").await.admitted);
        }
    }
    Ok(())
}

async fn places(limiter: &Limiter) -> Result<()> {
    let policy = Policy::concurrency("places", 2);
    let first = limiter.check(&policy, "p").await;
    let second = limiter.check(&policy, "p").await;
    assert!(first.admitted && second.admitted);
    let denied = limiter.check(&policy, "p").await;
    assert!(!denied.admitted && denied.retry_after().is_none());
    let clone = first.clone();
    drop((first, denied));
    assert!(!limiter.check(&policy, "p").await.admitted, "a clone holds it still");
    drop(clone);
    let held = eventually("the place to be free", async || {
        Some(limiter.check(&policy, "p").await).filter(|d| d.admitted)
    })
    .await?;
    drop((held, second));
    let both = eventually("both to be free", async || {
        Some(limiter.check_all(&[(&policy, "p", 2)]).await).filter(|d| d.admitted)
    })
    .await?;
    assert_eq!(both.outcomes()[0].remaining(), 0);
    Ok(())
}

#[cfg(feature = "redis")]
mod redis_alone {
    use super::*;
    use testkit::Redis;

    #[tokio::test]
    async fn one_round_trip_whatever_the_number_of_policies_and_keys_expire() -> Result<()> {
        let server = Redis::start().await?;
        let limiter =
            Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(2));
        let policies: Vec<_> =
            (0..5).map(|n| Policy::per_second(&format!("p{n}"), 1_000)).collect();
        let charges: Vec<_> = policies.iter().map(|p| (p, "k", 1)).collect();
        limiter.check_all(&charges).await;
        server.command(&["CONFIG", "RESETSTAT"]).await?;
        for _ in 0..10 {
            limiter.check_all(&charges).await;
        }
        assert_eq!(server.calls(&["evalsha", "eval"]).await?, 10);
        eventually("every key to expire", async || {
            (server.command(&["DBSIZE"]).await.ok()? == "0").then_some(())
        })
        .await
    }

    #[tokio::test]
    async fn two_processes_share_one_quota_and_scripts_survive_a_flush() -> Result<()> {
        let server = Redis::start().await?;
        let a =
            Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(2));
        let b =
            Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(2));
        let policy = Policy::per_hour("p", 10);
        let mut admitted = 0;
        for n in 0..30 {
            if n == 5 {
                server.command(&["SCRIPT", "FLUSH"]).await?;
            }
            admitted += u32::from(a.check(&policy, "k").await.admitted)
                + u32::from(b.check(&policy, "k").await.admitted);
        }
        assert_eq!(admitted, 10);
        Ok(())
    }
}
