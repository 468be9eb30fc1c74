//! The cookie: how it is read and written.

use std::time::Duration;

use cookie::Cookie;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::id::Id;

/// When browsers send the cookie along with requests that come from other sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SameSite {
    /// Never.
    Strict,
    /// When following a link.
    #[default]
    Lax,
    /// Always: for embedding. Needs protection against request forgery.
    None,
}

/// How the session's cookie looks. The default is the strictest form a site on HTTPS can have: `__Host-session`, `Secure`, `HttpOnly`,
/// `SameSite=Lax`, `Path=/`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CookiePolicy {
    name: String,
    same_site: SameSite,
    /// Whether the cookie is kept from plain HTTP. Without it the name loses its `__Host-`.
    secure: bool,
    partitioned: bool,
}

impl Default for CookiePolicy {
    fn default() -> Self {
        Self { name: "session".into(), same_site: SameSite::Lax, secure: true, partitioned: false }
    }
}

impl CookiePolicy {
    /// The cookie's name, without the `__Host-` that is put before it.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// See [`SameSite`].
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Partitioned by the embedding site (CHIPS).
    pub fn partitioned(mut self) -> Self {
        self.partitioned = true;
        self
    }

    /// For development over plain HTTP only: anybody on the way can read the cookie.
    pub fn insecure(mut self) -> Self {
        self.secure = false;
        self
    }

    fn full_name(&self) -> String {
        if self.secure { format!("__Host-{}", self.name) } else { self.name.clone() }
    }

    /// The id a request presents. Two cookies of the name are a sign of a planted one: none is believed.
    pub(crate) fn read(&self, headers: &HeaderMap) -> Option<Id> {
        let name = self.full_name();
        let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        let mut ours =
            lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('=')).filter(|(n, _)| *n == name);
        let (_, value) = ours.next()?;
        if ours.next().is_some() { None } else { Id::parse(value) }
    }

    pub(crate) fn presents(&self, headers: &HeaderMap) -> bool {
        let name = self.full_name();
        headers.get_all(COOKIE).into_iter().any(|line| line.to_str().is_ok_and(|l| l.contains(&name)))
    }

    pub(crate) fn set(&self, id: &Id, lifetime: Duration) -> Option<HeaderValue> {
        self.write(&id.text(), lifetime)
    }

    pub(crate) fn clear(&self) -> Option<HeaderValue> {
        self.write("", Duration::ZERO)
    }

    fn write(&self, value: &str, lifetime: Duration) -> Option<HeaderValue> {
        let same_site = match self.same_site {
            SameSite::Strict => cookie::SameSite::Strict,
            SameSite::Lax => cookie::SameSite::Lax,
            SameSite::None => cookie::SameSite::None,
        };
        let cookie = Cookie::build((self.full_name(), value))
            .path("/")
            .http_only(true)
            .secure(self.secure)
            .same_site(same_site)
            .partitioned(self.partitioned)
            .max_age(cookie::time::Duration::seconds(lifetime.as_secs() as i64));
        HeaderValue::try_from(cookie.build().to_string()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_strictly_and_read_back() {
        let (policy, id) = (CookiePolicy::default(), Id::random(None).unwrap());
        let written = policy.set(&id, Duration::from_mins(1)).unwrap();
        let text = written.to_str().unwrap();
        assert_eq!(text, format!("__Host-session={}; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60", id.text()));
        let mut headers = HeaderMap::new();
        let pair = text.split(';').next().unwrap();
        headers.insert(COOKIE, format!("a=b; {pair};c=d").parse().unwrap());
        assert_eq!(policy.read(&headers), Some(id));
        headers.append(COOKIE, format!("__Host-session={}", Id::random(None).unwrap().text()).parse().unwrap());
        assert_eq!(policy.read(&headers), None, "a second cookie of the name");
    }

    proptest::proptest! {
        #[test]
        fn any_cookie_header_is_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(COOKIE, value);
                let _ = CookiePolicy::default().read(&headers);
            }
        }
    }
}
