//! Leased policies: units taken from the shared store in bulk, spent here without asking.
//!
//! A unit is spent at most one lease after it was taken. So what a whole fleet admits in a window of length `t` was taken in a window of
//! length `t + lease`, and the shared bucket bounds that: `burst + quota × (t + lease) / period`, whatever the number of processes.
//!
//! Of a key in demand the next lump is asked for before the one in hand is spent, so that nobody waits for it.

use std::time::Duration;

use crate::policy::Terms;
use crate::rule::Ruling;
use crate::store::{Charge, Table, Worth};

/// Keys with units in hand at most; those over it are asked for one by one.
const KEYS: usize = 131_072;
/// A process that asks for a lump and never hears of it may ask again after that.
const PATIENCE: u64 = 1_000_000_000;
/// A key that spends so much of a lump is in demand.
const MANY: u32 = 16;

/// Units in hand for one key.
#[derive(Debug, Default)]
struct Lump {
    units: u32,
    taken: u64,
    /// Not to be spent from then on.
    until: u64,
    /// Spent of it so far.
    spent: u32,
    /// Somebody is asking for the next one; the others ask for what they need.
    asked_until: u64,
    /// The next one, and when it was taken.
    next: Option<(u32, u64)>,
    /// It is of no account once the quota is another one.
    terms: Option<Terms>,
}

/// What came of spending.
pub(crate) struct Spent {
    pub(crate) ruling: Ruling,
    /// The next lump is to be asked for now, of so many units; whoever is told so does.
    pub(crate) wants: Option<u32>,
}

impl Worth for Lump {
    fn worth(&self, _: u64) -> u64 {
        self.until
    }
}

impl Lump {
    /// What the key needs in one lease at its present pace, at most what flows in meanwhile.
    fn pace(&self, charge: &Charge<'_>, lease: Duration, now: u64) -> u32 {
        let lease = lease.as_nanos() as f64;
        let spent_in = (now.saturating_sub(self.taken) as f64).clamp(lease / 8.0, lease * 8.0);
        let pace = f64::from(self.spent) * lease / spent_in;
        let inflow = f64::from(charge.terms.quota) * lease / charge.terms.period as f64;
        pace.min(inflow) as u32
    }
}

/// All lumps of this process.
#[derive(Debug)]
pub(crate) struct Lumps(Table<Lump>);

impl Default for Lumps {
    fn default() -> Self {
        Self(Table::new(KEYS))
    }
}

impl Lumps {
    /// Spends from what is in hand.
    pub(crate) fn spend(&self, charge: &Charge<'_>, lease: Duration, now: u64) -> Option<Spent> {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let lump = Table::find(&mut shard, place, charge.policy, charge.key)?;
        if lump.terms.is_some_and(|terms| terms != charge.terms) {
            *lump = Lump::default();
        }
        let length = lease.as_nanos() as u64;
        if (now >= lump.until || lump.units < charge.cost)
            && let Some((units, taken)) = lump.next.take()
        {
            *lump = Lump { units, taken, until: taken + length, terms: lump.terms, ..Lump::default() };
        }
        if now >= lump.until || lump.units < charge.cost {
            return None;
        }
        lump.units -= charge.cost;
        lump.spent = lump.spent.saturating_add(charge.cost);
        let ends = lump.units < lump.spent / 3 || now + length / 4 > lump.until;
        let wants = (ends && lump.spent >= MANY && lump.next.is_none() && now >= lump.asked_until).then(|| {
            lump.asked_until = now + PATIENCE;
            lump.pace(charge, lease, now).max(1)
        });
        let left = lump.until - now;
        let ruling = Ruling { admitted: true, granted: charge.cost, remaining: lump.units, retry_after: 0, full_after: left };
        Some(Spent { ruling, wants })
    }

    /// Keeps what was granted of the next lump, which was asked for at `asked` (ns).
    pub(crate) fn keep_next(&self, charge: &Charge<'_>, granted: u32, lease: Duration, asked: u64) {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let Some(lump) = Table::find(&mut shard, place, charge.policy, charge.key) else { return };
        if lump.asked_until == asked + PATIENCE {
            // Where nothing is left, it is not asked for again at once.
            lump.asked_until = if granted == 0 { asked + lease.as_nanos() as u64 / 4 } else { 0 };
            lump.next = (granted > 0).then_some((granted, asked));
        }
    }

    /// Puts back what was spent a moment ago, for a request that others denied.
    pub(crate) fn put_back(&self, charge: &Charge<'_>) {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        if let Some(lump) = Table::find(&mut shard, place, charge.policy, charge.key) {
            // The lump may have been exchanged meanwhile; its own units bound what can come back.
            let back = charge.cost.min(lump.spent);
            lump.spent -= back;
            lump.units += back;
        }
    }

    /// How many units to ask the store for.
    pub(crate) fn want(&self, charge: &Charge<'_>, lease: Duration, now: u64) -> u32 {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let lump = self.0.entry(&mut shard, place, (charge.policy, charge.key), now, Lump::default);
        if now < lump.asked_until {
            return charge.cost;
        }
        lump.asked_until = now + PATIENCE;
        lump.pace(charge, lease, now).max(charge.cost)
    }

    /// Keeps what is left of a grant that was asked for at `asked` (ns); 0 was granted if denied.
    pub(crate) fn keep(&self, charge: &Charge<'_>, granted: u32, lease: Duration, asked: u64) {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let lump = self.0.entry(&mut shard, place, (charge.policy, charge.key), asked, Lump::default);
        if lump.asked_until != asked + PATIENCE {
            // Not who asked for the lump: what it was granted it has spent.
            lump.spent = lump.spent.saturating_add(granted);
            return;
        }
        let units = granted.saturating_sub(charge.cost);
        let until = asked + lease.as_nanos() as u64;
        *lump = Lump { units, taken: asked, until, spent: charge.cost, terms: Some(charge.terms), ..Lump::default() };
    }

    /// Forgets what is in hand.
    pub(crate) fn forget(&self, charge: &Charge<'_>) {
        self.0.remove(charge.policy, charge.key);
    }
}
