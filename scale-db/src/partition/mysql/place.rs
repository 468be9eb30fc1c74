//! Names of tables, and the marks of tables that were partitions.

use crate::Dialect;

/// Schema of tables: an explicit one, or the connection's.
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

/// Quotes a name, including its dots.
pub(super) fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Returns the beginning of the comment that marks a table as a former partition that is to be
/// removed. The comment ends with the table's own name, so that a copy of the table is not marked.
pub(super) fn mark(place: &Place, table: &str) -> String {
    format!(
        "concat('Detached by scale-db from ', {}, '.', {}, ' as ')",
        place.schema(),
        literal(table)
    )
}

pub(super) fn literal(text: &str) -> String {
    Dialect::MySql.literal(text)
}
