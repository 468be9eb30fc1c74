//! Mailed links: to reset a password, to confirm an address. A link works once, for a limited time,
//! and only until the values it is bound to change.
//!
//! Nothing is stored when a token is created. The token is signed, and bound to values that the
//! application chooses: for a reset the recipient's address *and* the current password hash, so
//! that a link ends when the password or the address changes (CVE-2026-32700). The one-time store
//! makes sure that only one of several concurrent requests succeeds.

use std::time::Duration;

use super::error::Error;
use super::one_time_store::OneTimeStore;
use super::random;
pub use super::signed_token::Keys;
use super::signed_token::{Claims, now};

/// Creates and redeems tokens. A clone copies the keys.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::{OneTimeStore, Tokens, token::Keys};
///
/// let tokens = Tokens::new(Keys::new(&[7; 32])?, &OneTimeStore::memory());
/// // Current values of the account.
/// let (email, password_hash) = ("ann@example.com", "$argon2id$…");
/// let bound = [email, password_hash];
/// let token = tokens.make("reset", "user:7", &bound, Duration::from_secs(3_600))?; // mail it
///
/// let user = Tokens::subject(&token).unwrap(); // load that account; not verified yet
/// assert!(tokens.redeem("reset", &token, &bound).await?.is_some());
/// assert!(tokens.redeem("reset", &token, &bound).await?.is_none()); // once
/// # assert_eq!(user, "user:7");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Tokens {
    keys: Keys,
    one_time: OneTimeStore,
}

impl Tokens {
    /// Creates and redeems tokens with these keys.
    pub fn new(keys: Keys, one_time: &OneTimeStore) -> Self {
        Self { keys, one_time: one_time.clone() }
    }

    /// Creates a token for a subject (an account's id, at most 600 bytes), valid for `time`.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Setting`] for a subject that is too long.
    pub fn make(
        &self,
        purpose: &str,
        subject: &str,
        bound: &[&str],
        time: Duration,
    ) -> Result<String, Error> {
        let claims = Claims {
            expires: now().saturating_add(time.as_secs()),
            nonce: random()?,
            number: 0,
            subject: subject.to_owned(),
        };
        claims.sign(&self.keys, &named(purpose), &self.one_time.binding(&joined(bound)))
    }

    /// Returns the subject that a token claims, unverified, to find the values that the token is
    /// bound to. Anybody can have written it.
    pub fn subject(token: &str) -> Option<String> {
        Claims::decode_unverified(token).map(|claims| claims.subject)
    }

    /// Returns the subject, if [`redeem`](Self::redeem) would succeed now. The token stays valid.
    /// For the page that a link leads to, which mail scanners open as well: show a form there whose
    /// `POST` redeems.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn peek(
        &self,
        purpose: &str,
        token: &str,
        bound: &[&str],
    ) -> Result<Option<String>, Error> {
        let Some(claims) = Claims::verify(
            token,
            &self.keys,
            &named(purpose),
            &self.one_time.binding(&joined(bound)),
        ) else {
            return Ok(None);
        };
        let claimed =
            self.one_time.claimed("token", &data_encoding::HEXLOWER.encode(&claims.nonce)).await?;
        Ok((!claimed).then_some(claims.subject))
    }

    /// Returns the subject, if the token is valid: created here, for this purpose, with this
    /// binding, not expired, and not redeemed before. `None` does not reveal the reason; neither
    /// should the response.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn redeem(
        &self,
        purpose: &str,
        token: &str,
        bound: &[&str],
    ) -> Result<Option<String>, Error> {
        let Some(claims) = Claims::verify(
            token,
            &self.keys,
            &named(purpose),
            &self.one_time.binding(&joined(bound)),
        ) else {
            return Ok(None);
        };
        let nonce = data_encoding::HEXLOWER.encode(&claims.nonce);
        // The claim outlives the token by an hour, because clocks differ.
        let claimed =
            self.one_time.claim("token", &nonce, claims.left() + Duration::from_hours(1)).await?;
        Ok(claimed.then_some(claims.subject))
    }
}

fn named(purpose: &str) -> String {
    format!("token\0{purpose}")
}

/// Prefixes each part with its length, so that different lists never give the same text.
fn joined(bound: &[&str]) -> String {
    bound.iter().fold(String::new(), |all, part| all + &format!("{}:{part}", part.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_good_for_what_it_was_made_for() {
        let tokens = Tokens::new(Keys::new(&[1; 32]).unwrap(), &OneTimeStore::memory());
        let hour = Duration::from_hours(1);
        let make = |purpose: &str| {
            tokens.make(purpose, "user:7", &["ann@example.com", "hash"], hour).unwrap()
        };
        let token = make("reset");
        for (purpose, bound) in [
            ("confirm", &["ann@example.com", "hash"][..]),
            ("reset", &["ann@example.org", "hash"]),
            ("reset", &["ann@example.com", "new hash"]),
            ("reset", &["ann@example.comhash"]),
            ("reset", &["ann@example.com"]),
            ("reset", &[]),
        ] {
            assert_eq!(
                tokens.redeem(purpose, &token, bound).await.unwrap(),
                None,
                "{purpose} {bound:?}"
            );
        }
        let bound = ["ann@example.com", "hash"];
        for _ in 0..3 {
            assert_eq!(
                tokens.peek("reset", &token, &bound).await.unwrap().as_deref(),
                Some("user:7"),
                "a look uses nothing up"
            );
        }
        assert_eq!(tokens.peek("confirm", &token, &bound).await.unwrap(), None);
        assert_eq!(
            tokens.redeem("reset", &token, &bound).await.unwrap().as_deref(),
            Some("user:7"),
            "wrong tries did not use it up"
        );
        assert_eq!(tokens.redeem("reset", &token, &bound).await.unwrap(), None);
        assert_eq!(tokens.peek("reset", &token, &bound).await.unwrap(), None);
        assert!(
            tokens.redeem("reset", &make("reset"), &bound).await.unwrap().is_some(),
            "another one"
        );
        let expired = tokens.make("reset", "user:7", &bound, Duration::ZERO).unwrap();
        assert_eq!(tokens.redeem("reset", &expired, &bound).await.unwrap(), None);
        let others = Tokens::new(Keys::new(&[2; 32]).unwrap(), &OneTimeStore::memory());
        assert_eq!(others.redeem("reset", &make("reset"), &bound).await.unwrap(), None);
        assert_eq!(tokens.redeem("reset", &"x".repeat(100_000), &bound).await.unwrap(), None);
    }
}
