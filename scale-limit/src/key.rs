//! What a request counts against.

use std::fmt;
use std::ops::Deref;

use smol_str::SmolStr;

/// What a request counts against: an address, a user, a tenant. Up to 23 bytes are kept in line, without an allocation.
///
/// ```
/// use scale_limit::client::Key;
///
/// let key: Key = "tenant:7".into();
/// assert_eq!(&*key, "tenant:7");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(SmolStr);

/// No text of an address or an application begins so.
const UNKNOWN: &str = "\0unknown client";

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
        f.write_str(self)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
