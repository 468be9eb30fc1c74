//! Servers shared by all tests of a program: one per backend; each test uses a name of its own on
//! it.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};

/// A server that is started by the first test that needs it, and ends with the program.
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// static REDIS: scale_testkit::Shared<scale_testkit::Redis> = scale_testkit::Shared::new();
/// let server = REDIS.get(scale_testkit::Redis::start).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Shared<T: 'static>(OnceLock<Result<T, String>>);

impl<T: Send + Sync + 'static> Shared<T> {
    /// Creates a shared server that is not started yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Returns the server; the first call starts it.
    ///
    /// # Errors
    /// The server could not be started; all later calls return the same error.
    pub async fn get<F>(&'static self, start: fn() -> F) -> Result<&'static T>
    where
        F: Future<Output = Result<T>> + 'static,
    {
        let started = tokio::task::spawn_blocking(move || self.0.get_or_init(|| keep(start)));
        started.await?.as_ref().map_err(|error| anyhow!("{error}"))
    }
}

impl<T: Send + Sync + 'static> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts a server on a thread that never ends: servers end with the thread that started them, and
/// threads of tests end.
fn keep<T: Send + 'static, F: Future<Output = Result<T>> + 'static>(
    start: fn() -> F,
) -> Result<T, String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let keeper = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(sender.send(Err(error.to_string()))),
        };
        runtime.block_on(async move {
            let started = start().await.map_err(|error| format!("{error:#}"));
            let _ = sender.send(started);
            std::future::pending::<()>().await;
        });
    };
    let named = std::thread::Builder::new().name("server".to_owned());
    named.spawn(keeper).map_err(|error| error.to_string())?;
    receiver.recv().map_err(|_| "the thread of the server ended".to_owned())?
}
