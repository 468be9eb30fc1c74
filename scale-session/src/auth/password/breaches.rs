//! Passwords that were found in breaches, looked up by k-anonymity: only five digits of a hash
//! leave the server.

use std::error::Error as StdError;
use std::future::Future;

use data_encoding::HEXUPPER;
use sha1::{Digest, Sha1};

use crate::auth::error::Error;

/// Maximum length of a response. A response of Have I Been Pwned has about 1,000 lines.
const LONGEST_ANSWER: usize = 4 * 1_024 * 1_024;

/// Queries a list of breached passwords, such as `https://api.pwnedpasswords.com/range/{prefix}`,
/// through the application's own HTTP client. Send `Add-Padding: true`, and set a time-out and a
/// limit for the response.
pub trait BreachedPasswords: Send + Sync {
    /// Returns the lines `SUFFIX:COUNT` of all hashes that begin with these five hexadecimal
    /// digits.
    fn range(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<String, Box<dyn StdError + Send + Sync>>> + Send;
}

/// Returns how often a password was found in breaches. Refuse the password unless the result is 0.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::password::{BreachedPasswords, breaches};
///
/// struct Client; // for example of reqwest
/// impl BreachedPasswords for Client {
///     async fn range(
///         &self,
///         prefix: &str,
///     ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
///         assert_eq!(prefix, "5BAA6");
///         Ok("1E4C9B93F3F0682250B6CF8331B7EE68FD8:10434004\r\n".into())
///     }
/// }
/// assert_eq!(breaches(&Client, "password").await?, 10_434_004);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Breaches`] if the list does not answer. Most sites then accept the password, and check
/// again at the next sign-in.
pub async fn breaches(list: &impl BreachedPasswords, password: &str) -> Result<u64, Error> {
    let hash = HEXUPPER.encode(&Sha1::digest(password.as_bytes()));
    let (prefix, suffix) = hash.split_at(5);
    let answer = list.range(prefix).await.map_err(Error::Breaches)?;
    if answer.len() > LONGEST_ANSWER {
        return Err(Error::Breaches("the response is longer than 4 MiB".into()));
    }
    let count = |line: &str| {
        let (known, count) = line.trim().split_once(':')?;
        known.eq_ignore_ascii_case(suffix).then(|| count.trim().parse::<u64>().ok())?
    };
    Ok(answer.lines().find_map(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct List(Result<&'static str, &'static str>);

    impl BreachedPasswords for List {
        async fn range(&self, _: &str) -> Result<String, Box<dyn StdError + Send + Sync>> {
            self.0.map(ToOwned::to_owned).map_err(Into::into)
        }
    }

    #[tokio::test]
    async fn breached_passwords_are_found_by_the_rest_of_their_hash() {
        let ask = async |answer| breaches(&List(answer), "password").await.ok();
        assert_eq!(
            ask(Ok(
                "0018A45C4D1DEF81644B54AB7F969B88D65:1\n1e4c9b93f3f0682250b6cf8331b7ee68fd8: 7 "
            ))
            .await,
            Some(7)
        );
        for none in [
            "", "nonsense", ":::", "1E4C9B93F3F0682250B6CF8331B7EE68FD8",
            "1E4C9B93F3F0682250B6CF8331B7EE68FD8:0", "1E4C9:5",
        ] {
            assert_eq!(ask(Ok(none)).await, Some(0), "{none}");
        }
        assert_eq!(ask(Err("down")).await, None);
    }
}
