//! Encoding of a field's value: a version byte, then MessagePack with named fields. Names of this
//! crate's own fields begin with a dot.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Field that contains the identity.
pub(crate) const IDENTITY: &str = ".signed";
/// Field that contains the same user's sessions that this one replaced: they end with this one.
pub(crate) const PREDECESSORS: &str = ".before";
pub(crate) const VERSION: u8 = 1;
/// Maximum size of an encoded value, in bytes.
pub(crate) const MAX_VALUE: usize = 64 * 1024;
/// Maximum length of a field name, in bytes.
const MAX_NAME: usize = 128;

pub(crate) fn encode<T: Serialize + ?Sized>(field: &str, value: &T) -> Result<Vec<u8>, Error> {
    if field.is_empty() || field.len() > MAX_NAME || is_ours(field) || field.contains('\0') {
        return Err(Error::TooLarge(
            "a field name has 1 to 128 bytes, no leading dot and no zero byte",
        ));
    }
    encode_ours(field, value)
}

/// Returns whether the name is reserved for this crate.
pub(crate) fn is_ours(field: &str) -> bool {
    field.starts_with(['\0', '.'])
}

/// Encodes a field that is reserved for this crate.
pub(crate) fn encode_ours<T: Serialize + ?Sized>(field: &str, value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write_named(&mut bytes, value)
        .map_err(|source| Error::Encode { field: field.into(), source })?;
    if bytes.len() > MAX_VALUE {
        return Err(Error::TooLarge("a value has at most 64 KiB"));
    }
    Ok(bytes)
}

/// Encodes a number as [`encode`] does.
pub(crate) fn encode_number(number: i64) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    // Writing to a `Vec` cannot fail.
    let _ = rmp_serde::encode::write_named(&mut bytes, &number);
    bytes
}

/// Decodes a number. Returns `None` for any other type and for a number that does not fit.
pub(crate) fn decode_number(bytes: &[u8]) -> Option<i64> {
    decode("", bytes).ok()
}

pub(crate) fn decode<T: DeserializeOwned>(field: &str, bytes: &[u8]) -> Result<T, Error> {
    let wrong = || Error::Decode { field: field.into() };
    match bytes.split_first() {
        Some((&VERSION, rest)) => rmp_serde::from_slice(rest).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_type_or_version_is_an_error_not_a_crash() {
        let bytes = encode("n", &7_u32).unwrap();
        assert_eq!(decode::<u32>("n", &bytes).unwrap(), 7);
        assert!(matches!(decode::<String>("n", &bytes), Err(Error::Decode { .. })));
        assert!(matches!(decode::<u32>("n", &[2, 7]), Err(Error::Decode { .. })));
        assert!(matches!(encode("big", &"x".repeat(MAX_VALUE)), Err(Error::TooLarge(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = decode::<(String, Vec<u64>)>("f", &bytes);
        }
    }
}
