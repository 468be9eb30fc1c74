//! What a request wants to have changed: only the fields it wrote.

use std::collections::BTreeMap;

/// New values by field; `None` removes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(pub(crate) BTreeMap<String, Option<Vec<u8>>>);

impl Changes {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fields and their new values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.0.iter().map(|(field, value)| (field.as_str(), value.as_deref()))
    }

    pub(crate) fn set(&mut self, field: &str, value: Option<Vec<u8>>) {
        self.0.insert(field.to_owned(), value);
    }
}
