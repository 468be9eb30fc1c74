//! Reads and writes the session cookie.

use std::time::Duration;

use cookie::Cookie;
use http::HeaderValue;
use scale_common::cookies::cookies;
use serde::{Deserialize, Deserializer};

use crate::error::Error;

/// Prefix that makes a browser accept a cookie from this host only, over HTTPS only, and for all
/// paths.
const HOST: &str = "__Host-";
/// Prefix that makes a browser accept a cookie over HTTPS only.
const SECURE: &str = "__Secure-";

/// Cross-site requests with which browsers send the cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SameSite {
    /// The cookie is never sent with cross-site requests.
    Strict,
    /// The cookie is sent when the user follows a link.
    #[default]
    Lax,
    /// The cookie is always sent: for embedding. Needs protection against cross-site request
    /// forgery.
    None,
}

/// Attributes of the session cookie. The default is the strictest form for a site on HTTPS:
/// `__Host-session`, `Secure`, `HttpOnly`, `SameSite=Lax`, `Path=/`.
#[must_use]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CookiePolicy {
    #[serde(deserialize_with = "name")]
    name: String,
    same_site: SameSite,
    /// `true` if the cookie is kept from plain HTTP. Without this flag the name has no `__Host-`
    /// prefix.
    secure: bool,
    partitioned: bool,
    /// Domain whose subdomains get the cookie as well.
    #[serde(deserialize_with = "domain")]
    domain: Option<String>,
    /// `true` if the cookie ends when the browser is closed.
    ends_with_browser: bool,
}

/// Checks that a cookie's name is a token of RFC 9110.
fn checked(name: &str) -> Result<&str, Error> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.len() <= 200 && name.bytes().all(is_token) {
        return Ok(name);
    }
    Err(Error::Setting("a cookie name has 1 to 200 letters, digits or signs of !#$%&'*+-.^_`|~"))
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    checked(&name).map_err(serde::de::Error::custom)?;
    Ok(name)
}

/// Checks that a domain is a host name with a dot in it: browsers reject a cookie for a whole
/// top-level domain.
fn checked_domain(domain: &str) -> Result<String, Error> {
    let labels: Vec<&str> = domain.trim_start_matches('.').split('.').collect();
    let is_label = |label: &&str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if labels.len() > 1 && domain.len() <= 253 && labels.iter().all(is_label) {
        return Ok(labels.join(".").to_ascii_lowercase());
    }
    Err(Error::Setting("a cookie domain is a host name with a dot in it, as in `example.com`"))
}

fn domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let domain = Option::<String>::deserialize(deserializer)?;
    domain.as_deref().map(checked_domain).transpose().map_err(serde::de::Error::custom)
}

impl Default for CookiePolicy {
    fn default() -> Self {
        let (same_site, name) = (SameSite::Lax, "session".into());
        Self {
            name,
            same_site,
            secure: true,
            partitioned: false,
            domain: None,
            ends_with_browser: false,
        }
    }
}

impl CookiePolicy {
    /// Sets the cookie's name, without the `__Host-` prefix, which is added.
    ///
    /// # Errors
    /// [`Error::Setting`] for an invalid cookie name: a name has 1 to 200 letters, digits and a few
    /// signs.
    pub fn name(mut self, name: &str) -> Result<Self, Error> {
        self.name = checked(name)?.into();
        Ok(self)
    }

    /// Sets the [`SameSite`] attribute.
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Partitions the cookie by the embedding site (CHIPS).
    pub fn partitioned(mut self) -> Self {
        self.partitioned = true;
        self
    }

    /// Sends the cookie to `domain` and to every host below it: `app.example.com` and
    /// `www.example.com` share their sessions. Each of these hosts can then plant a cookie for the
    /// others, so the name's prefix is `__Secure-` and no longer `__Host-`.
    ///
    /// # Errors
    /// [`Error::Setting`] if `domain` is not a host name with a dot in it.
    pub fn shared_with_subdomains_of(mut self, domain: &str) -> Result<Self, Error> {
        self.domain = Some(checked_domain(domain)?);
        Ok(self)
    }

    /// Ends the session when the browser is closed, if the browser reports that: a browser that
    /// restores its tabs keeps the session. The time-outs still apply.
    pub fn ends_with_browser(mut self) -> Self {
        self.ends_with_browser = true;
        self
    }

    /// Sends the cookie over plain HTTP, for development only: anybody on the network path can read
    /// the cookie.
    pub fn insecure(mut self) -> Self {
        self.secure = false;
        self
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    fn full_name(&self) -> String {
        format!("{}{}", self.prefix(), self.name)
    }

    fn prefix(&self) -> &'static str {
        match &self.domain {
            _ if !self.secure => "",
            Some(_) => SECURE,
            None => HOST,
        }
    }

    /// Returns the values of this policy's cookies in the `Cookie` headers of a request.
    fn ours<'l>(&self, lines: &'l [HeaderValue]) -> impl Iterator<Item = &'l str> {
        cookies(lines.iter().map(HeaderValue::as_bytes))
            .filter(|(name, _)| self.is_named(name))
            .map(|(_, value)| value)
    }

    fn is_named(&self, name: &str) -> bool {
        name.strip_prefix(self.prefix()) == Some(&self.name)
    }

    /// Returns the cookie that a request presents. Two cookies of that name are a sign of a planted
    /// one: neither is used.
    pub(crate) fn read<'l>(&self, lines: &'l [HeaderValue]) -> Option<&'l str> {
        let mut ours = self.ours(lines);
        let value = ours.next()?;
        if ours.next().is_some() { None } else { Some(value) }
    }

    /// Returns whether the request presents a cookie that can be cleared.
    pub(crate) fn presents(&self, lines: &[HeaderValue]) -> bool {
        self.ours(lines).next().is_some()
    }

    pub(crate) fn clear(&self) -> Option<HeaderValue> {
        self.set("", Duration::ZERO)
    }

    pub(crate) fn set(&self, value: &str, lifetime: Duration) -> Option<HeaderValue> {
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
            .partitioned(self.partitioned);
        let cookie = match &self.domain {
            Some(domain) => cookie.domain(domain),
            None => cookie,
        };
        // A cookie that is cleared needs a `Max-Age` in any case.
        let cookie = if self.ends_with_browser && !lifetime.is_zero() {
            cookie
        } else {
            cookie.max_age(cookie::time::Duration::seconds(lifetime.as_secs() as i64))
        };
        HeaderValue::try_from(cookie.build().to_string()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[test]
    fn written_strictly_and_read_back() {
        let (policy, id) = (CookiePolicy::default(), Id::random(None).unwrap());
        let written = policy.set(&id.text(), Duration::from_mins(1)).unwrap();
        let text = written.to_str().unwrap();
        assert_eq!(
            text,
            format!(
                "__Host-session={}; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60",
                id.text()
            )
        );
        let pair = text.split(';').next().unwrap();
        let mut lines: Vec<HeaderValue> = vec![format!("a=b; {pair};c=d").parse().unwrap()];
        assert_eq!(
            (policy.read(&lines), policy.presents(&lines)),
            (Some(id.text().as_str()), true)
        );
        lines.push(format!("__Host-session={}", Id::random(None).unwrap().text()).parse().unwrap());
        assert_eq!(
            (policy.read(&lines), policy.presents(&lines)),
            (None, true),
            "a second cookie of the name"
        );
        let other = |text: &str| [HeaderValue::try_from(text).unwrap()];
        assert!(!policy.presents(&other("session=x; __Host-session2=x; x__Host-session=x")));
        assert!(policy.presents(&other("a; __Host-session")));
        assert!(policy.clone().insecure().presents(&other("session=")));
    }

    #[test]
    fn shared_with_subdomains_or_gone_with_the_browser() {
        let policy = CookiePolicy::default()
            .shared_with_subdomains_of(".Example.com")
            .unwrap()
            .ends_with_browser();
        let (day, text) = (Duration::from_hours(24), |value: Option<HeaderValue>| {
            value.unwrap().to_str().unwrap().to_owned()
        });
        let set = text(policy.set("x", day));
        assert_eq!(
            set,
            "__Secure-session=x; HttpOnly; SameSite=Lax; Secure; Path=/; Domain=example.com"
        );
        assert!(
            text(policy.clear()).ends_with("Domain=example.com; Max-Age=0")
                || text(policy.clear()).contains("Max-Age=0")
        );
        let lines = |name: &str| [HeaderValue::try_from(format!("{name}=x")).unwrap()];
        assert!(
            policy.presents(&lines("__Secure-session"))
                && !policy.presents(&lines("__Host-session"))
        );
        assert!(text(policy.insecure().set("x", day)).starts_with("session=x;"));
        for bad in ["com", "", ".", "a..b", "evil.com; Path=/", "a b.com", "localhost"] {
            assert!(CookiePolicy::default().shared_with_subdomains_of(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_cookie_header_is_survived(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        ) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = CookiePolicy::default().read(&[value]);
            }
        }
    }
}
