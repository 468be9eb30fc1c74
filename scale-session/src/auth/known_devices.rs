//! Devices that a user has signed in on before, told by a cookie: for a notice of a sign-in on a new one.

use std::time::Duration;

use super::error::Error;
use super::ledger::Ledger;
use super::random;
use super::seal::{Keys, Said, now};

const PURPOSE: &str = "known-device";
/// Users of one browser that are remembered.
const MOST: usize = 5;
const LONGEST: usize = 8 * 1_024;

/// Tells new devices from known ones. Nothing is stored: the cookie is signed.
///
/// ```
/// # fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{KnownDevices, Ledger, token::Keys};
/// use std::time::Duration;
///
/// let devices = KnownDevices::new(Keys::new(&[7; 32])?, &Ledger::memory(), Duration::from_secs(365 * 86_400));
/// // At a sign-in, with the value of a cookie that the application keeps apart from the session's:
/// let cookie: Option<&str> = None;
/// if !devices.knows(cookie, "user:7") {
///     // Send `AccountLinks::new_device`, and set this cookie: `HttpOnly; Secure; SameSite=Lax`.
///     let cookie = devices.remember(cookie, "user:7")?;
///     assert!(devices.knows(Some(&cookie), "user:7") && !devices.knows(Some(&cookie), "user:8"));
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct KnownDevices {
    keys: Keys,
    binding: String,
    time: Duration,
}

impl KnownDevices {
    /// Knows a device for `time` after its last sign-in. The ledger says which application it is.
    pub fn new(keys: Keys, ledger: &Ledger, time: Duration) -> Self {
        Self { keys, binding: ledger.binding(""), time }
    }

    /// Returns whether that user has signed in with this cookie's browser.
    pub fn knows(&self, cookie: Option<&str>, user: &str) -> bool {
        self.good(cookie).any(|(_, said)| said.subject == user)
    }

    /// Returns the cookie's next value: this user is known by it, too.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Setting`] for a user's id of over 600 bytes.
    pub fn remember(&self, cookie: Option<&str>, user: &str) -> Result<String, Error> {
        let said =
            Said { expires: now().saturating_add(self.time.as_secs()), nonce: random()?, number: 0, subject: user.to_owned() };
        let mut all = vec![said.seal(&self.keys, PURPOSE, &self.binding)?];
        all.extend(self.good(cookie).filter(|(_, said)| said.subject != user).map(|(text, _)| text.to_owned()).take(MOST - 1));
        while all.iter().map(|text| text.len() + 1).sum::<usize>() > 4_000 && all.len() > 1 {
            all.pop();
        }
        Ok(all.join("."))
    }

    fn good<'c>(&self, cookie: Option<&'c str>) -> impl Iterator<Item = (&'c str, Said)> {
        let texts = cookie.filter(|cookie| cookie.len() <= LONGEST).unwrap_or_default().split('.').take(MOST);
        texts.filter_map(|text| Some((text, Said::open(text, &self.keys, PURPOSE, &self.binding)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_known_by_the_last_users_of_it() {
        let made = |key: u8| KnownDevices::new(Keys::new(&[key; 32]).unwrap(), &Ledger::memory(), Duration::from_hours(1));
        let (devices, others) = (made(1), made(2));
        let mut cookie: Option<String> = None;
        for n in 0..7 {
            assert!(!devices.knows(cookie.as_deref(), &n.to_string()));
            cookie = Some(devices.remember(cookie.as_deref(), &n.to_string()).unwrap());
        }
        let known: Vec<bool> = (0..7).map(|n| devices.knows(cookie.as_deref(), &n.to_string())).collect();
        assert_eq!(known, [false, false, true, true, true, true, true]);
        assert!(!others.knows(cookie.as_deref(), "6"));
        for bad in ["", ".", "x.y", &"x".repeat(100_000)] {
            assert!(!devices.knows(Some(bad), "6"));
            assert!(devices.knows(Some(&devices.remember(Some(bad), "6").unwrap()), "6"));
        }
        let ended = KnownDevices::new(Keys::new(&[1; 32]).unwrap(), &Ledger::memory(), Duration::ZERO);
        assert!(!ended.knows(Some(&ended.remember(None, "6").unwrap()), "6"));
        let long = "u".repeat(600);
        let cookie = (0..5).fold(None, |cookie: Option<String>, n| {
            Some(devices.remember(cookie.as_deref(), &format!("{}{n}", &long[1..])).unwrap())
        });
        assert!(cookie.is_some_and(|cookie| cookie.len() <= 4_000));
    }
}
