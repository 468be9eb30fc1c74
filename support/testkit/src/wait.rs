//! Waiting for a condition instead of a duration.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Maximum time to wait for a server before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Calls `check` repeatedly until it returns `Some`, for at most [`DEADLINE`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> anyhow::Result<()> {
/// let mut asked = 0;
/// let answer = scale_testkit::eventually(
///     "the third time", async || { asked += 1; (asked == 3).then_some(asked) },
/// ).await?;
/// assert_eq!(answer, 3);
/// # Ok(()) }
/// ```
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = check().await {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("waited {DEADLINE:?} for {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns whether a TCP port accepts a connection.
pub(crate) async fn accepts(port: u16) -> bool {
    let connect: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(tokio::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)));
    connect.await.is_ok()
}
