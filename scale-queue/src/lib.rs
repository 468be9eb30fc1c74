#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doc)]
#[doc = include_str!("../docs/design.md")]
pub mod design {}

#[cfg(doc)]
#[doc = include_str!("../docs/parity.md")]
pub mod parity {}

pub mod autoscale;
pub mod batch;
mod builder;
mod chain;
mod checkpoint;
pub mod circuit;
mod context;
#[cfg(feature = "dashboard")]
pub mod dashboard;
pub mod encryption;
pub mod ended;
mod error;
#[cfg(all(feature = "sql", feature = "redis"))]
pub mod failover;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
mod job;
mod limit;
pub mod log;
mod options;
pub mod outcome;
pub mod progress;
pub mod push;
mod queue;
mod registry;
#[cfg(feature = "sql")]
pub mod relay;
mod result;
pub mod retry;
#[cfg(feature = "schedule")]
pub mod schedule;
pub mod status;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "opentelemetry")]
pub mod trace;
pub mod worker;

pub use batch::Batch;
pub use builder::QueueBuilder;
pub use chain::Chain;
pub use context::Context;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use error::Error;
pub use job::{Job, JobId};
pub use limit::Limit;
pub use push::Push;
pub use queue::Queue;
pub use retry::Retry;
#[cfg(feature = "schedule")]
pub use schedule::Scheduler;
pub use worker::Worker;

// Crates whose types are a part of this interface, in the version that it uses.
#[cfg(feature = "redis")]
pub use scale_redis;
#[cfg(feature = "sql")]
pub use sqlx;
