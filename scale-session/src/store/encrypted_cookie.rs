//! Sessions kept in their cookies, encrypted: the server stores nothing.
//!
//! | bytes | hold |
//! | --- | --- |
//! | 0 | the format's version |
//! | 1 to 4 | the id of the key |
//! | 5 to 28 | a random nonce |
//! | rest | the session as MessagePack, encrypted with XChaCha20-Poly1305; authenticated with the bytes before the nonce |
//!
//! Encoded as base64url.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use data_encoding::BASE64URL_NOPAD;
use parking_lot::Mutex;
use scale_common::clock::millis;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Destroyed, Fields, Handle, Lifetime, Owner, PendingChanges, Proof, Record, Renewal, Saved,
    Standing, Store, Succession, Swapped,
};
use crate::error::Error;
use crate::id::Id;

const VERSION: u8 = 1;
const HEAD: usize = 5;
const NONCE: usize = 24;
/// Browsers accept cookies of 4,096 bytes, including name and attributes.
const ROOM: usize = 2_500;
const LONGEST: usize = 4_000;

/// Secrets that cookies are encrypted with. The first one encrypts, all of them decrypt.
#[derive(Clone)]
pub struct CookieKeys(Arc<[([u8; 4], XChaCha20Poly1305)]>);

impl std::fmt::Debug for CookieKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CookieKeys({})", self.0.len())
    }
}

impl CookieKeys {
    /// Sets the key that encrypts: 32 random bytes, kept where database passwords are kept.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self([Self::cipher(secret)].into())
    }

    /// Adds a key that was used before: its cookies are accepted until they expire.
    pub fn older(self, secret: &[u8; 32]) -> Self {
        Self(self.0.iter().cloned().chain([Self::cipher(secret)]).collect())
    }

    fn cipher(secret: &[u8; 32]) -> ([u8; 4], XChaCha20Poly1305) {
        let id = Sha256::digest([b"cookie key id", &secret[..]].concat());
        // Separates this use from other uses of the same secret.
        let key = Sha256::digest([b"cookie key", &secret[..]].concat());
        ([id[0], id[1], id[2], id[3]], XChaCha20Poly1305::new(&key))
    }

    fn seal(&self, content: &[u8]) -> Result<String, Error> {
        let failed = || Error::Store("encryption of the cookie failed".into());
        let (id, cipher) = self.0.first().ok_or_else(failed)?;
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(id);
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|e| Error::Store(Box::new(e)))?;
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: content, aad: &bytes })
            .map_err(|_| failed())?;
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        Ok(BASE64URL_NOPAD.encode(&bytes))
    }

    fn open(&self, text: &str) -> Option<Vec<u8>> {
        if text.len() > LONGEST {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let (_, cipher) = self.0.iter().find(|(id, _)| head[0] == VERSION && *id == head[1..])?;
        cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: head }).ok()
    }
}

/// A session as stored in its cookie. Times are in ms since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Held {
    renewed: u64,
    expires: u64,
    ends: u64,
    owner: Option<String>,
    #[serde(with = "packed")]
    fields: Fields,
}

/// Encodes values as bytes: a list of numbers would take 50 % more space.
mod packed {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    use super::{Fields, HashMap};

    pub(super) fn serialize<S: Serializer>(
        fields: &Fields,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(fields.iter().map(|(name, value)| (name, Bytes::new(value))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Fields, D::Error> {
        let fields = HashMap::<String, ByteBuf>::deserialize(deserializer)?;
        Ok(fields.into_iter().map(|(name, value)| (name, value.into_vec())).collect())
    }
}

/// Sessions of one request, read from its cookie and written into it.
#[derive(Debug)]
pub(crate) struct EncryptedCookieStore {
    keys: CookieKeys,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    sessions: HashMap<Handle, Held>,
    /// Session that the cookie will contain.
    current: Option<Handle>,
    changed: bool,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64)
}

impl Held {
    fn record(&self) -> Record {
        let renewed = UNIX_EPOCH + Duration::from_millis(self.renewed);
        let (fields, standing) = (self.fields.clone(), Standing::Live);
        Record {
            fields,
            renewed,
            standing,
            is_current: true,
            seen: true,
            is_unconfirmed: false,
            next: None,
        }
    }

    fn apply<'c>(
        &mut self,
        changes: impl IntoIterator<Item = (&'c str, Option<&'c [u8]>)>,
    ) -> Result<(), Error> {
        for (field, value) in changes {
            match value {
                Some(value) => self.fields.insert(field.to_owned(), value.to_owned()),
                None => self.fields.remove(field),
            };
        }
        fits(&self.fields)
    }

    fn renew(&mut self, idle: Duration) {
        self.renewed = now();
        self.expires = self.renewed.saturating_add(millis(idle)).min(self.ends);
    }
}

/// Checks that the fields fit into a cookie.
fn fits(fields: &Fields) -> Result<(), Error> {
    let taken: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    if taken > ROOM { Err(Error::TooLarge("a cookie holds up to 2,500 bytes")) } else { Ok(()) }
}

impl EncryptedCookieStore {
    pub(crate) fn new(keys: CookieKeys) -> Self {
        Self { keys, inside: Mutex::default() }
    }

    fn with<T>(
        &self,
        handle: &Handle,
        work: impl FnOnce(&mut Held) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let mut inside = self.inside.lock();
        let Some(held) = inside.sessions.get_mut(handle) else { return Ok(None) };
        // A change that does not fit must not be applied in part.
        let mut next = held.clone();
        let done = work(&mut next)?;
        *held = next;
        inside.changed = true;
        Ok(Some(done))
    }
}

#[async_trait]
impl Store for EncryptedCookieStore {
    fn for_request(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Self::new(self.keys.clone())))
    }

    fn presented(&self, cookie: &str) -> Option<Id> {
        let held: Held = rmp_serde::from_slice(&self.keys.open(cookie)?).ok()?;
        if held.expires.min(held.ends) <= now() {
            return None;
        }
        let owner = match &held.owner {
            Some(text) => Some(Owner::parse(text)?),
            None => None,
        };
        // Within a request the session has a random id, as with other stores.
        let id = Id::random(owner).ok()?;
        let mut inside = self.inside.lock();
        inside.sessions.insert(id.handle(), held);
        inside.current = Some(id.handle());
        Some(id)
    }

    fn room(&self) -> Option<usize> {
        Some(ROOM)
    }

    fn cookie(&self) -> Result<Option<String>, Error> {
        let inside = self.inside.lock();
        let held = inside
            .current
            .as_ref()
            .filter(|_| inside.changed)
            .and_then(|handle| inside.sessions.get(handle));
        let Some(held) = held else { return Ok(None) };
        let content = rmp_serde::to_vec(held)
            .map_err(|source| Error::Encode { field: "(session)".into(), source })?;
        self.keys.seal(&content).map(Some)
    }

    async fn load(&self, handle: &Handle, _: Option<&Proof>) -> Result<Option<Record>, Error> {
        Ok(self.inside.lock().sessions.get(handle).map(Held::record))
    }

    async fn create(
        &self,
        handle: &Handle,
        _: &Proof,
        changes: &PendingChanges,
        lifetime: Lifetime,
    ) -> Result<(), Error> {
        let ends = now().saturating_add(millis(lifetime.absolute));
        let owner = handle.owner().map(Owner::text);
        let mut held = Held { renewed: 0, expires: 0, ends, owner, fields: Fields::default() };
        held.apply(changes.iter())?;
        held.renew(lifetime.idle);
        let mut inside = self.inside.lock();
        inside.sessions.insert(*handle, held);
        (inside.current, inside.changed) = (Some(*handle), true);
        Ok(())
    }

    async fn save(
        &self,
        handle: &Handle,
        changes: &PendingChanges,
        renewal: Option<Renewal>,
    ) -> Result<Saved, Error> {
        let saved = self.with(handle, |held| {
            if let Some(Renewal { idle, .. }) = renewal {
                held.renew(idle);
            }
            held.apply(changes.iter())
        })?;
        Ok(saved.map_or(Saved::Gone, |()| Saved::Done))
    }

    async fn swap(
        &self,
        handle: &Handle,
        field: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swapped, Error> {
        let swapped = self.with(handle, |held| {
            let found = held.fields.get(field).map(Vec::as_slice);
            if found != expected {
                return Ok(Swapped::Found(found.map(<[u8]>::to_vec)));
            }
            held.apply([(field, new)])?;
            Ok(Swapped::Done)
        })?;
        Ok(swapped.unwrap_or(Swapped::Gone))
    }

    async fn rotate(&self, handle: &Handle, _: &Proof, _: &Proof) -> Result<Saved, Error> {
        // Each cookie is encrypted with a new nonce.
        Ok(self.with(handle, |_| Ok(()))?.map_or(Saved::Gone, |()| Saved::Done))
    }

    async fn freeze(
        &self,
        handle: &Handle,
        _: &Handle,
        _: Duration,
    ) -> Result<Option<Fields>, Error> {
        Ok(self.inside.lock().sessions.remove(handle).map(|held| held.fields))
    }

    async fn succeed(
        &self,
        handle: &Handle,
        next: &Succession<'_>,
        changes: &PendingChanges,
    ) -> Result<Saved, Error> {
        let mut inside = self.inside.lock();
        let Some(mut held) = inside.sessions.remove(handle) else { return Ok(Saved::Gone) };
        held.apply(changes.iter())?;
        held.renew(next.idle);
        inside.sessions.insert(*next.handle, held);
        (inside.current, inside.changed) = (Some(*next.handle), true);
        Ok(Saved::Done)
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let inside = self.inside.lock();
        // The location of the other sessions is unknown.
        let handle = inside
            .current
            .filter(|handle| handle.owner() == Some(owner))
            .ok_or(Error::Irrevocable)?;
        Ok(inside.sessions.get(&handle).map(|held| (handle, held.record())).into_iter().collect())
    }

    async fn revoke(&self, _: &Owner, _: Option<&Handle>) -> Result<bool, Error> {
        Err(Error::Irrevocable)
    }

    async fn destroy(&self, handle: &Handle, _: Duration) -> Result<Destroyed, Error> {
        let mut inside = self.inside.lock();
        if inside.current == Some(*handle) {
            inside.current = None;
        }
        Ok(inside.sessions.remove(handle).map_or(Destroyed::Gone, |_| Destroyed::Done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opened_by_its_keys_alone_and_only_whole() {
        let (old, new) = (CookieKeys::new(&[1; 32]), CookieKeys::new(&[2; 32]).older(&[1; 32]));
        let text = old.seal(b"content").unwrap();
        assert_ne!(text, old.seal(b"content").unwrap(), "a nonce of its own");
        assert_eq!(new.open(&text).as_deref(), Some(&b"content"[..]));
        assert_eq!(CookieKeys::new(&[2; 32]).open(&text), None);
        assert_eq!(old.open(&new.seal(b"content").unwrap()), None, "the newest encrypts");
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(old.open(&BASE64URL_NOPAD.encode(&changed)), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(old.open(&BASE64URL_NOPAD.encode(&bytes[..length])), None);
        }
        assert_eq!(format!("{new:?}"), "CookieKeys(2)");
    }

    proptest::proptest! {
        #[test]
        fn any_cookie_is_survived(text in ".{0,200}", bytes: Vec<u8>) {
            let store = EncryptedCookieStore::new(CookieKeys::new(&[1; 32]));
            proptest::prop_assert!(store.presented(&text).is_none());
            proptest::prop_assert!(store.presented(&BASE64URL_NOPAD.encode(&bytes)).is_none());
            // The cookie was encrypted with a valid key, but its content is not a session.
            let sealed = store.keys.seal(&bytes).unwrap();
            let _ = store.presented(&sealed);
        }
    }
}
