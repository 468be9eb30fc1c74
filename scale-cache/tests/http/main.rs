//! The layer over an origin that does as it is told.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod fills;
mod origin;
mod pages;
