//! Statements: written once, expanded for each system.

use std::sync::Arc;

use sqlx::Error;

use crate::connection::Executor;
use crate::row::Row;
use crate::system::System;
use crate::value::Value;

/// A statement of a store, expanded for one system. Cloning costs one reference count.
#[derive(Clone, Debug)]
pub struct Statement {
    text: Arc<str>,
    /// Positions of parameters written as `?`: the text between them, and the index of each
    /// parameter, from 0.
    places: Option<Arc<Places>>,
}

#[derive(Debug)]
struct Places {
    texts: Vec<String>,
    parameters: Vec<usize>,
}

impl Statement {
    /// Creates a statement from a text with the placeholders of [`System::expand`].
    pub fn new(system: System, text: &str) -> Self {
        let text = system.expand(text);
        let places = (system == System::MySql).then(|| Arc::new(Places::of(&text)));
        Self { text: text.into(), places }
    }

    /// Returns the text, with parameters written as `$1`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns a query of the statement, without parameters yet.
    pub fn query(&self) -> Query {
        Query { statement: self.clone(), values: Vec::new() }
    }

    /// Returns a query of the statement with its first parameter.
    pub fn bind(&self, value: impl Into<Value>) -> Query {
        self.query().bind(value)
    }
}

impl Places {
    fn of(text: &str) -> Self {
        let (mut texts, mut parameters) = (Vec::new(), Vec::new());
        let mut pieces = text.split('$');
        texts.push(pieces.next().unwrap_or_default().to_owned());
        for piece in pieces {
            let end = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
            parameters.push(piece[..end].parse::<usize>().unwrap_or(1).saturating_sub(1));
            texts.push(piece[end..].to_owned());
        }
        Self { texts, parameters }
    }
}

/// A statement and its parameters.
#[must_use]
#[derive(Clone, Debug)]
pub struct Query {
    statement: Statement,
    values: Vec<Value>,
}

/// Answer to a query.
#[derive(Debug, Default)]
pub struct Answer {
    pub(crate) rows: Vec<Row>,
    pub(crate) affected: u64,
}

impl Query {
    /// Adds the next parameter.
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs the query, and returns the number of changed rows. An update that changes nothing
    /// counts the rows it matched.
    ///
    /// # Errors
    /// The errors of sqlx; an [`Error::Io`] of kind `TimedOut` if no answer came in time: whether
    /// the statement had an effect is unknown then.
    pub async fn execute(self, on: impl Executor) -> Result<u64, Error> {
        on.run(self, false).await.map(|answer| answer.affected)
    }

    /// Runs the query, and returns all rows. Outside of a transaction, its changes are committed
    /// when this returns.
    ///
    /// # Errors
    /// The errors of [`execute`](Self::execute).
    pub async fn fetch_all(self, on: impl Executor) -> Result<Vec<Row>, Error> {
        on.run(self, true).await.map(|answer| answer.rows)
    }

    /// Runs the query, and returns its first row, if any.
    ///
    /// # Errors
    /// The errors of [`execute`](Self::execute).
    pub async fn fetch_optional(self, on: impl Executor) -> Result<Option<Row>, Error> {
        self.fetch_all(on).await.map(|rows| rows.into_iter().next())
    }

    /// Runs the query, and returns its first row.
    ///
    /// # Errors
    /// The errors of [`execute`](Self::execute); [`Error::RowNotFound`] if there is no row.
    pub async fn fetch_one(self, on: impl Executor) -> Result<Row, Error> {
        self.fetch_optional(on).await?.ok_or(Error::RowNotFound)
    }

    /// Returns the text and the parameters as they are sent. On systems without list parameters,
    /// lists are expanded, with the last element repeated up to a power of two, so that only few
    /// different statements are prepared.
    pub(crate) fn written(self) -> (Arc<str>, Vec<Value>) {
        let Some(places) = &self.statement.places else {
            return (self.statement.text, self.values);
        };
        let mut text = String::with_capacity(self.statement.text.len());
        let mut values = Vec::with_capacity(places.parameters.len());
        for (number, piece) in places.texts.iter().enumerate() {
            if let Some(value) =
                number.checked_sub(1).and_then(|n| self.values.get(places.parameters[n]))
            {
                write_out(value, &mut text, &mut values);
            }
            text.push_str(piece);
        }
        (text.into(), values)
    }
}

fn write_out(value: &Value, text: &mut String, values: &mut Vec<Value>) {
    let count = value.places();
    text.push_str(&"?, ".repeat(count)[..3 * count - 2]);
    let place = |n: usize, length: usize| n.min(length.saturating_sub(1));
    match value {
        Value::Texts(list) => {
            values.extend((0..count).map(|n| Value::Text(list.get(place(n, list.len())).cloned())));
        }
        Value::Numbers(list) => {
            values
                .extend((0..count).map(|n| Value::Number(list.get(place(n, list.len())).copied())));
        }
        single => values.push(single.clone()),
    }
}

/// Declares a struct of [`Statement`]s: `statements! { pub(crate) Texts; put = "…"; get = "…"; }`.
/// A second text after `mysql` replaces the first one on MySQL.
#[macro_export]
macro_rules! statements {
    ($visibility:vis $texts:ident; $($name:ident = $text:expr $(, mysql $mysql:expr)?;)*) => {
        #[derive(Clone, Debug)]
        $visibility struct $texts { $($visibility $name: $crate::Statement,)* }

        impl $texts {
            /// Creates the statements for a system.
            $visibility fn new(system: $crate::System) -> Self {
                Self {
                    $($name: {
                        #[allow(unused_mut, unused_assignments)]
                        let mut text = $text;
                        $(if system == $crate::System::MySql { text = $mysql; })?
                        $crate::Statement::new(system, text)
                    },)*
                }
            }

            /// Returns all statements by name.
            #[allow(dead_code)]
            $visibility fn all(&self) -> Vec<(&'static str, $crate::Statement)> {
                vec![$((stringify!($name), self.$name.clone()),)*]
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_out_where_they_must_be() {
        let text = "delete from t where a = $1 and id {list:2} and b = $1";
        let query = Statement::new(System::MySql, text).bind("x").bind(vec![7_i64, 8, 9]);
        let (text, values) = query.written();
        assert_eq!(&*text, "delete from t where a = ? and id in (?, ?, ?, ?) and b = ?");
        let number = |n| Value::Number(Some(n));
        let expected = vec!["x".into(), number(7), number(8), number(9), number(9), "x".into()];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_list_of_nothing_holds_nothing() {
        let query =
            Statement::new(System::MySql, "select 1 where id {list:1}").bind(Vec::<String>::new());
        let (text, values) = query.written();
        assert_eq!((&*text, values), ("select 1 where id in (?)", vec![Value::Text(None)]));
    }

    #[test]
    fn other_systems_take_the_text_as_it_is() {
        let query =
            Statement::new(System::Postgres, "select $1, $2").bind(1).bind(vec!["a".to_owned()]);
        assert_eq!(&*query.written().0, "select $1, $2");
    }
}
