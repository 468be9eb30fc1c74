//! Random faults played against the scale family, and what they did. See the README.

pub mod db;
pub mod queue;
