//! Records in the memory of one process.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Owner, Store, Swapped};
use crate::auth::error::Error;

/// Maximum number of owners. Beyond it owners whose records have all expired are removed, and new
/// owners are refused.
const MOST: usize = 1_000_000;

type Owned = HashMap<String, (Vec<u8>, Option<Instant>)>;

/// Record store for one process: development, tests, small sites.
#[derive(Debug, Default)]
pub struct MemoryRecords(Mutex<HashMap<Owner, Owned>>);

fn is_kept(ends: Option<Instant>) -> bool {
    ends.is_none_or(|ends| ends > Instant::now())
}

#[async_trait]
impl Store for MemoryRecords {
    async fn put(
        &self,
        owner: &Owner,
        id: &str,
        record: &[u8],
        keep: Option<Duration>,
        most: usize,
    ) -> Result<bool, Error> {
        let mut owners = self.0.lock();
        if owners.len() >= MOST && !owners.contains_key(owner) {
            owners.retain(|_, owned| owned.values().any(|(_, ends)| is_kept(*ends)));
            if owners.len() >= MOST {
                return Err(Error::OneTimeStore("the store is full".into()));
            }
        }
        let owned = owners.entry(*owner).or_default();
        owned.retain(|_, (_, ends)| is_kept(*ends));
        if owned.len() >= most && !owned.contains_key(id) {
            return Ok(false);
        }
        owned.insert(
            id.to_owned(),
            (record.to_owned(), keep.and_then(|keep| Instant::now().checked_add(keep))),
        );
        Ok(true)
    }

    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let owners = self.0.lock();
        let found = owners.get(owner).and_then(|owned| owned.get(id));
        Ok(found.filter(|(_, ends)| is_kept(*ends)).map(|(record, _)| record.clone()))
    }

    async fn swap(
        &self,
        owner: &Owner,
        id: &str,
        old: &[u8],
        new: &[u8],
    ) -> Result<Swapped, Error> {
        let mut owners = self.0.lock();
        let found = owners.get_mut(owner).and_then(|owned| owned.get_mut(id));
        let Some((known, _)) = found.filter(|(_, ends)| is_kept(*ends)) else {
            return Ok(Swapped::Gone);
        };
        if known != old {
            return Ok(Swapped::Changed);
        }
        new.clone_into(known);
        Ok(Swapped::Done)
    }

    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let owners = self.0.lock();
        let kept = owners.get(owner).into_iter().flatten().filter(|(_, (_, ends))| is_kept(*ends));
        Ok(kept.map(|(id, (record, _))| (id.clone(), record.clone())).collect())
    }

    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error> {
        let mut owners = self.0.lock();
        let Some(owned) = owners.get_mut(owner) else { return Ok(false) };
        let removed = owned.remove(id).is_some_and(|(_, ends)| is_kept(ends));
        if owned.is_empty() {
            owners.remove(owner);
        }
        Ok(removed)
    }

    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error> {
        let owned = self.0.lock().remove(owner).unwrap_or_default();
        Ok(owned.values().filter(|(_, ends)| is_kept(*ends)).count() as u64)
    }
}
