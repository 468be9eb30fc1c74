#![doc = include_str!("../README.md")]

pub mod address;
pub mod circuit_breaker;
pub mod clock;
pub mod cookies;
