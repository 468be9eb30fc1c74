//! How a field's value is written: a version byte, then MessagePack with named fields.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

pub(crate) const VERSION: u8 = 1;
/// The largest encoded value, bytes.
pub(crate) const MAX_VALUE: usize = 64 * 1024;
/// The longest field name, bytes.
const MAX_NAME: usize = 128;

pub(crate) fn encode<T: Serialize + ?Sized>(field: &str, value: &T) -> Result<Vec<u8>, Error> {
    if field.is_empty() || field.len() > MAX_NAME || is_ours(field) || field.contains('\0') {
        return Err(Error::TooLarge("a field's name has 1 to 128 bytes, does not start with a dot and has no zero byte"));
    }
    encode_ours(field, value)
}

/// Names that begin so are not the application's.
pub(crate) fn is_ours(field: &str) -> bool {
    field.starts_with(['\0', '.'])
}

/// Of a field that is not the application's.
pub(crate) fn encode_ours<T: Serialize + ?Sized>(field: &str, value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write_named(&mut bytes, value).map_err(|source| Error::Encode { field: field.into(), source })?;
    if bytes.len() > MAX_VALUE {
        return Err(Error::TooLarge("a value has at most 64 KiB"));
    }
    Ok(bytes)
}

/// A number as [`encode`] writes it.
pub(crate) fn encode_number(number: i64) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    // Into a Vec: there is nothing that can fail.
    let _ = rmp_serde::encode::write_named(&mut bytes, &number);
    bytes
}

/// `None`: it is no number that fits.
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
