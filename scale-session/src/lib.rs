#![cfg_attr(feature = "axum", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "axum"),
    doc = "See the [README](https://crates.io/crates/scale-session)."
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doc)]
#[doc = include_str!("../docs/design.md")]
pub mod design {}

#[cfg(feature = "auth")]
pub mod auth;
#[cfg(feature = "axum")]
mod axum;
mod config;
mod cookie;
mod devices;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod id;
mod identity;
pub mod layer;
mod plain_http;
mod session;
#[cfg(feature = "sql")]
mod sql;
#[cfg(feature = "sql")]
mod statements;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod value;

#[cfg(feature = "axum")]
pub use self::axum::{Rejection, SignedIn};
pub use config::{ClearSiteData, Config, OnStoreError};
pub use cookie::{CookiePolicy, SameSite};
pub use devices::Device;
pub use error::Error;
pub use layer::SessionLayer;
pub use session::Session;
#[cfg(feature = "sql")]
#[doc(hidden)]
pub use statements::statements_of;

// Crates whose types are a part of this interface, in the version that it uses.
#[cfg(feature = "redis")]
pub use scale_redis;
#[cfg(feature = "sql")]
pub use sqlx;
