//! The secret a client holds, and the handle it is stored under.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

/// Session id of a client. It has three parts: the session's family, 128 random bits that stay the
/// same until the identity changes; a secret, 128 random bits that change with each rotation; and
/// the owner. The id exists only in the cookie and in memory; the store has a [`Handle`].
#[derive(Clone, PartialEq, Eq)]
pub struct Id {
    family: [u8; 16],
    secret: [u8; 16],
    owner: Option<Owner>,
}

/// Storage key of a session: a hash of the session's family, and the owner. The handle stays the
/// same across rotations, and nobody can sign in with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    family: [u8; 16],
    owner: Option<Owner>,
}

/// Hash of an [`Id`]'s secret. Nobody can sign in with a dump of the store.
#[derive(Clone, Copy)]
pub struct Proof([u8; 16]);

/// Owner of a session: a hash of the user's id. The owner is part of the session's id, so that a
/// store finds the session and the owner's revocations in one step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner([u8; 16]);

/// Lengths of 32 and of 16 bytes as text.
const LONG: usize = 43;
const SHORT: usize = 22;

impl Owner {
    /// Returns the owner for a user id. The application chooses the form of its user ids.
    pub fn of(user: &str) -> Self {
        let digest = Sha256::digest([b"owner:", user.as_bytes()].concat());
        let mut tag = [0; 16];
        tag.copy_from_slice(&digest[..16]);
        Self(tag)
    }

    /// Returns the text form that storage keys contain.
    pub fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    /// Parses the output of [`text`](Self::text).
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }
}

/// Parses `N` bytes in their one canonical form, and the owner that may follow them.
fn split<const N: usize>(text: &str, length: usize) -> Option<([u8; N], Option<Owner>)> {
    if !text.is_ascii() || (text.len() != length && text.len() != length + SHORT) {
        return None;
    }
    let (first, owner) = text.split_at(length);
    let bytes = BASE64URL_NOPAD.decode(first.as_bytes()).ok()?.try_into().ok()?;
    let owner = match owner {
        "" => None,
        owner => Some(Owner::parse(owner)?),
    };
    Some((bytes, owner))
}

fn join(bytes: &[u8], owner: Option<&Owner>) -> String {
    let mut text = BASE64URL_NOPAD.encode(bytes);
    if let Some(owner) = owner {
        text.push_str(&owner.text());
    }
    text
}

fn hash(parts: &[&[u8]]) -> [u8; 16] {
    let digest = parts.iter().fold(Sha256::new(), Sha256::chain_update).finalize();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

impl Id {
    /// Returns an id of a new family, from the operating system's random number generator.
    pub(crate) fn random(owner: Option<Owner>) -> Result<Self, getrandom::Error> {
        let mut family = [0; 16];
        getrandom::fill(&mut family)?;
        Self { family, secret: family, owner }.rotated()
    }

    /// Returns the same family with a new secret.
    pub(crate) fn rotated(&self) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Self { secret, ..*self })
    }

    /// Parses a cookie's value. Returns `None` for anything but the one canonical form: no store is
    /// asked about such a value.
    pub fn parse(text: &str) -> Option<Self> {
        let (bytes, owner) = split::<32>(text, LONG)?;
        let (family, secret) = (bytes[..16].try_into().ok()?, bytes[16..].try_into().ok()?);
        Some(Self { family, secret, owner })
    }

    pub(crate) fn text(&self) -> String {
        join(&[self.family, self.secret].concat(), self.owner.as_ref())
    }

    /// Returns the storage key of the session.
    pub fn handle(&self) -> Handle {
        Handle { family: hash(&[b"family", &self.family]), owner: self.owner }
    }

    /// Returns the proof that the client was given this id.
    pub fn proof(&self) -> Proof {
        Proof(hash(&[b"secret", &self.family, &self.secret]))
    }
}

impl Proof {
    /// Returns the text form that is stored.
    pub fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    /// Parses the output of [`text`](Self::text).
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }
}

/// Compares in constant time: the duration does not reveal where the proofs differ.
impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .fold(0, |differs, (a, b)| std::hint::black_box(differs | (a ^ b)))
            == 0
    }
}

impl Eq for Proof {}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(hash)")
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
    /// Returns the text form that storage keys contain.
    pub fn text(&self) -> String {
        join(&self.family, self.owner.as_ref())
    }

    /// Parses the output of [`text`](Self::text).
    pub fn parse(text: &str) -> Option<Self> {
        let (family, owner) = split(text, SHORT)?;
        Some(Self { family, owner })
    }

    /// Returns the owner of the session, if there is one.
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// Returns the hash of the family, without the owner.
    pub fn family(&self) -> String {
        BASE64URL_NOPAD.encode(&self.family)
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
            assert!(
                !id.text().contains(&id.handle().family())
                    && !id.text().contains(&id.proof().text())
            );
            let next = id.rotated().unwrap();
            assert!(
                next.handle() == id.handle()
                    && next.proof() != id.proof()
                    && next.text() != id.text()
            );
            assert_eq!(Proof::parse(&id.proof().text()), Some(id.proof()));
            assert_eq!(Handle::parse(&id.handle().text()), Some(id.handle()));
        }
        // With another owner the handle is that of another session, which does not exist.
        let id = Id::random(Some(Owner::of("ann"))).unwrap();
        let text = format!("{}{}", &id.text()[..LONG], Owner::of("ben").text());
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
