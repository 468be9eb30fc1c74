//! Where the theoretical arrival times are kept.

#[cfg(feature = "redis")]
mod gather;
mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::time::Duration;

use async_trait::async_trait;

pub(crate) use self::memory::Memory;
#[cfg(feature = "redis")]
pub(crate) use self::redis::Redis;
use crate::error::Error;
use crate::gcra::{Rate, Ruling};
use crate::policy::Policy;

/// One policy, one key, one cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) key: &'a str,
    pub(crate) cost: u32,
}

impl Charge<'_> {
    pub(crate) fn rate(&self) -> Rate {
        self.policy.rate()
    }
}

/// Rules on several charges at once: all admit, or none is charged. A dry-run policy is charged as it rules and holds back nobody.
#[async_trait]
pub(crate) trait Store: Send + Sync + std::fmt::Debug {
    /// `patience`: who asks will not wait longer.
    async fn charge(&self, charges: &[Charge<'_>], patience: Duration) -> Result<Vec<Ruling>, Error>;

    /// Gives back what was charged.
    async fn refund(&self, charges: &[Charge<'_>], patience: Duration) -> Result<(), Error>;

    /// The store itself, if it needs no waiting.
    fn local(&self) -> Option<&Memory> {
        None
    }
}

/// Whether, by these rulings, the admitted ones are to be charged.
pub(crate) fn is_charged(charges: &[Charge<'_>], rulings: &[Ruling]) -> bool {
    charges.iter().zip(rulings).all(|(charge, ruling)| ruling.admitted || charge.policy.is_dry_run())
}
