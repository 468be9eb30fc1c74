#![doc = include_str!("../README.md")]

mod binary;
mod home;
mod log;
mod mariadb;
mod mutate;
mod pooler;
mod port;
mod postgres;
mod process;
mod proxy;
mod redis;
mod shared;
mod tls;
mod wait;

pub use binary::require;
pub use log::Log;
pub use mariadb::{MariaDb, MariaNode};
pub use mutate::mutated;
pub use pooler::Pooler;
pub use postgres::{PgNode, Postgres};
pub use process::{Process, helper};
pub use proxy::Proxy;
pub use redis::{Redis, RedisCluster, RedisSentinel};
pub use shared::Shared;
pub use tls::Authority;
pub use wait::{DEADLINE, eventually};
