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
    /// It was rotated, and its client has not been known to show the new proof.
    pub is_unconfirmed: bool,
    /// Of one that was replaced: the session in its place.
    pub next: Option<Handle>,
}

/// What may be done with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is read and written.
    Live,
    /// Its client has become somebody else, and has another session since: requests under way read this one for a while, and write nothing.
    Frozen,
    /// The same after that while, and of one that its client has ended: nothing is left but that it was there.
    Replaced,
    /// The proof was one of its own once, and its client has shown a later one since.
    Stale,
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

/// Starts the idle time-out anew: the client has shown that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The idle time-out.
    pub idle: Duration,
    /// How long proofs from before the last rotation are good from now on.
    pub grace: Duration,
}

/// The session that goes on in another's place.
#[derive(Clone, Copy, Debug)]
pub struct Succession<'a> {
    /// Where it lies.
    pub handle: &'a Handle,
    /// What opens it.
    pub proof: &'a Proof,
    /// Its idle time-out.
    pub idle: Duration,
    /// How long the other one is read.
    pub grace: Duration,
}

/// What came of [`Store::destroy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It is gone.
    Done,
    /// There was none.
    Gone,
    /// It had been replaced by this one: it is not read any more, and still known as replaced.
    Replaced(Option<Handle>),
}

/// How long it is known that a session was replaced, so that a slow request does not take the new one's cookie away.
pub const REPLACED_FOR: Duration = Duration::from_hours(1);
/// How long it is known that a client has logged out, for the same reason.
pub const ENDED_FOR: Duration = Duration::from_mins(1);
/// The end of a proof whose client has not shown a later one.
const PENDING: u64 = u64::MAX;
/// Earlier proofs of a session that are remembered at most.
const OLD_PROOFS: usize = 4;

/// The proofs of a session: the one that stands, and earlier ones for as long as their grace lasts.
///
/// As text: the first, then each of the others as `;<proof>@<end, ms>`, or `@?` while the client has not shown a later one.
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
        let old = |part: &str| {
            let (proof, until) = part.split_once('@')?;
            Some((Proof::parse(proof)?, if until == "?" { PENDING } else { until.parse().ok()? }))
        };
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
        self.old.iter().fold(self.current.text(), |text, (proof, until)| {
            let until = if *until == PENDING { "?".to_owned() } else { until.to_string() };
            format!("{text};{}@{until}", proof.text())
        })
    }
}

impl Proofs {
    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.old.iter().any(|(_, until)| *until == PENDING)
    }

    /// The client has shown the current one: from now on the others end.
    pub(crate) fn confirm(&mut self, now_ms: u64, grace: Duration) {
        let end = now_ms.saturating_add(grace.as_millis() as u64).min(PENDING - 1);
        self.old.iter_mut().for_each(|(_, until)| *until = end.min(*until));
    }

    /// `false`: another rotation came first.
    pub(crate) fn rotate(&mut self, from: &Proof, to: Proof, now_ms: u64) -> bool {
        if !self.is_current(from) {
            return false;
        }
        self.old.retain(|(_, until)| *until > now_ms);
        self.old.insert(0, (self.current, PENDING));
        self.old.truncate(OLD_PROOFS);
        self.current = to;
        true
    }
}

/// A store of sessions. Every method is atomic, and no method but [`create`](Store::create) makes a session exist: so a slow request
/// cannot bring back what a logout removed. A session whose handle has an owner is gone for every method once that owner's sessions are
/// [revoked](Store::revoke); of one that was replaced before, that stays known.
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

    /// The session, if it lives. One round trip. Without a proof: for who has shown one before; with one that is none of its own any more
    /// it is [stale](Standing::Stale).
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error>;

    /// A new session.
    async fn create(&self, handle: &Handle, proof: &Proof, changes: &Changes, lifetime: Lifetime) -> Result<(), Error>;

    /// Writes the changed fields, and starts the idle time-out anew if one is given: then its client [has been seen](Record::seen).
    async fn save(&self, handle: &Handle, changes: &Changes, renewal: Option<Renewal>) -> Result<Saved, Error>;

    /// Writes one field if it still holds what is expected.
    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error>;

    /// Adds to a field that holds a number, in one step however many do so at once. `Ok(None)`: this store has no such step, or the number
    /// is none it can add to; [`swap`](Store::swap) does.
    async fn add(&self, handle: &Handle, field: &str, by: i64) -> Result<Option<Result<i64, Swapped>>, Error> {
        let _ = (handle, field, by);
        Ok(None)
    }

    /// Replaces the proof, if `from` is the one that stands. The earlier ones are good until a [renewal](Renewal), and for its grace.
    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error>;

    /// [Freezes](Standing::Frozen) the session for `grace`, in favour of another, and returns what it holds for good; after that it is known
    /// as [replaced](Standing::Replaced) for an hour. `None`: there is no such session, or it has been replaced before.
    async fn freeze(&self, handle: &Handle, next: &Handle, grace: Duration) -> Result<Option<Fields>, Error>;

    /// Makes a session of the same owner that goes on in this one's place, and freezes this one, in one step: with its fields and the changes,
    /// its end, and its place among what is revoked.
    async fn succeed(&self, handle: &Handle, next: &Succession<'_>, changes: &Changes) -> Result<Saved, Error>;

    /// Every living session of an owner whose client [has been seen](Record::seen), with its own fields (those whose names begin with a dot)
    /// alone: a thousand at most.
    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error>;

    /// Ends every session of an owner but one, however many there are, in one step. `false`: that one is no living session of theirs, and
    /// nothing is done.
    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error>;

    /// Removes the session. For `known_for` it is known that it was there, as [`Standing::Replaced`].
    async fn destroy(&self, handle: &Handle, known_for: Duration) -> Result<Destroyed, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_good_for_their_grace() {
        let proof = || Id::random(None).unwrap().proof();
        let (first, second, third) = (proof(), proof(), proof());
        let mut proofs = Proofs::new(first);
        assert!(proofs.rotate(&first, second, 1_000));
        assert!(!proofs.rotate(&first, third, 1_000), "one rotation wins");
        assert!(proofs.is_unconfirmed() && proofs.accepts(&first, 1 << 60), "the answer may have been lost");
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        assert_eq!(Proofs::parse(&proofs.text()), Some(proofs.clone()));
        proofs.confirm(1_000, Duration::from_secs(10));
        assert!(proofs.accepts(&first, 10_999) && !proofs.accepts(&first, 11_000) && !proofs.is_unconfirmed());
        assert!(proofs.rotate(&second, third, 2_000));
        assert!(proofs.accepts(&first, 2_000), "two back");
        assert!(proofs.is_current(&third) && !proofs.accepts(&proof(), 0));
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        assert_eq!(Proofs::parse(&proofs.text()), Some(proofs));
    }
}
