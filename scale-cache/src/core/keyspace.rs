//! Settings of a space, independent of the type of its values.

use std::sync::Arc;

use crate::options::Options;
use crate::policy::versions::{Cell, GLOBAL_TAG, Versions};

/// Prefix, tag and options.
#[derive(Clone, Debug)]
pub(crate) struct Keyspace {
    /// Prefix of its keys: its name, with colons escaped, and a colon. So no key belongs to two
    /// spaces.
    pub(crate) prefix: Box<str>,
    /// Tag of all its entries.
    pub(crate) cell: Arc<Cell>,
    pub(crate) options: Options,
}

impl Keyspace {
    pub(crate) fn new(versions: &Versions, name: &str) -> Self {
        let prefix = format!("{}:", name.replace('%', "%25").replace(':', "%3A")).into();
        Self {
            prefix,
            cell: versions.cell(&format!("{GLOBAL_TAG}{name}")),
            options: Options::default(),
        }
    }
}
