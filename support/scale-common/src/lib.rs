#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod address;
pub mod circuit_breaker;
pub mod clock;
#[cfg(feature = "coalesce")]
pub mod coalesce;
pub mod cookies;
