//! Names of tables, and the marks of those that were partitions.

use crate::Dialect;

/// Schema of tables: one that was named, or the connection's.
pub(super) struct Place {
    schema: Option<String>,
}

impl Place {
    /// Splits `schema.table`.
    pub(super) fn split(full: &str) -> (Self, &str) {
        match full.rsplit_once('.') {
            Some((schema, name)) => (Self { schema: Some(schema.to_owned()) }, name),
            None => (Self { schema: None }, full),
        }
    }

    pub(super) fn schema(&self) -> String {
        self.schema.as_deref().map_or("database()".to_owned(), literal)
    }

    pub(super) fn quoted(&self, name: &str) -> String {
        let schema = self.schema.as_deref().map(|schema| format!("{}.", ident(schema)));
        format!("{}{}", schema.unwrap_or_default(), ident(name))
    }

    /// Returns the condition that finds a table in `information_schema`.
    pub(super) fn condition(&self, name: &str) -> String {
        format!("table_schema = {} and table_name = {}", self.schema(), literal(name))
    }
}

/// Returns a name as SQL takes it, dots included.
pub(super) fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Begins the comment that says that a table was a partition and is on its way out. The table's own name ends it: it is of no copy.
pub(super) fn mark(place: &Place, table: &str) -> String {
    format!("concat('Detached by scale-db from ', {}, '.', {}, ' as ')", place.schema(), literal(table))
}

pub(super) fn literal(text: &str) -> String {
    Dialect::MySql.literal(text)
}
