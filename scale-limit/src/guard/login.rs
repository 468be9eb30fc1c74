//! Guards log-ins against guessing, without letting an attacker lock out the owner of an account.
//!
//! Only failures count: an attempt is charged before the password is checked (so that a thousand
//! concurrent attempts do not pass together), and refunded when the password is right, minus what
//! has been restored in the meantime. Failures are counted in several ways, each over several
//! periods:
//!
//! | counted by | maximum by default | limits |
//! | --- | --- | --- |
//! | account and address | 3 in 30 seconds, 5 in 15 minutes, 20 a day | an attacker who tries one account |
//! | address | 30 in 15 minutes, 200 a day | an attacker who tries many accounts |
//! | IPv6 /56 | 60 in 15 minutes, 400 a day | an attacker with more than one /64 |
//! | IPv6 /48 | 120 in 15 minutes, 800 a day | an attacker with more than that |
//! | account, from all addresses | 50 an hour, 200 a day | a botnet that tries one account |
//! | account and known device | 10 in 15 minutes, 50 a day, instead of all others | a thief of the device's cookie |
//! | concurrent attempts | 100 in total; another 100 for known devices | a storm of log-ins |
//!
//! So delays rise: after three failures for an account from one address, attempts are possible
//! every ten seconds, after five failures every three minutes, after twenty less than once an hour.
//! An attacker gets in total:
//!
//! | with | tries of one account | tries of all accounts |
//! | --- | --- | --- |
//! | one address (IPv4, or IPv6 /64) | 40 on the first day, then 20 a day | 400 on the first day, then 200 a day |
//! | one IPv6 /56 | 400 on the first day, then 200 a day | 800, then 400 a day |
//! | one IPv6 /48 | the same | 1,600, then 800 a day |
//! | N addresses in as many /48s | the same | N × 400, then N × 200 a day |
//!
//! (A limit of 200 a day is a bucket: 200 at once, and another 200 that are restored within the
//! first day.)
//!
//! Counting by account alone would help attackers: enough failures would lock out the owner. So a
//! *known device*, one that has logged in to the account before and can prove it (by a cookie that
//! only a log-in sets), is counted on its own. For the owner at a new device [`TooMany::because`]
//! is [`Counted::Account`]: in that case offer a link by e-mail, limited by a [`SendGuard`]. A user
//! who opens the link has proved to be the owner; make the device known, and the next attempt is
//! counted on its own.
//!
//! Accounts are stored as keyed hashes of their [normalised](normalise) names. While the limit
//! store does not answer, each process counts locally, starting from what it has admitted. See
//! OWASP's "Authentication Cheat Sheet" on throttling and on device cookies.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::decision::Decision;
pub use crate::guard::names::normalise;
pub use crate::guard::sending::SendGuard;
use crate::limiter::Limiter;
use crate::policy::{OnError, Policy};

/// An attempt to log in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Name of the account as typed.
    pub account: &'a str,
    /// Address of the client, as returned by [`ClientIp::key`](crate::client::ClientIp::key).
    pub address: &'a str,
    /// Id of a device that has logged in to this account before, after the application has verified
    /// it. Any text that identifies the device.
    pub known_device: Option<&'a str>,
}

/// Refusal of an attempt because of too many failures: do not check the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; try again in {retry_after:?}")]
#[non_exhaustive]
pub struct TooMany {
    /// Minimum time until the next attempt.
    pub retry_after: Duration,
    /// Count that is used up; of several, the one with the longest wait.
    pub because: Counted,
}

/// Kinds of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Counted {
    /// Failures for the account from this address.
    Pair,
    /// Failures from the address.
    Address,
    /// Failures from a network that contains the address.
    Network,
    /// Failures for the account from everywhere: offer its owner a link by e-mail.
    Account,
    /// Failures for the account from this known device.
    Device,
    /// Attempts in progress.
    AtOnce,
}

/// Guards log-ins, and with [other limits](Limits::one_time_codes) one-time codes. A clone costs a
/// few reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_limit::{Limiter, LoginGuard, guard::login::Attempt};
///
/// # async fn verify() -> bool { true }
/// let guard = LoginGuard::new(&Limiter::memory(), "login");
/// let attempt = Attempt {
///     account: "ann@example.com", address: "203.0.113.7", known_device: None,
/// };
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

/// Maximum numbers of failures, each with its period.
pub type Quotas = Vec<(u32, Duration)>;

/// Maximum numbers of failures, for each kind of count. A kind with an empty list is not counted.
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
    /// Failures for one account from one address.
    pub pair: Quotas,
    /// Failures from one address.
    pub address: Quotas,
    /// Failures from one IPv6 network, by the length of its prefix.
    pub networks: Vec<(u8, Quotas)>,
    /// Failures for one account, from all addresses except known devices.
    pub account: Quotas,
    /// Failures for one account from one known device, instead of all other counts. Empty: a known
    /// device counts like any other address.
    pub device: Quotas,
    /// Maximum number of concurrent attempts, separately for known devices and for all others;
    /// `None`: no limit.
    pub at_once: Option<u32>,
}

impl Default for Limits {
    /// Returns the limits of the module's table.
    fn default() -> Self {
        Self {
            pair: vec![(3, Duration::from_secs(30)), (5, QUARTER), (20, DAY)],
            address: vec![(30, QUARTER), (200, DAY)],
            networks: vec![
                (56, vec![(60, QUARTER), (400, DAY)]),
                (48, vec![(120, QUARTER), (800, DAY)]),
            ],
            account: vec![(50, HOUR), (200, DAY)],
            device: vec![(10, QUARTER), (50, DAY)],
            at_once: Some(100),
        }
    }
}

impl Limits {
    /// Returns limits for one-time codes, requested after the password: 10 failures for an account
    /// in 15 minutes and 30 a day, from all addresses. Only clients that know the password get that
    /// far, so this locks out nobody but the account's owner and a thief. With six digits and three
    /// valid codes at a time, 30 guesses a day find a code in 30 years.
    pub fn one_time_codes() -> Self {
        Self {
            pair: Vec::new(),
            account: vec![(10, QUARTER), (30, DAY)],
            device: Vec::new(),
            ..Self::default()
        }
    }
}

/// An attempt that may be checked. It counts as a failure unless [`succeeded`](Self::succeeded) is
/// called.
#[must_use = "check the password, then call `succeeded` if it is right"]
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
    /// Creates a guard with the defaults of the module's table. `name` distinguishes guards:
    /// `login`, `api-login`.
    ///
    /// The limit store may take three seconds to answer: a log-in is slow in any case, and during a
    /// storm of log-ins everything is slower.
    pub fn new(limiter: &Limiter, name: &str) -> Self {
        Self::with_limits(limiter, name, &Limits::default())
    }

    /// Creates a guard with other limits, for example [`Limits::one_time_codes`].
    pub fn with_limits(limiter: &Limiter, name: &str, limits: &Limits) -> Self {
        let network = |(length, quotas): &(u8, Quotas)| {
            (*length, policies(name, &format!("v6-{length}"), quotas))
        };
        Self {
            limiter: limiter.store_timeout(STORE_TIMEOUT),
            pair: policies(name, "pair", &limits.pair),
            address: policies(name, "address", &limits.address),
            networks: limits.networks.iter().map(network).collect(),
            account: policies(name, "account", &limits.account),
            device: policies(name, "device", &limits.device),
            at_once: limits
                .at_once
                .map(|most| Policy::concurrency(&format!("{name}-at-once"), most)),
            normalise: Arc::new(normalise),
        }
    }

    /// Sets how names of accounts are compared, for applications whose user names differ in accents
    /// only, or whose e-mail addresses are the same with and without dots. Different names of one
    /// account must become one name; otherwise each name is guessed separately. Default:
    /// [`normalise`].
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

    /// Decides whether an attempt may be checked, and counts it as a failure until
    /// [`Pending::succeeded`].
    ///
    /// # Errors
    /// [`TooMany`]: answer without a check of the password, in the same way for accounts that do
    /// not exist.
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
            charges.push((
                Counted::AtOnce,
                policy,
                if known_device.is_some() { "known" } else { "all" }.into(),
            ));
        }
        let asked: Vec<_> =
            charges.iter().map(|(_, policy, key)| (*policy, key.as_str(), 1)).collect();
        let decision = self.limiter.check_all(&asked).await;
        if decision.admitted {
            let charges = charges.into_iter().map(|(_, policy, key)| (policy, key)).collect();
            return Ok(Pending { guard: self, decision, charges });
        }
        let counted = |name: &str| {
            charges
                .iter()
                .find(|(_, policy, _)| policy.name() == name)
                .map(|(counted, ..)| *counted)
        };
        Err(too_many(&decision, counted))
    }
}

impl Pending<'_> {
    /// Records that the password is right: the attempt is not counted.
    pub async fn succeeded(self) {
        let charges: Vec<_> =
            self.charges.iter().map(|(policy, key)| (*policy, key.as_str(), 1)).collect();
        self.guard.limiter.refund(&self.decision, &charges).await;
    }
}

/// Time-out for the limit store.
pub(super) const STORE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn policies(name: &str, kind: &str, quotas: &[(u32, Duration)]) -> Vec<Policy> {
    let policy = |(most, period): &(u32, Duration)| {
        Policy::new(&format!("{name}-{kind}-{}", period.as_secs()), *most, *period)
    };
    quotas.iter().map(|quota| policy(quota).on_error(OnError::Local(1.0)).mirrored()).collect()
}

/// Returns the networks that contain an IPv6 address or its prefix.
pub(super) fn wider<'p>(
    address: &str,
    networks: &'p [(u8, Vec<Policy>)],
) -> Vec<(String, &'p [Policy])> {
    let network = address.parse::<IpNet>().or_else(|_| address.parse::<IpAddr>().map(IpNet::from));
    let Ok(IpNet::V6(network)) = network else { return Vec::new() };
    let in_it = |(length, policies): &'p (u8, Vec<Policy>)| {
        let wide = IpNet::new(network.addr().into(), *length)
            .ok()
            .filter(|_| *length < network.prefix_len())?;
        Some((wide.trunc().to_string(), &policies[..]))
    };
    networks.iter().filter_map(in_it).collect()
}

pub(super) fn too_many(decision: &Decision, counted: impl Fn(&str) -> Option<Counted>) -> TooMany {
    let denied = decision.outcomes().iter().filter(|outcome| !outcome.admitted());
    // The time until a permit is released is unknown.
    let wait = |counted, wait: Option<Duration>| {
        if counted == Counted::AtOnce { Duration::from_secs(1) } else { wait.unwrap_or(DAY) }
    };
    let denied = denied.filter_map(|outcome| {
        counted(outcome.policy()).map(|by| (wait(by, outcome.retry_after()), by))
    });
    let (retry_after, because) =
        denied.max_by_key(|(wait, _)| *wait).unwrap_or((DAY, Counted::Account));
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
                looked_at +=
                    u32::from(guard.begin(from("Ann@example.com ", &address)).await.is_ok());
            }
        }
        assert_eq!(looked_at, 50);
        // The owner at an unknown device is limited together with the botnet, and gets the reason;
        // after a link, or at a known device, the owner is not limited.
        let owner = guard.begin(from("ann@example.com", "198.51.100.1")).await.unwrap_err();
        assert_eq!(owner.because, Counted::Account);
        let by_link = Attempt {
            known_device: Some("link sent to ann"),
            ..from("ann@example.com", "198.51.100.1")
        };
        guard.begin(by_link).await.unwrap().succeeded().await;
        let known =
            Attempt { known_device: Some("cookie"), ..from("ann@example.com", "198.51.100.1") };
        for _ in 0..50 {
            guard.begin(known).await.unwrap().succeeded().await;
        }
        // A stolen device cookie is limited as well.
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
            looked_at +=
                u32::from(guard.begin(from(&format!("user{n}"), "203.0.113.1")).await.is_ok());
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
            let attempt =
                Attempt { account: "ann", address: &address, known_device: Some("cookie") };
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
            // No attempt has been checked yet.
            pending.extend(guard.begin(from("ann", "203.0.113.1")).await);
        }
        pending.len()
    }

    /// The clock is paused: units are restored as the test advances it.
    async fn looked_at(
        guard: &LoginGuard,
        account: impl Fn(u32) -> String,
        address: impl Fn(u32) -> String,
        tries: u32,
    ) -> u32 {
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
        assert!(
            waits[0] < 30 && waits.contains(&180) && *waits.last().unwrap() > 1_000,
            "{waits:?}"
        );
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
            (
                "one address, one account", &one_account as &dyn Fn(u32) -> String,
                &v4 as &dyn Fn(u32) -> String, 40,
            ),
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
            assert!(
                all <= most && all >= most * 9 / 10,
                "{what}: {all} on the first day, {most} said"
            );
        }
    }

    #[tokio::test]
    async fn however_it_is_written_it_is_one_account() {
        let guard = LoginGuard::new(&Limiter::memory(), "login");
        let spellings = [
            "ann@example.com", "ANN@example.com", "ａnn@example.com", "ann@ｅxample.com",
            "ann@example.com\u{200b}", " ann@example.com\0",
        ];
        let mut looked_at = 0;
        for n in 0..240 {
            let address = format!("203.0.113.{}", n / 2);
            looked_at += u32::from(
                guard.begin(from(spellings[n % spellings.len()], &address)).await.is_ok(),
            );
        }
        assert_eq!(looked_at, 50);
        for unseen in
            ["\u{1d173}", "\u{1bca0}", "\u{600}", "\u{2065}", "\u{fe0f}", "\u{e0061}", "\u{ad}"]
        {
            assert_eq!(normalise(&format!("an{unseen}n")), "ann", "{}", unseen.escape_unicode());
        }
        assert_ne!(normalise("ann@example.com"), normalise("anne@example.com"));
        let dotless = LoginGuard::new(&Limiter::memory(), "login")
            .normalised_by(|name| normalise(name).replace('.', ""));
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
        let (logins, links) =
            (LoginGuard::new(&limiter, "login"), SendGuard::new(&limiter, "login"));
        for n in 0..50 {
            let _ = logins.begin(from("ann", &format!("203.0.113.{n}"))).await;
        }
        assert!(links.allow("ann", "198.51.100.1").await.is_ok(), "failed log-ins are no mails");
        let guard = SendGuard::new(&Limiter::memory(), "reset");
        let mut sent = 0;
        for n in 0..200 {
            sent += u32::from(
                guard.allow(&format!("user{n}"), &format!("2001:db8:0:{n:x}::/64")).await.is_ok(),
            );
        }
        assert_eq!(sent, 20);
    }
}
