//! Signing out everywhere: all sign-ins of a user end in one step, on every device and every server.
//!
//! A user has a count of the times that all sign-ins ended. A sign-in keeps the count that it found, in its session, and holds as long as
//! that is still the count. So nothing needs to be found and deleted, and a sign-in that was under way when all ended has ended too.
//!
//! | when | then |
//! | --- | --- |
//! | all end while others sign in | who took a stamp before is out, who takes one after is in |
//! | two end all at once | both do; the stamp of the later one holds |
//! | the ledger does not answer | [`Error::Ledger`]: let nobody in, or decide otherwise knowingly |
//! | the ledger loses what it knew (a flush, a fail-over) | who signed in since the last end is out; who was out before the first one is in again, if the session's store has kept the session |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::ledger::Ledger;

/// What a sign-in keeps in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(u64);

/// Knows whose sign-ins have ended. Cloning costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::{Ledger, SignIns};
///
/// let sign_ins = SignIns::new(&Ledger::memory(), Duration::from_secs(30 * 86_400));
/// let stamp = sign_ins.stamp("user:7").await?; // at sign-in: `session.insert("sign-in", &stamp)`
/// assert!(sign_ins.holds("user:7", stamp).await?); // at each request, or each that matters: 1 read
///
/// // "Sign out everywhere", or a new password. Who asks stays in by the new stamp.
/// let mine = sign_ins.end_all("user:7").await?;
/// assert!(!sign_ins.holds("user:7", stamp).await?);
/// assert!(sign_ins.holds("user:7", mine).await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SignIns {
    ledger: Ledger,
    time: Duration,
}

impl SignIns {
    /// `time`: as long as a session lives at the most ([`Config::absolute_timeout`](crate::Config::absolute_timeout)), or longer. So long an end is remembered.
    pub fn new(ledger: &Ledger, time: Duration) -> Self {
        Self { ledger: ledger.clone(), time }
    }

    /// For a sign-in. Take it before the password is checked, and what ends meanwhile ends this one too.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn stamp(&self, user: &str) -> Result<Stamp, Error> {
        self.ledger.count(SCOPE, user, Some(self.time)).await.map(Stamp)
    }

    /// Whether the sign-in has not ended.
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know.
    pub async fn holds(&self, user: &str, stamp: Stamp) -> Result<bool, Error> {
        Ok(self.ledger.count(SCOPE, user, None).await? == stamp.0)
    }

    /// Ends all sign-ins of the user, and returns the first stamp after them.
    ///
    /// # Errors
    /// [`Error::Ledger`]: they may have ended or not. Try again; once more does no harm but to those who signed in between.
    pub async fn end_all(&self, user: &str) -> Result<Stamp, Error> {
        self.ledger.advance(SCOPE, user, self.time).await.map(Stamp)
    }
}

const SCOPE: &str = "sign-ins";
