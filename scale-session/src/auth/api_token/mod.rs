//! API tokens: long-lived secrets that a user gives to programs, with abilities, an end, and a list in which they can be revoked.
//!
//! | a token | is |
//! | --- | --- |
//! | `shop_` and 84 letters and digits | found by scanners of repositories: [`ApiTokens::pattern`] is the expression to give them |
//! | of another shape, or with a typing error | refused without asking the store: four bytes of it are a checksum |
//! | in the store | a record with the SHA-256 of its secret half (192 random bits): a dump of it opens nothing |
//! | revoked, or past its end | refused by the next request on every server |
//! | used | marked with the time of its last use, once a minute at most |
//!
//! For tokens that services read without asking anybody see [`Access`](super::access); for browsers, sessions.

mod layer;

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::layer::{ApiTokenLayer, Authenticated};
use super::error::Error;
use super::records::{Owner, Records, Swapped};
use super::seal::now;
use super::{random, same};

const KIND: &str = "api-token";
const OWNER: usize = 16;
const ID: usize = 8;
const SECRET: usize = 24;
const CHECKSUM: usize = 4;
/// Letters and digits after the prefix and its underscore.
const LETTERS: usize = (OWNER + ID + SECRET + CHECKSUM) * 8 / 5 + 1;
/// Tokens of one user at most.
const MOST: usize = 100;
/// How long a use is not marked after one that was.
const MARKED: u64 = 60;
const LONGEST_NAME: usize = 200;
const MOST_ABILITIES: usize = 100;

/// Creates, verifies, lists and revokes API tokens. Cloning costs a reference count and a short string.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{ApiTokens, Records, api_token::NewApiToken};
/// use std::time::Duration;
///
/// let tokens = ApiTokens::new(&Records::memory()).prefix("shop")?;
/// let new = NewApiToken::named("nightly build").abilities(["orders.read"]).expires_in(Duration::from_secs(90 * 86_400));
/// let made = tokens.create("user:7", new).await?;
/// println!("copy it now, it is not shown again: {}", made.secret);
///
/// let token = tokens.verify(&made.secret).await?.expect("it is good");
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

/// A token to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewApiToken {
    name: String,
    abilities: BTreeSet<String>,
    lasts: Option<Duration>,
}

impl NewApiToken {
    /// A token without abilities and without an end, called so in its user's list.
    pub fn named(name: &str) -> Self {
        Self { name: name.chars().take(LONGEST_NAME).collect(), abilities: BTreeSet::new(), lasts: None }
    }

    /// What it may be used for: `orders.read`, `orders.*`, or `*` for everything.
    pub fn abilities<T: Into<String>>(mut self, abilities: impl IntoIterator<Item = T>) -> Self {
        self.abilities.extend(abilities.into_iter().map(Into::into));
        self
    }

    /// Ends after that time.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.lasts = Some(time);
        self
    }
}

/// A token just created.
#[derive(Clone)]
pub struct CreatedApiToken {
    /// The token itself: shown to its user once, and kept nowhere.
    pub secret: String,
    /// What is kept of it.
    pub token: ApiToken,
}

impl std::fmt::Debug for CreatedApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedApiToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A token as its user sees it in a list. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ApiToken {
    /// For [`ApiTokens::revoke`]. It lets nobody in.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// What its user calls it.
    pub name: String,
    /// What it may be used for.
    pub abilities: BTreeSet<String>,
    /// When it was created.
    pub created: u64,
    /// When it ends, if it does.
    pub expires: Option<u64>,
    /// When it was last used, to the minute.
    pub last_used: Option<u64>,
}

impl ApiToken {
    /// Returns whether the token has an ability: by its name, by one that ends in `.*` above it, or by `*`.
    pub fn can(&self, ability: &str) -> bool {
        let above = ability.match_indices('.').map(|(at, _)| format!("{}.*", &ability[..at]));
        ["*".to_owned(), ability.to_owned()].into_iter().chain(above).any(|name| self.abilities.contains(&name))
    }
}

/// A token as it is kept.
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

/// As a string of hexadecimal digits: arrays of over 32 values are no sequence that serde reads.
mod serde_hash {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
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

/// What the letters of a token stand for.
struct Parts {
    owner: Owner,
    id: String,
    secret: [u8; SECRET],
}

impl ApiTokens {
    /// Keeps tokens among these records. They begin with `token_`.
    pub fn new(records: &Records) -> Self {
        Self { records: records.clone(), prefix: "token".into() }
    }

    /// Sets what tokens begin with, so that people and scanners see what they are. Tokens made with another prefix are refused.
    ///
    /// # Errors
    /// [`Error::Setting`] for a prefix that is not 1 to 20 lower-case letters, digits and underscores.
    pub fn prefix(mut self, prefix: &str) -> Result<Self, Error> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if prefix.is_empty() || prefix.len() > 20 || !prefix.bytes().all(is_plain) {
            return Err(Error::Setting("a token's prefix has 1 to 20 lower-case letters, digits and underscores"));
        }
        prefix.clone_into(&mut self.prefix);
        Ok(self)
    }

    /// Returns a regular expression that every token matches: for scanners that look for secrets where they should not be.
    pub fn pattern(&self) -> String {
        format!("{}_[a-z2-7]{{{LETTERS}}}", self.prefix)
    }

    /// Creates a token for a user. The secret in the answer is the only copy.
    ///
    /// # Errors
    /// [`Error::TooMany`] if the user has 100 tokens; [`Error::Setting`] if the token has more than 100 abilities; [`Error::Ledger`]; [`Error::Random`].
    pub async fn create(&self, user: &str, new: NewApiToken) -> Result<CreatedApiToken, Error> {
        if new.abilities.len() > MOST_ABILITIES || new.abilities.iter().any(|ability| ability.len() > LONGEST_NAME) {
            return Err(Error::Setting("an API token has at most 100 abilities of 200 bytes each"));
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
            return Err(Error::TooMany("a user has at most 100 API tokens; revoke one first"));
        }
        Ok(CreatedApiToken { secret: self.letters(&owner, &id, &secret), token: record.token(text) })
    }

    /// Returns the token, if it is good, and marks that it was used. `None` does not say why; neither should an answer.
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know. Let nobody in.
    pub async fn verify(&self, secret: &str) -> Result<Option<ApiToken>, Error> {
        let Some(Parts { owner, id, secret }) = self.parts(secret) else { return Ok(None) };
        let Some(bytes) = self.records.store().get(&owner, &id).await? else { return Ok(None) };
        let mut record = Record::read(&bytes)?;
        if !same(&record.hash, &Sha256::digest(secret)) || record.has_ended() {
            return Ok(None);
        }
        if record.last_used.is_none_or(|used| now().saturating_sub(used) >= MARKED) {
            record.last_used = Some(now());
            // Revoked since it was read: then it is not let in either. Another request may have marked it first.
            if self.records.store().swap(&owner, &id, &bytes, &record.bytes()?).await? == Swapped::Gone {
                return Ok(None);
            }
        }
        Ok(Some(record.token(id)))
    }

    /// Returns a user's tokens, the newest first. Those that have ended are removed.
    ///
    /// # Errors
    /// [`Error::Ledger`]; [`Error::Stored`].
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

    /// Ends one token of a user, by its [`ApiToken::id`]. Returns `false` if it is none of theirs.
    ///
    /// # Errors
    /// [`Error::Ledger`]: it may live on.
    pub async fn revoke(&self, user: &str, id: &str) -> Result<bool, Error> {
        self.records.store().remove(&Owner::of(KIND, user), id).await
    }

    /// Ends all tokens of a user in one step. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Ledger`]: they may live on.
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
        Some(Parts { owner: Owner(*owner), id: HEXLOWER.encode(id), secret: secret.try_into().ok()? })
    }

    /// Finds typing errors; no secret.
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
        assert_eq!((letters.len(), tokens.pattern()), (LETTERS, format!("shop_[a-z2-7]{{{LETTERS}}}")));
        assert!(letters.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b)));
        for n in 0..letters.len() {
            let mut other = letters.as_bytes().to_vec();
            other[n] = if other[n] == b'a' { b'b' } else { b'a' };
            let other = format!("shop_{}", String::from_utf8(other).unwrap());
            assert!(tokens.parts(&other).is_none(), "letter {n}");
        }
        let upper = format!("shop_{}", letters.to_uppercase());
        for bad in ["", "shop_", "shop", letters, &upper, &format!("{} ", made.secret), &format!("other_{letters}")] {
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
        assert!(token(&["*"]).can("anything") && token(&["orders.*"]).can("orders.read.all") && token(&["a"]).can("a"));
        for (has, wants) in [("orders.*", "orders"), ("orders.read", "orders.*"), ("a", "ab"), ("a.*", "ab.c"), ("", "a")] {
            assert!(!token(&[has]).can(wants), "{has} {wants}");
        }
    }
}
