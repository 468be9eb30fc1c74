//! Cursors: the values of a key as signed text.

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use super::{BadCursor, Key, KeyTooLong, MOST, PageRequest, WeakSecret};

/// Version of the format.
const VERSION: u8 = 2;
/// Number of signature bytes kept: 128 bits.
const SIGNATURE: usize = 16;
/// Maximum bytes of a key. Its cursor, a third longer, still fits into a URL.
pub(super) const LONGEST_KEY: usize = 4_096;
/// Maximum length of a cursor; a longer one is rejected unread.
const LONGEST: usize = (LONGEST_KEY + SIGNATURE + 2).div_ceil(3) * 4;
/// Minimum bytes of a secret.
const SECRET: usize = 32;

const BACKWARD: u8 = 1;
const INCLUSIVE: u8 = 2;

/// Signs and verifies cursors. All processes of an application share the secret.
#[derive(Clone)]
pub struct Cursors {
    key: Hmac<Sha256>,
}

impl std::fmt::Debug for Cursors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cursors")
    }
}

/// Direction of a page, relative to the row at which it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) backward: bool,
    /// True if the row of the key itself is on the page.
    pub(super) inclusive: bool,
}

impl Cursors {
    /// Creates cursors with a secret of at least 32 bytes.
    ///
    /// # Errors
    /// [`WeakSecret`]: with a shorter secret, cursors could be forged.
    pub fn new(secret: &[u8]) -> Result<Self, WeakSecret> {
        if secret.len() < SECRET {
            return Err(WeakSecret);
        }
        Hmac::new_from_slice(secret).map(|key| Self { key }).map_err(|_| WeakSecret)
    }

    /// Returns a request for a page of `size` rows (1 to 1,000) of a list. The list's name
    /// distinguishes its cursors from those of other lists: include the order in it. Without a
    /// cursor, the first page is requested.
    ///
    /// # Errors
    /// [`BadCursor`]: answer with status 400, or with the first page.
    pub fn request<K: Key>(
        &self,
        list: &str,
        cursor: Option<&str>,
        size: usize,
    ) -> Result<PageRequest<K>, BadCursor> {
        let (from, direction) = match cursor {
            Some(cursor) => {
                self.read(list, cursor).map(|(key, direction)| (Some(key), direction))?
            }
            None => (None, Direction::default()),
        };
        Ok(PageRequest {
            cursors: self.clone(),
            list: list.into(),
            size: size.clamp(1, MOST),
            from,
            direction,
        })
    }

    fn sign(&self, list: &str, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.key.clone();
        mac.update(&(list.len() as u64).to_be_bytes());
        mac.update(list.as_bytes());
        mac.update(payload);
        mac
    }

    pub(super) fn write<K: Serialize>(
        &self,
        list: &str,
        key: &K,
        direction: Direction,
    ) -> Result<String, KeyTooLong> {
        let flags =
            u8::from(direction.backward) * BACKWARD + u8::from(direction.inclusive) * INCLUSIVE;
        let mut bytes = vec![VERSION, flags];
        rmp_serde::encode::write(&mut bytes, key).map_err(|_| KeyTooLong)?;
        if bytes.len() > LONGEST_KEY + 2 {
            return Err(KeyTooLong);
        }
        let signature = self.sign(list, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&signature[..SIGNATURE]);
        Ok(BASE64URL_NOPAD.encode(&bytes))
    }

    pub(super) fn read<K: DeserializeOwned>(
        &self,
        list: &str,
        cursor: &str,
    ) -> Result<(K, Direction), BadCursor> {
        if cursor.len() > LONGEST {
            return Err(BadCursor);
        }
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).map_err(|_| BadCursor)?;
        let (payload, signature) =
            bytes.split_at_checked(bytes.len().wrapping_sub(SIGNATURE)).ok_or(BadCursor)?;
        // In constant time.
        self.sign(list, payload).verify_truncated_left(signature).map_err(|_| BadCursor)?;
        match payload {
            [VERSION, flags @ 0..=3, key @ ..] => {
                let direction = Direction {
                    backward: flags & BACKWARD != 0,
                    inclusive: flags & INCLUSIVE != 0,
                };
                Ok((rmp_serde::from_slice(key).map_err(|_| BadCursor)?, direction))
            }
            _ => Err(BadCursor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORWARD: Direction = Direction { backward: false, inclusive: false };

    fn cursors() -> Cursors {
        Cursors::new(b"a secret of this test's own making").unwrap()
    }

    #[test]
    fn a_cursor_of_another_list_or_key_is_none() {
        let cursor = cursors().write("a", &(7_i64, "x".to_owned()), FORWARD).unwrap();
        assert_eq!(cursors().read::<(i64, String)>("a", &cursor), Ok(((7, "x".into()), FORWARD)));
        assert_eq!(cursors().read::<(i64, String)>("b", &cursor), Err(BadCursor));
        let others = Cursors::new(b"another secret, of the same length").unwrap();
        assert_eq!(others.read::<(i64, String)>("a", &cursor), Err(BadCursor));
        assert_eq!(cursors().read::<(String,)>("a", &cursor), Err(BadCursor), "of another type");
        assert_eq!(cursors().read::<(i64,)>("a", &"A".repeat(LONGEST + 4)), Err(BadCursor));
    }

    #[test]
    fn whatever_is_written_is_read() {
        for length in [0, 900, LONGEST_KEY - 4] {
            let key = ("x".repeat(length),);
            let cursor = cursors().write("a", &key, FORWARD).unwrap();
            assert_eq!(cursors().read("a", &cursor), Ok((key, FORWARD)), "{length}");
        }
        assert_eq!(cursors().write("a", &("x".repeat(LONGEST_KEY),), FORWARD), Err(KeyTooLong));
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused() {
        for weak in [&b""[..], b"secret", &[0; 31]] {
            assert!(matches!(Cursors::new(weak), Err(WeakSecret)));
        }
    }

    proptest! {
        #[test]
        fn no_changed_bit_passes(key: (i64, i64), at in 0_usize..1_000, bit in 0_u8..8) {
            let cursor = cursors()
                .write("a", &key, Direction { backward: true, inclusive: true })
                .unwrap();
            let mut bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(
                cursors().read::<(i64, i64)>("a", &BASE64URL_NOPAD.encode(&bytes)), Err(BadCursor),
            );
        }

        #[test]
        fn any_text_is_survived(text in ".{0,80}") {
            prop_assert_eq!(cursors().read::<(i64,)>("a", &text), Err(BadCursor));
        }
    }
}
