//! Random faults against the scale family, and counts of their effects. See the README.

pub mod db;
pub mod queue;
