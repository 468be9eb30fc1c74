//! Guards log-ins against guessing, without letting a stranger lock the owner out.
//!
//! Only failures count: an attempt is charged before the password is looked at (so that a thousand at once do not slip through together),
//! and given back when it fits. Failures are counted three ways, each over a short and a long time:
//!
//! | counted by | at most, by default | holds back |
//! | --- | --- | --- |
//! | account and address | 5 in 15 minutes, 20 a day | somebody who tries one account |
//! | address | 30 in 15 minutes, 200 a day | somebody who tries many accounts |
//! | account, from all addresses | 50 an hour, 200 a day | a botnet that tries one account |
//!
//! The third alone would be a weapon: who fails often enough locks the owner out. So a *known device*, one that has logged in to the account
//! before and shows it (by a cookie that only a log-in sets), is counted by itself: 10 in 15 minutes. Let the application say which it is.
//!
//! Accounts are kept as hashes of their trimmed, lower-case names. See OWASP's "Authentication Cheat Sheet" on throttling and on device
//! cookies.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use crate::limiter::Limiter;
use crate::policy::{OnError, Policy};

/// Who tries to log in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The account's name as typed.
    pub account: &'a str,
    /// The client's address, from [`ClientIp`](crate::client::ClientIp).
    pub address: &'a str,
    /// A device that has logged in to this account before: anything that tells it apart, after the application has verified it.
    pub known_device: Option<&'a str>,
}

/// The attempt is not to be looked at: too many have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; try again in {retry_after:?}")]
pub struct TooMany {
    /// When to try again, at the earliest.
    pub retry_after: Duration,
}

/// Guards log-ins; good for one-time codes and reset requests too, under a name of its own. Cloning costs a few reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_limit::{Limiter, LoginGuard, login::Attempt};
///
/// # async fn verify() -> bool { true }
/// let guard = LoginGuard::new(&Limiter::memory(), "login");
/// let attempt = Attempt { account: "ann@example.com", address: "203.0.113.7", known_device: None };
/// match guard.begin(attempt).await {
///     Err(too_many) => println!("429, Retry-After: {}", too_many.retry_after.as_secs()),
///     Ok(pending) => {
///         if verify().await {
///             pending.succeeded().await;
///         } // else: dropped, and counted
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LoginGuard {
    limiter: Limiter,
    pair: [Policy; 2],
    address: [Policy; 2],
    account: [Policy; 2],
    device: [Policy; 1],
}

/// An attempt that may be looked at. Unless told that it succeeded, it is a failure.
#[must_use = "look at the password, then say whether it fits"]
#[derive(Debug)]
pub struct Pending<'g> {
    guard: &'g LoginGuard,
    charges: Vec<(&'g Policy, String)>,
}

const QUARTER: Duration = Duration::from_mins(15);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

impl LoginGuard {
    /// With the defaults of the module's table. `name` sets guards apart: `login`, `otp`, `reset`.
    ///
    /// While the limits' store does not answer, each process counts by itself. It gets a second for its answer: a log-in is slow anyway,
    /// and under a storm of them so is everything else.
    pub fn new(limiter: &Limiter, name: &str) -> Self {
        let policy = |kind: &str, most: u32, period: Duration| {
            Policy::new(&format!("{name}-{kind}-{}", period.as_secs()), most, period).on_error(OnError::Local(1.0))
        };
        Self {
            limiter: limiter.patience(Duration::from_secs(1)),
            pair: [policy("pair", 5, QUARTER), policy("pair", 20, DAY)],
            address: [policy("address", 30, QUARTER), policy("address", 200, DAY)],
            account: [policy("account", 50, HOUR), policy("account", 200, DAY)],
            device: [policy("device", 10, QUARTER)],
        }
    }

    /// Asks whether an attempt may be looked at, and counts it as a failure until [`Pending::succeeded`].
    ///
    /// # Errors
    /// [`TooMany`]: answer without looking at the password, and the same for accounts that do not exist.
    pub async fn begin(&self, attempt: Attempt<'_>) -> Result<Pending<'_>, TooMany> {
        let account = hashed(&attempt.account.trim().to_lowercase());
        let charges: Vec<(&Policy, String)> = if let Some(device) = attempt.known_device {
            self.device.iter().map(|p| (p, format!("{account}+{}", hashed(device)))).collect()
        } else {
            let pair = self.pair.iter().map(|p| (p, format!("{account}+{}", attempt.address)));
            let address = self.address.iter().map(|p| (p, attempt.address.to_owned()));
            let of_all = self.account.iter().map(|p| (p, account.clone()));
            pair.chain(address).chain(of_all).collect()
        };
        let asked: Vec<_> = charges.iter().map(|(policy, key)| (*policy, key.as_str(), 1)).collect();
        let decision = self.limiter.check_all(&asked).await;
        if decision.admitted {
            Ok(Pending { guard: self, charges })
        } else {
            Err(TooMany { retry_after: decision.retry_after().unwrap_or(DAY) })
        }
    }
}

impl Pending<'_> {
    /// The password fits: nothing is counted.
    pub async fn succeeded(self) {
        let charges: Vec<_> = self.charges.iter().map(|(policy, key)| (*policy, key.as_str(), 1)).collect();
        self.guard.limiter.refund(&charges).await;
    }
}

/// Half of a SHA-256: names of accounts do not lie around in a store.
fn hashed(name: &str) -> String {
    BASE64URL_NOPAD.encode(&Sha256::digest(name.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from<'a>(account: &'a str, address: &'a str) -> Attempt<'a> {
        Attempt { account, address, known_device: None }
    }

    #[tokio::test]
    async fn a_botnet_is_bounded_and_the_owner_gets_in() {
        let guard = LoginGuard::new(&Limiter::memory(), "login");
        let mut looked_at = 0;
        for n in 0..200 {
            let address = format!("203.0.113.{n}");
            for _ in 0..10 {
                looked_at += u32::from(guard.begin(from("Ann@example.com ", &address)).await.is_ok());
            }
        }
        assert_eq!(looked_at, 50);
        // The owner at an unknown device is held back with the botnet; at a known one not.
        assert!(guard.begin(from("ann@example.com", "198.51.100.1")).await.is_err());
        let known = Attempt { known_device: Some("cookie"), ..from("ann@example.com", "198.51.100.1") };
        for _ in 0..50 {
            guard.begin(known).await.unwrap().succeeded().await;
        }
        // A stolen device cookie is bounded as well.
        let mut guesses = 0;
        while guard.begin(known).await.is_ok() {
            guesses += 1;
        }
        assert_eq!(guesses, 10);
    }

    #[tokio::test]
    async fn one_address_cannot_try_many_accounts() {
        let guard = LoginGuard::new(&Limiter::memory(), "login");
        let mut looked_at = 0;
        for n in 0..200 {
            looked_at += u32::from(guard.begin(from(&format!("user{n}"), "203.0.113.1")).await.is_ok());
        }
        assert_eq!(looked_at, 30);
        let error = guard.begin(from("user1", "203.0.113.1")).await.unwrap_err();
        assert!(error.retry_after > Duration::ZERO && error.retry_after <= QUARTER, "{error:?}");
    }

    #[tokio::test]
    async fn attempts_at_once_do_not_slip_through_together_and_successes_are_free() {
        let guard = LoginGuard::new(&Limiter::memory(), "login");
        let at_once = futures(&guard).await;
        assert_eq!(at_once, 5);
        for _ in 0..100 {
            guard.begin(from("ben", "203.0.113.2")).await.unwrap().succeeded().await;
        }
    }

    async fn futures(guard: &LoginGuard) -> usize {
        let mut pending = Vec::new();
        for _ in 0..100 {
            // None has been judged yet.
            pending.extend(guard.begin(from("ann", "203.0.113.1")).await);
        }
        pending.len()
    }
}
