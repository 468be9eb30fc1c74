#![doc = include_str!("../README.md")]

mod breaker;
pub mod client;
mod decision;
mod denials;
mod error;
pub mod guard;
mod head;
mod key;
pub mod layer;
mod limiter;
pub mod load;
mod lump;
mod networks;
pub mod overrides;
mod permit;
pub mod policy;
mod rule;
mod store;
mod task;

pub use decision::{Decision, Outcome};
pub use error::Error;
pub use guard::bans::BanList;
pub use guard::login::LoginGuard;
pub use head::Head;
pub use layer::LimitLayer;
pub use limiter::Limiter;
pub use load::LoadShed;
pub use policy::{OnError, Policy};
