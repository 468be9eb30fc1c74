#![doc = include_str!("../README.md")]

mod client;
mod protocol;
mod server;

pub use client::TcpStore;
pub use server::serve;
