//! Keys of limits.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smol_str::SmolStr;

/// Key that a request is counted by: an address, a user, a tenant. Up to 23 bytes are stored
/// inline, without an allocation.
///
/// Stores keep up to 64 bytes of a key as they are. Longer keys, and [secret](Self::secret) ones,
/// are stored as a hash of 128 bits (HMAC of SHA-256) under [the limiter's
/// secret](crate::Limiter::secret).
///
/// ```
/// use scale_limit::client::Key;
///
/// let key: Key = "tenant:7".into();
/// assert_eq!(&*key, "tenant:7");
/// assert_eq!(format!("{:?}", Key::secret("sk_live_123")), "(secret)");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(SmolStr);

/// Key of an unknown client. Neither addresses nor application keys begin with a zero byte.
const UNKNOWN: &str = "\0unknown client";
/// Prefix of a key that stores must not contain in plain text.
const SECRET: &str = "\0secret ";
/// Maximum length of a key that stores keep as it is, in bytes.
const LONGEST: usize = 64;
/// Prefix of a key that is stored as its hash.
const HASHED: char = '#';

/// Returns whether stores keep the key as it is.
#[inline]
pub(crate) fn is_kept(key: &str) -> bool {
    key.len() <= LONGEST
        && key.as_bytes().first().is_some_and(|first| *first != 0 && *first != b'#')
}

/// Returns the key as stores contain it: as it is, or a hash of 128 bits under that secret.
#[inline]
pub(crate) fn stored<'k>(key: &'k str, secret: &[u8; 32]) -> Cow<'k, str> {
    if is_kept(key) { Cow::Borrowed(key) } else { Cow::Owned(hashed(key, secret)) }
}

#[cold]
fn hashed(key: &str, secret: &[u8; 32]) -> String {
    let mut text = String::with_capacity(23);
    text.push(HASHED);
    text.push_str(&hash(key, secret));
    text
}

/// Returns 128 bits of HMAC-SHA-256: without the secret, a reader of the store cannot test guesses
/// of a key.
pub(crate) fn hash(text: &str, secret: &[u8; 32]) -> String {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..secret.len()].copy_from_slice(secret);
    let mut mac = Hmac::<Sha256>::new(&block);
    mac.update(text.as_bytes());
    BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()[..16])
}

/// Returns the key as the application wrote it.
#[inline]
pub(crate) fn plain(key: &str) -> &str {
    if key.as_bytes().first() == Some(&0) { key.strip_prefix(SECRET).unwrap_or(key) } else { key }
}

impl Key {
    /// Returns the key of an unknown client: requests with this key are refused.
    pub(crate) fn unknown() -> Self {
        Self(SmolStr::new_static(UNKNOWN))
    }

    /// Returns whether this is the key of an unknown client.
    #[inline]
    pub(crate) fn is_unknown(&self) -> bool {
        self.0.as_bytes().first() == Some(&0) && self.0 == UNKNOWN
    }

    /// Creates a key that a store must not contain in plain text, such as an API token or an e-mail
    /// address. Stores contain only a hash of it. [Overrides] refer to it by its text.
    ///
    /// [Overrides]: crate::overrides::Overrides
    pub fn secret(text: &str) -> Self {
        Self(format!("{SECRET}{text}").into())
    }

    /// Creates a key of at most 23 bytes.
    #[inline]
    pub(crate) fn short(text: &str) -> Self {
        Self(SmolStr::new_inline(text))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.starts_with(SECRET) { "(secret)" } else { self })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with(SECRET) {
            f.write_str("(secret)")
        } else {
            fmt::Debug::fmt(&**self, f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_odd_and_secret_keys_are_kept_as_hashes_and_no_two_as_one() {
        let stored = |key: &str| stored(key, &[7; 32]).into_owned();
        for kept in ["a", "203.0.113.7", &"x".repeat(LONGEST), "}", "{}", "größe"] {
            assert_eq!(stored(kept), kept);
        }
        let secret = Key::secret("token");
        let mut hashes = Vec::new();
        for hashed in [
            "",
            "\0",
            "#",
            &stored("\0"),
            &"x".repeat(LONGEST + 1),
            &"x".repeat(1_000_000),
            &secret,
        ] {
            let hash = stored(hashed);
            assert!(
                hash.len() == 23 && hash.starts_with(HASHED) && !hash.contains("token"),
                "{hash}"
            );
            assert!(!hashes.contains(&hash));
            hashes.push(hash);
        }
        assert_ne!(super::stored("", &[7; 32]), super::stored("", &[8; 32]), "the secret counts");
        assert_eq!((plain(&secret), plain("a"), plain("\0a")), ("token", "a", "\0a"));
        assert_eq!(
            (secret.to_string(), format!("{secret:?}")),
            ("(secret)".into(), "(secret)".into())
        );
    }
}
