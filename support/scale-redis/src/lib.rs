#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod clock;
mod config;
mod connect;
mod error;
mod handle;
mod keys;
mod link;
mod masters;
mod subscribe;

pub use clock::since_boot;
pub use config::Config;
pub use error::Error;
pub use handle::{Dedicated, Redis};
pub use keys::Keys;
pub use subscribe::{Event, Subscription};
