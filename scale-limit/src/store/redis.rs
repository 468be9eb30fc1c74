//! One table for the whole fleet, on the server's clock.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:limit:{<key>}:<policy>` | string | GCRA: the theoretical arrival time, and the shape it is of; once more for each other shape in use | when the bucket is full again |
//! | `{app}:limit:{<key>}:<policy>:w1`, `:w11` | string | windows: the newest slot's number, the length of slots, the counters; likewise | when all slots are out of the window |
//! | `{app}:limit:{<key>}:<policy>:held` | hash | places: who holds how many, until when they free themselves | half a minute after the last sign of life |
//!
//! Charges that come at the same time share a script call. The hash tag is the limited key (an address, a user), so all policies of one
//! key share a slot. In a Cluster, a call has the charges of one key; those of different keys are ruled on one after the other, and what
//! was charged before a denial is given back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use redis::Script;
use scale_redis::Keys;
use tokio::runtime::Handle;

use super::gather::{Gather, Group, Mode, Send, Terms};
use super::places::{HOLD, Places};
use super::{Charge, Charged, Settle, Store};
use crate::error::Error;
use crate::permit::Permits;
use crate::rule::{NEVER, Rule, Ruling};

/// Calls under way at once in a Cluster, for one request.
const AT_ONCE: usize = 32;

pub(crate) struct Redis {
    keys: Keys,
    gather: Arc<Gather<Caller>>,
}

/// Calls the script.
struct Caller {
    server: scale_redis::Redis,
    charge: Script,
    places: Arc<Places>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.server()).finish()
    }
}

#[async_trait]
impl Send for Caller {
    async fn send(&self, groups: &[Group], patience: Duration) -> Result<Vec<Charged>, Error> {
        let mut call = self.charge.prepare_invoke();
        let mut kinds: Vec<Terms> = Vec::new();
        let mut requests = Vec::with_capacity(groups.len() * 2);
        for group in groups {
            requests.push(group.terms.len() as u64);
            let mut permits = group.permits.iter();
            for (key, terms) in group.keys.iter().zip(&group.terms) {
                call.key(key);
                let kind = kinds.iter().position(|k| k == terms).unwrap_or_else(|| {
                    kinds.push(*terms);
                    kinds.len() - 1
                });
                requests.push(kind as u64);
                if matches!(terms.rule, Rule::Places(_)) {
                    requests.extend(permits.next());
                }
            }
        }
        call.arg(kinds.len());
        for terms in &kinds {
            terms.write(&mut call);
        }
        call.arg(requests);
        // The connection's own time-out is for those who say nothing.
        let longer = self.server.bound().map_or(Duration::ZERO, |bound| patience.saturating_sub(bound));
        let reply: Vec<i64> = call.invoke_async(&mut self.server.allowing(longer)).await.map_err(error)?;
        let mut rest = &reply[..];
        let mut charged = Vec::with_capacity(groups.len());
        for group in groups {
            let rulings: Option<Vec<Ruling>> = group.terms.iter().map(|terms| terms.read(&mut rest)).collect();
            let rulings = rulings.ok_or_else(|| Error::Store("the script's reply cannot be read".into()))?;
            let permits = self.permits(group, &rulings);
            charged.push(Charged { rulings, permits });
        }
        Ok(charged)
    }
}

impl Caller {
    /// Holds the places a group was given, until they are dropped.
    fn permits(&self, group: &Group, rulings: &[Ruling]) -> Option<Permits> {
        if group.permits.is_empty() || !group.terms.iter().zip(rulings).all(|(t, r)| r.admitted || t.dry_run) {
            return None;
        }
        let mut permits = group.permits.iter();
        let mut held = Vec::new();
        for ((key, terms), ruling) in group.keys.iter().zip(&group.terms).zip(rulings) {
            if let (Rule::Places(_), Mode::Charge) = (terms.rule, terms.mode)
                && let Some(permit) = permits.next()
                && ruling.granted > 0
            {
                held.push((key.clone(), *permit));
            }
        }
        if held.is_empty() {
            return None;
        }
        self.places.hold(&held);
        let (places, runtime) = (Arc::clone(&self.places), Handle::current());
        Some(Permits::new(move || places.free(&runtime, held)))
    }
}

impl Terms {
    fn of(charge: &Charge<'_>, how: Option<Settle>) -> Self {
        Self {
            rule: charge.terms.rule,
            cost: charge.cost,
            least: charge.least,
            dry_run: charge.policy.is_dry_run(),
            mode: match how {
                None => Mode::Charge,
                Some(Settle::GiveBack(age)) => Mode::GiveBack(age.as_micros() as u64),
                Some(Settle::Debit) => Mode::Debit,
            },
        }
    }

    fn write(&self, call: &mut redis::ScriptInvocation<'_>) {
        let hold = HOLD.as_micros() as f64;
        let (algorithm, x, y, z) = match self.rule {
            Rule::Gcra(rate) => (1, rate.interval as f64 / 1e3, rate.burst, rate.debt / 1_000),
            Rule::Window(window) => (2, window.slot as f64 / 1e3, window.quota, window.kept as u64),
            Rule::Places(places) => (3, hold, places, 0),
            Rule::Free => (3, hold, u32::MAX, 0),
        };
        let (mode, age) = match self.mode {
            Mode::Charge => (0, 0),
            Mode::GiveBack(age) => (1, age),
            Mode::Debit => (2, 0),
        };
        call.arg(algorithm).arg(x).arg(y).arg(z).arg(self.cost).arg(self.least).arg(u8::from(self.dry_run)).arg(mode).arg(age);
    }

    /// Takes one charge's part from the reply.
    fn read(&self, reply: &mut &[i64]) -> Option<Ruling> {
        let mut take = |n: usize| {
            let (row, rest) = reply.split_at_checked(n)?;
            *reply = rest;
            Some(row)
        };
        let units = |n: i64| u32::try_from(n.max(0)).unwrap_or(u32::MAX);
        let nanos = |micros: f64| (micros.max(0.0) * 1e3) as u64;
        match self.rule {
            Rule::Gcra(rate) => {
                let row = take(2)?;
                let interval = rate.interval as f64 / 1e3;
                let (granted, after) = (units(row[0]), row[1].max(0) as f64);
                let before = if granted == 0 { take(1)?[0].max(0) as f64 } else { after };
                let capacity = f64::from(rate.burst) * interval;
                let admitted = granted > 0 || self.cost == 0;
                let held = if admitted { after } else { before };
                Some(Ruling {
                    admitted,
                    granted,
                    // The reply is in whole microseconds: what is within one of a unit is one.
                    remaining: ((capacity - held + 1.0).max(0.0) / interval).min(f64::from(rate.burst)) as u32,
                    retry_after: match admitted {
                        true => 0,
                        false if self.cost <= rate.burst => nanos(after - capacity),
                        false => NEVER,
                    },
                    full_after: nanos(held),
                })
            }
            Rule::Window(_) => {
                let row = take(4)?;
                let admitted = row[0] > 0 || self.cost == 0;
                let retry_after = match row[2] {
                    _ if admitted => 0,
                    micros if micros >= 0 => nanos(micros as f64),
                    _ => NEVER,
                };
                let full_after = nanos(row[3] as f64);

                Some(Ruling { admitted, granted: units(row[0]), remaining: units(row[1]), retry_after, full_after })
            }
            Rule::Places(_) | Rule::Free => {
                let row = take(2)?;
                let admitted = row[0] > 0 || self.cost == 0;
                Some(Ruling {
                    admitted,
                    granted: units(row[0]),
                    remaining: units(row[1]),
                    retry_after: if admitted { 0 } else { NEVER },
                    full_after: 0,
                })
            }
        }
    }
}

impl Redis {
    pub(crate) fn new(server: scale_redis::Redis, app: &str) -> Self {
        let places = Places::new(server.clone());
        let caller = Caller { server, charge: Script::new(include_str!("charge.lua")), places };
        Self { keys: Keys::new(app, "limit"), gather: Gather::new(caller) }
    }

    fn server(&self) -> &scale_redis::Redis {
        &self.gather.sender().server
    }

    fn key(&self, charge: &Charge<'_>) -> String {
        let name = charge.policy.name();
        match charge.terms.rule {
            Rule::Gcra(_) => self.keys.tagged(charge.key, name),
            Rule::Window(window) => self.keys.tagged(charge.key, &format!("{name}:w{}", window.kept)),
            Rule::Places(_) | Rule::Free => self.keys.tagged(charge.key, &format!("{name}:held")),
        }
    }

    fn group(&self, charges: &[Charge<'_>], how: Option<Settle>) -> Group {
        let places = charges.iter().filter(|c| c.takes_place());
        Group {
            keys: charges.iter().map(|charge| self.key(charge)).collect(),
            terms: charges.iter().map(|c| Terms::of(c, how)).collect(),
            permits: places.map(|c| c.permit).collect(),
        }
    }

    /// Calls of their own, several at once; what is ruled for each group.
    async fn apart(&self, groups: Vec<Group>, patience: Duration) -> Vec<Result<Charged, Error>> {
        let sender = self.gather.sender();
        let call = |group: Group| async move {
            let charged = sender.send(&[group], patience).await?.pop();
            charged.ok_or_else(|| Error::Store("the script's reply is empty".into()))
        };
        futures_util::stream::iter(groups.into_iter().map(call)).buffered(AT_ONCE).collect().await
    }

    /// Slot by slot; a denial gives back what the other slots have charged.
    async fn slot_by_slot(&self, charges: &[Charge<'_>], patience: Duration) -> Result<Charged, Error> {
        // The charges of one key, in the order asked.
        let mut mates: HashMap<&str, Vec<Charge<'_>>> = HashMap::new();
        let mut order = Vec::with_capacity(charges.len());
        for charge in charges {
            let of_key = mates.entry(charge.key).or_default();
            order.push((charge.key, of_key.len()));
            of_key.push(*charge);
        }
        let (keys, mates): (Vec<&str>, Vec<Vec<Charge<'_>>>) = mates.into_iter().unzip();
        let groups = mates.iter().map(|mates| self.group(mates, None)).collect();
        let mut rulings: HashMap<&str, Vec<Ruling>> = HashMap::new();
        let (mut back, mut permits) = (Vec::new(), None);
        let (mut denied, mut failed) = (false, None);
        for ((key, mates), ruled) in keys.into_iter().zip(&mates).zip(self.apart(groups, patience).await) {
            let ruled = match ruled {
                Ok(ruled) => ruled,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            if let Some(held) = ruled.permits {
                permits = Some(held.and(permits));
            }
            if super::is_charged(mates, &ruled.rulings) {
                let charged = mates.iter().zip(&ruled.rulings).filter(|(c, r)| r.granted > 0 && !c.takes_place());
                let charged: Vec<_> = charged.map(|(c, r)| Charge { cost: r.granted, least: r.granted, ..*c }).collect();
                back.push(self.group(&charged, Some(Settle::GiveBack(Duration::ZERO))));
            } else {
                denied = true;
            }
            rulings.insert(key, ruled.rulings);
        }
        if denied || failed.is_some() {
            permits = None;
            back.retain(|group: &Group| !group.keys.is_empty());
            failed = failed.or(self.apart(back, patience).await.into_iter().find_map(Result::err));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let rulings = order.into_iter().filter_map(|(key, n)| rulings.get(key)?.get(n).copied()).collect();
        Ok(Charged { rulings, permits })
    }
}

/// What the server says of a call is no outage, unless it says that it cannot serve.
fn error(error: redis::RedisError) -> Error {
    match error.code() {
        Some("ERR" | "WRONGTYPE" | "CROSSSLOT" | "NOPERM" | "NOSCRIPT") => Error::Refused(Box::new(error)),
        _ => Error::Store(Box::new(error)),
    }
}

#[async_trait]
impl Store for Redis {
    async fn charge(&self, charges: &[Charge<'_>], patience: Duration) -> Result<Charged, Error> {
        if charges.is_empty() {
            Ok(Charged { rulings: Vec::new(), permits: None })
        } else if self.server().is_cluster() {
            self.slot_by_slot(charges, patience).await
        } else {
            self.gather.rule(self.group(charges, None), patience).await
        }
    }

    async fn settle(&self, charges: &[Charge<'_>], how: Settle, patience: Duration) -> Result<(), Error> {
        if self.server().is_cluster() {
            let groups = charges.iter().map(|charge| self.group(&[*charge], Some(how))).collect();
            for settled in self.apart(groups, patience).await {
                settled?;
            }
        } else if !charges.is_empty() {
            self.gather.rule(self.group(charges, Some(how)), patience).await?;
        }
        Ok(())
    }

    async fn clear(&self, charge: &Charge<'_>) -> Result<(), Error> {
        redis::cmd("DEL").arg(self.key(charge)).query_async(&mut self.server().clone()).await.map_err(error)
    }
}
