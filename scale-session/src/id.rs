//! The secret a client holds, and the handle it is stored under.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

/// 256 random bits, and whose session it is. It exists in the cookie and in memory; what is stored is its [`Handle`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Id {
    secret: [u8; 32],
    owner: Option<Owner>,
}

/// SHA-256 of a session id, and whose session it is: a dump of the store logs nobody in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle {
    hash: [u8; 32],
    owner: Option<Owner>,
}

/// Who a session belongs to: a hash of the user's id. It is part of a session's id, so that a store finds the session and what is known of
/// its owner in one step.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner([u8; 16]);

/// The length of 32 and of 16 bytes as text.
const SECRET: usize = 43;
const OWNER: usize = 22;

impl Owner {
    /// Of a user, by whatever id the application has for them.
    pub fn of(user: &str) -> Self {
        let digest = Sha256::digest([b"owner:", user.as_bytes()].concat());
        let mut tag = [0; 16];
        tag.copy_from_slice(&digest[..16]);
        Self(tag)
    }

    /// As it stands in keys.
    pub fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    /// Reads what [`text`](Self::text) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }
}

/// The one canonical form of a secret or a hash, and an owner if there is more.
fn split(text: &str) -> Option<([u8; 32], Option<Owner>)> {
    if !text.is_ascii() || (text.len() != SECRET && text.len() != SECRET + OWNER) {
        return None;
    }
    let (first, owner) = text.split_at(SECRET);
    let bytes = BASE64URL_NOPAD.decode(first.as_bytes()).ok()?.try_into().ok()?;
    let owner = match owner {
        "" => None,
        owner => Some(Owner::parse(owner)?),
    };
    Some((bytes, owner))
}

fn join(bytes: &[u8; 32], owner: Option<&Owner>) -> String {
    let mut text = BASE64URL_NOPAD.encode(bytes);
    if let Some(owner) = owner {
        text.push_str(&owner.text());
    }
    text
}

impl Id {
    /// From the operating system's generator.
    pub(crate) fn random(owner: Option<Owner>) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self { secret, owner })
    }

    /// Reads a cookie's value. Anything but the one canonical form is nobody's id, and never reaches a store.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (secret, owner) = split(text)?;
        Some(Self { secret, owner })
    }

    pub(crate) fn text(&self) -> String {
        join(&self.secret, self.owner.as_ref())
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle { hash: Sha256::digest(self.secret).into(), owner: self.owner }
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Id(secret)")
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Owner({})", self.text())
    }
}

impl Handle {
    /// As it stands in keys.
    pub fn text(&self) -> String {
        join(&self.hash, self.owner.as_ref())
    }

    /// Reads what [`text`](Self::text) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (hash, owner) = split(text)?;
        Some(Self { hash, owner })
    }

    /// Whose session it is, if somebody's.
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// The hash alone.
    pub fn hash(&self) -> String {
        BASE64URL_NOPAD.encode(&self.hash)
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
        for owner in [None, Some(Owner::of("ann"))] {
            let id = Id::random(owner).unwrap();
            assert_eq!(Id::parse(&id.text()), Some(id.clone()));
            assert_ne!(id, Id::random(owner).unwrap());
            assert_eq!(format!("{id:?}"), "Id(secret)");
            assert_ne!(id.handle().text(), id.text());
            assert_eq!(Handle::parse(&id.handle().text()), Some(id.handle()));
        }
        // Somebody else's mark makes it another session, which is nobody's.
        let id = Id::random(Some(Owner::of("ann"))).unwrap();
        let text = format!("{}{}", &id.text()[..SECRET], Owner::of("ben").text());
        assert_ne!(Id::parse(&text).unwrap().handle(), id.handle());
    }

    proptest::proptest! {
        #[test]
        fn only_the_canonical_form_is_an_id(text in "[A-Za-z0-9_-]{43}|[A-Za-z0-9_-]{65}|.{0,70}") {
            if let Some(id) = Id::parse(&text) {
                assert_eq!(id.text(), text);
            }
        }
    }
}
