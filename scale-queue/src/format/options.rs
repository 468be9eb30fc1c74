//! Options of a job since version 3 of the format: a map, so that a job stores only those it has.
//!
//! A worker may meet an option of a later version that is only information. It keeps the bytes, so
//! that a retry does not lose the option. An option that a worker must obey needs a new version of
//! the format instead, so that older workers hand the job back.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::body::Raw;
use crate::group::Group;

/// Maximum number of options of later versions kept with a job.
const MOST_UNKNOWN: usize = 32;

macro_rules! options {
    ($($(#[$about:meta])* $number:literal $name:ident: $type:ty,)*) => {
        /// Options of a job that are written only if set.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct StoredOptions {
            $($(#[$about])* pub(crate) $name: $type,)*
            /// Options of later versions.
            pub(crate) unknown: Vec<(u8, Vec<u8>)>,
        }

        impl StoredOptions {
            /// Returns the number and the encoded value of each option that is set.
            fn set(&self) -> Vec<(u8, Vec<u8>)> {
                let mut set = Vec::new();
                // Encoding into a `Vec` cannot fail.
                $(if self.$name != <$type>::default() {
                    set.extend(rmp_serde::to_vec(&self.$name).map(|value| ($number, value)));
                })*
                set.extend(self.unknown.iter().cloned());
                set
            }

            fn read(&mut self, number: u8, value: &[u8]) -> Result<(), rmp_serde::decode::Error> {
                match number {
                    $($number => self.$name = exactly(value)?,)*
                    _ if self.unknown.len() < MOST_UNKNOWN => {
                        self.unknown.push((number, value.to_vec()));
                    }
                    _ => {}
                }
                Ok(())
            }
        }
    };
}

options! {
    /// True if jobs that follow from this one have options: only workers of version 3 read those.
    0 has_followers: bool,
    /// Time after which the job is not begun any more: ms since 1970.
    1 expires_ms: Option<u64>,
    /// True if the job's unique key is released when its first attempt begins.
    2 unique_until_start: bool,
    /// Time after which a failed attempt is not retried any more: ms since 1970.
    3 retry_until_ms: Option<u64>,
    /// Failed attempts that a retry rule matched, by the rule's name.
    4 by_rule: Vec<(String, u16)>,
    /// Progress of a resumable job.
    5 checkpoint: Checkpoint,
    /// Time for which the job's result is kept, ms.
    6 keep_result_ms: Option<u64>,
    /// Position of the job among those of its workflow; also set for a chain in a batch.
    7 node: Option<NodeOptions>,
    /// Tags of the job.
    8 tags: Vec<String>,
    /// Group in which the job takes turns.
    9 group: Option<Group>,
    /// Time before which a job of a group does not begin: ms since 1970.
    10 begins_ms: Option<u64>,
}

/// Options of a job, which most jobs do not have: without any, it is a null pointer.
#[derive(Clone, Debug, Default)]
pub(crate) struct LazyOptions(Option<Box<StoredOptions>>);

static NONE: LazyLock<StoredOptions> = LazyLock::new(StoredOptions::default);

impl From<StoredOptions> for LazyOptions {
    fn from(options: StoredOptions) -> Self {
        Self((!options.is_empty()).then(|| Box::new(options)))
    }
}

impl Deref for LazyOptions {
    type Target = StoredOptions;

    fn deref(&self) -> &StoredOptions {
        self.0.as_deref().unwrap_or_else(|| &NONE)
    }
}

impl DerefMut for LazyOptions {
    fn deref_mut(&mut self) -> &mut StoredOptions {
        self.0.get_or_insert_default()
    }
}

impl LazyOptions {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|options| options.is_empty())
    }
}

impl PartialEq for LazyOptions {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for LazyOptions {}

impl Serialize for LazyOptions {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(to)
    }
}

impl<'de> Deserialize<'de> for LazyOptions {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        StoredOptions::deserialize(from).map(Into::into)
    }
}

/// Progress of a resumable job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Names of the steps that are done.
    pub(crate) done: Vec<String>,
    /// Cursors of the steps that are not done, and of the job itself, whose name is empty.
    pub(crate) cursors: Vec<Cursor>,
}

/// Position that a job has stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Name of the step; empty outside of steps.
    pub(crate) step: String,
    /// JSON, encrypted as the payload is.
    #[serde(with = "super::body::bytes")]
    pub(crate) value: Vec<u8>,
}

/// Position of a job among those of its workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeOptions {
    /// Names and numbers of the jobs that this one follows.
    pub(crate) after: Vec<(String, u32)>,
    /// Numbers of the jobs that follow this one, each with the number of jobs that it follows.
    pub(crate) followers: Vec<(u32, u32)>,
}

impl StoredOptions {
    /// Counts a failure that a retry rule matched.
    pub(crate) fn count_by_rule(&mut self, rule: &str) {
        match self.by_rule.iter_mut().find(|(name, _)| name == rule) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.by_rule.push((rule.to_owned(), 1)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads a value that takes up all bytes.
fn exactly<T: DeserializeOwned>(value: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut rest = std::io::Cursor::new(value);
    let read = T::deserialize(&mut rmp_serde::Deserializer::new(&mut rest))?;
    if rest.position() == value.len() as u64 {
        Ok(read)
    } else {
        Err(rmp_serde::decode::Error::Uncategorized("bytes after a value".into()))
    }
}

impl Serialize for StoredOptions {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let set = self.set();
        let mut map = to.serialize_map(Some(set.len()))?;
        for (number, value) in &set {
            map.serialize_entry(number, &Raw(value))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for StoredOptions {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Options;
        impl<'de> Visitor<'de> for Options {
            type Value = StoredOptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of options")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StoredOptions, A::Error> {
                let mut options = StoredOptions::default();
                while let Some((number, Value(value))) = map.next_entry::<u8, Value>()? {
                    options.read(number, &value).map_err(serde::de::Error::custom)?;
                }
                Ok(options)
            }
        }
        from.deserialize_map(Options)
    }
}

/// Encoded value of an option.
#[derive(Deserialize)]
struct Value(#[serde(with = "super::body::bytes")] Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_later_versions_survive_a_retry() {
        let later = rmp_serde::to_vec(&std::collections::BTreeMap::from([(
            200_u8,
            serde_bytes_of(&rmp_serde::to_vec("later").unwrap()),
        )]))
        .unwrap();
        let mut options: StoredOptions = rmp_serde::from_slice(&later).unwrap();
        options.expires_ms = Some(7);
        let again: StoredOptions =
            rmp_serde::from_slice(&rmp_serde::to_vec(&options).unwrap()).unwrap();
        assert_eq!(again, options);
        assert_eq!(again.unknown.len(), 1);
    }

    #[test]
    fn only_options_that_are_set_take_space() {
        let size = |options: &StoredOptions| rmp_serde::to_vec(options).unwrap().len();
        assert_eq!(size(&StoredOptions::default()), 1);
        let once = StoredOptions { unique_until_start: true, ..StoredOptions::default() };
        assert_eq!(size(&once), 5);
    }

    #[derive(Serialize)]
    struct Bin(#[serde(with = "super::super::body::bytes")] Vec<u8>);

    fn serde_bytes_of(bytes: &[u8]) -> Bin {
        Bin(bytes.to_vec())
    }
}
