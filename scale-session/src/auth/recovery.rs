//! Recovery codes on paper, for users who have lost their phone. Each code works once.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use super::error::Error;
use super::one_time_store::OneTimeStore;
use super::{random, same};

/// Number of codes created at a time.
const COUNT: usize = 10;
/// Bytes of a code: more than 112 bits, so a fast hash is sufficient (ASVS 6.5.2).
const BYTES: usize = 15;

/// New codes, to be shown once, and their hashes, to be stored.
#[derive(Clone)]
pub struct Recovery {
    /// Codes for the user: six groups of four characters.
    pub codes: Vec<String>,
    /// Hashes to be stored instead of the codes.
    pub hashes: Vec<String>,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recovery(secret)")
    }
}

/// Creates ten codes. Discard all codes created before.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{OneTimeStore, recovery};
///
/// let (one_time, made) = (OneTimeStore::memory(), recovery::generate()?);
/// let used = recovery::redeem(&one_time, "ann", &made.codes[3], &made.hashes).await?;
/// assert_eq!(used, Some(3)); // remove it from the stored hashes
/// assert_eq!(recovery::redeem(&one_time, "ann", &made.codes[3], &made.hashes).await?, None);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Random`].
pub fn generate() -> Result<Recovery, Error> {
    let mut made = Recovery { codes: Vec::new(), hashes: Vec::new() };
    for _ in 0..COUNT {
        let text = BASE32_NOPAD.encode(&random::<BYTES>()?);
        let groups: Vec<&str> =
            [0, 4, 8, 12, 16, 20].into_iter().filter_map(|from| text.get(from..from + 4)).collect();
        made.codes.push(groups.join("-"));
        made.hashes.push(hashed(&text));
    }
    Ok(made)
}

/// Returns the index of the code among the stored hashes, if the code is valid and unused. Remove
/// that hash: the one-time store remembers it for a day only, to decide between concurrent
/// requests.
///
/// # Errors
/// [`Error::OneTimeStore`].
pub async fn redeem(
    one_time: &OneTimeStore,
    user: &str,
    code: &str,
    hashes: &[String],
) -> Result<Option<usize>, Error> {
    let code: String = code
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .map(|c| c.to_ascii_uppercase())
        .collect();
    let hash = hashed(&code);
    let mut found = None;
    for (n, stored) in hashes.iter().enumerate() {
        if same(stored.as_bytes(), hash.as_bytes()) {
            found = Some(n);
        }
    }
    let Some(found) = found else { return Ok(None) };
    let day = std::time::Duration::from_hours(24);
    Ok(one_time.claim("recovery", &format!("{user}\0{hash}"), day).await?.then_some(found))
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
        let (made, one_time) = (generate().unwrap(), OneTimeStore::memory());
        assert_eq!(made.codes.iter().chain(&made.hashes).collect::<HashSet<_>>().len(), 20);
        for (code, hash) in made.codes.iter().zip(&made.hashes) {
            assert!(code.len() == 29 && !hash.contains(&code.replace('-', "")), "{code}");
        }
        let sloppy = made.codes[0].to_lowercase().replace('-', " ");
        assert_eq!(redeem(&one_time, "ann", &sloppy, &made.hashes).await.unwrap(), Some(0));
        assert_eq!(
            redeem(&one_time, "ann", &made.codes[0], &made.hashes).await.unwrap(),
            None,
            "used"
        );
        // Nobody can redeem a stored hash.
        for hash in &made.hashes {
            assert_eq!(redeem(&one_time, "ann", hash, &made.hashes).await.unwrap(), None);
        }
        assert_eq!(redeem(&one_time, "ann", "", &made.hashes).await.unwrap(), None);
    }
}
