#![doc = include_str!("../README.md")]

mod alive;
mod backend;
mod balance;
mod capabilities;
mod choose;
pub mod chunked;
mod config;
mod connections;
mod db;
mod deadline;
mod dialect;
mod discover;
mod error;
mod executor;
mod failure;
mod lag;
mod loader;
mod log;
mod monitor;
mod node;
pub mod page;
#[cfg(feature = "partition")]
#[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
pub mod partition;
mod pools;
mod position;
mod reign;
mod replica;
mod retry;
pub mod router;
pub mod shard;
pub mod sticky;
mod tables;
pub mod watch;

pub use backend::Backend;
pub use config::{Builder, Config, NoReplica};
pub use connections::{Snapshot, Unlimited};
pub use db::{Db, Via};
pub use dialect::Dialect;
pub use error::Error;
pub use loader::Loader;
pub use node::{NodeStatus, Role};
pub use page::Cursors;
pub use position::Position;
pub use replica::Replica;
pub use retry::{Attempt, Transient};
pub use sticky::StickyLayer;
