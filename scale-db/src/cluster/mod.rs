//! Nodes of a cluster: their roles, their lag, and the choice among them.

pub(crate) mod balance;
pub(crate) mod capabilities;
pub(crate) mod choose;
pub(crate) mod discover;
pub(crate) mod lag;
pub(crate) mod monitor;
pub(crate) mod node;
pub(crate) mod primary;
