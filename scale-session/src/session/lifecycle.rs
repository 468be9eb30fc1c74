//! Lifecycle of a session: creation, loading, renewal, sign-in and end.

use std::time::{Duration, SystemTime};

use tokio::sync::MutexGuard;

use super::state::{NewOwner, Place, State, of_predecessors, predecessors};
use super::{STEP, Session, unavailable};
use crate::error::Error;
use crate::identity::signed_in_since;
use crate::store::{
    Destroyed, ENDED_FOR, Fields, Handle, Id, Owner, PendingChanges, Record, Standing,
};
use crate::value::{PREDECESSORS, is_ours};

impl Session {
    /// Gives the session a new id, as a regular precaution. The old id works for a few more
    /// seconds, for requests in progress, so do not use this method for a change of the identity.
    /// After [`sign_in`](Self::sign_in) and similar methods the old id does not lead to the new
    /// session.
    ///
    /// # Errors
    /// [`Error::Closed`] once the response has been sent; [`Error::Replaced`].
    pub async fn rotate(&self) -> Result<(), Error> {
        self.writable().await?.rotate = true;
        Ok(())
    }

    /// Restarts the idle time-out at the end of this request even if nothing has changed. Do not
    /// call this method for pages that only poll whether the user is still active.
    ///
    /// # Errors
    /// The same as those of [`rotate`](Self::rotate).
    pub async fn renew(&self) -> Result<(), Error> {
        self.writable().await?.renew = true;
        Ok(())
    }

    /// Removes the session and its cookie at once: a logout. Works by any id of the session, after
    /// any number of rotations.
    ///
    /// # Errors
    /// [`Error::Store`]: the session may still be valid. This error is returned with every
    /// [configuration](crate::Config::on_store_error): a logout that failed is never reported
    /// as done.
    pub async fn destroy(&self) -> Result<(), Error> {
        let mut state = self.read().await?;
        match state.place {
            Place::At(handle, _) | Place::Stale(handle) | Place::Replaced(handle) => {
                for before in state.field(PREDECESSORS).map(predecessors).unwrap_or_default() {
                    self.0.store.destroy(&before, Duration::ZERO).await?;
                }
                // If the user has confirmed their identity in the meantime, the session continues
                // in a successor.
                let mut next = Some(handle);
                while let Some(handle) = next.take() {
                    // Other requests of this client may be in progress: they must not change its
                    // cookie.
                    match self.0.store.destroy(&handle, ENDED_FOR).await? {
                        Destroyed::Done | Destroyed::Gone => state.place = Place::Destroyed,
                        Destroyed::Replaced(Some(other))
                            if handle.owner().is_some() && other.owner() == handle.owner() =>
                        {
                            next = Some(other);
                        }
                        // This session must not end the client's other session, nor change its
                        // cookie.
                        Destroyed::Replaced(_) => state.place = Place::Replaced(handle),
                    }
                }
            }
            Place::Unavailable => return Err(unavailable()),
            Place::Unread | Place::Nowhere | Place::Destroyed => state.place = Place::Destroyed,
        }
        (state.id, state.tell, state.rotate, state.becomes) = (None, false, false, None);
        state.fields.clear();
        state.changes = PendingChanges::default();
        Ok(())
    }

    /// Loads the session again, for a handle that lives longer than a request, as in a websocket or
    /// an event stream: the session may have been changed or ended elsewhere. Changes of this
    /// handle that are not written yet are kept.
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
        // If the same user has confirmed their identity, the session continues in a successor: only
        // a handle that had access to the session follows it there.
        let next = found.as_ref().and_then(|record| record.next);
        let next = next.filter(|next| {
            state.has_been_in && next.owner().is_some() && next.owner() == handle.owner()
        });
        let (handle, found) = match next {
            Some(next) => (next, self.0.store.load(&next, None).await?),
            None => (handle, found),
        };
        (state.place, state.fields) = match found {
            Some(record) if record.standing == Standing::Live && state.has_been_in => {
                (Place::At(handle, record.renewed), record.fields)
            }
            Some(record)
                if record.standing == Standing::Frozen
                    && matches!(state.place, Place::Replaced(_)) =>
            {
                (Place::Replaced(handle), record.fields)
            }
            // This handle has no access any more, and this request must not change the client's
            // cookie.
            _ => (Place::Stale(handle), Fields::default()),
        };
        let pending: Vec<_> = state
            .changes
            .iter()
            .map(|(field, value)| (field.to_owned(), value.map(<[u8]>::to_vec)))
            .collect();
        for (field, value) in pending {
            match value {
                Some(value) => state.fields.insert(field, value),
                None => state.fields.remove(&field),
            };
        }
        Ok(())
    }

    /// Completes when the user of the session is no longer the same as at the call: signed out,
    /// revoked, expired, or another user. Asks the store once every `period`. While the store does
    /// not answer, the future keeps waiting.
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
    /// An event stream, as the body of an axum response:
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// use axum::body::{Body, Bytes};
    /// use futures_util::{StreamExt, stream};
    /// use scale_session::SignedIn;
    /// use std::{convert::Infallible, time::Duration};
    ///
    /// async fn events(SignedIn { session, .. }: SignedIn) -> Body {
    ///     let news = stream::pending::<Result<Bytes, Infallible>>(); // the application's events
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

    /// Returns whether the client of a replaced session has never shown the id of the successor,
    /// because the response with that id was lost.
    pub(super) async fn is_lost(&self, replaced: &Record) -> Result<bool, Error> {
        let Some(next) = &replaced.next else { return Ok(false) };
        // A successor that is gone was shown, and has ended.
        Ok(self
            .0
            .store
            .load(next, None)
            .await?
            .is_some_and(|record| record.standing == Standing::Live && !record.seen))
    }

    pub(super) async fn load(&self, state: &mut State) -> Result<(), Error> {
        let presented = self
            .0
            .config
            .cookie
            .read(&state.cookies)
            .and_then(|cookie| self.0.store.presented(cookie));
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
                // The client has received the cookie, so its earlier ids expire.
                state.unseen = record.is_current && (!record.seen || record.is_unconfirmed);
                (state.fields, state.id, state.is_current) =
                    (record.fields, Some(id), record.is_current);
                // The session must be one of the user's devices before the request does anything.
                if handle.owner().is_some() && !record.seen {
                    self.mark_seen(state).await?;
                }
            }
            None => state.place = Place::Nowhere,
        }
        Ok(())
    }

    /// Returns the session's handle; creates the session if there is none. A presented id is never
    /// adopted: a new id is created.
    pub(crate) async fn establish(&self, state: &mut State) -> Result<Handle, Error> {
        // Immediate writes after a sign-in go into the session that the sign-in creates, and not
        // into the old one, whose id others may know.
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
            // The response can no longer set a cookie with the new id.
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

    pub(super) async fn make(
        &self,
        state: &mut State,
        owner: Option<Owner>,
        changes: PendingChanges,
    ) -> Result<Handle, Error> {
        let id = Id::random(owner).map_err(|e| Error::Store(Box::new(e)))?;
        let handle = id.handle();
        if let Err(error) =
            self.0.store.create(&handle, &id.proof(), &changes, self.lifetime()).await
        {
            // The end of the request, if there is one, tries again.
            (state.changes, state.becomes) =
                (changes, state.becomes.or(owner.is_some().then_some(NewOwner::SignedIn(owner))));
            return Err(error);
        }
        state.begin_at(id);
        Ok(handle)
    }

    /// Ends a user's oldest sessions if there are more than configured. Runs when the client of a
    /// new session first sends its cookie, because the session is not listed before that. The order
    /// is that of the sign-ins, which never changes, so concurrent calls end the same sessions.
    /// Returns whether `this` is among them.
    pub(super) async fn end_those_beyond(&self, this: &Handle) -> bool {
        let (Some(owner), Some(most)) = (this.owner(), self.0.config.sessions_per_user) else {
            return false;
        };
        let ended = async {
            let mut all = self.0.store.owned(owner).await?;
            all.sort_by_cached_key(|(handle, record)| {
                std::cmp::Reverse((signed_in_since(record), handle.family()))
            });
            let mut is_this = false;
            for (handle, _) in all.iter().skip(most.get() as usize) {
                self.0.store.destroy(handle, Duration::ZERO).await?;
                is_this |= handle == this;
            }
            Ok::<_, Error>(is_this)
        };
        ended.await.unwrap_or_else(|error| {
            tracing::warn!(
                %error, "surplus sessions were not ended: the next sign-in tries again",
            );
            false
        })
    }

    /// Replaces the session when its user changes or confirms their identity. The new session has a
    /// new family and the content of the old one. Requests in progress can read the old session for
    /// a while, as it was, but no longer write to it. Returns `None` if there is no session to
    /// continue.
    pub(super) async fn replace(
        &self,
        state: &mut State,
        owner: NewOwner,
    ) -> Result<Option<Handle>, Error> {
        match owner {
            NewOwner::SignedIn(owner) => self.sign_in_anew(state, owner).await.map(Some),
            NewOwner::Same => self.go_on(state).await,
        }
    }

    pub(super) async fn sign_in_anew(
        &self,
        state: &mut State,
        owner: Option<Owner>,
    ) -> Result<Handle, Error> {
        let old = match state.place {
            Place::At(handle, _) => Some(handle),
            _ => None,
        };
        let mut all = PendingChanges::default();
        let is_kept = |field: &str| field != PREDECESSORS && !field.starts_with(STEP);
        for (field, value) in state.fields.iter().filter(|(field, _)| is_kept(field)) {
            all.set(field, Some(value.clone()));
        }
        // An old session with an owner must not outlive the new session's logout.
        let mut before = state.field(PREDECESSORS).map(predecessors).unwrap_or_default();
        if let Some(old) = old.filter(|old| old.owner().is_some()) {
            before.insert(0, old);
        }
        if !before.is_empty() {
            all.set(PREDECESSORS, Some(of_predecessors(before)));
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
                // The old session stays as it was.
                let _ = self.0.store.destroy(&handle, Duration::ZERO).await;
                (state.place, state.tell, state.becomes) =
                    (Place::At(old, SystemTime::now()), false, Some(NewOwner::SignedIn(owner)));
                return Err(error);
            }
        };
        // Fields that others have written or removed since this request loaded the session.
        let mut late = PendingChanges::default();
        if std::mem::take(&mut state.starts_empty) {
            return Ok(handle);
        }
        for (field, value) in
            held.iter().filter(|(field, _)| !is_ours(field) && !own.0.contains_key(*field))
        {
            if state.fields.get(field) != Some(value) {
                late.set(field, Some(value.clone()));
            }
        }
        for field in state.fields.keys().filter(|field| {
            !is_ours(field) && !own.0.contains_key(*field) && !held.contains_key(*field)
        }) {
            late.set(field, None);
        }
        if !late.is_empty() {
            self.0.store.save(&handle, &late, None).await?;
        }
        Ok(handle)
    }

    /// Does the same, for a change of the identity: allowed from any session, and an error if the
    /// store is unavailable.
    pub(crate) async fn becoming(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.read().await?;
        if state.closed {
            return Err(Error::Closed);
        }
        if state.place == Place::Unavailable { Err(unavailable()) } else { Ok(state) }
    }
}
