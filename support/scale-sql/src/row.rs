//! Rows of answers.

use sqlx::Error;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "any"))]
use sqlx::Row as _;

/// A row of an answer.
pub struct Row(pub(crate) Inner);

pub(crate) enum Inner {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::postgres::PgRow),
    #[cfg(feature = "mysql")]
    MySql(sqlx::mysql::MySqlRow),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::sqlite::SqliteRow),
    #[cfg(feature = "any")]
    Any(sqlx::any::AnyRow),
    #[allow(dead_code)]
    Never(std::convert::Infallible),
}

impl std::fmt::Debug for Row {
    /// Omits the values, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Row")
    }
}

impl Row {
    /// Returns a column: an `i64`, a `String`, bytes, or an `Option` of those.
    ///
    /// # Errors
    /// The errors of sqlx, if the column does not exist or has another type.
    pub fn get<T: Column>(&self, column: usize) -> Result<T, Error> {
        T::read(self, column)
    }

    /// Returns the value of a column, or an error if it is null.
    fn present<T>(value: Option<T>, column: usize) -> Result<T, Error> {
        value.ok_or_else(|| Error::ColumnDecode {
            index: column.to_string(),
            source: "the column is null".into(),
        })
    }
}

/// A type as which a column can be read.
pub trait Column: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn read(row: &Row, column: usize) -> Result<Self, Error>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i64 {}
    impl Sealed for String {}
    impl Sealed for Vec<u8> {}
    impl<T: Sealed> Sealed for Option<T> {}
}

/// Reads a column from each system's row.
macro_rules! read {
    ($row:expr, $column:expr, $type:ty, postgres $postgres:expr, mysql $mysql:expr) => {{
        let _ = $column;
        match &$row.0 {
            #[cfg(feature = "postgres")]
            Inner::Postgres(row) => {
                let read: fn(&sqlx::postgres::PgRow, usize) -> Result<Option<$type>, Error> =
                    $postgres;
                read(row, $column)
            }
            #[cfg(feature = "mysql")]
            Inner::MySql(row) => {
                let read: fn(&sqlx::mysql::MySqlRow, usize) -> Result<Option<$type>, Error> =
                    $mysql;
                read(row, $column)
            }
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(row) => row.try_get::<Option<$type>, _>($column),
            #[cfg(feature = "any")]
            Inner::Any(row) => row.try_get::<Option<$type>, _>($column),
            Inner::Never(never) => match *never {},
        }
    }};
}

impl Column for Option<i64> {
    fn read(row: &Row, column: usize) -> Result<Self, Error> {
        // A number literal in a PostgreSQL statement has 32 bits.
        read!(
            row,
            column,
            i64,
            postgres | row,
            column
                | row
                    .try_get(column)
                    .or_else(|_| { Ok(row.try_get::<Option<i32>, _>(column)?.map(i64::from)) }),
            mysql | row,
            column | row.try_get(column)
        )
    }
}

impl Column for Option<String> {
    fn read(row: &Row, column: usize) -> Result<Self, Error> {
        // Keys are `varbinary` in MySQL, because not all versions compare texts exactly.
        read!(
            row,
            column,
            String,
            postgres | row,
            column | row.try_get(column),
            mysql | row,
            column | {
                let bytes: Option<Vec<u8>> = row.try_get_unchecked(column)?;
                let text = bytes.map(String::from_utf8).transpose();
                text.map_err(|error| Error::ColumnDecode {
                    index: column.to_string(),
                    source: error.into(),
                })
            }
        )
    }
}

impl Column for Option<Vec<u8>> {
    fn read(row: &Row, column: usize) -> Result<Self, Error> {
        read!(
            row,
            column,
            Vec<u8>,
            postgres | row,
            column | row.try_get(column),
            mysql | row,
            column | row.try_get_unchecked(column)
        )
    }
}

macro_rules! not_null {
    ($($type:ty),*) => {
        $(impl Column for $type {
            fn read(row: &Row, column: usize) -> Result<Self, Error> {
                Row::present(row.get::<Option<$type>>(column)?, column)
            }
        })*
    };
}
not_null!(i64, String, Vec<u8>);
