#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(any(feature = "postgres", feature = "mysql", feature = "sqlite")),
    allow(dead_code, unreachable_code, unused_imports, unused_macros, unused_variables)
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod connection;
mod database;
mod error;
mod retry;
mod row;
mod schema;
mod statement;
mod system;
mod value;

pub use clock::{millis, ttl_millis};
pub use connection::{Connection, Executor};
pub use database::{Database, Options};
pub use error::{Error, is_refusal, is_undone};
pub use retry::retry;
pub use row::{Column, Row};
pub use schema::{Mark, Migration, Schema};
pub use sqlx;
pub use statement::{Answer, Query, Statement};
pub use system::System;
pub use value::Value;
