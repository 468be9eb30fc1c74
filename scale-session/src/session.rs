//! The handle a request holds.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tokio::sync::{Mutex, MutexGuard};

use crate::changes::Changes;
use crate::config::{Config, OnStoreError};
use crate::error::Error;
use crate::headers::{CLEAR_SITE_DATA, keep_from_shared_caches};
use crate::signed::{BEFORE, signed_in_since};
use crate::store::{
    Destroyed, ENDED_FOR, Fields, Handle, Id, Lifetime, Owner, Proof, Record, Renewal, Saved, Standing, Store, Succession,
    Swapped,
};
use crate::value::{decode, encode, encode_number, encode_ours, is_ours};

const MAX_FIELDS: usize = 128;
/// Fields whose names begin so hold log-ins under way. They end with a sign-in: whoever signs in may not have begun them.
pub(crate) const STEP: &str = ".step.";
/// How often an atomic update is tried against other writers.
const MAX_SWAPS: u32 = 1_000;

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
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct State {
    cookies: SmallVec<[HeaderValue; 1]>,
    pub(crate) place: Place,
    /// The id that the client presented, if the store knows it, or that this request has drawn.
    id: Option<Id>,
    fields: Fields,
    changes: Changes,
    rotate: bool,
    /// The id presented is that of the last rotation.
    is_current: bool,
    /// Due whether it is time for it or not.
    renew: bool,
    /// Its client has sent its cookie, and the store does not know yet.
    unseen: bool,
    /// Whose it is to be from now on, under an id that nobody has seen.
    becomes: Option<NewOwner>,
    /// What the session held was another user's: the new one has nothing of it.
    starts_empty: bool,
    /// Drawn by this request: the client must be told.
    tell: bool,
    /// This request has been in it: its client presented an id of it that was good, or it was drawn here.
    has_been_in: bool,
    /// Somebody has asked for the session: the response depends on it.
    asked: bool,
    /// The response has been sent.
    closed: bool,
}

/// Whose a session is to be.
#[derive(Clone, Copy)]
enum NewOwner {
    /// Somebody has shown who they are: a user's, or nobody's yet while a second factor is missing.
    SignedIn(Option<Owner>),
    /// The user of this session has proved to be themselves anew.
    Same,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nobody has asked yet.
    Unread,
    /// There is no session; one is made if something is written.
    Nowhere,
    /// Here, last renewed then.
    At(Handle, SystemTime),
    /// The client has another session since: this one is read and not written, and the cookie is not this request's to change.
    Replaced(Handle),
    /// The client has shown a later id of this session: nothing is read, and the cookie is not this request's to change.
    Stale(Handle),
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
            id: None,
            fields: Fields::default(),
            changes: Changes::default(),
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

    /// A field's value; `None` if there is no such field, or no session.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Decode`] if the field holds another type.
    pub async fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        let state = self.read().await?;
        state.fields.get(field).map(|bytes| decode(field, bytes)).transpose()
    }

    /// Sets a field. Fields that other requests of the session set meanwhile are kept.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Closed`] once the response has been sent; [`Error::Replaced`] if the client has signed in or out
    /// meanwhile, and has another session.
    pub async fn insert<T: Serialize + ?Sized>(&self, field: &str, value: &T) -> Result<(), Error> {
        let bytes = encode(field, value)?;
        let mut state = self.writable().await?;
        state.has_room_for(field)?;
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
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub async fn remove(&self, field: &str) -> Result<(), Error> {
        let mut state = self.writable().await?;
        // Another request may have set it since this one looked.
        if !is_ours(field) && (state.fields.contains_key(field) || matches!(state.place, Place::At(..))) {
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
    pub async fn update<T, F>(&self, field: &str, change: F) -> Result<Option<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> Option<T>,
    {
        if is_ours(field) {
            return Err(Error::TooLarge("a field's name does not start with a dot or a zero byte"));
        }
        self.update_any(field, change).await
    }

    /// The same of any field, ours too.
    pub(crate) async fn update_any<T, F>(&self, field: &str, mut change: F) -> Result<Option<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> Option<T>,
    {
        let mut state = self.read().await?;
        state.has_room_for(field)?;
        let handle = self.establish(&mut state).await?;
        let mut expected = state.fields.get(field).cloned();
        // What this request has set before but not yet written is what it builds upon.
        if state.changes.0.contains_key(field) {
            let pending = Changes([(field.to_owned(), expected.clone())].into());
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

    /// Adds to a number atomically and at once, in one step however many do so; an absent field counts as 0. Returns the sum.
    ///
    /// # Errors
    /// [`Error::Decode`] if the field holds something else; [`Error::Gone`] and [`Error::Replaced`] as for [`update`](Self::update).
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
        let sum = self.update(field, |n: Option<i64>| Some(n.unwrap_or(0).saturating_add(by))).await?;
        Ok(sum.unwrap_or(0))
    }

    /// Gives the session a new id, from time to time. The old one works for a few seconds more, for requests under way: so this is not for
    /// a change of who somebody is; [`sign_in`](Self::sign_in) and its like leave no way from the old id to the new session.
    ///
    /// # Errors
    /// [`Error::Closed`] once the response has been sent; [`Error::Replaced`].
    pub async fn rotate(&self) -> Result<(), Error> {
        self.writable().await?.rotate = true;
        Ok(())
    }

    /// Starts the idle time-out anew at the end of this request, though nothing has changed: for pages that only ask whether somebody is
    /// still there, do not.
    ///
    /// # Errors
    /// As [`rotate`](Self::rotate).
    pub async fn renew(&self) -> Result<(), Error> {
        self.writable().await?.renew = true;
        Ok(())
    }

    /// Removes the session and its cookie, at once: logout. However often the session has been rotated, by whichever of its ids.
    ///
    /// # Errors
    /// [`Error::Store`]: it may live on. Whatever is [configured](Config::on_store_error): a logout is not pretended.
    pub async fn destroy(&self) -> Result<(), Error> {
        let mut state = self.read().await?;
        match state.place {
            Place::At(handle, _) | Place::Stale(handle) | Place::Replaced(handle) => {
                for before in state.field(BEFORE).map(predecessors).unwrap_or_default() {
                    self.0.store.destroy(&before, Duration::ZERO).await?;
                }
                // Where the user has proved to be themselves meanwhile, it goes on in another one.
                let mut next = Some(handle);
                while let Some(handle) = next.take() {
                    // Other requests of this client may be under way: its cookie is not theirs.
                    match self.0.store.destroy(&handle, ENDED_FOR).await? {
                        Destroyed::Done | Destroyed::Gone => state.place = Place::Destroyed,
                        Destroyed::Replaced(Some(other)) if handle.owner().is_some() && other.owner() == handle.owner() => {
                            next = Some(other);
                        }
                        // The client's other session is not this one's to end, nor its cookie.
                        Destroyed::Replaced(_) => state.place = Place::Replaced(handle),
                    }
                }
            }
            Place::Unavailable => return Err(unavailable()),
            Place::Unread | Place::Nowhere | Place::Destroyed => state.place = Place::Destroyed,
        }
        (state.id, state.tell, state.rotate, state.becomes) = (None, false, false, None);
        state.fields.clear();
        state.changes = Changes::default();
        Ok(())
    }

    /// Reads the session anew: what a handle that lives for longer than a request, of a websocket or a stream of events, knows of it may
    /// have been changed or ended elsewhere. What this handle has not written yet is kept.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn reload(&self) -> Result<(), Error> {
        let mut state = self.0.state.lock().await;
        let handle = match state.place {
            Place::Unread | Place::Nowhere | Place::Destroyed => return Ok(()),
            Place::Unavailable => {
                state.place = Place::Unread;
                return Ok(());
            }
            Place::At(handle, _) | Place::Replaced(handle) | Place::Stale(handle) => handle,
        };
        let found = self.0.store.load(&handle, None).await?;
        // Where the same user has proved to be themselves, it goes on in another one: for who has been in it, and for nobody else.
        let next = found.as_ref().and_then(|record| record.next);
        let next = next.filter(|next| state.has_been_in && next.owner().is_some() && next.owner() == handle.owner());
        let (handle, found) = match next {
            Some(next) => (next, self.0.store.load(&next, None).await?),
            None => (handle, found),
        };
        (state.place, state.fields) = match found {
            Some(record) if record.standing == Standing::Live && state.has_been_in => {
                (Place::At(handle, record.renewed), record.fields)
            }
            Some(record) if record.standing == Standing::Frozen && matches!(state.place, Place::Replaced(_)) => {
                (Place::Replaced(handle), record.fields)
            }
            // Whoever holds on to it is nobody now, and the client's cookie is not this request's to change.
            _ => (Place::Stale(handle), Fields::default()),
        };
        let pending: Vec<_> = state.changes.iter().map(|(field, value)| (field.to_owned(), value.map(<[u8]>::to_vec))).collect();
        for (field, value) in pending {
            match value {
                Some(value) => state.fields.insert(field, value),
                None => state.fields.remove(&field),
            };
        }
        Ok(())
    }

    /// Ends when the session belongs to somebody else than when it was called, or to nobody: signed out, revoked, expired. Asks the store
    /// once every `period`; while the store does not answer it goes on.
    ///
    /// A websocket:
    ///
    /// ```no_run
    /// # async fn next_message() -> Option<String> { None }
    /// # async fn talk(session: scale_session::Session) -> Result<(), scale_session::Error> {
    /// let ended = session.watch(std::time::Duration::from_secs(5));
    /// tokio::pin!(ended);
    /// loop {
    ///     tokio::select! {
    ///         () = &mut ended => break, // close the socket
    ///         message = next_message() => println!("{message:?}"),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// A stream of events, as the body of an axum response:
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// use axum::body::{Body, Bytes};
    /// use futures_util::{StreamExt, stream};
    /// use scale_session::SignedIn;
    /// use std::{convert::Infallible, time::Duration};
    ///
    /// async fn events(SignedIn { session, .. }: SignedIn) -> Body {
    ///     let news = stream::pending::<Result<Bytes, Infallible>>(); // of the application
    ///     let ended = async move { session.watch(Duration::from_secs(5)).await };
    ///     Body::from_stream(news.take_until(Box::pin(ended)))
    /// }
    /// # }
    /// ```
    pub async fn watch(&self, period: Duration) {
        let mut first = None;
        loop {
            if let Ok(user) = self.user().await
                && *first.get_or_insert_with(|| user.clone()) != user
            {
                return;
            }
            tokio::time::sleep(period).await;
            let _ = self.reload().await;
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// Lets the store know now that the client has sent its cookie, for what lists the user's devices.
    pub(crate) async fn be_seen(&self) -> Result<(), Error> {
        let mut state = self.read().await?;
        self.mark_seen(&mut state).await
    }

    async fn mark_seen(&self, state: &mut State) -> Result<(), Error> {
        if let Place::At(handle, _) = state.place
            && state.unseen
        {
            self.0.store.save(&handle, &Changes::default(), Some(self.renewal())).await?;
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

    /// Loads if nobody has yet.
    pub(crate) async fn read(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.0.state.lock().await;
        state.asked = true;
        if state.place == Place::Unread {
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

    /// The same, for what is written at the end of the request.
    async fn writable(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.read().await?;
        if state.closed {
            return Err(Error::Closed);
        }
        match state.place {
            // What is written after a sign-in of this request goes into the session that comes of it.
            Place::Replaced(_) | Place::Stale(_) if state.becomes.is_none() => Err(Error::Replaced),
            _ => Ok(state),
        }
    }

    /// The same, for a change of who somebody is: from whatever session there is, and never pretended.
    pub(crate) async fn becoming(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.read().await?;
        if state.closed {
            return Err(Error::Closed);
        }
        if state.place == Place::Unavailable { Err(unavailable()) } else { Ok(state) }
    }

    async fn load(&self, state: &mut State) -> Result<(), Error> {
        let presented = self.0.config.cookie.read(&state.cookies).and_then(|cookie| self.0.store.presented(cookie));
        let Some(id) = presented else {
            state.place = Place::Nowhere;
            return Ok(());
        };
        let handle = id.handle();
        match self.0.store.load(&handle, Some(&id.proof())).await? {
            Some(record) => {
                state.place = match record.standing {
                    Standing::Live => Place::At(handle, record.renewed),
                    Standing::Stale => Place::Stale(handle),
                    Standing::Replaced if self.is_lost(&record).await? => Place::Nowhere,
                    Standing::Frozen | Standing::Replaced => Place::Replaced(handle),
                };
                state.has_been_in = record.standing == Standing::Live;
                // Its client has got the cookie: its earlier ids end.
                state.unseen = record.is_current && (!record.seen || record.is_unconfirmed);
                (state.fields, state.id, state.is_current) = (record.fields, Some(id), record.is_current);
                // And it is one of the user's devices, before anything is done by it.
                if handle.owner().is_some() && !record.seen {
                    self.mark_seen(state).await?;
                }
            }
            None => state.place = Place::Nowhere,
        }
        Ok(())
    }

    /// Whether the client of a session that was replaced has never shown the id of the other one: the answer that had it was lost.
    async fn is_lost(&self, replaced: &Record) -> Result<bool, Error> {
        let Some(next) = &replaced.next else { return Ok(false) };
        // One that is gone was shown, and ended.
        Ok(self.0.store.load(next, None).await?.is_some_and(|record| record.standing == Standing::Live && !record.seen))
    }

    /// The session's handle; makes the session if there is none. The id presented is never adopted: a new one is drawn.
    pub(crate) async fn establish(&self, state: &mut State) -> Result<Handle, Error> {
        // What is written at once after a sign-in goes into the session that comes of it, not into the one that others may know.
        if !state.closed
            && matches!(state.place, Place::At(..) | Place::Replaced(_) | Place::Stale(_))
            && let Some(owner) = state.becomes.take()
        {
            return self.replace(state, owner).await?.ok_or(Error::Replaced);
        }
        match state.place {
            Place::At(handle, _) => Ok(handle),
            Place::Replaced(_) | Place::Stale(_) => Err(Error::Replaced),
            Place::Unavailable => Err(unavailable()),
            Place::Destroyed => Err(Error::Gone),
            // Nobody could be told of its id.
            Place::Unread | Place::Nowhere if state.closed => Err(Error::Closed),
            Place::Unread | Place::Nowhere => {
                let owner = match state.becomes.take() {
                    Some(NewOwner::SignedIn(owner)) => owner,
                    _ => None,
                };
                let changes = std::mem::take(&mut state.changes);
                self.make(state, owner, changes).await
            }
        }
    }

    async fn make(&self, state: &mut State, owner: Option<Owner>, changes: Changes) -> Result<Handle, Error> {
        let id = Id::random(owner).map_err(|e| Error::Store(Box::new(e)))?;
        let handle = id.handle();
        if let Err(error) = self.0.store.create(&handle, &id.proof(), &changes, self.lifetime()).await {
            // Tried again at the end of the request, if there is one.
            (state.changes, state.becomes) = (changes, state.becomes.or(owner.is_some().then_some(NewOwner::SignedIn(owner))));
            return Err(error);
        }
        state.begin_at(id);
        Ok(handle)
    }

    /// Ends a user's oldest sessions, if there are more than configured: when the client of one first shows its cookie, since before that it
    /// is not listed. The order is that of their sign-ins, which never changes: so any that look at once end the same ones. Returns whether
    /// this one is among them.
    async fn end_those_beyond(&self, this: &Handle) -> bool {
        let (Some(owner), Some(most)) = (this.owner(), self.0.config.sessions_per_user) else { return false };
        let ended = async {
            let mut all = self.0.store.owned(owner).await?;
            all.sort_by_cached_key(|(handle, record)| std::cmp::Reverse((signed_in_since(record), handle.family())));
            let mut is_this = false;
            for (handle, _) in all.iter().skip(most.get() as usize) {
                self.0.store.destroy(handle, Duration::ZERO).await?;
                is_this |= handle == this;
            }
            Ok::<_, Error>(is_this)
        };
        ended.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a user may have more sessions than configured until the next sign-in");
            false
        })
    }

    /// Whoever it was becomes somebody else, or proves to be who they are: a session of a family of its own, made of what the old one held.
    /// The old one is read by requests under way for a while, as it was, and is written no more. `None`: there is nobody to go on as.
    async fn replace(&self, state: &mut State, owner: NewOwner) -> Result<Option<Handle>, Error> {
        match owner {
            NewOwner::SignedIn(owner) => self.sign_in_anew(state, owner).await.map(Some),
            NewOwner::Same => self.go_on(state).await,
        }
    }

    async fn sign_in_anew(&self, state: &mut State, owner: Option<Owner>) -> Result<Handle, Error> {
        let old = match state.place {
            Place::At(handle, _) => Some(handle),
            _ => None,
        };
        let mut all = Changes::default();
        let is_kept = |field: &str| field != BEFORE && !field.starts_with(STEP);
        for (field, value) in state.fields.iter().filter(|(field, _)| is_kept(field)) {
            all.set(field, Some(value.clone()));
        }
        // One that was somebody's must not outlive the new one's logout.
        let mut before = state.field(BEFORE).map(predecessors).unwrap_or_default();
        if let Some(old) = old.filter(|old| old.owner().is_some()) {
            before.insert(0, old);
        }
        if !before.is_empty() {
            all.set(BEFORE, Some(of_predecessors(before)));
        }
        let own = std::mem::take(&mut state.changes);
        let made = self.make(state, owner, all.clone()).await;
        let handle = match made {
            Ok(handle) => handle,
            Err(error) => {
                (state.changes, state.becomes) = (own, Some(NewOwner::SignedIn(owner)));
                return Err(error);
            }
        };
        let Some(old) = old else { return Ok(handle) };
        let held = match self.0.store.freeze(&old, &handle, self.0.config.grace()).await {
            Ok(held) => held.unwrap_or_default(),
            Err(error) => {
                // The old one stays what it was.
                let _ = self.0.store.destroy(&handle, Duration::ZERO).await;
                (state.place, state.tell, state.becomes) =
                    (Place::At(old, SystemTime::now()), false, Some(NewOwner::SignedIn(owner)));
                return Err(error);
            }
        };
        // What others have written, or ended, since this request looked.
        let mut late = Changes::default();
        if std::mem::take(&mut state.starts_empty) {
            return Ok(handle);
        }
        for (field, value) in held.iter().filter(|(field, _)| !is_ours(field) && !own.0.contains_key(*field)) {
            if state.fields.get(field) != Some(value) {
                late.set(field, Some(value.clone()));
            }
        }
        for field in
            state.fields.keys().filter(|field| !is_ours(field) && !own.0.contains_key(*field) && !held.contains_key(*field))
        {
            late.set(field, None);
        }
        if !late.is_empty() {
            self.0.store.save(&handle, &late, None).await?;
        }
        Ok(handle)
    }

    /// The same user's session under an id that nobody has seen, if it is still theirs: it ends when the old one would have.
    pub(crate) async fn go_on(&self, state: &mut State) -> Result<Option<Handle>, Error> {
        let Place::At(old, _) = state.place else { return Ok(None) };
        let id = Id::random(old.owner().copied()).map_err(|e| Error::Store(Box::new(e)))?;
        let (handle, proof) = (id.handle(), id.proof());
        let mut changes = std::mem::take(&mut state.changes);
        let mut before = state.field(BEFORE).map(predecessors).unwrap_or_default();
        before.insert(0, old);
        changes.set(BEFORE, Some(of_predecessors(before)));
        let next = Succession { handle: &handle, proof: &proof, idle: self.0.config.idle(), grace: self.0.config.grace() };
        if self.0.store.succeed(&old, &next, &changes).await? != Saved::Done {
            // Logged out or revoked meanwhile, or another request has come first: that one's session stands.
            state.place = Place::Replaced(old);
            metrics::counter!("scale_session_writes_dropped_total").increment(1);
            return Ok(None);
        }
        state.begin_at(id);
        Ok(Some(handle))
    }

    /// Writes what changed, whatever was answered, and adds what the response must say to its headers: the cookie, that no shared cache
    /// keeps what depends on it, and after a logout what the browser is to forget. The layer calls it when the handler has returned; where
    /// there is no layer, the application does. `headers` hold the response's `Cache-Control` and `Vary`, if it has any.
    ///
    /// # Errors
    /// The changes could not be saved: answer with 503. Not if it is [configured](Config::on_store_error) that requests go on without;
    /// but always of a sign-in.
    pub async fn close(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        self.end_response(headers).await.map(drop)
    }

    /// The same; says whether a cookie was set or cleared.
    pub(crate) async fn end_response(&self, headers: &mut HeaderMap) -> Result<bool, Error> {
        let config = &*self.0.config;
        let closed = self.cookie_of_the_end().await;
        let cookie = closed.as_ref().ok().and_then(Option::as_ref);
        let (asked, forgets) = {
            let state = self.0.state.lock().await;
            (state.asked, config.clear_site_data.header().filter(|_| state.place == Place::Destroyed))
        };
        if !config.unprotected_from_shared_caches && (cookie.is_some() || asked) {
            keep_from_shared_caches(headers, cookie.is_some());
        }
        if let Some(cookie) = cookie {
            headers.append(SET_COOKIE, cookie.clone());
        }
        if let Some(what) = forgets {
            headers.insert(CLEAR_SITE_DATA, HeaderValue::from_static(what));
        }
        closed.map(|cookie| cookie.is_some())
    }

    async fn cookie_of_the_end(&self) -> Result<Option<HeaderValue>, Error> {
        let Config { cookie, on_store_error, .. } = &*self.0.config;
        match self.finish().await {
            Ok(Verdict::Leave) => Ok(None),
            Ok(Verdict::Set(value)) => Ok(cookie.set(&value, self.0.config.absolute())),
            Ok(Verdict::Clear) => Ok(cookie.clear()),
            Err(error) => {
                tracing::error!(%error, "the session could not be saved");
                metrics::counter!("scale_session_errors_total", "during" => "save").increment(1);
                let must_tell = self.0.state.lock().await.becomes.is_some();
                if *on_store_error == OnStoreError::Unavailable || must_tell { Err(error) } else { Ok(None) }
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
        state.closed = true;
        if let Some(owner) = state.becomes
            && !matches!(state.place, Place::Destroyed)
        {
            self.replace(&mut state, owner).await?;
            state.becomes = None;
            return Ok(state.told());
        }
        match state.place {
            // The cookie of a client that has another session by now is that one's.
            Place::Unread | Place::Unavailable | Place::Replaced(_) | Place::Stale(_) => return Ok(Verdict::Leave),
            Place::Destroyed => return Ok(self.farewell(&state)),
            Place::Nowhere if state.changes.is_empty() => return Ok(self.farewell(&state)),
            Place::Nowhere => {
                let changes = std::mem::take(&mut state.changes);
                self.make(&mut state, None, changes).await?;
            }
            Place::At(handle, renewed) => {
                let due = SystemTime::now().duration_since(renewed).unwrap_or_default() >= self.0.config.renewal();
                let renew = (state.renew || state.unseen || due) && !state.tell;
                let changes = std::mem::take(&mut state.changes);
                if renew || !changes.is_empty() {
                    let renewal = renew.then(|| self.renewal());
                    if self.0.store.save(&handle, &changes, renewal).await? != Saved::Done {
                        // Logged out, or somebody else, meanwhile: the write is dropped, as that request would have it, and the cookie is
                        // not this one's any more.
                        metrics::counter!("scale_session_writes_dropped_total").increment(1);
                        return Ok(Verdict::Leave);
                    }
                    state.unseen &= !renew;
                }
                if state.rotate
                    && state.is_current
                    && !state.tell
                    && let Some(id) = &state.id
                {
                    let next = id.rotated().map_err(|e| Error::Store(Box::new(e)))?;
                    let (from, to): (Proof, Proof) = (id.proof(), next.proof());
                    // If another request has rotated it, that one's id stands.
                    if self.0.store.rotate(&handle, &from, &to).await? == Saved::Done {
                        (state.id, state.tell) = (Some(next), true);
                    }
                }
            }
        }
        Ok(state.told())
    }

    /// There is no session: whatever cookie was sent is worth nothing.
    fn farewell(&self, state: &State) -> Verdict {
        if self.0.config.cookie.presents(&state.cookies) { Verdict::Clear } else { Verdict::Leave }
    }
}

/// What was left for requests under way, remembered at most.
const PREDECESSORS: usize = 16;

pub(crate) fn predecessors(bytes: &[u8]) -> Vec<Handle> {
    let texts: Vec<String> = decode(BEFORE, bytes).unwrap_or_default();
    texts.iter().filter_map(|text| Handle::parse(text)).collect()
}

fn of_predecessors(before: Vec<Handle>) -> Vec<u8> {
    let texts: Vec<String> = before.into_iter().take(PREDECESSORS).map(|handle| handle.text()).collect();
    encode_ours(BEFORE, &texts).unwrap_or_default()
}

fn unavailable() -> Error {
    Error::Store("the session's store does not answer".into())
}

fn written(saved: Saved) -> Result<(), Error> {
    match saved {
        Saved::Done => Ok(()),
        Saved::Frozen => Err(Error::Replaced),
        Saved::Stale | Saved::Gone => Err(Error::Gone),
    }
}

impl State {
    /// In a session of its own, whose id its client is to be told.
    fn begin_at(&mut self, id: Id) {
        self.place = Place::At(id.handle(), SystemTime::now());
        (self.id, self.tell, self.is_current, self.rotate) = (Some(id), true, true, false);
        (self.has_been_in, self.unseen) = (true, false);
    }

    pub(crate) fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(Vec::as_slice)
    }

    /// Somebody else from now on, or nobody.
    pub(crate) fn become_of(&mut self, owner: Option<Owner>) {
        if matches!(self.place, Place::Destroyed) {
            self.place = Place::Nowhere;
        }
        self.becomes = Some(NewOwner::SignedIn(owner));
    }

    /// Keeps what this request has written, and forgets what the session held before it: that was another user's.
    pub(crate) fn start_empty(&mut self) {
        let Self { fields, changes, .. } = self;
        fields.retain(|field, _| changes.0.contains_key(field));
        self.starts_empty = true;
    }

    /// Removes all fields of the application.
    #[cfg(feature = "auth")]
    pub(crate) fn remove_all(&mut self) {
        let held: Vec<String> = self.fields.keys().filter(|field| !is_ours(field)).cloned().collect();
        for field in &held {
            self.write(field, None);
        }
    }

    pub(crate) fn is_becoming(&self) -> bool {
        self.becomes.is_some()
    }

    /// The same, under an id that nobody has seen.
    pub(crate) fn become_itself(&mut self) {
        // A sign-in of the same request has done as much.
        self.becomes = self.becomes.or(Some(NewOwner::Same));
    }

    fn has_room_for(&self, field: &str) -> Result<(), Error> {
        if self.fields.len() >= MAX_FIELDS && !self.fields.contains_key(field) {
            return Err(Error::TooLarge("a session has at most 128 fields"));
        }
        Ok(())
    }

    fn told(&mut self) -> Verdict {
        match &self.id {
            Some(id) if std::mem::take(&mut self.tell) => Verdict::Set(id.text()),
            _ => Verdict::Leave,
        }
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
