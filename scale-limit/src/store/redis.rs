//! One table for the whole fleet, on the server's clock.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:limit:{<key>}:<policy>` | string | the theoretical arrival time, µs since 2025, the eight bytes of a double | when the bucket is full again |
//!
//! Charges that come at the same time share a script call. The hash tag is the limited key (an address, a user), so all policies of one
//! key share a slot. In a Cluster, a call has the charges of one key; those of different keys are ruled on one after the other, and what
//! was charged before a denial is given back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::Script;
use scale_redis::Keys;

use super::gather::{Gather, Group, Send, Terms};
use super::{Charge, Store};
use crate::error::Error;
use crate::gcra::Ruling;

/// Longer keys are hashed by the caller or cut: a header value must not become a megabyte of Redis key.
const LONGEST_KEY: usize = 256;

pub(crate) struct Redis {
    keys: Keys,
    gather: Arc<Gather<Caller>>,
}

/// Calls the script.
struct Caller {
    server: scale_redis::Redis,
    charge: Script,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.server()).finish()
    }
}

#[async_trait]
impl Send for Caller {
    async fn send(&self, groups: &[Group]) -> Result<Vec<Vec<Ruling>>, Error> {
        let mut call = self.charge.prepare_invoke();
        let mut kinds: Vec<Terms> = Vec::new();
        let mut requests = Vec::with_capacity(groups.len() * 2);
        for group in groups {
            requests.push(group.terms.len());
            for (key, terms) in group.keys.iter().zip(&group.terms) {
                call.key(key);
                requests.push(kinds.iter().position(|k| k == terms).unwrap_or_else(|| {
                    kinds.push(*terms);
                    kinds.len() - 1
                }));
            }
        }
        call.arg(kinds.len());
        for terms in &kinds {
            call.arg(terms.interval).arg(terms.burst).arg(terms.cost).arg(u8::from(terms.dry_run));
        }
        call.arg(requests);
        let reply: Vec<i64> = call.invoke_async(&mut self.server.clone()).await.map_err(|e| Error::Store(Box::new(e)))?;
        if reply.len() != groups.iter().map(|g| g.terms.len() * 3).sum::<usize>() {
            return Err(Error::Store("the script's reply cannot be read".into()));
        }
        let mut rows = reply.chunks_exact(3);
        let read = |group: &Group| group.terms.iter().zip(&mut rows).map(|(terms, row)| terms.read(row)).collect();
        Ok(groups.iter().map(read).collect())
    }
}

impl Terms {
    fn of(charge: &Charge<'_>, sign: i64) -> Self {
        Self {
            interval: charge.rate().interval / 1e3,
            burst: charge.policy.burst_size(),
            cost: i64::from(charge.cost) * sign,
            dry_run: charge.policy.is_dry_run(),
        }
    }

    /// Admitted, microseconds ahead before, microseconds ahead after.
    fn read(&self, row: &[i64]) -> Ruling {
        let (before, after) = (row[1].max(0) as f64, row[2].max(0) as f64);
        let capacity = f64::from(self.burst) * self.interval;
        let admitted = row[0] == 1;
        let held = if admitted { after } else { before };
        Ruling {
            admitted,
            // The reply is in whole microseconds: what is within one of a unit is one.
            remaining: ((capacity - held + 1.0).max(0.0) / self.interval).min(f64::from(self.burst)) as u32,
            retry_after: if admitted {
                Some(Duration::ZERO)
            } else {
                (self.cost <= i64::from(self.burst)).then(|| Duration::from_secs_f64((after - capacity).max(0.0) / 1e6))
            },
            full_after: Duration::from_secs_f64(held / 1e6),
        }
    }
}

impl Redis {
    pub(crate) fn new(server: scale_redis::Redis, app: &str) -> Self {
        let caller = Caller { server, charge: Script::new(include_str!("charge.lua")) };
        Self { keys: Keys::new(app, "limit"), gather: Gather::new(caller) }
    }

    fn server(&self) -> &scale_redis::Redis {
        &self.gather.sender().server
    }

    /// `sign` -1 gives the cost back.
    fn group(&self, charges: &[Charge<'_>], sign: i64) -> Group {
        let key = |charge: &Charge<'_>| {
            let key = &charge.key[..charge.key.floor_char_boundary(LONGEST_KEY)];
            self.keys.tagged(key, charge.policy.name())
        };
        Group { keys: charges.iter().map(key).collect(), terms: charges.iter().map(|c| Terms::of(c, sign)).collect() }
    }

    /// A call of its own.
    async fn alone(&self, charges: &[Charge<'_>], sign: i64) -> Result<Vec<Ruling>, Error> {
        let rulings = self.gather.sender().send(&[self.group(charges, sign)]).await?;
        Ok(rulings.into_iter().flatten().collect())
    }

    /// Slot by slot; a denial gives back what earlier slots had charged.
    async fn one_by_one(&self, charges: &[Charge<'_>]) -> Result<Vec<Ruling>, Error> {
        let mut rulings: Vec<Option<Ruling>> = vec![None; charges.len()];
        let mut charged: Vec<Charge<'_>> = Vec::new();
        let mut denied = false;
        for (n, charge) in charges.iter().enumerate() {
            if rulings[n].is_some() {
                continue;
            }
            let mates: Vec<usize> = (n..charges.len()).filter(|m| charges[*m].key == charge.key).collect();
            let group: Vec<Charge<'_>> = mates.iter().map(|m| charges[*m]).collect();
            let ruled = self.alone(&group, 1).await?;
            let admitted = super::is_charged(&group, &ruled);
            for (m, ruling) in mates.into_iter().zip(ruled) {
                rulings[m] = Some(ruling);
            }
            if admitted {
                charged.extend(group);
            }
            denied |= !admitted;
        }
        if denied {
            for charge in charged {
                self.alone(&[charge], -1).await?;
            }
        }
        Ok(rulings.into_iter().flatten().collect())
    }
}

#[async_trait]
impl Store for Redis {
    async fn charge(&self, charges: &[Charge<'_>], patience: Duration) -> Result<Vec<Ruling>, Error> {
        if charges.is_empty() {
            Ok(Vec::new())
        } else if self.server().is_cluster() {
            self.one_by_one(charges).await
        } else {
            self.gather.rule(self.group(charges, 1), patience).await
        }
    }

    async fn refund(&self, charges: &[Charge<'_>], patience: Duration) -> Result<(), Error> {
        if self.server().is_cluster() {
            for charge in charges {
                self.alone(&[*charge], -1).await?;
            }
        } else if !charges.is_empty() {
            self.gather.rule(self.group(charges, -1), patience).await?;
        }
        Ok(())
    }
}
