#![cfg_attr(feature = "sqlite", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "sqlite"), doc = "See the [README](https://crates.io/crates/scale-db).")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doc)]
#[doc = include_str!("../docs/design.md")]
pub mod design {}

mod backend;
mod builder;
pub mod chunked;
pub mod cluster;
mod config;
pub mod connections;
mod db;
mod deadline;
mod dialect;
mod error;
mod executor;
mod failure;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod loader;
mod log;
pub mod observe;
pub mod page;
#[cfg(feature = "partition")]
#[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
pub mod partition;
mod pool;
mod position;
mod replica;
pub mod retry;
pub mod router;
pub mod shard;
pub mod sticky;
mod tables;

pub use backend::Backend;
pub use builder::Builder;
pub use config::{Config, NoReplica};
pub use db::{Db, RoutedExecutor};
pub use dialect::Dialect;
pub use error::Error;
pub use loader::Loader;
pub use position::Position;
pub use replica::Replica;
pub use sticky::StickyLayer;

// Crates whose types are a part of this interface, in the version that it uses.
pub use sqlx;
