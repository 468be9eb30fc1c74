//! Content of a stored job behind its head.

use serde::ser::{SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

use super::options::LazyOptions;
use crate::job::Priority;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Body {
    pub(crate) name: String,
    #[serde(with = "bytes")]
    pub(crate) payload: Vec<u8>,
    pub(crate) unique: Option<String>,
    pub(crate) last_error: Option<String>,
    /// Jobs that follow in the chain, the next one first.
    #[serde(default)]
    pub(crate) then: Vec<Link>,
    #[serde(default)]
    pub(crate) extra: Extra,
    /// Options of version 3.
    #[serde(default)]
    pub(crate) options: LazyOptions,
}

/// Optional fields; left out of the encoding when empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extra {
    /// Position of the job in its batch.
    pub(crate) batch: Option<Place>,
    /// Metadata set by the pusher, for example a trace context.
    pub(crate) metadata: Vec<(String, String)>,
    /// Unused; written by earlier versions, so its position is kept.
    pub(crate) turn: bool,
    /// Maximum number of attempts and timeout, if they differ from those of the job's type.
    #[serde(default)]
    pub(crate) attempts: Option<u16>,
    #[serde(default)]
    pub(crate) timeout_ms: Option<u64>,
    /// Errors of earlier attempts, at most [`REMEMBERED`], the latest last.
    #[serde(default)]
    pub(crate) failures: Vec<Failure>,
    /// Longest time for which the job's unique key is held, if that is not a day.
    #[serde(default)]
    pub(crate) unique_ms: Option<u64>,
    /// Time at which a worker first failed to parse the job's payload: ms since 1970.
    #[serde(default)]
    pub(crate) unfit_ms: Option<u64>,
}

/// Failure of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// Time of the failure: ms since 1970.
    pub at_ms: u64,
    /// Error, cut to 300 characters.
    pub reason: String,
}

/// Position of a job in a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) number: u32,
}

/// Bytes that are serialized as MessagePack binary.
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.0)
    }
}

impl Serialize for Body {
    /// Omits trailing empty fields: most jobs stay short, and workers of older versions can read
    /// them.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let length = match () {
            () if !self.options.is_empty() => 7,
            () if self.extra != Extra::default() => 6,
            () if !self.then.is_empty() => 5,
            () => 4,
        };
        let mut fields = to.serialize_tuple(length)?;
        fields.serialize_element(&self.name)?;
        fields.serialize_element(&Raw(&self.payload))?;
        fields.serialize_element(&self.unique)?;
        fields.serialize_element(&self.last_error)?;
        if length > 4 {
            fields.serialize_element(&self.then)?;
        }
        if length > 5 {
            fields.serialize_element(&self.extra)?;
        }
        if length > 6 {
            fields.serialize_element(&self.options)?;
        }
        fields.end()
    }
}

/// Job of a chain that waits for the job before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) queue: String,
    pub(crate) name: String,
    #[serde(with = "bytes")]
    pub(crate) payload: Vec<u8>,
    /// Delay after the previous job is done.
    pub(crate) delay_ms: u64,
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// Options of the job; only in a job of version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) more: Option<Box<LinkOptions>>,
}

/// Options of a job of a chain or batch, if it has any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkOptions {
    pub(crate) priority: Priority,
    /// Time after its push at which the job expires.
    pub(crate) expires_after_ms: Option<u64>,
    /// Time after its push for which the job is retried.
    pub(crate) retry_for_ms: Option<u64>,
    pub(crate) attempts: Option<u16>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) options: LazyOptions,
}

/// Serializes bytes as MessagePack binary, not as an array of numbers.
pub(crate) mod bytes {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        from.deserialize_byte_buf(Bytes)
    }
}
