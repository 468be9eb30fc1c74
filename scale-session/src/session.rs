//! The handle a request holds.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tokio::sync::{Mutex, MutexGuard};

use crate::changes::Changes;
use crate::config::{Config, OnStoreError};
use crate::error::Error;
use crate::id::{Handle, Id};
use crate::store::{Fields, Left, Lifetime, Owner, Saved, Store, Swapped};
use crate::value::{decode, encode, is_ours};

const MAX_FIELDS: usize = 128;
/// How often an atomic update is tried against other writers.
const MAX_SWAPS: u32 = 1_000;
/// How often a session is copied to its new id, when others write to it meanwhile.
const MAX_MOVES: u32 = 100;

/// The session of one request. Clones share it. Nothing is loaded until a method asks for it; changes are written when the handler
/// has returned, except for [`update`](Self::update) and [`increment`](Self::increment), which write at once.
///
/// ```no_run
/// # async fn handler(session: scale_session::Session) -> Result<(), scale_session::Error> {
/// session.insert("theme", "dark").await?;
/// let theme: Option<String> = session.get("theme").await?;
/// let visits = session.increment("visits", 1).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    config: Arc<Config>,
    state: Mutex<State>,
}

/// What this request knows and wants. The id a client presents is only believed once the store knows it.
pub(crate) struct State {
    cookies: SmallVec<[HeaderValue; 1]>,
    pub(crate) place: Place,
    fields: Fields,
    changes: Changes,
    rotate: bool,
    /// Due whether it is time for it or not.
    renew: bool,
    /// Whose it is to be, when it gets its next id.
    owner: Option<Owner>,
    /// Drawn by this request: the client must be told.
    drawn: Option<Id>,
}

pub(crate) enum Place {
    /// Nobody has asked yet.
    Unread,
    /// There is no session; one is made if something is written.
    Nowhere,
    /// Here, last renewed then.
    At(Handle, SystemTime),
    /// Destroyed by this request.
    Destroyed,
    /// The store does not answer, and the request goes on without a session.
    Unavailable,
}

/// What the layer does with the cookie.
#[derive(Debug)]
pub(crate) enum Verdict {
    Leave,
    Set(String),
    Clear,
}

impl Session {
    pub(crate) fn new(store: Arc<dyn Store>, config: Arc<Config>, cookies: SmallVec<[HeaderValue; 1]>) -> Self {
        let state = State {
            cookies,
            place: Place::Unread,
            fields: Fields::default(),
            changes: Changes::default(),
            rotate: false,
            renew: false,
            owner: None,
            drawn: None,
        };
        Self(Arc::new(Inner { store, config, state: Mutex::new(state) }))
    }

    /// A field's value; `None` if there is no such field, or no session.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Decode`] if the field holds another type.
    pub async fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        let state = self.read().await?;
        state.fields.get(field).map(|bytes| decode(field, bytes)).transpose()
    }

    /// Sets a field. Fields that other requests of the session set meanwhile are kept.
    pub async fn insert<T: Serialize + ?Sized>(&self, field: &str, value: &T) -> Result<(), Error> {
        let bytes = encode(field, value)?;
        let mut state = self.read().await?;
        if state.fields.len() >= MAX_FIELDS && !state.fields.contains_key(field) {
            return Err(Error::TooLarge("a session has at most 128 fields"));
        }
        if let Some(room) = self.0.store.room() {
            let others = state.fields.iter().filter(|(name, _)| *name != field);
            let taken: usize = others.map(|(name, value)| name.len() + value.len()).sum();
            if taken + field.len() + bytes.len() > room {
                return Err(Error::TooLarge("it has no room for that value"));
            }
        }
        state.write(field, Some(bytes));
        Ok(())
    }

    /// Removes a field.
    pub async fn remove(&self, field: &str) -> Result<(), Error> {
        let mut state = self.read().await?;
        if !is_ours(field) && state.fields.contains_key(field) {
            state.write(field, None);
        }
        Ok(())
    }

    /// Removes a field and returns what it held.
    pub async fn pull<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        let value = self.get(field).await?;
        self.remove(field).await?;
        Ok(value)
    }

    /// Leaves a word for the next page: kept until [`flashed`](Self::flashed) reads it, once.
    pub async fn flash<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), Error> {
        self.insert(&format!("flash.{name}"), value).await
    }

    /// What was left by [`flash`](Self::flash), if nobody has read it yet.
    pub async fn flashed<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.pull(&format!("flash.{name}")).await
    }

    /// Changes a field atomically, against all other requests of the session, and at once. `change` may run several times; `None` from it
    /// removes the field. Returns what it returned.
    ///
    /// # Errors
    /// [`Error::Gone`] if the session was destroyed meanwhile.
    pub async fn update<T, F>(&self, field: &str, mut change: F) -> Result<Option<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> Option<T>,
    {
        if is_ours(field) {
            return Err(Error::TooLarge("a field's name does not start with a dot or a zero byte"));
        }
        let mut state = self.read().await?;
        let handle = self.establish(&mut state).await?;
        let mut expected = state.fields.get(field).cloned();
        // What this request has set before but not yet written is what it builds upon.
        if state.changes.0.contains_key(field) {
            let pending = Changes([(field.to_owned(), expected.clone())].into());
            if !self.save(&mut state, &pending, false).await? {
                return Err(Error::Gone);
            }
            state.changes.0.remove(field);
        }
        let mut handle = handle;
        for _ in 0..MAX_SWAPS {
            let old = expected.as_deref().map(|bytes| decode(field, bytes)).transpose()?;
            let new = change(old);
            let bytes = new.as_ref().map(|value| encode(field, value)).transpose()?;
            match self.0.store.swap(&handle, field, expected.as_deref(), bytes.as_deref()).await? {
                Swapped::Done => {
                    match bytes {
                        Some(bytes) => state.fields.insert(field.to_owned(), bytes),
                        None => state.fields.remove(field),
                    };
                    return Ok(new);
                }
                Swapped::Found(found) => expected = found,
                Swapped::Moved(to) => handle = to,
                Swapped::Gone => return Err(Error::Gone),
            }
        }
        Err(Error::Contended { field: field.into() })
    }

    /// Adds to a number atomically and at once; an absent field counts as 0. Returns the sum.
    pub async fn increment(&self, field: &str, by: i64) -> Result<i64, Error> {
        let sum = self.update(field, |n: Option<i64>| Some(n.unwrap_or(0).saturating_add(by))).await?;
        Ok(sum.unwrap_or(0))
    }

    /// Gives the session a new id, at login and at every change of privilege: an id somebody else planted or saw is worth nothing then.
    /// The old id works for a few seconds more, for requests under way.
    pub async fn rotate(&self) -> Result<(), Error> {
        self.read().await?.rotate = true;
        Ok(())
    }

    /// Starts the idle time-out anew at the end of this request, though nothing has changed: for pages that only ask whether somebody is
    /// still there, do not.
    pub async fn renew(&self) -> Result<(), Error> {
        self.read().await?.renew = true;
        Ok(())
    }

    /// Removes the session and its cookie, at once: logout.
    pub async fn destroy(&self) -> Result<(), Error> {
        let mut state = self.read().await?;
        // A rotation under way must not keep alive what is logged out here.
        let mut next = match state.place {
            Place::At(handle, _) => Some(handle),
            _ => None,
        };
        while let Some(handle) = next {
            next = self.0.store.destroy(&handle).await?;
        }
        state.place = Place::Destroyed;
        state.drawn = None;
        state.fields.clear();
        state.changes = Changes::default();
        state.rotate = false;
        state.owner = None;
        Ok(())
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime { idle: self.0.config.idle_timeout, absolute: self.0.config.absolute_timeout }
    }

    /// Loads if nobody has yet.
    pub(crate) async fn read(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.0.state.lock().await;
        if matches!(state.place, Place::Unread) {
            match self.load(&mut state).await {
                Err(error) if self.0.config.on_store_error == OnStoreError::Anonymous => {
                    tracing::warn!(%error, "the session cannot be read; the request goes on without");
                    metrics::counter!("scale_session_errors_total", "during" => "load").increment(1);
                    state.place = Place::Unavailable;
                }
                other => other?,
            }
        }
        Ok(state)
    }

    async fn load(&self, state: &mut State) -> Result<(), Error> {
        let Some(mut handle) = self.0.config.cookie.read(&state.cookies).and_then(|cookie| self.0.store.presented(cookie)) else {
            state.place = Place::Nowhere;
            return Ok(());
        };
        let mut found = self.0.store.load(&handle).await?;
        // One rotation may have happened under way; a chain of them within the grace is nobody's ordinary life.
        if let Some(to) = found.as_ref().and_then(|record| record.moved_to) {
            handle = to;
            found = self.0.store.load(&handle).await?.filter(|record| record.moved_to.is_none());
        }
        match found {
            Some(record) => {
                state.fields = record.fields;
                state.owner = handle.owner().copied();
                state.place = Place::At(handle, record.renewed);
            }
            None => state.place = Place::Nowhere,
        }
        Ok(())
    }

    /// The session's handle; makes the session if there is none. The id presented is never adopted: a new one is drawn.
    async fn establish(&self, state: &mut State) -> Result<Handle, Error> {
        match state.place {
            Place::At(handle, _) => Ok(handle),
            Place::Destroyed | Place::Unavailable => Err(Error::Gone),
            Place::Unread | Place::Nowhere => {
                let id = Id::random(state.owner).map_err(|e| Error::Store(Box::new(e)))?;
                let handle = id.handle();
                self.0.store.create(&handle, &state.changes, self.lifetime()).await?;
                state.changes = Changes::default();
                state.place = Place::At(handle, SystemTime::now());
                state.drawn = Some(id);
                state.rotate = false;
                Ok(handle)
            }
        }
    }

    /// Saves where the session lives, following one rotation; `false` if it is gone.
    async fn save(&self, state: &mut State, changes: &Changes, renew: bool) -> Result<bool, Error> {
        let idle = renew.then_some(self.0.config.idle_timeout);
        for _ in 0..2 {
            let Place::At(handle, renewed) = state.place else { return Ok(false) };
            match self.0.store.save(&handle, changes, idle).await? {
                Saved::Done => return Ok(true),
                Saved::Moved(to) => state.place = Place::At(to, renewed),
                Saved::Gone => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Writes what changed, whatever was answered, and returns the `Set-Cookie` to send, if there is one. The layer calls it when the
    /// handler has returned.
    ///
    /// # Errors
    /// The changes could not be saved: answer with 503. Not if it is [configured](Config::on_store_error) that requests go on without.
    pub async fn close(&self) -> Result<Option<HeaderValue>, Error> {
        let Config { cookie, absolute_timeout, on_store_error, .. } = &*self.0.config;
        match self.finish().await {
            Ok(Verdict::Leave) => Ok(None),
            Ok(Verdict::Set(value)) => Ok(cookie.set(&value, *absolute_timeout)),
            Ok(Verdict::Clear) => Ok(cookie.clear()),
            Err(error) => {
                tracing::error!(%error, "the session could not be saved");
                metrics::counter!("scale_session_errors_total", "during" => "save").increment(1);
                if *on_store_error == OnStoreError::Unavailable { Err(error) } else { Ok(None) }
            }
        }
    }

    async fn finish(&self) -> Result<Verdict, Error> {
        match self.settle().await? {
            Verdict::Clear => Ok(Verdict::Clear),
            verdict => Ok(self.0.store.cookie()?.map_or(verdict, Verdict::Set)),
        }
    }

    async fn settle(&self) -> Result<Verdict, Error> {
        let mut state = self.0.state.lock().await;
        match state.place {
            Place::Unread | Place::Unavailable => return Ok(Verdict::Leave),
            Place::Destroyed => return Ok(self.farewell(&state)),
            Place::Nowhere if state.changes.is_empty() => return Ok(self.farewell(&state)),
            Place::Nowhere => drop(self.establish(&mut state).await?),
            Place::At(handle, _) if state.rotate => return self.relocate(&mut state, handle).await,
            Place::At(_, renewed) => {
                let renew =
                    state.renew || SystemTime::now().duration_since(renewed).unwrap_or_default() >= self.0.config.renewal();
                let changes = std::mem::take(&mut state.changes);
                if (renew || !changes.is_empty()) && !self.save(&mut state, &changes, renew).await? {
                    // Logged out meanwhile: the write is dropped, as that request would have it.
                    metrics::counter!("scale_session_writes_dropped_total").increment(1);
                    return Ok(Verdict::Clear);
                }
            }
        }
        Ok(state.drawn.take().map_or(Verdict::Leave, |id| Verdict::Set(id.text())))
    }

    /// There is no session: whatever cookie was sent is worth nothing.
    fn farewell(&self, state: &State) -> Verdict {
        if self.0.config.cookie.presents(&state.cookies) { Verdict::Clear } else { Verdict::Leave }
    }

    /// New id: the copy stands, with all that was written by then, before the pointer to it is left. So a request under way always finds one
    /// of the two, and nothing in it that is older than what it has seen.
    async fn relocate(&self, state: &mut State, old: Handle) -> Result<Verdict, Error> {
        let Some(mut held) = self.0.store.load(&old).await? else { return Ok(Verdict::Leave) };
        for _ in 0..MAX_MOVES {
            // Rotated by another request: that one's id stands. A log-in that comes second is none.
            if let Some(to) = held.moved_to {
                if state.owner.as_ref() == old.owner() {
                    state.place = Place::At(to, held.renewed);
                    let changes = std::mem::take(&mut state.changes);
                    self.save(state, &changes, true).await?;
                }
                return Ok(Verdict::Leave);
            }
            let id = Id::random(state.owner).map_err(|e| Error::Store(Box::new(e)))?;
            let new = id.handle();
            let mut copy = Changes(held.fields.iter().map(|(field, value)| (field.clone(), Some(value.clone()))).collect());
            for (field, value) in state.changes.iter() {
                copy.set(field, value.map(<[u8]>::to_vec));
            }
            copy.0.retain(|_, value| value.is_some());
            self.0.store.create(&new, &copy, self.lifetime()).await?;
            let left = self.0.store.leave(&old, &new, &held.fields, self.0.config.rotation_grace).await?;
            if left == Left::Done {
                return Ok(Verdict::Set(id.text()));
            }
            self.0.store.destroy(&new).await?;
            held = match left {
                Left::Changed(record) => record,
                _ => match self.0.store.load(&old).await? {
                    Some(record) => record,
                    None => return Ok(Verdict::Leave),
                },
            };
        }
        Err(Error::Contended { field: "id".into() })
    }
}

impl State {
    pub(crate) fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(Vec::as_slice)
    }

    /// A new id, of a session that belongs to somebody or nobody.
    pub(crate) fn move_to(&mut self, owner: Option<Owner>) {
        self.owner = owner;
        self.rotate = true;
    }

    pub(crate) fn write(&mut self, field: &str, value: Option<Vec<u8>>) {
        // A session destroyed by this request may start anew, under a new id.
        if matches!(self.place, Place::Destroyed) {
            self.place = Place::Nowhere;
        }
        match &value {
            Some(bytes) => self.fields.insert(field.to_owned(), bytes.clone()),
            None => self.fields.remove(field),
        };
        self.changes.set(field, value);
    }
}

impl fmt::Debug for Session {
    /// Without id and values: they are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}
