//! Encoding of ids and keys as text that every system accepts.

/// Encodes ids and other tags as hexadecimal text.
pub(super) fn hex(tag: &[u8]) -> String {
    let digits = tag.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect()
}

pub(super) fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    text.as_bytes()
        .chunks_exact(2)
        .filter_map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

pub(super) fn hexes(tags: &[Vec<u8>]) -> Vec<String> {
    tags.iter().map(|tag| hex(tag)).collect()
}

/// Encodes a key as text that every system accepts; distinct keys get distinct texts. PostgreSQL
/// accepts no zero byte.
pub(super) fn key_text(key: &str) -> String {
    if key.contains(['\0', '\\', ',']) {
        key.replace('\\', "\\\\").replace('\0', "\\0").replace(',', "\\c")
    } else {
        key.to_owned()
    }
}

/// Encodes an application's name. An empty one gets a text of its own, because rows with an empty
/// name are from versions without application names.
pub(super) fn app_text(app: &str) -> String {
    if app.is_empty() { "\\e".to_owned() } else { key_text(app) }
}

/// Decodes a key.
pub(super) fn key_of(text: &str) -> String {
    let (mut key, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        key.push(match character {
            '\\' => match characters.next() {
                Some('0') => '\0',
                Some('c') => ',',
                _ => '\\',
            },
            other => other,
        });
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn distinct_keys_are_distinct_texts_that_every_system_takes(a: String, b: String) {
            prop_assert_eq!(key_text(&a) == key_text(&b), a == b);
            prop_assert!(!key_text(&a).contains(['\0', ',']));
            prop_assert_eq!(key_of(&key_text(&a)), a);
        }
    }
}
