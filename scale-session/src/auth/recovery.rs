//! Codes on paper, for who has lost the phone: each good once.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use super::error::Error;
use super::ledger::Ledger;
use super::{random, same};

/// How many are made.
const COUNT: usize = 10;
/// Bytes of a code: over 112 bits, so a fast hash of them is enough (ASVS 6.5.2).
const BYTES: usize = 15;

/// New codes, to be shown once, and what to store of them.
#[derive(Clone)]
pub struct Recovery {
    /// For the user: six groups of four.
    pub codes: Vec<String>,
    /// To be stored in their place.
    pub hashes: Vec<String>,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recovery(secret)")
    }
}

/// Makes ten codes; those made before are to be forgotten.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{Ledger, recovery};
///
/// let (ledger, made) = (Ledger::memory(), recovery::generate()?);
/// let used = recovery::redeem(&ledger, "ann", &made.codes[3], &made.hashes).await?;
/// assert_eq!(used, Some(3)); // remove it from what is stored
/// assert_eq!(recovery::redeem(&ledger, "ann", &made.codes[3], &made.hashes).await?, None);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Random`].
pub fn generate() -> Result<Recovery, Error> {
    let mut made = Recovery { codes: Vec::new(), hashes: Vec::new() };
    for _ in 0..COUNT {
        let text = BASE32_NOPAD.encode(&random::<BYTES>()?);
        let groups: Vec<&str> = [0, 4, 8, 12, 16, 20].into_iter().filter_map(|from| text.get(from..from + 4)).collect();
        made.codes.push(groups.join("-"));
        made.hashes.push(hashed(&text));
    }
    Ok(made)
}

/// The number of the code among those stored, if it is one of them and has not been used. Remove it there: the ledger remembers it for a
/// day, to decide between requests at once.
///
/// # Errors
/// [`Error::Ledger`].
pub async fn redeem(ledger: &Ledger, user: &str, code: &str, hashes: &[String]) -> Result<Option<usize>, Error> {
    let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(64).map(|c| c.to_ascii_uppercase()).collect();
    let hash = hashed(&code);
    let mut found = None;
    for (n, stored) in hashes.iter().enumerate() {
        if same(stored.as_bytes(), hash.as_bytes()) {
            found = Some(n);
        }
    }
    let Some(found) = found else { return Ok(None) };
    let day = std::time::Duration::from_hours(24);
    Ok(ledger.claim("recovery", &format!("{user}\0{hash}"), day).await?.then_some(found))
}

fn hashed(code: &str) -> String {
    BASE32_NOPAD.encode(&Sha256::digest(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[tokio::test]
    async fn recovery_codes_are_random_and_stored_hashed() {
        let (made, ledger) = (generate().unwrap(), Ledger::memory());
        assert_eq!(made.codes.iter().chain(&made.hashes).collect::<HashSet<_>>().len(), 20);
        for (code, hash) in made.codes.iter().zip(&made.hashes) {
            assert!(code.len() == 29 && !hash.contains(&code.replace('-', "")), "{code}");
        }
        let sloppy = made.codes[0].to_lowercase().replace('-', " ");
        assert_eq!(redeem(&ledger, "ann", &sloppy, &made.hashes).await.unwrap(), Some(0));
        assert_eq!(redeem(&ledger, "ann", &made.codes[0], &made.hashes).await.unwrap(), None, "used");
        // What a dump of the store holds opens nothing.
        for hash in &made.hashes {
            assert_eq!(redeem(&ledger, "ann", hash, &made.hashes).await.unwrap(), None);
        }
        assert_eq!(redeem(&ledger, "ann", "", &made.hashes).await.unwrap(), None);
    }
}
