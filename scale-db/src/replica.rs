//! Address of a node, and its share of reads.

use std::any::Any;
use std::sync::Arc;

use serde::Deserialize;

use crate::dialect::Dialect;

/// A node, the first one or another. In code it is made from an address, or from sqlx's connection
/// options (`PgConnectOptions`, …). In a file it is an address, or a table with `url`, `weight` and
/// `max_connections`.
#[must_use]
#[derive(Clone, Deserialize)]
#[serde(from = "Form")]
#[non_exhaustive]
pub struct Replica {
    /// Address of the node; empty if it has options.
    pub url: String,
    /// Weight of the node's share of reads; the default is 1. Give a larger machine more.
    pub weight: f64,
    /// Maximum number of connections to the node; by default the same as for other nodes.
    pub max_connections: Option<u32>,
    pub(crate) options: Option<Options>,
}

/// Connection options of a driver.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) dialect: Option<Dialect>,
    pub(crate) of_driver: Arc<dyn Any + Send + Sync>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Url(String),
    Table(Table),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    url: String,
    weight: Option<f64>,
    max_connections: Option<u32>,
}

impl From<Form> for Replica {
    fn from(form: Form) -> Self {
        match form {
            Form::Url(url) => Self::new(url),
            Form::Table(Table { url, weight, max_connections }) => {
                Self { url, weight: weight.unwrap_or(1.0), max_connections, options: None }
            }
        }
    }
}

impl Replica {
    /// Creates a node with a weight of 1.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), weight: 1.0, max_connections: None, options: None }
    }

    /// Sets the weight of the node's share of reads; the default is 1.
    pub fn weight(mut self, weight: f64) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the maximum number of connections to the node.
    pub fn max_connections(mut self, count: u32) -> Self {
        self.max_connections = Some(count);
        self
    }
}

impl From<&str> for Replica {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<&String> for Replica {
    fn from(url: &String) -> Self {
        Self::new(url)
    }
}

impl From<String> for Replica {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

#[allow(unused_macros)]
macro_rules! options {
    ($options:ty, $dialect:expr) => {
        impl From<$options> for Replica {
            fn from(options: $options) -> Self {
                let dialect: fn(&$options) -> Option<Dialect> = $dialect;
                let options = Options { dialect: dialect(&options), of_driver: Arc::new(options) };
                Self { options: Some(options), ..Self::new("") }
            }
        }
    };
}

#[cfg(feature = "postgres")]
options!(sqlx::postgres::PgConnectOptions, |_| Some(Dialect::Postgres));
#[cfg(feature = "mysql")]
options!(sqlx::mysql::MySqlConnectOptions, |_| Some(Dialect::MySql));
#[cfg(feature = "sqlite")]
options!(sqlx::sqlite::SqliteConnectOptions, |_| Some(Dialect::Sqlite));
#[cfg(feature = "any")]
options!(sqlx::any::AnyConnectOptions, |options| Dialect::of(options.database_url.as_str()));

impl std::fmt::Debug for Replica {
    /// Omits the address, because it may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("weight", &self.weight).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_say_more_than_the_address() {
        let read = |text: &str| serde_json::from_str::<Replica>(text);
        assert_eq!(read("\"postgres://a/x\"").unwrap().url, "postgres://a/x");
        let heavy = read(r#"{"url": "postgres://a/x", "weight": 2.5}"#).unwrap();
        assert_eq!((heavy.weight.to_bits(), heavy.max_connections), (2.5_f64.to_bits(), None));
        assert!(read(r#"{"url": "postgres://a/x", "wieght": 2}"#).is_err());
        assert!(!format!("{heavy:?}").contains("postgres"));
    }
}
