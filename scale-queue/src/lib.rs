#![doc = include_str!("../README.md")]

mod context;
mod envelope;
mod error;
mod gather;
mod job;
mod outcome;
mod push;
mod queue;
mod retry;
pub mod store;
pub mod worker;

pub use context::Context;
pub use error::Error;
pub use job::{Job, JobId};
pub use outcome::{Discard, Later};
pub use push::{Push, Pushed};
pub use queue::{Dead, Queue};
pub use retry::Retry;
pub use worker::Worker;
