//! Pending changes of a request: only the fields that the request wrote.

use std::collections::BTreeMap;

/// New values by field; `None` removes the field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingChanges(pub(crate) BTreeMap<String, Option<Vec<u8>>>);

impl PendingChanges {
    /// Returns whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the fields and their new values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.0.iter().map(|(field, value)| (field.as_str(), value.as_deref()))
    }

    pub(crate) fn set(&mut self, field: &str, value: Option<Vec<u8>>) {
        self.0.insert(field.to_owned(), value);
    }
}
