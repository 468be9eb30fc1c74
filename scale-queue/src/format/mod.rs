//! Byte format of a job in a store.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 to 16 | the job's id |
//! | 17, 18 | 1 bit: the job is a suspect, its worker died while its handler ran, so it is tried alone; 15 bits: failed attempts, big endian |
//! | 19 to 24 | time of the push: ms since 1970, big endian, by the store's clock |
//! | version 2: 25, 26 and as many bytes as they say | length, big endian, and the key of the job's first limit: its group |
//! | the rest | MessagePack: name, payload (JSON), unique key, last error; if not empty, the jobs that follow in a chain, and [`Extra`] |
//!
//! The head has fixed offsets, so that scripts can count an attempt, or read the age or the group,
//! without parsing the rest. A job without limits is written as version 1.

use serde::ser::{SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

use crate::job::JobId;

const VERSION: u8 = 1;
/// Version of jobs with a group.
const GROUPED: u8 = 2;
/// Largest payload of a job, bytes.
pub(crate) const MAX_SIZE: usize = 1024 * 1024;
const HEAD: usize = 25;
/// Bit of the attempt count that marks a suspect.
const SUSPECT: u16 = 1 << 15;
/// Maximum bytes of a group; a job with a longer key has no group in its head.
const LONGEST_GROUP: usize = 512;
/// Maximum number of failures stored with a job.
const REMEMBERED: usize = 10;
/// Maximum characters of each failure.
const REASON: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) id: JobId,
    /// Attempts that have failed, at most 32,767.
    pub(crate) failed: u16,
    /// True if the job is a suspect: its worker died while its handler ran, so it is tried alone.
    pub(crate) suspect: bool,
    pub(crate) pushed_ms: u64,
    /// Key of the job's first limit.
    pub(crate) group: Option<String>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

impl Serialize for Body {
    /// Omits trailing empty fields: most jobs stay short, and workers of older versions can read
    /// them.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        struct Raw<'a>(&'a [u8]);
        impl Serialize for Raw<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_bytes(self.0)
            }
        }
        let length = match (self.extra == Extra::default(), self.then.is_empty()) {
            (false, _) => 6,
            (true, false) => 5,
            (true, true) => 4,
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
}

/// Reason why bytes cannot be decoded as a job. Its text is stored with the dead job.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("unreadable: {0} bytes are too short for a job")]
    Short(usize),
    #[error("unreadable: format version {0} is not supported by this worker")]
    Version(u8),
    /// The content is MessagePack, and not that of this version: a later one has added fields.
    #[error("unreadable: fields that this worker does not know")]
    Newer,
    #[error("unreadable: invalid content")]
    Body,
}

impl Envelope {
    /// Counts a failed attempt, and stores its reason.
    pub(crate) fn fail(&mut self, reason: &str, at_ms: u64) {
        self.failed = self.failed.saturating_add(1).min(!SUSPECT);
        let failures = &mut self.body.extra.failures;
        failures.drain(..(failures.len() + 1).saturating_sub(REMEMBERED));
        failures.push(Failure { at_ms, reason: reason.chars().take(REASON).collect() });
    }

    /// Returns whether this version of the format is supported.
    pub(crate) fn can_read(version: u8) -> bool {
        matches!(version, VERSION | GROUPED)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(HEAD + 16 + self.body.name.len() + self.body.payload.len());
        let group = self.group.as_ref().filter(|group| group.len() <= LONGEST_GROUP);
        bytes.push(if group.is_some() { GROUPED } else { VERSION });
        bytes.extend_from_slice(self.id.bytes());
        let count = self.failed.min(!SUSPECT) | if self.suspect { SUSPECT } else { 0 };
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(&self.pushed_ms.to_be_bytes()[2..]);
        if let Some(group) = group {
            bytes.extend_from_slice(&(group.len() as u16).to_be_bytes());
            bytes.extend_from_slice(group.as_bytes());
        }
        // Encoding strings and bytes into a `Vec` cannot fail.
        let _ = rmp_serde::encode::write(&mut bytes, &self.body);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (head, body) = bytes.split_at_checked(HEAD).ok_or(Unreadable::Short(bytes.len()))?;
        let (group, body) = match head[0] {
            VERSION => (None, body),
            GROUPED => {
                let (group, body) = split_group(body).ok_or(Unreadable::Body)?;
                (Some(group.to_owned()), body)
            }
            other => return Err(Unreadable::Version(other)),
        };
        let count = u16::from_be_bytes([head[17], head[18]]);
        let id = head[1..17].try_into().map_err(|_| Unreadable::Body)?;
        let body = rmp_serde::from_slice(body)
            .map_err(|_| if is_array(body) { Unreadable::Newer } else { Unreadable::Body })?;
        Ok(Self {
            id: JobId::from_bytes(id),
            failed: count & !SUSPECT,
            suspect: count & SUSPECT != 0,
            pushed_ms: head[19..].iter().fold(0, |n, b| n << 8 | u64::from(*b)),
            group,
            body,
        })
    }
}

/// Returns whether the bytes are one complete MessagePack array.
fn is_array(bytes: &[u8]) -> bool {
    let mut rest = std::io::Cursor::new(bytes);
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    matches!(bytes.first(), Some(0x90..=0x9f | 0xdc))
        && serde::de::IgnoredAny::deserialize(&mut reader).is_ok()
        && rest.position() == bytes.len() as u64
}

/// Splits the bytes after the head into the group and the rest.
fn split_group(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (group, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((std::str::from_utf8(group).ok()?, rest))
}

/// Returns the key of a job's first limit, read from the head alone.
pub(crate) fn group_of(bytes: &[u8]) -> Option<&str> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    (head[0] == GROUPED).then(|| split_group(rest)).flatten().map(|(group, _)| group)
}

/// Returns a copy of the bytes with the attempt count reset to 0.
pub(crate) fn without_failures(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(count) = bytes.get_mut(17..19) {
        count.fill(0);
    }
    bytes
}

/// Returns the tag under which a store keeps a leased job: its id, or all bytes if they are too
/// short.
pub(crate) fn tag_of(bytes: &[u8]) -> &[u8] {
    bytes.get(1..17).unwrap_or(bytes)
}

/// Counts a failed attempt of a job whose worker died, and marks it as a suspect. Bytes that are
/// too short for a job stay unchanged.
pub(crate) fn count_failure(bytes: &mut [u8]) {
    if let Some(count) = bytes.get_mut(17..19) {
        let failed = ((u16::from_be_bytes([count[0], count[1]]) & !SUSPECT) + 1).min(!SUSPECT);
        count.copy_from_slice(&(failed | SUSPECT).to_be_bytes());
    }
}

/// Returns the time of the push, read from the head alone.
pub(crate) fn pushed_ms(bytes: &[u8]) -> Option<u64> {
    Some(bytes.get(19..HEAD)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Serializes bytes as MessagePack binary, not as an array of numbers.
mod bytes {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope(payload: Vec<u8>) -> Envelope {
        let link = Link {
            queue: "q".into(),
            name: "m".into(),
            payload: vec![0, 255],
            delay_ms: 7,
            group: None,
        };
        let then = if payload.len().is_multiple_of(2) { Vec::new() } else { vec![link] };
        let place = Place { id: "b".into(), number: 3 };
        let extra = match payload.len() % 3 {
            0 => Extra::default(),
            1 => Extra { batch: Some(place), ..Extra::default() },
            _ => Extra {
                metadata: vec![("k".into(), "v".into())],
                turn: true,
                attempts: Some(3),
                timeout_ms: Some(payload.len() as u64),
                ..Extra::default()
            },
        };
        let body = Body {
            name: "n".into(),
            payload,
            unique: Some("u".into()),
            last_error: None,
            then,
            extra,
        };
        let group = (body.payload.len() % 5 == 1).then(|| "account:7".to_owned());
        Envelope {
            id: JobId::new(),
            failed: 3,
            suspect: false,
            pushed_ms: 1_790_000_000_123,
            group,
            body,
        }
    }

    #[test]
    fn what_is_no_envelope_says_why() {
        assert_eq!(Envelope::decode(b"abc"), Err(Unreadable::Short(3)));
        let mut bytes = envelope(vec![]).encode();
        bytes.truncate(bytes.len() - 1);
        assert_eq!(Envelope::decode(&bytes), Err(Unreadable::Body));
        bytes[0] = 9;
        assert_eq!(Envelope::decode(&bytes), Err(Unreadable::Version(9)));
    }

    /// A worker of this version meets jobs of the next one during a deployment: they wait.
    #[test]
    fn a_field_of_a_later_version_is_no_broken_job() {
        let head = envelope(vec![]).encode()[..HEAD].to_vec();
        let with = |body: &[u8]| Envelope::decode(&[&head[..], body].concat());
        type Known = (&'static str, Vec<u8>, Option<String>, Option<String>);
        let known: Known = ("n", vec![], None, None);
        let (name, payload, unique, error) = known;
        let longer = (name, payload, unique, error, (), (), 7);
        assert_eq!(with(&rmp_serde::to_vec(&longer).unwrap()), Err(Unreadable::Newer));
        assert_eq!(with(&rmp_serde::to_vec(&"no array").unwrap()), Err(Unreadable::Body));
        assert_eq!(with(&[0x96, 0xa1]), Err(Unreadable::Body), "cut off");
        assert_eq!(with(&[]), Err(Unreadable::Body));
    }

    #[test]
    fn the_head_is_read_and_counted_without_the_rest() {
        let (before, mut bytes) = (envelope(b"{}".to_vec()), envelope(b"{}".to_vec()).encode());
        assert_eq!(pushed_ms(&bytes), Some(before.pushed_ms));
        assert_eq!(
            (group_of(&bytes), group_of(&envelope(vec![0]).encode())),
            (None, Some("account:7"))
        );
        count_failure(&mut bytes);
        assert_eq!(Envelope::decode(&bytes).unwrap().failed, 4);
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was(payload: Vec<u8>) {
            let before = envelope(payload);
            prop_assert_eq!(Envelope::decode(&before.encode()), Ok(before));
        }

        #[test]
        fn any_bytes_are_survived(mut bytes: Vec<u8>) {
            let _ = (
                Envelope::decode(&bytes),
                pushed_ms(&bytes),
                group_of(&bytes).map(str::len),
                count_failure(&mut bytes),
            );
        }
    }
}
