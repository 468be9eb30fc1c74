#![doc = include_str!("../README.md")]

pub mod client;
mod decision;
mod error;
mod gcra;
pub mod layer;
mod limiter;
pub mod login;
mod policy;
mod response;
mod store;

pub use decision::{Decision, Outcome};
pub use error::Error;
pub use layer::LimitLayer;
pub use limiter::Limiter;
pub use login::LoginGuard;
pub use policy::{OnError, Policy};
