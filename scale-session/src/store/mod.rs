//! Where sessions are kept. One trait, one file per backend, one contract (`tests/contract.rs`) for all.

mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "cookie")]
mod sealed;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

pub use self::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
#[cfg(feature = "cookie")]
pub use self::sealed::CookieKeys;
#[cfg(feature = "cookie")]
pub(crate) use self::sealed::SealedStore;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::sql::SqlStore;
pub use crate::changes::Changes;
use crate::error::Error;
pub use crate::id::{Handle, Id, Owner, Proof};

/// Encoded values by field.
pub type Fields = HashMap<String, Vec<u8>, foldhash::fast::RandomState>;

/// A session as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Encoded values by field.
    pub fields: Fields,
    /// When its idle time-out was last started anew, by the store's clock.
    pub renewed: SystemTime,
    /// Whether it can be written.
    pub standing: Standing,
    /// Whether the proof presented is the one of the last rotation.
    pub is_current: bool,
    /// Whether its client has sent its cookie: until then it may never have got it.
    pub seen: bool,
}

/// What may be done with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is read and written.
    Live,
    /// Its client has become somebody else, and has another session since: requests under way read this one for a while, and write nothing.
    Frozen,
    /// The same after that while: nothing of it is left but that it was replaced.
    Replaced,
}

/// How long a session lives from a write on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Without use.
    pub idle: Duration,
    /// In all, from its creation.
    pub absolute: Duration,
}

/// What came of [`Store::save`] and [`Store::rotate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is done.
    Done,
    /// Another request has rotated it meanwhile: that one's id stands. Only of rotations.
    Stale,
    /// The session is [frozen](Standing::Frozen); nothing is written.
    Frozen,
    /// There is no such session; nothing is written.
    Gone,
}

/// What came of [`Store::swap`] and [`Store::add`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The field was as expected and is written.
    Done,
    /// The field holds this instead; nothing is written.
    Found(Option<Vec<u8>>),
    /// The session is [frozen](Standing::Frozen); nothing is written.
    Frozen,
    /// There is no such session.
    Gone,
}

/// How long it is known that a session was replaced, so that a slow request does not take the new one's cookie away.
pub const REPLACED_FOR: Duration = Duration::from_hours(1);
/// Earlier proofs of a session that are remembered at most.
const OLD_PROOFS: usize = 4;

/// The proofs of a session: the one that stands, and earlier ones for as long as their grace lasts.
///
/// As text: the first, then each of the others as `;<proof>@<end, ms>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proofs {
    current: Proof,
    old: Vec<(Proof, u64)>,
}

impl Proofs {
    pub(crate) fn new(current: Proof) -> Self {
        Self { current, old: Vec::new() }
    }

    #[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let current = Proof::parse(parts.next()?)?;
        let old = |part: &str| part.split_once('@').and_then(|(proof, until)| Some((Proof::parse(proof)?, until.parse().ok()?)));
        Some(Self { current, old: parts.map(old).collect::<Option<_>>()? })
    }

    pub(crate) fn is_current(&self, proof: &Proof) -> bool {
        self.current == *proof
    }

    pub(crate) fn accepts(&self, proof: &Proof, now_ms: u64) -> bool {
        self.is_current(proof) || self.old.iter().any(|(old, until)| *until > now_ms && old == proof)
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl Proofs {
    pub(crate) fn text(&self) -> String {
        self.old.iter().fold(self.current.text(), |text, (proof, until)| format!("{text};{}@{until}", proof.text()))
    }
}

impl Proofs {
    /// `false`: another rotation came first.
    pub(crate) fn rotate(&mut self, from: &Proof, to: Proof, now_ms: u64, grace: Duration) -> bool {
        if !self.is_current(from) {
            return false;
        }
        self.old.retain(|(_, until)| *until > now_ms);
        self.old.insert(0, (self.current, now_ms.saturating_add(grace.as_millis() as u64)));
        self.old.truncate(OLD_PROOFS);
        self.current = to;
        true
    }
}

/// A store of sessions. Every method is atomic, and no method but [`create`](Store::create) makes a session exist: so a slow request
/// cannot bring back what a logout removed. A session whose handle has an owner is gone for every method once that owner's sessions are
/// [revoked](Store::revoke).
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// A store for one request alone, of sessions that lie in its cookie. `None`: this one serves all requests.
    fn for_request(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// The id that a cookie's value stands for, whether its session lives or not. What is malformed is nobody's, and is never looked up.
    fn presented(&self, cookie: &str) -> Option<Id> {
        Id::parse(cookie)
    }

    /// What the cookie is to hold after this request, if it is the session itself and has changed.
    ///
    /// # Errors
    /// [`Error::Store`] if it cannot be encrypted.
    fn cookie(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// How many bytes the names and values of a session may take together, if that is bounded.
    fn room(&self) -> Option<usize> {
        None
    }

    /// The session, if it lives and the proof is one of its own. One round trip. Without a proof: for who has shown one before.
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error>;

    /// A new session.
    async fn create(&self, handle: &Handle, proof: &Proof, changes: &Changes, lifetime: Lifetime) -> Result<(), Error>;

    /// Writes the changed fields, and starts the idle time-out anew if one is given: then its client [has been seen](Record::seen).
    async fn save(&self, handle: &Handle, changes: &Changes, idle: Option<Duration>) -> Result<Saved, Error>;

    /// Writes one field if it still holds what is expected.
    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error>;

    /// Adds to a field that holds a number, in one step however many do so at once. `Ok(None)`: this store has no such step, or the number
    /// is none it can add to; [`swap`](Store::swap) does.
    async fn add(&self, handle: &Handle, field: &str, by: i64) -> Result<Option<Result<i64, Swapped>>, Error> {
        let _ = (handle, field, by);
        Ok(None)
    }

    /// Replaces the proof, if `from` is the one that stands; the earlier ones are good for `grace` more.
    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof, grace: Duration) -> Result<Saved, Error>;

    /// [Freezes](Standing::Frozen) the session for `grace`, and returns what it holds for good; after that it is known as
    /// [replaced](Standing::Replaced) for an hour. `None`: there is no such session, or it has been replaced before.
    async fn freeze(&self, handle: &Handle, grace: Duration) -> Result<Option<Fields>, Error>;

    /// Every living session of an owner whose client [has been seen](Record::seen), with its own fields (those whose names begin with a dot)
    /// alone: a thousand at most.
    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error>;

    /// Ends every session of an owner but one, however many there are, in one step.
    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<(), Error>;

    /// Removes the session; `false`: there is none.
    async fn destroy(&self, handle: &Handle) -> Result<bool, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_good_for_their_grace() {
        let proof = || Id::random(None).unwrap().proof();
        let (first, second, third) = (proof(), proof(), proof());
        let mut proofs = Proofs::new(first);
        assert!(proofs.rotate(&first, second, 1_000, Duration::from_secs(10)));
        assert!(!proofs.rotate(&first, third, 1_000, Duration::from_secs(10)), "one rotation wins");
        assert!(proofs.accepts(&first, 10_999) && !proofs.accepts(&first, 11_000));
        assert!(proofs.rotate(&second, third, 2_000, Duration::from_secs(10)));
        assert!(proofs.accepts(&first, 2_000), "two back");
        assert!(proofs.is_current(&third) && !proofs.accepts(&proof(), 0));
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        assert_eq!(Proofs::parse(&proofs.text()), Some(proofs));
    }
}
