//! Guards log-ins against guessing, without letting a stranger lock the owner out.
//!
//! Only failures count: an attempt is charged before the password is looked at (so that a thousand at once do not slip through together),
//! and given back when it fits, less what had flowed back meanwhile. Failures are counted in several ways, each over several times:
//!
//! | counted by | at most, by default | holds back |
//! | --- | --- | --- |
//! | account and address | 3 in 30 seconds, 5 in 15 minutes, 20 a day | somebody who tries one account |
//! | address | 30 in 15 minutes, 200 a day | somebody who tries many accounts |
//! | IPv6 /56 | 60 in 15 minutes, 400 a day | who has more than one /64 |
//! | IPv6 /48 | 120 in 15 minutes, 800 a day | who has more than that |
//! | account, from all addresses | 50 an hour, 200 a day | a botnet that tries one account |
//! | account and known device | 10 in 15 minutes, 50 a day, in place of all others | whoever has stolen the device's cookie |
//! | tries at once, of all | 100; of known devices another 100 | a storm |
//!
//! So delays rise: after three failures of an account from one address tries come ten seconds apart, after five three minutes, after
//! twenty over an hour. What an attacker gets, all in all:
//!
//! | with | tries of one account | tries of all accounts |
//! | --- | --- | --- |
//! | one address (IPv4, or IPv6 /64) | 40 on the first day, then 20 a day | 400 on the first day, then 200 a day |
//! | one IPv6 /56 | 400 on the first day, then 200 a day | 800, then 400 a day |
//! | one IPv6 /48 | the same | 1,600, then 800 a day |
//! | N addresses in as many /48s | the same | N × 400, then N × 200 a day |
//!
//! (A limit of 200 a day is a bucket: 200 at once, and 200 that flow back within the first day.)
//!
//! Counting by account alone would be a weapon: who fails often enough locks the owner out. So a *known device*, one that has logged in to
//! the account before and shows it (by a cookie that only a log-in sets), is counted by itself. For the owner at a new device
//! [`TooMany::because`] is [`Counted::Account`]: offer a link by e-mail then, bounded by a [`SendGuard`]. Who opens it has shown to be the
//! owner; make the device known, and the next attempt is counted by itself.
//!
//! Accounts are kept as keyed hashes of their [normalised](normalise) names. While the limits' store does not answer, each process counts by
//! itself, and goes on from what it has let through. See OWASP's "Authentication Cheat Sheet" on throttling and on device cookies.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::decision::Decision;
pub use crate::guard::names::normalise;
pub use crate::guard::sending::SendGuard;
use crate::limiter::Limiter;
use crate::policy::{OnError, Policy};

/// Who tries to log in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The account's name as typed.
    pub account: &'a str,
    /// The client's address, as [`ClientIp::key`](crate::client::ClientIp::key) has it.
    pub address: &'a str,
    /// A device that has logged in to this account before: anything that tells it apart, after the application has verified it.
    pub known_device: Option<&'a str>,
}

/// The attempt is not to be looked at: too many have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; try again in {retry_after:?}")]
#[non_exhaustive]
pub struct TooMany {
    /// When to try again, at the earliest.
    pub retry_after: Duration,
    /// The way of counting that is used up; of several, the one that takes longest to come back.
    pub because: Counted,
}

/// A way of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Counted {
    /// The account from this address.
    Pair,
    /// The address.
    Address,
    /// A network that the address is in.
    Network,
    /// The account, from everywhere: offer its owner a link by e-mail.
    Account,
    /// The account from this known device.
    Device,
    /// Tries that are under way.
    AtOnce,
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
#[derive(Clone)]
pub struct LoginGuard {
    limiter: Limiter,
    pair: Vec<Policy>,
    address: Vec<Policy>,
    networks: Vec<(u8, Vec<Policy>)>,
    account: Vec<Policy>,
    device: Vec<Policy>,
    at_once: Option<Policy>,
    normalise: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

impl std::fmt::Debug for LoginGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginGuard").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

/// Numbers of failures, each with its time.
pub type Quotas = Vec<(u32, Duration)>;

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
    pub pair: Quotas,
    /// From one address.
    pub address: Quotas,
    /// From one IPv6 network, by the length of its prefix.
    pub networks: Vec<(u8, Quotas)>,
    /// Of one account, from all addresses but known devices.
    pub account: Quotas,
    /// Of one account from one known device, in place of all others. Empty: a known device is an address like any other.
    pub device: Quotas,
    /// Attempts under way at once, of known devices and of all others each; `None`: any number.
    pub at_once: Option<u32>,
}

impl Default for Limits {
    /// The module's table.
    fn default() -> Self {
        Self {
            pair: vec![(3, Duration::from_secs(30)), (5, QUARTER), (20, DAY)],
            address: vec![(30, QUARTER), (200, DAY)],
            networks: vec![(56, vec![(60, QUARTER), (400, DAY)]), (48, vec![(120, QUARTER), (800, DAY)])],
            account: vec![(50, HOUR), (200, DAY)],
            device: vec![(10, QUARTER), (50, DAY)],
            at_once: Some(100),
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
    /// The limits' store gets three seconds for its answer: a log-in is slow anyway, and under a storm of them so is everything else.
    pub fn new(limiter: &Limiter, name: &str) -> Self {
        Self::with_limits(limiter, name, &Limits::default())
    }

    /// With limits of one's own, or [`Limits::one_time_codes`].
    pub fn with_limits(limiter: &Limiter, name: &str, limits: &Limits) -> Self {
        let network = |(length, quotas): &(u8, Quotas)| (*length, policies(name, &format!("v6-{length}"), quotas));
        Self {
            limiter: limiter.patience(PATIENCE),
            pair: policies(name, "pair", &limits.pair),
            address: policies(name, "address", &limits.address),
            networks: limits.networks.iter().map(network).collect(),
            account: policies(name, "account", &limits.account),
            device: policies(name, "device", &limits.device),
            at_once: limits.at_once.map(|most| Policy::at_once(&format!("{name}-at-once"), most)),
            normalise: Arc::new(normalise),
        }
    }

    /// Tells names of accounts apart as the application does: for one whose users' names differ in accents, or whose e-mail addresses are
    /// the same with and without dots. Two names of one account must become one, or each is guessed by itself. Default: [`normalise`].
    ///
    /// ```
    /// use scale_limit::{Limiter, LoginGuard, guard::login::normalise};
    ///
    /// let guard = LoginGuard::new(&Limiter::memory(), "login")
    ///     .normalised_by(|name| normalise(name).trim_end_matches('.').to_owned());
    /// ```
    pub fn normalised_by(self, normalise: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self { normalise: Arc::new(normalise), ..self }
    }

    /// Asks whether an attempt may be looked at, and counts it as a failure until [`Pending::succeeded`].
    ///
    /// # Errors
    /// [`TooMany`]: answer without looking at the password, and the same for accounts that do not exist.
    pub async fn begin<'g>(&'g self, attempt: Attempt<'_>) -> Result<Pending<'g>, TooMany> {
        let account = self.limiter.hash(&(self.normalise)(attempt.account));
        let known_device = attempt.known_device.filter(|_| !self.device.is_empty());
        let mut charges: Vec<(Counted, &'g Policy, String)> = Vec::new();
        let mut add = |counted, policies: &'g [Policy], key: String| {
            charges.extend(policies.iter().map(|policy| (counted, policy, key.clone())));
        };
        if let Some(device) = known_device {
            add(Counted::Device, &self.device, format!("{account}+{}", self.limiter.hash(device)));
        } else {
            add(Counted::Pair, &self.pair, format!("{account}+{}", attempt.address));
            add(Counted::Address, &self.address, attempt.address.to_owned());
            for (key, policies) in wider(attempt.address, &self.networks) {
                add(Counted::Network, policies, key);
            }
            add(Counted::Account, &self.account, account);
        }
        if let Some(policy) = &self.at_once {
            charges.push((Counted::AtOnce, policy, if known_device.is_some() { "known" } else { "all" }.into()));
        }
        let asked: Vec<_> = charges.iter().map(|(_, policy, key)| (*policy, key.as_str(), 1)).collect();
        let decision = self.limiter.check_all(&asked).await;
        if decision.admitted {
            let charges = charges.into_iter().map(|(_, policy, key)| (policy, key)).collect();
            return Ok(Pending { guard: self, decision, charges });
        }
        let counted = |name: &str| charges.iter().find(|(_, policy, _)| policy.name() == name).map(|(counted, ..)| *counted);
        Err(too_many(&decision, counted))
    }
}

impl Pending<'_> {
    /// The password fits: nothing is counted.
    pub async fn succeeded(self) {
        let charges: Vec<_> = self.charges.iter().map(|(policy, key)| (*policy, key.as_str(), 1)).collect();
        self.guard.limiter.refund(&self.decision, &charges).await;
    }
}

/// How long the limits' store may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn policies(name: &str, kind: &str, quotas: &[(u32, Duration)]) -> Vec<Policy> {
    let policy = |(most, period): &(u32, Duration)| Policy::new(&format!("{name}-{kind}-{}", period.as_secs()), *most, *period);
    quotas.iter().map(|quota| policy(quota).on_error(OnError::Local(1.0)).mirrored()).collect()
}

/// The networks that an IPv6 address, or its prefix, is in.
pub(super) fn wider<'p>(address: &str, networks: &'p [(u8, Vec<Policy>)]) -> Vec<(String, &'p [Policy])> {
    let network = address.parse::<IpNet>().or_else(|_| address.parse::<IpAddr>().map(IpNet::from));
    let Ok(IpNet::V6(network)) = network else { return Vec::new() };
    let in_it = |(length, policies): &'p (u8, Vec<Policy>)| {
        let wide = IpNet::new(network.addr().into(), *length).ok().filter(|_| *length < network.prefix_len())?;
        Some((wide.trunc().to_string(), &policies[..]))
    };
    networks.iter().filter_map(in_it).collect()
}

pub(super) fn too_many(decision: &Decision, counted: impl Fn(&str) -> Option<Counted>) -> TooMany {
    let denied = decision.outcomes().iter().filter(|outcome| !outcome.admitted());
    // Places have no time at which they are free again.
    let wait =
        |counted, wait: Option<Duration>| if counted == Counted::AtOnce { Duration::from_secs(1) } else { wait.unwrap_or(DAY) };
    let denied = denied.filter_map(|outcome| counted(outcome.policy()).map(|by| (wait(by, outcome.retry_after()), by)));
    let (retry_after, because) = denied.max_by_key(|(wait, _)| *wait).unwrap_or((DAY, Counted::Account));
    TooMany { retry_after, because }
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
        // The owner at an unknown device is held back with the botnet, and told why; by a link, or at a known device, not.
        let owner = guard.begin(from("ann@example.com", "198.51.100.1")).await.unwrap_err();
        assert_eq!(owner.because, Counted::Account);
        let by_link = Attempt { known_device: Some("link sent to ann"), ..from("ann@example.com", "198.51.100.1") };
        guard.begin(by_link).await.unwrap().succeeded().await;
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
        assert_eq!(at_once, 3);
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

    /// The clock is paused: what flows back, flows as told.
    async fn looked_at(guard: &LoginGuard, account: impl Fn(u32) -> String, address: impl Fn(u32) -> String, tries: u32) -> u32 {
        let mut looked_at = 0;
        for n in 0..tries {
            looked_at += u32::from(guard.begin(from(&account(n), &address(n))).await.is_ok());
        }
        looked_at
    }

    #[tokio::test(start_paused = true)]
    async fn delays_rise() {
        let guard = LoginGuard::new(&Limiter::memory().tokio_clock(), "login");
        let mut waits = Vec::new();
        for _ in 0..22 {
            while let Err(too_many) = guard.begin(from("ann", "203.0.113.1")).await {
                waits.push(too_many.retry_after.as_secs());
                tokio::time::sleep(too_many.retry_after).await;
            }
        }
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1] + 60), "{waits:?}");
        assert!(waits[0] < 30 && waits.contains(&180) && *waits.last().unwrap() > 1_000, "{waits:?}");
    }

    /// The module's table of what an attacker gets.
    #[tokio::test(start_paused = true)]
    async fn an_attacker_gets_what_the_table_says() {
        let rounds = 24 * 4 * 2;
        let one_account = |_: u32| "ann".to_owned();
        let many_accounts = |n: u32| format!("user{n}");
        let v4 = |_: u32| "203.0.113.1".to_owned();
        let in_56 = |n: u32| format!("2001:db8:0:{:x}::/64", n % 256);
        let in_48 = |n: u32| format!("2001:db8:0:{:x}::/64", n % 65_536);
        for (what, account, address, most) in [
            ("one address, one account", &one_account as &dyn Fn(u32) -> String, &v4 as &dyn Fn(u32) -> String, 40),
            ("one address, all accounts", &many_accounts, &v4, 400),
            ("a /56, one account", &one_account, &in_56, 400),
            ("a /56, all accounts", &many_accounts, &in_56, 800),
            ("a /48, one account", &one_account, &in_48, 400),
            ("a /48, all accounts", &many_accounts, &in_48, 1_600),
        ] {
            let guard = LoginGuard::new(&Limiter::memory().tokio_clock(), "login");
            let (mut all, mut n) = (0, 0);
            for _ in 0..rounds {
                let next = |m: u32| n + m;
                all += looked_at(&guard, |m| account(next(m)), |m| address(next(m) * 7), 150).await;
                n += 150;
                tokio::time::sleep(DAY / rounds).await;
            }
            assert!(all <= most && all >= most * 9 / 10, "{what}: {all} on the first day, {most} said");
        }
    }

    #[tokio::test]
    async fn however_it_is_written_it_is_one_account() {
        let guard = LoginGuard::new(&Limiter::memory(), "login");
        let spellings = [
            "ann@example.com", "ANN@example.com", "ａnn@example.com", "ann@ｅxample.com", "ann@example.com\u{200b}",
            " ann@example.com\0",
        ];
        let mut looked_at = 0;
        for n in 0..240 {
            let address = format!("203.0.113.{}", n / 2);
            looked_at += u32::from(guard.begin(from(spellings[n % spellings.len()], &address)).await.is_ok());
        }
        assert_eq!(looked_at, 50);
        for unseen in ["\u{1d173}", "\u{1bca0}", "\u{600}", "\u{2065}", "\u{fe0f}", "\u{e0061}", "\u{ad}"] {
            assert_eq!(normalise(&format!("an{unseen}n")), "ann", "{}", unseen.escape_unicode());
        }
        assert_ne!(normalise("ann@example.com"), normalise("anne@example.com"));
        let dotless = LoginGuard::new(&Limiter::memory(), "login").normalised_by(|name| normalise(name).replace('.', ""));
        for n in 0..3 {
            assert!(dotless.begin(from(["a.b", "ab", "AB."][n], "203.0.113.1")).await.is_ok());
        }
        assert!(dotless.begin(from("ab", "203.0.113.1")).await.is_err());
    }

    #[tokio::test]
    async fn tries_at_once_are_bounded_and_known_devices_have_room_of_their_own() {
        let guard = LoginGuard::new(&Limiter::memory(), "login");
        let mut pending = Vec::new();
        for n in 0..200 {
            let address = format!("203.0.{n}.1");
            pending.extend(guard.begin(from(&format!("user{n}"), &address)).await);
        }
        assert_eq!(pending.len(), 100);
        let late = guard.begin(from("late", "198.51.100.1")).await.unwrap_err();
        assert_eq!((late.because, late.retry_after), (Counted::AtOnce, Duration::from_secs(1)));
        let known = Attempt { known_device: Some("cookie"), ..from("late", "198.51.100.1") };
        drop(guard.begin(known).await.unwrap());
        drop(pending);
        assert!(guard.begin(from("late", "198.51.100.1")).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_sent_is_bounded_by_networks_too() {
        let limiter = Limiter::memory();
        let (logins, links) = (LoginGuard::new(&limiter, "login"), SendGuard::new(&limiter, "login"));
        for n in 0..50 {
            let _ = logins.begin(from("ann", &format!("203.0.113.{n}"))).await;
        }
        assert!(links.allow("ann", "198.51.100.1").await.is_ok(), "failed log-ins are no mails");
        let guard = SendGuard::new(&Limiter::memory(), "reset");
        let mut sent = 0;
        for n in 0..200 {
            sent += u32::from(guard.allow(&format!("user{n}"), &format!("2001:db8:0:{n:x}::/64")).await.is_ok());
        }
        assert_eq!(sent, 20);
    }
}
