//! Jobs that reach other systems.
//!
//! | module | shows |
//! | --- | --- |
//! | [`webhooks`] | events sent to URLs of customers: signed, retried, never into the own network |
//! | [`mail`] | e-mail by `lettre`, with an id that a repeated send does not change |
//! | [`export`] | an export to S3 or the like in parts, which goes on after a stop |

pub mod export;
pub mod mail;
pub mod webhooks;
