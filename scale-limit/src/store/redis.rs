//! Redis store: one table for the whole fleet, on the server's clock.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:limit:{<key>}:buckets` | string | GCRA: for each policy the theoretical arrival time and its shape; again for each other shape in use | when all buckets are full again |
//! | `{app}:limit:{<key>}:<policy>:w1`, `:w11` | string | windows: the newest slot's number, the length of slots, the counters; again for each other length in use | when all slots are out of the window |
//! | `{app}:limit:{<key>}:<policy>:held` | hash | permits: their holders, number, and expiry | half a minute after the last renewal |
//!
//! Charges that arrive at the same time share a script call. The hash tag is the limited key (an
//! address, a user), so all policies of one key share a slot. In a Cluster, a call has the charges
//! of one key; those of different keys are ruled on one after the other, and charges made before a
//! denial are refunded.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use redis::Script;
use scale_redis::Keys;
use smallvec::SmallVec;
use tokio::runtime::Handle;

use scale_common::coalesce::Coalescer;

use super::coalesce::{ChargeKind, Charges, Group, Mode, Send, Sent, rule};
use super::permits::{HOLD, PermitStore, Places};
use super::{Charge, Charged, Settle, Store};
use crate::algorithm::{NEVER, Rule, Ruling};
use crate::error::Error;
use crate::permit::Permits;

/// Time-out of refunds.
const GIVING_BACK: Duration = Duration::from_secs(1);
/// Maximum number of charges per call.
const PORTION: usize = 500;
/// Number of recent kinds of charges that are searched for a repetition.
const KINDS: usize = 32;
/// Maximum number of concurrent calls in a Cluster, for one request.
const AT_ONCE: usize = 32;

pub(crate) struct Redis {
    keys: Keys,
    gather: Arc<Coalescer<Charges<Caller>>>,
}

/// Caller of the script.
struct Caller {
    server: scale_redis::Redis,
    charge: Script,
    places: Arc<Places<PermitCaller>>,
}

/// Caller of the scripts that renew and release permits.
struct PermitCaller {
    server: scale_redis::Redis,
    extend: Script,
    release: Script,
}

#[async_trait]
impl PermitStore for PermitCaller {
    async fn extend(&self, key: &str, permits: &[u64]) -> Result<(), Error> {
        let mut call = self.extend.key(key);
        call.arg(HOLD.as_micros() as u64).arg(permits);
        call.invoke_async::<i64>(&mut self.server.clone()).await.map(drop).map_err(error)
    }

    async fn release(&self, key: &str, permit: u64) -> Result<(), Error> {
        let mut call = self.release.key(key);
        call.arg(permit)
            .invoke_async::<i64>(&mut self.server.clone())
            .await
            .map(drop)
            .map_err(error)
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.server()).finish()
    }
}

#[async_trait]
impl Send for Caller {
    async fn send(&self, groups: &[Group], store_timeout: Duration) -> Result<Vec<Charged>, Error> {
        let mut call = self.charge.prepare_invoke();
        let mut kinds: Vec<ChargeKind> = Vec::new();
        let mut requests = Vec::with_capacity(groups.len() * 2);
        for group in groups {
            for key in &group.keys {
                call.key(key);
            }
            requests.push(Word::Number(group.charges.len() as u64));
            for charge in &group.charges {
                // Searches only the last few kinds: a kind that occurs twice does no harm, and a
                // call with thousands of kinds must not take too long.
                let known = kinds.iter().rev().take(KINDS).position(|kind| *kind == charge.terms);
                let kind = known.map_or(kinds.len(), |back| kinds.len() - 1 - back);
                if known.is_none() {
                    kinds.push(charge.terms);
                }
                requests.push(if charge.shares_key {
                    Word::Sharing(kind)
                } else {
                    Word::Number(kind as u64)
                });
                requests.extend(charge.permit.map(Word::Number));
            }
        }
        call.arg(kinds.len());
        for terms in &kinds {
            terms.write(&mut call);
        }
        call.arg(requests);
        // The connection's own time-out is for callers that pass none.
        let longer =
            self.server.bound().map_or(Duration::ZERO, |bound| store_timeout.saturating_sub(bound));
        let reply: Vec<i64> =
            call.invoke_async(&mut self.server.allowing(longer)).await.map_err(error)?;
        let mut rest = &reply[..];
        let mut charged = Vec::with_capacity(groups.len());
        for group in groups {
            let rulings: Option<Vec<Ruling>> =
                group.charges.iter().map(|charge| charge.terms.read(&mut rest)).collect();
            let rulings = rulings
                .ok_or_else(|| Error::Store("the script returned an unexpected reply".into()))?;
            let permits = self.permits(group, &rulings);
            let mut numbered: Vec<(usize, Ruling)> =
                group.charges.iter().map(|charge| charge.number).zip(rulings).collect();
            numbered.sort_unstable_by_key(|(number, _)| *number);
            charged.push(Charged {
                rulings: numbered.into_iter().map(|(_, ruling)| ruling).collect(),
                permits,
            });
        }
        Ok(charged)
    }

    fn unanswered(&self, groups: &[Group]) {
        let permits: Vec<(String, u64)> = groups
            .iter()
            .flat_map(Group::permits)
            .map(|(key, permit, _)| (key.clone(), permit))
            .collect();
        if !permits.is_empty() {
            self.places.free_unanswered(permits);
        }
    }
}

impl Group {
    /// Returns the requested permits: the key, the permit, and the index of the charge.
    fn permits(&self) -> impl Iterator<Item = (&String, u64, usize)> {
        let mut keys = self.keys.iter();
        self.charges.iter().enumerate().filter_map(move |(n, charge)| {
            // Charges of permits do not share a key.
            let key = if charge.shares_key { None } else { keys.next() };
            Some((key?, charge.permit.filter(|_| charge.terms.mode == Mode::Charge)?, n))
        })
    }

    /// Returns the group that refunds what was charged.
    fn back(&self, rulings: &[Ruling]) -> Self {
        let mut keys = self.keys.iter();
        let mut back = Self { keys: Vec::new(), charges: Vec::new() };
        let mut key_of_last = None;
        for (charge, ruling) in self.charges.iter().zip(rulings) {
            if !charge.shares_key {
                key_of_last = keys.next().map(|key| (key, false));
            }
            let Some((key, used)) = &mut key_of_last else { continue };
            if ruling.granted == 0 || matches!(charge.terms.rule, Rule::Concurrency(_) | Rule::Free)
            {
                continue;
            }
            let shares_key = std::mem::replace(used, true);
            if !shares_key {
                back.keys.push((*key).clone());
            }
            let mode = Mode::GiveBack(0);
            let terms =
                ChargeKind { cost: ruling.granted, least: ruling.granted, mode, ..charge.terms };
            back.charges.push(Sent { terms, shares_key, permit: None, number: charge.number });
        }
        back
    }
}

/// A word of the script's arguments.
enum Word {
    Number(u64),
    /// A kind whose key is that of the previous charge.
    Sharing(usize),
}

impl redis::ToRedisArgs for Word {
    fn write_redis_args<W: ?Sized + redis::RedisWrite>(&self, out: &mut W) {
        let mut number = itoa::Buffer::new();
        match self {
            Self::Number(n) => out.write_arg(number.format(*n).as_bytes()),
            Self::Sharing(kind) => {
                let (mut text, digits) = (SmallVec::<[u8; 24]>::new(), number.format(*kind));
                text.push(b's');
                text.extend_from_slice(digits.as_bytes());
                out.write_arg(&text);
            }
        }
    }
}

impl Caller {
    /// Holds the permits that a group was granted, until they are dropped.
    fn permits(&self, group: &Group, rulings: &[Ruling]) -> Option<Permits> {
        let charges = || group.charges.iter().zip(rulings);
        if !charges().all(|(charge, ruling)| ruling.admitted || charge.terms.dry_run) {
            return None;
        }
        let given = group.permits().filter(|(_, _, n)| rulings[*n].granted > 0);
        let held: Vec<(String, u64)> =
            given.map(|(key, permit, _)| (key.clone(), permit)).collect();
        if held.is_empty() {
            return None;
        }
        self.places.hold(&held);
        let (places, runtime) = (Arc::clone(&self.places), Handle::current());
        // Released on the runtime of the drop, if there is one: the runtime on which they were
        // granted may have ended.
        Some(Permits::new(move || places.free(&Handle::try_current().unwrap_or(runtime), held)))
    }
}

impl ChargeKind {
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
            id: matches!(charge.terms.rule, Rule::Gcra(_)).then(|| charge.policy.identity().id),
        }
    }

    fn write(&self, call: &mut redis::ScriptInvocation<'_>) {
        let hold = HOLD.as_micros() as f64;
        let (algorithm, x, y, z) = match self.rule {
            Rule::Gcra(rate) => (1, rate.interval as f64 / 1e3, rate.burst, rate.debt / 1_000),
            Rule::Window(window) => (2, window.slot as f64 / 1e3, window.quota, window.kept as u64),
            Rule::Concurrency(places) => (3, hold, places, 0),
            Rule::Free => (3, hold, u32::MAX, 0),
        };
        let (mode, age) = match self.mode {
            Mode::Charge => (0, 0),
            Mode::GiveBack(age) => (1, age),
            Mode::Debit => (2, 0),
        };
        call.arg(algorithm)
            .arg(x)
            .arg(y)
            .arg(z)
            .arg(self.cost)
            .arg(self.least)
            .arg(u8::from(self.dry_run))
            .arg(mode)
            .arg(age);
        call.arg(self.id.as_ref().map_or(&[][..], |id| id));
    }

    /// Decodes the part of one charge from the reply.
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
                    // The reply is in whole microseconds: up to one microsecond short of a unit
                    // counts as a unit.
                    remaining: ((capacity - held + 1.0).max(0.0) / interval)
                        .min(f64::from(rate.burst)) as u32,
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

                Some(Ruling {
                    admitted,
                    granted: units(row[0]),
                    remaining: units(row[1]),
                    retry_after,
                    full_after,
                })
            }
            Rule::Concurrency(_) | Rule::Free => {
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
        let places = Places::new(PermitCaller {
            server: server.clone(),
            extend: Script::new(include_str!("extend.lua")),
            release: Script::new(include_str!("release.lua")),
        });
        let caller = Caller { server, charge: Script::new(include_str!("charge.lua")), places };
        Self { keys: Keys::new(app, "limit"), gather: Coalescer::new(Charges(caller)) }
    }

    fn server(&self) -> &scale_redis::Redis {
        &self.gather.calls().0.server
    }

    fn key(&self, charge: &Charge<'_>) -> String {
        let name = charge.policy.name();
        match charge.terms.rule {
            Rule::Gcra(_) => self.keys.tagged(charge.key, "buckets"),
            Rule::Window(window) => {
                self.keys.tagged(charge.key, &format!("{name}:w{}", window.kept))
            }
            Rule::Concurrency(_) | Rule::Free => {
                self.keys.tagged(charge.key, &format!("{name}:held"))
            }
        }
    }

    fn group(&self, charges: &[Charge<'_>], how: Option<Settle>) -> Group {
        let mut group =
            Group { keys: Vec::with_capacity(1), charges: Vec::with_capacity(charges.len()) };
        let is_bucket = |charge: &Charge<'_>| matches!(charge.terms.rule, Rule::Gcra(_));
        let mut order: SmallVec<[usize; 8]> = (0..charges.len()).collect();
        // Charges with buckets in one key are placed together, in the given order.
        let alike = |a: &Charge<'_>, b: &Charge<'_>| is_bucket(a) && is_bucket(b) && a.key == b.key;
        if charges.windows(2).any(|pair| !alike(&pair[0], &pair[1])) {
            order.sort_by_key(|n| (!is_bucket(&charges[*n]), charges[*n].key));
        }
        let mut before: Option<&Charge<'_>> = None;
        for number in order {
            let charge = &charges[number];
            let shares_key = before.is_some_and(|before| alike(before, charge));
            if !shares_key {
                group.keys.push(self.key(charge));
            }
            let permit = charge.takes_place().then_some(charge.permit);
            group.charges.push(Sent {
                terms: ChargeKind::of(charge, how),
                shares_key,
                permit,
                number,
            });
            before = Some(charge);
        }
        group
    }

    /// Splits charges into calls: in a Cluster by key, and everywhere at most [`PORTION`] per call,
    /// because more would block the server. After a denial the charges of the other calls are
    /// refunded.
    ///
    /// Runs in its own task: if the caller is dropped, charges must still be refunded.
    async fn in_portions(
        &self,
        charges: &[Charge<'_>],
        store_timeout: Duration,
    ) -> Result<Charged, Error> {
        let is_cluster = self.server().is_cluster();
        let mut numbers: Vec<usize> = (0..charges.len()).collect();
        if is_cluster {
            // Charges of one key are placed together, in the given order.
            numbers.sort_by_key(|n| charges[*n].key);
        }
        let by_slot = numbers.chunk_by(|a, b| !is_cluster || charges[*a].key == charges[*b].key);
        let portions: Vec<&[usize]> = by_slot.flat_map(|of_slot| of_slot.chunks(PORTION)).collect();
        // Concurrent calls of one key would only wait for each other.
        let at_once =
            if portions.windows(2).any(|pair| charges[pair[0][0]].key == charges[pair[1][0]].key) {
                1
            } else {
                AT_ONCE
            };
        let group = |portion: &&[usize]| {
            self.group(&portion.iter().map(|n| charges[*n]).collect::<Vec<_>>(), None)
        };
        let groups: Vec<Group> = portions.iter().map(group).collect();
        let ruled =
            tokio::spawn(all_or_none(Arc::clone(&self.gather), groups, at_once, store_timeout));
        let (by_portion, permits) =
            ruled.await.unwrap_or_else(|_| Err(Error::Store("runtime is shutting down".into())))?;
        let mut rulings: Vec<(usize, Ruling)> =
            portions.into_iter().flatten().copied().zip(by_portion.into_iter().flatten()).collect();
        rulings.sort_unstable_by_key(|(n, _)| *n);
        Ok(Charged { rulings: rulings.into_iter().map(|(_, ruling)| ruling).collect(), permits })
    }
}

/// Makes a call for each group, several at once; returns the rulings on each group.
async fn apart(
    gather: &Coalescer<Charges<Caller>>,
    groups: &[Group],
    at_once: usize,
    store_timeout: Duration,
) -> Vec<Result<Charged, Error>> {
    let calls = (0..groups.len()).map(|n| alone(gather, &groups[n..=n], store_timeout));
    futures_util::stream::iter(calls).buffered(at_once).collect().await
}

/// Makes a call for one group.
async fn alone(
    gather: &Coalescer<Charges<Caller>>,
    group: &[Group],
    store_timeout: Duration,
) -> Result<Charged, Error> {
    gather
        .calls()
        .make(group, store_timeout)
        .await?
        .pop()
        .ok_or_else(|| Error::Store("the script's reply is empty".into()))
}

/// Returns the rulings on each group, in the order of its charges, and the permits granted.
async fn all_or_none(
    gather: Arc<Coalescer<Charges<Caller>>>,
    groups: Vec<Group>,
    at_once: usize,
    store_timeout: Duration,
) -> Result<(Vec<Vec<Ruling>>, Option<Permits>), Error> {
    let (mut rulings, mut back, mut permits) = (Vec::with_capacity(groups.len()), Vec::new(), None);
    let (mut denied, mut failed) = (false, None);
    for (group, ruled) in groups.iter().zip(apart(&gather, &groups, at_once, store_timeout).await) {
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
        let of_charge = |charge: &Sent| ruled.rulings[charge.number];
        let in_order: Vec<Ruling> = group.charges.iter().map(of_charge).collect();
        if group
            .charges
            .iter()
            .zip(&in_order)
            .all(|(charge, ruling)| ruling.admitted || charge.terms.dry_run)
        {
            back.push(group.back(&in_order));
        } else {
            denied = true;
        }
        rulings.push(ruled.rulings);
    }
    if denied || failed.is_some() {
        permits = None;
        back.retain(|group| !group.keys.is_empty());
        // Units that cannot be refunded now are restored over time; a failed refund is not a reason
        // to deny.
        for undone in apart(&gather, &back, at_once, store_timeout.max(GIVING_BACK)).await {
            if let Err(error) = undone {
                tracing::warn!(
                    %error, "refund of a denied request failed: the units are restored over time",
                );
            }
        }
    }
    failed.map_or(Ok((rulings, permits)), Err)
}

/// Maps an error of the server: only an error that says that the server cannot serve is an outage.
fn error(error: redis::RedisError) -> Error {
    match error.code() {
        Some("ERR" | "WRONGTYPE" | "CROSSSLOT" | "NOPERM" | "NOSCRIPT") => {
            Error::Refused(Box::new(error))
        }
        _ => Error::Store(Box::new(error)),
    }
}

#[async_trait]
impl Store for Redis {
    async fn charge(
        &self,
        charges: &[Charge<'_>],
        store_timeout: Duration,
    ) -> Result<Charged, Error> {
        if charges.is_empty() {
            Ok(Charged { rulings: Vec::new(), permits: None })
        } else if self.server().is_cluster() || charges.len() > PORTION {
            self.in_portions(charges, store_timeout).await
        } else {
            rule(&self.gather, self.group(charges, None), store_timeout).await
        }
    }

    async fn settle(
        &self,
        charges: &[Charge<'_>],
        how: Settle,
        store_timeout: Duration,
    ) -> Result<(), Error> {
        if self.server().is_cluster() || charges.len() > PORTION {
            let groups: Vec<Group> =
                charges.iter().map(|charge| self.group(&[*charge], Some(how))).collect();
            for settled in apart(&self.gather, &groups, AT_ONCE, store_timeout).await {
                settled?;
            }
        } else if !charges.is_empty() {
            rule(&self.gather, self.group(charges, Some(how)), store_timeout).await?;
        }
        Ok(())
    }

    async fn clear(&self, charge: &Charge<'_>) -> Result<(), Error> {
        if matches!(charge.terms.rule, Rule::Gcra(_)) {
            // The key also contains other policies' buckets: only this one is filled.
            let all = Charge { cost: u32::MAX, least: u32::MAX, ..*charge };
            return self
                .settle(&[all], Settle::GiveBack(Duration::ZERO), Duration::from_secs(1))
                .await;
        }
        redis::cmd("DEL")
            .arg(self.key(charge))
            .query_async(&mut self.server().clone())
            .await
            .map_err(error)
    }
}
