#![doc = include_str!("../README.md")]

#[cfg(doc)]
#[doc = include_str!("../docs/design.md")]
pub mod design {}

mod autoscale;
mod batch;
mod builder;
mod chain;
mod context;
#[cfg(feature = "dashboard")]
pub mod dashboard;
mod encryption;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod job;
mod limit;
mod outcome;
mod progress;
mod push;
mod queue;
mod registry;
#[cfg(feature = "sql")]
pub mod relay;
mod retry;
#[cfg(feature = "schedule")]
mod schedule;
pub mod store;
pub mod worker;

pub use autoscale::Forecast;
pub use batch::{Batch, BatchStatus};
pub use builder::QueueBuilder;
pub use chain::Chain;
pub use context::Context;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use encryption::PayloadCipher;
pub use error::Error;
pub use format::Failure;
pub use job::{Job, JobId};
pub use limit::Limit;
pub use outcome::{Discard, Snooze};
pub use progress::Progress;
pub use push::{Push, Pushed};
pub use queue::Queue;
pub use queue::listing::{Dead, Listing};
pub use registry::{BatchListing, ScheduleStatus, WorkerStatus};
pub use retry::Retry;
#[cfg(feature = "schedule")]
pub use schedule::{ScheduleError, Scheduler};
pub use store::{Resolution, Sample, State, Stats};
pub use worker::Worker;
