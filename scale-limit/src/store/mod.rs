//! Stores of rate-limit state: in memory, in Redis, or one of your own.
//!
//! A store of your own implements [`KeyValueStore`], whose only method is an atomic change of a few
//! keys. The algorithms, the permits and the layout of states stay in this crate.
//! `examples/postgres_limits` is such a store; feature `testing` exports the contract it passes.

#[cfg(feature = "redis")]
mod coalesce;
mod evicted;
mod key_value;
mod memory;
mod permits;
#[cfg(feature = "redis")]
mod redis;

use std::time::Duration;

use async_trait::async_trait;

pub(crate) use self::key_value::KeyValue;
pub use self::key_value::{Change, KeyValueStore, Write};
pub(crate) use self::memory::{Memory, Time};
#[cfg(feature = "redis")]
pub(crate) use self::redis::Redis;
use crate::algorithm::{Rule, Ruling};
use crate::error::Error;
use crate::key::plain;
use crate::permit::Permits;
use crate::policy::{Identity, Policy, PolicyTerms};

/// A charge: one policy, one key, one cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) key: &'a str,
    pub(crate) cost: u32,
    /// Minimum number of units that the caller accepts.
    pub(crate) least: u32,
    /// Terms that apply to this key.
    pub(crate) terms: PolicyTerms,
    /// Holder of the permit, for concurrency limits.
    pub(crate) permit: u64,
}

impl<'a> Charge<'a> {
    #[cfg(test)]
    pub(crate) fn new(policy: &'a Policy, key: &'a str, cost: u32) -> Self {
        Self::stored(policy, key, key, cost)
    }

    /// Creates a charge. `stored`: the key as stores contain it.
    #[inline]
    pub(crate) fn stored(policy: &'a Policy, key: &str, stored: &'a str, cost: u32) -> Self {
        let terms = policy.terms(plain(key));
        let permit = if matches!(terms.rule, Rule::Concurrency(_)) { fastrand::u64(..) } else { 0 };
        Self { policy, key: stored, cost, least: cost, terms, permit }
    }

    /// Returns the counter that is charged, by policy and key.
    pub(crate) fn place(&self) -> (&Identity, &str) {
        (self.policy.identity(), self.key)
    }

    /// Returns whether a permit is requested.
    pub(crate) fn takes_place(&self) -> bool {
        matches!(self.terms.rule, Rule::Concurrency(_))
    }

    /// Returns whether the charged request may pass.
    pub(crate) fn admits(&self, ruling: &Ruling) -> bool {
        ruling.admitted || self.policy.is_dry_run()
    }
}

/// Kinds of settlement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Settle {
    /// Refunds what was charged that long ago.
    GiveBack(Duration),
    /// Charges what was already spent.
    Debit,
}

/// A store that several processes share. It rules on several charges at once: all admit, or none is
/// charged. A dry-run policy is charged by its own ruling and never denies the others.
#[async_trait]
pub(crate) trait Store: Send + Sync + std::fmt::Debug {
    /// Charges policies. `store_timeout`: the time after which the caller gives up.
    async fn charge(
        &self,
        charges: &[Charge<'_>],
        store_timeout: Duration,
    ) -> Result<Charged, Error>;

    /// Settles earlier charges.
    async fn settle(
        &self,
        charges: &[Charge<'_>],
        how: Settle,
        store_timeout: Duration,
    ) -> Result<(), Error>;

    /// Removes what has been charged to a key.
    async fn clear(&self, charge: &Charge<'_>) -> Result<(), Error>;
}

/// Rulings of a store, and the permits it granted.
#[derive(Debug)]
pub(crate) struct Charged {
    /// Rulings, one for each charge.
    pub(crate) rulings: Vec<Ruling>,
    pub(crate) permits: Option<Permits>,
}

/// Returns whether, by these rulings, the charges are made.
pub(crate) fn is_charged(charges: &[Charge<'_>], rulings: &[Ruling]) -> bool {
    charges.iter().zip(rulings).all(|(charge, ruling)| charge.admits(ruling))
}
