#![doc = include_str!("../README.md")]

mod batch;
mod builder;
mod chain;
mod context;
#[cfg(feature = "dashboard")]
pub mod dashboard;
mod envelope;
mod error;
mod forecast;
mod gather;
mod job;
mod limit;
mod outcome;
mod presence;
mod progress;
mod push;
mod queue;
mod retry;
#[cfg(feature = "schedule")]
mod schedule;
mod seal;
pub mod store;
pub mod worker;

pub use batch::{Batch, BatchStatus};
pub use builder::QueueBuilder;
pub use chain::Chain;
pub use context::Context;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use envelope::Failure;
pub use error::Error;
pub use forecast::Forecast;
pub use job::{Job, JobId};
pub use limit::Limit;
pub use outcome::{Discard, Later};
pub use presence::{BatchListing, ScheduleStatus, WorkerStatus};
pub use progress::Progress;
pub use push::{Push, Pushed};
pub use queue::{Dead, Listing, Queue};
pub use retry::Retry;
#[cfg(feature = "schedule")]
pub use schedule::{ScheduleError, Scheduler};
pub use seal::Seal;
pub use store::{Resolution, Sample, State, Stats};
pub use worker::Worker;
