#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doc)]
#[doc = include_str!("../docs/design.md")]
pub mod design {}

mod algorithm;
mod bounded_map;
pub mod client;
mod decision;
mod denials;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
mod key;
pub mod layer;
mod lease;
mod limiter;
pub mod load;
mod networks;
pub mod overrides;
mod permit;
pub mod policy;
mod poll_then_spawn;
mod request_head;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use decision::{Decision, Outcome};
pub use error::Error;
pub use guard::bans::BanList;
pub use guard::login::LoginGuard;
pub use layer::LimitLayer;
pub use limiter::Limiter;
pub use load::LoadShed;
pub use policy::{OnError, Policy};
pub use request_head::RequestHead;

// Crates whose types are a part of this interface, in the version that it uses.
pub use ipnet;
#[cfg(feature = "redis")]
pub use scale_redis;
