//! The layer over an origin that the test controls.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

mod fills;
mod origin;
mod pages;
