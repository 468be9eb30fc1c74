//! Where is kept what has been charged.

mod evicted;
#[cfg(feature = "redis")]
mod gather;
mod memory;
#[cfg(feature = "redis")]
mod places;
#[cfg(feature = "redis")]
mod redis;
mod table;

use std::time::Duration;

use async_trait::async_trait;

pub(crate) use self::memory::{Memory, Time};
#[cfg(feature = "redis")]
pub(crate) use self::redis::Redis;
pub(crate) use self::table::{Table, Worth};
use crate::error::Error;
use crate::key::plain;
use crate::permit::Permits;
use crate::policy::{Identity, Policy, Terms};
use crate::rule::{Rule, Ruling};

/// One policy, one key, one cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) key: &'a str,
    pub(crate) cost: u32,
    /// Fewer units will do, down to that many.
    pub(crate) least: u32,
    /// What counts for this key.
    pub(crate) terms: Terms,
    /// Who holds the place, where places are counted.
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "only a shared store must know its places again"))]
    pub(crate) permit: u64,
}

impl<'a> Charge<'a> {
    #[cfg(test)]
    pub(crate) fn new(policy: &'a Policy, key: &'a str, cost: u32) -> Self {
        Self::stored(policy, key, key, cost)
    }

    /// `stored`: the key as stores know it.
    #[inline]
    pub(crate) fn stored(policy: &'a Policy, key: &str, stored: &'a str, cost: u32) -> Self {
        let terms = policy.terms(plain(key));
        let permit = if matches!(terms.rule, Rule::Places(_)) { fastrand::u64(..) } else { 0 };
        Self { policy, key: stored, cost, least: cost, terms, permit }
    }

    /// Which of all counters it is charged to: the policy's, and the key's.
    pub(crate) fn place(&self) -> (&Identity, &str) {
        (self.policy.identity(), self.key)
    }

    /// Whether it is a place that is asked for, to be held for a while.
    pub(crate) fn takes_place(&self) -> bool {
        matches!(self.terms.rule, Rule::Places(_))
    }

    /// Whether whoever is charged may pass.
    pub(crate) fn admits(&self, ruling: &Ruling) -> bool {
        ruling.admitted || self.policy.is_dry_run()
    }
}

/// What happens after the fact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Settle {
    /// Gives back what was charged that long ago.
    GiveBack(Duration),
    /// Charges what has been spent already.
    Debit,
}

/// A store that several processes share. Rules on several charges at once: all admit, or none is charged. A dry-run policy is charged as it
/// rules and holds back nobody.
#[async_trait]
pub(crate) trait Store: Send + Sync + std::fmt::Debug {
    /// `patience`: who asks will not wait longer.
    async fn charge(&self, charges: &[Charge<'_>], patience: Duration) -> Result<Charged, Error>;

    /// Corrects what was charged.
    async fn settle(&self, charges: &[Charge<'_>], how: Settle, patience: Duration) -> Result<(), Error>;

    /// Forgets what has been charged to a key.
    async fn clear(&self, charge: &Charge<'_>) -> Result<(), Error>;
}

/// What a store says, and the places it gave.
#[derive(Debug)]
pub(crate) struct Charged {
    /// One for each charge.
    pub(crate) rulings: Vec<Ruling>,
    pub(crate) permits: Option<Permits>,
}

/// Whether, by these rulings, the admitted ones are to be charged.
pub(crate) fn is_charged(charges: &[Charge<'_>], rulings: &[Ruling]) -> bool {
    charges.iter().zip(rulings).all(|(charge, ruling)| charge.admits(ruling))
}
