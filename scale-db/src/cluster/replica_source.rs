//! Sources of replica addresses: DNS, or a function of the application.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use url::Url;

/// Function that returns the addresses of the current replicas.
#[derive(Clone)]
pub(crate) struct ReplicaSource(
    Arc<dyn Fn() -> BoxFuture<'static, io::Result<Vec<String>>> + Send + Sync>,
);

impl fmt::Debug for ReplicaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplicaSource")
    }
}

impl ReplicaSource {
    pub(crate) fn with<F>(find: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<String>>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(find())))
    }

    /// Resolves the host in this address: each of its IP addresses replaces the host.
    pub(crate) fn dns(url: String) -> Self {
        Self::with(move || {
            let url = url.clone();
            async move {
                // The error must not show the address, which may contain a password.
                let unreadable = || {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "the discovery address cannot be parsed",
                    )
                };
                let url = Url::parse(&url).map_err(|_| unreadable())?;
                let host = url.host_str().ok_or_else(unreadable)?.to_owned();
                let found = tokio::net::lookup_host((host, url.port().unwrap_or_default())).await?;
                let put = |address: std::net::SocketAddr| {
                    let mut url = url.clone();
                    url.set_ip_host(address.ip()).ok()?;
                    Some(url.into())
                };
                Ok(found.filter_map(put).collect())
            }
        })
    }

    /// Returns the current addresses; an error if the function panics.
    pub(crate) async fn addresses(&self) -> io::Result<Vec<String>> {
        let find = std::panic::AssertUnwindSafe(async { (self.0)().await }).catch_unwind();
        find.await.unwrap_or_else(|_| Err(io::Error::other("the discovery function panicked")))
    }
}
