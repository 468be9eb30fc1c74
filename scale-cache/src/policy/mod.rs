//! Decisions without input or output: the meaning of versions, fences and entries.

pub(crate) mod entry;
pub(crate) mod fences;
pub(crate) mod journal;
mod sync;
pub(crate) mod versions;
