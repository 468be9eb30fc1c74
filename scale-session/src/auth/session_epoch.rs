//! Signing out everywhere: ends all sign-ins of a user in one step, on every device and server.
//!
//! Each user has a counter of the times that all sign-ins ended: the epoch. A sign-in stores the
//! current epoch in its session, and is valid as long as the epoch stays the same. So nothing needs
//! to be found and deleted, and a sign-in that was in progress when all ended has ended as well.
//!
//! | when | then |
//! | --- | --- |
//! | all sign-ins end while others are in progress | a sign-in with an epoch read before is ended, one with an epoch read after is valid |
//! | two requests end all sign-ins at once | both do; the epoch of the later one is valid |
//! | the one-time store does not answer | [`Error::OneTimeStore`]: refuse access, or decide otherwise deliberately |
//! | the one-time store loses its data (a flush, a failover) | sign-ins since the last end are ended; sign-ins from before the first end are valid again, if the session store has kept the session |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::one_time_store::OneTimeStore;

/// Epoch of a user's sign-ins, kept in each session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

/// Ends all sign-ins of a user and checks epochs. A clone costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::{OneTimeStore, SessionEpochs};
///
/// let epochs = SessionEpochs::new(&OneTimeStore::memory(), Duration::from_secs(30 * 86_400));
/// let stamp = epochs.epoch("user:7").await?; // at sign-in: `session.insert("sign-in", &stamp)`
/// // at each request, or each sensitive one: 1 read
/// assert!(epochs.is_current("user:7", stamp).await?);
///
/// // "Sign out everywhere", or a new password. The caller stays in by the new epoch.
/// let mine = epochs.end_all("user:7").await?;
/// assert!(!epochs.is_current("user:7", stamp).await?);
/// assert!(epochs.is_current("user:7", mine).await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SessionEpochs {
    one_time: OneTimeStore,
    time: Duration,
}

impl SessionEpochs {
    /// `time` is the time for which an end is remembered: at least the maximum lifetime of a
    /// session ([`Config::absolute_timeout`](crate::Config::absolute_timeout)).
    pub fn new(one_time: &OneTimeStore, time: Duration) -> Self {
        Self { one_time: one_time.clone(), time }
    }

    /// Returns the current epoch, for a sign-in. Read it before the password is checked: then an
    /// end in the meantime ends this sign-in as well.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn epoch(&self, user: &str) -> Result<Epoch, Error> {
        self.one_time.count(SCOPE, user, Some(self.time)).await.map(Epoch)
    }

    /// Returns whether the sign-in is still valid.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the answer is unknown.
    pub async fn is_current(&self, user: &str, stamp: Epoch) -> Result<bool, Error> {
        Ok(self.one_time.count(SCOPE, user, None).await? == stamp.0)
    }

    /// Ends all sign-ins of the user, and returns the first epoch after them.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the sign-ins may or may not have ended. Try again; a repetition
    /// also ends the sign-ins made in between.
    pub async fn end_all(&self, user: &str) -> Result<Epoch, Error> {
        self.one_time.advance(SCOPE, user, self.time).await.map(Epoch)
    }
}

const SCOPE: &str = "sign-ins";
