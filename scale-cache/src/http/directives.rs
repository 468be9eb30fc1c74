//! Parses `Cache-Control` and similar fields (RFC 9111, 5.2; RFC 9213 for targeted fields).

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

/// Number of seconds that means "forever" (RFC 9111, 1.2.2).
pub(super) const FOREVER: u64 = 1 << 31;

/// Directives of one message, in their original order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Directives(Vec<(String, Option<String>)>);

/// Directives whose values are seconds.
const TIMES: [&str; 4] = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];

impl Directives {
    /// Parses all lines of a field. Skips everything that is not a directive.
    pub(super) fn of(headers: &HeaderMap, name: &HeaderName) -> Self {
        let mut all = Vec::new();
        for line in headers.get_all(name) {
            for element in elements(&String::from_utf8_lossy(line.as_bytes())) {
                let (name, value) = match element.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (element.as_str(), None),
                };
                if !name.is_empty() && name.bytes().all(is_token) {
                    all.push((name.to_ascii_lowercase(), value.map(unquoted)));
                }
            }
        }
        Self(all)
    }

    /// Parses a targeted field, a dictionary of structured fields; `None` if it is missing or
    /// invalid, in which case it is ignored (RFC 9213, 2.2).
    pub(super) fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let lines: Vec<&[u8]> =
            headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
        if lines.is_empty() {
            return None;
        }
        let dictionary: Dictionary = Parser::new(&lines.join(&b", "[..])).parse().ok()?;
        // Times are integers: a field with another type of time is ignored.
        let is_integer = |entry: &ListEntry| {
            matches!(
                entry, ListEntry::Item(item) if matches!(item.bare_item, BareItem::Integer(_)),
            )
        };
        if dictionary.iter().any(|(key, entry)| TIMES.contains(&key.as_str()) && !is_integer(entry))
        {
            return None;
        }
        let all = dictionary.iter().filter_map(|(key, entry)| {
            let value = match entry {
                ListEntry::Item(item) => match &item.bare_item {
                    BareItem::Boolean(true) => None,
                    BareItem::Integer(n) => Some(n.to_string()),
                    BareItem::String(s) => Some(s.as_str().to_owned()),
                    BareItem::Token(t) => Some(t.as_str().to_owned()),
                    _ => return None,
                },
                ListEntry::InnerList(_) => return None,
            };
            Some((key.as_str().to_owned(), value))
        });
        Some(Self(all.collect())).filter(|d| !d.0.is_empty())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// Returns the field names that a directive is limited to; empty if it is not limited.
    pub(super) fn fields(&self, name: &str) -> Vec<String> {
        let values =
            self.0.iter().filter(|(n, _)| n == name).filter_map(|(_, value)| value.as_deref());
        values
            .flat_map(|v| v.split(','))
            .map(|f| f.trim().to_ascii_lowercase())
            .filter(|f| !f.is_empty())
            .collect()
    }

    /// Returns whether a directive is present and not limited to some fields.
    pub(super) fn has_unlimited(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|(n, value)| n == name && value.as_deref().is_none_or(|v| v.trim().is_empty()))
    }

    /// Returns the seconds of a directive: of several the smallest. An invalid number makes the
    /// response stale (RFC 9111, 4.2.1): 0.
    pub(super) fn seconds(&self, name: &str) -> Option<u64> {
        let values = self.0.iter().filter(|(n, _)| n == name);
        values.map(|(_, value)| value.as_deref().and_then(seconds).unwrap_or(0)).min()
    }
}

/// Parses a non-negative integer; a number that is too large becomes [`FOREVER`].
pub(super) fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse::<u64>().unwrap_or(FOREVER).min(FOREVER))
}

/// Returns the elements of a list, split outside of quotes and trimmed.
pub(super) fn elements(text: &str) -> Vec<String> {
    let (mut all, mut element, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            ',' if !quoted => all.push(std::mem::take(&mut element)),
            c => {
                quoted ^= c == '"' && !escaped;
                escaped = c == '\\' && quoted && !escaped;
                element.push(c);
            }
        }
    }
    all.push(element);
    all.into_iter().map(|e| e.trim().to_owned()).filter(|e| !e.is_empty()).collect()
}

fn unquoted(value: &str) -> String {
    match value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) {
        Some(inside) => inside.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => value.to_owned(),
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CACHE_CONTROL;
    use proptest::prelude::*;

    fn read(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().unwrap());
        }
        Directives::of(&headers, &CACHE_CONTROL)
    }

    #[test]
    fn a_table_of_freshness() {
        for (line, expected) in [
            ("max-age=3600", Some(3600)),
            ("MaX-aGe=3600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("max-age='3600'", Some(0)),
            ("max-age=003600", Some(3600)),
            ("max-age=-3600", Some(0)),
            ("max-age=3600.0", Some(0)),
            ("max-age=", Some(0)),
            ("max-age", Some(0)),
            ("max-age = 3600", None),
            ("max-age=99999999999999999999999", Some(FOREVER)),
            ("extension=\"max-age=3600\", max-age=1", Some(1)),
            ("max-age=1, extension=\"max-age=3600\"", Some(1)),
            ("extension=\"a\\\", max-age=9\", max-age=2", Some(2)),
            ("max-age=1800, max-age=1", Some(1)),
            (", ,max-age=5,", Some(5)),
            ("no-store", None),
        ] {
            assert_eq!(read(&[line]).seconds("max-age"), expected, "{line}");
        }
        assert_eq!(read(&["max-age=60", "no-cache=\"a, b\""]).fields("no-cache"), ["a", "b"]);
        assert!(
            !read(&["no-cache=\"a\""]).has_unlimited("no-cache")
                && read(&["no-cache=\"a\", no-cache"]).has_unlimited("no-cache")
        );
    }

    #[test]
    fn a_targeted_field_is_read_as_a_whole_or_not_at_all() {
        let name = HeaderName::from_static("cdn-cache-control");
        let targeted = |line: &str| {
            let mut headers = HeaderMap::new();
            headers.append(&name, line.parse().unwrap());
            Directives::targeted(&headers, &name)
        };
        assert_eq!(targeted("max-age=60, public").unwrap().seconds("max-age"), Some(60));
        assert!(targeted("max-age=60, &").is_none());
        assert!(targeted("max-age=\"60\"").is_none() && targeted("max-age").is_none());
        assert!(targeted("").is_none());
    }

    proptest! {
        #[test]
        fn any_header_is_survived(bytes: Vec<u8>) {
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.append(CACHE_CONTROL, value);
                Directives::of(&headers, &CACHE_CONTROL).seconds("max-age");
                Directives::targeted(&headers, &CACHE_CONTROL);
            }
        }
    }
}
