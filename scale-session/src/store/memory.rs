//! Sessions of one process, gone with it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Changes, Fields, Handle, Lifetime, Owner, Proof, Proofs, REPLACED_FOR, Record, Saved, Standing, Store, Swapped};
use crate::error::Error;
use crate::value::{self, decode_number};

/// Beyond it the session nearest to its end goes first.
const MAX_SESSIONS: usize = 100_000;

#[derive(Debug)]
struct Entry {
    fields: Fields,
    proofs: Proofs,
    renewed: SystemTime,
    /// Until when it may be read by requests under way, of one that was replaced.
    frozen: Option<Instant>,
    seen: bool,
    expires: Instant,
    ends: Instant,
}

/// For one process: development, tests, small sites. At most 100,000 sessions.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    sessions: HashMap<Handle, Entry>,
    /// The same by their ends, the next one first.
    ends: BTreeSet<(Instant, Handle)>,
    owned: HashMap<Owner, HashSet<Handle>>,
}

impl All {
    fn insert(&mut self, handle: Handle, entry: Entry) {
        self.remove(&handle);
        if let Some(owner) = handle.owner() {
            self.owned.entry(*owner).or_default().insert(handle);
        }
        self.ends.insert((entry.expires, handle));
        self.sessions.insert(handle, entry);
    }

    fn remove(&mut self, handle: &Handle) -> Option<Entry> {
        let entry = self.sessions.remove(handle)?;
        self.ends.remove(&(entry.expires, *handle));
        if let Some(owner) = handle.owner()
            && let Some(handles) = self.owned.get_mut(owner)
        {
            handles.remove(handle);
            if handles.is_empty() {
                self.owned.remove(owner);
            }
        }
        Some(entry)
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Works on a living entry.
    fn with<T>(&self, handle: &Handle, work: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let all = &mut *self.0.lock();
        let entry = all.sessions.get_mut(handle)?;
        let before = entry.expires;
        if before <= Instant::now() {
            all.remove(handle);
            return None;
        }
        let done = work(entry);
        if entry.expires != before {
            all.ends.remove(&(before, *handle));
            all.ends.insert((entry.expires, *handle));
        }
        Some(done)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

impl Entry {
    fn set(&mut self, field: &str, value: Option<&[u8]>) {
        match value {
            Some(value) => self.fields.insert(field.to_owned(), value.to_owned()),
            None => self.fields.remove(field),
        };
    }

    fn renew(&mut self, idle: Duration) {
        self.renewed = SystemTime::now();
        self.expires = (Instant::now() + idle).min(self.ends);
    }

    fn standing(&self) -> Standing {
        match self.frozen {
            None => Standing::Live,
            Some(until) if Instant::now() < until => Standing::Frozen,
            Some(_) => Standing::Replaced,
        }
    }

    fn record(&self, proof: Option<&Proof>) -> Record {
        let standing = self.standing();
        let fields = if standing == Standing::Replaced { Fields::default() } else { self.fields.clone() };
        let is_current = proof.is_none_or(|proof| self.proofs.is_current(proof));
        Record { fields, renewed: self.renewed, standing, is_current, seen: self.seen }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error> {
        let record = self.with(handle, |entry| {
            let known = proof.is_none_or(|proof| entry.proofs.accepts(proof, now_ms()));
            known.then(|| entry.record(proof))
        });
        Ok(record.flatten())
    }

    async fn create(&self, handle: &Handle, proof: &Proof, changes: &Changes, lifetime: Lifetime) -> Result<(), Error> {
        let ends = Instant::now() + lifetime.absolute;
        let (fields, renewed) = (Fields::default(), SystemTime::now());
        let mut entry = Entry { fields, proofs: Proofs::new(*proof), renewed, frozen: None, seen: false, expires: ends, ends };
        changes.iter().for_each(|(field, value)| entry.set(field, value));
        entry.renew(lifetime.idle);
        let mut all = self.0.lock();
        while all.sessions.len() >= MAX_SESSIONS
            && let Some((_, next)) = all.ends.first().copied()
        {
            all.remove(&next);
        }
        all.insert(*handle, entry);
        Ok(())
    }

    async fn save(&self, handle: &Handle, changes: &Changes, idle: Option<Duration>) -> Result<Saved, Error> {
        let saved = self.with(handle, |entry| {
            if entry.frozen.is_some() {
                return Saved::Frozen;
            }
            changes.iter().for_each(|(field, value)| entry.set(field, value));
            if let Some(idle) = idle {
                entry.renew(idle);
                entry.seen = true;
            }
            Saved::Done
        });
        Ok(saved.unwrap_or(Saved::Gone))
    }

    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error> {
        let swapped = self.with(handle, |entry| {
            if entry.frozen.is_some() {
                return Swapped::Frozen;
            }
            let found = entry.fields.get(field).map(Vec::as_slice);
            if found != expected {
                return Swapped::Found(found.map(<[u8]>::to_vec));
            }
            entry.set(field, new);
            Swapped::Done
        });
        Ok(swapped.unwrap_or(Swapped::Gone))
    }

    async fn add(&self, handle: &Handle, field: &str, by: i64) -> Result<Option<Result<i64, Swapped>>, Error> {
        let added = self.with(handle, |entry| {
            if entry.frozen.is_some() {
                return Some(Err(Swapped::Frozen));
            }
            let sum = entry.fields.get(field).map_or(Some(0), |bytes| decode_number(bytes))?.saturating_add(by);
            entry.set(field, Some(&value::encode_number(sum)));
            Some(Ok(sum))
        });
        Ok(added.unwrap_or(Some(Err(Swapped::Gone))))
    }

    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof, grace: Duration) -> Result<Saved, Error> {
        let saved = self.with(handle, |entry| match entry.frozen {
            Some(_) => Saved::Frozen,
            None if entry.proofs.rotate(from, *to, now_ms(), grace) => Saved::Done,
            None => Saved::Stale,
        });
        Ok(saved.unwrap_or(Saved::Gone))
    }

    async fn freeze(&self, handle: &Handle, grace: Duration) -> Result<Option<Fields>, Error> {
        let frozen = self.with(handle, |entry| {
            if entry.frozen.is_none() {
                let until = Instant::now() + grace;
                (entry.frozen, entry.expires) = (Some(until), until + REPLACED_FOR);
            }
            let record = entry.record(None);
            (record.standing == Standing::Frozen).then_some(record.fields)
        });
        Ok(frozen.flatten())
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let (now, all) = (Instant::now(), self.0.lock());
        let entries = all.owned.get(owner).into_iter().flatten().filter_map(|handle| Some((*handle, all.sessions.get(handle)?)));
        let living = entries.filter(|(_, entry)| entry.expires > now && entry.frozen.is_none() && entry.seen);
        let own = |(handle, entry): (Handle, &Entry)| {
            let mut record = entry.record(None);
            record.fields.retain(|field, _| value::is_ours(field));
            (handle, record)
        };
        Ok(living.take(1_000).map(own).collect())
    }

    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<(), Error> {
        let mut all = self.0.lock();
        // In process, removing them is the one step.
        for handle in all.owned.get(owner).cloned().unwrap_or_default() {
            if Some(&handle) != except {
                all.remove(&handle);
            }
        }
        Ok(())
    }

    async fn destroy(&self, handle: &Handle) -> Result<bool, Error> {
        Ok(self.0.lock().remove(handle).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[tokio::test(start_paused = true)]
    async fn idle_and_absolute_time_outs_hold() {
        let (store, id) = (MemoryStore::new(), Id::random(None).unwrap());
        let handle = id.handle();
        let lifetime = Lifetime { idle: Duration::from_mins(1), absolute: Duration::from_secs(100) };
        store.create(&handle, &id.proof(), &Changes::default(), lifetime).await.unwrap();
        let (none, idle) = (Changes::default(), Some(lifetime.idle));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(store.save(&handle, &none, idle).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(store.save(&handle, &none, idle).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(store.save(&handle, &none, idle).await.unwrap(), Saved::Gone, "its hundred seconds are over");
    }
    #[tokio::test(start_paused = true)]
    async fn at_its_cap_the_session_nearest_to_its_end_goes() {
        let store = MemoryStore::new();
        let create = async |idle: u64| {
            let id = Id::random(None).unwrap();
            let lifetime = Lifetime { idle: Duration::from_secs(idle), absolute: Duration::from_hours(1) };
            store.create(&id.handle(), &id.proof(), &Changes::default(), lifetime).await.unwrap();
            id
        };
        let (short, long) = (create(60).await, create(600).await);
        for _ in 0..MAX_SESSIONS {
            create(300).await;
        }
        let lives = async |id: &Id| store.load(&id.handle(), Some(&id.proof())).await.unwrap().is_some();
        assert!(!lives(&short).await && lives(&long).await);
        let all = store.0.lock();
        assert_eq!((all.sessions.len(), all.ends.len()), (MAX_SESSIONS, MAX_SESSIONS));
    }
}
