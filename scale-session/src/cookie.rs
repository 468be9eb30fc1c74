//! The cookie: how it is read and written.

use std::time::Duration;

use cookie::Cookie;
use http::HeaderValue;
use serde::{Deserialize, Deserializer};

use crate::error::Error;

/// What makes a browser take a cookie from this host alone, over HTTPS alone, for all of its paths.
const HOST: &str = "__Host-";

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
    #[serde(deserialize_with = "name")]
    name: String,
    same_site: SameSite,
    /// Whether the cookie is kept from plain HTTP. Without it the name loses its `__Host-`.
    secure: bool,
    partitioned: bool,
}

/// A token of RFC 9110, which is what the name of a cookie is.
fn checked(name: &str) -> Result<&str, Error> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.len() <= 200 && name.bytes().all(is_token) {
        return Ok(name);
    }
    Err(Error::Setting("a cookie's name has 1 to 200 letters, digits or signs of !#$%&'*+-.^_`|~"))
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    checked(&name).map_err(serde::de::Error::custom)?;
    Ok(name)
}

impl Default for CookiePolicy {
    fn default() -> Self {
        Self { name: "session".into(), same_site: SameSite::Lax, secure: true, partitioned: false }
    }
}

impl CookiePolicy {
    /// The cookie's name, without the `__Host-` that is put before it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name that no cookie can have: one of letters, digits and a few signs.
    pub fn name(mut self, name: &str) -> Result<Self, Error> {
        self.name = checked(name)?.into();
        Ok(self)
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
        if self.secure { format!("{HOST}{}", self.name) } else { self.name.clone() }
    }

    /// The values of our cookies in a request's lines of them.
    fn ours<'l>(&self, lines: &'l [HeaderValue]) -> impl Iterator<Item = &'l str> {
        // Others may hold any bytes: each is looked at by itself.
        let pairs = lines.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        let texts = pairs.filter_map(|pair| std::str::from_utf8(pair).ok()).map(str::trim);
        let pairs = texts.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(|(name, _)| self.is_named(name)).map(|(_, value)| value)
    }

    fn is_named(&self, name: &str) -> bool {
        if self.secure { name.strip_prefix(HOST) == Some(&self.name) } else { name == self.name }
    }

    /// What a request presents. Two cookies of the name are a sign of a planted one: none is believed.
    pub(crate) fn read<'l>(&self, lines: &'l [HeaderValue]) -> Option<&'l str> {
        let mut ours = self.ours(lines);
        let value = ours.next()?;
        if ours.next().is_some() { None } else { Some(value) }
    }

    /// Whether there is one to be cleared.
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
            .partitioned(self.partitioned)
            .max_age(cookie::time::Duration::seconds(lifetime.as_secs() as i64));
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
        assert_eq!(text, format!("__Host-session={}; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60", id.text()));
        let pair = text.split(';').next().unwrap();
        let mut lines: Vec<HeaderValue> = vec![format!("a=b; {pair};c=d").parse().unwrap()];
        assert_eq!((policy.read(&lines), policy.presents(&lines)), (Some(id.text().as_str()), true));
        lines.push(format!("__Host-session={}", Id::random(None).unwrap().text()).parse().unwrap());
        assert_eq!((policy.read(&lines), policy.presents(&lines)), (None, true), "a second cookie of the name");
        let other = |text: &str| [HeaderValue::try_from(text).unwrap()];
        assert!(!policy.presents(&other("session=x; __Host-session2=x; x__Host-session=x")));
        assert!(policy.presents(&other("a; __Host-session")));
        assert!(policy.clone().insecure().presents(&other("session=")));
    }

    proptest::proptest! {
        #[test]
        fn any_cookie_header_is_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = CookiePolicy::default().read(&[value]);
            }
        }
    }
}
