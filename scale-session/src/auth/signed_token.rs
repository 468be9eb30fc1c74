//! Signed tokens: strings that only this application can have created, with a subject, a purpose
//! and an expiry.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 to 4 | the id of the key |
//! | 5 to 12 | the expiry, s since 1970 |
//! | 13 to 28 | random |
//! | 29 to 36 | a number |
//! | 37 … | the subject |
//! | last 32 | HMAC-SHA-256 of all of these, of the purpose, and of the binding |
//!
//! Encoded as base64url. Integers are big endian.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::error::Error;

const VERSION: u8 = 1;
const HEAD: usize = 37;
const MAC: usize = 32;
/// Maximum length of a subject; longer strings are refused unread.
const LONGEST_SUBJECT: usize = 600;

/// Secrets that tokens are signed with. The newest one signs; older ones are still accepted. A
/// clone copies them.
#[derive(Clone)]
pub struct Keys(Vec<([u8; 4], Vec<u8>)>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// Sets the key that signs: 32 random bytes, kept where database passwords are kept.
    ///
    /// # Errors
    /// [`Error::Setting`] for fewer than 32 bytes.
    pub fn new(secret: &[u8]) -> Result<Self, Error> {
        Self(Vec::new()).older(secret)
    }

    /// Adds a key that signed before; its tokens are accepted until they expire.
    ///
    /// # Errors
    /// [`Error::Setting`] for fewer than 32 bytes.
    pub fn older(mut self, secret: &[u8]) -> Result<Self, Error> {
        if secret.len() < 32 {
            return Err(Error::Setting("the key is too short: at least 32 bytes are needed"));
        }
        let digest = Sha256::digest([b"key id", secret].concat());
        self.0.push(([digest[0], digest[1], digest[2], digest[3]], secret.to_owned()));
        Ok(self)
    }
}

impl Keys {
    /// Computes a MAC over the parts and their boundaries, with the newest key or the given one.
    /// Returns the key's id first.
    pub(super) fn mac(
        &self,
        purpose: &str,
        parts: &[&[u8]],
        key: Option<[u8; 4]>,
    ) -> Result<([u8; 4], [u8; 32]), Error> {
        let found = match key {
            Some(id) => self.0.iter().find(|(known, _)| *known == id),
            None => self.0.first(),
        };
        let (id, key) = found.ok_or(Error::Setting("there is no such key"))?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key)
            .map_err(|_| Error::Setting("HMAC does not accept the key"))?;
        for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Ok((*id, mac.finalize().into_bytes().into()))
    }
}

/// Claims of a signed token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) expires: u64,
    pub(super) nonce: [u8; 16],
    pub(super) number: u64,
    pub(super) subject: String,
}

impl Claims {
    pub(super) fn sign(&self, keys: &Keys, purpose: &str, binding: &str) -> Result<String, Error> {
        if self.subject.len() > LONGEST_SUBJECT {
            return Err(Error::Setting("the subject is longer than 600 bytes"));
        }
        let Some((id, key)) = keys.0.first() else { return Err(Error::Setting("there is no key")) };
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&self.expires.to_be_bytes());
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(self.subject.as_bytes());
        let signed = mac(key, &bytes, purpose, binding)?.finalize().into_bytes();
        bytes.extend_from_slice(&signed);
        Ok(BASE64URL_NOPAD.encode(&bytes))
    }

    /// Decodes a token without verifying it: anybody can have written it.
    pub(super) fn decode_unverified(text: &str) -> Option<Self> {
        Some(Self::split(text)?.0)
    }

    /// Returns the claims of a token, if it was signed here for this purpose and has not expired.
    pub(super) fn verify(text: &str, keys: &Keys, purpose: &str, binding: &str) -> Option<Self> {
        let (claims, bytes) = Self::split(text)?;
        let (content, signed) = bytes.split_at(bytes.len() - MAC);
        let (_, key) = keys.0.iter().find(|(id, _)| content[1..5] == *id)?;
        mac(key, content, purpose, binding).ok()?.verify_slice(signed).ok()?;
        (claims.expires > now()).then_some(claims)
    }

    fn split(text: &str) -> Option<(Self, Vec<u8>)> {
        if text.len() > (HEAD + LONGEST_SUBJECT + MAC) * 4 / 3 + 4 {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        if bytes.len() < HEAD + MAC || bytes[0] != VERSION {
            return None;
        }
        let claims = Self {
            expires: u64::from_be_bytes(bytes[5..13].try_into().ok()?),
            nonce: bytes[13..29].try_into().ok()?,
            number: u64::from_be_bytes(bytes[29..37].try_into().ok()?),
            subject: String::from_utf8(bytes[HEAD..bytes.len() - MAC].to_vec()).ok()?,
        };
        Some((claims, bytes))
    }

    /// Returns the time until the token expires.
    pub(super) fn left(&self) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(now()))
    }
}

/// Prefixes each part with its length, so that different parts never give the same bytes.
fn mac(key: &[u8], content: &[u8], purpose: &str, binding: &str) -> Result<Hmac<Sha256>, Error> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .map_err(|_| Error::Setting("HMAC does not accept the key"))?;
    for part in [content, purpose.as_bytes(), binding.as_bytes()] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    Ok(mac)
}

/// Returns the current time in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64)
}

/// Returns the current time in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims(subject: &str) -> Claims {
        Claims { expires: now() + 60, nonce: [7; 16], number: 3, subject: subject.into() }
    }

    proptest! {
        #[test]
        fn comes_back_for_what_it_was_made_for_alone(
            subject in ".{0,40}",
            purpose in ".{0,10}",
            binding in ".{0,20}",
            flip in 0_usize..2_000,
        ) {
            let keys = Keys::new(&[1; 32]).unwrap();
            let text = claims(&subject).sign(&keys, &purpose, &binding).unwrap();
            let verified = Claims::verify(&text, &keys, &purpose, &binding);
            prop_assert_eq!(verified, Some(claims(&subject)));
            for (keys, purpose, binding) in [
                (&Keys::new(&[2; 32]).unwrap(), purpose.clone(), binding.clone()),
                (&keys, format!("{purpose}x"), binding.clone()),
                (&keys, purpose.clone(), format!("{binding}x")),
                (&keys, format!("{purpose}{binding}x"), String::new()),
            ] {
                prop_assert_eq!(Claims::verify(&text, keys, &purpose, &binding), None);
            }
            // Any bit changed.
            let mut bytes = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
            let bit = flip % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(
                Claims::verify(&BASE64URL_NOPAD.encode(&bytes), &keys, &purpose, &binding), None,
            );
        }

        #[test]
        fn any_string_is_survived(text in ".{0,600}", bytes: Vec<u8>) {
            let keys = Keys::new(&[1; 32]).unwrap();
            for text in [text, BASE64URL_NOPAD.encode(&bytes)] {
                Claims::decode_unverified(&text);
                prop_assert_eq!(Claims::verify(&text, &keys, "", ""), None);
            }
        }
    }

    #[test]
    fn older_keys_are_accepted_and_do_not_sign() {
        let old = Keys::new(&[1; 32]).unwrap();
        let text = claims("ann").sign(&old, "p", "").unwrap();
        let both = Keys::new(&[2; 32]).unwrap().older(&[1; 32]).unwrap();
        assert!(Claims::verify(&text, &both, "p", "").is_some());
        let new = claims("ann").sign(&both, "p", "").unwrap();
        assert!(Claims::verify(&new, &old, "p", "").is_none());
        assert!(Keys::new(&[1; 31]).is_err());
        assert_eq!(format!("{both:?}"), "Keys(2)");
    }

    #[test]
    fn an_end_is_an_end() {
        let keys = Keys::new(&[1; 32]).unwrap();
        let text = Claims { expires: now(), ..claims("ann") }.sign(&keys, "p", "").unwrap();
        assert!(Claims::verify(&text, &keys, "p", "").is_none());
        assert!(claims(&"x".repeat(601)).sign(&keys, "p", "").is_err());
    }
}
