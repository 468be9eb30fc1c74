//! How a job lies in a store.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 to 16 | the job's id |
//! | 17, 18 | 1 bit: its worker died while its handler ran, so it is tried alone; 15 bits: attempts that have failed, big endian |
//! | 19 to 24 | when it was pushed: ms since 1970, big endian, by the store's clock |
//! | of version 2: 25, 26 and so many bytes more | length, big endian, and the key of the job's first limit: its group |
//! | from there | MessagePack: name, payload (JSON), unique key, last error; where there is something to say, what comes after it in a chain; and [`Extra`] |
//!
//! The head has fixed places, so that scripts can count an attempt, read an age or find the group without knowing the rest. A job without
//! limits is written as version 1.

use serde::ser::{SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

use crate::job::JobId;

const VERSION: u8 = 1;
/// With a group.
const GROUPED: u8 = 2;
const HEAD: usize = 25;
/// Of the count of attempts, the bit of a suspect.
const SUSPECT: u16 = 1 << 15;
/// Bytes of a group; a job with a longer key has none in its head.
const LONGEST_GROUP: usize = 512;
/// Failures that a job carries along.
const REMEMBERED: usize = 10;
/// Characters of each.
const REASON: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) id: JobId,
    /// Attempts that have failed, at most 32,767.
    pub(crate) failed: u16,
    /// Its worker died while its handler ran: it is to be tried alone.
    pub(crate) suspect: bool,
    pub(crate) pushed_ms: u64,
    /// The key of its first limit.
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
    /// What comes after it, the next one first.
    #[serde(default)]
    pub(crate) then: Vec<Link>,
    #[serde(default)]
    pub(crate) extra: Extra,
}

/// What few jobs have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extra {
    /// Its place in a batch.
    pub(crate) batch: Option<Place>,
    /// What its pusher gave it on its way, a trace for example.
    pub(crate) carried: Vec<(String, String)>,
    /// Written by earlier versions; its place stays.
    pub(crate) turn: bool,
    /// Other than its kind's: attempts in all, and how long one may take.
    #[serde(default)]
    pub(crate) attempts: Option<u16>,
    #[serde(default)]
    pub(crate) timeout_ms: Option<u64>,
    /// How earlier attempts failed, the last [`REMEMBERED`] of them, the latest last.
    #[serde(default)]
    pub(crate) failures: Vec<Failure>,
    /// Longest time for which its unique key is held, if that is not a day.
    #[serde(default)]
    pub(crate) unique_ms: Option<u64>,
    /// When a worker first could not read its payload: ms since 1970.
    #[serde(default)]
    pub(crate) unfit_ms: Option<u64>,
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// When: ms since 1970.
    pub at_ms: u64,
    /// Why, in 300 characters.
    pub reason: String,
}

/// Which job of which batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) number: u32,
}

impl Serialize for Body {
    /// What is empty at the end is left out: most jobs are short, and workers of before it can read them.
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

/// A job of a chain that waits for the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) queue: String,
    pub(crate) name: String,
    #[serde(with = "bytes")]
    pub(crate) payload: Vec<u8>,
    /// So long after the one before it is done.
    pub(crate) delay_ms: u64,
    #[serde(default)]
    pub(crate) group: Option<String>,
}

/// Why bytes are no envelope. The words end up in the dead set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("unreadable: {0} bytes are no job")]
    Short(usize),
    #[error("unreadable: format {0} is not known to this worker")]
    Version(u8),
    #[error("unreadable: broken content")]
    Body,
}

impl Envelope {
    /// An attempt has failed: counts it.
    pub(crate) fn fail(&mut self, reason: &str, at_ms: u64) {
        self.failed = self.failed.saturating_add(1).min(!SUSPECT);
        let failures = &mut self.body.extra.failures;
        failures.drain(..(failures.len() + 1).saturating_sub(REMEMBERED));
        failures.push(Failure { at_ms, reason: reason.chars().take(REASON).collect() });
    }

    /// Returns whether that version of the format is known here.
    pub(crate) fn can_read(version: u8) -> bool {
        matches!(version, VERSION | GROUPED)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + 16 + self.body.name.len() + self.body.payload.len());
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
        // Into a Vec and of strings and bytes only: there is nothing that can fail.
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
        let body = rmp_serde::from_slice(body).map_err(|_| Unreadable::Body)?;
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

/// The group at the beginning of what comes after the head, and the rest.
fn split_group(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (group, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((std::str::from_utf8(group).ok()?, rest))
}

/// The key of a job's first limit, read from the head alone.
pub(crate) fn group_of(bytes: &[u8]) -> Option<&str> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    (head[0] == GROUPED).then(|| split_group(rest)).flatten().map(|(group, _)| group)
}

/// Returns the bytes with no failed attempt counted.
pub(crate) fn without_failures(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(count) = bytes.get_mut(17..19) {
        count.fill(0);
    }
    bytes
}

/// What a store keeps a leased job under: its id, or as much as there is of one.
pub(crate) fn tag_of(bytes: &[u8]) -> &[u8] {
    bytes.get(1..17).unwrap_or(bytes)
}

/// One more failed attempt of a job whose worker died, which makes it a suspect. Whatever is no envelope stays as it is.
pub(crate) fn count_failure(bytes: &mut [u8]) {
    if let Some(count) = bytes.get_mut(17..19) {
        let failed = ((u16::from_be_bytes([count[0], count[1]]) & !SUSPECT) + 1).min(!SUSPECT);
        count.copy_from_slice(&(failed | SUSPECT).to_be_bytes());
    }
}

/// When it was pushed, read from the head alone.
pub(crate) fn pushed_ms(bytes: &[u8]) -> Option<u64> {
    Some(bytes.get(19..HEAD)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Bytes as MessagePack bytes, not as a list of numbers.
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
        let link = Link { queue: "q".into(), name: "m".into(), payload: vec![0, 255], delay_ms: 7, group: None };
        let then = if payload.len().is_multiple_of(2) { Vec::new() } else { vec![link] };
        let place = Place { id: "b".into(), number: 3 };
        let extra = match payload.len() % 3 {
            0 => Extra::default(),
            1 => Extra { batch: Some(place), ..Extra::default() },
            _ => Extra {
                carried: vec![("k".into(), "v".into())],
                turn: true,
                attempts: Some(3),
                timeout_ms: Some(payload.len() as u64),
                ..Extra::default()
            },
        };
        let body = Body { name: "n".into(), payload, unique: Some("u".into()), last_error: None, then, extra };
        let group = (body.payload.len() % 5 == 1).then(|| "account:7".to_owned());
        Envelope { id: JobId::new(), failed: 3, suspect: false, pushed_ms: 1_790_000_000_123, group, body }
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

    #[test]
    fn the_head_is_read_and_counted_without_the_rest() {
        let (before, mut bytes) = (envelope(b"{}".to_vec()), envelope(b"{}".to_vec()).encode());
        assert_eq!(pushed_ms(&bytes), Some(before.pushed_ms));
        assert_eq!((group_of(&bytes), group_of(&envelope(vec![0]).encode())), (None, Some("account:7")));
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
            let _ = (Envelope::decode(&bytes), pushed_ms(&bytes), group_of(&bytes).map(str::len), count_failure(&mut bytes));
        }
    }
}
