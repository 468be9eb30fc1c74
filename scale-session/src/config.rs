//! Settings of sessions: lifetimes, the cookie, the answer when the store fails.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use crate::cookie::CookiePolicy;
use crate::error::Error;

/// Answer to a request whose session cannot be read or written. Default: [`Self::Unavailable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnStoreError {
    /// Methods of [`Session`](crate::Session) return an error; the response is a 503 if the changes
    /// cannot be saved at the end.
    #[default]
    Unavailable,
    /// The session is empty, and changes are dropped with a warning. The cookie stays, so users
    /// are still logged in when the store answers again.
    Anonymous,
}

/// Data that a browser clears when a user signs out (`Clear-Site-Data`). Browsers obey the header
/// over HTTPS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ClearSiteData {
    /// The session cookie only.
    #[default]
    Nothing,
    /// The browser's cache of this site's pages: the next user of the browser cannot go back to
    /// them.
    Cache,
    /// The cache, and what scripts have stored (local storage, databases, workers), but no cookies:
    /// the application must clear its own remember-me cookies.
    CacheAndStorage,
}

impl ClearSiteData {
    pub(crate) fn header(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Cache => Some("\"cache\""),
            Self::CacheAndStorage => Some("\"cache\", \"storage\""),
        }
    }
}

/// Maximum duration of any setting; longer values are cut to ten years.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// Settings of a [`SessionLayer`](crate::SessionLayer). The defaults are for a site with accounts.
///
/// ```
/// use std::time::Duration;
/// let config = scale_session::Config::default().idle_timeout(Duration::from_hours(1));
/// ```
#[must_use]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Time without use after which a session ends. Default: 2 h.
    #[serde(with = "humantime_serde")]
    pub(crate) idle_timeout: Duration,
    /// Time after its creation when a session ends, regardless of use. Default: 7 days.
    #[serde(with = "humantime_serde")]
    pub(crate) absolute_timeout: Duration,
    /// Time for which the old id still works after a rotation, for requests in progress. Default:
    /// 10 s.
    #[serde(with = "humantime_serde")]
    pub(crate) rotation_grace: Duration,
    /// Attributes of the cookie.
    pub(crate) cookie: CookiePolicy,
    /// Answer when the store fails.
    pub(crate) on_store_error: OnStoreError,
    /// Maximum number of a user's sessions. Default: no limit.
    pub(crate) sessions_per_user: Option<NonZeroU32>,
    /// Data that browsers clear at a logout.
    pub(crate) clear_site_data: ClearSiteData,
    /// Remember-me cookies that end with all of a user's sessions.
    #[cfg(feature = "auth")]
    #[serde(skip)]
    pub(crate) remember: Option<crate::auth::Remember>,
    /// Lets shared caches keep responses that depend on a session.
    pub(crate) unprotected_from_shared_caches: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_hours(2),
            absolute_timeout: Duration::from_hours(7 * 24),
            rotation_grace: Duration::from_secs(10),
            cookie: CookiePolicy::default(),
            on_store_error: OnStoreError::default(),
            sessions_per_user: None,
            clear_site_data: ClearSiteData::default(),
            #[cfg(feature = "auth")]
            remember: None,
            unprotected_from_shared_caches: false,
        }
    }
}

impl Config {
    /// Sets the time without use after which a session ends. Default: 2 h.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = limit;
        self
    }

    /// Sets the time after its creation when a session ends. Default: 7 days.
    pub fn absolute_timeout(mut self, limit: Duration) -> Self {
        self.absolute_timeout = limit;
        self
    }

    /// Sets how long the old id still works after a rotation, and how long requests in progress
    /// read the old state after a log-in. Default: 10 s.
    pub fn rotation_grace(mut self, grace: Duration) -> Self {
        self.rotation_grace = grace;
        self
    }

    /// Sets the attributes of the cookie. Default: `__Host-session`, `Secure`, `HttpOnly`,
    /// `SameSite=Lax`, `Path=/`.
    pub fn cookie(mut self, cookie: CookiePolicy) -> Self {
        self.cookie = cookie;
        self
    }

    /// Sets the answer when the store fails. Default: [`OnStoreError::Unavailable`].
    pub fn on_store_error(mut self, choice: OnStoreError) -> Self {
        self.on_store_error = choice;
        self
    }

    /// Sets the maximum number of a user's sessions. When there are more, the user's oldest
    /// sessions end once the client of the new session has sent its cookie. Costs one read of the
    /// user's sessions per sign-in. Default: no limit.
    pub fn sessions_per_user(mut self, most: NonZeroU32) -> Self {
        self.sessions_per_user = Some(most);
        self
    }

    /// Sets the data that browsers clear at a logout.
    pub fn clear_site_data(mut self, what: ClearSiteData) -> Self {
        self.clear_site_data = what;
        self
    }

    /// Leaves `Cache-Control` and `Vary` as the application sets them, although the response
    /// depends on a session. A shared cache may then serve one user's page to another: only for
    /// sites without such a cache in front.
    pub fn unprotected_from_shared_caches(mut self) -> Self {
        self.unprotected_from_shared_caches = true;
        self
    }

    /// Ends a user's remember-me cookies. Call this first, so that no cookie restores a session
    /// that ends afterwards.
    pub(crate) async fn end_remembered(&self, user: &str) -> Result<(), Error> {
        #[cfg(feature = "auth")]
        if let Some(remember) = &self.remember {
            return remember.end_all(user).await.map_err(|error| Error::Store(Box::new(error)));
        }
        let _ = user;
        Ok(())
    }

    pub(crate) fn idle(&self) -> Duration {
        self.idle_timeout.min(LONGEST)
    }

    pub(crate) fn absolute(&self) -> Duration {
        self.absolute_timeout.min(LONGEST)
    }

    pub(crate) fn grace(&self) -> Duration {
        self.rotation_grace.min(LONGEST)
    }

    /// Interval after which a used session is renewed: a minute, or a twentieth of the idle
    /// time-out, but at most half of it.
    pub(crate) fn renewal(&self) -> Duration {
        let idle = self.idle();
        (idle / 20).max(Duration::from_mins(1)).min(idle / 2)
    }
}
