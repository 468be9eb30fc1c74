//! Messages between client and server: a length of 4 bytes, big endian, then MessagePack.

use std::io::{Error, ErrorKind, Result};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest message, in bytes. The peer is not trusted with more memory than that.
const LARGEST: u32 = 16 * 1024 * 1024;

/// A call of the store. Durations are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Get {
        key: String,
    },
    Begin {
        key: String,
        token: u64,
        lease_ms: u64,
    },
    Renew {
        key: String,
        token: u64,
        lease_ms: u64,
    },
    Fill {
        key: String,
        token: u64,
        bytes: Vec<u8>,
        keep_ms: u64,
    },
    Release {
        key: String,
        token: u64,
    },
    Set {
        key: String,
        bytes: Vec<u8>,
        keep_ms: u64,
    },
    Touch {
        key: String,
        ends: [u8; 16],
        keep_ms: u64,
    },
    Remove {
        key: String,
    },
    Version {
        tag: String,
    },
    Invalidate {
        tag: String,
        position: Option<Vec<u8>>,
    },
    /// From now on the connection carries [`Event`]s.
    Subscribe,
}

/// Answer to a [`Call`], with the time of the server in µs since 1970.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) now_us: u64,
    pub(crate) result: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Entry(Option<Vec<u8>>),
    Begun { won: bool, entry: Option<Vec<u8>> },
    Done(bool),
    Version(TagVersion),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TagVersion {
    pub(crate) at_us: u64,
    pub(crate) position: Option<Vec<u8>>,
}

/// A change that every subscriber is told. Events are in the order of the changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// First event of a subscription.
    Subscribed,
    Changed {
        key: String,
    },
    Invalidated {
        tag: String,
        version: TagVersion,
    },
}

/// Sends a message.
pub(crate) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<()> {
    let bytes = rmp_serde::to_vec(message).map_err(Error::other)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= LARGEST);
    let length = length.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "message too large"))?;
    to.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await
}

/// Receives a message.
pub(crate) async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<T> {
    let length = from.read_u32().await?;
    if length > LARGEST {
        return Err(Error::new(ErrorKind::InvalidData, "message too large"));
    }
    // The buffer grows with what arrives, not with what is announced.
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes).await?;
    rmp_serde::from_slice(&bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}
