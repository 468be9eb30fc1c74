#![doc = include_str!("../README.md")]

mod breaker;
mod cache;
mod clock;
mod codec;
mod config;
mod digest;
mod entry;
mod error;
mod fence;
mod flight;
mod hit;
#[cfg(feature = "http")]
pub mod http;
mod journal;
mod link;
mod listen;
mod load;
mod made;
mod many;
pub mod memo;
mod options;
mod pending;
mod shared;
#[cfg(feature = "http")]
mod since;
mod space;
mod stamp;
pub mod store;
mod voyage;

pub use cache::Cache;
pub use config::Config;
pub use error::Error;
pub use hit::{Hit, Level};
pub use load::Load;
pub use options::Options;
pub use pending::Reach;
pub use space::Space;
