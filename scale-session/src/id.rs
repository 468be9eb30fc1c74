//! The secret a client holds, and the handle it is stored under.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

/// 256 random bits. It exists in the cookie and in memory; what is stored is its [`Handle`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Id([u8; 32]);

/// SHA-256 of a session id: a dump of the store logs nobody in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle([u8; 32]);

/// An id's length in a cookie.
const TEXT: usize = 43;

impl Id {
    /// From the operating system's generator.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Reads a cookie's value. Anything but the one canonical form is nobody's id, and never reaches a store.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() != TEXT {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    pub(crate) fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle(Sha256::digest(self.0).into())
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Id(secret)")
    }
}

impl Handle {
    /// As it stands in keys.
    pub fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    /// Reads what [`text`](Self::text) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({})", self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_and_are_not_shown() {
        let id = Id::random().unwrap();
        assert_eq!(Id::parse(&id.text()), Some(id.clone()));
        assert_ne!(id, Id::random().unwrap());
        assert_eq!(format!("{id:?}"), "Id(secret)");
        assert_ne!(id.handle().text(), id.text());
        assert_eq!(Handle::parse(&id.handle().text()), Some(id.handle()));
    }

    proptest::proptest! {
        #[test]
        fn only_the_canonical_form_is_an_id(text in ".{0,60}") {
            if let Some(id) = Id::parse(&text) {
                assert_eq!(id.text(), text);
            }
        }
    }
}
