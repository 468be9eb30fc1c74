#![doc = include_str!("../README.md")]

mod chain;
mod context;
#[cfg(feature = "dashboard")]
pub mod dashboard;
mod envelope;
mod error;
mod gather;
mod job;
mod outcome;
mod push;
mod queue;
mod retry;
#[cfg(feature = "schedule")]
mod schedule;
pub mod store;
pub mod worker;

pub use chain::Chain;
pub use context::Context;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use error::Error;
pub use job::{Job, JobId};
pub use outcome::{Discard, Later};
pub use push::{Push, Pushed};
pub use queue::{Dead, Queue};
pub use retry::Retry;
#[cfg(feature = "schedule")]
pub use schedule::{ScheduleError, Scheduler};
pub use worker::Worker;
