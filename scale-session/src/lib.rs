#![doc = include_str!("../README.md")]

#[cfg(feature = "auth")]
pub mod auth;
#[cfg(feature = "axum")]
mod axum;
mod changes;
mod config;
mod cookie;
mod error;
mod id;
pub mod layer;
mod session;
mod signed;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
pub mod store;
mod value;

#[cfg(feature = "axum")]
pub use self::axum::SignedIn;
pub use config::{Config, OnStoreError};
pub use cookie::{CookiePolicy, SameSite};
pub use error::Error;
pub use layer::SessionLayer;
pub use session::Session;
pub use signed::Device;
