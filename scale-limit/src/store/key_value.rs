//! Stores of your own: limits in any store that changes a few keys in one atomic step.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use smallvec::SmallVec;
use tokio::runtime::Handle;

use super::permits::{HOLD, PermitStore, Places};
use super::{Charge, Charged, Settle, Store, is_charged};
use crate::algorithm::{Bytes, Rule, Ruling, State, Undo};
use crate::error::Error;
use crate::permit::Permits;

/// A store that several processes share, and that changes a few keys in one atomic step: a
/// transaction of a database, or a compare-and-swap loop.
///
/// | a store must | because |
/// | --- | --- |
/// | apply a change to all keys or to none, with no other change of these keys in between | a limit admits more than its quota otherwise |
/// | pass the time of one clock, the same for all processes | states contain times |
/// | keep a state at least as long as its [`Write::Set`] says | a denial is forgotten otherwise |
///
/// Losing states, for example by eviction, admits their keys anew. A call that takes longer than
/// the [store time-out](crate::Limiter::store_timeout) is dropped.
#[async_trait]
pub trait KeyValueStore: Send + Sync + std::fmt::Debug + 'static {
    /// Reads the states under `keys`, which are distinct, passes them to
    /// [`change`](Change::apply), and writes its result, as one atomic step. The change may be
    /// applied again, if the step has to be repeated: the result of the last one counts.
    ///
    /// Keys are valid UTF-8 of at most 128 bytes plus the application's name. They contain no
    /// secret. States have at most 300 bytes; those of [concurrency
    /// policies](crate::Policy::concurrency) 20 bytes for each permit in use.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer; [`Error::Refused`] if it answers, and refuses
    /// this call.
    async fn update(&self, keys: &[String], change: &mut Change<'_>) -> Result<(), Error>;
}

/// Result of a change, for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The state stays as it is.
    Keep,
    /// The state is replaced, and kept for a time.
    Set {
        /// New state.
        state: Vec<u8>,
        /// Time for which the state matters.
        keep: Duration,
    },
    /// The state is removed.
    Remove,
}

/// A change of states that a [`KeyValueStore`] applies.
pub struct Change<'c>(&'c mut Compute<'c>);

type Compute<'c> = dyn FnMut(u64, &[Option<Vec<u8>>]) -> Vec<Write> + Send + 'c;

impl std::fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Change")
    }
}

impl Change<'_> {
    /// Returns what to write under each key. `now`: the time since 1970 by the store's clock.
    /// `states`: the states under the keys, in their order; `None` for a key without one.
    pub fn apply(&mut self, now: Duration, states: &[Option<Vec<u8>>]) -> Vec<Write> {
        (self.0)(nanos(now), states)
    }
}

/// Limits in a [`KeyValueStore`].
///
/// | key | state | kept |
/// | --- | --- | --- |
/// | `{app}:limit:{key}:{policy}:g` | buckets of GCRA, one for each shape | until all are full |
/// | `{app}:limit:{key}:{policy}:w1`, `:w11` | counters of windows, for each length | until all slots are out of the window |
/// | `{app}:limit:{key}:{policy}:c` | permits: holder, number of units, expiry | half a minute after the last renewal |
///
/// `{policy}` is a hash of the policy's name.
pub(crate) struct KeyValue {
    prefix: String,
    store: Arc<dyn KeyValueStore>,
    places: Arc<Places<PermitCalls>>,
}

impl std::fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.store.fmt(f)
    }
}

impl KeyValue {
    pub(crate) fn new(store: impl KeyValueStore, app: &str) -> Self {
        let store: Arc<dyn KeyValueStore> = Arc::new(store);
        let places = Places::new(PermitCalls(Arc::clone(&store)));
        Self { prefix: format!("{app}:limit:"), store, places }
    }

    fn key(&self, charge: &Charge<'_>) -> String {
        let policy = data_encoding::HEXLOWER.encode(&charge.policy.identity().id);
        let kind = match charge.terms.rule {
            Rule::Gcra(_) | Rule::Free => "g".to_owned(),
            Rule::Window(window) => format!("w{}", window.kept),
            Rule::Concurrency(_) => "c".to_owned(),
        };
        format!("{}{}:{policy}:{kind}", self.prefix, charge.key)
    }

    /// Returns the distinct keys, and the index of each charge's key.
    fn keys(&self, charges: &[Charge<'_>]) -> (Vec<String>, SmallVec<[usize; 8]>) {
        let mut keys: Vec<String> = Vec::with_capacity(charges.len());
        let index = charges.iter().map(|charge| {
            let key = self.key(charge);
            keys.iter().position(|known| *known == key).unwrap_or_else(|| {
                keys.push(key);
                keys.len() - 1
            })
        });
        let index = index.collect();
        (keys, index)
    }

    /// Runs a change that may fail to read a state.
    async fn update<T: Send>(
        &self,
        keys: &[String],
        mut compute: impl FnMut(u64, &[Option<Vec<u8>>]) -> Option<(T, Vec<Write>)> + Send,
    ) -> Result<T, Error> {
        let mut result = None;
        let mut change = |now: u64, states: &[Option<Vec<u8>>]| {
            let (answer, writes) = match compute(now, states) {
                Some((answer, writes)) => (Some(answer), writes),
                None => (None, vec![Write::Keep; states.len()]),
            };
            result = Some(answer);
            writes
        };
        self.store.update(keys, &mut Change(&mut change)).await?;
        let result = result.ok_or_else(|| Error::Store("the store applied no change".into()))?;
        result.ok_or_else(|| Error::Store("a state in the store cannot be read".into()))
    }
}

#[async_trait]
impl Store for KeyValue {
    async fn charge(&self, charges: &[Charge<'_>], _: Duration) -> Result<Charged, Error> {
        if charges.is_empty() {
            return Ok(Charged { rulings: Vec::new(), permits: None });
        }
        let (keys, index) = self.keys(charges);
        let asked = charges.iter().zip(&index).filter(|(charge, _)| charge.takes_place());
        let asked = asked.map(|(charge, n)| (keys[*n].clone(), charge.permit)).collect();
        let mut unanswered = Unanswered { places: &self.places, permits: asked };
        let rulings =
            self.update(&keys, |now, states| rule_on(charges, &index, now, states)).await?;
        unanswered.permits.clear();
        let is_charged = is_charged(charges, &rulings);
        let granted = charges.iter().zip(&index).zip(&rulings).filter(|((charge, _), ruling)| {
            is_charged && charge.takes_place() && ruling.granted > 0
        });
        let held: Vec<(String, u64)> =
            granted.map(|((charge, n), _)| (keys[*n].clone(), charge.permit)).collect();
        let permits = (!held.is_empty()).then(|| {
            self.places.hold(&held);
            let (places, runtime) = (Arc::clone(&self.places), Handle::current());
            Permits::new(move || places.free(&Handle::try_current().unwrap_or(runtime), held))
        });
        Ok(Charged { rulings, permits })
    }

    async fn settle(&self, charges: &[Charge<'_>], how: Settle, _: Duration) -> Result<(), Error> {
        if charges.is_empty() {
            return Ok(());
        }
        let (keys, index) = self.keys(charges);
        self.update(&keys, |now, states| {
            let mut found = Stored::read_all(charges, &index, now, states)?;
            for (charge, n) in charges.iter().zip(&index) {
                let is_known = states[*n].is_some();
                let (Stored::State(state), rule) = (&mut found[*n], &charge.terms.rule) else {
                    continue;
                };
                match how {
                    Settle::GiveBack(age) if is_known => {
                        rule.give_back(state, now, charge.cost, nanos(age));
                    }
                    Settle::GiveBack(_) => {}
                    Settle::Debit => rule.debit(state, now, charge.cost),
                }
            }
            Some(((), Stored::write_all(&found, now, states)))
        })
        .await
    }

    async fn clear(&self, charge: &Charge<'_>) -> Result<(), Error> {
        self.update(&[self.key(charge)], |_, _| Some(((), vec![Write::Remove]))).await
    }
}

/// Permits of a call whose caller gave up: the call may still be executed.
struct Unanswered<'s> {
    places: &'s Arc<Places<PermitCalls>>,
    permits: Vec<(String, u64)>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.permits.is_empty() && Handle::try_current().is_ok() {
            self.places.free_unanswered(std::mem::take(&mut self.permits));
        }
    }
}

/// State of one key.
enum Stored {
    State(State),
    /// Permits in use: holder, number of units, expiry (ns).
    Permits(Vec<(u64, u32, u64)>),
}

impl Stored {
    /// Reads the states of all keys; `None` if one cannot be read.
    fn read_all(
        charges: &[Charge<'_>],
        index: &[usize],
        now: u64,
        states: &[Option<Vec<u8>>],
    ) -> Option<Vec<Self>> {
        let of_key = |(n, bytes): (usize, &Option<Vec<u8>>)| {
            let (charge, _) = charges.iter().zip(index).find(|(_, of)| **of == n)?;
            let rule = &charge.terms.rule;
            match (bytes, rule) {
                (None, Rule::Concurrency(_)) => Some(Self::Permits(Vec::new())),
                (None, _) => Some(Self::State(rule.fresh())),
                (Some(bytes), Rule::Concurrency(_)) => {
                    let mut permits = read_permits(bytes)?;
                    permits.retain(|(.., until)| *until > now);
                    Some(Self::Permits(permits))
                }
                (Some(bytes), _) => State::read(rule, bytes).map(Self::State),
            }
        };
        states.iter().enumerate().map(of_key).collect()
    }

    /// Returns what to write for each key.
    fn write_all(found: &[Self], now: u64, states: &[Option<Vec<u8>>]) -> Vec<Write> {
        let write = |(found, before): (&Self, &Option<Vec<u8>>)| {
            let (state, until) = match found {
                Self::State(state) => (state.write(), state.until()),
                Self::Permits(permits) => {
                    let last = permits.iter().map(|(.., until)| *until).max();
                    (write_permits(permits), last.unwrap_or_default())
                }
            };
            match before {
                Some(before) if *before == state => Write::Keep,
                None if until <= now => Write::Keep,
                Some(_) if until <= now => Write::Remove,
                _ => {
                    // Clocks differ in speed, and some stores keep whole seconds.
                    let keep = Duration::from_nanos(until - now) + Duration::from_secs(1);
                    Write::Set { state, keep }
                }
            }
        };
        found.iter().zip(states).map(write).collect()
    }
}

/// Rules on charges, in the given order, so that a key that occurs twice is charged twice. If one
/// denies, all are undone in reverse order.
fn rule_on(
    charges: &[Charge<'_>],
    index: &[usize],
    now: u64,
    states: &[Option<Vec<u8>>],
) -> Option<(Vec<Ruling>, Vec<Write>)> {
    let mut found = Stored::read_all(charges, index, now, states)?;
    let mut undos: SmallVec<[Undo; 8]> = SmallVec::new();
    let mut rulings = Vec::with_capacity(charges.len());
    for (charge, n) in charges.iter().zip(index) {
        let (rule, cost, least) = (&charge.terms.rule, charge.cost, charge.least);
        let (ruling, undo) = match &mut found[*n] {
            _ if *rule == Rule::Free => (Ruling::FREE, Undo::Nothing),
            Stored::State(state) => rule.charge_undoable(state, now, cost, least),
            Stored::Permits(permits) => {
                let used =
                    permits.iter().fold(0_u32, |sum, (_, units, _)| sum.saturating_add(*units));
                let (ruling, undo) = rule.charge_undoable(&mut State::Held(used), now, cost, least);
                if ruling.granted > 0 {
                    permits.push((charge.permit, ruling.granted, now.saturating_add(nanos(HOLD))));
                }
                (ruling, undo)
            }
        };
        rulings.push(ruling);
        undos.push(undo);
    }
    if !is_charged(charges, &rulings) {
        for ((charge, n), undo) in charges.iter().zip(index).zip(undos).rev() {
            match &mut found[*n] {
                Stored::State(state) => state.undo(undo),
                Stored::Permits(permits) => permits.retain(|(id, ..)| *id != charge.permit),
            }
        }
    }
    let writes = Stored::write_all(&found, now, states);
    Some((rulings, writes))
}

/// Version of the bytes of permits.
const PERMITS: u8 = 1;

fn read_permits(bytes: &[u8]) -> Option<Vec<(u64, u32, u64)>> {
    let mut bytes = Bytes(bytes);
    if bytes.take::<1>()?[0] != PERMITS {
        return None;
    }
    let mut permits = Vec::with_capacity(bytes.0.len() / 20);
    while !bytes.0.is_empty() {
        permits.push((bytes.number()?, u32::from_le_bytes(bytes.take()?), bytes.number()?));
    }
    Some(permits)
}

fn write_permits(permits: &[(u64, u32, u64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 20 * permits.len());
    out.push(PERMITS);
    for (id, units, until) in permits {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&units.to_le_bytes());
        out.extend_from_slice(&until.to_le_bytes());
    }
    out
}

/// Renews and releases permits.
struct PermitCalls(Arc<dyn KeyValueStore>);

impl PermitCalls {
    async fn change(
        &self,
        key: &str,
        mut change: impl FnMut(u64, &mut Vec<(u64, u32, u64)>) + Send,
    ) -> Result<(), Error> {
        let mut compute = |now: u64, states: &[Option<Vec<u8>>]| {
            let bytes = states.first().and_then(Option::as_ref);
            let Some(mut permits) = bytes.and_then(|bytes| read_permits(bytes)) else {
                return vec![Write::Keep; states.len()];
            };
            permits.retain(|(.., until)| *until > now);
            change(now, &mut permits);
            Stored::write_all(&[Stored::Permits(permits)], now, states)
        };
        self.0.update(&[key.to_owned()], &mut Change(&mut compute)).await
    }
}

#[async_trait]
impl PermitStore for PermitCalls {
    async fn extend(&self, key: &str, permits: &[u64]) -> Result<(), Error> {
        self.change(key, |now, held| {
            for (_, _, until) in held.iter_mut().filter(|(id, ..)| permits.contains(id)) {
                *until = now.saturating_add(nanos(HOLD));
            }
        })
        .await
    }

    async fn release(&self, key: &str, permit: u64) -> Result<(), Error> {
        self.change(key, |_, held| held.retain(|(id, ..)| *id != permit)).await
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Algorithm, Policy};
    use crate::store::Memory;
    use proptest::prelude::*;

    const START: u64 = 1_000_000_000_000;

    /// A store without processes: the states, and what was written last.
    fn charge_in(
        states: &mut std::collections::HashMap<String, Vec<u8>>,
        keys: &KeyValue,
        now: u64,
        charges: &[Charge<'_>],
    ) -> Vec<Ruling> {
        let (names, index) = keys.keys(charges);
        let found: Vec<_> = names.iter().map(|name| states.get(name).cloned()).collect();
        let (rulings, writes) = rule_on(charges, &index, now, &found).unwrap();
        for (name, write) in names.into_iter().zip(writes) {
            match write {
                Write::Keep => {}
                Write::Set { state, .. } => drop(states.insert(name, state)),
                Write::Remove => drop(states.remove(&name)),
            }
        }
        rulings
    }

    #[derive(Debug)]
    struct Nowhere;

    #[async_trait]
    impl KeyValueStore for Nowhere {
        async fn update(&self, _: &[String], _: &mut Change<'_>) -> Result<(), Error> {
            Ok(())
        }
    }

    proptest! {
        /// For policies whose numbers stay the same. A state that is unused is not stored, so the
        /// numbers of a deployment under way are taken over later here.
        #[test]
        fn it_rules_as_the_memory_store_does(
            steps in prop::collection::vec(
                (
                    0_u64..400_000_000,
                    prop::collection::vec((0_usize..3, 0_usize..2, 0_u32..4), 1..4),
                ),
                1..60,
            ),
        ) {
            let keys = KeyValue::new(Nowhere, "test");
            let policies = [
                Policy::per_second("a", 3),
                Policy::per_second("b", 3).algorithm(Algorithm::SlidingWindow),
                Policy::per_second("c", 3).algorithm(Algorithm::FixedWindow),
            ];
            let (memory, mut states) = (Memory::default(), std::collections::HashMap::new());
            let mut now = START;
            for (pause, charges) in steps {
                now += pause;
                let charges: Vec<_> = charges
                    .iter()
                    .map(|(policy, key, cost)| {
                        Charge::new(&policies[*policy], ["x", "y"][*key], *cost)
                    })
                    .collect();
                prop_assert_eq!(
                    charge_in(&mut states, &keys, now, &charges),
                    memory.charge(now, &charges)
                );
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = read_permits(&bytes);
            for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
                let policy = Policy::per_second("p", 3).algorithm(algorithm);
                let charge = Charge::new(&policy, "k", 1);
                for bytes in [bytes.clone(), [&[1, 3][..], &bytes].concat()] {
                    let _ = rule_on(&[charge], &[0], START, &[Some(bytes)]);
                }
            }
        }
    }

    #[test]
    fn permits_expire_and_are_refused_at_the_maximum() {
        let keys = KeyValue::new(Nowhere, "test");
        let mut states = std::collections::HashMap::new();
        let policy = Policy::concurrency("places", 2);
        let charge = || Charge::new(&policy, "k", 1);
        let admitted = |states: &mut _, now| charge_in(states, &keys, now, &[charge()])[0].admitted;
        assert!(admitted(&mut states, START) && admitted(&mut states, START));
        assert!(!admitted(&mut states, START));
        assert!(admitted(&mut states, START + nanos(HOLD) + 1));
        // Two of one request, and a policy that denies: none is taken.
        let tight = Policy::per_hour("tight", 1);
        let mut ask = || {
            let both = [charge(), charge(), Charge::new(&tight, "k", 2)];
            let rulings = charge_in(&mut states, &keys, START + 3 * nanos(HOLD), &both);
            (rulings[0].admitted, rulings[1].admitted, rulings[2].admitted)
        };
        assert_eq!(ask(), (true, true, false));
        assert_eq!(ask(), (true, true, false));
    }
}
