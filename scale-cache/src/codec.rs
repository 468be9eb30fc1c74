//! How an entry lies in the second level.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 to 8 | the type's fingerprint |
//! | 9 to 16 | fresh until, µs since 1970 by the store's clock |
//! | 17 to 24 | kept until, likewise |
//! | 25 to 28 | what its load took, µs |
//! | 29 | number of tags, then for each: length (2 bytes), name, version (8 bytes) |
//! | rest | the value as MessagePack |
//!
//! Integers are little endian. Whatever does not fit is a miss.

use std::time::Duration;

const VERSION: u8 = 1;
/// Tags of one entry at most.
pub(crate) const MAX_TAGS: usize = 64;

/// `T` is how a tag's name is held: owned to be written, borrowed when read.
#[derive(Debug, PartialEq)]
pub(crate) struct Head<T> {
    pub(crate) fingerprint: u64,
    pub(crate) fresh_until_us: u64,
    pub(crate) kept_until_us: u64,
    pub(crate) cost: Duration,
    pub(crate) tags: Vec<(T, u64)>,
}

impl<T: AsRef<str>> Head<T> {
    pub(crate) fn write(&self, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.tags.len() * 32 + value.len());
        out.push(VERSION);
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        out.extend_from_slice(&self.fresh_until_us.to_le_bytes());
        out.extend_from_slice(&self.kept_until_us.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.cost.as_micros()).unwrap_or(u32::MAX).to_le_bytes());
        out.push(self.tags.len().min(MAX_TAGS) as u8);
        for (tag, version) in self.tags.iter().take(MAX_TAGS) {
            let tag = tag.as_ref();
            out.extend_from_slice(&(tag.len() as u16).to_le_bytes());
            out.extend_from_slice(tag.as_bytes());
            out.extend_from_slice(&version.to_le_bytes());
        }
        out.extend_from_slice(value);
        out
    }
}

impl<'b> Head<&'b str> {
    /// The head, and the value's bytes.
    pub(crate) fn read(bytes: &'b [u8]) -> Option<(Self, &'b [u8])> {
        let mut reader = Reader(bytes);
        if reader.take::<1>()? != [VERSION] {
            return None;
        }
        let fingerprint = u64::from_le_bytes(reader.take()?);
        let fresh_until_us = u64::from_le_bytes(reader.take()?);
        let kept_until_us = u64::from_le_bytes(reader.take()?);
        let cost = Duration::from_micros(u64::from(u32::from_le_bytes(reader.take()?)));
        let [count] = reader.take()?;
        let mut tags = Vec::with_capacity(usize::from(count).min(MAX_TAGS));
        for _ in 0..count {
            let length = usize::from(u16::from_le_bytes(reader.take()?));
            let name = std::str::from_utf8(reader.slice(length)?).ok()?;
            tags.push((name, u64::from_le_bytes(reader.take()?)));
        }
        Some((Self { fingerprint, fresh_until_us, kept_until_us, cost, tags }, reader.0))
    }
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn slice(&mut self, length: usize) -> Option<&'b [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }
}

/// Tells types apart by their names; what slips through is found by decoding.
pub(crate) fn fingerprint<V: ?Sized>() -> u64 {
    // FNV-1a: the same in every build, unlike a seeded hash.
    std::any::type_name::<V>()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn comes_back_as_it_was(tags in prop::collection::vec((".{0,20}", any::<u64>()), 0..5), value: Vec<u8>, cost in 0_u32..) {
            let tags = tags.iter().map(|(t, v)| (t.as_str(), *v)).collect();
            let cost = Duration::from_micros(u64::from(cost));
            let head = Head { fingerprint: 7, fresh_until_us: 1, kept_until_us: 2, cost, tags };
            let bytes = head.write(&value);
            prop_assert_eq!(Head::read(&bytes), Some((head, &value[..])));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Head::read(&bytes);
        }
    }
}
