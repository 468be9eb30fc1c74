//! The second level, shared by all processes. One trait, one file per backend.

//!
//! A store of your own implements [`Store`]; [`mod@format`] states what it must know of the bytes
//! that it keeps, and the module `testing` (feature `testing`) has its contract.
//! `examples/tcp_store` of the repository is such a store.

mod memory;
#[cfg(feature = "redis")]
mod redis;

pub mod format {
    //! Format of an entry, as far as a store must know it.
    //!
    //! Most calls of a store treat an entry as bytes. [`Store::touch`](super::Store::touch) does
    //! not: it replaces the bytes [`ENDS`], if [`fresh_until`] is later than now.
    //!
    //! | bytes | holds |
    //! | --- | --- |
    //! | 0 | the format's version |
    //! | 1 | 1 if the value is compressed, as LZ4 with its length before it |
    //! | 2 to 9 | the fingerprint of the type |
    //! | 10 to 17 | time until which the entry is fresh, µs since 1970 by the store's clock |
    //! | 18 to 25 | time until which the entry is kept, in the same unit |
    //! | 26 to 33 | time of the load, in the same unit |
    //! | 34 to 37 | duration of the load, µs |
    //! | 38 | number of tags, then for each: length (2 bytes), name, version (8 bytes) |
    //! | rest | the value as MessagePack, in the human-readable form: an address or a UUID is a text |
    //!
    //!
    //! Integers are little endian. The version changes with the format: a store that finds another
    //! version in [`touch`](super::Store::touch) returns `false`.

    pub use crate::format::{ENDS, VERSION, fresh_until};
}

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use self::memory::SharedMemory;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
pub use crate::clock::since_boot;
use crate::error::Error;

/// An event in another process, or of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreEvent {
    /// A tag has a new version.
    Invalidated(Arc<str>, Version),
    /// A key was written or removed.
    Changed(Arc<str>),
    /// The link is down: events may be missed from here on.
    Lost,
    /// The link is up: from here on no event is missed.
    Restored,
    /// All events before `asked`, by [`since_boot`], have been received. A store that checks its
    /// link repeats this event: see [`Store::proves_its_link_within`].
    Heard {
        /// Time at which the link check began.
        asked: Duration,
    },
}

/// Loss of a store's acknowledged writes, after a restart or a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// Nothing is lost.
    Nothing,
    /// Nothing from before this time is lost; by the store's clock, in µs since 1970.
    Since(u64),
    /// Nothing from before this time is lost, and other processes have repeated what they knew of
    /// the rest.
    SettledSince(u64),
    /// The extent is unknown; a process that was connected may know it.
    Unknown,
    /// There is no evidence that the store was ever complete.
    Everything,
}

/// Version of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Time of the last invalidation, by the store's clock, in µs since 1970.
    pub at_us: u64,
    /// Position that a database must have replayed before it is read for a value with this tag.
    pub position: Option<Position>,
}

/// A database position. Its meaning is defined by the application; of two positions, the one that
/// is greater byte by byte is later.
pub type Position = Arc<[u8]>;

/// Result of [`Store::begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// `true` if this process must load.
    pub won: bool,
    /// Current entry: another process may have stored it since this process looked.
    pub entry: Option<Vec<u8>>,
    /// Time by the store's clock, in µs since 1970.
    pub now_us: u64,
}

/// A second level. Every method is one round trip and atomic.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Returns an entry's bytes.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Requests the load lease of a key. It ends after `lease`, when the key is written or removed,
    /// or by `release`.
    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error>;

    /// Renews a load lease that is still held. A lease that has ended cannot be renewed.
    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error>;

    /// Stores a loaded value, if the load lease is still held. Returns `false` if the key was
    /// written or removed in the meantime, or another process holds the lease.
    async fn fill(
        &self,
        key: &str,
        token: u64,
        bytes: &[u8],
        keep: Duration,
    ) -> Result<bool, Error>;

    /// Releases a load lease.
    async fn release(&self, key: &str, token: u64) -> Result<(), Error>;

    /// Stores a value regardless of leases, and notifies other processes.
    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error>;

    /// Rewrites both end times of a fresh entry, and keeps it for that time. Returns `false` if
    /// there is none, or it has expired. Does not revalidate: an invalidated entry stays invalid.
    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error>;

    /// Removes an entry, ends the key's load lease, and notifies other processes.
    async fn remove(&self, key: &str) -> Result<(), Error>;

    /// Returns the version of a tag, and the time by the clock that makes versions of this tag, in
    /// µs since 1970. A tag that is used for the first time counts as invalidated just now.
    async fn version(&self, tag: &str) -> Result<(Version, u64), Error>;

    /// Gives a tag a new version, and notifies other processes. Keeps the latest of the positions
    /// given.
    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error>;

    /// Returns the time-out of [`get`](Store::get) if the store enforces it itself; otherwise the
    /// cache does, as for all other methods.
    fn get_within(&self) -> Option<Duration> {
        None
    }

    /// Returns whether the store is known to have lost nothing. Otherwise the cache uses none of
    /// its entries, and calls [`examine`](Store::examine).
    fn is_whole(&self) -> bool {
        true
    }

    /// Returns a number that changes when commands may reach another server, or the same one after
    /// a restart.
    fn incarnation(&self) -> u64 {
        0
    }

    /// Finds out what the store has lost. After [`Loss::Nothing`] the store is complete.
    async fn examine(&self) -> Result<Loss, Error> {
        Ok(Loss::Nothing)
    }

    /// Records that lost invalidations have been repeated: every process may use the store again.
    async fn settle(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Writes a mark with the current time into the store: a later loss concerns only what came
    /// after the last mark that is left. Called about once a second while the store is complete.
    async fn mark(&self) {}

    /// Returns the maximum time between two link checks ([`StoreEvent::Heard`]); `None` if the
    /// store has no link checks.
    fn proves_its_link_within(&self) -> Option<Duration> {
        None
    }

    /// Returns whether all entries and tags share one clock, that of [`now_us`](Store::now_us). In
    /// a Cluster each node has its own.
    fn has_one_clock(&self) -> bool {
        true
    }

    /// Returns the events of other processes from now on. The first one is `Restored`, once the
    /// subscription is up.
    fn events(&self) -> BoxStream<'static, StoreEvent>;

    /// Returns the time by the store's clock, in µs since 1970.
    fn now_us(&self) -> u64;
}
