//! Every interleaving of the cache's versions and fences, with loom:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p scale-loom --release explored::
//! ```
//!
//! The policies of `scale-cache` name no runtime and no store, so their files compile here, with
//! loom's locks and atomics in place of the usual ones.
#![cfg(loom)]
#![allow(dead_code, reason = "the cases use a part of the policies")]

mod policy {
    #[path = "../../../../scale-cache/src/policy/fences.rs"]
    pub(crate) mod fences;
    pub(crate) mod sync;
    #[path = "../../../../scale-cache/src/policy/versions.rs"]
    pub(crate) mod versions;
}

mod store {
    use std::sync::Arc;

    pub(crate) type Position = Arc<[u8]>;

    #[derive(Clone, Debug)]
    pub(crate) struct Version {
        pub(crate) at_us: u64,
        pub(crate) position: Option<Position>,
    }
}

#[cfg(test)]
mod explored;
