//! State of one request's session.

use std::time::SystemTime;

use http::HeaderValue;
use smallvec::SmallVec;

use crate::error::Error;
use crate::store::{Fields, Handle, Id, Owner, PendingChanges};
#[cfg(feature = "auth")]
use crate::value::is_ours;
use crate::value::{PREDECESSORS, decode, encode_ours};

const MAX_FIELDS: usize = 128;

/// State of the session during a request. An id that a client presents is accepted only once the
/// store knows it.
#[expect(clippy::struct_excessive_bools, reason = "each flag is independent of the others")]
pub(crate) struct State {
    pub(super) cookies: SmallVec<[HeaderValue; 1]>,
    pub(crate) place: Place,
    /// Id that the client presented and the store knows, or that this request has created.
    pub(super) id: Option<Id>,
    pub(super) fields: Fields,
    pub(super) changes: PendingChanges,
    pub(super) rotate: bool,
    /// `true` if the presented id is that of the last rotation.
    pub(super) is_current: bool,
    /// `true` if to renew at the end of the request even if no renewal is due.
    pub(super) renew: bool,
    /// `true` if the client has sent its cookie and the store does not know that yet.
    pub(super) unseen: bool,
    /// New owner of the session, under an id that nobody has seen.
    pub(super) becomes: Option<NewOwner>,
    /// `true` if the session held another user's data: the new session takes over nothing of it.
    pub(super) starts_empty: bool,
    /// `true` if this request created the id, so that the response must set the cookie.
    pub(super) tell: bool,
    /// `true` if this request had access to the session: its client presented a valid id, or this
    /// request created the session.
    pub(super) has_been_in: bool,
    /// `true` if the application has used the session: the response depends on it.
    pub(super) asked: bool,
    /// `true` if the response has been sent.
    pub(super) closed: bool,
}

/// New owner of a session.
#[derive(Clone, Copy)]
pub(super) enum NewOwner {
    /// The identity has changed: to a user, or to no user yet while a second factor is missing.
    SignedIn(Option<Owner>),
    /// The user of this session has confirmed their identity.
    Same,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The session has not been loaded yet.
    Unread,
    /// There is no session; one is created when something is written.
    Nowhere,
    /// The session exists; with the time of its last renewal.
    At(Handle, SystemTime),
    /// The client has another session now: this one can be read but not written, and this request
    /// must not change the cookie.
    Replaced(Handle),
    /// The client has shown a later id of this session: nothing can be read, and this request must
    /// not change the cookie.
    Stale(Handle),
    /// The session was destroyed by this request.
    Destroyed,
    /// The store does not answer, and the request continues without a session.
    Unavailable,
}

/// Action of the layer on the cookie.
#[derive(Debug)]
pub(crate) enum Verdict {
    Leave,
    Set(String),
    Clear,
}

impl State {
    /// Moves the state to a new session, whose id the response must set as a cookie.
    pub(super) fn begin_at(&mut self, id: Id) {
        self.place = Place::At(id.handle(), SystemTime::now());
        (self.id, self.tell, self.is_current, self.rotate) = (Some(id), true, true, false);
        (self.has_been_in, self.unseen) = (true, false);
    }

    pub(crate) fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(Vec::as_slice)
    }

    /// Changes the identity: to another owner, or to none.
    pub(crate) fn become_of(&mut self, owner: Option<Owner>) {
        if matches!(self.place, Place::Destroyed) {
            self.place = Place::Nowhere;
        }
        self.becomes = Some(NewOwner::SignedIn(owner));
    }

    /// Keeps the changes of this request and drops what the session held before, because that was
    /// another user's.
    pub(crate) fn start_empty(&mut self) {
        let Self { fields, changes, .. } = self;
        fields.retain(|field, _| changes.0.contains_key(field));
        self.starts_empty = true;
    }

    /// Removes all fields of the application.
    #[cfg(feature = "auth")]
    pub(crate) fn remove_all(&mut self) {
        let held: Vec<String> =
            self.fields.keys().filter(|field| !is_ours(field)).cloned().collect();
        for field in &held {
            self.write(field, None);
        }
    }

    pub(crate) fn is_becoming(&self) -> bool {
        self.becomes.is_some()
    }

    /// Keeps the identity, under an id that nobody has seen.
    pub(crate) fn become_itself(&mut self) {
        // A sign-in in the same request already creates a new id.
        self.becomes = self.becomes.or(Some(NewOwner::Same));
    }

    pub(super) fn has_room_for(&self, field: &str) -> Result<(), Error> {
        if self.fields.len() >= MAX_FIELDS && !self.fields.contains_key(field) {
            return Err(Error::TooLarge("a session has at most 128 fields"));
        }
        Ok(())
    }

    pub(super) fn told(&mut self) -> Verdict {
        match &self.id {
            Some(id) if std::mem::take(&mut self.tell) => Verdict::Set(id.text()),
            _ => Verdict::Leave,
        }
    }

    pub(crate) fn write(&mut self, field: &str, value: Option<Vec<u8>>) {
        // A session that was destroyed by this request may start again, under a new id.
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

pub(crate) fn predecessors(bytes: &[u8]) -> Vec<Handle> {
    let texts: Vec<String> = decode(PREDECESSORS, bytes).unwrap_or_default();
    texts.iter().filter_map(|text| Handle::parse(text)).collect()
}

pub(super) fn of_predecessors(before: Vec<Handle>) -> Vec<u8> {
    let texts: Vec<String> =
        before.into_iter().take(MAX_PREDECESSORS).map(|handle| handle.text()).collect();
    encode_ours(PREDECESSORS, &texts).unwrap_or_default()
}

/// Maximum number of remembered predecessors, which are kept for requests in progress.
pub(super) const MAX_PREDECESSORS: usize = 16;
