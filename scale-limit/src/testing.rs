//! Contract of a store, for the tests of stores written outside of this crate. Feature `testing`.
//!
//! [`store_contract!`](crate::store_contract) makes a `#[tokio::test]` of each case, for limiters
//! that an async function returns. The crate that uses it needs `tokio` with the features `macros`
//! and `rt-multi-thread`.
//!
//! ```
//! # #[cfg(test)] mod tests {
//! use scale_limit::Limiter;
//!
//! /// Returns the limiters of two processes on one store, without another case's data, and a
//! /// guard: what must live as long as they do, for example a temporary folder.
//! async fn connect(case: &str) -> std::io::Result<([Limiter; 2], ())> {
//!     let limiter = Limiter::memory();
//!     Ok(([limiter.clone(), limiter], ()))
//! }
//!
//! scale_limit::store_contract!(my_store, crate::connect);
//! # }
//! ```
//!
//! A case that does not hold panics.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    reason = "a case that fails panics or returns its store's error"
)]

use std::time::Duration;

use crate::limiter::Limiter;
use crate::overrides::{Overrides, Quota};
use crate::policy::{Algorithm, Policy};

/// Result of a case.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Makes a module of tests, one for each case, for a store of your own. The second argument is the
/// path of an async function from the name of the case to the limiters of two processes, and a
/// guard of what they need.
#[macro_export]
macro_rules! store_contract {
    ($module:ident, $connect:path) => {
        $crate::store_contract! { @cases $module, $connect;
            a_bucket_empties,
            all_policies_are_charged_or_none,
            a_request_has_a_cost,
            refunded_units_can_be_taken_again,
            restored_units_are_not_refunded,
            debited_units_are_owed,
            a_dry_run_admits,
            a_bucket_refills_at_its_rate,
            odd_keys_are_keys,
            a_key_has_a_quota_of_its_own,
            every_algorithm_is_exact,
            windows_count_and_tell_when_they_admit,
            permits_are_held_until_dropped,
        }
    };
    (@cases $module:ident, $connect:path; $($case:ident),* $(,)?) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let (limiters, _guard) = $connect(stringify!($case)).await.expect("a store");
                    let [limiter, _] = $crate::testing::patient(limiters);
                    $crate::testing::$case(&limiter).await.expect("the case failed");
                }
            )*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn two_processes_share_one_quota() {
                let (limiters, _guard) =
                    $connect("two_processes_share_one_quota").await.expect("a store");
                let limiters = $crate::testing::patient(limiters);
                let case = $crate::testing::two_processes_share_one_quota(&limiters);
                case.await.expect("the case failed");
            }
        }
    };
}

/// Returns handles that wait longer: a busy machine must not look like an unresponsive store.
pub fn patient(limiters: [Limiter; 2]) -> [Limiter; 2] {
    limiters.map(|limiter| limiter.store_timeout(Duration::from_secs(5)))
}

/// Waits for a condition, at most 10 s.
async fn eventually<T>(what: &str, condition: impl AsyncFn() -> Option<T>) -> Result<T> {
    let wait = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let late = |_| format!("{what}: not within 10 s").into();
    tokio::time::timeout(Duration::from_secs(10), wait).await.map_err(late)
}

/// An empty bucket denies, with the time to retry after.
pub async fn a_bucket_empties(limiter: &Limiter) -> Result {
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
pub async fn all_policies_are_charged_or_none(limiter: &Limiter) -> Result {
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
pub async fn a_request_has_a_cost(limiter: &Limiter) -> Result {
    let costly = Policy::per_hour("costly", 10);
    assert_eq!(limiter.check_all(&[(&costly, "c", 7)]).await.outcomes()[0].remaining(), 3);
    assert!(!limiter.check_all(&[(&costly, "c", 4)]).await.admitted);
    assert!(limiter.check_all(&[(&costly, "c", 3)]).await.admitted);
    assert_eq!(limiter.check_all(&[(&costly, "d", 11)]).await.retry_after(), None);
    Ok(())
}

/// Refunded units can be taken again, and a bucket never exceeds its capacity.
pub async fn refunded_units_can_be_taken_again(limiter: &Limiter) -> Result {
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
pub async fn restored_units_are_not_refunded(limiter: &Limiter) -> Result {
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
pub async fn debited_units_are_owed(limiter: &Limiter) -> Result {
    let owed = Policy::per_hour("owed", 10);
    assert!(limiter.check(&owed, "o").await.admitted);
    assert!(limiter.debit(&[(&owed, "o", 29)]).await);
    let wait = limiter.check(&owed, "o").await.retry_after().unwrap();
    // But never for more than two periods.
    assert!(wait > Duration::from_hours(1) && wait <= Duration::from_hours(2), "{wait:?}");
    Ok(())
}

/// A dry run counts and admits.
pub async fn a_dry_run_admits(limiter: &Limiter) -> Result {
    let dry = Policy::per_hour("dry", 1).dry_run();
    for _ in 0..3 {
        assert!(limiter.check(&dry, "e").await.admitted);
    }
    Ok(())
}

/// A bucket is refilled at its rate.
pub async fn a_bucket_refills_at_its_rate(limiter: &Limiter) -> Result {
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
pub async fn odd_keys_are_keys(limiter: &Limiter) -> Result {
    let policy = Policy::per_hour("burst", 10).burst(3);
    let long = "x".repeat(10_000);
    for key in ["", "{braces}", "a b\r\nc", "ключ", &long] {
        assert!(limiter.check(&policy, key).await.admitted, "{key:.20}");
    }
    Ok(())
}

/// A tenant's own quota, replaced at run time; and no quota.
pub async fn a_key_has_a_quota_of_its_own(limiter: &Limiter) -> Result {
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

/// Each algorithm admits its quota under concurrency, and charges all policies or none.
pub async fn every_algorithm_is_exact(limiter: &Limiter) -> Result {
    for algorithm in
        [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::Concurrency]
    {
        one_algorithm_is_exact(limiter, algorithm).await?;
    }
    Ok(())
}

/// A period so long that no test sees two of them.
const AGE: Duration = Duration::from_hours(24 * 365);

async fn one_algorithm_is_exact(limiter: &Limiter, algorithm: Algorithm) -> Result {
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

/// Windows refund, owe, and say when they admit again.
pub async fn windows_count_and_tell_when_they_admit(limiter: &Limiter) -> Result {
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

/// Permits are held until the decision and its clones are dropped.
pub async fn permits_are_held_until_dropped(limiter: &Limiter) -> Result {
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

/// Two processes share one quota, exactly.
pub async fn two_processes_share_one_quota(limiters: &[Limiter; 2]) -> Result {
    let policy = Policy::per_hour("two", 50);
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let (limiter, policy) = (limiters[n % 2].clone(), policy.clone());
            tokio::spawn(async move { limiter.check(&policy, "k").await.admitted })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += u32::from(task.await?);
    }
    assert_eq!(admitted, 50);
    // What one clears or releases is free for the other; a denial is remembered for a second.
    limiters[0].clear(&policy, "k").await?;
    eventually("it to be cleared", async || {
        Some(limiters[1].check(&policy, "k").await).filter(|decision| decision.admitted)
    })
    .await?;
    let one = Policy::concurrency("one", 1);
    let held = limiters[0].check(&one, "k").await;
    assert!(held.admitted && !limiters[1].check(&one, "k").await.admitted);
    drop(held);
    eventually("the permit to be free", async || {
        Some(limiters[1].check(&one, "k").await).filter(|decision| decision.admitted)
    })
    .await?;
    Ok(())
}
