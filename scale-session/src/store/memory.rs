//! Sessions of one process, gone with it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Changes, Fields, Handle, Left, Lifetime, Owner, Record, Saved, Store, Swapped};
use crate::error::Error;

/// Beyond it the session nearest to its end goes first.
const MAX_SESSIONS: usize = 100_000;
const SAMPLE: usize = 32;

#[derive(Debug)]
struct Entry {
    fields: Fields,
    renewed: SystemTime,
    moved_to: Option<Handle>,
    expires: Instant,
    ends: Instant,
}

/// For one process: development, tests, small sites. At most 100,000 sessions.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    sessions: HashMap<Handle, Entry>,
    owned: HashMap<Owner, HashSet<Handle>>,
}

impl All {
    fn remove(&mut self, handle: &Handle) -> Option<Entry> {
        if let Some(owner) = handle.owner()
            && let Some(handles) = self.owned.get_mut(owner)
        {
            handles.remove(handle);
            if handles.is_empty() {
                self.owned.remove(owner);
            }
        }
        self.sessions.remove(handle)
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Works on a living entry.
    fn with<T>(&self, handle: &Handle, work: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut all = self.0.lock();
        let entry = all.sessions.get_mut(handle)?;
        if entry.expires <= Instant::now() {
            all.remove(handle);
            return None;
        }
        Some(work(entry))
    }
}

impl Entry {
    fn apply(&mut self, changes: &Changes) {
        for (field, value) in changes.iter() {
            match value {
                Some(value) => self.fields.insert(field.to_owned(), value.to_owned()),
                None => self.fields.remove(field),
            };
        }
    }

    fn renew(&mut self, idle: Duration) {
        self.renewed = SystemTime::now();
        self.expires = (Instant::now() + idle).min(self.ends);
    }

    fn record(&self) -> Record {
        Record { fields: self.fields.clone(), renewed: self.renewed, moved_to: self.moved_to }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, handle: &Handle) -> Result<Option<Record>, Error> {
        Ok(self.with(handle, |entry| entry.record()))
    }

    async fn create(&self, handle: &Handle, changes: &Changes, lifetime: Lifetime) -> Result<(), Error> {
        let now = Instant::now();
        let ends = now + lifetime.absolute;
        let mut entry = Entry { fields: Fields::default(), renewed: SystemTime::now(), moved_to: None, expires: ends, ends };
        entry.apply(changes);
        entry.renew(lifetime.idle);
        let mut all = self.0.lock();
        if all.sessions.len() >= MAX_SESSIONS {
            let late: Vec<_> = all.sessions.iter().filter(|(_, e)| e.expires <= now).map(|(handle, _)| *handle).collect();
            for handle in &late {
                all.remove(handle);
            }
            while all.sessions.len() >= MAX_SESSIONS {
                let sample = all.sessions.iter().take(SAMPLE);
                let Some(oldest) = sample.min_by_key(|(_, e)| e.expires).map(|(handle, _)| *handle) else { break };
                all.remove(&oldest);
            }
        }
        if let Some(owner) = handle.owner() {
            all.owned.entry(*owner).or_default().insert(*handle);
        }
        all.sessions.insert(*handle, entry);
        Ok(())
    }

    async fn save(&self, handle: &Handle, changes: &Changes, idle: Option<Duration>) -> Result<Saved, Error> {
        let saved = self.with(handle, |entry| {
            if let Some(to) = entry.moved_to {
                return Saved::Moved(to);
            }
            entry.apply(changes);
            if let Some(idle) = idle {
                entry.renew(idle);
            }
            Saved::Done
        });
        Ok(saved.unwrap_or(Saved::Gone))
    }

    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error> {
        let swapped = self.with(handle, |entry| {
            if let Some(to) = entry.moved_to {
                return Swapped::Moved(to);
            }
            let found = entry.fields.get(field).map(Vec::as_slice);
            if found != expected {
                return Swapped::Found(found.map(<[u8]>::to_vec));
            }
            match new {
                Some(new) => entry.fields.insert(field.to_owned(), new.to_vec()),
                None => entry.fields.remove(field),
            };
            Swapped::Done
        });
        Ok(swapped.unwrap_or(Swapped::Gone))
    }

    async fn leave(&self, handle: &Handle, to: &Handle, expected: &Fields, grace: Duration) -> Result<Left, Error> {
        let left = self.with(handle, |entry| {
            if entry.moved_to.is_some() {
                return Left::Gone;
            }
            if entry.fields != *expected {
                return Left::Changed(entry.record());
            }
            entry.fields.clear();
            entry.moved_to = Some(*to);
            entry.expires = Instant::now() + grace;
            Left::Done
        });
        Ok(left.unwrap_or(Left::Gone))
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let (now, all) = (Instant::now(), self.0.lock());
        let entries = all.owned.get(owner).into_iter().flatten().filter_map(|handle| Some((*handle, all.sessions.get(handle)?)));
        let living = entries.filter(|(_, entry)| entry.expires > now && entry.moved_to.is_none());
        let own = |(handle, entry): (Handle, &Entry)| {
            let mut record = entry.record();
            record.fields.retain(|field, _| crate::value::is_ours(field));
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

    async fn destroy(&self, handle: &Handle) -> Result<Option<Handle>, Error> {
        Ok(self.0.lock().remove(handle).and_then(|entry| entry.moved_to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[tokio::test(start_paused = true)]
    async fn idle_and_absolute_time_outs_hold() {
        let (store, handle) = (MemoryStore::new(), Id::random(None).unwrap().handle());
        let lifetime = Lifetime { idle: Duration::from_mins(1), absolute: Duration::from_secs(100) };
        store.create(&handle, &Changes::default(), lifetime).await.unwrap();
        let (none, idle) = (Changes::default(), Some(lifetime.idle));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(store.save(&handle, &none, idle).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(store.save(&handle, &none, idle).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(store.save(&handle, &none, idle).await.unwrap(), Saved::Gone, "its hundred seconds are over");
    }
}
