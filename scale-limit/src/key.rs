//! What a request counts against.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smol_str::SmolStr;

/// What a request counts against: an address, a user, a tenant. Up to 23 bytes are kept in line, without an allocation.
///
/// Stores keep up to 64 bytes of a key as they are. Longer keys, and [secret](Self::secret) ones, are kept as a hash of 128 bits (HMAC of
/// SHA-256) under [the limiter's secret](crate::Limiter::secret).
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

/// No text of an address or an application begins so.
const UNKNOWN: &str = "\0unknown client";
/// Marks a key that no store may know.
const SECRET: &str = "\0secret ";
/// The longest key that stores keep as it is, bytes.
const LONGEST: usize = 64;
/// Begins a key that is kept as its hash.
const HASHED: char = '#';

/// Returns whether stores keep the key as it is.
#[inline]
pub(crate) fn is_kept(key: &str) -> bool {
    key.len() <= LONGEST && key.as_bytes().first().is_some_and(|first| *first != 0 && *first != b'#')
}

/// The key as stores know it: as it is, or a hash of 128 bits under that secret.
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

/// 128 bits of HMAC-SHA-256: who reads a store's keys cannot try out what they stand for without the secret.
pub(crate) fn hash(text: &str, secret: &[u8; 32]) -> String {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..secret.len()].copy_from_slice(secret);
    let mut mac = Hmac::<Sha256>::new(&block);
    mac.update(text.as_bytes());
    BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()[..16])
}

/// The key as the application says it.
#[inline]
pub(crate) fn plain(key: &str) -> &str {
    if key.as_bytes().first() == Some(&0) { key.strip_prefix(SECRET).unwrap_or(key) } else { key }
}

impl Key {
    /// The key of a client that nobody knows: requests that are limited by it are refused.
    pub(crate) fn unknown() -> Self {
        Self(SmolStr::new_static(UNKNOWN))
    }

    /// Returns whether it is of a client that nobody knows.
    #[inline]
    pub(crate) fn is_unknown(&self) -> bool {
        self.0.as_bytes().first() == Some(&0) && self.0 == UNKNOWN
    }

    /// A key that must not lie around in a store: an API token, an e-mail address. Only a hash of it is kept. [Overrides] know it by its
    /// text.
    ///
    /// [Overrides]: crate::overrides::Overrides
    pub fn secret(text: &str) -> Self {
        Self(format!("{SECRET}{text}").into())
    }

    /// Of at most 23 bytes.
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
        if self.0.starts_with(SECRET) { f.write_str("(secret)") } else { fmt::Debug::fmt(&**self, f) }
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
        for hashed in ["", "\0", "#", &stored("\0"), &"x".repeat(LONGEST + 1), &"x".repeat(1_000_000), &secret] {
            let hash = stored(hashed);
            assert!(hash.len() == 23 && hash.starts_with(HASHED) && !hash.contains("token"), "{hash}");
            assert!(!hashes.contains(&hash));
            hashes.push(hash);
        }
        assert_ne!(super::stored("", &[7; 32]), super::stored("", &[8; 32]), "the secret counts");
        assert_eq!((plain(&secret), plain("a"), plain("\0a")), ("token", "a", "\0a"));
        assert_eq!((secret.to_string(), format!("{secret:?}")), ("(secret)".into(), "(secret)".into()));
    }
}
