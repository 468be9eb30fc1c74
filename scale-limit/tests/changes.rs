//! Changes under a limit: of its numbers, of the application's version, odd keys, costs and calls.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_limit::client::Key;
use scale_limit::overrides::{Overrides, Quota};
use scale_limit::policy::Algorithm;
use scale_limit::{Limiter, OnError, Policy};
use testkit::eventually;

#[cfg(feature = "redis")]
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
/// A period so long that no test sees two windows of it.
const YEAR: Duration = Duration::from_hours(24 * 365);
const DAY: Duration = Duration::from_hours(24);
const COUNTED: [Algorithm; 3] = [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow];

async fn admitted(limiter: &Limiter, policy: &Policy, key: &str, times: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..times {
        admitted += usize::from(limiter.check(policy, key).await.admitted);
    }
    admitted
}

/// Runs all cases; `keys` is the number of keys in one call.
async fn all(limiter: &Limiter, keys: usize) -> Result<()> {
    a_plan_upgrade_counts_at_once(limiter).await?;
    a_deploy_with_other_numbers_locks_nobody_out(limiter).await;
    what_was_used_stays_used_over_a_detour(limiter).await;
    one_name_in_two_algorithms_counts_apart(limiter).await;
    who_is_cleared_begins_anew(limiter).await?;
    keys_of_any_length_are_told_apart(limiter).await?;
    weights_are_one_place_each(limiter).await?;
    many_charges_in_one_call(limiter, keys).await;
    extremes_rule_as_they_say(limiter).await;
    who_waits_gets_in(limiter).await;
    Ok(())
}

async fn a_plan_upgrade_counts_at_once(limiter: &Limiter) -> Result<()> {
    for algorithm in COUNTED {
        let plans = Overrides::default();
        let policy = Policy::new(&format!("plan-{algorithm:?}"), 1_000, DAY)
            .algorithm(algorithm)
            .overrides(&plans);
        assert!(limiter.check_all(&[(&policy, "payer", 1_000)]).await.admitted);
        assert!(!limiter.check(&policy, "payer").await.admitted, "{algorithm:?}: used up");
        plans.replace([("payer".to_owned(), Quota::new(10_000, HOUR))]);
        let decision = limiter.check(&policy, "payer").await;
        assert!(decision.admitted, "{algorithm:?}: {decision:?}");
        assert!(decision.outcomes()[0].remaining() >= 8_990, "{algorithm:?}: {decision:?}");
        // After a downgrade a key is denied for no longer than the new period.
        plans.replace([("payer".to_owned(), Quota::new(5, HOUR))]);
        let decision = limiter.check(&policy, "payer").await;
        let wait = decision.retry_after().unwrap();
        assert!(!decision.admitted && wait <= HOUR * 11 / 10, "{algorithm:?}: {decision:?}");
        // No limit, and then a limit again.
        plans.replace([("payer".to_owned(), Quota::unlimited())]);
        assert!(limiter.check(&policy, "payer").await.admitted);
        plans.replace([("payer".to_owned(), Quota::new(5, HOUR))]);
        assert!(!limiter.check(&policy, "payer").await.admitted);
    }
    Ok(())
}

/// A temporary change to a smaller quota forgets no usage.
async fn what_was_used_stays_used_over_a_detour(limiter: &Limiter) {
    for algorithm in COUNTED {
        let policy = |quota, period| {
            Policy::new(&format!("detour-{algorithm:?}"), quota, period).algorithm(algorithm)
        };
        assert!(limiter.check_all(&[(&policy(1_000, YEAR), "k", 900)]).await.admitted);
        assert!(!limiter.check(&policy(5, YEAR), "k").await.admitted);
        let left = limiter.check(&policy(1_000, YEAR * 2), "k").await.outcomes()[0].remaining();
        assert_eq!(left, 99, "{algorithm:?}");
        // A denied call that charges several shapes of one policy leaves no charge.
        let full = Policy::per_hour(&format!("full-{algorithm:?}"), 1);
        limiter.check(&full, "k").await;
        let (a, b) = (policy(100, YEAR), policy(100, YEAR * 3));
        for _ in 0..3 {
            assert!(
                !limiter.check_all(&[(&a, "u", 30), (&b, "u", 1), (&full, "k", 1)]).await.admitted
            );
        }
        assert_eq!(limiter.check(&b, "u").await.outcomes()[0].remaining(), 99, "{algorithm:?}");
    }
}

/// Both versions of the application run for a while, then one of them.
async fn a_deploy_with_other_numbers_locks_nobody_out(limiter: &Limiter) {
    for algorithm in COUNTED {
        let old = Policy::new(&format!("deploy-{algorithm:?}"), 10, YEAR).algorithm(algorithm);
        let new =
            Policy::new(&format!("deploy-{algorithm:?}"), 100, YEAR * 10).algorithm(algorithm);
        assert_eq!(admitted(limiter, &old, "user", 7).await, 7);
        assert!(limiter.check(&new, "user").await.admitted, "{algorithm:?}");
        assert!(limiter.check(&old, "user").await.admitted, "{algorithm:?}");
        // Alternating: each admits no more than it would alone, and counts the requests that the
        // other admits.
        let (mut by_old, mut by_new) = (8, 1);
        for _ in 0..150 {
            by_new += usize::from(limiter.check(&new, "user").await.admitted);
            by_old += usize::from(limiter.check(&old, "user").await.admitted);
        }
        assert!(by_old <= 11 && by_new <= 101, "{algorithm:?}: {by_old} and {by_new}");
        assert!(by_old + by_new <= 101, "{algorithm:?}: {by_old} and {by_new}");
        for (policy, period) in [(&old, YEAR), (&new, YEAR * 10)] {
            let denied = limiter.check(policy, "user").await;
            assert!(
                !denied.admitted && denied.retry_after().unwrap() <= period * 11 / 10,
                "{algorithm:?}: {denied:?}"
            );
        }
        // A refund is visible to both.
        assert!(limiter.check(&old, "back").await.admitted);
        let decision = limiter.check(&new, "back").await;
        assert!(limiter.refund(&decision, &[(&new, "back", 1)]).await);
        assert_eq!(limiter.check(&old, "back").await.outcomes()[0].remaining(), 8, "{algorithm:?}");
        assert_eq!(
            limiter.check(&new, "back").await.outcomes()[0].remaining(),
            97,
            "{algorithm:?}"
        );
        // Both in one call, and undone when a third policy denies.
        let tight = Policy::new(&format!("tight-{algorithm:?}"), 1, HOUR).algorithm(algorithm);
        let both = [(&old, "pair", 1), (&new, "pair", 1), (&tight, "pair", 1)];
        assert!(limiter.check_all(&both).await.admitted);
        for _ in 0..5 {
            assert!(!limiter.check_all(&both).await.admitted);
        }
        assert_eq!(limiter.check(&old, "pair").await.outcomes()[0].remaining(), 7, "{algorithm:?}");
        assert_eq!(
            limiter.check(&new, "pair").await.outcomes()[0].remaining(),
            96,
            "{algorithm:?}"
        );
    }
}

async fn one_name_in_two_algorithms_counts_apart(limiter: &Limiter) {
    let policies = COUNTED.map(|algorithm| Policy::per_hour("same", 1).algorithm(algorithm));
    let mut sum = 0;
    for _ in 0..20 {
        for policy in &policies {
            sum += admitted(limiter, policy, "k", 1).await;
        }
    }
    assert_eq!(sum, 3, "once each");
}

async fn who_is_cleared_begins_anew(limiter: &Limiter) -> Result<()> {
    for algorithm in COUNTED {
        let policy = Policy::new(&format!("clear-{algorithm:?}"), 2, HOUR).algorithm(algorithm);
        for key in ["k", &"long".repeat(100), &Key::secret("token")] {
            assert_eq!(admitted(limiter, &policy, key, 5).await, 2);
            limiter.clear(&policy, key).await?;
            assert_eq!(admitted(limiter, &policy, key, 5).await, 2, "{algorithm:?}");
        }
    }
    let leased = Policy::new("clear-leased", 2, HOUR).leased(Duration::from_millis(100));
    assert_eq!(admitted(limiter, &leased, "k", 5).await, 2);
    limiter.clear(&leased, "k").await?;
    assert_eq!(admitted(limiter, &leased, "k", 5).await, 2);
    Ok(())
}

async fn keys_of_any_length_are_told_apart(limiter: &Limiter) -> Result<()> {
    let policy = Policy::per_hour("api", 5).on_error(OnError::Deny);
    // As access tokens are: equal for a long prefix, then different.
    let token = |user: usize| format!("Bearer eyJhbGciOiJSUzI1NiJ9.{}.{user}", "e30".repeat(100));
    for user in 0..20 {
        assert!(limiter.check(&policy, &token(user)).await.admitted, "user {user}");
        assert!(
            limiter.check(&policy, &Key::secret(&user.to_string())).await.admitted,
            "user {user}"
        );
    }
    assert_eq!(admitted(limiter, &policy, &token(0), 10).await, 4);
    let other = Policy::per_hour("other", 5).on_error(OnError::Deny);
    for key in ["", "\0", "#", "{", "}", "{}", "}{", "%", ":", "a\r\nb", "größe"] {
        let both = [(&policy, key, 1), (&other, key, 1)];
        for n in 0..6 {
            assert_eq!(limiter.check_all(&both).await.admitted, n < 5, "{key:?}");
        }
    }
    // A tenant's own quota is found by the original key.
    let plans = Overrides::default();
    let tokens = Policy::per_hour("plans", 1).overrides(&plans);
    plans.replace([("sk_live".to_owned(), Quota::new(3, HOUR)), (token(7), Quota::new(4, HOUR))]);
    assert_eq!(admitted(limiter, &tokens, &Key::secret("sk_live"), 9).await, 3);
    assert_eq!(admitted(limiter, &tokens, &token(7), 9).await, 4);
    Ok(())
}

async fn weights_are_one_place_each(limiter: &Limiter) -> Result<()> {
    let bytes = Policy::concurrency("upload-bytes", 1_000_000_000);
    let held = limiter.check_all(&[(&bytes, "all", 999_999_000)]).await;
    assert!(held.admitted && held.outcomes()[0].remaining() == 1_000);
    let rest = limiter.check_all(&[(&bytes, "all", 1_000)]).await;
    assert!(rest.admitted && !limiter.check(&bytes, "all").await.admitted);
    drop(held);
    eventually("the large one to be free", async || {
        limiter.check_all(&[(&bytes, "all", 999_999_000)]).await.admitted.then_some(())
    })
    .await?;
    drop(rest);
    eventually("all to be free", async || {
        limiter.check_all(&[(&bytes, "all", 1_000_000_000)]).await.admitted.then_some(())
    })
    .await?;
    // `clear` frees no permits: they belong to their holders.
    let held = limiter.check_all(&[(&bytes, "cleared", 1_000_000_000)]).await;
    limiter.clear(&bytes, "cleared").await?;
    assert!(held.admitted && !limiter.check(&bytes, "cleared").await.admitted);
    // If one of several policies denies, no permit is held.
    let (one, two) = (Policy::concurrency("one", 1), Policy::concurrency("two", 5));
    let first = limiter.check_all(&[(&two, "k", 2), (&one, "k", 1)]).await;
    assert!(first.admitted);
    for _ in 0..5 {
        assert!(!limiter.check_all(&[(&two, "k", 2), (&one, "k", 1)]).await.admitted);
    }
    assert!(limiter.check_all(&[(&two, "k", 3)]).await.admitted);
    Ok(())
}

async fn many_charges_in_one_call(limiter: &Limiter, keys: usize) {
    let policies: Vec<Policy> =
        (0..1_200).map(|n| Policy::per_hour(&format!("n{n}"), 2).on_error(OnError::Deny)).collect();
    let charges: Vec<_> = policies.iter().map(|policy| (policy, "k", 1)).collect();
    let limiter = limiter.store_timeout(Duration::from_secs(30));
    assert!(limiter.check_all(&charges).await.admitted);
    assert!(limiter.check_all(&charges).await.admitted);
    assert!(!limiter.check_all(&charges).await.admitted);
    let policy = Policy::per_hour("many", 1).on_error(OnError::Deny);
    let keys: Vec<String> = (0..keys).map(|n| format!("many{n}")).collect();
    let charges: Vec<_> = keys.iter().map(|key| (&policy, key.as_str(), 1)).collect();
    assert!(limiter.check_all(&charges).await.admitted);
    assert!(!limiter.check_all(&charges).await.admitted);
}

/// Numbers at the limits of their range and beyond: a denied request is denied, and other keys are
/// not affected.
async fn extremes_rule_as_they_say(limiter: &Limiter) {
    let neighbour = Policy::per_hour("neighbour", 1_000_000).on_error(OnError::Deny);
    for algorithm in COUNTED {
        for (quota, period) in [
            (1, Duration::MAX),
            (1, DAY * 3_650),
            (0, Duration::ZERO),
            (u32::MAX - 1, Duration::from_millis(1)),
        ] {
            let policy = Policy::new(
                &format!("extreme-{algorithm:?}-{quota}-{}", period.as_secs()),
                quota,
                period,
            )
            .algorithm(algorithm)
            .on_error(OnError::Deny);
            assert!(limiter.check(&policy, "k").await.admitted, "{policy:?}");
            limiter.debit(&[(&policy, "k", u32::MAX)]).await;
            if period >= DAY {
                let denied = limiter.check(&policy, "k").await;
                assert!(
                    !denied.admitted && denied.retry_after().unwrap() >= DAY,
                    "{algorithm:?} {quota} in {period:?}: {denied:?}"
                );
            }
            assert!(!limiter.check_all(&[(&policy, "k", u32::MAX)]).await.admitted, "{policy:?}");
            assert!(limiter.check(&neighbour, "n").await.admitted, "beside {policy:?}");
        }
    }
    let leased =
        Policy::per_second("long lease", 100).leased(Duration::MAX).on_error(OnError::Deny);
    assert!(limiter.check(&leased, "k").await.admitted);
}

async fn who_waits_gets_in(limiter: &Limiter) {
    let policy = Policy::per_second("wait", 50).burst(1);
    let start = std::time::Instant::now();
    for _ in 0..6 {
        assert!(limiter.acquire(&policy, "k", Duration::from_secs(20)).await.admitted);
    }
    assert!(start.elapsed() >= Duration::from_millis(99), "five intervals: {:?}", start.elapsed());
    let slow = Policy::per_hour("wait-long", 1);
    assert!(limiter.check(&slow, "k").await.admitted);
    let start = std::time::Instant::now();
    let denied = limiter.acquire(&slow, "k", Duration::from_secs(20)).await;
    assert!(
        !denied.admitted && start.elapsed() < Duration::from_secs(10),
        "it is known to be too long"
    );
    let places = Policy::concurrency("wait-places", 1);
    let held = limiter.check(&places, "k").await;
    let waiting = limiter.acquire(&places, "k", Duration::from_secs(20));
    let ((), admitted) = tokio::join!(async { drop(held) }, waiting);
    assert!(admitted.admitted);
}

#[tokio::test]
async fn memory() -> Result<()> {
    all(&Limiter::memory(), 9_000).await
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use testkit::{Redis, RedisCluster};

    async fn patient(url: &str) -> Result<Limiter> {
        Ok(Limiter::connect(url, "test").await?.store_timeout(Duration::from_secs(5)))
    }

    #[tokio::test]
    async fn standalone() -> Result<()> {
        let server = Redis::start().await?;
        all(&patient(&server.url()).await?, 9_000).await?;
        // Secret and long keys cannot be read in Redis.
        let keys = server.command(&["KEYS", "*"]).await?;
        assert!(
            !keys.contains("Bearer") && !keys.contains("sk_live") && !keys.contains("token"),
            "{keys}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn cluster() -> Result<()> {
        let cluster = RedisCluster::start().await?;
        all(&patient(&cluster.url()).await?, 1_000).await
    }

    #[tokio::test]
    async fn no_key_outlives_twice_its_period() -> Result<()> {
        let server = Redis::start().await?;
        let limiter = patient(&server.url()).await?;
        for algorithm in COUNTED {
            let periods = [MINUTE, HOUR, Duration::from_secs(1), Duration::from_mins(10), MINUTE];
            for (n, period) in periods.into_iter().enumerate() {
                let policy = Policy::new("ttl", 10, period).algorithm(algorithm);
                limiter.check(&policy, "k").await;
                limiter.debit(&[(&policy, "k", 1_000_000)]).await;
                let name = match algorithm {
                    Algorithm::SlidingWindow => "test:limit:{k}:ttl:w11",
                    Algorithm::FixedWindow => "test:limit:{k}:ttl:w1",
                    _ => "test:limit:{k}:buckets",
                };
                let longest = periods[..=n].iter().max().unwrap().as_millis() as i64;
                let life: i64 = server.command(&["PTTL", name]).await?.parse()?;
                assert!(
                    life > 0 && life <= longest * 2 + 1,
                    "{algorithm:?}: {life} ms after {period:?}"
                );
            }
        }
        Ok(())
    }

    /// Random charges of several policies, each in several shapes and algorithms, and debits, in
    /// sequence: the script decides as the in-process algorithms do. Periods are so long that time
    /// does not matter.
    #[tokio::test]
    async fn the_script_rules_as_the_algorithms_in_process() -> Result<()> {
        let server = Redis::start().await?;
        for seed in 0..60 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let (memory, shared) = (Limiter::memory(), patient(&server.url()).await?);
            // The names are new in each round.
            let name = |n: usize| format!("{seed}-{n}");
            let shapes: Vec<Policy> = (0..12)
                .map(|n| {
                    let algorithm = COUNTED[if seed % 3 == 0 { 0 } else { n % 3 }];
                    let quota = dice.u32(4..30);
                    // All windows have the same length, so that no usage leaves them when it is
                    // recounted.
                    let period = if algorithm == Algorithm::Gcra {
                        YEAR * 10
                    } else {
                        YEAR * [1, 10][dice.usize(..2)]
                    };
                    let policy = Policy::new(&name(n % 4), quota, period).algorithm(algorithm);
                    if dice.bool() { policy.dry_run() } else { policy }
                })
                .collect();
            for step in 0..60 {
                let count = dice.usize(1..5);
                let keys: Vec<String> =
                    (0..count).map(|_| format!("{seed}-k{}", dice.usize(..2))).collect();
                let charges: Vec<(&Policy, &str, u32)> = keys
                    .iter()
                    .map(|key| (&shapes[dice.usize(..shapes.len())], key.as_str(), dice.u32(1..5)))
                    .collect();
                let mut decisions = Vec::new();
                for limiter in [&memory, &shared] {
                    let charges = &charges[..];
                    // Once, so that no debt exceeds the maximum.
                    if step == 26 {
                        assert!(limiter.debit(charges).await);
                        continue;
                    }
                    let decision = limiter.check_all(charges).await;
                    let seen: Vec<_> =
                        decision.outcomes().iter().map(|o| (o.admitted(), o.remaining())).collect();
                    decisions.push((decision.admitted, seen));
                }
                if let [first, second] = &decisions[..] {
                    assert_eq!(first.0, second.0, "seed {seed}, step {step}: {charges:?}");
                    // A denial may be a remembered one: its remaining quota is that of an earlier
                    // time.
                    assert!(
                        !first.0 || first.1 == second.1,
                        "seed {seed}, step {step}: {decisions:?} {charges:?}"
                    );
                }
            }
        }
        Ok(())
    }

    /// A call that Redis refuses does not count as an outage, and does not affect other charges in
    /// the same call.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_refused_call_stands_alone() -> Result<()> {
        let server = Redis::start().await?;
        let limiter = patient(&server.url()).await?;
        // A foreign key has the name of a permit key.
        server.command(&["SET", "test:limit:{bad}:places:held", "x"]).await?;
        let bad = Policy::concurrency("places", 5);
        let wide = Policy::per_hour("wide", 1_000_000).on_error(OnError::Deny);
        let mut denied = 0;
        for _ in 0..20 {
            let tasks: Vec<_> = (0..20)
                .map(|n| {
                    let (limiter, bad, wide) = (limiter.clone(), bad.clone(), wide.clone());
                    tokio::spawn(async move {
                        let broken = limiter.check(&bad, "bad").await.admitted;
                        (broken, limiter.check(&wide, &n.to_string()).await.admitted)
                    })
                })
                .collect();
            for task in tasks {
                denied += u32::from(!task.await?.1);
            }
        }
        assert_eq!(denied, 0, "of 400 beside it");
        Ok(())
    }

    /// A store that takes longer than half a second, with a longer `store_timeout`.
    #[tokio::test]
    async fn patience_is_honoured() -> Result<()> {
        let server = Redis::start().await?;
        let limiter = patient(&server.url()).await?;
        let policy = Policy::per_hour("p", 5).on_error(OnError::Deny);
        assert!(limiter.check(&policy, "k").await.admitted);
        let slow = server.command(&["DEBUG", "SLEEP", "1.2"]);
        let check = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            limiter.check(&policy, "k").await
        };
        let (_, decision) = tokio::join!(slow, check);
        assert!(decision.admitted, "{decision:?}");
        assert_eq!(decision.outcomes()[0].remaining(), 3, "by the store itself");
        Ok(())
    }
}
