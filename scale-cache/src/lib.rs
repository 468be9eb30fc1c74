#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doc)]
#[doc = include_str!("../docs/design.md")]
pub mod design {}

mod cache;
mod clock;
mod config;
mod core;
mod digest;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "http")]
pub mod http;
mod load_context;
pub mod memo;
mod metadata;
mod options;
mod policy;
mod space;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use cache::Cache;
pub use config::Config;
pub use core::pending_invalidations::Reach;
pub use error::{Error, LoadError};
pub use load_context::LoadContext;
pub use metadata::{Hit, Level};
pub use options::Options;
pub use space::Space;

// Crates whose types are a part of this interface, in the version that it uses.
#[cfg(feature = "redis")]
pub use scale_redis;
