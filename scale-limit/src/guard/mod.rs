//! What limits are for: guessing, scraping, and who is to be kept out.

pub mod bans;
pub mod login;
mod names;
pub mod scraping;
mod sending;
