//! Byte format of a job in a store.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 to 16 | the job's id |
//! | 17, 18 | 1 bit: the job is a suspect, its worker died while its handler ran, so it is tried alone; 15 bits: failed attempts, big endian |
//! | 19 to 24 | time of the push: ms since 1970, big endian, by the store's clock |
//! | version 3: 25 | 1 bit: the job takes turns in a [`Group`]; 7 bits: its [`Priority`] |
//! | version 2: 25, 26, version 3: 26, 27, and as many bytes as they say | length, big endian, and the key of the job's first limit: its group |
//! | the rest | MessagePack: name, payload (JSON), unique key, last error; if not empty, the jobs that follow in a chain, [`Extra`], and in version 3 [`options`] |
//!
//! The head has fixed offsets, so that scripts can count an attempt, or read the age, the priority
//! or the group, without parsing the rest.
//!
//! A job is written in the lowest version that can hold it: without limits as version 1, without a
//! priority or [`options`] as version 2. So workers of the version before this one can handle
//! all jobs that use nothing new, and hand the others back.

mod body;
mod options;

use serde::Deserialize;

pub use self::body::Failure;
pub(crate) use self::body::bytes;
pub(crate) use self::body::{Body, Extra, Link, LinkOptions, Place};
pub(crate) use self::options::{Checkpoint, Cursor, LazyOptions, NodeOptions, StoredOptions};
use crate::group::Group;
use crate::job::{JobId, Priority};

const VERSION: u8 = 1;
/// Version of jobs with a group.
const GROUPED: u8 = 2;
/// Version of jobs with a priority or other options.
const WITH_OPTIONS: u8 = 3;
/// Largest payload of a job, bytes.
pub(crate) const MAX_SIZE: usize = 1024 * 1024;
const HEAD: usize = 25;
/// Bit of the attempt count that marks a suspect.
const SUSPECT: u16 = 1 << 15;
/// Bit of the priority that marks a job of a [`Group`].
const TAKES_TURNS: u8 = 1 << 7;
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
    pub(crate) priority: Priority,
    /// Key of the job's first limit.
    pub(crate) group: Option<String>,
    pub(crate) body: Body,
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

    /// Resets the attempts of a dead job that is to run again, and the times that bound them.
    pub(crate) fn begin_again(&mut self) {
        self.failed = 0;
        self.suspect = false;
        if !self.body.options.is_empty() {
            let options = &mut *self.body.options;
            options.by_rule.clear();
            (options.expires_ms, options.retry_until_ms, options.begins_ms) = (None, None, None);
        }
    }

    /// Returns whether this version of the format is supported.
    pub(crate) fn can_read(version: u8) -> bool {
        matches!(version, VERSION | GROUPED | WITH_OPTIONS)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(HEAD + 16 + self.body.name.len() + self.body.payload.len());
        let group = self.group.as_ref().filter(|group| group.len() <= LONGEST_GROUP);
        let version = match () {
            () if self.needs_options() => WITH_OPTIONS,
            () if group.is_some() => GROUPED,
            () => VERSION,
        };
        bytes.push(version);
        bytes.extend_from_slice(self.id.bytes());
        let count = self.failed.min(!SUSPECT) | if self.suspect { SUSPECT } else { 0 };
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(&self.pushed_ms.to_be_bytes()[2..]);
        if version == WITH_OPTIONS {
            let takes_turns = if self.body.options.group.is_some() { TAKES_TURNS } else { 0 };
            bytes.push(self.priority as u8 | takes_turns);
        }
        if version > VERSION {
            let group = group.map_or("", String::as_str);
            bytes.extend_from_slice(&(group.len() as u16).to_be_bytes());
            bytes.extend_from_slice(group.as_bytes());
        }
        // Encoding strings and bytes into a `Vec` cannot fail.
        let _ = rmp_serde::encode::write(&mut bytes, &self.body);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (head, body) = bytes.split_at_checked(HEAD).ok_or(Unreadable::Short(bytes.len()))?;
        let (priority, group, body) = match head[0] {
            VERSION => (Priority::Normal, None, body),
            GROUPED => {
                let (group, body) = split_group(body).ok_or(Unreadable::Body)?;
                (Priority::Normal, Some(group.to_owned()), body)
            }
            WITH_OPTIONS => {
                let (priority, body) = body.split_first().ok_or(Unreadable::Body)?;
                let priority =
                    Priority::from_byte(priority & !TAKES_TURNS).ok_or(Unreadable::Body)?;
                let (group, body) = split_group(body).ok_or(Unreadable::Body)?;
                (priority, Some(group.to_owned()).filter(|group| !group.is_empty()), body)
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
            priority,
            group,
            body,
        })
    }

    /// Returns whether only workers of version 3 can handle the job.
    fn needs_options(&self) -> bool {
        self.priority != Priority::Normal
            || !self.body.options.is_empty()
            || self.body.then.iter().any(|link| link.more.is_some())
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
    match head[0] {
        GROUPED => split_group(rest).map(|(group, _)| group),
        WITH_OPTIONS => {
            split_group(rest.get(1..)?).map(|(group, _)| group).filter(|group| !group.is_empty())
        }
        _ => None,
    }
}

/// Returns the job's priority, read from the head alone.
pub(crate) fn priority_of(bytes: &[u8]) -> Priority {
    match (bytes.first(), bytes.get(HEAD)) {
        (Some(&WITH_OPTIONS), Some(priority)) => {
            Priority::from_byte(priority & !TAKES_TURNS).unwrap_or_default()
        }
        _ => Priority::Normal,
    }
}

/// Returns the group in which a job takes turns. Of the other jobs only the head is read.
pub(crate) fn turn_of(bytes: &[u8]) -> Option<Group> {
    let flags = bytes.get(HEAD).filter(|_| bytes[0] == WITH_OPTIONS)?;
    if flags & TAKES_TURNS == 0 {
        return None;
    }
    Envelope::decode(bytes).ok()?.body.options.group.clone()
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

/// Gives a job the id and the time of push of the one that it replaces.
pub(crate) fn replace_job(bytes: &mut [u8], replaced: &[u8]) {
    for part in [1..17, 19..HEAD] {
        if let (Some(to), Some(from)) = (bytes.get_mut(part.clone()), replaced.get(part)) {
            to.copy_from_slice(from);
        }
    }
}

/// Returns the id of a job, read from the head alone; of bytes that are too short, the nil id.
pub(crate) fn id_of(bytes: &[u8]) -> JobId {
    JobId::from_bytes(tag_of(bytes).try_into().unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope(payload: Vec<u8>) -> Envelope {
        let body_length = payload.len();
        let link = Link {
            queue: "q".into(),
            name: "m".into(),
            payload: vec![0, 255],
            delay_ms: 7,
            group: None,
            more: (payload.len() % 7 == 1).then(Box::default),
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
            options: StoredOptions {
                expires_ms: (body_length % 4 == 1).then_some(9),
                ..StoredOptions::default()
            }
            .into(),
        };
        let group = (body.payload.len() % 5 == 1).then(|| "account:7".to_owned());
        Envelope {
            id: JobId::new(),
            failed: 3,
            suspect: false,
            pushed_ms: 1_790_000_000_123,
            priority: match body_length % 11 {
                2 => Priority::High,
                3 => Priority::Low,
                _ => Priority::Normal,
            },
            group,
            body,
        }
    }

    /// Workers of the version before this one handle what uses nothing new.
    #[test]
    fn a_job_is_written_in_the_lowest_version_that_can_hold_it() {
        let mut job = envelope(vec![]);
        assert_eq!(job.encode()[0], VERSION);
        job.group = Some("account:7".into());
        assert_eq!(job.encode()[0], GROUPED);
        job.priority = Priority::Low;
        let bytes = job.encode();
        assert_eq!((bytes[0], priority_of(&bytes)), (WITH_OPTIONS, Priority::Low));
        assert_eq!(group_of(&bytes), Some("account:7"));
        job = envelope(vec![]);
        job.body.options.expires_ms = Some(7);
        let bytes = job.encode();
        assert_eq!((bytes[0], group_of(&bytes)), (WITH_OPTIONS, None));
        assert_eq!(Envelope::decode(&bytes), Ok(job));
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
                turn_of(&bytes),
                count_failure(&mut bytes),
            );
        }
    }
}
