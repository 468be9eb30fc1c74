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
use crate::id::Id;
pub use crate::id::{Handle, Owner};

/// Encoded values by field.
pub type Fields = HashMap<String, Vec<u8>, foldhash::fast::RandomState>;

/// A session as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Encoded values by field.
    pub fields: Fields,
    /// When its idle time-out was last started anew, by the store's clock.
    pub renewed: SystemTime,
    /// The session has been rotated: this is where it lives now.
    pub moved_to: Option<Handle>,
}

/// How long a session lives from a write on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Without use.
    pub idle: Duration,
    /// In all, from its creation.
    pub absolute: Duration,
}

/// What came of [`Store::save`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The changes are written.
    Done,
    /// The session has been rotated; nothing is written. It lives there now.
    Moved(Handle),
    /// There is no such session; nothing is written.
    Gone,
}

/// What came of [`Store::swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The field was as expected and is written.
    Done,
    /// The field holds this instead; nothing is written.
    Found(Option<Vec<u8>>),
    /// The session has been rotated; nothing is written. It lives there now.
    Moved(Handle),
    /// There is no such session.
    Gone,
}

/// What came of [`Store::leave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// The pointer is there.
    Done,
    /// The session holds this instead, and stays.
    Changed(Record),
    /// The session is gone, or has moved already.
    Gone,
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

    /// The session that a cookie's value stands for, whether it lives or not. What is malformed is nobody's, and is never looked up.
    fn presented(&self, cookie: &str) -> Option<Handle> {
        Id::parse(cookie).map(|id| id.handle())
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

    /// The session, if it lives. One round trip.
    async fn load(&self, handle: &Handle) -> Result<Option<Record>, Error>;

    /// A new session.
    async fn create(&self, handle: &Handle, changes: &Changes, lifetime: Lifetime) -> Result<(), Error>;

    /// Writes the changed fields, and starts the idle time-out anew if one is given.
    async fn save(&self, handle: &Handle, changes: &Changes, idle: Option<Duration>) -> Result<Saved, Error>;

    /// Writes one field if it still holds what is expected.
    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error>;

    /// Leaves a pointer to `to` in place of the session for `grace`, if it holds just what `to` was made of: so nothing that was written is
    /// missing there, at no moment.
    async fn leave(&self, handle: &Handle, to: &Handle, expected: &Fields, grace: Duration) -> Result<Left, Error>;

    /// Every living session of an owner, with its own fields (those whose names begin with a dot) alone: a thousand at most.
    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error>;

    /// Ends every session of an owner but one, however many there are, in one step.
    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<(), Error>;

    /// Removes the session, or the pointer that a rotation left; returns where that pointed.
    async fn destroy(&self, handle: &Handle) -> Result<Option<Handle>, Error>;
}
