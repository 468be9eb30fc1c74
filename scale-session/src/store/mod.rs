//! Stores of sessions. One trait, one file per backend, one contract (`tests/contract.rs`) for all
//! of them.

#[cfg(feature = "cookie")]
mod encrypted_cookie;
mod memory;
mod pending_changes;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sql")]
pub(crate) mod sql;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

#[cfg(feature = "cookie")]
pub use self::encrypted_cookie::CookieKeys;
#[cfg(feature = "cookie")]
pub(crate) use self::encrypted_cookie::EncryptedCookieStore;
pub use self::memory::MemoryStore;
pub use self::pending_changes::PendingChanges;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
#[cfg(feature = "sql")]
pub use self::sql::SqlStore;
use crate::error::Error;
pub use crate::id::{Handle, Id, Owner, Proof};
#[cfg(feature = "sql")]
pub use crate::sql::{migrate, migrations};
#[cfg(feature = "sql")]
pub use scale_sql::{Database, Options, System};

/// Encoded values by field.
pub type Fields = HashMap<String, Vec<u8>, foldhash::fast::RandomState>;

/// A session as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Encoded values by field.
    pub fields: Fields,
    /// Time of the last renewal of the idle time-out, by the store's clock.
    pub renewed: SystemTime,
    /// `true` if the session can be read and written.
    pub standing: Standing,
    /// `true` if the presented proof is the one of the last rotation.
    pub is_current: bool,
    /// `true` if the client has sent its cookie. Until then it may not have received the cookie.
    pub seen: bool,
    /// `true` if the session was rotated and the client has not shown the new proof yet.
    pub is_unconfirmed: bool,
    /// Session that replaced this one.
    pub next: Option<Handle>,
}

/// State of a session: whether it can be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// The session can be read and written.
    Live,
    /// The client has changed its identity and has another session now. Requests in progress can
    /// read this session for a while, but not write to it.
    Frozen,
    /// The session was frozen and that time is over, or its client has ended it. Only the fact that
    /// it existed is left.
    Replaced,
    /// The proof was valid earlier, and the client has shown a later one since.
    Stale,
}

/// Lifetime of a session, counted from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Maximum time without use.
    pub idle: Duration,
    /// Maximum time from the creation.
    pub absolute: Duration,
}

/// Result of [`Store::save`] and [`Store::rotate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Saved {
    /// The write was done.
    Done,
    /// Another request has rotated the session first, and its id is the current one. Returned by
    /// rotations only.
    Stale,
    /// The session is [frozen](Standing::Frozen); nothing was written.
    Frozen,
    /// There is no such session; nothing was written.
    Gone,
}

/// Result of [`Store::swap`] and [`Store::add`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Swapped {
    /// The field had the expected value and was written.
    Done,
    /// The field has this value instead; nothing was written.
    Found(Option<Vec<u8>>),
    /// The session is [frozen](Standing::Frozen); nothing was written.
    Frozen,
    /// There is no such session.
    Gone,
}

/// Restarts the idle time-out: the client is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The idle time-out.
    pub idle: Duration,
    /// Time for which proofs from before the last rotation stay valid, counted from now.
    pub grace: Duration,
}

/// Session that continues another one.
#[derive(Clone, Copy, Debug)]
pub struct Succession<'a> {
    /// Storage key of the new session.
    pub handle: &'a Handle,
    /// Proof of the new session.
    pub proof: &'a Proof,
    /// Idle time-out of the new session.
    pub idle: Duration,
    /// Time for which the other session can still be read.
    pub grace: Duration,
}

/// Result of [`Store::destroy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destroyed {
    /// The session was destroyed.
    Done,
    /// There was no such session.
    Gone,
    /// The session had been replaced by this one. It can no longer be read, and stays known as
    /// replaced.
    Replaced(Option<Handle>),
}

/// Time for which a replaced session stays known, so that a slow request does not clear the new
/// session's cookie.
pub const REPLACED_FOR: Duration = Duration::from_hours(1);
/// Time for which a logout stays known, for the same reason.
pub const ENDED_FOR: Duration = Duration::from_mins(1);
/// Expiry of a proof whose client has not shown a later one yet.
const PENDING: u64 = u64::MAX;
/// Maximum number of earlier proofs of a session.
const OLD_PROOFS: usize = 4;

/// Proofs of a session: the current one, and earlier ones until their grace ends.
///
/// Text form: the current proof, then each earlier one as `;<proof>@<end, ms>`, or `@?` while the
/// client has not shown a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proofs {
    current: Proof,
    old: Vec<(Proof, u64)>,
}

impl Proofs {
    /// Creates the proofs of a new session.
    pub fn new(current: Proof) -> Self {
        Self { current, old: Vec::new() }
    }

    /// Parses the output of [`text`](Self::text).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let current = Proof::parse(parts.next()?)?;
        let old = |part: &str| {
            let (proof, until) = part.split_once('@')?;
            Some((Proof::parse(proof)?, if until == "?" { PENDING } else { until.parse().ok()? }))
        };
        Some(Self { current, old: parts.map(old).collect::<Option<_>>()? })
    }

    /// Returns the text form that is stored.
    pub fn text(&self) -> String {
        self.old.iter().fold(self.current.text(), |text, (proof, until)| {
            let until = if *until == PENDING { "?".to_owned() } else { until.to_string() };
            format!("{text};{}@{until}", proof.text())
        })
    }

    /// Returns whether the proof is the one of the last rotation, for [`Record::is_current`].
    pub fn is_current(&self, proof: &Proof) -> bool {
        self.current == *proof
    }

    /// Returns whether the proof is valid at `now_ms` (ms since 1970, by the store's clock); a
    /// session presented with another one is [stale](Standing::Stale).
    pub fn accepts(&self, proof: &Proof, now_ms: u64) -> bool {
        self.is_current(proof)
            || self.old.iter().any(|(old, until)| *until > now_ms && old == proof)
    }

    /// Returns whether the client has not shown the current proof yet, for
    /// [`Record::is_unconfirmed`].
    pub fn is_unconfirmed(&self) -> bool {
        self.old.iter().any(|(_, until)| *until == PENDING)
    }

    /// Records that the client has shown the current proof: the others expire after `grace`. Part
    /// of a [`Renewal`].
    pub fn confirm(&mut self, now_ms: u64, grace: Duration) {
        let end = now_ms.saturating_add(grace.as_millis() as u64).min(PENDING - 1);
        self.old.iter_mut().for_each(|(_, until)| *until = end.min(*until));
    }

    /// Replaces the current proof. Returns `false` if another rotation was first. At most four
    /// earlier proofs are kept.
    pub fn rotate(&mut self, from: &Proof, to: Proof, now_ms: u64) -> bool {
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

/// A store of sessions. [`MemoryStore`] is the shortest one; feature `testing` exports the contract
/// that a store of your own must pass, and [`SessionLayer::new`](crate::SessionLayer::new) uses it.
///
/// Every method is atomic, and only [`create`](Store::create) and
/// [`succeed`](Store::succeed) create a session, so a slow request cannot restore what a logout
/// removed. After an owner's sessions are [revoked](Store::revoke), every method treats a session
/// of that owner as gone, except that a session that was replaced before stays known as replaced.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Returns a store for one request, for sessions that are kept in their cookies. `None`: this
    /// store serves all requests.
    fn for_request(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// Returns the id that a cookie's value represents, whether or not its session exists.
    /// Malformed values are rejected without a lookup.
    fn presented(&self, cookie: &str) -> Option<Id> {
        Id::parse(cookie)
    }

    /// Returns the cookie's content after this request, if the cookie contains the session itself
    /// and the session has changed.
    ///
    /// # Errors
    /// [`Error::Store`] if the encryption fails.
    fn cookie(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// Returns how many bytes the names and values of a session may take in total, if that is
    /// limited.
    fn room(&self) -> Option<usize> {
        None
    }

    /// Returns the session, if it exists. One round trip. Without a proof, the caller must have
    /// shown one before; with a proof that is not valid any more, the session is
    /// [stale](Standing::Stale).
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error>;

    /// Creates a session.
    async fn create(
        &self,
        handle: &Handle,
        proof: &Proof,
        changes: &PendingChanges,
        lifetime: Lifetime,
    ) -> Result<(), Error>;

    /// Writes the changed fields. With a renewal, restarts the idle time-out and records that the
    /// client [has been seen](Record::seen).
    async fn save(
        &self,
        handle: &Handle,
        changes: &PendingChanges,
        renewal: Option<Renewal>,
    ) -> Result<Saved, Error>;

    /// Writes one field if it still has the expected value.
    async fn swap(
        &self,
        handle: &Handle,
        field: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swapped, Error>;

    /// Adds to a field that contains a number, in one step for any number of concurrent callers.
    /// `Ok(None)`: this store has no such step, or cannot add to the field's content; use
    /// [`swap`](Store::swap) instead.
    async fn add(
        &self,
        handle: &Handle,
        field: &str,
        by: i64,
    ) -> Result<Option<Result<i64, Swapped>>, Error> {
        let _ = (handle, field, by);
        Ok(None)
    }

    /// Replaces the proof, if `from` is the current one. Earlier proofs stay valid until a
    /// [renewal](Renewal), and then for its grace.
    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error>;

    /// [Freezes](Standing::Frozen) the session for `grace`, in favour of `next`, and returns its
    /// final content. After `grace` the session is known as [replaced](Standing::Replaced) for an
    /// hour. Returns `None` if there is no such session, or if it is known as replaced already. Of
    /// a frozen session, returns the content again, and the first `next` stays.
    async fn freeze(
        &self,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<Option<Fields>, Error>;

    /// Creates a session of the same owner that continues this one, and freezes this one, in one
    /// step. The new session takes over the fields with the changes applied, the absolute end, and
    /// the number that revocations compare.
    async fn succeed(
        &self,
        handle: &Handle,
        next: &Succession<'_>,
        changes: &PendingChanges,
    ) -> Result<Saved, Error>;

    /// Returns every live session of an owner whose client [has been seen](Record::seen), with the
    /// fields reserved for this crate only (their names begin with a dot). At most 1,000 sessions.
    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error>;

    /// Ends every session of an owner except one, in one step for any number of sessions. Returns
    /// `false` and changes nothing if `except` is not a live session of the owner.
    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error>;

    /// Removes the session. For `known_for` the store remembers it as [`Standing::Replaced`].
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
        assert!(
            proofs.is_unconfirmed() && proofs.accepts(&first, 1 << 60),
            "the answer may have been lost"
        );
        assert_eq!(Proofs::parse(&proofs.text()), Some(proofs.clone()));
        proofs.confirm(1_000, Duration::from_secs(10));
        assert!(
            proofs.accepts(&first, 10_999)
                && !proofs.accepts(&first, 11_000)
                && !proofs.is_unconfirmed()
        );
        assert!(proofs.rotate(&second, third, 2_000));
        assert!(proofs.accepts(&first, 2_000), "two back");
        assert!(proofs.is_current(&third) && !proofs.accepts(&proof(), 0));
        assert_eq!(Proofs::parse(&proofs.text()), Some(proofs));
    }
}
