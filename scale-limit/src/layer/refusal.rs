//! Reasons for refusing a request.

use crate::decision::Decision;
use crate::guard::bans::Ban;

/// Reason for refusing a request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Refusal<'a> {
    /// A quota is exceeded: 429.
    TooMany(&'a Decision),
    /// The client's network is denied: 403.
    Denied,
    /// The client is banned: 403.
    Banned(&'a Ban),
    /// The request is limited by its address, which is unknown: 500. See
    /// [`ClientIp::key`](crate::client::ClientIp::key).
    UnknownClient,
}
