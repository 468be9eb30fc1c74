//! Byte format of an entry in the second level.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 | 1 if the value is compressed, as LZ4 with its length before it |
//! | 2 to 9 | the fingerprint of the type |
//! | 10 to 17 | time until which the entry is fresh, µs since 1970 by the store's clock |
//! | 18 to 25 | time until which the entry is kept, in the same unit |
//! | 26 to 33 | time of the load, in the same unit |
//! | 34 to 37 | duration of the load, µs |
//! | 38 | number of tags, then for each: length (2 bytes), name, version (8 bytes) |
//! | rest | the value as MessagePack, in the human-readable form: an address or a UUID is a text |
//!
//! Integers are little endian. Bytes that do not fit this format are a miss.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the format, the first byte of an entry.
pub const VERSION: u8 = 3;
/// Bytes of the two end times of an entry, which [`Store::touch`](crate::store::Store::touch)
/// replaces.
pub const ENDS: std::ops::Range<usize> = 10..26;
/// Maximum size of a value in the second level.
pub(crate) const MAX_SHARED: usize = 8 << 20;
/// Maximum number of tags per entry.
pub(crate) const MAX_TAGS: usize = 64;

/// Maximum nesting depth of values.
const DEEPEST: usize = 256;

/// Head of an entry. `T` is the type of tag names: owned for writing, borrowed after reading.
#[derive(Debug, PartialEq)]
pub(crate) struct Head<T> {
    pub(crate) compressed: bool,
    pub(crate) fingerprint: u64,
    pub(crate) fresh_until_us: u64,
    pub(crate) kept_until_us: u64,
    pub(crate) made_us: u64,
    pub(crate) cost: Duration,
    pub(crate) tags: Vec<(T, u64)>,
}

impl<T: AsRef<str>> Head<T> {
    pub(crate) fn write(&self, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.tags.len() * 32 + value.len());
        out.push(VERSION);
        out.push(u8::from(self.compressed));
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        out.extend_from_slice(&self.fresh_until_us.to_le_bytes());
        out.extend_from_slice(&self.kept_until_us.to_le_bytes());
        out.extend_from_slice(&self.made_us.to_le_bytes());
        out.extend_from_slice(
            &u32::try_from(self.cost.as_micros()).unwrap_or(u32::MAX).to_le_bytes(),
        );
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
    /// Parses the head, and returns it with the value's bytes.
    pub(crate) fn read(bytes: &'b [u8]) -> Option<(Self, &'b [u8])> {
        let mut reader = Reader(bytes);
        if reader.take::<1>()? != [VERSION] {
            return None;
        }
        let compressed = match reader.take::<1>()? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let fingerprint = u64::from_le_bytes(reader.take()?);
        let fresh_until_us = u64::from_le_bytes(reader.take()?);
        let kept_until_us = u64::from_le_bytes(reader.take()?);
        let made_us = u64::from_le_bytes(reader.take()?);
        let cost = Duration::from_micros(u64::from(u32::from_le_bytes(reader.take()?)));
        let [count] = reader.take()?;
        let mut tags = Vec::with_capacity(usize::from(count).min(MAX_TAGS));
        for _ in 0..count {
            let length = usize::from(u16::from_le_bytes(reader.take()?));
            let name = std::str::from_utf8(reader.slice(length)?).ok()?;
            tags.push((name, u64::from_le_bytes(reader.take()?)));
        }
        Some((
            Self { compressed, fingerprint, fresh_until_us, kept_until_us, made_us, cost, tags },
            reader.0,
        ))
    }
}

/// Encodes both end times, as in [`ENDS`].
pub(crate) fn ends(fresh_until_us: u64, kept_until_us: u64) -> [u8; 16] {
    let mut ends = [0; 16];
    ends[..8].copy_from_slice(&fresh_until_us.to_le_bytes());
    ends[8..].copy_from_slice(&kept_until_us.to_le_bytes());
    ends
}

/// Encodes a value as MessagePack, in the human-readable form: flattened and untagged parts are
/// decoded through a form that knows no other one.
pub(crate) fn encoded<V: Serialize + ?Sized>(
    value: &V,
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut bytes = Vec::with_capacity(128);
    value.serialize(
        &mut rmp_serde::Serializer::new(&mut bytes).with_struct_map().with_human_readable(),
    )?;
    Ok(bytes)
}

/// Decodes a value.
pub(crate) fn decoded<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
    // Limits the depth, so that no value overflows a thread's stack.
    deserializer.set_max_depth(DEEPEST);
    V::deserialize(&mut deserializer)
}

/// Returns the time until which an entry is fresh, in µs since 1970; `None` for bytes of another
/// version.
pub fn fresh_until(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(ENDS)?.first_chunk()?)).filter(|_| bytes[0] == VERSION)
}

/// Returns a value's bytes, compressed if that makes them smaller.
pub(crate) fn packed(value: &[u8], compress_over: usize) -> (bool, std::borrow::Cow<'_, [u8]>) {
    let _ = compress_over;
    #[cfg(feature = "compress")]
    if value.len() >= compress_over {
        let packed = lz4_flex::compress_prepend_size(value);
        if packed.len() < value.len() {
            return (true, packed.into());
        }
    }
    (false, value.into())
}

/// Decompresses a value; `None` if it cannot be decoded, or would exceed the maximum size.
pub(crate) fn unpacked(compressed: bool, bytes: &[u8]) -> Option<std::borrow::Cow<'_, [u8]>> {
    if !compressed {
        return Some(bytes.into());
    }
    #[cfg(feature = "compress")]
    {
        let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        if length <= MAX_SHARED {
            return Some(lz4_flex::decompress_size_prepended(bytes).ok()?.into());
        }
    }
    None
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

/// Distinguishes types by their names; decoding detects the rest.
pub(crate) fn fingerprint<V: ?Sized>() -> u64 {
    // FNV-1a is the same in every build, unlike a seeded hash.
    std::any::type_name::<V>().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn comes_back_as_it_was(
            tags in prop::collection::vec((".{0,20}", any::<u64>()), 0..5),
            value: Vec<u8>,
            cost in 0_u32..,
        ) {
            let tags = tags.iter().map(|(t, v)| (t.as_str(), *v)).collect();
            let cost = Duration::from_micros(u64::from(cost));
            let head = Head {
                compressed: cost.is_zero(),
                fingerprint: 7,
                fresh_until_us: 1,
                kept_until_us: 2,
                made_us: 3,
                cost,
                tags,
            };
            let mut bytes = head.write(&value);
            prop_assert_eq!(&bytes[ENDS], &ends(1, 2));
            bytes[ENDS].copy_from_slice(&ends(8, 9));
            let head = Head { fresh_until_us: 8, kept_until_us: 9, ..head };
            prop_assert_eq!(Head::read(&bytes), Some((head, &value[..])));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (Head::read(&bytes), unpacked(true, &bytes));
        }

        #[test]
        fn values_are_packed_when_that_is_worth_it(value: Vec<u8>, repeat in 1_usize..200) {
            let value = value.repeat(repeat);
            let (compressed, bytes) = packed(&value, 64);
            prop_assert!(bytes.len() <= value.len());
            let back = unpacked(compressed, &bytes);
            prop_assert_eq!(back.as_deref(), Some(&value[..]));
        }
    }
}
