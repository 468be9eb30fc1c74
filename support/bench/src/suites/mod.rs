//! One file per suite: what is measured, the setup of each subject, and what cannot be compared.

pub(crate) mod cache;
pub(crate) mod db;
pub(crate) mod growth;
pub(crate) mod limit;
pub(crate) mod queue;
pub(crate) mod session;
