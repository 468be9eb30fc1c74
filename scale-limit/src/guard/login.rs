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
//! A success gives back what its attempt was charged, less what had flowed back meanwhile.
//!
//! Accounts are kept as hashes of their trimmed, lower-case names. See OWASP's "Authentication Cheat Sheet" on throttling and on device
//! cookies.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use crate::decision::Decision;
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

/// Guards log-ins, and with [other limits](Limits::one_time_codes) one-time codes. Cloning costs a few reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_limit::{Limiter, LoginGuard, guard::login::Attempt};
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
    pair: Vec<Policy>,
    address: Vec<Policy>,
    account: Vec<Policy>,
    device: Vec<Policy>,
}

/// How many failures in which time, for each way of counting. An empty list does not count that way.
///
/// ```
/// use std::time::Duration;
/// use scale_limit::{Limiter, LoginGuard, guard::login::Limits};
///
/// let limits = Limits { account: vec![(100, Duration::from_secs(3600))], ..Limits::default() };
/// let guard = LoginGuard::with_limits(&Limiter::memory(), "login", &limits);
/// ```
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of one account from one address.
    pub pair: Vec<(u32, Duration)>,
    /// From one address.
    pub address: Vec<(u32, Duration)>,
    /// Of one account, from all addresses but known devices.
    pub account: Vec<(u32, Duration)>,
    /// Of one account from one known device, in place of all others. Empty: a known device is an address like any other.
    pub device: Vec<(u32, Duration)>,
}

impl Default for Limits {
    /// The module's table.
    fn default() -> Self {
        Self {
            pair: vec![(5, QUARTER), (20, DAY)],
            address: vec![(30, QUARTER), (200, DAY)],
            account: vec![(50, HOUR), (200, DAY)],
            device: vec![(10, QUARTER)],
        }
    }
}

impl Limits {
    /// For one-time codes, asked for after the password: 10 failures of an account in 15 minutes and 30 a day, from wherever. Who gets that
    /// far knows the password, so this locks out nobody but its owner and its thief; with six digits and three codes valid at a time, 30
    /// guesses a day find one in 30 years.
    pub fn one_time_codes() -> Self {
        Self { pair: Vec::new(), account: vec![(10, QUARTER), (30, DAY)], device: Vec::new(), ..Self::default() }
    }
}

/// An attempt that may be looked at. Unless told that it succeeded, it is a failure.
#[must_use = "look at the password, then say whether it fits"]
#[derive(Debug)]
pub struct Pending<'g> {
    guard: &'g LoginGuard,
    decision: Decision,
    charges: Vec<(&'g Policy, String)>,
}

const QUARTER: Duration = Duration::from_mins(15);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

impl LoginGuard {
    /// With the defaults of the module's table. `name` sets guards apart: `login`, `api-login`.
    ///
    /// While the limits' store does not answer, each process counts by itself. It gets a second for its answer: a log-in is slow anyway,
    /// and under a storm of them so is everything else.
    pub fn new(limiter: &Limiter, name: &str) -> Self {
        Self::with_limits(limiter, name, &Limits::default())
    }

    /// With limits of one's own, or [`Limits::one_time_codes`].
    pub fn with_limits(limiter: &Limiter, name: &str, limits: &Limits) -> Self {
        Self {
            limiter: limiter.patience(PATIENCE),
            pair: policies(name, "pair", &limits.pair),
            address: policies(name, "address", &limits.address),
            account: policies(name, "account", &limits.account),
            device: policies(name, "device", &limits.device),
        }
    }

    /// Asks whether an attempt may be looked at, and counts it as a failure until [`Pending::succeeded`].
    ///
    /// # Errors
    /// [`TooMany`]: answer without looking at the password, and the same for accounts that do not exist.
    pub async fn begin(&self, attempt: Attempt<'_>) -> Result<Pending<'_>, TooMany> {
        let account = hashed(&attempt.account.trim().to_lowercase());
        let known_device = attempt.known_device.filter(|_| !self.device.is_empty());
        let charges: Vec<(&Policy, String)> = if let Some(device) = known_device {
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
            Ok(Pending { guard: self, decision, charges })
        } else {
            Err(TooMany { retry_after: decision.retry_after().unwrap_or(DAY) })
        }
    }
}

impl Pending<'_> {
    /// The password fits: nothing is counted.
    pub async fn succeeded(self) {
        let charges: Vec<_> = self.charges.iter().map(|(policy, key)| (*policy, key.as_str(), 1)).collect();
        self.guard.limiter.refund(&self.decision, &charges).await;
    }
}

/// Bounds requests that send something, whatever becomes of them: mails to reset a password, codes by SMS. Cloning costs a few reference
/// counts.
///
/// An account gets 3 an hour and 10 a day, an address asks for 10 an hour and 50 a day. Answer the same when it refuses, or strangers learn
/// which accounts exist and which have been asked for.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_limit::{Limiter, guard::login::SendGuard};
///
/// let resets = SendGuard::new(&Limiter::memory(), "reset");
/// for _ in 0..3 {
///     assert!(resets.allow("ann@example.com", "203.0.113.7").await.is_ok());
/// }
/// assert!(resets.allow("Ann@Example.com ", "198.51.100.1").await.is_err());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SendGuard {
    limiter: Limiter,
    account: Vec<Policy>,
    address: Vec<Policy>,
}

impl SendGuard {
    /// `name` sets guards apart: `reset`, `sms`.
    pub fn new(limiter: &Limiter, name: &str) -> Self {
        Self {
            limiter: limiter.patience(PATIENCE),
            account: policies(name, "account", &[(3, HOUR), (10, DAY)]),
            address: policies(name, "address", &[(10, HOUR), (50, DAY)]),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// [`TooMany`]: send nothing, and answer as if it had been sent.
    pub async fn allow(&self, account: &str, address: &str) -> Result<(), TooMany> {
        let account = hashed(&account.trim().to_lowercase());
        let accounts = self.account.iter().map(|p| (p, account.as_str(), 1));
        let charges: Vec<_> = accounts.chain(self.address.iter().map(|p| (p, address, 1))).collect();
        let decision = self.limiter.check_all(&charges).await;
        if decision.admitted { Ok(()) } else { Err(TooMany { retry_after: decision.retry_after().unwrap_or(DAY) }) }
    }
}

/// How long the limits' store may take.
const PATIENCE: Duration = Duration::from_secs(1);

fn policies(name: &str, kind: &str, limits: &[(u32, Duration)]) -> Vec<Policy> {
    let policy = |(most, period): &(u32, Duration)| Policy::new(&format!("{name}-{kind}-{}", period.as_secs()), *most, *period);
    limits.iter().map(|limit| policy(limit).on_error(OnError::Local(1.0))).collect()
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
    async fn one_time_codes_are_bounded_from_wherever() {
        let guard = LoginGuard::with_limits(&Limiter::memory(), "code", &Limits::one_time_codes());
        let mut looked_at = 0;
        for n in 0..100 {
            let address = format!("203.0.113.{n}");
            let attempt = Attempt { account: "ann", address: &address, known_device: Some("cookie") };
            looked_at += u32::from(guard.begin(attempt).await.is_ok());
        }
        assert_eq!(looked_at, 10);
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
