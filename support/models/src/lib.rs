//! The protocols of the family as small state machines. A checker explores every interleaving of
//! two processes, one key, one crash and one lost message.
//!
//! A model has the *rules* of the code. With all rules, its properties hold in every reachable
//! state; its tests switch off each rule once, and the checker must find a violation.
//!
//! | model | rules | enforced in |
//! | --- | --- | --- |
//! | [`cache_tags`] | versions before the load; versions compared; versions forgotten with a lost subscription | `scale-cache/src/core/load_task.rs`, `policy/versions.rs`, `core/events.rs` |
//! | [`cache_keys`] | pending before fence; fence checked when a value is kept | `core/invalidation.rs`, `core/lookup.rs`, `policy/fences.rs` |
//! | [`queue_leases`] | acknowledgements fenced by the lease; jobs of an expired lease reclaimed; jobs kept while leased | `scale-queue/src/store/*`, `worker/engine` |
//! | [`queue_wake_ups`] | listed as idle before the look; a wake-up that cannot be used is passed on | `scale-queue/src/store/sql/mod.rs`, `worker/engine/wake_ups.rs` |
//! | [`session`] | writes only to a session that is there and not replaced; revocation compared at each load and write; old proofs end | `scale-session/src/store/*`, `store/save.lua`, `store/load.lua` |
//! | [`limit_leases`] | units leave the bucket before they are lent; leases end; a unit returns to its own lease | `scale-limit/src/lease.rs`, `store/charge.lua` |

use std::hash::Hash;

use stateright::{Checker, Model};

pub mod cache_keys;
pub mod cache_tags;
pub mod limit_leases;
pub mod queue_leases;
pub mod queue_wake_ups;
pub mod session;

/// Explores a model completely. Returns the number of its states.
///
/// # Errors
/// The property that does not hold, and the shortest sequence of steps to a violation.
pub fn explore<M>(model: M) -> Result<usize, String>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    let checker = model.checker().spawn_bfs().join();
    match checker.discoveries().into_iter().next() {
        None => Ok(checker.unique_state_count()),
        Some((property, path)) => Err(format!("{property}: {:?}", path.into_actions())),
    }
}
