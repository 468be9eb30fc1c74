//! Links by mail: to reset a password, to confirm an address. Good once, for a while, and only as long as what they were made for has not
//! changed.
//!
//! Nothing is stored when one is made. It is signed, and bound to what the application says: for a reset to the address it is sent to
//! *and* the present password hash, so that a link ends when the password or the address changes (CVE-2026-32700). The ledger sees to it
//! that of several requests at once one succeeds.

use std::time::Duration;

use super::error::Error;
use super::ledger::Ledger;
use super::random;
pub use super::seal::Keys;
use super::seal::{Said, now};

/// Makes and redeems tokens. Cloning copies the keys.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::{Ledger, Tokens, token::Keys};
///
/// let tokens = Tokens::new(Keys::new(&[7; 32])?, &Ledger::memory());
/// // Of the account as it is now.
/// let (email, password_hash) = ("ann@example.com", "$argon2id$…");
/// let bound = [email, password_hash];
/// let token = tokens.make("reset", "user:7", &bound, Duration::from_secs(3_600))?; // mail it
///
/// let user = Tokens::subject(&token).unwrap(); // load that account; it is not believed yet
/// assert!(tokens.redeem("reset", &token, &bound).await?.is_some());
/// assert!(tokens.redeem("reset", &token, &bound).await?.is_none()); // once
/// # assert_eq!(user, "user:7");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Tokens {
    keys: Keys,
    ledger: Ledger,
}

impl Tokens {
    /// With these keys.
    pub fn new(keys: Keys, ledger: &Ledger) -> Self {
        Self { keys, ledger: ledger.clone() }
    }

    /// A token for a subject (an account's id, at most 600 bytes), good for `time`.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Setting`] for a subject that is too long.
    pub fn make(&self, purpose: &str, subject: &str, bound: &[&str], time: Duration) -> Result<String, Error> {
        let said =
            Said { expires: now().saturating_add(time.as_secs()), nonce: random()?, number: 0, subject: subject.to_owned() };
        said.seal(&self.keys, &named(purpose), &self.ledger.binding(&joined(bound)))
    }

    /// For whom a token says it is: to find what it is bound to. Anybody can have written it.
    pub fn subject(token: &str) -> Option<String> {
        Said::peek(token).map(|said| said.subject)
    }

    /// The subject, if [`redeem`](Self::redeem) would say so now; the token stays good. For the page that a link leads to, which scanners of
    /// mails open too: let it show a form whose `POST` redeems.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn peek(&self, purpose: &str, token: &str, bound: &[&str]) -> Result<Option<String>, Error> {
        let Some(said) = Said::open(token, &self.keys, &named(purpose), &self.ledger.binding(&joined(bound))) else {
            return Ok(None);
        };
        let claimed = self.ledger.claimed("token", &data_encoding::HEXLOWER.encode(&said.nonce)).await?;
        Ok((!claimed).then_some(said.subject))
    }

    /// The subject, if the token is good: made here, for this purpose, bound to this, not expired, and not redeemed before. `None` does not
    /// say which of them it is; neither should an answer.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn redeem(&self, purpose: &str, token: &str, bound: &[&str]) -> Result<Option<String>, Error> {
        let Some(said) = Said::open(token, &self.keys, &named(purpose), &self.ledger.binding(&joined(bound))) else {
            return Ok(None);
        };
        let nonce = data_encoding::HEXLOWER.encode(&said.nonce);
        // Remembered longer than it is good, clocks being what they are.
        let claimed = self.ledger.claim("token", &nonce, said.left() + Duration::from_hours(1)).await?;
        Ok(claimed.then_some(said.subject))
    }
}

fn named(purpose: &str) -> String {
    format!("token\0{purpose}")
}

/// Each with its length: two lists never say the same.
fn joined(bound: &[&str]) -> String {
    bound.iter().fold(String::new(), |all, part| all + &format!("{}:{part}", part.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_good_for_what_it_was_made_for() {
        let tokens = Tokens::new(Keys::new(&[1; 32]).unwrap(), &Ledger::memory());
        let hour = Duration::from_hours(1);
        let make = |purpose: &str| tokens.make(purpose, "user:7", &["ann@example.com", "hash"], hour).unwrap();
        let token = make("reset");
        for (purpose, bound) in [
            ("confirm", &["ann@example.com", "hash"][..]),
            ("reset", &["ann@example.org", "hash"]),
            ("reset", &["ann@example.com", "new hash"]),
            ("reset", &["ann@example.comhash"]),
            ("reset", &["ann@example.com"]),
            ("reset", &[]),
        ] {
            assert_eq!(tokens.redeem(purpose, &token, bound).await.unwrap(), None, "{purpose} {bound:?}");
        }
        let bound = ["ann@example.com", "hash"];
        for _ in 0..3 {
            assert_eq!(tokens.peek("reset", &token, &bound).await.unwrap().as_deref(), Some("user:7"), "a look uses nothing up");
        }
        assert_eq!(tokens.peek("confirm", &token, &bound).await.unwrap(), None);
        assert_eq!(
            tokens.redeem("reset", &token, &bound).await.unwrap().as_deref(),
            Some("user:7"),
            "wrong tries did not use it up"
        );
        assert_eq!(tokens.redeem("reset", &token, &bound).await.unwrap(), None);
        assert_eq!(tokens.peek("reset", &token, &bound).await.unwrap(), None);
        assert!(tokens.redeem("reset", &make("reset"), &bound).await.unwrap().is_some(), "another one");
        let expired = tokens.make("reset", "user:7", &bound, Duration::ZERO).unwrap();
        assert_eq!(tokens.redeem("reset", &expired, &bound).await.unwrap(), None);
        let others = Tokens::new(Keys::new(&[2; 32]).unwrap(), &Ledger::memory());
        assert_eq!(others.redeem("reset", &make("reset"), &bound).await.unwrap(), None);
        assert_eq!(tokens.redeem("reset", &"x".repeat(100_000), &bound).await.unwrap(), None);
    }
}
