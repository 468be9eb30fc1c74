//! How long sessions live, and what happens when the store does not answer.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use crate::cookie::CookiePolicy;
use crate::error::Error;

/// What a request gets whose session cannot be read or written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnStoreError {
    /// An error from [`Session`](crate::Session)'s methods; 503 if the changes could not be saved at the end.
    #[default]
    Unavailable,
    /// An empty session, and changes that are dropped with a warning. The cookie stays: nobody is logged out for good.
    Anonymous,
}

/// What a browser is told to forget when somebody signs out (`Clear-Site-Data`). Browsers obey over HTTPS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ClearSiteData {
    /// The session's cookie alone.
    #[default]
    Nothing,
    /// Its cache of this site's pages: nobody who uses the browser next finds them by "back".
    Cache,
    /// Its cache, and what scripts have stored (local storage, databases, workers), but cookies: ones that keep somebody signed in are the
    /// application's to clear.
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

/// Whatever is longer than ten years is ten years.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// Settings of a [`SessionLayer`](crate::SessionLayer). The defaults are for a site with accounts.
///
/// ```
/// use std::time::Duration;
/// let config = scale_session::Config::default().idle_timeout(Duration::from_hours(1));
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A session unused for that long is gone. Default: 2 h.
    #[serde(with = "humantime_serde")]
    pub(crate) idle_timeout: Duration,
    /// A session is gone that long after its creation, however much it is used. Default: 7 days.
    #[serde(with = "humantime_serde")]
    pub(crate) absolute_timeout: Duration,
    /// How long the old id still works after a rotation, for requests under way. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub(crate) rotation_grace: Duration,
    /// How the cookie looks.
    pub(crate) cookie: CookiePolicy,
    /// What happens when the store does not answer.
    pub(crate) on_store_error: OnStoreError,
    /// How many sessions a user may have. Default: as many as they like.
    pub(crate) sessions_per_user: Option<NonZeroU32>,
    /// What browsers are told to forget at a logout.
    pub(crate) clear_site_data: ClearSiteData,
    /// Who stays signed in: ended with all of a user's sessions.
    #[cfg(feature = "auth")]
    #[serde(skip)]
    pub(crate) remember: Option<crate::auth::Remember>,
    /// Whether shared caches may keep responses that depend on a session.
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
    /// A session unused for that long is gone.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = limit;
        self
    }

    /// A session is gone that long after its creation.
    pub fn absolute_timeout(mut self, limit: Duration) -> Self {
        self.absolute_timeout = limit;
        self
    }

    /// How long the old id still works after a rotation, and how long requests under way read the old state after a log-in.
    pub fn rotation_grace(mut self, grace: Duration) -> Self {
        self.rotation_grace = grace;
        self
    }

    /// How the cookie looks.
    pub fn cookie(mut self, cookie: CookiePolicy) -> Self {
        self.cookie = cookie;
        self
    }

    /// What happens when the store does not answer.
    pub fn on_store_error(mut self, choice: OnStoreError) -> Self {
        self.on_store_error = choice;
        self
    }

    /// Ends a user's oldest sessions when there are more than that: once the client of a new one has sent its cookie. Costs one look at the
    /// user's sessions a sign-in.
    pub fn sessions_per_user(mut self, most: NonZeroU32) -> Self {
        self.sessions_per_user = Some(most);
        self
    }

    /// What browsers are told to forget at a logout.
    pub fn clear_site_data(mut self, what: ClearSiteData) -> Self {
        self.clear_site_data = what;
        self
    }

    /// Leaves `Cache-Control` and `Vary` as the application sets them, though the response depends on a session. Somebody else's page may
    /// then come from a shared cache: only for sites that no such cache stands before.
    pub fn unprotected_from_shared_caches(mut self) -> Self {
        self.unprotected_from_shared_caches = true;
        self
    }

    /// Ends who stays signed in: first, so that no cookie brings back what ends after it.
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

    /// A session that is used is renewed when it was not for that long: once a minute, or a twentieth of the idle time-out.
    pub(crate) fn renewal(&self) -> Duration {
        let idle = self.idle();
        (idle / 20).max(Duration::from_mins(1)).min(idle / 2)
    }
}
