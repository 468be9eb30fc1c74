//! Shared state in the memory of one process.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{MemoryStore, sweep};
use crate::error::Error;
use crate::limit::LONGEST;
use crate::store::{BatchStore, End, MAX_REGISTERED, NewBatch, Notes, Registry, Tally};

#[derive(Debug, Default)]
pub(super) struct Shared {
    batches: HashMap<String, Batch>,
    notes: HashMap<String, (Vec<u8>, Instant)>,
    /// Registrations by kind and name.
    present: HashMap<(String, String), (Vec<u8>, Instant)>,
}

#[derive(Debug)]
struct Batch {
    tally: Tally,
    lenient: bool,
    plan: Vec<u8>,
    /// Number of the first job of each addition, and how many it has, by its name.
    grown: HashMap<String, (u32, u32)>,
    ends: HashMap<u32, End>,
    life: Duration,
    pub(super) until: Instant,
}

impl Shared {
    fn batch(&mut self, id: &str, now: Instant) -> Option<&mut Batch> {
        self.batches.get_mut(id).filter(|batch| batch.until > now)
    }
}

#[async_trait]
impl BatchStore for MemoryStore {
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error> {
        let NewBatch { total, lenient, plan, life } = batch;
        let mut shared = self.shared.lock();
        sweep(&mut shared.batches, self.clock.now(), |batch| batch.until);
        if shared.batch(id, self.clock.now()).is_none() {
            let life = life.min(LONGEST);
            let tally = Tally { total, ..Tally::default() };
            let batch = Batch {
                tally,
                lenient,
                plan: plan.to_vec(),
                grown: HashMap::new(),
                ends: HashMap::new(),
                life,
                until: self.clock.now() + life,
            };
            shared.batches.insert(id.to_owned(), batch);
        }
        Ok(())
    }

    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error> {
        let mut shared = self.shared.lock();
        let Some(batch) = shared.batch(id, self.clock.now()) else { return Ok(None) };
        let old = batch.ends.get(&number).copied();
        let is_new = match old {
            None => true,
            Some(End::Dead) => end == End::Done,
            Some(End::Done | End::Skipped) => false,
        };
        if !batch.tally.followed && number < batch.tally.total && is_new {
            batch.ends.insert(number, end);
            match end {
                End::Done | End::Skipped => batch.tally.done += 1,
                End::Dead => batch.tally.dead += 1,
            }
            if old.is_some() {
                batch.tally.dead -= 1;
            }
            if end == End::Dead && !batch.lenient && !batch.tally.cancelled {
                (batch.tally.cancelled, batch.tally.by_death) = (true, true);
            }
            batch.tally.skipped |= end == End::Skipped && batch.tally.by_death;
            batch.until = self.clock.now() + batch.life;
        }
        Ok(Some(batch.tally))
    }

    async fn grow_batch(&self, id: &str, name: &str, by: u32) -> Result<Option<(u32, u32)>, Error> {
        let (mut shared, now) = (self.shared.lock(), self.clock.now());
        let Some(batch) = shared.batch(id, now).filter(|batch| !batch.tally.followed) else {
            return Ok(None);
        };
        let total = batch.tally.total;
        let added = *batch.grown.entry(name.to_owned()).or_insert((total, by));
        if added.0 == total {
            batch.tally.total = total.saturating_add(by);
        }
        batch.until = now + batch.life;
        Ok(Some(added))
    }

    async fn ends(&self, id: &str, below: u32) -> Result<Vec<(u32, End)>, Error> {
        let mut shared = self.shared.lock();
        let Some(batch) = shared.batch(id, self.clock.now()) else { return Ok(Vec::new()) };
        let known = batch.ends.iter().filter(|(number, _)| **number < below);
        Ok(known
            .map(|(number, end)| (*number, if *end == End::Dead { End::Dead } else { End::Done }))
            .collect())
    }

    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error> {
        Ok(self
            .shared
            .lock()
            .batch(id, self.clock.now())
            .map(|batch| (batch.tally, batch.plan.clone())))
    }

    async fn conclude_batch(&self, id: &str, life: Duration) -> Result<(), Error> {
        if let Some(batch) = self.shared.lock().batch(id, self.clock.now()) {
            batch.tally.followed = true;
            batch.until = batch.until.min(self.clock.now() + life);
            batch.ends = HashMap::new();
        }
        Ok(())
    }

    async fn cancel_batch(&self, id: &str, by_death: bool) -> Result<bool, Error> {
        let mut shared = self.shared.lock();
        let Some(batch) = shared.batch(id, self.clock.now()) else { return Ok(false) };
        if !batch.tally.cancelled {
            (batch.tally.cancelled, batch.tally.by_death) = (true, by_death);
        }
        Ok(true)
    }

    async fn is_cancelled(&self, id: &str, number: u32) -> Result<bool, Error> {
        let mut shared = self.shared.lock();
        let is_cancelled = |batch: &mut Batch| {
            batch.tally.cancelled && batch.ends.get(&number) != Some(&End::Dead)
        };
        Ok(shared.batch(id, self.clock.now()).is_some_and(is_cancelled))
    }
}

#[async_trait]
impl Registry for MemoryStore {
    async fn register(
        &self,
        kind: &str,
        name: &str,
        about: &[u8],
        life: Duration,
    ) -> Result<(), Error> {
        let mut shared = self.shared.lock();
        sweep(&mut shared.present, self.clock.now(), |(_, until)| *until);
        let until = self.clock.now() + life.min(LONGEST);
        shared.present.insert((kind.to_owned(), name.to_owned()), (about.to_vec(), until));
        let known = shared.present.iter().filter(|((k, _), _)| k == kind);
        if shared.present.len() > MAX_REGISTERED && known.clone().count() > MAX_REGISTERED {
            let oldest = known.min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            oldest.and_then(|key| shared.present.remove(&key));
        }
        Ok(())
    }

    async fn deregister(&self, kind: &str, name: &str) -> Result<(), Error> {
        self.shared.lock().present.remove(&(kind.to_owned(), name.to_owned()));
        Ok(())
    }

    async fn registered(
        &self,
        kind: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let (now, shared) = (self.clock.now(), self.shared.lock());
        let mut known: Vec<_> = shared
            .present
            .iter()
            .filter(|((k, _), (_, until))| k == kind && *until > now)
            .collect();
        known.sort_unstable_by(|((_, a), (_, until_a)), ((_, b), (_, until_b))| {
            (until_b, b).cmp(&(until_a, a))
        });
        let page = known.into_iter().skip(offset).take(limit);
        Ok(page.map(|((_, name), (about, _))| (name.clone(), about.clone())).collect())
    }
}

#[async_trait]
impl Notes for MemoryStore {
    async fn put_note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error> {
        let mut shared = self.shared.lock();
        sweep(&mut shared.notes, self.clock.now(), |(_, until)| *until);
        shared.notes.insert(key.to_owned(), (value.to_vec(), self.clock.now() + life.min(LONGEST)));
        Ok(())
    }

    async fn forget_notes(&self, keys: &[String]) -> Result<(), Error> {
        let mut shared = self.shared.lock();
        for key in keys {
            shared.notes.remove(key);
        }
        Ok(())
    }

    async fn read_note(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let shared = self.shared.lock();
        Ok(shared
            .notes
            .get(key)
            .filter(|(_, until)| *until > self.clock.now())
            .map(|(value, _)| value.clone()))
    }
}
