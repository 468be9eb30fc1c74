//! Locks and atomics of the policies. `support/loom` replaces them with those of loom.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use parking_lot::{Mutex, RwLock};
