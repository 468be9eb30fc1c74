//! Settings of a connection: timeouts and retries.

use std::time::Duration;

use serde::Deserialize;

/// Settings of a handle; [`Config::new`] has the defaults. Configuration files and environment
/// variables use the same names.
///
/// ```
/// use std::time::Duration;
/// let config = scale_redis::Config::new("redis://127.0.0.1")
///     .response_timeout(Duration::from_millis(100));
/// ```
#[must_use]
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub(crate) url: String,
    #[serde(default = "half_a_second", with = "humantime_serde")]
    pub(crate) connect_timeout: Duration,
    #[serde(default = "half_a_second", with = "humantime_serde")]
    pub(crate) response_timeout: Duration,
    #[serde(default = "two_seconds", with = "humantime_serde")]
    pub(crate) max_reconnect_delay: Duration,
    #[serde(default = "three")]
    pub(crate) cluster_retries: u32,
}

const fn half_a_second() -> Duration {
    Duration::from_millis(500)
}

const fn two_seconds() -> Duration {
    Duration::from_secs(2)
}

const fn three() -> u32 {
    3
}

impl Config {
    /// Creates the default settings for an address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connect_timeout: half_a_second(),
            response_timeout: half_a_second(),
            max_reconnect_delay: two_seconds(),
            cluster_retries: three(),
        }
    }

    /// Sets how long connecting may take, including the handshake. Default: 500 ms.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets how long an answer may take. Default: 500 ms.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Sets the longest pause between two attempts to reconnect; pauses start at 10 ms and double.
    /// Default: 2 s.
    pub fn max_reconnect_delay(mut self, limit: Duration) -> Self {
        self.max_reconnect_delay = limit;
        self
    }

    /// Sets how often a Cluster command is repeated after a redirection or a lost connection.
    /// Default: 3.
    pub fn cluster_retries(mut self, times: u32) -> Self {
        self.cluster_retries = times;
        self
    }
}

impl std::fmt::Debug for Config {
    /// Omits the address, because it may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}
