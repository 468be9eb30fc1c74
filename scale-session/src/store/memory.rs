//! Sessions in the memory of one process.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Destroyed, Fields, Handle, Lifetime, Owner, PendingChanges, Proof, Proofs, REPLACED_FOR,
    Record, Renewal, Saved, Standing, Store, Succession, Swapped,
};
use crate::error::Error;
use crate::value::{self, decode_number};

/// Maximum number of sessions. Beyond it the session that expires next is removed, anonymous ones
/// first.
const MAX_SESSIONS: usize = 100_000;

#[derive(Debug)]
struct Entry {
    fields: Fields,
    proofs: Proofs,
    renewed: SystemTime,
    /// Time until which requests in progress may read the session, if it was replaced.
    frozen: Option<Instant>,
    next: Option<Handle>,
    seen: bool,
    expires: Instant,
    ends: Instant,
}

/// Store for one process: development, tests, small sites. At most 100,000 sessions.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    sessions: HashMap<Handle, Entry>,
    /// Sessions by expiry, the next one first: anonymous sessions, and sessions with an owner.
    ends: [BTreeSet<(Instant, Handle)>; 2],
    owned: HashMap<Owner, HashSet<Handle>>,
}

impl All {
    /// Calls `work` with an entry that has not expired.
    fn with<T>(&mut self, handle: &Handle, work: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let entry = self.sessions.get_mut(handle)?;
        let before = entry.expires;
        if before <= Instant::now() {
            self.remove(handle);
            return None;
        }
        let done = work(entry);
        if entry.expires != before {
            let ends = &mut self.ends[side(handle)];
            ends.remove(&(before, *handle));
            ends.insert((entry.expires, *handle));
        }
        Some(done)
    }

    fn insert(&mut self, handle: Handle, entry: Entry) {
        self.remove(&handle);
        if let Some(owner) = handle.owner() {
            self.owned.entry(*owner).or_default().insert(handle);
        }
        self.ends[side(&handle)].insert((entry.expires, handle));
        self.sessions.insert(handle, entry);
    }

    /// Removes one session to make room for another.
    fn evict(&mut self) {
        let [nobodys, somebodys] = &self.ends;
        let over = somebodys.first().filter(|(end, _)| *end <= Instant::now());
        if let Some((_, handle)) = over.or(nobodys.first()).or(somebodys.first()).copied() {
            self.remove(&handle);
        }
    }

    fn remove(&mut self, handle: &Handle) -> Option<Entry> {
        let entry = self.sessions.remove(handle)?;
        self.ends[side(handle)].remove(&(entry.expires, *handle));
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
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, handle: &Handle, work: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.0.lock().with(handle, work)
    }
}

/// Returns the index of the session's set in `ends`.
fn side(handle: &Handle) -> usize {
    usize::from(handle.owner().is_some())
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
        let is_known = proof.is_none_or(|proof| self.proofs.accepts(proof, now_ms()));
        let standing = if is_known { self.standing() } else { Standing::Stale };
        let is_read = matches!(standing, Standing::Live | Standing::Frozen);
        Record {
            fields: if is_read { self.fields.clone() } else { Fields::default() },
            renewed: self.renewed,
            standing,
            is_current: proof.is_none_or(|proof| self.proofs.is_current(proof)),
            seen: self.seen,
            is_unconfirmed: self.proofs.is_unconfirmed(),
            next: self.next,
        }
    }

    /// Removes the content; that the session existed stays known.
    fn empty(&mut self) {
        self.frozen = Some(Instant::now());
        self.fields.clear();
    }

    /// Freezes the session, whose client has another one now.
    fn freeze(&mut self, next: Handle, grace: Duration) {
        let until = (Instant::now() + grace).min(self.ends);
        (self.frozen, self.next, self.expires) =
            (Some(until), Some(next), Instant::now() + grace + REPLACED_FOR);
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error> {
        Ok(self.with(handle, |entry| entry.record(proof)))
    }

    async fn create(
        &self,
        handle: &Handle,
        proof: &Proof,
        changes: &PendingChanges,
        lifetime: Lifetime,
    ) -> Result<(), Error> {
        let ends = Instant::now() + lifetime.absolute;
        let (fields, renewed) = (Fields::default(), SystemTime::now());
        let proofs = Proofs::new(*proof);
        let mut entry = Entry {
            fields,
            proofs,
            renewed,
            frozen: None,
            next: None,
            seen: false,
            expires: ends,
            ends,
        };
        changes.iter().for_each(|(field, value)| entry.set(field, value));
        entry.renew(lifetime.idle);
        let mut all = self.0.lock();
        while all.sessions.len() >= MAX_SESSIONS {
            all.evict();
        }
        all.insert(*handle, entry);
        Ok(())
    }

    async fn save(
        &self,
        handle: &Handle,
        changes: &PendingChanges,
        renewal: Option<Renewal>,
    ) -> Result<Saved, Error> {
        let saved = self.with(handle, |entry| {
            if entry.frozen.is_some() {
                return Saved::Frozen;
            }
            changes.iter().for_each(|(field, value)| entry.set(field, value));
            if let Some(Renewal { idle, grace }) = renewal {
                entry.renew(idle);
                entry.proofs.confirm(now_ms(), grace);
                entry.seen = true;
            }
            Saved::Done
        });
        Ok(saved.unwrap_or(Saved::Gone))
    }

    async fn swap(
        &self,
        handle: &Handle,
        field: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swapped, Error> {
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

    async fn add(
        &self,
        handle: &Handle,
        field: &str,
        by: i64,
    ) -> Result<Option<Result<i64, Swapped>>, Error> {
        let added = self.with(handle, |entry| {
            if entry.frozen.is_some() {
                return Some(Err(Swapped::Frozen));
            }
            let sum = entry
                .fields
                .get(field)
                .map_or(Some(0), |bytes| decode_number(bytes))?
                .saturating_add(by);
            entry.set(field, Some(&value::encode_number(sum)));
            Some(Ok(sum))
        });
        Ok(added.unwrap_or(Some(Err(Swapped::Gone))))
    }

    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error> {
        let saved = self.with(handle, |entry| match entry.frozen {
            Some(_) => Saved::Frozen,
            None if entry.proofs.rotate(from, *to, now_ms()) => Saved::Done,
            None => Saved::Stale,
        });
        Ok(saved.unwrap_or(Saved::Gone))
    }

    async fn freeze(
        &self,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<Option<Fields>, Error> {
        let frozen = self.with(handle, |entry| match entry.standing() {
            Standing::Live => {
                entry.freeze(*next, grace);
                Some(entry.fields.clone())
            }
            Standing::Frozen => Some(entry.fields.clone()),
            Standing::Replaced | Standing::Stale => None,
        });
        Ok(frozen.flatten())
    }

    async fn succeed(
        &self,
        handle: &Handle,
        next: &Succession<'_>,
        changes: &PendingChanges,
    ) -> Result<Saved, Error> {
        let mut all = self.0.lock();
        let made = all.with(handle, |entry| {
            if entry.frozen.is_some() {
                return Err(Saved::Frozen);
            }
            let mut made = Entry {
                fields: entry.fields.clone(),
                proofs: Proofs::new(*next.proof),
                renewed: SystemTime::now(),
                frozen: None,
                next: None,
                seen: false,
                expires: entry.ends,
                ends: entry.ends,
            };
            changes.iter().for_each(|(field, value)| made.set(field, value));
            made.renew(next.idle);
            entry.freeze(*next.handle, next.grace);
            Ok(made)
        });
        Ok(match made {
            None => Saved::Gone,
            Some(Err(saved)) => saved,
            Some(Ok(made)) => {
                all.insert(*next.handle, made);
                Saved::Done
            }
        })
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let (now, all) = (Instant::now(), self.0.lock());
        let entries = all
            .owned
            .get(owner)
            .into_iter()
            .flatten()
            .filter_map(|handle| Some((*handle, all.sessions.get(handle)?)));
        let living = entries
            .filter(|(_, entry)| entry.expires > now && entry.frozen.is_none() && entry.seen);
        let own = |(handle, entry): (Handle, &Entry)| {
            let mut record = entry.record(None);
            record.fields.retain(|field, _| value::is_ours(field));
            (handle, record)
        };
        Ok(living.take(1_000).map(own).collect())
    }

    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error> {
        let mut all = self.0.lock();
        let lives =
            |handle: &Handle| all.sessions.get(handle).is_some_and(|entry| entry.frozen.is_none());
        if except.is_some_and(|handle| !lives(handle)) {
            return Ok(false);
        }
        // In one process, removal under the lock is one step. Replaced sessions stay known as such.
        for handle in all.owned.get(owner).cloned().unwrap_or_default() {
            match all.sessions.get_mut(&handle) {
                _ if Some(&handle) == except => {}
                Some(entry) if entry.frozen.is_some() => entry.empty(),
                _ => drop(all.remove(&handle)),
            }
        }
        Ok(true)
    }

    async fn destroy(&self, handle: &Handle, known_for: Duration) -> Result<Destroyed, Error> {
        let mut all = self.0.lock();
        let destroyed = all.with(handle, |entry| {
            let was_frozen = entry.frozen.is_some();
            if was_frozen && entry.next.is_none() {
                return Destroyed::Gone;
            }
            entry.empty();
            if was_frozen {
                return Destroyed::Replaced(entry.next);
            }
            entry.expires = Instant::now() + known_for;
            Destroyed::Done
        });
        Ok(destroyed.unwrap_or(Destroyed::Gone))
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
        let lifetime =
            Lifetime { idle: Duration::from_mins(1), absolute: Duration::from_secs(100) };
        store.create(&handle, &id.proof(), &PendingChanges::default(), lifetime).await.unwrap();
        let (none, renewal) = (
            PendingChanges::default(),
            Some(Renewal { idle: lifetime.idle, grace: Duration::ZERO }),
        );
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(store.save(&handle, &none, renewal).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(store.save(&handle, &none, renewal).await.unwrap(), Saved::Done);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            store.save(&handle, &none, renewal).await.unwrap(),
            Saved::Gone,
            "its hundred seconds are over"
        );
    }
    #[tokio::test(start_paused = true)]
    async fn at_its_cap_the_session_nearest_to_its_end_goes() {
        let store = MemoryStore::new();
        let create = async |idle: u64| {
            let id = Id::random(None).unwrap();
            let lifetime =
                Lifetime { idle: Duration::from_secs(idle), absolute: Duration::from_hours(1) };
            store
                .create(&id.handle(), &id.proof(), &PendingChanges::default(), lifetime)
                .await
                .unwrap();
            id
        };
        let (short, long) = (create(60).await, create(600).await);
        for _ in 0..MAX_SESSIONS {
            create(300).await;
        }
        let lives =
            async |id: &Id| store.load(&id.handle(), Some(&id.proof())).await.unwrap().is_some();
        assert!(!lives(&short).await && lives(&long).await);
        let all = store.0.lock();
        assert_eq!((all.sessions.len(), all.ends[0].len()), (MAX_SESSIONS, MAX_SESSIONS));
    }

    #[tokio::test(start_paused = true)]
    async fn visitors_push_nobody_out_who_is_signed_in() {
        let store = MemoryStore::new();
        let create = async |owner: Option<Owner>, minutes: u64| {
            let id = Id::random(owner).unwrap();
            let lifetime =
                Lifetime { idle: Duration::from_mins(minutes), absolute: Duration::from_hours(24) };
            store
                .create(&id.handle(), &id.proof(), &PendingChanges::default(), lifetime)
                .await
                .unwrap();
            id
        };
        let (user, over) =
            (create(Some(Owner::of("ann")), 10).await, create(Some(Owner::of("ben")), 1).await);
        tokio::time::advance(Duration::from_mins(2)).await;
        for _ in 0..MAX_SESSIONS + 1_000 {
            create(None, 600).await;
        }
        assert!(store.load(&user.handle(), Some(&user.proof())).await.unwrap().is_some());
        assert!(
            !store.0.lock().sessions.contains_key(&over.handle()),
            "what has expired goes first"
        );
    }
}
