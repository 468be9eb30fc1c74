#![doc = include_str!("../README.md")]

mod backend;
mod balance;
mod config;
mod db;
mod dialect;
mod error;
mod executor;
mod lag;
mod monitor;
mod node;
mod position;
pub mod router;
pub mod sticky;

pub use backend::Backend;
pub use config::{Builder, Config, NoReplica};
pub use db::{Db, Via};
pub use dialect::Dialect;
pub use error::Error;
pub use node::{NodeStatus, Role};
pub use position::Position;
pub use sticky::StickyLayer;
