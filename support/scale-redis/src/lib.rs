#![doc = include_str!("../README.md")]

mod address;
mod config;
mod connect;
mod error;
mod handle;
mod keys;
mod link;
mod subscribe;

pub use config::Config;
pub use error::Error;
pub use handle::{Dedicated, Redis};
pub use keys::Keys;
pub use subscribe::{Event, Subscription};
