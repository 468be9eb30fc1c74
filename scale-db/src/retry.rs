//! Transactions that are retried when the database asks for it.
//!
//! | transaction fails with | then |
//! | --- | --- |
//! | a serialization failure, a deadlock, a busy SQLite file | it is rolled back, and retried after a pause with full jitter, up to the number of attempts |
//! | a lost connection at `commit` | it is not retried: it may have committed |
//! | any other error, including one of the caller | it is rolled back, and the error returned |
//! | its future is dropped | it is rolled back |

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{Error, Transaction};

use crate::backend::Backend;
use crate::db::Db;

/// An error that may disappear if its transaction is retried. Implement it for your own error type,
/// so that [`Db::transaction`] can recognize such errors.
///
/// ```
/// use scale_db::retry::Transient;
///
/// enum CheckoutError { SoldOut, Database(sqlx::Error) }
///
/// impl From<sqlx::Error> for CheckoutError {
///     fn from(error: sqlx::Error) -> Self { Self::Database(error) }
/// }
///
/// impl Transient for CheckoutError {
///     fn is_transient(&self) -> bool {
///         matches!(self, Self::Database(error) if error.is_transient())
///     }
/// }
/// ```
pub trait Transient {
    /// Returns whether a retry may help, and cannot have an effect twice.
    fn is_transient(&self) -> bool;
}

impl Transient for Error {
    fn is_transient(&self) -> bool {
        let Some(code) = self.as_database_error().and_then(crate::failure::code) else {
            return false;
        };
        // Postgres: serialization_failure, deadlock_detected. MySQL: ER_LOCK_DEADLOCK, ER_CHECKREAD
        // (MariaDB). SQLite: BUSY, LOCKED, and their extended forms.
        ["40001", "40P01", "1213", "1020", "5", "6", "261", "262", "517"].contains(&&*code)
    }
}

impl Transient for Box<dyn std::error::Error + Send + Sync> {
    fn is_transient(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<Error>() {
                return error.is_transient();
            }
            cause = error.source();
        }
        false
    }
}

#[cfg(feature = "anyhow")]
impl Transient for anyhow::Error {
    fn is_transient(&self) -> bool {
        self.chain()
            .find_map(|cause| cause.downcast_ref::<Error>())
            .is_some_and(Transient::is_transient)
    }
}

/// Total number of attempts.
const ATTEMPTS: u32 = 5;
/// Bound of the first pause; it doubles with each pause.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Remaining attempts of a transaction.
pub(crate) struct RetryBudget {
    attempts: u32,
    bound: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { attempts: ATTEMPTS, bound: FIRST_PAUSE }
    }
}

impl RetryBudget {
    /// Waits before another attempt and returns `true`, or returns `false` if the error must be
    /// returned.
    pub(crate) async fn again(&mut self, error: &impl Transient) -> bool {
        self.attempts -= 1;
        if self.attempts == 0 || !error.is_transient() {
            return false;
        }
        metrics::counter!("scale_db_retries_total").increment(1);
        tokio::time::sleep(self.bound.mul_f64(fastrand::f64())).await;
        self.bound = (self.bound * 2).min(LONGEST_PAUSE);
        true
    }
}

/// A transaction lent to one attempt. Dereferences to [`Transaction`], and ends with the attempt.
///
/// It is owned, not borrowed, so that futures of closures that use it are `Send`, as web frameworks
/// require.
pub struct Attempt<DB: Backend> {
    // `None` only during drop.
    tx: Option<Transaction<'static, DB>>,
    home: Home<DB>,
}

type Home<DB> = Arc<Mutex<Option<Transaction<'static, DB>>>>;

impl<DB: Backend> Attempt<DB> {
    /// Lends a transaction. It is returned when the attempt is dropped.
    pub(crate) fn lend(tx: Transaction<'static, DB>) -> (Self, Home<DB>) {
        let home = Home::<DB>::default();
        (Self { tx: Some(tx), home: Arc::clone(&home) }, home)
    }

    /// Takes a returned transaction.
    pub(crate) fn returned(home: &Home<DB>) -> Result<Transaction<'static, DB>, Error> {
        home.lock().take().ok_or_else(|| {
            Error::Protocol("the transaction was used after the end of its attempt".into())
        })
    }
}

impl<DB: Backend> Drop for Attempt<DB> {
    fn drop(&mut self) {
        *self.home.lock() = self.tx.take();
    }
}

impl<DB: Backend> Deref for Attempt<DB> {
    type Target = Transaction<'static, DB>;

    #[allow(clippy::expect_used)]
    fn deref(&self) -> &Self::Target {
        self.tx.as_ref().expect("taken by drop alone")
    }
}

impl<DB: Backend> DerefMut for Attempt<DB> {
    #[allow(clippy::expect_used)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.tx.as_mut().expect("taken by drop alone")
    }
}

impl<DB: Backend> fmt::Debug for Attempt<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempt")
    }
}

impl<DB: Backend> Db<DB> {
    /// Runs a transaction on the primary and commits it, up to five times if the database asks for
    /// a retry. `work` must have no effects outside of the transaction that must not happen twice.
    ///
    /// ```no_run
    /// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), sqlx::Error> {
    /// let account = 1_i64;
    /// let left: i64 = db.transaction(async |mut tx| {
    ///     let take = sqlx::query("update accounts set cents = cents - 100 where id = $1");
    ///     take.bind(account).execute(&mut **tx).await?;
    ///     sqlx::query_scalar("select cents from accounts where id = $1")
    ///         .bind(account)
    ///         .fetch_one(&mut **tx).await
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// If `work` ignores the error of a statement, that error is not undone: Postgres has aborted
    /// the transaction then, and rolls it back at its end without an error.
    ///
    /// An `async` closure may borrow what it only reads. To change a captured variable, do so
    /// before creating the future: `|mut tx| { runs += 1; async move { … } }`.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub async fn transaction<T, E, F, R>(&self, mut work: F) -> Result<T, E>
    where
        F: FnMut(Attempt<DB>) -> R,
        R: Future<Output = Result<T, E>>,
        E: From<Error> + Transient,
    {
        let mut patience = RetryBudget::default();
        loop {
            let (attempt, home) = Attempt::lend(self.begin().await?);
            let result = work(attempt).await;
            let tx = Attempt::returned(&home)?;
            let error = match result {
                Ok(value) => match tx.commit().await {
                    Ok(()) => return Ok(value),
                    Err(error) => E::from(error),
                },
                Err(error) => {
                    // If this fails, the connection is closed, which also rolls back.
                    let _ = tx.rollback().await;
                    error
                }
            };
            if !patience.again(&error).await {
                return Err(error);
            }
        }
    }
}
