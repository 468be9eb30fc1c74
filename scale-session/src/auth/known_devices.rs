//! Devices that a user has signed in on before, recognised by a cookie: for notices of sign-ins on
//! new devices.

use std::time::Duration;

use super::error::Error;
use super::one_time_store::OneTimeStore;
use super::random;
use super::signed_token::{Claims, Keys, now};

const PURPOSE: &str = "known-device";
/// Maximum number of users remembered per browser.
const MOST: usize = 5;
const LONGEST: usize = 8 * 1_024;

/// Distinguishes new devices from known ones. The server stores nothing: the cookie is signed.
///
/// ```
/// # fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{KnownDevices, OneTimeStore, token::Keys};
/// use std::time::Duration;
///
/// let devices = KnownDevices::new(
///     Keys::new(&[7; 32])?, &OneTimeStore::memory(), Duration::from_secs(365 * 86_400),
/// );
/// // At a sign-in, with the value of a cookie of the application, separate from the session's:
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
    /// Remembers a device for `time` after its last sign-in. The one-time store only provides the
    /// application's name.
    pub fn new(keys: Keys, one_time: &OneTimeStore, time: Duration) -> Self {
        Self { keys, binding: one_time.binding(""), time }
    }

    /// Returns whether the user has signed in with this cookie's browser before.
    pub fn knows(&self, cookie: Option<&str>, user: &str) -> bool {
        self.good(cookie).any(|(_, claims)| claims.subject == user)
    }

    /// Returns the cookie's next value, which includes this user.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Setting`] for a user id of more than 600 bytes.
    pub fn remember(&self, cookie: Option<&str>, user: &str) -> Result<String, Error> {
        let claims = Claims {
            expires: now().saturating_add(self.time.as_secs()),
            nonce: random()?,
            number: 0,
            subject: user.to_owned(),
        };
        let mut all = vec![claims.sign(&self.keys, PURPOSE, &self.binding)?];
        all.extend(
            self.good(cookie)
                .filter(|(_, claims)| claims.subject != user)
                .map(|(text, _)| text.to_owned())
                .take(MOST - 1),
        );
        while all.iter().map(|text| text.len() + 1).sum::<usize>() > 4_000 && all.len() > 1 {
            all.pop();
        }
        Ok(all.join("."))
    }

    fn good<'c>(&self, cookie: Option<&'c str>) -> impl Iterator<Item = (&'c str, Claims)> {
        let texts = cookie
            .filter(|cookie| cookie.len() <= LONGEST)
            .unwrap_or_default()
            .split('.')
            .take(MOST);
        texts.filter_map(|text| {
            Some((text, Claims::verify(text, &self.keys, PURPOSE, &self.binding)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_known_by_the_last_users_of_it() {
        let made = |key: u8| {
            KnownDevices::new(
                Keys::new(&[key; 32]).unwrap(),
                &OneTimeStore::memory(),
                Duration::from_hours(1),
            )
        };
        let (devices, others) = (made(1), made(2));
        let mut cookie: Option<String> = None;
        for n in 0..7 {
            assert!(!devices.knows(cookie.as_deref(), &n.to_string()));
            cookie = Some(devices.remember(cookie.as_deref(), &n.to_string()).unwrap());
        }
        let known: Vec<bool> =
            (0..7).map(|n| devices.knows(cookie.as_deref(), &n.to_string())).collect();
        assert_eq!(known, [false, false, true, true, true, true, true]);
        assert!(!others.knows(cookie.as_deref(), "6"));
        for bad in ["", ".", "x.y", &"x".repeat(100_000)] {
            assert!(!devices.knows(Some(bad), "6"));
            assert!(devices.knows(Some(&devices.remember(Some(bad), "6").unwrap()), "6"));
        }
        let ended = KnownDevices::new(
            Keys::new(&[1; 32]).unwrap(),
            &OneTimeStore::memory(),
            Duration::ZERO,
        );
        assert!(!ended.knows(Some(&ended.remember(None, "6").unwrap()), "6"));
        let long = "u".repeat(600);
        let cookie = (0..5).fold(None, |cookie: Option<String>, n| {
            Some(devices.remember(cookie.as_deref(), &format!("{}{n}", &long[1..])).unwrap())
        });
        assert!(cookie.is_some_and(|cookie| cookie.len() <= 4_000));
    }
}
