//! Names of keys: `{app}:{crate}:…`, with a hash tag where the keys of a script must share a slot.
//! Different names give different keys.
//!
//! | part of the key | escaped | as |
//! | --- | --- | --- |
//! | application and crate | `%`, `{`, `}`, `:` | `%25`, `%7B`, `%7D`, `%3A` |
//! | tag, and name without a tag | `%`, `{`, `}` | the same |
//! | tag, and name without a tag | more than 512 bytes | `%#` and its SHA-256, hexadecimal |
//! | tag | an empty one | `%` |
//! | name after a tag | nothing, because scripts build such keys too | |

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Maximum bytes of a tag, or of a name without a tag, that are not hashed.
const LONGEST: usize = 512;

/// Prefix of the keys of one crate of one application.
///
/// ```
/// let keys = scale_redis::Keys::new("shop", "queue");
/// assert_eq!(keys.plain("pauses"), "shop:queue:pauses");
/// assert_eq!(keys.tagged("high", "waiting"), "shop:queue:{high}:waiting");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys(Arc<str>);

impl Keys {
    /// Creates the prefix for the crate `part` of an application.
    pub fn new(app: &str, part: &str) -> Self {
        let part_of = |name: &str| escaped(name).replace(':', "%3A");
        Self(format!("{}:{}:", part_of(app), part_of(part)).into())
    }

    /// Returns `app:crate:name`, for a key that is used alone.
    pub fn plain(&self, name: &str) -> String {
        joined([&self.0, &written(name)])
    }

    /// Returns `app:crate:{tag}:name`; all keys with one tag share a Cluster slot.
    pub fn tagged(&self, tag: &str, name: &str) -> String {
        // With an empty tag, Redis would hash the whole key.
        let tag = if tag.is_empty() { "%".into() } else { written(tag) };
        joined([&self.0, "{", &tag, "}:", name])
    }

    /// Returns `app:crate:`.
    pub fn prefix(&self) -> &str {
        &self.0
    }
}

/// Joins the parts with one allocation, because keys are built for every command.
fn joined<const N: usize>(parts: [&str; N]) -> String {
    let mut key = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        key.push_str(part);
    }
    key
}

/// Escapes a name. A percent sign always begins an escape, so no two names are escaped alike.
fn written(name: &str) -> Cow<'_, str> {
    if name.len() > LONGEST {
        let hash = Sha256::digest(name.as_bytes());
        return hash.iter().fold("%#".to_owned(), |text, byte| format!("{text}{byte:02x}")).into();
    }
    escaped(name)
}

fn escaped(name: &str) -> Cow<'_, str> {
    if name.contains(['%', '{', '}']) {
        name.replace('%', "%25").replace('{', "%7B").replace('}', "%7D").into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_brace_in_a_name_cannot_move_the_tag() {
        assert_eq!(Keys::new("a{b}", "q").tagged("}x{", "k"), "a%7Bb%7D:q:{%7Dx%7B}:k");
        assert_ne!(
            Keys::new("a", "q").tagged("f{x}", "k"),
            Keys::new("a", "q").tagged("f(x)", "k")
        );
    }

    #[test]
    fn the_empty_tag_is_one_and_long_ones_are_short() {
        let keys = Keys::new("a", "q");
        assert_eq!(keys.tagged("", "k"), "a:q:{%}:k");
        let (long, longer) = ("x".repeat(513), "x".repeat(514));
        assert_eq!(keys.tagged(&long, "k").len(), "a:q:{}:k".len() + 66);
        assert_ne!(keys.tagged(&long, "k"), keys.tagged(&longer, "k"));
        assert_eq!(keys.tagged(&"x".repeat(512), "k").len(), "a:q:{}:k".len() + 512);
    }

    /// Returns the part of a key that Redis takes for the hash tag.
    fn hash_tag(key: &str) -> &str {
        let (_, rest) = key.split_once('{').unwrap();
        rest.split_once('}').unwrap().0
    }

    /// Short names of the letters that matter.
    fn name() -> impl Strategy<Value = String> {
        "[a:%{}#2537BD]{0,6}"
    }

    proptest! {
        #[test]
        fn different_names_make_different_keys(
            one in (name(), name(), name(), name()),
            two in (name(), name(), name(), name()),
        ) {
            let tagged = |(app, part, tag, name): &(
                String, String, String, String,
            )| Keys::new(app, part)
                .tagged(tag, name);
            let plain = |(app, part, _, name): &(
                String, String, String, String,
            )| Keys::new(app, part)
                .plain(name);
            prop_assert_eq!(one == two, tagged(&one) == tagged(&two));
            let same = one.0 == two.0 && one.1 == two.1 && one.3 == two.3;
            prop_assert_eq!(same, plain(&one) == plain(&two));
            prop_assert_ne!(tagged(&one), plain(&two));
            // All of one tag in one slot, none of two in the same because of how it is written.
            prop_assert_eq!(one.2 == two.2, hash_tag(&tagged(&one)) == hash_tag(&tagged(&two)));
        }
    }
}
