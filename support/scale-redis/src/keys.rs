//! Names of keys: `{app}:{crate}:…`, with the hash tag where a script's keys must share a slot.

use std::sync::Arc;

/// The prefix under which one crate of one application keeps its keys.
///
/// ```
/// let keys = scale_redis::Keys::new("shop", "queue");
/// assert_eq!(keys.plain("pauses"), "shop:queue:pauses");
/// assert_eq!(keys.tagged("high", "waiting"), "shop:queue:{high}:waiting");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys(Arc<str>);

impl Keys {
    /// Braces in the names would move the hash tag, so they are replaced by parentheses.
    pub fn new(app: &str, part: &str) -> Self {
        Self(format!("{}:{}:", unbraced(app), unbraced(part)).into())
    }

    /// `app:crate:name`: a key that is used alone.
    pub fn plain(&self, name: &str) -> String {
        joined([&self.0, name])
    }

    /// `app:crate:{tag}:name`: all keys of one tag share a Cluster slot.
    pub fn tagged(&self, tag: &str, name: &str) -> String {
        joined([&self.0, "{", &unbraced(tag), "}:", name])
    }

    /// `app:crate:`.
    pub fn prefix(&self) -> &str {
        &self.0
    }
}

/// With one allocation: keys are made for every command.
fn joined<const N: usize>(parts: [&str; N]) -> String {
    let mut key = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        key.push_str(part);
    }
    key
}

fn unbraced(name: &str) -> std::borrow::Cow<'_, str> {
    if name.contains(['{', '}']) { name.replace('{', "(").replace('}', ")").into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brace_in_a_name_cannot_move_the_tag() {
        assert_eq!(Keys::new("a{b}", "q").tagged("}x{", "k"), "a(b):q:{)x(}:k");
    }
}
