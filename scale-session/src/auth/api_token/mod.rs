//! API tokens: long-lived secrets that a user gives to programs, with abilities, an expiry, and a
//! list for revocation.
//!
//! | a token | is |
//! | --- | --- |
//! | `shop_` and 84 letters and digits | recognised by secret scanners: [`ApiTokens::pattern`] is the expression to give them |
//! | of another form, or mistyped | refused without a query to the store: four bytes are a checksum |
//! | in the store | a record with the SHA-256 of its secret half (192 random bits): nobody can use a stored record as a token |
//! | revoked, or expired | refused by the next request on every server |
//! | used | marked with the time of its last use, at most once a minute |
//!
//! For tokens that services verify without a store, see [`Access`](super::access); for browsers,
//! use sessions.

mod layer;

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::layer::{ApiTokenLayer, Authenticated};
use super::error::Error;
use super::records::{Owner, Records, Swapped};
use super::signed_token::now;
use super::{random, same};

const KIND: &str = "api-token";
const OWNER: usize = 16;
const ID: usize = 8;
const SECRET: usize = 24;
const CHECKSUM: usize = 4;
/// Number of letters and digits after the prefix and its underscore.
const LETTERS: usize = (OWNER + ID + SECRET + CHECKSUM) * 8 / 5 + 1;
/// Maximum number of a user's tokens.
const MOST: usize = 100;
/// Interval at which uses are recorded, in seconds.
const MARKED: u64 = 60;
const LONGEST_NAME: usize = 200;
const MOST_ABILITIES: usize = 100;

/// Creates, verifies, lists and revokes API tokens. A clone costs a reference count and a short
/// string.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{ApiTokens, Records, api_token::NewApiToken};
/// use std::time::Duration;
///
/// let tokens = ApiTokens::new(&Records::memory()).prefix("shop")?;
/// let new = NewApiToken::named("nightly build")
///     .abilities(["orders.read"])
///     .expires_in(Duration::from_secs(90 * 86_400));
/// let made = tokens.create("user:7", new).await?;
/// println!("copy it now, it is not shown again: {}", made.secret);
///
/// let token = tokens.verify(&made.secret).await?.expect("the token is valid");
/// assert!(token.can("orders.read") && !token.can("orders.refund"));
/// assert_eq!(tokens.list("user:7").await?.len(), 1);
/// assert!(tokens.revoke("user:7", &token.id).await?);
/// assert!(tokens.verify(&made.secret).await?.is_none());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ApiTokens {
    records: Records,
    prefix: String,
}

/// Settings of a new token.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewApiToken {
    name: String,
    abilities: BTreeSet<String>,
    lasts: Option<Duration>,
}

impl NewApiToken {
    /// Creates settings for a token without abilities and without an expiry. `name` is the name in
    /// its user's list.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.chars().take(LONGEST_NAME).collect(),
            abilities: BTreeSet::new(),
            lasts: None,
        }
    }

    /// Sets the abilities of the token: `orders.read`, `orders.*`, or `*` for everything.
    pub fn abilities<T: Into<String>>(mut self, abilities: impl IntoIterator<Item = T>) -> Self {
        self.abilities.extend(abilities.into_iter().map(Into::into));
        self
    }

    /// Sets the time after which the token expires.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.lasts = Some(time);
        self
    }
}

/// A token just created.
#[derive(Clone)]
#[non_exhaustive]
pub struct CreatedApiToken {
    /// The token itself: shown to its user once, and stored nowhere.
    pub secret: String,
    /// The stored part of the token.
    pub token: ApiToken,
}

impl std::fmt::Debug for CreatedApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedApiToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A token as a list shows it to its user. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ApiToken {
    /// Id for [`ApiTokens::revoke`]. Nobody can use it as a token.
    pub id: String,
    /// User that the token belongs to.
    pub user: String,
    /// Name given by the user.
    pub name: String,
    /// Abilities of the token.
    pub abilities: BTreeSet<String>,
    /// Time of creation.
    pub created: u64,
    /// Time of expiry, if there is one.
    pub expires: Option<u64>,
    /// Time of the last use, accurate to a minute.
    pub last_used: Option<u64>,
}

impl ApiToken {
    /// Returns whether the token has an ability: by its exact name, by a prefix of it with `.*`, or
    /// by `*`.
    pub fn can(&self, ability: &str) -> bool {
        let above = ability.match_indices('.').map(|(at, _)| format!("{}.*", &ability[..at]));
        ["*".to_owned(), ability.to_owned()]
            .into_iter()
            .chain(above)
            .any(|name| self.abilities.contains(&name))
    }
}

/// Stored form of a token.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    version: u8,
    #[serde(with = "serde_hash")]
    hash: [u8; 32],
    user: String,
    name: String,
    abilities: BTreeSet<String>,
    created: u64,
    expires: Option<u64>,
    last_used: Option<u64>,
}

/// Encodes the hash as hexadecimal digits: serde does not deserialize arrays of more than 32
/// values.
mod serde_hash {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        hash: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a hash has 32 bytes"))
    }
}

impl Record {
    fn read(bytes: &[u8]) -> Result<Self, Error> {
        rmp_serde::from_slice(bytes).map_err(|_| Error::Stored("API token"))
    }

    fn bytes(&self) -> Result<Vec<u8>, Error> {
        rmp_serde::to_vec_named(self).map_err(|_| Error::Stored("API token"))
    }

    fn has_ended(&self) -> bool {
        self.expires.is_some_and(|end| end <= now())
    }

    fn token(self, id: String) -> ApiToken {
        let Self { user, name, abilities, created, expires, last_used, .. } = self;
        ApiToken { id, user, name, abilities, created, expires, last_used }
    }
}

/// Parsed parts of a token.
struct Parts {
    owner: Owner,
    id: String,
    secret: [u8; SECRET],
}

impl ApiTokens {
    /// Keeps tokens in these records. The tokens begin with `token_`.
    pub fn new(records: &Records) -> Self {
        Self { records: records.clone(), prefix: "token".into() }
    }

    /// Sets the prefix of tokens, which people and scanners recognise them by. Tokens with another
    /// prefix are refused.
    ///
    /// # Errors
    /// [`Error::Setting`] unless the prefix is 1 to 20 lower-case letters, digits and underscores.
    pub fn prefix(mut self, prefix: &str) -> Result<Self, Error> {
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if prefix.is_empty() || prefix.len() > 20 || !prefix.bytes().all(is_plain) {
            return Err(Error::Setting(
                "an API token prefix has 1 to 20 lower-case letters, digits and underscores",
            ));
        }
        prefix.clone_into(&mut self.prefix);
        Ok(self)
    }

    /// Returns a regular expression that every token matches, for secret scanners.
    pub fn pattern(&self) -> String {
        format!("{}_[a-z2-7]{{{LETTERS}}}", self.prefix)
    }

    /// Creates a token for a user. The returned secret is the only copy.
    ///
    /// # Errors
    /// [`Error::TooMany`] if the user has 100 tokens; [`Error::Setting`] if the token has more than
    /// 100 abilities, or one of more than 200 bytes; [`Error::OneTimeStore`]; [`Error::Random`].
    pub async fn create(&self, user: &str, new: NewApiToken) -> Result<CreatedApiToken, Error> {
        if new.abilities.len() > MOST_ABILITIES
            || new.abilities.iter().any(|ability| ability.len() > LONGEST_NAME)
        {
            return Err(Error::Setting(
                "an API token has at most 100 abilities of up to 200 bytes each",
            ));
        }
        let (owner, id, secret) = (Owner::of(KIND, user), random::<ID>()?, random::<SECRET>()?);
        let record = Record {
            version: 1,
            hash: Sha256::digest(secret).into(),
            user: user.to_owned(),
            name: new.name,
            abilities: new.abilities,
            created: now(),
            expires: new.lasts.map(|time| now().saturating_add(time.as_secs())),
            last_used: None,
        };
        let text = HEXLOWER.encode(&id);
        if !self.records.store().put(&owner, &text, &record.bytes()?, new.lasts, MOST).await? {
            return Err(Error::TooMany("a user can have up to 100 API tokens; revoke one first"));
        }
        Ok(CreatedApiToken {
            secret: self.letters(&owner, &id, &secret),
            token: record.token(text),
        })
    }

    /// Returns the token, if it is valid, and records its use. `None` does not reveal the reason;
    /// neither should the response.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the answer is unknown. Refuse the request.
    pub async fn verify(&self, secret: &str) -> Result<Option<ApiToken>, Error> {
        let Some(Parts { owner, id, secret }) = self.parts(secret) else { return Ok(None) };
        let Some(bytes) = self.records.store().get(&owner, &id).await? else { return Ok(None) };
        let mut record = Record::read(&bytes)?;
        if !same(&record.hash, &Sha256::digest(secret)) || record.has_ended() {
            return Ok(None);
        }
        if record.last_used.is_none_or(|used| now().saturating_sub(used) >= MARKED) {
            record.last_used = Some(now());
            // Another request may have recorded its use first. A token that was revoked since the
            // read is refused.
            if self.records.store().swap(&owner, &id, &bytes, &record.bytes()?).await?
                == Swapped::Gone
            {
                return Ok(None);
            }
        }
        Ok(Some(record.token(id)))
    }

    /// Returns a user's tokens, newest first. Removes expired ones.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Stored`].
    pub async fn list(&self, user: &str) -> Result<Vec<ApiToken>, Error> {
        let owner = Owner::of(KIND, user);
        let mut tokens = Vec::new();
        for (id, bytes) in self.records.store().list(&owner).await? {
            let record = Record::read(&bytes)?;
            if record.has_ended() {
                self.records.store().remove(&owner, &id).await?;
            } else {
                tokens.push(record.token(id));
            }
        }
        tokens.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        Ok(tokens)
    }

    /// Revokes one token of a user, by its [`ApiToken::id`]. Returns `false` if the token is not
    /// one of the user's.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the token may still be valid.
    pub async fn revoke(&self, user: &str, id: &str) -> Result<bool, Error> {
        self.records.store().remove(&Owner::of(KIND, user), id).await
    }

    /// Revokes all tokens of a user in one step. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the tokens may still be valid.
    pub async fn revoke_all(&self, user: &str) -> Result<u64, Error> {
        self.records.store().remove_all(&Owner::of(KIND, user)).await
    }

    fn letters(&self, owner: &Owner, id: &[u8], secret: &[u8]) -> String {
        let mut bytes = [&owner.0[..], id, secret].concat();
        bytes.extend_from_slice(&self.checksum(&bytes));
        format!("{}_{}", self.prefix, BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    fn parts(&self, text: &str) -> Option<Parts> {
        let letters = text.strip_prefix(&self.prefix)?.strip_prefix('_')?;
        if letters.len() != LETTERS || letters.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let bytes = BASE32_NOPAD.decode(letters.to_ascii_uppercase().as_bytes()).ok()?;
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
        if self.checksum(content) != *checksum {
            return None;
        }
        let (owner, rest) = content.split_first_chunk::<OWNER>()?;
        let (id, secret) = rest.split_first_chunk::<ID>()?;
        Some(Parts {
            owner: Owner(*owner),
            id: HEXLOWER.encode(id),
            secret: secret.try_into().ok()?,
        })
    }

    /// Returns a checksum that detects typing errors; it is not a secret.
    fn checksum(&self, content: &[u8]) -> [u8; CHECKSUM] {
        let digest = Sha256::new().chain_update(&self.prefix).chain_update(content).finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_has_one_spelling_and_typing_errors_are_found() {
        let tokens = ApiTokens::new(&Records::memory()).prefix("shop").unwrap();
        let made = tokens.create("ann", NewApiToken::named("ci").abilities(["a"])).await.unwrap();
        let letters = made.secret.strip_prefix("shop_").unwrap();
        assert_eq!(
            (letters.len(), tokens.pattern()),
            (LETTERS, format!("shop_[a-z2-7]{{{LETTERS}}}"))
        );
        assert!(letters.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b)));
        for n in 0..letters.len() {
            let mut other = letters.as_bytes().to_vec();
            other[n] = if other[n] == b'a' { b'b' } else { b'a' };
            let other = format!("shop_{}", String::from_utf8(other).unwrap());
            assert!(tokens.parts(&other).is_none(), "letter {n}");
        }
        let upper = format!("shop_{}", letters.to_uppercase());
        for bad in [
            "",
            "shop_",
            "shop",
            letters,
            &upper,
            &format!("{} ", made.secret),
            &format!("other_{letters}"),
        ] {
            assert!(tokens.verify(bad).await.unwrap().is_none(), "{bad}");
        }
        assert!(tokens.verify(&made.secret).await.unwrap().is_some());
        assert!(!format!("{made:?}").contains(letters));
        for bad in ["", "Shop", "shop-x", "a b", &"x".repeat(21)] {
            assert!(ApiTokens::new(&Records::memory()).prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn abilities_are_names_or_all_below_one() {
        let token = |abilities: &[&str]| ApiToken {
            id: String::new(),
            user: String::new(),
            name: String::new(),
            abilities: abilities.iter().map(ToString::to_string).collect(),
            created: 0,
            expires: None,
            last_used: None,
        };
        assert!(
            token(&["*"]).can("anything")
                && token(&["orders.*"]).can("orders.read.all")
                && token(&["a"]).can("a")
        );
        for (has, wants) in [
            ("orders.*", "orders"),
            ("orders.read", "orders.*"),
            ("a", "ab"),
            ("a.*", "ab.c"),
            ("", "a"),
        ] {
            assert!(!token(&[has]).can(wants), "{has} {wants}");
        }
    }
}
