//! A file a suite: what is measured, how each subject is set up, and what cannot be compared.

pub(crate) mod cache;
pub(crate) mod db;
pub(crate) mod growth;
pub(crate) mod limit;
pub(crate) mod queue;
pub(crate) mod session;
