//! Columns and their values as text: archiving, counting, and binding them again.

use std::borrow::Cow;
use std::path::Path;

use bytes::Bytes;
use data_encoding::HEXUPPER;
use futures_util::TryStreamExt;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, MySql, Row};

use super::super::archive::{Archived, Writer, failed};
use super::super::csv;
use super::place::{Place, ident};
use super::tell;
use crate::backend::Backend;
use crate::error::Error;

/// Bytes of text passed to the file at a time.
const CHUNK: usize = 1 << 16;

/// Text form of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Numbers, times, and texts in UTF-8: as sent by the server.
    Text,
    /// A float, converted to double: as a float it would show only six digits.
    Float,
    /// Bytes, and texts in other character sets, in hexadecimal.
    Binary,
    Bit,
}

impl Kind {
    /// Returns the form for a type; `None` for types that cannot be written as text.
    fn of(data_type: &str, charset: Option<&str>) -> Option<Self> {
        Some(match (data_type, charset) {
            ("binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob", _) => {
                Self::Binary
            }
            ("bit", _) => Self::Bit,
            ("float", _) => Self::Float,
            (
                "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
                | "multipolygon" | "geometrycollection" | "geomcollection" | "vector",
                _,
            ) => return None,
            (_, Some(charset)) if !charset.starts_with("utf8") && charset != "ascii" => {
                Self::Binary
            }
            _ => Self::Text,
        })
    }

    /// Returns an expression for the value. Large values are not passed through functions, which
    /// would return null without an error.
    fn value(self, column: &str) -> String {
        match self {
            Self::Text | Self::Binary => column.to_owned(),
            Self::Float => format!("{column} + 0e0"),
            Self::Bit => format!("{column} + 0"),
        }
    }

    pub(super) fn parameter(self) -> &'static str {
        if self == Self::Bit { "cast(? as unsigned)" } else { "?" }
    }
}

pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// Number of a column's values that are not null, and of their bytes where those are the same in
/// the table and on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    values: u64,
    bytes: u64,
}

/// Writes a table's rows to a file, and verifies them: the number of rows, and of each column the
/// number of values and bytes, as counted by the server.
pub(super) async fn archive(
    own: &mut MySqlConnection,
    at: &Place,
    name: &str,
    count: u64,
    folder: &Path,
) -> Result<Archived, Error> {
    let columns = columns(own, &at.condition(name)).await?;
    let table = at.quoted(name);
    let counted = weights(own, &columns, &table).await?;
    let mut text = Vec::new();
    csv::push(&mut text, columns.iter().map(|column| Some(column.name.as_bytes())));
    let values: Vec<_> =
        columns.iter().map(|column| column.kind.value(&ident(&column.name))).collect();
    let sql = format!("select {} from {table}", values.join(", "));
    let writer = Writer::begin(folder, name);
    let mut written = vec![Weight::default(); columns.len()];
    // Sends texts as they are stored.
    tell(own, "set character_set_results = null".into()).await?;
    {
        let mut rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch(&mut *own);
        while let Some(row) = rows.try_next().await? {
            let mut fields = Vec::with_capacity(columns.len());
            for (n, column) in columns.iter().enumerate() {
                let value = bytes_of(&row, n)?;
                if let Some(value) = value {
                    written[n].values += 1;
                    written[n].bytes += value.len() as u64;
                }
                fields.push(value.map(|value| match column.kind {
                    Kind::Binary => Cow::Owned(HEXUPPER.encode(value).into_bytes()),
                    _ => Cow::Borrowed(value),
                }));
            }
            csv::push(&mut text, fields.iter().map(|field| field.as_deref()));
            if text.len() >= CHUNK {
                writer.write(Bytes::from(std::mem::take(&mut text))).await;
            }
        }
    }
    tell(own, "set character_set_results = utf8mb4".into()).await?;
    for ((column, written), counted) in columns.iter().zip(&mut written).zip(&counted) {
        if column.kind != Kind::Binary {
            written.bytes = 0;
        }
        if written != counted {
            let found = format!("column `{}`: received {written:?} of {counted:?}", column.name);
            return Err(failed("not all values were received")(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                found,
            )));
        }
    }
    writer.write(Bytes::from(text)).await;
    writer.finish(count).await
}

/// Counts the values of each column on the server.
async fn weights(
    own: &mut MySqlConnection,
    columns: &[Column],
    table: &str,
) -> Result<Vec<Weight>, Error> {
    let of = |column: &Column| {
        let name = ident(&column.name);
        let bytes = match column.kind {
            Kind::Binary => format!("coalesce(sum(length({name})), 0)"),
            _ => "0".into(),
        };
        format!("cast(count({name}) as char), cast({bytes} as char)")
    };
    let counts: Vec<_> = columns.iter().map(of).collect();
    let row = MySql::rows(own, format!("select {} from {table}", counts.join(", ")))
        .await?
        .into_iter()
        .next()
        .unwrap_or_default();
    let number = |text: &Option<String>| {
        text.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
    };
    Ok(row
        .chunks(2)
        .map(|pair| Weight {
            values: number(&pair[0]),
            bytes: pair.get(1).map(number).unwrap_or_default(),
        })
        .collect())
}

fn bytes_of(row: &MySqlRow, n: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked::<Option<&[u8]>, _>(n)
}

/// Returns the columns of a table that can be written, which are all but generated ones.
pub(super) async fn columns(own: &mut MySqlConnection, place: &str) -> Result<Vec<Column>, Error> {
    let sql = format!(
        "select cast(column_name as char), cast(lower(data_type) as char), \
         cast(lower(character_set_name) as char)
         from information_schema.columns
         where {place} and coalesce(generation_expression, '') = '' order by ordinal_position"
    );
    let mut columns = Vec::new();
    for row in MySql::rows(own, sql).await? {
        let [Some(name), Some(data_type), charset] = &row[..] else { continue };
        let unwritable = || {
            std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                format!("column `{name}` has the type {data_type}"),
            )
        };
        let kind = Kind::of(data_type, charset.as_deref())
            .ok_or_else(unwritable)
            .map_err(failed("a column cannot be written as text"))?;
        columns.push(Column { name: name.clone(), kind });
    }
    Ok(columns)
}
