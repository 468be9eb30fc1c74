//! Retries of transactions that the database rolls back in favour of others.

use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;

use crate::error::is_undone;

/// Maximum number of attempts of a transaction.
const ATTEMPTS: u32 = 10;

/// Runs a transaction, and repeats it if the database rolled it back in favour of another one: ten
/// attempts at most, after random pauses whose bound doubles from 4 to 128 ms. `source` returns the
/// underlying error of sqlx.
///
/// # Errors
/// The error of the last attempt.
pub async fn retry<T, E, F>(
    source: impl Fn(&E) -> Option<&(dyn StdError + Send + Sync + 'static)>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for number in 1..ATTEMPTS {
        match attempt().await {
            Err(error)
                if source(&error)
                    .and_then(|source| source.downcast_ref())
                    .is_some_and(is_undone) =>
            {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..2 << number.min(6))))
                    .await;
            }
            other => return other,
        }
    }
    attempt().await
}
