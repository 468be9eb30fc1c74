//! Limits for messages that an application sends on request: mails, codes by SMS.

use std::time::Duration;

use super::login::{Counted, STORE_TIMEOUT, TooMany, policies, too_many, wider};
use super::names::normalise;
use crate::limiter::Limiter;
use crate::policy::Policy;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Limits requests that send something, regardless of their result: mails to reset a password,
/// codes by SMS. A clone costs a few reference counts.
///
/// An account gets 3 an hour and 10 a day; an address can request 10 an hour and 50 a day, an IPv6
/// /56 twice and a /48 four times as many. Give the same answer when a request is refused;
/// otherwise strangers learn which accounts exist and were requested.
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
    networks: Vec<(u8, Vec<Policy>)>,
}

impl SendGuard {
    /// Creates a guard. `name` distinguishes guards: `reset`, `sms`. It shares no counts with a
    /// [`LoginGuard`](super::login::LoginGuard) of the same name.
    pub fn new(limiter: &Limiter, name: &str) -> Self {
        let name = &format!("{name}-send");
        let network = |length: u8, times: u32| {
            (
                length,
                policies(name, &format!("v6-{length}"), &[(10 * times, HOUR), (50 * times, DAY)]),
            )
        };
        Self {
            limiter: limiter.store_timeout(STORE_TIMEOUT),
            account: policies(name, "account", &[(3, HOUR), (10, DAY)]),
            address: policies(name, "address", &[(10, HOUR), (50, DAY)]),
            networks: vec![network(56, 2), network(48, 4)],
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// [`TooMany`]: send nothing, and answer as if the message had been sent.
    pub async fn allow(&self, account: &str, address: &str) -> Result<(), TooMany> {
        let account = self.limiter.hash(&normalise(account));
        let networks = wider(address, &self.networks);
        let networks: Vec<_> = networks
            .iter()
            .flat_map(|(key, of)| of.iter().map(move |p| (p, key.as_str(), 1)))
            .collect();
        let accounts = self.account.iter().map(|p| (p, account.as_str(), 1));
        let addresses = self.address.iter().map(|p| (p, address, 1));
        let charges: Vec<_> = accounts.chain(addresses).chain(networks).collect();
        let decision = self.limiter.check_all(&charges).await;
        let counted = |name: &str| {
            let is = |policies: &[Policy]| policies.iter().any(|policy| policy.name() == name);
            let counted = if is(&self.account) { Counted::Account } else { Counted::Network };
            Some(if is(&self.address) { Counted::Address } else { counted })
        };
        if decision.admitted { Ok(()) } else { Err(too_many(&decision, counted)) }
    }
}
