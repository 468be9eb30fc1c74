#![doc = include_str!("../README.md")]

#[cfg(feature = "auth")]
pub mod auth;
#[cfg(feature = "axum")]
mod axum;
mod changes;
mod config;
mod cookie;
mod error;
mod headers;
mod id;
pub mod layer;
mod plain_http;
mod session;
mod signed;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
pub mod store;
mod value;

#[cfg(feature = "axum")]
pub use self::axum::{Rejection, SignedIn};
pub use config::{ClearSiteData, Config, OnStoreError};
pub use cookie::{CookiePolicy, SameSite};
pub use error::Error;
pub use layer::SessionLayer;
pub use session::Session;
pub use signed::Device;
