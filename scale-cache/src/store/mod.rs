//! The second level, shared by all processes. One trait, one file per backend.

mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use self::memory::SharedMemory;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
pub use crate::clock::since_boot;
use crate::error::Error;

/// Something that happened in another process, or to the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A tag has a new version.
    Invalidated(Arc<str>, Version),
    /// A key was written or removed.
    Changed(Arc<str>),
    /// The link is down: news may be missed from here on.
    Lost,
    /// The link is up: from here on nothing is missed.
    Restored,
    /// Everything that was said before `asked`, by [`since_boot`], has been heard. A store that proves its link says so again and again:
    /// see [`Store::proves_its_link_within`].
    Heard {
        /// When the proof was asked for.
        asked: Duration,
    },
}

/// The part that a store has lost of what it had acknowledged: it was restarted, or another server took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// Nothing from before this moment, by the store's clock, µs since 1970.
    Since(u64),
    /// Nothing from before this moment; and what others remember of it has been made up for.
    SettledSince(u64),
    /// Nobody knows what; a process that was there may remember it.
    Unknown,
    /// Nothing says that it has ever been whole.
    Everything,
}

/// The version of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// When it was last invalidated, by the store's clock, µs since 1970.
    pub at_us: u64,
    /// What a database must have replayed before it may be read for a value with this tag.
    pub position: Option<Position>,
}

/// A database's position. What it means is the application's business; of two, the one that is greater byte by byte is later.
pub type Position = Arc<[u8]>;

/// What came of [`Store::begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Whether this process is the one to load.
    pub won: bool,
    /// The entry as it is at that moment: somebody may have stored it since this process looked.
    pub entry: Option<Vec<u8>>,
    /// The store's clock, µs since 1970.
    pub now_us: u64,
}

/// The second level. Every method is one round trip and atomic.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// An entry's bytes.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Asks to be the one process that loads a key; the right ends after `lease`, when the key is written or removed, or by `release`.
    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error>;

    /// Holds on to that right, if it still stands; one that was taken away is never taken again.
    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error>;

    /// Stores what was loaded, if the right to do so still stands. `false`: the key was written or removed meanwhile, or somebody else
    /// loads it by now.
    async fn fill(&self, key: &str, token: u64, bytes: &[u8], keep: Duration) -> Result<bool, Error>;

    /// Gives up the right to load.
    async fn release(&self, key: &str, token: u64) -> Result<(), Error>;

    /// Stores whatever else is under way, and tells other processes.
    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error>;

    /// Writes the two ends of a fresh entry anew, and keeps it so long; `false` if there is none, or it has expired. Whether it was
    /// invalidated is not asked: then it stays so.
    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error>;

    /// Removes, takes the right to load from whoever has it, and tells other processes.
    async fn remove(&self, key: &str) -> Result<(), Error>;

    /// The version of a tag, and the time by the clock that versions of this tag are made by, µs since 1970. A tag seen for the first time was
    /// invalidated just now.
    async fn version(&self, tag: &str) -> Result<(Version, u64), Error>;

    /// Gives a tag a new version, and tells other processes. Of the positions given, the latest stays.
    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error>;

    /// How long a [`get`](Store::get) waits for its answer, if the store sees to that itself; else the cache keeps the time, as it does for all
    /// other methods.
    fn get_within(&self) -> Option<Duration> {
        None
    }

    /// Returns whether it is known to have lost nothing. While it is not, the cache believes no entry of it, and has it
    /// [examined](Store::examine).
    fn is_whole(&self) -> bool {
        true
    }

    /// Another number when commands may reach another server, or the same one after a restart.
    fn incarnation(&self) -> u64 {
        0
    }

    /// Finds out what the store has lost, if anything. After [`Loss::Nothing`] it is whole.
    async fn examine(&self) -> Result<Loss, Error> {
        Ok(Loss::Nothing)
    }

    /// Says that what was lost has been made up for: every process may believe the store again.
    async fn settle(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Leaves a mark of the present moment in the store: what it has lost later is what came after the last mark it still has. Called about
    /// once a second while it is whole.
    async fn mark(&self) {}

    /// The longest time between two proofs ([`News::Heard`]) that the link is up; `None`: it gives none.
    fn proves_its_link_within(&self) -> Option<Duration> {
        None
    }

    /// Returns whether all entries and tags have one clock, that of [`now_us`](Store::now_us). Nodes of a Cluster have one each.
    fn has_one_clock(&self) -> bool {
        true
    }

    /// What other processes do, from now on. Begins with `Restored` once that is so.
    fn news(&self) -> BoxStream<'static, News>;

    /// The store's clock, µs since 1970.
    fn now_us(&self) -> u64;
}
