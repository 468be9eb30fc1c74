//! The session of a request, as handlers see it.

mod lifecycle;
mod response;
mod state;

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tokio::sync::{Mutex, MutexGuard};

use self::response::written;
use crate::config::{Config, OnStoreError};

pub(crate) use self::state::{Place, State, predecessors};
use crate::error::Error;
use crate::store::{Fields, Lifetime, PendingChanges, Renewal, Store, Swapped};
use crate::value::{decode, encode, encode_number, encode_ours, is_ours};

/// Prefix of the fields that hold log-ins in progress. These fields are dropped at a sign-in:
/// another user may have begun those log-ins.
pub(crate) const STEP: &str = ".step.";
/// Attempts of an atomic update against concurrent writers.
const MAX_SWAPS: u32 = 1_000;

/// The session of one request. Clones share it. Nothing is loaded until a method needs it. Changes
/// are written when the handler has returned, except for [`update`](Self::update) and
/// [`increment`](Self::increment), which write at once.
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

impl Session {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        config: Arc<Config>,
        cookies: SmallVec<[HeaderValue; 1]>,
    ) -> Self {
        let state = State {
            cookies,
            place: Place::Unread,
            id: None,
            fields: Fields::default(),
            changes: PendingChanges::default(),
            rotate: false,
            is_current: false,
            renew: false,
            unseen: false,
            becomes: None,
            starts_empty: false,
            tell: false,
            has_been_in: false,
            asked: false,
            closed: false,
        };
        Self(Arc::new(Inner { store, config, state: Mutex::new(state) }))
    }

    /// Returns a field's value, or `None` if there is no such field, or no session.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Decode`] if the field has another type.
    pub async fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        let state = self.read().await?;
        state.fields.get(field).map(|bytes| decode(field, bytes)).transpose()
    }

    /// Sets a field. Fields that other requests of the session set at the same time are kept.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Closed`] once the response has been sent; [`Error::Replaced`]
    /// if the client has signed in or out in the meantime, and has another session.
    pub async fn insert<T: Serialize + ?Sized>(&self, field: &str, value: &T) -> Result<(), Error> {
        let bytes = encode(field, value)?;
        let mut state = self.writable().await?;
        state.has_room_for(field)?;
        if let Some(room) = self.0.store.room() {
            let others = state.fields.iter().filter(|(name, _)| *name != field);
            let taken: usize = others.map(|(name, value)| name.len() + value.len()).sum();
            if taken + field.len() + bytes.len() > room {
                return Err(Error::TooLarge("the store has no room for that value"));
            }
        }
        state.write(field, Some(bytes));
        Ok(())
    }

    /// Removes a field.
    ///
    /// # Errors
    /// The same as those of [`insert`](Self::insert).
    pub async fn remove(&self, field: &str) -> Result<(), Error> {
        let mut state = self.writable().await?;
        // Another request may have set the field since this one loaded the session.
        if !is_ours(field)
            && (state.fields.contains_key(field) || matches!(state.place, Place::At(..)))
        {
            state.write(field, None);
        }
        Ok(())
    }

    /// Removes a field and returns its value.
    pub async fn pull<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        let value = self.get(field).await?;
        self.remove(field).await?;
        Ok(value)
    }

    /// Stores a message for the next page. It is kept until [`flashed`](Self::flashed) reads it,
    /// once.
    pub async fn flash<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), Error> {
        self.insert(&format!("flash.{name}"), value).await
    }

    /// Returns the message stored by [`flash`](Self::flash), if it has not been read yet.
    pub async fn flashed<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.pull(&format!("flash.{name}")).await
    }

    /// Changes a field at once and atomically with respect to all other requests of the session.
    /// `change` may run several times; if it returns `None`, the field is removed. Returns what
    /// `change` returned last.
    ///
    /// # Errors
    /// [`Error::Gone`] if the session was destroyed in the meantime.
    pub async fn update<T, F>(&self, field: &str, change: F) -> Result<Option<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> Option<T>,
    {
        if is_ours(field) {
            return Err(Error::TooLarge("a field name has no leading dot and no zero byte"));
        }
        self.update_any(field, change).await
    }

    /// Does the same for any field, including fields reserved for this crate.
    pub(crate) async fn update_any<T, F>(
        &self,
        field: &str,
        mut change: F,
    ) -> Result<Option<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> Option<T>,
    {
        let mut state = self.read().await?;
        state.has_room_for(field)?;
        let handle = self.establish(&mut state).await?;
        let mut expected = state.fields.get(field).cloned();
        // The update builds on changes of this request that are not written yet.
        if state.changes.0.contains_key(field) {
            let pending = PendingChanges([(field.to_owned(), expected.clone())].into());
            written(self.0.store.save(&handle, &pending, None).await?)?;
            state.changes.0.remove(field);
        }
        for _ in 0..MAX_SWAPS {
            let old = expected.as_deref().map(|bytes| decode(field, bytes)).transpose()?;
            let new = change(old);
            let bytes = new.as_ref().map(|value| encode_ours(field, value)).transpose()?;
            match self.0.store.swap(&handle, field, expected.as_deref(), bytes.as_deref()).await? {
                Swapped::Done => {
                    match bytes {
                        Some(bytes) => state.fields.insert(field.to_owned(), bytes),
                        None => state.fields.remove(field),
                    };
                    return Ok(new);
                }
                Swapped::Found(found) => expected = found,
                Swapped::Frozen => return Err(Error::Replaced),
                Swapped::Gone => return Err(Error::Gone),
            }
        }
        Err(Error::Contended { field: field.into() })
    }

    /// Adds to a number at once and atomically, in one step for any number of concurrent callers.
    /// An absent field counts as 0. Returns the sum.
    ///
    /// # Errors
    /// [`Error::Decode`] if the field is not a number; [`Error::Gone`] and [`Error::Replaced`] as
    /// for [`update`](Self::update).
    pub async fn increment(&self, field: &str, by: i64) -> Result<i64, Error> {
        encode(field, &by)?;
        {
            let mut state = self.read().await?;
            state.has_room_for(field)?;
            if !state.changes.0.contains_key(field) {
                let handle = self.establish(&mut state).await?;
                match self.0.store.add(&handle, field, by).await? {
                    None => {}
                    Some(Ok(sum)) => {
                        state.fields.insert(field.to_owned(), encode_number(sum));
                        return Ok(sum);
                    }
                    Some(Err(Swapped::Frozen)) => return Err(Error::Replaced),
                    Some(Err(_)) => return Err(Error::Gone),
                }
            }
        }
        let sum =
            self.update(field, |n: Option<i64>| Some(n.unwrap_or(0).saturating_add(by))).await?;
        Ok(sum.unwrap_or(0))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// Records in the store at once that the client has sent its cookie, for methods that list the
    /// user's devices.
    pub(crate) async fn be_seen(&self) -> Result<(), Error> {
        let mut state = self.read().await?;
        self.mark_seen(&mut state).await
    }

    async fn mark_seen(&self, state: &mut State) -> Result<(), Error> {
        if let Place::At(handle, _) = state.place
            && state.unseen
        {
            self.0.store.save(&handle, &PendingChanges::default(), Some(self.renewal())).await?;
            state.unseen = false;
            if self.end_those_beyond(&handle).await {
                state.place = Place::Destroyed;
                state.fields.clear();
            }
        }
        Ok(())
    }

    fn renewal(&self) -> Renewal {
        Renewal { idle: self.0.config.idle(), grace: self.0.config.grace() }
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime { idle: self.0.config.idle(), absolute: self.0.config.absolute() }
    }

    /// Loads the session if it has not been loaded yet.
    pub(crate) async fn read(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.0.state.lock().await;
        state.asked = true;
        if state.place == Place::Unread {
            match self.load(&mut state).await {
                Err(error) if self.0.config.on_store_error == OnStoreError::Anonymous => {
                    tracing::warn!(
                        %error, "session load failed: the request continues without a session",
                    );
                    metrics::counter!("scale_session_errors_total", "during" => "load")
                        .increment(1);
                    state.place = Place::Unavailable;
                }
                other => other?,
            }
        }
        Ok(state)
    }

    /// Does the same, for changes that are written at the end of the request.
    async fn writable(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.read().await?;
        if state.closed {
            return Err(Error::Closed);
        }
        match state.place {
            // Changes after a sign-in in this request are written into the session that the sign-in
            // creates.
            Place::Replaced(_) | Place::Stale(_) if state.becomes.is_none() => Err(Error::Replaced),
            _ => Ok(state),
        }
    }
}

fn unavailable() -> Error {
    Error::Store("the session store does not answer".into())
}

impl fmt::Debug for Session {
    /// Omits the id and the values, which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}
