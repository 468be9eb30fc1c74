//! Guards for common uses of limits: password guessing, scraping, bans.

pub mod bans;
pub mod login;
mod names;
pub mod scraping;
mod sending;
