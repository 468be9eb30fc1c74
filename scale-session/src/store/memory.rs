//! Sessions of one process, gone with it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Changes, Handle, Lifetime, Record, Saved, Store, Swapped};
use crate::error::Error;

/// Beyond it the session nearest to its end goes first.
const MAX_SESSIONS: usize = 100_000;
const SAMPLE: usize = 32;

#[derive(Debug)]
struct Entry {
    fields: HashMap<String, Vec<u8>>,
    renewed: SystemTime,
    moved_to: Option<Handle>,
    expires: Instant,
    ends: Instant,
}

/// For one process: development, tests, small sites. At most 100,000 sessions.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<HashMap<Handle, Entry>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Works on a living entry.
    fn with<T>(&self, handle: &Handle, work: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.0.lock();
        let entry = entries.get_mut(handle)?;
        if entry.expires <= Instant::now() {
            entries.remove(handle);
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
        let mut entry = Entry { fields: HashMap::new(), renewed: SystemTime::now(), moved_to: None, expires: ends, ends };
        entry.apply(changes);
        entry.renew(lifetime.idle);
        let mut entries = self.0.lock();
        if entries.len() >= MAX_SESSIONS {
            entries.retain(|_, e| e.expires > now);
            while entries.len() >= MAX_SESSIONS {
                let Some(oldest) = entries.iter().take(SAMPLE).min_by_key(|(_, e)| e.expires).map(|(h, _)| *h) else { break };
                entries.remove(&oldest);
            }
        }
        entries.insert(*handle, entry);
        Ok(())
    }

    async fn save(&self, handle: &Handle, changes: &Changes, lifetime: Lifetime) -> Result<Saved, Error> {
        let saved = self.with(handle, |entry| {
            if let Some(to) = entry.moved_to {
                return Saved::Moved(to);
            }
            entry.apply(changes);
            entry.renew(lifetime.idle);
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

    async fn leave(&self, handle: &Handle, to: &Handle, grace: Duration) -> Result<Option<Record>, Error> {
        let left = self.with(handle, |entry| {
            if entry.moved_to.is_some() {
                return None;
            }
            let record = entry.record();
            entry.fields.clear();
            entry.moved_to = Some(*to);
            entry.expires = Instant::now() + grace;
            Some(record)
        });
        Ok(left.flatten())
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
        let (store, handle) = (MemoryStore::new(), Id::random().unwrap().handle());
        let lifetime = Lifetime { idle: Duration::from_mins(1), absolute: Duration::from_secs(100) };
        store.create(&handle, &Changes::default(), lifetime).await.unwrap();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(store.save(&handle, &Changes::default(), lifetime).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(store.save(&handle, &Changes::default(), lifetime).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(1)).await;
        let saved = store.save(&handle, &Changes::default(), lifetime).await.unwrap();
        assert_eq!(saved, Saved::Gone, "its hundred seconds are over");
    }
}
