//! Cost of a hash: memory, passes, lanes.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};

use crate::auth::error::Error;

/// Length of a salt, in bytes.
pub(super) const SALT: usize = 16;
/// Length of a hash, in bytes.
pub(super) const HASH: usize = 32;

/// Cost of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory: u32,
    /// Number of passes over the memory.
    pub passes: u32,
    /// Number of lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// Returns OWASP's parameters: 19 MiB, 2 passes, 1 lane.
    fn default() -> Self {
        Self { memory: 19_456, passes: 2, lanes: 1 }
    }
}

impl Cost {
    pub(super) fn params(self) -> Result<Params, Error> {
        Params::new(self.memory, self.passes, self.lanes, Some(HASH))
            .map_err(|_| Error::Setting("argon2 does not accept these cost parameters"))
    }

    /// Returns the cost with as many passes over `memory` (KiB) as fit into `target` on this
    /// machine, but no less than OWASP's parameters. Takes a few times `target`; do not run it at
    /// every start.
    ///
    /// # Errors
    /// [`Error::Setting`] for an amount of memory that argon2 does not accept.
    pub fn calibrate(memory: u32, target: Duration) -> Result<Self, Error> {
        let cost = Self { memory: memory.max(Self::default().memory), passes: 2, lanes: 1 };
        let mut blocks = vec![Block::default(); cost.params()?.block_count()];
        let mut took = |passes: u32| -> Result<Duration, Error> {
            let argon2 =
                Argon2::new(Algorithm::Argon2id, Version::V0x13, Self { passes, ..cost }.params()?);
            let start = Instant::now();
            let hashed = argon2.hash_password_into_with_memory(
                b"calibration", &[0; SALT], &mut [0; HASH], &mut blocks,
            );
            hashed.map_err(|_| Error::Setting("argon2 does not accept these cost parameters"))?;
            Ok(start.elapsed())
        };
        took(1)?;
        let one = took(2)? / 2;
        let passes = (target.as_secs_f64() / one.as_secs_f64().max(1e-6)) as u32;
        Ok(Self { passes: passes.clamp(2, 100), ..cost })
    }
}
